//! Key attributes made of others: `CUSTOMER#{customer}#{region}`.
//!
//! A template is led back from what it made: that is what makes it one-to-one. Where a value holds the text that
//! stands between two attributes, another key could make the same text; such a key is refused, whichever of the two it
//! is and whichever came first. Pure.

use aws_sdk_dynamodb::types::AttributeValue;
use bigdecimal::BigDecimal;
use std::collections::BTreeMap;
use std::fmt;

/// Text and attributes in turn; at least one attribute, and text between any two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Attribute(String),
}

/// The values of a template's attributes, by name.
pub type Values = BTreeMap<String, AttributeValue>;

impl Template {
    /// Reads a template; `{{` and `}}` stand for braces.
    ///
    /// # Errors
    /// What is wrong with it, to follow its name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut plain, mut chars) = (Vec::new(), String::new(), text.chars().peekable());
        while let Some(char) = chars.next() {
            match char {
                '{' | '}' if chars.peek() == Some(&char) => {
                    plain.extend(chars.next());
                }
                '{' => {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    } else if matches!(parts.last(), Some(Part::Attribute(_))) {
                        return Err(
                            "has two attributes with nothing between them, so different keys could become \
                                    the same"
                                .to_owned(),
                        );
                    }
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(char) => name.push(char),
                            None => return Err("has a \"{\" without a \"}\"".to_owned()),
                        }
                    }
                    if name.is_empty() {
                        return Err("has \"{}\", which names no attribute".to_owned());
                    }
                    parts.push(Part::Attribute(name));
                }
                '}' => return Err("has a \"}\" without a \"{\"; write \"}}\" for the character".to_owned()),
                other => plain.push(other),
            }
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        if !parts.iter().any(|part| matches!(part, Part::Attribute(_))) {
            return Err("names no key attribute of the source, such as \"{id}\"".to_owned());
        }
        Ok(Self { parts })
    }

    /// One that takes an attribute as it is.
    #[must_use]
    pub fn copy(attribute: &str) -> Self {
        Self { parts: vec![Part::Attribute(attribute.to_owned())] }
    }

    /// The attributes that it is made of.
    pub fn attributes(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Attribute(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The attribute that it takes as it is, with its type; `None` when it makes a string.
    #[must_use]
    pub fn copies(&self) -> Option<&str> {
        match &self.parts[..] {
            [Part::Attribute(name)] => Some(name),
            _ => None,
        }
    }

    /// The value for these attributes.
    ///
    /// # Errors
    /// Why there is none, without any value.
    pub fn make(&self, of: &Values) -> Result<AttributeValue, String> {
        let value = |name: &str| of.get(name).ok_or_else(|| format!("there is no attribute {name}"));
        if let Some(name) = self.copies() {
            return value(name).cloned();
        }
        let mut made = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => made.push_str(text),
                Part::Attribute(name) => {
                    let text = plain(value(name)?);
                    made.push_str(&text.ok_or_else(|| format!("{name} is neither a string nor a number"))?);
                }
            }
        }
        let back = self.take_apart(&made);
        let same =
            |(name, text): (&str, &str)| of.get(name).and_then(plain).is_some_and(|plain| plain == text);
        if !back.is_some_and(|back| back.into_iter().all(same)) {
            return Err(format!(
                "the key is not one-to-one: a value of {} holds text that stands between attributes in {self}, and \
                 another key could become the same",
                self.attributes().collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(AttributeValue::S(made))
    }

    /// The attributes that this value was made of, whose types are in `kinds`; `None` when this template never makes it.
    #[must_use]
    pub fn back(&self, value: &AttributeValue, kinds: &BTreeMap<String, String>) -> Option<Values> {
        if let Some(name) = self.copies() {
            return Some(Values::from([(name.to_owned(), value.clone())]));
        }
        let AttributeValue::S(made) = value else { return None };
        let typed = |(name, text): (&str, &str)| {
            let value = match kinds.get(name).map(String::as_str) {
                Some("N") => number(text).map(AttributeValue::N)?,
                _ => AttributeValue::S(text.to_owned()),
            };
            Some((name.to_owned(), value))
        };
        let values: Values = self.take_apart(made)?.into_iter().map(typed).collect::<Option<_>>()?;
        (self.make(&values).as_ref() == Ok(value)).then_some(values)
    }

    /// The texts of the attributes: each ends where the text behind it comes first.
    fn take_apart<'t>(&'t self, made: &'t str) -> Option<Vec<(&'t str, &'t str)>> {
        let (mut rest, mut found, mut parts) = (made, Vec::new(), self.parts.iter().peekable());
        while let Some(part) = parts.next() {
            match part {
                Part::Text(text) => rest = rest.strip_prefix(text.as_str())?,
                Part::Attribute(name) => {
                    let end = match parts.next() {
                        None => rest.len(),
                        Some(Part::Text(text)) if parts.peek().is_none() => {
                            let end = rest.strip_suffix(text.as_str())?.len();
                            found.push((name.as_str(), &rest[..end]));
                            return Some(found);
                        }
                        Some(Part::Text(text)) => {
                            let end = rest.find(text.as_str())?;
                            found.push((name.as_str(), &rest[..end]));
                            rest = &rest[end + text.len()..];
                            continue;
                        }
                        // There is text between any two.
                        Some(Part::Attribute(_)) => return None,
                    };
                    found.push((name.as_str(), &rest[..end]));
                    rest = "";
                }
            }
        }
        rest.is_empty().then_some(found)
    }
}

/// As in the config.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
                Part::Attribute(name) => write!(f, "{{{name}}}")?,
            }
        }
        Ok(())
    }
}

