//! IAM policy documents: reading them into a form that is quick to match.
//!
//! Owns the grammar and what makes a document malformed. What a document means for a request is
//! [`super::evaluate`]'s business, what its conditions mean [`super::condition`]'s.

use super::condition::Condition;
use serde_json::Value;

/// Why a policy document cannot be read.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Not JSON, or not an object.
    #[error("Syntax errors in policy.")]
    Syntax,
    /// A member is missing, unknown or has the wrong shape.
    #[error("Policy statement {index}: {problem}")]
    Statement {
        /// Which statement, from 0.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The version is neither `2012-10-17` nor `2008-10-17`.
    #[error("The policy must contain a valid version string")]
    Version,
}

/// Whether a statement allows or denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It allows.
    Allow,
    /// It denies, over any allow.
    Deny,
}

/// A list of patterns with `*` and `?`, perhaps negated (`NotAction`, `NotResource`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns {
    /// True for the `Not…` form.
    pub negated: bool,
    /// The patterns as written.
    pub any_of: Vec<String>,
}

/// Whom a statement of a resource policy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principals {
    /// True for `NotPrincipal`.
    pub negated: bool,
    /// The AWS principals as written: `*`, account ids, ARNs. Services and federations are kept out: no
    /// caller of the sandbox is one.
    pub aws: Vec<String>,
}

/// One statement of a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// Its name, if it has one.
    pub sid: Option<String>,
    /// Whether it allows or denies.
    pub effect: Effect,
    /// Whom it is about; `None` in identity policies.
    pub principals: Option<Principals>,
    /// The actions, in lower case.
    pub actions: Patterns,
    /// The resources; `None` where the policy's own resource is meant (trust policies).
    pub resources: Option<Patterns>,
    /// All of these must hold.
    pub conditions: Vec<Condition>,
}

/// A policy document.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The statements in the order written.
    pub statements: Vec<Statement>,
}

impl Policy {
    /// Reads a document.
    ///
    /// # Errors
    /// When it is malformed, with AWS's words where it has some.
    pub fn parse(document: &str) -> Result<Self, PolicyError> {
        let mut document: Value = serde_json::from_str(document).map_err(|_| PolicyError::Syntax)?;
        // Variables came with that version. An older document, or one that names none, means its text as it stands.
        if document["Version"] != "2012-10-17" {
            escape(&mut document);
        }
        let document = document.as_object().ok_or(PolicyError::Syntax)?;
        if let Some(version) = document.get("Version")
            && !matches!(version.as_str(), Some("2012-10-17" | "2008-10-17"))
        {
            return Err(PolicyError::Version);
        }
        let statements = match document.get("Statement") {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(one @ Value::Object(_)) => vec![one],
            _ => return Err(PolicyError::Syntax),
        };
        let statements = statements
            .into_iter()
            .enumerate()
            .map(|(index, value)| {
                Statement::read(value).map_err(|problem| PolicyError::Statement { index, problem })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { statements })
    }
}

impl Statement {
    fn read(value: &Value) -> Result<Self, String> {
        let members = value.as_object().ok_or("a statement must be an object")?;
        const KNOWN: [&str; 9] = [
            "Sid",
            "Effect",
            "Principal",
            "NotPrincipal",
            "Action",
            "NotAction",
            "Resource",
            "NotResource",
            "Condition",
        ];
        if let Some(unknown) = members.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(format!("unknown element {unknown}"));
        }
        let effect = match members.get("Effect").and_then(Value::as_str) {
            Some("Allow") => Effect::Allow,
            Some("Deny") => Effect::Deny,
            _ => return Err("Effect must be Allow or Deny".into()),
        };
        let principals = match (members.get("Principal"), members.get("NotPrincipal")) {
            (None, None) => None,
            (Some(value), None) => Some(Principals { negated: false, aws: aws_principals(value)? }),
            (None, Some(_)) if effect == Effect::Allow => {
                return Err("NotPrincipal cannot be used with Allow".into());
            }
            (None, Some(value)) => Some(Principals { negated: true, aws: aws_principals(value)? }),
            (Some(_), Some(_)) => return Err("both Principal and NotPrincipal".into()),
        };
        let mut actions = patterns(members.get("Action"), members.get("NotAction"), "Action")?
            .ok_or("missing required element Action")?;
        for action in &mut actions.any_of {
            if action != "*" && !action.contains(':') {
                return Err("Actions/Conditions must be prefaced by a vendor".into());
            }
            action.make_ascii_lowercase();
        }
        let resources = patterns(members.get("Resource"), members.get("NotResource"), "Resource")?;
        let conditions = match members.get("Condition") {
            None => Vec::new(),
            Some(block) => Condition::read_block(block)?,
        };
        let sid = members.get("Sid").and_then(Value::as_str).map(String::from);
        Ok(Self { sid, effect, principals, actions, resources, conditions })
    }
}

