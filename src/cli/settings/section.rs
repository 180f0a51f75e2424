//! Reading a TOML table strictly: every key is taken by name, what is left over is an error, and every error
//! knows its line. Values are never repeated: a secret may stand there by mistake.

use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use keymgmt::provider::is_name;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A key that differs in more letters from the one written is no suggestion.
const SLIPS_MAX: usize = 3;

/// One error in a configuration file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Problem {
    /// The file.
    pub(in crate::cli) file: PathBuf,
    /// Counted from 1; none where the file as a whole is wrong.
    pub(in crate::cli) line: Option<usize>,
    /// What is wrong, without any value.
    pub(in crate::cli) text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, text } = self;
        match line {
            Some(line) => write!(f, "{}:{line}: {text}", file.display()),
            None => write!(f, "{}: {text}", file.display()),
        }
    }
}

/// A file as it was read.
#[derive(Clone)]
pub(super) struct Source<'t> {
    pub(super) file: &'t Path,
    text: &'t str,
    /// Where lines end: a file may have a line for each of thousands of keys, and each is looked up.
    ends: Rc<[usize]>,
}

impl<'t> Source<'t> {
    /// A file and its text.
    pub(super) fn new(file: &'t Path, text: &'t str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { file, text, ends }
    }

    /// The line of a byte, counted from 1.
    fn line(&self, byte: usize) -> usize {
        1 + self.ends.partition_point(|end| *end < byte)
    }

    fn problem(&self, byte: usize, text: String) -> Problem {
        Problem { file: self.file.to_owned(), line: Some(self.line(byte)), text }
    }
}

/// Something that was read, and the line where it stands.
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

