//! The files of a route's feed, read back: every record of the source once, with its version.

use super::stream::{Stream, Wrote};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The feed's name.
pub(in crate::sim) const LAKE: &str = "lake";

/// Where the files of a route's feed differ from what was written to its source.
pub(super) fn files_differ(place: &Path, route: usize, stream: &Stream) -> Vec<String> {
    let (mut wrong, mut found) = (Vec::new(), BTreeMap::new());
    for entry in std::fs::read_dir(place.join(format!("r{route}/{LAKE}"))).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with('_') {
            continue;
        }
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            let (shard, sequence) = (text("shard"), text("sequence").parse::<u128>().unwrap_or_default());
            let key = line["key"]["id"].as_str().unwrap_or_default().to_owned();
            let record = (key, text("version"), line["event"] == "REMOVE");
            if found.insert((shard.clone(), sequence), record).is_some() {
                wrong.push(format!("{sequence} of {shard} is in the files twice, once in {name}"));
            }
        }
    }
    for (id, shard) in &stream.shards {
        for record in &shard.records {
            let written = (record.key.clone(), record.version.to_string(), record.wrote == Wrote::Delete);
            match found.remove(&(id.clone(), record.sequence)) {
                None => wrong.push(format!("{} of {id} is in no file", record.sequence)),
                Some(read) if read != written => {
                    wrong.push(format!(
                        "{} of {id} is {written:?}, and in the files {read:?}",
                        record.sequence
                    ));
                }
                Some(_) => {}
            }
        }
    }
    let strange = found.into_keys();
    wrong.extend(strange.map(|(shard, sequence)| format!("{sequence} of {shard} was never written")));
    wrong
}
