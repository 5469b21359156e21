//! Records as Parquet: pure, and the same bytes for the same records and columns.
//!
//! A file has the feed's own columns, whose names begin with `_`, and one for each attribute that the schema names,
//! filled from the new image; of a delete, from the key. What has no column, or does not fit its column, stands in
//! `_rest` as DynamoDB JSON: nothing is left out. How a value becomes a cell is in `cell`; which columns there are
//! when the config names none, in `schema`.

mod cell;
mod schema;

pub use schema::{Schema, Schemas, infer};

use super::Record;
use crate::change::Change;
use crate::config::{self, ColumnType, Compression, Images};
use crate::failure::{Class, Failure};
use crate::json::{Spelling, write_entries};
use crate::view::{Fields, View};
use ::parquet::basic::{
    Compression as Codec, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel,
};
use ::parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, Int64Type,
};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::types::Type;
use cell::Cell;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// A row group has so many bytes of items: its values are in memory a second time while it is made, whatever the file has.
const GROUP: usize = 8 << 20;
/// Bytes of a decimal: what 38 digits need.
const DECIMAL_BYTES: i32 = 16;

/// The values of one column of a file, with Parquet's levels.
#[derive(Default)]
struct Leaf {
    bytes: Vec<ByteArray>,
    fixed: Vec<FixedLenByteArray>,
    ints: Vec<i64>,
    doubles: Vec<f64>,
    bools: Vec<bool>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

/// A column: its place in the schema, and its values.
struct Column {
    spec: Arc<Type>,
    physical: Physical,
    /// Whether there are levels of repetition.
    list: bool,
    leaf: Leaf,
}

impl Column {
    fn new(name: &str, kind: Kind) -> Result<Self, ParquetError> {
        let optional =
            || Type::primitive_type_builder(name, kind.physical()).with_repetition(Repetition::OPTIONAL);
        let spec = match kind {
            Kind::Of(ColumnType::Decimal { precision, scale }) => {
                let (precision, scale) = (i32::from(precision), i32::from(scale));
                let logical = Some(LogicalType::decimal(scale, precision));
                let builder = optional().with_logical_type(logical).with_length(DECIMAL_BYTES);
                builder.with_precision(precision).with_scale(scale).build()?
            }
            Kind::Of(ColumnType::List) => {
                let element = Type::primitive_type_builder("element", Physical::BYTE_ARRAY)
                    .with_repetition(Repetition::REQUIRED)
                    .with_logical_type(Some(LogicalType::String));
                let list = Type::group_type_builder("list").with_repetition(Repetition::REPEATED);
                let list = list.with_fields(vec![Arc::new(element.build()?)]).build()?;
                Type::group_type_builder(name)
                    .with_repetition(Repetition::OPTIONAL)
                    .with_logical_type(Some(LogicalType::List))
                    .with_fields(vec![Arc::new(list)])
                    .build()?
            }
            Kind::Of(ColumnType::String | ColumnType::Json) => {
                optional().with_logical_type(Some(LogicalType::String)).build()?
            }
            Kind::Time => {
                optional().with_logical_type(Some(LogicalType::timestamp(true, TimeUnit::MILLIS))).build()?
            }
            Kind::Of(_) => optional().build()?,
        };
        let list = kind == Kind::Of(ColumnType::List);
        Ok(Self { spec: Arc::new(spec), physical: kind.physical(), list, leaf: Leaf::default() })
    }

    fn push(&mut self, cell: Option<Cell>) {
        let leaf = &mut self.leaf;
        if let Some(Cell::List(texts)) = cell {
            leaf.definition.extend(std::iter::repeat_n(2, texts.len()));
            leaf.repetition.extend((0..texts.len()).map(|index| i16::from(index > 0)));
            if texts.is_empty() {
                leaf.definition.push(1);
                leaf.repetition.push(0);
            }
            leaf.bytes.extend(texts.into_iter().map(ByteArray::from));
            return;
        }
        leaf.definition.push(i16::from(cell.is_some()));
        if self.list {
            leaf.repetition.push(0);
        }
        match cell {
            Some(Cell::Bytes(bytes)) => leaf.bytes.push(bytes.into()),
            Some(Cell::Decimal(unscaled)) => leaf.fixed.push(unscaled.to_be_bytes().to_vec().into()),
            Some(Cell::Int(value)) => leaf.ints.push(value),
            Some(Cell::Double(value)) => leaf.doubles.push(value),
            Some(Cell::Bool(value)) => leaf.bools.push(value),
            Some(Cell::List(_)) | None => {}
        }
    }

