//! What a backfill reads: the source table itself, or an export of it.

use super::copy::{Copier, Scanned};
use super::export::{Export, FilePage, FileReading};
use super::rows::Cursor;
use super::scan::{Page, TableScan};
use crate::failure::Failure;
use crate::state::{Row, number};
use crate::view::Fields;
use aws_sdk_dynamodb::types::AttributeValue;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Where items come from.
#[derive(Debug)]
pub(super) enum Source {
    /// The table.
    Scan(TableScan),
    /// An export.
    Export(Arc<Export>),
}

/// A segment that is being read.
#[derive(Debug)]
pub(super) enum Reading {
    /// Of a scan: its number, and the key after which the next page begins.
    Scan(u32, Option<Row>),
    /// A data file of an export.
    File(Box<FileReading>),
}

/// A page of a segment.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) items: Vec<Scanned>,
    /// Where the next page begins; `None` at the segment's end.
    pub(super) cursor: Option<Cursor>,
    pub(super) read_units: f64,
}

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A call failed; it can be repeated.
    #[error("{0}")]
    Call(Failure),
    /// An item without a part of the key: it is of another table.
    #[error("an item of the source has no attribute {0:?}, which is a part of the table's key")]
    NoKey(String),
    /// An export that cannot be used.
    #[error("the export cannot be used: {0}")]
    Export(String),
    /// An export that is so old that deletes since then may be forgotten.
    #[error(
        "the export is of {0}, as long ago as tombstones are kept (tombstone_retention), or nearly so: what was deleted \
         since then could come back. Export the table again"
    )]
    TooOld(String),
    /// What is saved of a segment is of another kind of source.
    #[error("the saved place in the source makes no sense; begin anew with --restart")]
    Place,
}

impl Source {
    /// Whether deletes since the items were as they are read are still known at a time.
    pub(super) fn fresh(&self, by: SystemTime, retention: Duration) -> Result<(), SourceError> {
        match self {
            Self::Scan(_) => Ok(()),
            Self::Export(export) => export.fresh(by, retention),
        }
    }

    pub(super) fn open(&self, segment: u32, cursor: Option<&Cursor>) -> Result<Reading, SourceError> {
        match (self, cursor) {
            (Self::Scan(_), None) => Ok(Reading::Scan(segment, None)),
            (Self::Scan(_), Some(AttributeValue::M(key))) => Ok(Reading::Scan(segment, Some(key.clone()))),
            (Self::Export(export), None) => Ok(Reading::File(Box::new(export.read(segment, 0)))),
            (Self::Export(export), Some(AttributeValue::N(line))) => {
                let line = line.parse().map_err(|_| SourceError::Place)?;
                Ok(Reading::File(Box::new(export.read(segment, line))))
            }
            _ => Err(SourceError::Place),
        }
    }

    /// The next page, of so many items at most, as the copier sorts them. After an error the same page comes again.
    pub(super) async fn page(
        &self,
        reading: &mut Reading,
        most: u16,
        copier: &Copier,
    ) -> Result<Batch, SourceError> {
        let read = |item: Fields<'_>| copier.scanned(item).map_err(SourceError::NoKey);
        match (self, reading) {
            (Self::Scan(scan), Reading::Scan(segment, after)) => {
                let page = scan.page(*segment, after.clone(), most, read).await.map_err(SourceError::Call)?;
                let Page { items, next, read_units } = page;
                let items = items.into_iter().collect::<Result<_, _>>()?;
                after.clone_from(&next);
                Ok(Batch { items, cursor: next.map(AttributeValue::M), read_units })
            }
            (Self::Export(_), Reading::File(file)) => {
                let FilePage { items, next } = file.page(most).await?;
                let items = items.iter().map(|item| read(Fields::of(&item.0))).collect::<Result<_, _>>()?;
                Ok(Batch { items, cursor: next.map(number), read_units: 0.0 })
            }
            _ => Err(SourceError::Place),
        }
    }
}
