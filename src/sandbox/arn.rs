//! Amazon resource names of DynamoDB: parsing and writing.
//!
//! Owns the syntax only; whether the thing exists is its Region's business.

use std::fmt;

/// What a DynamoDB ARN names below the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The table itself.
    Table,
    /// One of its indexes, by name.
    Index(String),
    /// One of its streams, by label.
    Stream(String),
}

/// The ARN of a table, of an index or of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arn {
    /// Region, such as `eu-west-1`.
    pub region: String,
    /// The owning account's 12 digits.
    pub account: String,
    /// The table's name.
    pub table: String,
    /// What of the table.
    pub part: Part,
}

impl Arn {
    /// The ARN of a table.
    #[must_use]
    pub fn table(account: &str, region: &str, table: &str) -> Self {
        Self { region: region.into(), account: account.into(), table: table.into(), part: Part::Table }
    }

    /// Parses an ARN; `None` when the text is not the ARN of a table, index or stream.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.splitn(6, ':');
        if fields.next()? != "arn" || !fields.next()?.starts_with("aws") || fields.next()? != "dynamodb" {
            return None;
        }
        let (region, account, resource) = (fields.next()?, fields.next()?, fields.next()?);
        if region.is_empty() || account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let mut path = resource.splitn(4, '/');
        if path.next()? != "table" {
            return None;
        }
        let table = path.next().filter(|name| !name.is_empty())?;
        let part = match (path.next(), path.next()) {
            (None, None) => Part::Table,
            (Some("index"), Some(name)) if !name.is_empty() => Part::Index(name.into()),
            (Some("stream"), Some(label)) if !label.is_empty() => Part::Stream(label.into()),
            _ => return None,
        };
        Some(Self { region: region.into(), account: account.into(), table: table.into(), part })
    }

    /// The same table with another part.
    #[must_use]
    pub fn with(&self, part: Part) -> Self {
        Self { part, ..self.clone() }
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:aws:dynamodb:{}:{}:table/{}", self.region, self.account, self.table)?;
        match &self.part {
            Part::Table => Ok(()),
            Part::Index(name) => write!(f, "/index/{name}"),
            Part::Stream(label) => write!(f, "/stream/{label}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_writes_it_reads() {
        for text in [
            "arn:aws:dynamodb:eu-west-1:111111111111:table/orders",
            "arn:aws:dynamodb:eu-west-1:111111111111:table/orders/index/by-day",
            "arn:aws:dynamodb:eu-west-1:111111111111:table/orders/stream/2026-01-01T00:00:00.000",
        ] {
            assert_eq!(Arn::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_table_is_refused() {
        for text in [
            "orders",
            "arn:aws:s3:::bucket",
            "arn:aws:dynamodb:eu-west-1:11:table/orders",
            "arn:aws:dynamodb:eu-west-1:111111111111:table/",
            "arn:aws:dynamodb:eu-west-1:111111111111:table/orders/backup/1",
        ] {
            assert_eq!(Arn::parse(text), None, "{text}");
        }
    }
}
