//! The filter's expression: [CEL](https://cel.dev) over one variable, `item`.
//!
//! Compiled when the config is read. Names, functions and types are checked as far as they are known before any item is
//! there: an attribute may hold anything. What is wrong carries its place in the expression. Evaluating depends on the
//! item alone, and its errors hold no values.

use crate::item::Item;
use aws_sdk_dynamodb::types::AttributeValue;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::objects::{Key, Map};
use cel::{Context, Env, ExecutionError, Program, Value};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// The only variable.
const ITEM: &str = "item";

/// CEL's standard library: the same for all.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled expression, true for the items that a filter lets through.
pub struct Expression {
    program: Program,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({})", self.program.source_info().source)
    }
}

/// What is wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, as a byte of the expression.
    pub at: usize,
    /// What.
    pub what: String,
}

impl Expression {
    /// Compiles an expression, and checks what can be.
    ///
    /// # Errors
    /// What is wrong, in the order of the text where the parser found several.
    pub fn compile(source: &str) -> Result<Self, Vec<Fault>> {
        let program = Program::compile(source).map_err(|errors| {
            errors
                .errors
                .iter()
                .map(|e| Fault { at: offset(source, e.pos), what: e.msg.clone() })
                .collect::<Vec<_>>()
        })?;
        let fault = |(id, what): (u64, String)| {
            let at = program.source_info().offset_for(id).map_or(0, |(start, _)| start as usize);
            vec![Fault { at: at.min(source.len()), what }]
        };
        let root = program.expression();
        let kind = Scope::default().check(root).map_err(fault)?;
        if !kind.may_be(Kind::Bool) {
            let what = format!("is {kind}, and a filter must be true or false");
            return Err(vec![Fault { at: 0, what }]);
        }
        Ok(Self { program })
    }

    /// Whether it is true for an item.
    ///
    /// # Errors
    /// Why that cannot be said, without any value.
    pub fn holds(&self, item: &Item) -> Result<bool, String> {
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.add_variable_from_value(ITEM, of_map(&item.0));
        match self.program.execute(&context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(format!("the filter is {} and neither true nor false", other.type_of())),
            Err(error) => Err(format!("the filter: {}", reason(&error))),
        }
    }
}

/// A byte of the text for a line and a column, both counted from 1.
fn offset(source: &str, (line, column): (isize, isize)) -> usize {
    let line = usize::try_from(line - 1).unwrap_or_default();
    let before: usize = source.split_inclusive('\n').take(line).map(str::len).sum();
    let text = source.get(before..).unwrap_or_default();
    let column = usize::try_from(column - 1).unwrap_or_default();
    before + text.char_indices().nth(column).map_or(text.trim_end_matches('\n').len(), |(at, _)| at)
}

/// An error without the values that it is about.
fn reason(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(name) => {
            format!("there is no attribute {name}; test with has(...) whether it is there")
        }
        ExecutionError::NoSuchOverload(error) => error.to_string(),
        ExecutionError::UndeclaredReference(name) => format!("nothing is known of {name}"),
        ExecutionError::UnexpectedType { got, want } => format!("a value is {got} where {want} is needed"),
        ExecutionError::FunctionError { function, .. } => format!("{function} failed"),
        ExecutionError::ValuesNotComparable(a, b) => {
            format!("{} cannot be compared with {}", a.type_of(), b.type_of())
        }
        ExecutionError::UnsupportedBinaryOperator(operator, a, b) => {
            format!("{operator} does not take {} and {}", a.type_of(), b.type_of())
        }
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "division by zero".to_owned()
        }
        ExecutionError::Overflow(..) => "a number is too large".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "a list has no element of this index".to_owned(),
        _ => "a value is of a type that it does not take".to_owned(),
    }
}

fn of_map(map: &HashMap<String, AttributeValue>) -> Value {
    let entry = |(name, value): (&String, &AttributeValue)| (Key::String(Arc::new(name.clone())), of(value));
    Value::Map(Map { map: Arc::new(map.iter().map(entry).collect()) })
}

