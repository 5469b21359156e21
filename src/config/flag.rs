//! Values of flags that mean what a key of the file means, and are judged by the same rules.

use super::endpoint;
use super::feeds::{Url, url};
use super::values::{self, Fault};
use super::{Access, FeedPlace};
use std::path::PathBuf;
use toml::de::DeValue;

fn judge<T>(text: &str, value: impl Fn(&DeValue<'_>) -> Result<T, Fault>) -> Result<T, String> {
    value(&DeValue::String(text.into())).map_err(|fault| fault.what)
}

/// A Region's name.
///
/// # Errors
/// Why it is none.
pub fn region(text: &str) -> Result<String, String> {
    judge(text, values::region)
}

/// An endpoint; plain `http` on this host only.
///
/// # Errors
/// Why it is none.
pub fn endpoint(text: &str) -> Result<String, String> {
    judge(text, endpoint::endpoint(false)).map(|endpoint| endpoint.url)
}

/// Where files are to be read: a directory, or `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Files(PathBuf),
    /// A bucket of S3, or of what speaks its protocol.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What all keys begin with; may be empty; no slash at either end.
        prefix: String,
        /// Its Region; `None` for that of the table it belongs to.
        region: Option<String>,
        /// Another endpoint than AWS's.
        endpoint: Option<String>,
    },
}

impl Location {
    /// A directory's path, `file:///DIRECTORY` or `s3://BUCKET/PREFIX`.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.contains("://") {
            return Ok(Self::Files(text.into()));
        }
        match judge(text, url)? {
            Url::Files(directory) => Ok(Self::Files(directory)),
            Url::S3 { bucket, prefix } => Ok(Self::S3 { bucket, prefix, region: None, endpoint: None }),
            Url::Stdout | Url::Gcs { .. } | Url::Azure { .. } => {
                Err("must be a directory or \"s3://BUCKET/PREFIX\"".to_owned())
            }
        }
    }

    /// The place, reached with the credentials that `access` names.
    #[must_use]
    pub fn place(&self, access: &Access) -> FeedPlace {
        match self {
            Self::Files(directory) => FeedPlace::Files(directory.clone()),
            Self::S3 { bucket, prefix, region, endpoint } => {
                let region = region.clone().unwrap_or_else(|| access.region.clone());
                // The table's endpoint is not the bucket's.
                let access =
                    Access { region, endpoint: endpoint.clone(), streams_endpoint: None, ..access.clone() };
                let (bucket, prefix) = (bucket.clone(), prefix.clone());
                FeedPlace::S3 { bucket, prefix, access: Box::new(access) }
            }
        }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Files(directory) => write!(f, "{}", directory.display()),
            Self::S3 { bucket, prefix, .. } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix, .. } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_path_or_a_url_and_shows_as_it_was_given() {
        for same in ["./export", "/tmp/export", "s3://bucket", "s3://bucket/AWSDynamoDB/1-a"] {
            assert_eq!(Location::parse(same).unwrap().to_string(), same);
        }
        assert_eq!(Location::parse("file:///tmp/a"), Ok(Location::Files("/tmp/a".into())));
        assert_eq!(Location::parse("s3://bucket/a/").unwrap().to_string(), "s3://bucket/a");
        for wrong in ["s3://B/x", "gs://bucket/a", "file://a", "https://bucket.s3.amazonaws.com/a"] {
            assert!(Location::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bucket_is_reached_as_its_table_is_but_for_its_endpoint() {
        let table = Access {
            region: "eu-west-1".to_owned(),
            endpoint: Some("http://127.0.0.1:8000".to_owned()),
            streams_endpoint: Some("http://127.0.0.1:8001".to_owned()),
            profile: Some("old".to_owned()),
            assume_role: None,
        };
        let FeedPlace::S3 { access, .. } = Location::parse("s3://bucket/a").unwrap().place(&table) else {
            panic!("no bucket");
        };
        let expected = Access { endpoint: None, streams_endpoint: None, ..table };
        assert_eq!(*access, expected);
    }
}
