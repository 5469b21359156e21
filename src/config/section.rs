//! Reading of one section of the file, key by key.
//!
//! A [`Section`] hands out typed keys, puts what is wrong with them into the [`Reader`]'s list, and reports in
//! the end the keys that nobody asked for. Nothing here stops at the first problem.

use super::report::{Lines, Place, Problem};
use super::values::{Fault, wrong_type};
use std::cell::RefCell;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The environment variables that override a key: section, key, variable.
pub(super) const VARIABLES: [(&str, &str, &str); 5] = [
    ("", "endpoint", "SHARDWALKER_ENDPOINT"),
    ("[state]", "table", "SHARDWALKER_STATE_TABLE"),
    ("[state]", "region", "SHARDWALKER_STATE_REGION"),
    ("[lease]", "worker", "SHARDWALKER_WORKER"),
    ("[admin]", "listen", "SHARDWALKER_ADMIN_LISTEN"),
];

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    /// For a default: the section's place.
    pub(super) place: Place,
    /// Whether the user wrote it; otherwise it is the default.
    pub(super) given: bool,
}

/// The file being read, and the problems found so far.
pub(super) struct Reader<'t> {
    lines: Lines<'t>,
    env: &'t dyn Fn(&str) -> Option<String>,
    problems: RefCell<Vec<Problem>>,
    /// Whether the syntax is sound. If not, keys may be missing only because the parser skipped them.
    sound: bool,
}

impl<'t> Reader<'t> {
    /// Starts with the errors of the TOML parser.
    pub(super) fn new(
        text: &'t str,
        env: &'t dyn Fn(&str) -> Option<String>,
        syntax: &[toml::de::Error],
    ) -> Self {
        let reader = Self {
            lines: Lines::new(text),
            env,
            problems: RefCell::new(Vec::new()),
            sound: syntax.is_empty(),
        };
        for error in syntax {
            let place = error.span().map_or(Place::File, |span| reader.place(&span));
            reader.report(place, Fault::new(error.message().replace('\n', ", ")));
        }
        reader
    }

    pub(super) fn report(&self, place: Place, fault: Fault) {
        let Fault { what, remedy } = fault;
        self.problems.borrow_mut().push(Problem { place, what, remedy });
    }

    /// Reports something missing, unless it may be there behind an error of syntax.
    pub(super) fn report_missing(&self, place: Place, fault: Fault) {
        if self.sound {
            self.report(place, fault);
        }
    }

    /// Whether all that the user wrote could be read as TOML.
    pub(super) fn is_sound(&self) -> bool {
        self.sound
    }

    /// The problems in the order of their places.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems
    }

    fn place(&self, span: &Range<usize>) -> Place {
        self.lines.place(span)
    }
}

/// What a key holds.
enum Found<T> {
    Absent,
    /// Reported already.
    Faulty,
    Good(Located<T>),
}