/// A value as CEL has it. Whole numbers of up to 64 bits are exact, others are nearest 64-bit floats.
fn of(value: &AttributeValue) -> Value {
    let list = |values: Vec<Value>| Value::List(Arc::new(values));
    let text = |text: &String| Value::String(Arc::new(text.clone()));
    let bytes = |bytes: &[u8]| Value::Bytes(Arc::new(bytes.to_vec()));
    match value {
        AttributeValue::S(value) => text(value),
        AttributeValue::N(number) => of_number(number),
        AttributeValue::B(value) => bytes(value.as_ref()),
        AttributeValue::Bool(value) => Value::Bool(*value),
        AttributeValue::M(map) => of_map(map),
        AttributeValue::L(values) => list(values.iter().map(of).collect()),
        AttributeValue::Ss(set) => list(set.iter().map(text).collect()),
        AttributeValue::Ns(set) => list(set.iter().map(|number| of_number(number)).collect()),
        AttributeValue::Bs(set) => list(set.iter().map(|value| bytes(value.as_ref())).collect()),
        // Null; decoding refuses values of unknown type.
        _ => Value::Null,
    }
}

fn of_number(text: &str) -> Value {
    let whole = || super::template::number(text)?.parse::<i64>().ok();
    if let Some(number) = text.parse::<i64>().ok().or_else(whole) {
        return Value::Int(number);
    }
    text.parse().map_or(Value::Null, Value::Float)
}

/// What is known of a value before there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    Bool,
    Number,
    Text,
    Bytes,
    List,
    Map,
    Null,
}

impl Kind {
    fn may_be(self, other: Self) -> bool {
        self == Self::Any || other == Self::Any || self == other
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "of any type",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "a string",
            Self::Bytes => "bytes",
            Self::List => "a list",
            Self::Map => "a map",
            Self::Null => "null",
        })
    }
}

type Checked = Result<Kind, (u64, String)>;

/// The variables of macros such as `all`, by name.
#[derive(Default, Clone)]
struct Scope<'e>(HashMap<&'e str, Kind>);

