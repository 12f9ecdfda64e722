//! Which keys there are and what type each has, held against what was found.
//!
//! Crate `config` is lenient (7.9 becomes 8, `true` becomes "true") and its own errors do not always say where a value
//! came from. So each layer is checked here first, all of it, and only then read into the file's structs.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::BY_DEFAULT;
use super::error::{Problem, Wrong};
use super::file::{ANY_KEY, ConfigToml};

/// One of everything that may stand in the file.
pub(super) struct Shape(Value);

/// What a key is.
pub(super) enum Found {
    Text,
    Whole,
    YesNo,
    List,
    Section,
    /// No such key; with the nearest one that there is.
    Nothing(String),
}

impl Shape {
    pub(super) fn of_the_file() -> Self {
        let config = config::Config::try_from(&ConfigToml::one_of_everything()).expect("plain structs serialize");
        Self(config.cache)
    }

    pub(super) fn root(&self) -> &Value {
        &self.0
    }

    /// Whether the owner chooses the keys of this table.
    pub(super) fn has_free_keys(table: &Value) -> bool {
        sorted(table).any(|(name, _)| name == ANY_KEY)
    }

    /// Every key that has a value, from the top; those of a list's items without an index: `camera.encoder.prefer`.
    pub(super) fn keys(&self) -> Vec<String> {
        fn collect(value: &Value, key: String, keys: &mut Vec<String>) {
            match &value.kind {
                ValueKind::Table(_) => sorted(value).for_each(|(name, next)| collect(next, join(&key, name), keys)),
                ValueKind::Array(items) if matches!(items[0].kind, ValueKind::Table(_)) => {
                    collect(&items[0], key, keys)
                }
                _ => keys.push(key),
            }
        }
        let mut keys = Vec::new();
        collect(&self.0, String::new(), &mut keys);
        keys
    }

    /// What the key `a.b` is.
    pub(super) fn find(&self, key: &str) -> Found {
        let mut here = &self.0;
        let mut above = String::new();
        for name in key.split('.') {
            match &here.kind {
                ValueKind::Table(table) => match table.get(name) {
                    Some(next) => here = next,
                    None => return Found::Nothing(self.unknown(here, name)),
                },
                ValueKind::Array(_) => return Found::List,
                _ => return Found::Nothing(format!("{above} is a single value and has no keys")),
            }
            above = join(&above, name);
        }
        match &here.kind {
            ValueKind::Table(_) => Found::Section,
            ValueKind::Array(_) => Found::List,
            ValueKind::Boolean(_) => Found::YesNo,
            ValueKind::String(_) => Found::Text,
            _ => Found::Whole,
        }
    }

    /// Everything in the table `found`, read from `origin`, that has no place here or the wrong type.
    pub(super) fn problems(&self, found: &Value, origin: &str) -> Vec<Problem> {
        let mut wrong = Vec::new();
        self.compare(found, &self.0, "", &mut wrong);
        wrong.into_iter().map(|Wrong { key, what }| Problem { key, what, origin: origin.to_owned() }).collect()
    }

    fn compare(&self, found: &Value, wanted: &Value, key: &str, wrong: &mut Vec<Wrong>) {
        match (&found.kind, &wanted.kind) {
            (ValueKind::Table(_), ValueKind::Table(keys)) => {
                for (name, value) in sorted(found) {
                    let below = join(key, name);
                    match keys.get(name).or_else(|| keys.get(ANY_KEY)) {
                        Some(next) => self.compare(value, next, &below, wrong),
                        None => wrong.push(Wrong::new(below, self.unknown(wanted, name))),
                    }
                }
            }
            (ValueKind::Array(items), ValueKind::Array(wanted)) => {
                for (index, item) in items.iter().enumerate() {
                    self.compare(item, &wanted[0], &format!("{key}[{index}]"), wrong);
                }
            }
            (ValueKind::String(_), ValueKind::String(_)) | (ValueKind::Boolean(_), ValueKind::Boolean(_)) => {}
            (ValueKind::I64(_) | ValueKind::U64(_), ValueKind::I64(_) | ValueKind::U64(_)) => {}
            (is, must) => {
                // The value itself is not repeated: it may be a secret in the wrong place.
                let what = format!("{} was found, {} is wanted{}", name_of(is), name_of(must), hint(is, must, key));
                wrong.push(Wrong::new(key, what));
            }
        }
    }

