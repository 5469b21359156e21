//! Parsers of single values: a TOML value -> a checked Rust value, or the [`Fault`] that says what is wrong.
//!
//! A fault is worded to follow the key: `must be from 1 to 1000, not 5000`. It never repeats a text that may
//! hold a credential.

use super::arn::{ArnError, RoleArn, is_region, is_table_name, is_word};
use super::{Conflicts, OnGap, Start, TableArn};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};
use toml::de::DeValue;
use toml::value::{Datetime, Offset};

/// What is wrong with a value.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) remedy: Option<String>,
}

impl Fault {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: None }
    }

    pub(super) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// The value is of another type than `wanted` (`a string`, `an integer`, ...).
pub(super) fn wrong_type(wanted: &str, value: &DeValue<'_>) -> Fault {
    let found = match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    Fault::new(format!("must be {wanted}, not {found}"))
}

/// A user's text as it stands in a message: quoted, on one line, cut when long.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// A duration in the shortest of the forms that the file takes: `25h`, `200ms`.
pub(super) fn brief(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_nanos() > 0 || seconds == 0 {
        return format!("{}ms", duration.as_millis());
    }
    let (size, unit) = [(86400, "d"), (3600, "h"), (60, "min")]
        .into_iter()
        .find(|(size, _)| seconds.is_multiple_of(*size))
        .unwrap_or((1, "s"));
    format!("{}{unit}", seconds / size)
}

pub(super) fn string(value: &DeValue<'_>) -> Result<String, Fault> {
    value.as_str().map(str::to_owned).ok_or_else(|| wrong_type("a string", value))
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Fault> {
    value.as_bool().ok_or_else(|| wrong_type("true or false", value))
}

/// A string of a length in `bytes`, made of what `fits` takes; `rule` says both in words.
fn text(
    bytes: RangeInclusive<usize>,
    fits: impl Fn(u8) -> bool,
    rule: &str,
) -> impl Fn(&DeValue<'_>) -> Result<String, Fault> {
    move |value| {
        let text = string(value)?;
        if bytes.contains(&text.len()) && text.bytes().all(&fits) {
            Ok(text)
        } else {
            Err(Fault::new(format!("must be {rule}, not {}", shown(&text))))
        }
    }
}

/// The name of a member, a route or a group.
pub(super) fn name(value: &DeValue<'_>) -> Result<String, Fault> {
    text(1..=64, |byte| is_word(byte, b"-."), "1 to 64 letters, digits, \"-\", \"_\" or \".\"")(value)
}

/// A worker's name.
pub(super) fn worker(value: &DeValue<'_>) -> Result<String, Fault> {
    text(1..=128, |byte| byte.is_ascii_graphic(), "1 to 128 visible ASCII characters")(value)
}

/// A profile's name in the AWS config files.
pub(super) fn profile(value: &DeValue<'_>) -> Result<String, Fault> {
    text(1..=255, |byte| !byte.is_ascii_control(), "a profile's name")(value)
}

/// A file's path.
pub(super) fn path(value: &DeValue<'_>) -> Result<String, Fault> {
    text(1..=4096, |byte| byte != 0, "a file's path")(value)
}

/// The name of the stamp attribute.
pub(super) fn attribute(value: &DeValue<'_>) -> Result<String, Fault> {
    text(1..=255, |_| true, "an attribute's name of 1 to 255 bytes")(value)
}

pub(super) fn external_id(value: &DeValue<'_>) -> Result<String, Fault> {
    let rule = "2 to 1224 letters, digits or any of _+=,.@:/-";
    text(2..=1224, |byte| is_word(byte, b"+=,.@:/-"), rule)(value)
}

pub(super) fn session_name(value: &DeValue<'_>) -> Result<String, Fault> {
    let rule = "2 to 64 letters, digits or any of _+=,.@-";
    text(2..=64, |byte| is_word(byte, b"+=,.@-"), rule)(value)
}

pub(super) fn region(value: &DeValue<'_>) -> Result<String, Fault> {
    let text = string(value)?;
    if is_region(&text) {
        Ok(text)
    } else {
        Err(Fault::new(format!("must be a Region's name such as \"eu-west-1\", not {}", shown(&text))))
    }
}

/// An integer in a range, as whichever type the configuration keeps it in.
pub(super) fn integer<T: TryFrom<i64>>(
    range: RangeInclusive<i64>,
) -> impl Fn(&DeValue<'_>) -> Result<T, Fault> {
    move |value| {
        let integer = value.as_integer().ok_or_else(|| wrong_type("an integer", value))?;
        i64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                let (least, most) = (range.start(), range.end());
                Fault::new(format!("must be from {least} to {most}, not {integer}"))
            })
    }
}

/// Writes a second: for every peer the same, or by the peers' names.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rates {
    Each(u32),
    Of(BTreeMap<String, u32>),
}

pub(super) fn rates(value: &DeValue<'_>) -> Result<Rates, Fault> {
    let rate = integer(1..=1_000_000);
    match value {
        DeValue::Integer(_) => rate(value).map(Rates::Each),
        DeValue::Table(entries) => {
            let rate = |(name, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                let name: &std::borrow::Cow<'_, str> = name.get_ref();
                match rate(value.get_ref()) {
                    Ok(rate) => Ok((name.to_string(), rate)),
                    Err(fault) => Err(Fault { what: format!("of {} {}", shown(name), fault.what), ..fault }),
                }
            };
            entries.iter().map(rate).collect::<Result<_, _>>().map(Rates::Of)
        }
        _ => Err(wrong_type("an integer, or a table of integers by peer", value)),
    }
}

