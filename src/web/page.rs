//! The page of a fleet in one file, for any web server or none: what it shows, it learns from a broker.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::http::Uri;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use super::{FILES, FLEET_FILES};
use crate::core::signal::is_prefix;

const ENTRY: &str = "fleet_page.js";

/// Where the fleet is found, and what the page is called.
#[derive(Clone, Debug)]
pub struct PageSettings {
    pub broker: BrokerUrl,
    pub prefix: Prefix,
    pub title: String,
}

/// The WebSocket listener of a broker: `wss://broker.example.org:8884/mqtt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    url: String,
    /// For the policy: scheme, host and port.
    origin: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    #[error(
        "a page reaches a broker by WebSocket only; write wss://broker.example.org:8884/mqtt, or ws:// without TLS"
    )]
    NotWebSocket,
    #[error(
        "a user or password in the page would be everybody's; the page asks for them, or takes them from its #user=…&password=…"
    )]
    Secret,
    #[error("the broker's address cannot be read; write wss://broker.example.org:8884/mqtt")]
    Unreadable,
}

/// The first levels of the fleet's topics, as in `mqtt.prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a prefix is one to three levels of a-z A-Z 0-9 _ -, such as edgecam or site/hall-2")]
pub struct PrefixError;

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        let url: Uri = text.parse().map_err(|_| BrokerUrlError::Unreadable)?;
        let scheme = url.scheme_str().unwrap_or_default();
        if !matches!(scheme, "ws" | "wss") {
            return Err(BrokerUrlError::NotWebSocket);
        }
        let authority = url.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.contains('@') {
            return Err(BrokerUrlError::Secret);
        }
        // It stands in the page's policy, where a semicolon would begin a rule of its own.
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
        if !authority.chars().all(plain) || url.host().unwrap_or_default().is_empty() || text.contains('#') {
            return Err(BrokerUrlError::Unreadable);
        }
        Ok(Self { url: text.to_owned(), origin: format!("{scheme}://{authority}") })
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        if is_prefix(text) { Ok(Self(text.to_owned())) } else { Err(PrefixError) }
    }
}

/// The whole page. Its modules stand in an import map as `data:` URLs, its styles and icons in the document; its policy lets it
/// run these, reach the broker, and nothing else.
pub fn print(settings: &PageSettings) -> String {
    let style =
        format!("{}{}{}", file("style.css"), file("fleet.css"), between(file("icons.svg"), "<style>", "</style>"));
    let map = import_map();
    let start = format!("import '{}';", bare(ENTRY));
    let policy = format!(
        "default-src 'none'; script-src data: {} {}; style-src {}; img-src data:; connect-src {}; base-uri 'none'; form-action 'none'",
        hash(&map),
        hash(&start),
        hash(&style),
        settings.broker.origin,
    );
    let meta =
        |name: &str, content: &str| format!("<meta name=\"edgecam-{name}\" content=\"{}\">\n  ", escape(content));
    let head = [
        format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n  "),
        "<meta name=\"referrer\" content=\"no-referrer\">\n  ".to_owned(),
        meta("broker", &settings.broker.url),
        meta("prefix", &settings.prefix.0),
        meta("title", &settings.title),
        format!("<style>{style}</style>\n  <script type=\"importmap\">{map}</script>\n  <script type=\"module\">{start}</script>"),
    ]
    .concat();
    let index = file("index.html");
    let tile = whole(index, "<template id=\"tile\">", "</template>");
    let help = whole(index, "<dialog id=\"help\"", "</dialog>");
    file("fleet.html")
        .replace("<!-- tile -->", tile)
        .replace("<!-- help -->", help)
        .replace("icons.svg#", "#icon-")
        .replace("favicon.svg", &data_url("image/svg+xml", file("favicon.svg")))
        .replace("<!-- icons -->", &icons())
        .replace("<!-- head -->", &head)
}

/// `./tile.js` is found beside the module that imports it; `edgecam/tile.js` in the map, as a `data:` URL is beside nothing.
fn import_map() -> String {
    let entries = modules().into_iter().map(|(name, text)| {
        let text = text.replace("from './", "from 'edgecam/");
        format!("\"{}\":\"{}\"", bare(name), data_url("text/javascript", &text))
    });
    format!("{{\"imports\":{{{}}}}}", entries.collect::<Vec<_>>().join(","))
}

/// The page's first module and all that it imports.
fn modules() -> BTreeMap<&'static str, &'static str> {
    let mut found = BTreeMap::new();
    let mut open = vec![ENTRY];
    while let Some(name) = open.pop() {
        if found.insert(name, file(name)).is_none() {
            open.extend(imports(file(name)));
        }
    }
    found
}

/// Of its code: the types that comments import are for the type checker.
fn imports(module: &str) -> impl Iterator<Item = &str> {
    let code = module.lines().filter(|line| line.starts_with("import "));
    code.filter_map(|line| line.split_once("from './")?.1.split('\'').next())
}