/// A table whose keys are taken one after the other.
pub(super) struct Section<'t> {
    source: Source<'t>,
    /// As it is told to people: `[volume.db1]`; empty for the whole file.
    place: String,
    start: usize,
    table: DeTable<'t>,
    known: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl<'t> Section<'t> {
    /// The whole file. What does not parse is in the problems, all of it at once.
    pub(super) fn whole(source: Source<'t>) -> Self {
        let (table, errors) = DeTable::parse_recoverable(source.text);
        let problem = |error: toml::de::Error| {
            let byte = error.span().map_or(0, |span| span.start);
            // The message of a syntax error is one of a fixed list; nothing of the file is in it.
            source.problem(byte, error.message().to_owned())
        };
        let problems = errors.into_iter().map(problem).collect();
        let table = table.into_inner();
        Self { source, place: String::new(), start: 0, table, known: Vec::new(), problems }
    }

    /// Where the section begins.
    pub(super) fn line(&self) -> usize {
        self.source.line(self.start)
    }

    /// Whether something was wrong so far.
    pub(super) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// What did not parse.
    pub(super) fn finish_syntax(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes an error of the section as a whole, or of one of its lines.
    pub(super) fn wrong(&mut self, line: Option<usize>, text: String) {
        let line = Some(line.unwrap_or_else(|| self.line()));
        self.problems.push(Problem { file: self.source.file.to_owned(), line, text });
    }

    /// A table in this one.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Section<'t>> {
        let (name, value) = self.take(key)?;
        let place = format!("[{key}]");
        self.below(place, name.span().start, value)
    }

    /// The tables `[key.NAME]`, each with its name.
    pub(super) fn named_sections(&mut self, key: &'static str) -> Vec<(String, Section<'t>)> {
        let Some(outer) = self.section(key) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, value) in outer.table {
            let start = name.span().start;
            let name = name.into_inner().into_owned();
            if !is_name(&name) {
                let text = format!("the name in [{key}.NAME] has 1 to 64 letters, digits, - and _");
                self.problems.push(self.source.problem(start, text));
                continue;
            }
            let section = self.below(format!("[{key}.{name}]"), start, value);
            found.extend(section.map(|section| (name, section)));
        }
        found.sort_by_key(|(_, section)| section.start);
        found
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<At<String>> {
        let (_, value) = self.take(key)?;
        self.text_of(key, value)
    }

    /// A text that means something: `parse` says what is wrong with it, without repeating it.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let At { value, line } = self.text(key)?;
        match parse(&value) {
            Ok(value) => Some(At { value, line }),
            Err(why) => {
                self.wrong(Some(line), format!("{key} in {}: {why}", self.place));
                None
            }
        }
    }

    /// A truth value.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let (_, value) = self.take(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_type(key, "true or false", &value);
        }
        flag
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<At<String>>> {
        let (_, value) = self.take(key)?;
        if !value.get_ref().is_array() {
            self.wrong_type(key, "a list of texts", &value);
        }
        let DeValue::Array(items) = value.into_inner() else { return None };
        Some(items.into_iter().filter_map(|item| self.text_of(key, item)).collect())
    }

    /// All that is left, as others read it, and the line of each key.
    pub(super) fn rest(mut self) -> (toml::Table, Vec<(String, usize)>, Vec<Problem>) {
        let table = std::mem::take(&mut self.table);
        let lines = table.keys().map(|key| (key.to_string(), self.source.line(key.span().start))).collect();
        let value = Spanned::new(self.start..self.start, DeValue::Table(table));
        match toml::Table::deserialize(ValueDeserializer::from(value)) {
            Ok(table) => (table, lines, self.problems),
            Err(_) => {
                // A number out of range, for one; the message could hold it.
                self.wrong(None, format!("a value in {} cannot be used", self.place));
                (toml::Table::new(), lines, self.problems)
            }
        }
    }

    /// Ends the reading: what was not taken is unknown.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        for (key, value) in &self.table {
            let text = self.unknown(key.get_ref(), value.get_ref());
            self.problems.push(self.source.problem(key.span().start, text));
        }
        self.problems
    }

    fn unknown(&self, key: &str, value: &DeValue<'_>) -> String {
        let Self { place, known, .. } = self;
        let what = match (place.as_str(), value) {
            ("", DeValue::Table(_)) => "section",
            _ => "key",
        };
        let behind = if place.is_empty() { String::new() } else { format!(" in {place}") };
        if !is_name(key) {
            return format!(
                "unknown {what}{behind} (its name is not repeated: no {what} is called like that)"
            );
        }
        let near = known.iter().map(|known| (strsim::osa_distance(key, known), *known)).min();
        let advice = match near {
            Some((slips, near)) if slips <= SLIPS_MAX.min(near.len() / 2) => format!("; is it {near}?"),
            _ => format!("; known are {}", known.join(", ")),
        };
        format!("unknown {what} {key}{behind}{advice}")
    }

    fn take(&mut self, key: &'static str) -> Option<(Spanned<toml::de::DeString<'t>>, Spanned<DeValue<'t>>)> {
        self.known.push(key);
        self.table.remove_entry(key)
    }

    fn below(&mut self, place: String, start: usize, value: Spanned<DeValue<'t>>) -> Option<Section<'t>> {
        let source = self.source.clone();
        match value.into_inner() {
            DeValue::Table(table) => {
                Some(Section { source, place, start, table, known: Vec::new(), problems: Vec::new() })
            }
            other => {
                let text = format!("{place} is a table, not {}", other.type_str());
                self.problems.push(source.problem(start, text));
                None
            }
        }
    }

    fn text_of(&mut self, key: &'static str, value: Spanned<DeValue<'t>>) -> Option<At<String>> {
        let line = self.source.line(value.span().start);
        match value.into_inner() {
            DeValue::String(text) => Some(At { value: text.into_owned(), line }),
            other => {
                let (found, place) = (other.type_str(), &self.place);
                self.wrong(Some(line), format!("{key} in {place} is text in quotes, not {found}"));
                None
            }
        }
    }

    fn wrong_type(&mut self, key: &str, expected: &str, value: &Spanned<DeValue<'_>>) {
        let line = self.source.line(value.span().start);
        let text = format!("{key} in {} is {expected}, not {}", self.place, value.get_ref().type_str());
        self.wrong(Some(line), text);
    }
}