/// Writes every `${` so that it stands for itself.
fn escape(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace("${", "${$}{"),
        Value::Array(list) => list.iter_mut().for_each(escape),
        Value::Object(members) => members.values_mut().for_each(escape),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn patterns(is: Option<&Value>, is_not: Option<&Value>, name: &str) -> Result<Option<Patterns>, String> {
    let (value, negated) = match (is, is_not) {
        (None, None) => return Ok(None),
        (Some(value), None) => (value, false),
        (None, Some(value)) => (value, true),
        (Some(_), Some(_)) => return Err(format!("both {name} and Not{name}")),
    };
    let any_of = strings(value).ok_or_else(|| format!("{name} must be a string or a list of strings"))?;
    Ok(Some(Patterns { negated, any_of }))
}

fn aws_principals(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(all) if all == "*" => Ok(vec!["*".into()]),
        Value::Object(kinds) => {
            let mut aws = Vec::new();
            for (kind, names) in kinds {
                let names = strings(names).ok_or("Principal must be a string or a list of strings")?;
                match kind.as_str() {
                    "AWS" => aws.extend(names),
                    "Service" | "Federated" | "CanonicalUser" => {}
                    _ => return Err(format!("Invalid principal in policy: {kind}")),
                }
            }
            if let Some(bad) = aws.iter().find(|name| !plausible_principal(name)) {
                return Err(format!("Invalid principal in policy: \"AWS\":\"{bad}\""));
            }
            Ok(aws)
        }
        _ => Err("Invalid principal in policy".into()),
    }
}

fn plausible_principal(name: &str) -> bool {
    let account = |text: &str| text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
    if name == "*" || account(name) {
        return true;
    }
    let fields: Vec<_> = name.splitn(6, ':').collect();
    let [_, _, service, _, owner, resource] = fields[..] else { return false };
    name.starts_with("arn:")
        && matches!(service, "iam" | "sts")
        && account(owner)
        && !resource.is_empty()
        && !resource.contains('*')
}

/// A string, or a list of strings.
pub(super) fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(list) => list.iter().map(|v| v.as_str().map(String::from)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_documents_are_refused() {
        for (document, says) in [
            ("{", "Syntax"),
            (r#"{"Version":"2012"}"#, "version"),
            (r#"{"Statement":[{"Effect":"Maybe","Action":"*"}]}"#, "Effect"),
            (r#"{"Statement":[{"Effect":"Allow","Action":"GetItem","Resource":"*"}]}"#, "vendor"),
            (r#"{"Statement":[{"Effect":"Allow","Action":"*","Resorce":"*"}]}"#, "Resorce"),
            (r#"{"Statement":[{"Effect":"Allow","Action":"*","NotPrincipal":{"AWS":"1"}}]}"#, "NotPrincipal"),
            (r#"{"Statement":[{"Effect":"Allow","Action":"*","Principal":{"AWS":"bob"}}]}"#, "bob"),
            (r#"{"Statement":[{"Effect":"Allow","Action":"*","Condition":{"Sounds":{"a":"b"}}}]}"#, "Sounds"),
        ] {
            let error = Policy::parse(document).unwrap_err().to_string();
            assert!(error.contains(says), "{document}: {error}");
        }
    }
}