    fn text(&mut self, text: Option<&str>) {
        self.push(text.map(|text| Cell::Bytes(text.as_bytes().to_vec())));
    }

    /// Writes the values, and forgets them.
    fn write(&mut self, writer: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let leaf = std::mem::take(&mut self.leaf);
        let definition = Some(leaf.definition.as_slice());
        let repetition = self.list.then_some(leaf.repetition.as_slice());
        match self.physical {
            Physical::INT64 => writer.typed::<Int64Type>().write_batch(&leaf.ints, definition, repetition),
            Physical::DOUBLE => {
                writer.typed::<DoubleType>().write_batch(&leaf.doubles, definition, repetition)
            }
            Physical::BOOLEAN => writer.typed::<BoolType>().write_batch(&leaf.bools, definition, repetition),
            Physical::FIXED_LEN_BYTE_ARRAY => {
                writer.typed::<FixedLenByteArrayType>().write_batch(&leaf.fixed, definition, repetition)
            }
            _ => writer.typed::<ByteArrayType>().write_batch(&leaf.bytes, definition, repetition),
        }
        .map(drop)
    }
}

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Of(ColumnType),
    /// When the record was created.
    Time,
}

impl Kind {
    fn physical(self) -> Physical {
        match self {
            Self::Time | Self::Of(ColumnType::Int64) => Physical::INT64,
            Self::Of(ColumnType::Double) => Physical::DOUBLE,
            Self::Of(ColumnType::Boolean) => Physical::BOOLEAN,
            Self::Of(ColumnType::Decimal { .. }) => Physical::FIXED_LEN_BYTE_ARRAY,
            Self::Of(ColumnType::String | ColumnType::Json | ColumnType::Binary | ColumnType::List) => {
                Physical::BYTE_ARRAY
            }
        }
    }
}

/// The feed's own columns with text.
const TEXTS: [&str; 6] = ["_event", "_sequence", "_version", "_member", "_shard", "_key"];
/// Own columns that hardly hold a value twice, so that no dictionary is tried.
const DISTINCT: [&str; 5] = ["_sequence", "_version", "_key", REST, OLD];
const CREATED: &str = "_created";
const REST: &str = "_rest";
const OLD: &str = "_old";