/// A key's value as text: a number in the one way in which its value is written.
fn plain(value: &AttributeValue) -> Option<String> {
    match value {
        AttributeValue::S(text) => Some(text.clone()),
        AttributeValue::N(text) => number(text),
        _ => None,
    }
}

/// A decimal without exponent and needless zeros. At most 126 digits and as many behind the point: no more fits a number.
pub(super) fn number(text: &str) -> Option<String> {
    let number: BigDecimal = text.parse().ok()?;
    let number = number.normalized();
    (number.fractional_digit_count().unsigned_abs() < 200).then(|| number.to_plain_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn s(text: &str) -> AttributeValue {
        AttributeValue::S(text.to_owned())
    }

    fn values(of: &[(&str, AttributeValue)]) -> Values {
        of.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    fn kinds(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect()
    }

    #[test]
    fn templates_are_read_and_written() {
        for text in ["{id}", "C#{id}", "{a}#{b}", "{{{a}}}-{b}x", "{a b}"] {
            assert_eq!(Template::parse(text).unwrap().to_string(), text);
        }
        for (text, why) in [
            ("fixed", "names no key attribute"),
            ("", "names no key attribute"),
            ("{a}{b}", "nothing between"),
            ("{a", "without a \"}\""),
            ("a}", "without a \"{\""),
            ("{}", "names no attribute"),
        ] {
            assert!(Template::parse(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn a_value_is_made_and_led_back() {
        let template = Template::parse("C#{id}#{n}").unwrap();
        let kinds = kinds(&[("id", "S"), ("n", "N")]);
        let of = values(&[("id", s("x")), ("n", AttributeValue::N("1.50E1".to_owned()))]);
        let made = template.make(&of).unwrap();
        assert_eq!(made, s("C#x#15"));
        let back = template.back(&made, &kinds).unwrap();
        assert_eq!(back, values(&[("id", s("x")), ("n", AttributeValue::N("15".to_owned()))]));
        for never in ["C#x#15.0", "D#x#15", "C#x", "C#x#y"] {
            assert_eq!(template.back(&s(never), &kinds), None, "{never}");
        }
        assert_eq!(Template::copy("id").make(&of), Ok(s("x")));
    }

    #[test]
    fn a_key_that_another_one_could_become_is_refused() {
        let template = Template::parse("{a}#{b}").unwrap();
        let make = |a: &str, b: &str| template.make(&values(&[("a", s(a)), ("b", s(b))]));
        assert_eq!(make("x", "y#z"), Ok(s("x#y#z")));
        assert!(make("x#y", "z").unwrap_err().contains("one-to-one"));
        // What is left of one and what is right of it may make a separator together.
        let template = Template::parse("{a}##{b}").unwrap();
        assert!(template.make(&values(&[("a", s("x#")), ("b", s("y"))])).is_err());
    }

    proptest! {
        /// What is made leads back to what it was made of, so no two keys become the same.
        #[test]
        fn what_is_made_leads_back(a in "[ab#-]{0,4}", b in "[ab#-]{0,4}", form in 0_usize..5) {
            let form = ["{a}#{b}", "{a}##{b}", "#{a}-{b}#", "a{a}a{b}a", "{a}#-{b}"][form];
            let template = Template::parse(form).unwrap();
            let of = values(&[("a", s(&a)), ("b", s(&b))]);
            if let Ok(made) = template.make(&of) {
                prop_assert_eq!(template.back(&made, &kinds(&[("a", "S"), ("b", "S")])), Some(of));
            }
        }
    }
}
