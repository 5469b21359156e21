//! A feed as configured: plain data with every default filled in.

use super::Access;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A destination that takes changes as files or lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Feed {
    /// Unique among feeds and members; same alphabet as a member's name.
    pub name: String,
    /// Where the files go.
    pub place: FeedPlace,
    /// What is in them (default plain JSON lines).
    pub format: FeedFormat,
    /// Which images of an item a record has (default the new one).
    pub images: Images,
    /// How lines, or the pages of Parquet, are compressed (default zstd).
    pub compression: Compression,
    /// The directories of a file, by its first record's creation (default by the hour).
    pub partition: Partition,
    /// A file is closed when its records have this many bytes, as the stream counts them (default 16 MB).
    pub roll_bytes: u64,
    /// A file is closed this long after its first record came (default 5 min).
    pub roll_age: Duration,
    /// The attributes with a Parquet column of their own, in the order of their names; when there are none they are
    /// inferred from the first file.
    pub columns: Vec<Column>,
}

/// Where a feed's files go.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedPlace {
    /// This process's standard output; at least once.
    Stdout,
    /// A directory.
    Files(PathBuf),
    /// A bucket of S3, or of what speaks its protocol.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What all keys begin with; may be empty; no slash at either end.
        prefix: String,
        /// Region, endpoint and credentials.
        access: Box<Access>,
    },
    /// A bucket of Google Cloud Storage; credentials are Google's default ones, from the environment or the machine.
    Gcs {
        /// The bucket's name.
        bucket: String,
        /// As of S3.
        prefix: String,
        /// Another endpoint than Google's.
        endpoint: Option<String>,
    },
    /// A container of Azure Blob Storage; credentials are those of the environment or the machine.
    Azure {
        /// The storage account.
        account: String,
        /// The container's name.
        container: String,
        /// As of S3.
        prefix: String,
        /// Another endpoint than Azure's.
        endpoint: Option<String>,
    },
}

/// What is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedFormat {
    /// A line of JSON a record, with items as plain JSON (`"json"`).
    Json,
    /// A line of JSON a record, with items as DynamoDB JSON (`"dynamodb-json"`).
    DynamoJson,
    /// Parquet (`"parquet"`).
    Parquet,
}

/// Which images of an item a record has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// The item after the change.
    New,
    /// The items before and after.
    Both,
}

/// How files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard.
    Zstd,
    /// gzip.
    Gzip,
    /// Not at all.
    None,
}

/// The directories of a file, by its first record's creation in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partition {
    /// `dt=2026-11-23/hour=10`.
    Hour,
    /// `dt=2026-11-23`.
    Day,
    /// None.
    None,
}

/// An attribute with a Parquet column of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The attribute's name, which is the column's too.
    pub name: String,
    /// The column's type.
    pub kind: ColumnType,
}

/// The type of a Parquet column. A value of another type goes to the column `_rest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// Text; numbers with all their digits too.
    String,
    /// Whole numbers of 64 bits.
    Int64,
    /// The nearest binary fraction of 64 bits.
    Double,
    /// Exact decimals.
    Decimal {
        /// Digits, at most 38.
        precision: u8,
        /// Digits after the point, at most the precision.
        scale: u8,
    },
    /// True or false.
    Boolean,
    /// Bytes.
    Binary,
    /// A list of texts: sets of strings or numbers, and lists of these.
    List,
    /// Any value, as plain JSON.
    Json,
}

impl ColumnType {
    /// Reads what [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "string" => Self::String,
            "int64" => Self::Int64,
            "double" => Self::Double,
            "boolean" => Self::Boolean,
            "binary" => Self::Binary,
            "list" => Self::List,
            "json" => Self::Json,
            _ => {
                let (precision, scale) = text.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
                let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
                ((1..=38).contains(&precision) && scale <= precision)
                    .then_some(Self::Decimal { precision, scale })?
            }
        })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "string",
            Self::Int64 => "int64",
            Self::Double => "double",
            Self::Boolean => "boolean",
            Self::Binary => "binary",
            Self::List => "list",
            Self::Json => "json",
            Self::Decimal { precision, scale } => return write!(f, "decimal({precision},{scale})"),
        })
    }
}
