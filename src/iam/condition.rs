//! Conditions of IAM policies: operators, set qualifiers and `…IfExists`.
//!
//! Owns what one condition means, given the request's context; what its patterns match is `pattern`'s business. Context keys are lower-case here; a key that
//! the request does not have is `None`, which is not the same as an empty list.

use super::pattern::Pattern;
use serde_json::Value;
use std::net::IpAddr;

/// The request's context: the values of a lower-case key, `None` when the request has no such key.
pub type Context<'a> = dyn Fn(&str) -> Option<Vec<String>> + 'a;

/// One condition of a statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The context key, in lower case.
    pub key: String,
    /// The values as written.
    pub values: Vec<String>,
    test: Test,
    negated: bool,
    if_exists: bool,
    set: Option<Set>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    All,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Equal,
    EqualIgnoringCase,
    Like,
    Arn,
    Number(Order),
    Date(Order),
    Bool,
    Ip,
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    fn holds<T: PartialOrd>(self, left: &T, right: &T) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}

impl Condition {
    /// Reads a `Condition` block.
    pub(super) fn read_block(block: &Value) -> Result<Vec<Self>, String> {
        let mut conditions = Vec::new();
        for (operator, keys) in block.as_object().ok_or("Condition must be an object")? {
            for (key, values) in keys.as_object().ok_or("a condition operator must hold an object")? {
                let values = match values {
                    Value::Array(list) => list.iter().map(scalar).collect::<Option<_>>(),
                    one => scalar(one).map(|value| vec![value]),
                };
                let values = values.ok_or_else(|| format!("the values of {key} must be scalars"))?;
                conditions.push(Self::new(operator, key, values)?);
            }
        }
        Ok(conditions)
    }

    fn new(operator: &str, key: &str, values: Vec<String>) -> Result<Self, String> {
        let (set, rest) = match operator.split_once(':') {
            Some(("ForAllValues", rest)) => (Some(Set::All), rest),
            Some(("ForAnyValue", rest)) => (Some(Set::Any), rest),
            _ => (None, operator),
        };
        let (name, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |name| (name, true));
        let (test, negated) = match name {
            "StringEquals" | "BinaryEquals" => (Test::Equal, false),
            "StringNotEquals" => (Test::Equal, true),
            "StringEqualsIgnoreCase" => (Test::EqualIgnoringCase, false),
            "StringNotEqualsIgnoreCase" => (Test::EqualIgnoringCase, true),
            "StringLike" => (Test::Like, false),
            "StringNotLike" => (Test::Like, true),
            "ArnEquals" | "ArnLike" => (Test::Arn, false),
            "ArnNotEquals" | "ArnNotLike" => (Test::Arn, true),
            "NumericEquals" => (Test::Number(Order::Equal), false),
            "NumericNotEquals" => (Test::Number(Order::Equal), true),
            "NumericLessThan" => (Test::Number(Order::Less), false),
            "NumericLessThanEquals" => (Test::Number(Order::LessOrEqual), false),
            "NumericGreaterThan" => (Test::Number(Order::Greater), false),
            "NumericGreaterThanEquals" => (Test::Number(Order::GreaterOrEqual), false),
            "DateEquals" => (Test::Date(Order::Equal), false),
            "DateNotEquals" => (Test::Date(Order::Equal), true),
            "DateLessThan" => (Test::Date(Order::Less), false),
            "DateLessThanEquals" => (Test::Date(Order::LessOrEqual), false),
            "DateGreaterThan" => (Test::Date(Order::Greater), false),
            "DateGreaterThanEquals" => (Test::Date(Order::GreaterOrEqual), false),
            "Bool" => (Test::Bool, false),
            "IpAddress" => (Test::Ip, false),
            "NotIpAddress" => (Test::Ip, true),
            "Null" if !if_exists => (Test::Null, false),
            _ => return Err(format!("Invalid Condition type : {operator}.")),
        };
        Ok(Self { key: key.to_ascii_lowercase(), values, test, negated, if_exists, set })
    }

