//! ARNs of tables and roles, taken apart. An error says which part is wrong, and what was probably meant.

use super::TableArn;
use std::fmt;
use std::str::FromStr;

/// Why a text is not the ARN that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// It does not have the six parts of an ARN.
    #[error("an ARN has six parts between colons, this has {0}")]
    Parts(usize),
    /// One part is wrong.
    #[error("its {part} {} {rule}", super::values::shown(.found))]
    Part {
        /// Which part, such as `account`.
        part: &'static str,
        /// What stands there.
        found: String,
        /// What it breaks, such as `is not twelve digits`.
        rule: &'static str,
    },
    /// It names something inside a table.
    #[error("it names {what} of {table}")]
    Inside {
        /// `an index`, `a stream`, ...
        what: &'static str,
        /// The table's own ARN.
        table: Box<TableArn>,
    },
}

impl FromStr for TableArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let parts = Parts::split(text)?;
        must(parts.service == "dynamodb", "service", parts.service, "is not \"dynamodb\"")?;
        must(is_region(parts.region), "Region", parts.region, "is not a Region's name")?;
        parts.check_account()?;
        let path = parts
            .resource
            .strip_prefix("table/")
            .ok_or_else(|| wrong("resource", parts.resource, "does not begin with \"table/\""))?;
        let (table, inside) =
            path.split_once('/').map_or((path, None), |(table, inside)| (table, Some(inside)));
        let rule = "is not 3 to 255 letters, digits, \"-\", \"_\" or \".\"";
        must(is_table_name(table), "table name", table, rule)?;
        let arn = Self {
            partition: parts.partition.to_owned(),
            region: parts.region.to_owned(),
            account: parts.account.to_owned(),
            table: table.to_owned(),
        };
        match inside.map(|inside| inside.split('/').next().unwrap_or_default()) {
            None => Ok(arn),
            Some(kind) => {
                let what = match kind {
                    "index" => "an index",
                    "stream" => "a stream",
                    "backup" => "a backup",
                    "export" => "an export",
                    "import" => "an import",
                    _ => "a part",
                };
                Err(ArnError::Inside { what, table: Box::new(arn) })
            }
        }
    }
}

impl fmt::Display for TableArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, region, account, table } = self;
        write!(f, "arn:{partition}:dynamodb:{region}:{account}:table/{table}")
    }
}

/// An IAM role's ARN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RoleArn {
    pub(super) partition: String,
    pub(super) account: String,
    pub(super) text: String,
}

impl FromStr for RoleArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let parts = Parts::split(text)?;
        must(parts.service != "sts", "service", "sts", "is that of a session of a role")?;
        must(parts.service == "iam", "service", parts.service, "is not \"iam\"")?;
        must(parts.region.is_empty(), "Region", parts.region, "is not empty, as a role's is")?;
        parts.check_account()?;
        let named = parts.resource.strip_prefix("role/").filter(|path| {
            path.len() <= 576
                && path.rsplit('/').next().is_some_and(|name| {
                    (1..=64).contains(&name.len()) && name.bytes().all(|byte| is_word(byte, b"+=,.@-"))
                })
        });
        must(named.is_some(), "resource", parts.resource, "is not \"role/\" and a role's name")?;
        Ok(Self {
            partition: parts.partition.to_owned(),
            account: parts.account.to_owned(),
            text: text.to_owned(),
        })
    }
}

/// The parts that every ARN has.
struct Parts<'t> {
    partition: &'t str,
    service: &'t str,
    region: &'t str,
    account: &'t str,
    resource: &'t str,
}

impl<'t> Parts<'t> {
    fn split(text: &'t str) -> Result<Self, ArnError> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let [prefix, partition, service, region, account, resource] = parts[..] else {
            return Err(ArnError::Parts(parts.len()));
        };
        must(prefix == "arn", "prefix", prefix, "is not \"arn\"")?;
        let known = (partition == "aws" || partition.starts_with("aws-"))
            && partition.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        must(known, "partition", partition, "is not \"aws\", \"aws-cn\", \"aws-us-gov\" or alike")?;
        Ok(Self { partition, service, region, account, resource })
    }

    fn check_account(&self) -> Result<(), ArnError> {
        let digits = self.account.len() == 12 && self.account.bytes().all(|byte| byte.is_ascii_digit());
        must(digits, "account", self.account, "is not twelve digits")
    }
}

fn must(holds: bool, part: &'static str, found: &str, rule: &'static str) -> Result<(), ArnError> {
    if holds { Ok(()) } else { Err(wrong(part, found, rule)) }
}

fn wrong(part: &'static str, found: &str, rule: &'static str) -> ArnError {
    ArnError::Part { part, found: found.to_owned(), rule }
}

/// Whether a text can name a Region. Emulators have names of their own, so the shape is loose.
pub(super) fn is_region(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Whether a text is a table's name by DynamoDB's rules.
pub(super) fn is_table_name(text: &str) -> bool {
    (3..=255).contains(&text.len()) && text.bytes().all(|byte| is_word(byte, b".-"))
}

/// Whether a byte is a letter, a digit, `_` or one of `others`.
pub(super) fn is_word(byte: u8, others: &[u8]) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || others.contains(&byte)
}
