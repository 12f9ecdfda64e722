//! `edgecam config show`: what holds now, and where each value was set.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::BY_DEFAULT;
use super::file::ConfigToml;
use super::shape::{Shape, join, sorted};

/// The whole configuration as TOML, each value with its origin behind it. Holds no secrets: the file knows only their names.
pub(super) fn show(file: &ConfigToml, shape: &Shape, origins: &BTreeMap<String, String>) -> String {
    let values = config::Config::try_from(file).expect("plain structs serialize").cache;
    let mut page = Page { origins, text: String::new() };
    page.table("", "", shape.root(), Some(&values));
    page.text.trim_start().to_owned()
}

struct Page<'a> {
    origins: &'a BTreeMap<String, String>,
    text: String,
}

impl Page<'_> {
    /// `key` tells a list's items apart (`camera[0].encoder`), `header` does not (`camera.encoder`).
    fn table(&mut self, key: &str, header: &str, shape: &Value, values: Option<&Value>) {
        let value = |name: &str| sorted(values?).find(|(other, _)| *other == name).map(|(_, value)| value);
        let names: Vec<(&str, &Value)> = match values {
            values if Shape::has_free_keys(shape) => values.into_iter().flat_map(sorted).collect(),
            _ => sorted(shape).collect(),
        };
        for (name, _) in names.iter().filter(|(_, kind)| !is_section(kind)) {
            // An empty list leaves nothing behind when it is serialized.
            let shown = value(name).map_or("[]".into(), |value| literal(&value.kind));
            let origin = self.origins.get(&join(key, name)).map_or(BY_DEFAULT, String::as_str);
            self.text.push_str(&format!("{name} = {shown}  # {origin}\n"));
        }
        for (name, kind) in names.into_iter().filter(|(_, kind)| is_section(kind)) {
            let (key, header) = (join(key, name), join(header, name));
            match &kind.kind {
                ValueKind::Array(shapes) => {
                    for (index, item) in items(value(name)).iter().enumerate() {
                        self.text.push_str(&format!("\n[[{header}]]\n"));
                        self.table(&format!("{key}[{index}]"), &header, &shapes[0], Some(item));
                    }
                }
                _ => {
                    self.text.push_str(&format!("\n[{header}]\n"));
                    self.table(&key, &header, kind, value(name));
                }
            }
        }
    }
}

fn is_section(shape: &Value) -> bool {
    match &shape.kind {
        ValueKind::Table(_) => true,
        ValueKind::Array(items) => matches!(items[0].kind, ValueKind::Table(_)),
        _ => false,
    }
}

fn items(list: Option<&Value>) -> &[Value] {
    match list.map(|list| &list.kind) {
        Some(ValueKind::Array(items)) => items,
        _ => &[],
    }
}

fn literal(kind: &ValueKind) -> String {
    match kind {
        // Rust's escapes are TOML's but for \u{…}, which only control characters need.
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| literal(&item.kind)).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}