    /// Whether it holds only for values that it names, none of them open: what makes a `*` principal narrow.
    #[must_use]
    pub fn pins_its_key(&self) -> bool {
        let closed = |value: &String| !value.contains(['*', '?', '$']);
        !self.negated
            && !self.if_exists
            && self.set != Some(Set::All)
            && self.test != Test::Null
            && self.values.iter().all(closed)
    }

    /// Whether the condition holds for a request.
    #[must_use]
    pub fn holds(&self, context: &Context<'_>) -> bool {
        let actual = context(&self.key);
        if self.test == Test::Null {
            return self.values.iter().any(|wanted| wanted.eq_ignore_ascii_case("true") == actual.is_none());
        }
        let Some(actual) = actual else {
            return match self.set {
                Some(Set::All) => true,
                Some(Set::Any) => self.if_exists,
                None => self.if_exists || self.negated,
            };
        };
        // A variable without a value makes its pattern match nothing.
        let wanted: Vec<Pattern> =
            self.values.iter().filter_map(|value| Pattern::read(value, context)).collect();
        let one = |value: &String| wanted.iter().any(|want| self.matches(value, want)) != self.negated;
        match self.set {
            Some(Set::All) => actual.iter().all(one),
            Some(Set::Any) => actual.iter().any(one),
            // A key with several values needs a set qualifier; without one, AWS leaves the result undefined.
            None if self.negated => actual.iter().all(one),
            None => actual.iter().any(one),
        }
    }

    fn matches(&self, actual: &str, wanted: &Pattern) -> bool {
        match self.test {
            Test::Like => wanted.matches(actual),
            Test::Arn => wanted.matches_arn(actual),
            _ => self.compares(actual, &wanted.text()),
        }
    }

