//! Defaults, files, variables and flags, laid over each other; every value remembers where it came from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use config::{FileFormat, Format, Map, Source, Value, ValueKind};

use super::error::{ConfigError, Problem};
use super::file::ConfigToml;
use super::shape::{Found, Shape};
use super::{Flag, Sources};

/// All layers merged: later ones win key by key; a list (`[[camera]]` too) is replaced as a whole.
///
/// # Errors
/// A file that cannot be read or is not TOML; keys that do not exist and values of the wrong type, in any layer.
pub(super) fn merge(sources: &Sources, shape: &Shape) -> Result<Value, ConfigError> {
    let mut layers = vec![defaults()];
    let mut problems = Vec::new();
    for path in files(sources)? {
        let origin = format!("in {}", path.display());
        let layer = read(&path, &origin)?;
        problems.append(&mut shape.problems(&Value::new(None, layer.0.clone()), &origin));
        layers.push(layer);
    }
    layers.push(variables(&sources.environment, shape, &mut problems));
    layers.push(flags(&sources.flags, shape, &mut problems));
    if !problems.is_empty() {
        return Err(ConfigError::Invalid(problems));
    }
    let merged = layers.into_iter().fold(config::Config::builder(), |merged, layer| merged.add_source(layer));
    Ok(merged.build().expect("layers in memory do not fail").cache)
}

/// The files to read, in order: the main one, then `conf.d/*.toml` next to it by name.
fn files(sources: &Sources) -> Result<Vec<PathBuf>, ConfigError> {
    let mut files = Vec::new();
    if let Some(path) = &sources.config {
        files.push(path.clone());
    } else if sources.default_config.exists() {
        files.push(sources.default_config.clone());
    }
    let folder = sources.folder().join("conf.d");
    let unreadable = |cause| ConfigError::Unreadable { path: folder.clone(), cause };
    if folder.is_dir() {
        let mut drop_ins = Vec::new();
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if is_drop_in(&path) {
                drop_ins.push(path);
            }
        }
        drop_ins.sort();
        files.append(&mut drop_ins);
    }
    Ok(files)
}

fn is_drop_in(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !hidden && path.extension().is_some_and(|extension| extension == "toml")
}

fn defaults() -> Layer {
    let defaults = config::Config::try_from(&ConfigToml::default()).expect("plain structs serialize");
    Layer(defaults.cache.into_table().expect("the file is a table"))
}

fn read(path: &Path, origin: &String) -> Result<Layer, ConfigError> {
    let text = fs::read_to_string(path).map_err(|cause| ConfigError::Unreadable { path: path.to_path_buf(), cause })?;
    let table = FileFormat::Toml
        .parse(Some(origin), text.trim_start_matches('\u{feff}'))
        .map_err(|cause| ConfigError::Syntax { path: path.to_path_buf(), cause })?;
    Ok(Layer(table))
}

/// `EDGECAM__HTTP__LISTEN=…` as `http.listen`. The text is read as the type its key has, never guessed: a text of digits
/// stays a text. A variable that was surely meant for us but would not be read is a problem, not silence.
fn variables(environment: &BTreeMap<String, String>, shape: &Shape, problems: &mut Vec<Problem>) -> Layer {
    let names: BTreeMap<String, String> =
        shape.keys().into_iter().map(|key| variable_of(&key)).map(|name| (squeezed(&name), name)).collect();
    let mut table = Map::new();
    for (name, text) in environment {
        let known = names.get(&squeezed(name));
        if known.is_none() && !name.to_ascii_uppercase().starts_with("EDGECAM_") {
            continue;
        }
        let origin = format!("in the variable {name}");
        let path = name.strip_prefix("EDGECAM__").filter(|rest| *rest == rest.to_ascii_uppercase());
        let near_miss = known.is_some_and(|known| known != name);
        let (Some(path), false) = (path, near_miss) else {
            let what = match known {
                Some(known) => format!("edgecam does not read this name; did you mean {known}?"),
                None => {
                    "edgecam does not read this name; settings are EDGECAM__SECTION__KEY, with two underscores".into()
                }
            };
            problems.push(Problem { key: name.clone(), what, origin: "in the environment".into() });
            continue;
        };
        put(&mut table, &path.to_ascii_lowercase().replace("__", "."), text, origin, shape, problems);
    }
    Layer(table)
}

fn flags(flags: &[Flag], shape: &Shape, problems: &mut Vec<Problem>) -> Layer {
    let mut table = Map::new();
    for Flag { name, key, value } in flags {
        put(&mut table, key, value, format!("in the flag {name}"), shape, problems);
    }
    Layer(table)
}

fn put(
    table: &mut Map<String, Value>,
    key: &str,
    text: &str,
    origin: String,
    shape: &Shape,
    problems: &mut Vec<Problem>,
) {
    let kind: Result<ValueKind, String> = match shape.find(key) {
        Found::Text => Ok(text.into()),
        Found::Whole => text.parse::<i64>().map(Into::into).map_err(|_| "not a whole number".into()),
        Found::YesNo => text.parse::<bool>().map(Into::into).map_err(|_| "neither true nor false".into()),
        Found::List => Err("lists can only be set in a file".into()),
        Found::Section => Err("this is a section; name a key in it".into()),
        Found::Nothing(what) => Err(what),
    };
    match kind {
        Ok(kind) => {
            table.insert(key.to_owned(), Value::new(Some(&origin), kind));
        }
        Err(what) => problems.push(Problem { key: key.to_owned(), what, origin }),
    }
}

fn variable_of(key: &str) -> String {
    format!("EDGECAM__{}", key.replace('.', "__").to_ascii_uppercase())
}

/// What is left of a name when one does not remember its case and underscores.
fn squeezed(name: &str) -> String {
    name.chars().filter(|&c| c != '_').map(|c| c.to_ascii_uppercase()).collect()
}

#[derive(Clone, Debug)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}
