//! The configuration: a TOML file -> resolved, validated [`Config`]; every problem is reported at once.
//!
//! [`Config::parse`] reads a text, [`Config::load`] a file. Precedence: defaults < file < environment; what
//! the command line adds is set on the `Config` afterwards. `Config` is plain data with defaults filled in:
//! nothing below this module looks at the file again. Whether tables and permissions exist is not known
//! here: this module asks nobody.
//!
//! One thing a file: `types` the result, `section` reads keys and reports the unknown, `values` parses one
//! value, `file` reads the sections, `access` how tables are reached, `routes` judges the routes together,
//! `groups` makes routes of the groups, `shape` reads what peers get of items, `flag` judges flags, `report` shows what is wrong.

mod access;
mod arn;
mod endpoint;
mod feed;
mod feeds;
mod file;
pub mod flag;
mod groups;
mod report;
mod routes;
mod section;
mod shape;
#[cfg(test)]
mod tests;
mod types;
mod values;

pub use arn::ArnError;
pub use feed::{Column, ColumnType, Compression, Feed, FeedFormat, FeedPlace, Images, Partition};
pub use report::{Place, Problem, Report};
pub use types::{
    Access, Admin, AssumeRole, Config, Conflicts, DeadLetters, Group, Guard, Lease, Mask, MaskKey, Member,
    OnGap, Read, Route, Shape, Start, State, TableArn, Write,
};

use section::{Reader, Section};
use std::path::Path;

impl Config {
    /// Reads a configuration from `text`; `origin` is the file's name for messages. The overriding variables
    /// (docs/config.md) are asked of `env`.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file.
    pub fn parse(text: &str, origin: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Report> {
        let (root, syntax) = toml::de::DeTable::parse_recoverable(text);
        let reader = Reader::new(text, env, &syntax);
        let config = file::config(&reader, Section::root(&reader, root.get_ref()));
        match (config, reader.into_problems()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(Report { origin: origin.to_owned(), problems }),
        }
    }

    /// Reads the configuration file at `path`, under the process's environment.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file, or that it cannot be read.
    pub fn load(path: &Path) -> Result<Self, Report> {
        let origin = path.display().to_string();
        // A value that is not Unicode is kept, so that it is refused and not overlooked.
        let env = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &origin, &env),
            Err(error) => {
                let what = format!("cannot read the configuration: {error}");
                Err(Report { origin, problems: vec![Problem { place: Place::File, what, remedy: None }] })
            }
        }
    }
}