/// One table of the file, or an empty one where the file has none.
pub(super) struct Section<'t> {
    reader: &'t Reader<'t>,
    /// As in the file (`[[route]]`); empty at the top level.
    title: &'static str,
    /// Where the section begins.
    place: Place,
    entries: Option<&'t DeTable<'t>>,
    /// The keys that were asked for.
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// The top level of the file.
    pub(super) fn root(reader: &'t Reader<'t>, entries: &'t DeTable<'t>) -> Self {
        Self::new(reader, "", Place::File, Some(entries))
    }

    fn new(
        reader: &'t Reader<'t>,
        title: &'static str,
        place: Place,
        entries: Option<&'t DeTable<'t>>,
    ) -> Self {
        Self { reader, title, place, entries, known: Vec::new() }
    }

    /// The table under `key`, an empty one when it is absent; `None` when it is no table, which is reported.
    pub(super) fn table(&mut self, key: &'static str, title: &'static str) -> Option<Self> {
        if self.entries.is_some_and(|entries| entries.contains_key(key)) {
            return self.optional_table(key, title);
        }
        self.known.push(key);
        Some(Self::new(self.reader, title, Place::File, None))
    }

    /// The table under `key`; `None` when it is absent, or no table, which is reported.
    pub(super) fn optional_table(&mut self, key: &'static str, title: &'static str) -> Option<Self> {
        let value = self.value(key)?;
        let place = self.reader.place(&value.span());
        match value.get_ref() {
            DeValue::Table(entries) => Some(Self::new(self.reader, title, place, Some(entries))),
            other => {
                let fault = wrong_type("a table", other).remedy(format!("write {title}"));
                self.report(key, place, fault);
                None
            }
        }
    }

    /// The tables under `key`, written `[[key]]`; at least one must be there. `hint` says what they are.
    pub(super) fn tables(&mut self, key: &'static str, title: &'static str, hint: &str) -> Vec<Self> {
        self.optional_tables(key, title, hint).unwrap_or_else(|| {
            self.reader.report_missing(self.place, Fault::new(format!("missing {title}")).remedy(hint));
            Vec::new()
        })
    }

    /// The tables under `key`, at least one where the key is there; `None` only when it is absent.
    pub(super) fn optional_tables(
        &mut self,
        key: &'static str,
        title: &'static str,
        hint: &str,
    ) -> Option<Vec<Self>> {
        let value = self.value(key)?;
        let place = self.reader.place(&value.span());
        let DeValue::Array(elements) = value.get_ref() else {
            let fault = wrong_type("an array of tables", value.get_ref()).remedy(format!("write {title}"));
            self.report(key, place, fault);
            return Some(Vec::new());
        };
        if elements.is_empty() {
            self.report(key, place, Fault::new("must not be empty").remedy(hint));
        }
        let mut tables = Vec::with_capacity(elements.len());
        for element in elements.iter() {
            let place = self.reader.place(&element.span());
            match element.get_ref() {
                DeValue::Table(entries) => tables.push(Self::new(self.reader, title, place, Some(entries))),
                other => {
                    let fault = wrong_type("an array of tables", other).remedy(format!("write {title}"));
                    self.report(key, place, fault);
                }
            }
        }
        Some(tables)
    }

    /// A key that must be there; `None` when it is not or is faulty, both reported. `hint` says what it is.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        hint: &str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<Located<T>> {
        match self.find(key, parse) {
            Found::Good(located) => Some(located),
            Found::Faulty => None,
            Found::Absent => {
                self.missing(key, hint);
                None
            }
        }
    }

    /// A key that may be absent; `None` also when it is faulty, which is reported.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<Located<T>> {
        match self.find(key, parse) {
            Found::Good(located) => Some(located),
            Found::Faulty | Found::Absent => None,
        }
    }

    /// A key with a default; `None` only when it is faulty, which is reported.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<Located<T>> {
        match self.find(key, parse) {
            Found::Good(located) => Some(located),
            Found::Faulty => None,
            Found::Absent => Some(Located { value: default, place: self.place, given: false }),
        }
    }

    /// A required array of strings, not empty, each with its place.
    pub(super) fn strings(&mut self, key: &'static str, hint: &str) -> Option<Vec<Located<String>>> {
        let Some(value) = self.value(key) else {
            self.missing(key, hint);
            return None;
        };
        let place = self.reader.place(&value.span());
        let DeValue::Array(elements) = value.get_ref() else {
            let fault = wrong_type("an array of strings", value.get_ref()).remedy(hint);
            self.report(key, place, fault);
            return None;
        };
        if elements.is_empty() {
            self.report(key, place, Fault::new("must not be empty").remedy(hint));
            return None;
        }
        let mut strings = Vec::with_capacity(elements.len());
        for element in elements.iter() {
            let place = self.reader.place(&element.span());
            match super::values::string(element.get_ref()) {
                Ok(value) => strings.push(Located { value, place, given: true }),
                Err(_) => {
                    self.report(key, place, Fault::new("must hold strings only"));
                    return None;
                }
            }
        }
        Some(strings)
    }

    /// The place of a byte within the text of a string; `None` where the text is not written as it is.
    pub(super) fn within(&self, key: &str, at: usize) -> Option<Place> {
        let span = self.entries?.get(key)?.span();
        let written = self.reader.lines.text().get(span.clone())?;
        let quotes = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quotes| written.starts_with(quotes))?;
        if quotes.starts_with('"') && written.contains('\\') {
            return None;
        }
        let text = written.get(quotes.len()..)?;
        // The first line break of a text of several lines does not belong to it.
        let skipped =
            if quotes.len() == 3 { text.len() - text.trim_start_matches(['\r', '\n']).len() } else { 0 };
        let begin = span.start + quotes.len() + skipped.min(2) + at;
        Some(self.reader.place(&(begin..begin)))
    }

    /// Reports a fault of the value of `key`.
    pub(super) fn report(&self, key: &str, place: Place, fault: Fault) {
        self.reader.report(place, Fault { what: format!("\"{key}\" {}", fault.what), ..fault });
    }

    /// Reports `key` where it is there, although it has no place here.
    pub(super) fn refuse(&mut self, key: &'static str, why: &str, remedy: &str) {
        let Some(value) = self.entries.and_then(|entries| entries.get(key)) else { return };
        self.known.push(key);
        self.report(key, self.reader.place(&value.span()), Fault::new(why).remedy(remedy));
    }

    /// Reports that `key` is missing; `hint` says what it is or how to write it.
    pub(super) fn missing(&self, key: &str, hint: &str) {
        let fault = Fault::new(format!("missing key \"{key}\" {}", self.whereabouts())).remedy(hint);
        self.reader.report_missing(self.place, fault);
    }

    /// Reports every key that was not asked for.
    pub(super) fn finish(mut self) {
        self.known.sort_unstable();
        for (key, _) in self.entries.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if !self.known.contains(&name) {
                self.reader.report(self.reader.place(&key.span()), self.unknown(name));
            }
        }
    }

    fn unknown(&self, name: &str) -> Fault {
        let plain = name.to_ascii_lowercase().replace(['-', '_'], "");
        if ["secret", "accesskey", "password", "token", "credential"].iter().any(|word| plain.contains(word))
        {
            return Fault::new(format!("{} looks like a credential", super::values::shown(name)))
                .remedy("credentials are never in the file: use a profile, a role or the environment");
        }
        let fault = Fault::new(format!("unknown key {} {}", super::values::shown(name), self.whereabouts()));
        match nearest(&self.known, name) {
            Some(known) => fault.remedy(format!("did you mean \"{known}\"?")),
            None => fault.remedy(format!("the keys here are {}", self.known.join(", "))),
        }
    }

    fn whereabouts(&self) -> String {
        if self.title.is_empty() { "at the top level".to_owned() } else { format!("in {}", self.title) }
    }

    fn find<T>(&mut self, key: &'static str, parse: impl Fn(&DeValue<'_>) -> Result<T, Fault>) -> Found<T> {
        let in_file = self.value(key);
        let (parsed, place) = match (self.overriding(key), in_file) {
            (Some((text, variable)), _) => (parse(&DeValue::String(text.into())), Place::Variable(variable)),
            (None, Some(value)) => (parse(value.get_ref()), self.reader.place(&value.span())),
            (None, None) => return Found::Absent,
        };
        match parsed {
            Ok(value) => Found::Good(Located { value, place, given: true }),
            Err(fault) => {
                self.report(key, place, fault);
                Found::Faulty
            }
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.entries?.get(key)
    }

    /// The environment's value for `key`; an empty variable counts as unset.
    fn overriding(&self, key: &str) -> Option<(String, &'static str)> {
        let (_, _, variable) = VARIABLES.iter().find(|entry| (entry.0, entry.1) == (self.title, key))?;
        (self.reader.env)(variable).filter(|text| !text.is_empty()).map(|text| (text, *variable))
    }
}

/// The name that was probably meant by `written`.
pub(super) fn nearest<'n>(names: &[&'n str], written: &str) -> Option<&'n str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(name, written);
    names.iter().copied().min_by_key(distance).filter(|name| distance(name) <= name.len().div_ceil(3))
}