impl<'e> Scope<'e> {
    fn check(&self, expr: &'e IdedExpr) -> Checked {
        match &expr.expr {
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(_) => Kind::Bool,
                LiteralValue::Bytes(_) => Kind::Bytes,
                LiteralValue::Double(_) | LiteralValue::Int(_) | LiteralValue::UInt(_) => Kind::Number,
                LiteralValue::Null => Kind::Null,
                LiteralValue::String(_) => Kind::Text,
            }),
            Expr::Ident(name) if name == ITEM => Ok(Kind::Map),
            Expr::Ident(name) => self.0.get(name.as_str()).copied().ok_or_else(|| {
                let what = format!("nothing is known of {name}; an attribute is item.{name}");
                (expr.id, what)
            }),
            Expr::Select(select) => {
                self.wants(&select.operand, &[Kind::Map])?;
                Ok(if select.test { Kind::Bool } else { Kind::Any })
            }
            Expr::List(list) => {
                list.elements.iter().try_for_each(|element| self.check(element).map(drop))?;
                Ok(Kind::List)
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.check(&entry.key)?;
                        self.check(&entry.value)?;
                    }
                }
                Ok(Kind::Map)
            }
            Expr::Call(call) => self.call(expr.id, call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(_) | Expr::Unspecified => {
                Err((expr.id, "is nothing that a filter knows".to_owned()))
            }
        }
    }

    fn comprehension(&self, of: &'e ComprehensionExpr) -> Checked {
        self.wants(&of.iter_range, &[Kind::List, Kind::Map])?;
        let mut inner = self.clone();
        inner.0.insert(&of.accu_var, self.check(&of.accu_init)?);
        for name in std::iter::once(&of.iter_var).chain(&of.iter_var2) {
            inner.0.insert(name, Kind::Any);
        }
        inner.check(&of.loop_cond)?;
        inner.check(&of.loop_step)?;
        inner.check(&of.result)
    }

    /// The kind of an expression that must be one of `kinds`.
    fn wants(&self, expr: &'e IdedExpr, kinds: &[Kind]) -> Checked {
        let kind = self.check(expr)?;
        if kinds.iter().any(|wanted| kind.may_be(*wanted)) {
            return Ok(kind);
        }
        let wanted: Vec<String> = kinds.iter().map(ToString::to_string).collect();
        Err((expr.id, format!("is {kind}, where {} is needed", wanted.join(" or "))))
    }

    /// Two expressions of the same kind.
    fn same(&self, id: u64, args: &'e [IdedExpr]) -> Checked {
        let kinds = args.iter().map(|arg| self.check(arg)).collect::<Result<Vec<_>, _>>()?;
        match kinds[..] {
            [a, b] if !a.may_be(b) => Err((id, format!("compares what is {a} with what is {b}"))),
            [Kind::Any, b] => Ok(b),
            [a, ..] => Ok(a),
            [] => Ok(Kind::Any),
        }
    }

    fn call(&self, id: u64, call: &'e CallExpr) -> Checked {
        let args = &call.args[..];
        let all =
            |kind: Kind| args.iter().try_for_each(|arg| self.wants(arg, &[kind]).map(drop)).map(|()| kind);
        let count = |wanted: usize| {
            let given = args.len();
            if given == wanted {
                Ok(())
            } else {
                Err((id, format!("{} takes {wanted}, not {given}", call.func_name)))
            }
        };
        match (call.func_name.as_str(), &call.target) {
            ("_&&_" | "_||_" | "!_", None) => all(Kind::Bool),
            ("@not_strictly_false", None) => Ok(Kind::Bool),
            ("_?_:_", None) => {
                let [condition, yes, no] = args else { return Ok(Kind::Any) };
                self.wants(condition, &[Kind::Bool])?;
                let (yes, no) = (self.check(yes)?, self.check(no)?);
                Ok(if yes == no { yes } else { Kind::Any })
            }
            ("_==_" | "_!=_", None) => {
                let null = |arg: &IdedExpr| arg.expr == Expr::Literal(LiteralValue::Null);
                if args.iter().any(null) {
                    args.iter().try_for_each(|arg| self.check(arg).map(drop))?;
                    return Ok(Kind::Bool);
                }
                self.same(id, args).map(|_| Kind::Bool)
            }
            ("_<_" | "_<=_" | "_>_" | "_>=_", None) => self.same(id, args).map(|_| Kind::Bool),
            ("_+_", None) => {
                for arg in args {
                    self.wants(arg, &[Kind::Number, Kind::Text, Kind::Bytes, Kind::List])?;
                }
                self.same(id, args)
            }
            ("_-_" | "_*_" | "_/_" | "_%_" | "-_", None) => all(Kind::Number),
            ("@in", None) => {
                let [of, among] = args else { return Ok(Kind::Bool) };
                self.check(of)?;
                self.wants(among, &[Kind::List, Kind::Map])?;
                Ok(Kind::Bool)
            }
            ("_[_]", None) => {
                let [of, index] = args else { return Ok(Kind::Any) };
                self.wants(of, &[Kind::List, Kind::Map])?;
                self.check(index)?;
                Ok(Kind::Any)
            }
            ("contains" | "startsWith" | "endsWith" | "matches", Some(target)) => {
                count(1)?;
                self.wants(target, &[Kind::Text])?;
                all(Kind::Text)?;
                if let ("matches", [IdedExpr { id, expr: Expr::Literal(LiteralValue::String(pattern)) }]) =
                    (call.func_name.as_str(), args)
                {
                    pattern_compiles(pattern.inner()).map_err(|what| (*id, what))?;
                }
                Ok(Kind::Bool)
            }
            ("size", target) => {
                count(usize::from(target.is_none()))?;
                let of = target.as_deref().or(args.first());
                if let Some(of) = of {
                    self.wants(of, &[Kind::Text, Kind::Bytes, Kind::List, Kind::Map])?;
                }
                Ok(Kind::Number)
            }
            (name @ ("int" | "uint" | "double" | "string" | "bytes" | "bool" | "dyn"), None) => {
                count(1)?;
                args.iter().try_for_each(|arg| self.check(arg).map(drop))?;
                Ok(match name {
                    "string" => Kind::Text,
                    "bytes" => Kind::Bytes,
                    "bool" => Kind::Bool,
                    "dyn" => Kind::Any,
                    _ => Kind::Number,
                })
            }
            (name, _) => Err((id, format!("there is no function {name}"))),
        }
    }
}