fn bare(name: &str) -> String {
    format!("edgecam/{name}")
}

/// A page's `<use>` takes its symbols from the document, where other things have names, too; its style goes to the page's.
fn icons() -> String {
    let icons = file("icons.svg");
    let style = whole(icons, "<defs>", "</defs>");
    icons.replace(style, "").replace("<symbol id=\"", "<symbol id=\"icon-").replacen("<svg ", "<svg hidden ", 1)
}

fn file(name: &str) -> &'static str {
    let found = FILES.iter().chain(FLEET_FILES).find(|(known, ..)| *known == name);
    found.map(|&(.., text)| text).unwrap_or_default()
}

/// From `start` to the first `end` behind it, both included.
fn whole<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let from = text.find(start).unwrap_or_default();
    let to = text[from..].find(end).map_or(from, |at| from + at + end.len());
    &text[from..to]
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let whole = whole(text, start, end);
    whole.strip_prefix(start).and_then(|rest| rest.strip_suffix(end)).unwrap_or_default()
}

/// RFC 2397, with all encoded that a URL, a JSON text or an attribute would take for its own.
fn data_url(kind: &str, text: &str) -> String {
    let encoded: String = text
        .bytes()
        .map(|byte| match byte {
            b' '..=b'~' if !b"\"#%&<>\\".contains(&byte) => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect();
    format!("data:{kind};charset=utf-8,{encoded}")
}

/// CSP level 2, hash-source.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(title: &str) -> String {
        print(&PageSettings {
            broker: "wss://broker.example.org:8884/mqtt".parse().unwrap(),
            prefix: "edgecam".parse().unwrap(),
            title: title.to_owned(),
        })
    }

    #[test]
    fn the_page_is_one_file_that_asks_for_no_other() {
        let page = page("Cameras");
        for left in ["<!-- ", "from './", "icons.svg", "href=\"favicon", "src=\"favicon", ".css\"", "<script src"] {
            assert!(!page.contains(left), "{left} is left");
        }
        for there in
            ["id=\"tile\"", "id=\"help\"", "id=\"icon-play\"", "href=\"#icon-play\"", "symbol { fill", ".row {"]
        {
            assert_eq!(page.matches(there).count().min(1), 1, "{there} is not there");
        }
    }

    #[test]
    fn every_module_that_is_imported_is_in_the_map_and_no_other() {
        let modules = modules();
        for (name, text) in &modules {
            assert!(!text.is_empty(), "{name} is not there");
            for imported in imports(text) {
                assert!(modules.contains_key(imported), "{name} imports {imported}");
            }
        }
        for own in ["main.js", "api.js"] {
            assert!(!modules.contains_key(own), "{own} is the device's page's");
        }
        assert!(
            FLEET_FILES.iter().filter(|(name, ..)| name.ends_with(".js")).all(|(name, ..)| modules.contains_key(name))
        );
    }

    #[test]
    fn the_policy_names_the_broker_and_the_very_texts_that_may_run() {
        let page = page("Cameras");
        let policy = between(&page, "Security-Policy\" content=\"", "\">");
        assert!(policy.contains("connect-src wss://broker.example.org:8884;"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        for (start, end) in [
            ("<style>", "</style>"),
            ("<script type=\"importmap\">", "</script>"),
            ("<script type=\"module\">", "</script>"),
        ] {
            assert!(policy.contains(&hash(between(&page, start, end))), "{start} may not run");
        }
    }

    #[test]
    fn a_title_is_text_whatever_it_contains() {
        assert!(page("\"><script>alert(1)</script>").contains("content=\"&quot;>&lt;script>alert(1)&lt;/script>\""));
    }

    #[test]
    fn a_broker_is_a_websocket_without_a_secret() {
        for good in
            ["ws://127.0.0.1:9001", "wss://broker.example.org:8884/mqtt", "ws://[::1]:9001/mqtt?x=1", "wss://broker/"]
        {
            assert!(good.parse::<BrokerUrl>().is_ok(), "{good} was refused");
        }
        for (bad, why) in [
            ("mqtts://broker.example.org:8883", BrokerUrlError::NotWebSocket),
            ("https://broker.example.org", BrokerUrlError::NotWebSocket),
            ("broker.example.org", BrokerUrlError::NotWebSocket),
            ("wss://user:secret@broker.example.org", BrokerUrlError::Secret),
            ("wss://", BrokerUrlError::Unreadable),
            ("wss://a b/", BrokerUrlError::Unreadable),
            ("wss://a;script-src/", BrokerUrlError::Unreadable),
            ("wss://broker/#here", BrokerUrlError::Unreadable),
        ] {
            assert_eq!(bad.parse::<BrokerUrl>(), Err(why), "{bad}");
        }
    }
}
