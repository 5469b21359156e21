//! What is wrong with a configuration: every problem, with its place, in one report.
//!
//! Owns positions (byte offset -> line and column) and how problems are shown. A report's lines look like a
//! compiler's: `shardwalker.toml:12:9: unknown key "too" in [[route]]; did you mean "to"?`.

use std::fmt;
use std::ops::Range;

/// Everything that is wrong with a configuration; never empty when returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Report {
    /// The file's name as the user gave it.
    pub origin: String,
    /// In the order of the file; problems of environment variables come last.
    pub problems: Vec<Problem>,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// What is wrong.
    pub what: String,
    /// What to do about it, where that does not go without saying.
    pub remedy: Option<String>,
}

/// Where a value or a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The file as a whole: something is missing from it, or it cannot be read.
    File,
    /// A position in the file.
    At {
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
    },
    /// An environment variable that overrides the file.
    Variable(&'static str),
}

/// One line a problem, without a line break at the end.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match problem.place {
                Place::File => write!(f, "{}: ", self.origin)?,
                Place::At { line, column } => write!(f, "{}:{line}:{column}: ", self.origin)?,
                Place::Variable(name) => write!(f, "{name}: ")?,
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// The problem and its remedy, without the place.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(f, "{}; {remedy}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// How another problem refers to the place: `line 4`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the file"),
            Self::At { line, .. } => write!(f, "line {line}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// Finds the line and column of a byte offset.
#[derive(Debug)]
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// The whole text.
    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// The place where `span` begins; an offset past the end counts as the end.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let offset = span.start.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let column = self.text.get(start..offset).map_or(offset - start, |before| before.chars().count());
        Place::At { line, column: column + 1 }
    }
}