/// A share above 0, at most 1.
pub(super) fn share(value: &DeValue<'_>) -> Result<f64, Fault> {
    let number = match value {
        DeValue::Float(float) => float.as_str().parse().ok(),
        DeValue::Integer(integer) => integer.as_str().parse().ok(),
        _ => return Err(wrong_type("a number", value)),
    };
    let fits = |share: &f64| *share > 0.0 && *share <= 1.0;
    number.filter(fits).ok_or_else(|| Fault::new("must be more than 0 and at most 1, such as 0.5"))
}

/// A duration in a range, written as `"30s"`, `"1h 30min"`, ...
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Result<Duration, Fault> {
    // The parser panics on sums at the end of what a duration holds; nothing of this length gets there.
    const LONGEST: usize = 64;
    const DIGITS: usize = 9;
    move |value| {
        let text = value.as_str().ok_or_else(|| wrong_type("a duration such as \"30s\"", value))?;
        let out_of_range = || {
            let (least, most) = (brief(*range.start()), brief(*range.end()));
            Fault::new(format!("must be from {least} to {most}, not {}", shown(text)))
        };
        if text.len() > LONGEST || text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > DIGITS) {
            return Err(out_of_range());
        }
        let duration = humantime::parse_duration(text)
            .map_err(|_| Fault::new(format!("must be a duration such as \"30s\", not {}", shown(text))))?;
        if range.contains(&duration) { Ok(duration) } else { Err(out_of_range()) }
    }
}

/// An address to listen on; `None` for `"off"`.
pub(super) fn listen(value: &DeValue<'_>) -> Result<Option<SocketAddr>, Fault> {
    let text = string(value)?;
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Fault::new(format!(
            "must be an IP address and port such as \"127.0.0.1:9464\", or \"off\", not {}",
            shown(&text)
        ))
    })
}

/// A table's full ARN.
pub(super) fn table_arn(value: &DeValue<'_>) -> Result<TableArn, Fault> {
    let text = string(value)?;
    text.parse().map_err(|error| {
        let fault = Fault::new(format!("is not a table's ARN: {error}"));
        match error {
            ArnError::Inside { what: "a stream", table } => {
                fault.remedy(format!("write \"{table}\", the stream is found through the table"))
            }
            ArnError::Inside { table, .. } => fault.remedy(format!("write \"{table}\"")),
            ArnError::Parts(_) | ArnError::Part { .. } => {
                fault.remedy("write \"arn:aws:dynamodb:REGION:ACCOUNT:table/NAME\"")
            }
        }
    })
}

/// The state table: a name in the caller's account, or an ARN.
#[derive(Debug, Clone)]
pub(super) enum TableRef {
    Name(String),
    Arn(TableArn),
}

pub(super) fn table_ref(value: &DeValue<'_>) -> Result<TableRef, Fault> {
    let text = string(value)?;
    if text.contains(':') {
        table_arn(value).map(TableRef::Arn)
    } else if is_table_name(&text) {
        Ok(TableRef::Name(text))
    } else {
        Err(Fault::new(format!(
            "must be a table's ARN, or its name of 3 to 255 letters, digits, \"-\", \"_\" or \".\", not {}",
            shown(&text)
        )))
    }
}

pub(super) fn role_arn(value: &DeValue<'_>) -> Result<RoleArn, Fault> {
    string(value)?.parse().map_err(|error| {
        Fault::new(format!("is not a role's ARN: {error}")).remedy("write \"arn:aws:iam::ACCOUNT:role/NAME\"")
    })
}

pub(super) fn on_gap(value: &DeValue<'_>) -> Result<OnGap, Fault> {
    match string(value)?.as_str() {
        "stop" => Ok(OnGap::Stop),
        "continue" => Ok(OnGap::Continue),
        other => Err(Fault::new(format!("must be \"stop\" or \"continue\", not {}", shown(other)))),
    }
}

pub(super) fn conflicts(value: &DeValue<'_>) -> Result<Conflicts, Fault> {
    match string(value)?.as_str() {
        "off" => Ok(Conflicts::Off),
        "sampled" => Ok(Conflicts::Sampled),
        "full" => Ok(Conflicts::Full),
        other => Err(Fault::new(format!("must be \"off\", \"sampled\" or \"full\", not {}", shown(other)))),
    }
}

/// A start position; a time may stand in quotes or as TOML's own.
pub(super) fn start(value: &DeValue<'_>) -> Result<Start, Fault> {
    const RULE: &str = "must be \"trim-horizon\", \"latest\" or a time such as \"2026-01-01T00:00:00Z\"";
    let time = match value {
        DeValue::String(text) => match text.as_ref() {
            "trim-horizon" => return Ok(Start::TrimHorizon),
            "latest" => return Ok(Start::Latest),
            other => other.parse().map_err(|_| Fault::new(format!("{RULE}, not {}", shown(other))))?,
        },
        DeValue::Datetime(time) => *time,
        _ => return Err(Fault::new(RULE)),
    };
    instant(&time).map(Start::At).ok_or_else(|| {
        let fault =
            Fault::new(format!("must be a time from 1970 on with its offset from UTC, not \"{time}\""));
        if time.offset.is_none() { fault.remedy("append \"Z\" for UTC") } else { fault }
    })
}

/// The instant that a time with a date and an offset names.
fn instant(time: &Datetime) -> Option<SystemTime> {
    let minutes = match time.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => minutes,
    };
    let utc = Datetime { offset: Some(Offset::Z), ..*time };
    let local = humantime::parse_rfc3339(&utc.to_string()).ok()?;
    let offset = Duration::from_secs(u64::from(minutes.unsigned_abs()) * 60);
    let instant = if minutes < 0 { local.checked_add(offset) } else { local.checked_sub(offset) };
    instant.filter(|instant| *instant >= SystemTime::UNIX_EPOCH)
}