/// Whether a regular expression is one, as the library sees it.
fn pattern_compiles(pattern: &str) -> Result<(), String> {
    let program = Program::compile("''.matches(pattern)").map_err(|_| "cannot be checked".to_owned())?;
    let mut context = Context::with_env(Arc::clone(&ENV));
    context.add_variable_from_value("pattern", pattern.to_owned());
    program.execute(&context).map(drop).map_err(|_| "is not a regular expression".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use serde_json::json;

    fn item() -> Item {
        json::to_item(&json!({
            "id": { "S": "a1" }, "state": { "S": "WA" }, "n": { "N": "38" }, "exact": { "N": "2.00" },
            "price": { "N": "10.5" }, "on": { "BOOL": true }, "none": { "NULL": true }, "raw": { "B": "AQI=" },
            "tags": { "SS": ["x", "y"] }, "sizes": { "NS": ["1", "2"] },
            "address": { "M": { "city": { "S": "Seattle" }, "zip": { "N": "98101" } } },
            "lines": { "L": [{ "M": { "sku": { "S": "p" } } }, { "M": { "sku": { "S": "q" } } }] },
        }))
        .unwrap()
    }

    #[test]
    fn an_expression_is_true_for_some_items() {
        for (source, holds) in [
            ("item.state == 'WA'", true),
            ("item.state == 'WA' && item.n > 37 && item.n < 38.5", true),
            ("item.price >= 10.5 && item.exact == 2", true),
            ("item.address.city.startsWith('Sea') && item.id.matches('^a[0-9]+$')", true),
            ("'x' in item.tags && !('z' in item.tags) && 2 in item.sizes", true),
            ("has(item.address.zip) && !has(item.missing)", true),
            ("has(item.missing) && item.missing == 1", false),
            ("item.on && item.none == null", true),
            ("item.lines.exists(line, line.sku == 'q') && !item.lines.all(line, line.sku == 'q')", true),
            ("size(item.lines) == 2 && item.tags.size() == 2 && size(item.raw) == 2", true),
            ("item['state'] in ['OR', 'CA']", false),
            ("item.on ? item.n == 1 : true", false),
            ("string(item.n) == '38' && int(item.price) == 10", true),
            ("item.lines.filter(line, line.sku == 'q').size() == 1", true),
            ("item.lines.map(line, line.sku) == ['p', 'q']", true),
            ("item.lines.exists_one(line, line.sku == 'q')", true),
        ] {
            let expression =
                Expression::compile(source).unwrap_or_else(|faults| panic!("{source}: {faults:?}"));
            assert_eq!(expression.holds(&item()), Ok(holds), "{source}");
        }
    }

    #[test]
    fn what_is_wrong_is_found_before_there_is_an_item_with_its_place() {
        for (source, at, why) in [
            ("item.state = 'WA'", 11, ""),
            ("item.state == ", 14, ""),
            ("state == 'WA'", 0, "an attribute is item.state"),
            ("item.state", 0, "ok"),
            ("item.n + 1", 0, "is a number, and a filter must be true or false"),
            ("item.a == 1 && 'x'", 15, "is a string, where true or false is needed"),
            ("item.a.startsWith(1)", 18, "is a number, where a string is needed"),
            ("item.a == 1 && size(item.b) == 'x'", 0, "compares what is a number with what is a string"),
            ("lower(item.a) == 'x'", 0, "there is no function lower"),
            ("item.a.matches('[')", 15, "is not a regular expression"),
            ("item.tags.exists(t, t == u)", 25, "nothing is known of u"),
            ("1 in 'abc'", 5, "is a string, where a list or a map is needed"),
        ] {
            let result = Expression::compile(source).map(drop);
            if why == "ok" {
                assert_eq!(result, Ok(()), "{source}");
                continue;
            }
            let faults = result.unwrap_err();
            assert!(faults[0].what.contains(why), "{source}: {faults:?}");
            // The place of an operator is the library's choice.
            assert!(
                faults[0].at == at
                    || why.starts_with("compares")
                    || why.is_empty()
                    || why.contains("function"),
                "{source}: {faults:?}"
            );
        }
    }

    #[test]
    fn what_an_item_cannot_answer_is_an_error_without_values() {
        for (source, why) in [
            ("item.missing == 'x'", "there is no attribute missing"),
            ("item.state", "neither true nor false"),
            ("item.state > 1", ""),
            ("item.n / 0 == 1", "division by zero"),
            ("item.state.size() > 0 && item.n.startsWith('3')", ""),
        ] {
            let error = Expression::compile(source).unwrap().holds(&item()).unwrap_err();
            assert!(error.contains(why), "{source}: {error}");
            assert!(!error.contains("WA") && !error.contains("38"), "{error}");
        }
    }
}