    /// Whether a value is what another one says, where wildcards mean nothing.
    fn compares(&self, actual: &str, wanted: &str) -> bool {
        match self.test {
            Test::Equal => actual == wanted,
            Test::EqualIgnoringCase => actual.eq_ignore_ascii_case(wanted),
            Test::Number(order) => match (actual.parse::<f64>(), wanted.parse::<f64>()) {
                (Ok(actual), Ok(wanted)) => order.holds(&actual, &wanted),
                _ => false,
            },
            Test::Date(order) => match (epoch_seconds(actual), epoch_seconds(wanted)) {
                (Some(actual), Some(wanted)) => order.holds(&actual, &wanted),
                _ => false,
            },
            Test::Bool => actual.eq_ignore_ascii_case(wanted),
            Test::Ip => in_network(actual, wanted),
            Test::Like | Test::Arn | Test::Null => false,
        }
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

fn epoch_seconds(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = humantime::parse_rfc3339_weak(&full).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

fn in_network(address: &str, network: &str) -> bool {
    let (base, length) = match network.split_once('/') {
        Some((base, length)) => (base, length.parse::<u32>().ok()),
        None => (network, None),
    };
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (32, u128::from(u32::from(ip))),
        IpAddr::V6(ip) => (128, u128::from(ip)),
    };
    let (Ok(address), Ok(base)) = (address.parse().map(bits), base.parse().map(bits)) else { return false };
    let width: u32 = base.0;
    let length = length.unwrap_or(width).min(width);
    address.0 == width && (length == 0 || (address.1 ^ base.1) >> (width - length) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn holds(block: Value, context: &[(&str, &[&str])]) -> bool {
        let lookup = |key: &str| {
            let found = context.iter().find(|(name, _)| *name == key)?;
            Some(found.1.iter().map(|v| (*v).to_owned()).collect())
        };
        Condition::read_block(&block).unwrap().iter().all(|condition| condition.holds(&lookup))
    }

    #[test]
    fn operators() {
        let table: &[(Value, &str, bool)] = &[
            (json!({"StringEquals": {"k": ["a", "b"]}}), "b", true),
            (json!({"StringEquals": {"k": "a"}}), "A", false),
            (json!({"StringEqualsIgnoreCase": {"k": "a"}}), "A", true),
            (json!({"StringNotEquals": {"k": ["a", "b"]}}), "b", false),
            (json!({"StringLike": {"k": "x-*-?"}}), "x-12-3", true),
            (json!({"StringNotLike": {"k": "x*"}}), "xy", false),
            (json!({"NumericLessThanEquals": {"k": "10"}}), "9.5", true),
            (json!({"DateGreaterThan": {"k": "2026-01-01T00:00:00Z"}}), "2026-01-02", true),
            (json!({"DateLessThan": {"k": "2026-01-01T00:00:00Z"}}), "1767225600", false),
            (json!({"Bool": {"k": "true"}}), "true", true),
            (json!({"IpAddress": {"k": "192.0.2.0/24"}}), "192.0.2.200", true),
            (json!({"IpAddress": {"k": "192.0.2.0/24"}}), "192.0.3.1", false),
            (json!({"NotIpAddress": {"k": ["10.0.0.0/8", "2001:db8::/32"]}}), "2001:db8::1", false),
            (
                json!({"ArnLike": {"k": "arn:aws:iam::*:role/app-*"}}),
                "arn:aws:iam::111111111111:role/app-1",
                true,
            ),
            (json!({"ArnLike": {"k": "arn:aws:iam::*:role/app"}}), "arn:aws:iam::1:x:role/app", false),
        ];
        for (block, value, expected) in table {
            assert_eq!(holds(block.clone(), &[("k", &[value])]), *expected, "{block} with {value}");
        }
    }

    #[test]
    fn a_missing_key() {
        for (block, expected) in [
            (json!({"StringEquals": {"k": "a"}}), false),
            (json!({"StringNotEquals": {"k": "a"}}), true),
            (json!({"StringEqualsIfExists": {"k": "a"}}), true),
            (json!({"ForAllValues:StringEquals": {"k": "a"}}), true),
            (json!({"ForAnyValue:StringEquals": {"k": "a"}}), false),
            (json!({"ForAnyValue:StringNotEquals": {"k": "a"}}), false),
            (json!({"Null": {"k": "true"}}), true),
            (json!({"Null": {"k": "false"}}), false),
        ] {
            assert_eq!(holds(block.clone(), &[]), expected, "{block}");
        }
    }

    #[test]
    fn sets_of_values() {
        let all = json!({"ForAllValues:StringEquals": {"k": ["a", "b"]}});
        assert!(holds(all.clone(), &[("k", &["a", "b"])]));
        assert!(!holds(all, &[("k", &["a", "c"])]));
        let any = json!({"ForAnyValue:StringEquals": {"k": "a"}});
        assert!(holds(any.clone(), &[("k", &["a", "c"])]));
        assert!(!holds(any, &[("k", &["c"])]));
    }

    #[test]
    fn characters_that_stand_for_themselves() {
        for (pattern, value, expected) in [
            ("a${*}b", "a*b", true),
            ("a${*}b", "axb", false),
            ("a${?}*", "a?b", true),
            ("a${?}*", "axb", false),
            ("a${$}{b}", "a${b}", true),
            ("${k2}*", "*x", true),
            ("${k2}*", "yx", false),
        ] {
            let context: &[(&str, &[&str])] = &[("k", &[value]), ("k2", &["*"])];
            assert_eq!(holds(json!({"StringLike": {"k": pattern}}), context), expected, "{pattern} {value}");
        }
        let equal = json!({"StringEquals": {"k": "a${*}b"}});
        assert!(holds(equal.clone(), &[("k", &["a*b"])]) && !holds(equal, &[("k", &["axb"])]));
    }

    #[test]
    fn variables() {
        let block = json!({"StringLike": {"k": "${aws:username}/${*}*"}});
        assert!(holds(block.clone(), &[("k", &["alice/*x"]), ("aws:username", &["alice"])]));
        assert!(!holds(block, &[("k", &["alice/*x"])]));
        assert!(!holds(
            json!({"StringLike": {"k": "${aws:username}/${*}*"}}),
            &[("k", &["alice/x"]), ("aws:username", &["alice"])]
        ));
        let with_default = json!({"StringEquals": {"k": "${aws:username, 'nobody'}"}});
        assert!(holds(with_default, &[("k", &["nobody"])]));
    }
}