    /// What to say of the unknown key `name` in `section`.
    fn unknown(&self, section: &Value, name: &str) -> String {
        let siblings: Vec<&str> = sorted(section).map(|(name, _)| name).collect();
        if let Some(near) = nearest(name, &siblings) {
            return match near.strip_suffix("_file") {
                Some(stem) if stem == name || name.contains("password") || name.contains("secret") => {
                    format!("secrets stand in files of their own; name the file with {near}")
                }
                _ => format!("there is no such key; did you mean {near}?"),
            };
        }
        let elsewhere = self.keys().into_iter().find(|key| key.rsplit('.').next() == Some(name));
        match elsewhere {
            Some(key) => format!("there is no such key here; did you mean {key}?"),
            None => format!("there is no such key; here may stand: {}", siblings.join(", ")),
        }
    }
}

/// Where each single value came from, by key.
pub(super) fn origins(found: &Value) -> BTreeMap<String, String> {
    fn collect(value: &Value, key: String, origins: &mut BTreeMap<String, String>) {
        match &value.kind {
            ValueKind::Table(_) => {
                for (name, next) in sorted(value) {
                    collect(next, join(&key, name), origins);
                }
            }
            ValueKind::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    collect(item, format!("{key}[{index}]"), origins);
                }
                origins.insert(key, value.origin().unwrap_or(BY_DEFAULT).to_owned());
            }
            _ => {
                origins.insert(key, value.origin().unwrap_or(BY_DEFAULT).to_owned());
            }
        }
    }
    let mut origins = BTreeMap::new();
    collect(found, String::new(), &mut origins);
    origins
}

/// A table's entries by name; none of anything else.
pub(super) fn sorted(table: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let entries: BTreeMap<&str, &Value> = match &table.kind {
        ValueKind::Table(table) => table.iter().map(|(name, value)| (name.as_str(), value)).collect(),
        _ => BTreeMap::new(),
    };
    entries.into_iter()
}

/// The key of `name` in the section `above`.
pub(super) fn join(above: &str, name: &str) -> String {
    if above.is_empty() { name.to_owned() } else { format!("{above}.{name}") }
}

fn name_of(kind: &ValueKind) -> &'static str {
    match kind {
        ValueKind::Nil => "nothing",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::Float(_) => "a number with a point",
        ValueKind::String(_) => "text",
        ValueKind::Table(_) => "a section",
        ValueKind::Array(_) => "a list",
        _ => "a whole number",
    }
}

fn hint(is: &ValueKind, must: &ValueKind, key: &str) -> String {
    match (is, must) {
        (ValueKind::Table(_), ValueKind::Array(_)) => format!("; write [[{key}]]"),
        (_, ValueKind::Array(_)) => "; put it in [ ]".into(),
        (ValueKind::Array(_) | ValueKind::Table(_), _) => String::new(),
        (_, ValueKind::String(_)) => "; put it in quotes".into(),
        (ValueKind::String(_), _) => "; take the quotes away".into(),
        _ => String::new(),
    }
}

/// The candidate that was probably meant: a third of its letters off, or the same beginning.
fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let close = |candidate: &&&str| distance(name, candidate) <= name.len().div_ceil(3);
    let by_distance = candidates.iter().filter(close).min_by_key(|candidate| distance(name, candidate));
    let begins =
        |candidate: &&&str| candidate.starts_with(&format!("{name}_")) || name.starts_with(&format!("{candidate}_"));
    let secret =
        |candidate: &&&str| candidate.ends_with("_file") && SECRET_WORDS.iter().any(|word| name.contains(word));
    by_distance.or_else(|| candidates.iter().find(begins)).or_else(|| candidates.iter().find(secret)).copied()
}

const SECRET_WORDS: [&str; 3] = ["password", "secret", "credential"];

/// Levenshtein's: the fewest letters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}