/// A file of these records.
///
/// # Errors
/// A failure within the encoder.
pub fn encode(feed: &config::Feed, schema: &Schema, records: &[Record<'_>]) -> Result<Vec<u8>, Failure> {
    write(feed, schema, records).map_err(|error| Failure::new(Class::Invalid, "Parquet", error.to_string()))
}

fn write(feed: &config::Feed, schema: &Schema, records: &[Record<'_>]) -> Result<Vec<u8>, ParquetError> {
    let mut columns = Columns::new(feed, schema)?;
    let codec = match feed.compression {
        Compression::None => Codec::UNCOMPRESSED,
        Compression::Zstd | Compression::Gzip => Codec::ZSTD(ZstdLevel::default()),
    };
    let mut properties = WriterProperties::builder()
        .set_compression(codec)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        // The default names the library's version, which says nothing about the data.
        .set_created_by("shardwalker".to_owned());
    for name in DISTINCT {
        properties = properties.set_column_dictionary_enabled(name.into(), false);
    }
    let properties = properties.build();
    let fields = columns.all().map(|column| Arc::clone(&column.spec)).collect();
    let root = Type::group_type_builder("record").with_fields(fields).build()?;
    let mut file = SerializedFileWriter::new(Vec::new(), Arc::new(root), Arc::new(properties))?;
    let mut bytes = 0;
    for (index, record) in records.iter().enumerate() {
        columns.push(record, schema);
        bytes += size(record.change);
        if bytes < GROUP && index + 1 < records.len() {
            continue;
        }
        bytes = 0;
        let mut group = file.next_row_group()?;
        for column in columns.all() {
            if let Some(mut writer) = group.next_column()? {
                column.write(&mut writer)?;
                writer.close()?;
            }
        }
        group.close()?;
    }
    file.into_inner()
}

/// As text, so that it depends on nothing else.
fn size(change: &Change) -> usize {
    let images = [&change.old, &change.new].into_iter().flatten();
    change.key.attributes().size() + images.map(|image| image.content.text().len()).sum::<usize>()
}

/// The columns of a file, in the order in which they stand there.
struct Columns {
    own: Vec<Column>,
    created: Column,
    attributes: Vec<Column>,
    rest: Column,
    old: Option<Column>,
}

impl Columns {
    fn new(feed: &config::Feed, schema: &Schema) -> Result<Self, ParquetError> {
        let text = |name: &&str| Column::new(name, Kind::Of(ColumnType::String));
        let attribute = |column: &config::Column| Column::new(&column.name, Kind::Of(column.kind));
        let old = || Column::new(OLD, Kind::Of(ColumnType::Json));
        Ok(Self {
            own: TEXTS.iter().map(text).collect::<Result<_, _>>()?,
            created: Column::new(CREATED, Kind::Time)?,
            attributes: schema.columns.iter().map(attribute).collect::<Result<_, _>>()?,
            rest: Column::new(REST, Kind::Of(ColumnType::Json))?,
            old: (feed.images == Images::Both).then(old).transpose()?,
        })
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Column> {
        let own = self.own.iter_mut().chain([&mut self.created]);
        own.chain(&mut self.attributes).chain([&mut self.rest]).chain(&mut self.old)
    }

    fn push(&mut self, record: &Record<'_>, schema: &Schema) {
        let change = record.change;
        let version = record.version.map(|version| version.to_string());
        let key = Fields::of(&change.key.attributes().0);
        let key_text = spelled(key.iter());
        let sequence = change.sequence.as_str();
        let texts = [
            Some(record.event),
            Some(sequence),
            version.as_deref(),
            Some(record.member),
            Some(record.shard),
            Some(&key_text),
        ];
        self.own.iter_mut().zip(texts).for_each(|(column, text)| column.text(text));
        let since = change.created.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.created.push(Some(Cell::Int(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))));
        let item = change.new.as_ref().map_or(key, |image| image.content.fields());
        let left = fill(&item, schema, &mut self.attributes);
        self.rest.text((!left.is_empty()).then(|| spelled(left.into_iter())).as_deref());
        if let Some(old) = &mut self.old {
            old.text(change.old.as_ref().map(|image| image.content.text()));
        }
    }
}

/// Puts an item's attributes into their columns; gives those that have none, or do not fit it.
fn fill<'f, 'v>(item: &'f Fields<'v>, schema: &Schema, cells: &mut [Column]) -> Vec<(&'f str, &'f View<'v>)> {
    let (mut placed, mut misfits) = (0, Vec::new());
    for (column, cells) in schema.columns.iter().zip(cells) {
        let value = item.get(&column.name);
        let cell = value.and_then(|value| cell::of(value, column.kind, schema.inferred));
        match value {
            Some(value) if cell.is_some() || matches!(value, View::Null(_)) => placed += 1,
            Some(_) => misfits.push(column.name.as_str()),
            None => {}
        }
        cells.push(cell);
    }
    if placed == item.iter().len() {
        return Vec::new();
    }
    let has_column =
        |name: &str| schema.columns.binary_search_by(|column| column.name.as_str().cmp(name)).is_ok();
    item.iter().filter(|(name, _)| !has_column(name) || misfits.contains(name)).collect()
}

fn spelled<'f, 'v: 'f>(entries: impl Iterator<Item = (&'f str, &'f View<'v>)>) -> String {
    let mut out = Vec::new();
    write_entries(entries, Spelling::Typed, &mut out);
    String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Event, Image, SequenceNumber};
    use crate::config::{FeedFormat, FeedPlace, Partition};
    use crate::item::Key;
    use crate::version::{Hlc, Version};
    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn change(new: Option<Value>) -> Change {
        let item = |value: &Value| crate::json::to_item(value).unwrap();
        Change {
            sequence: SequenceNumber::parse("111").unwrap(),
            created: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            key: Key::new(item(&json!({ "id": { "S": "k" } }))),
            event: Event::Modify,
            old: None,
            new: new.map(|new| Image { content: item(&new).into(), stamp: None }),
            by_ttl: false,
            size: 0,
        }
    }

    fn read(columns: &[(&str, ColumnType)], changes: &[Change]) -> Vec<BTreeMap<String, String>> {
        read_as(false, columns, changes)
    }

    fn read_as(
        inferred: bool,
        columns: &[(&str, ColumnType)],
        changes: &[Change],
    ) -> Vec<BTreeMap<String, String>> {
        let columns =
            columns.iter().map(|(name, kind)| config::Column { name: (*name).to_owned(), kind: *kind });
        let schema = Schema { columns: columns.collect(), inferred };
        let feed = config::Feed {
            name: "f".to_owned(),
            place: FeedPlace::Stdout,
            format: FeedFormat::Parquet,
            images: Images::Both,
            compression: Compression::Zstd,
            partition: Partition::None,
            roll_bytes: 1,
            roll_age: Duration::from_secs(1),
            columns: Vec::new(),
        };
        let version = Some(Version::new(Hlc::ZERO, 0));
        let record = |change| Record { change, event: "MODIFY", version, member: "m", shard: "s" };
        let records: Vec<Record<'_>> = changes.iter().map(record).collect();
        let bytes = encode(&feed, &schema, &records).unwrap();
        assert_eq!(bytes, encode(&feed, &schema, &records).unwrap());
        let reader = SerializedFileReader::new(::bytes::Bytes::from(bytes)).unwrap();
        let text = |row: ::parquet::record::Row| {
            row.get_column_iter().map(|(name, field)| (name.clone(), field.to_string())).collect()
        };
        reader.get_row_iter(None).unwrap().map(|row| text(row.unwrap())).collect()
    }

    #[test]
    fn what_fits_stands_in_its_column_and_the_rest_is_kept() {
        let columns = [
            ("id", ColumnType::String),
            ("n", ColumnType::Int64),
            ("price", ColumnType::Decimal { precision: 10, scale: 2 }),
            ("tags", ColumnType::List),
        ];
        let odd =
            json!({ "id": { "S": "b" }, "n": { "S": "x" }, "price": { "N": "0.001" }, "tags": { "L": [] } });
        let rows = read(
            &columns,
            &[
                change(Some(json!({
                    "id": { "S": "a" }, "n": { "N": "7" }, "price": { "N": "12.5" },
                    "tags": { "SS": ["y", "x"] }, "more": { "BOOL": true }
                }))),
                change(Some(odd)),
                change(None),
            ],
        );
        let cells = |row: usize, names: [&str; 5]| names.map(|name| rows[row][name].as_str());
        let names = ["id", "n", "price", "tags", "_rest"];
        assert_eq!(cells(0, names), ["\"a\"", "7", "12.50", "[\"x\", \"y\"]", r#""{"more":{"BOOL":true}}""#]);
        let rest = r#""{"n":{"S":"x"},"price":{"N":"0.001"}}""#;
        assert_eq!(cells(1, names), ["\"b\"", "null", "null", "[]", rest]);
        assert_eq!(cells(2, names), ["\"k\"", "null", "null", "null", "null"]);
        assert_eq!(rows[2]["_sequence"], "\"111\"");
    }

    #[test]
    fn a_file_of_many_row_groups_holds_every_row_in_order() {
        let large = "x".repeat(GROUP / 3);
        let item = |id: usize| json!({ "id": { "S": id.to_string() }, "large": { "S": large }, "tags": { "SS": ["a"] } });
        let changes: Vec<Change> = (0..10).map(|id| change(Some(item(id)))).collect();
        let rows = read(&[("id", ColumnType::String), ("tags", ColumnType::List)], &changes);
        let ids: Vec<&str> = rows.iter().map(|row| row["id"].as_str()).collect();
        assert_eq!(ids, (0..10).map(|id| format!("\"{id}\"")).collect::<Vec<_>>());
        assert!(rows.iter().all(|row| row["tags"] == "[\"a\"]" && row["_rest"].len() > large.len()));
    }

    #[test]
    fn a_column_that_nobody_chose_loses_no_digits() {
        let digits = ["1.5", "0.1", "9007199254740993", "12345678901234567890.123", "1E-130"];
        let changes = digits.map(|digits| change(Some(json!({ "price": { "N": digits } }))));
        let columns = [("price", ColumnType::Double)];
        let cells = |inferred: bool| {
            let rows = read_as(inferred, &columns, &changes);
            rows.into_iter().map(|row| (row["price"].clone(), row["_rest"].clone())).collect::<Vec<_>>()
        };
        let rest = |digits: &str| ("null".to_owned(), format!(r#""{{"price":{{"N":"{digits}"}}}}""#));
        let null = || "null".to_owned();
        let kept = cells(true);
        assert_eq!(kept[..2], [("1.5".to_owned(), null()), ("0.1".to_owned(), null())]);
        assert_eq!(kept[2..4], [rest("9007199254740993"), rest("12345678901234567890.123")]);
        assert_eq!(kept[4].1, "null", "it reads back as it was");
        assert_eq!(
            cells(false)[2],
            ("9007199254740992.0".to_owned(), null()),
            "who chooses it takes the nearest"
        );
    }
}
