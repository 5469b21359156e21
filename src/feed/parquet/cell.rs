//! A value as a cell of a column: exact, or not at all.

use crate::config::ColumnType;
use crate::json::{Spelling, write_value};
use crate::view::View;
use bigdecimal::{BigDecimal, ToPrimitive};

/// One cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Bytes(Vec<u8>),
    /// The digits of a decimal, without its point.
    Decimal(i128),
    Int(i64),
    Double(f64),
    Bool(bool),
    /// Texts.
    List(Vec<Vec<u8>>),
}

/// A value as a cell of a column; `None` when it does not fit. Only with `exact` a double must read back as the number
/// that it was.
pub(super) fn of(value: &View<'_>, kind: ColumnType, exact: bool) -> Option<Cell> {
    use View as A;
    match (kind, value) {
        (_, A::Null(_)) => None,
        (ColumnType::String, A::S(text) | A::N(text)) => Some(Cell::Bytes(text.as_bytes().to_vec())),
        (ColumnType::Binary, A::B(bytes)) => Some(Cell::Bytes(bytes.to_vec())),
        (ColumnType::Boolean, A::Bool(flag)) => Some(Cell::Bool(*flag)),
        (ColumnType::Int64, A::N(digits)) => whole(digits).map(Cell::Int),
        (ColumnType::Double, A::N(digits)) => {
            let nearest: f64 = digits.parse().ok()?;
            (nearest.is_finite() && (!exact || reads_back(nearest, digits))).then_some(Cell::Double(nearest))
        }
        (ColumnType::Decimal { precision, scale }, A::N(digits)) => decimal(digits, precision, scale),
        (ColumnType::List, A::Ss(texts) | A::Ns(texts)) => {
            let mut texts: Vec<_> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
            texts.sort_unstable();
            Some(Cell::List(texts))
        }
        (ColumnType::List, A::L(values)) => values.iter().map(text).collect::<Option<_>>().map(Cell::List),
        (ColumnType::Json, value) => {
            let mut out = Vec::new();
            write_value(value, Spelling::Plain, &mut out);
            Some(Cell::Bytes(out))
        }
        _ => None,
    }
}

fn text(value: &View<'_>) -> Option<Vec<u8>> {
    match value {
        View::S(text) | View::N(text) => Some(text.as_bytes().to_vec()),
        _ => None,
    }
}

/// Whether the shortest text of a double is the number that was written.
fn reads_back(value: f64, digits: &str) -> bool {
    let shortest = value.to_string();
    if shortest == digits {
        return true;
    }
    let numbers = shortest.parse::<BigDecimal>().ok().zip(digits.parse::<BigDecimal>().ok());
    numbers.is_some_and(|(shortest, written)| shortest == written)
}

/// A number of at most 64 bits without a fraction.
pub(super) fn whole(digits: &str) -> Option<i64> {
    if let Ok(value) = digits.parse() {
        return Some(value);
    }
    let number: BigDecimal = digits.parse().ok()?;
    number.is_integer().then(|| number.to_i64())?
}

fn decimal(digits: &str, precision: u8, scale: u8) -> Option<Cell> {
    let number: BigDecimal = digits.parse().ok()?;
    let scaled = number.with_scale(i64::from(scale));
    let (unscaled, _) = scaled.as_bigint_and_exponent();
    let unscaled = unscaled.to_i128()?;
    let fits = unscaled.unsigned_abs() < 10u128.pow(u32::from(precision));
    (fits && scaled == number).then_some(Cell::Decimal(unscaled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(digits: &str, kind: ColumnType) -> Option<Cell> {
        of(&View::N(digits.into()), kind, false)
    }

    #[test]
    fn numbers_fit_exactly_or_not_at_all() {
        assert_eq!(number("-9223372036854775808", ColumnType::Int64), Some(Cell::Int(i64::MIN)));
        assert_eq!(number("1E+2", ColumnType::Int64), Some(Cell::Int(100)));
        assert_eq!(number("9223372036854775808", ColumnType::Int64), None);
        assert_eq!(number("1.5", ColumnType::Int64), None);
        let most = "99999999999999999999999999999999999999";
        let widest = ColumnType::Decimal { precision: 38, scale: 0 };
        assert_eq!(number(most, widest), Some(Cell::Decimal(most.parse().unwrap())));
        assert_eq!(number("1E+38", widest), None);
        assert_eq!(number("1E-130", widest), None);
        let money = ColumnType::Decimal { precision: 4, scale: 2 };
        assert_eq!(number("-12.5", money), Some(Cell::Decimal(-1250)));
        assert_eq!((number("123", money), number("1.234", money)), (None, None));
        assert_eq!(number(most, ColumnType::String), Some(Cell::Bytes(most.as_bytes().to_vec())));
    }
}
