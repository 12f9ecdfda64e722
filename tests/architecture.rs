//! The floors of the house: imports go strictly downwards, and each outside library has one home.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test is where time begins, and may fail loudly")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module's floor. A module may use what stands on a lower floor, and nothing else of ours.
const FLOORS: [(&str, u8); 20] = [
    ("main", 4),
    ("cli", 4),
    ("app", 4),
    ("doctor", 4),
    ("setup", 4),
    ("engine", 3),
    ("config", 3),
    ("publisher", 2),
    ("camera", 1),
    ("http", 1),
    ("hub", 1),
    ("net", 1),
    ("peer", 1),
    ("probe", 1),
    ("relay", 1),
    ("signaling", 1),
    ("switches", 1),
    ("telemetry", 1),
    ("web", 1),
    ("core", 0),
];

/// Outside libraries that only these files may name.
const HOMES: [(&str, &[&str]); 25] = [
    ("gstreamer", &["camera/pipeline/", "camera/encoder/", "camera/still.rs"]),
    ("gstreamer_app", &["camera/pipeline/", "camera/encoder/", "camera/still.rs"]),
    ("gstreamer_video", &["camera/pipeline/", "camera/encoder/"]),
    ("v4l", &["camera/device.rs"]),
    ("rtc", &["peer/", "probe/", "relay/message.rs"]),
    ("rtc_stun", &["probe/", "relay/"]),
    ("webrtc", &["probe/"]),
    ("qrcode", &["cli/"]),
    ("quinn_udp", &["net/socket.rs"]),
    ("if_addrs", &["net/"]),
    ("socket2", &["net/tcp.rs", "relay/wires.rs"]),
    ("serde_json", &["signaling/wire.rs", "cli/"]),
    ("ring", &["signaling/token.rs", "signaling/ice_servers.rs", "web/page.rs"]),
    ("axum", &["signaling/", "telemetry/", "web.rs", "web/", "http.rs"]),
    ("flate2", &["web.rs"]),
    ("hyper", &["http.rs"]),
    ("rumqttc", &["signaling/mqtt/broker/"]),
    ("rustls", &["signaling/mqtt/tls.rs", "probe/ice_server.rs", "relay/wires.rs"]),
    ("rustls_native_certs", &["signaling/mqtt/tls.rs", "probe/ice_server.rs", "relay/wires.rs"]),
    ("tokio_rustls", &["relay/wires.rs"]),
    ("ureq", &["probe/"]),
    ("toml", &["config/"]),
    ("sd_notify", &["telemetry/"]),
    ("prometheus_client", &["telemetry/"]),
    ("tracing_subscriber", &["telemetry/"]),
];

#[test]
fn imports_go_strictly_downwards() {
    let floors = BTreeMap::from(FLOORS);
    let mut faults = Vec::new();
    for Source { file, text } in sources() {
        let module = module_of(&file);
        let Some(&floor) = floors.get(module.as_str()) else {
            if module != "lib" {
                faults.push(format!("{file}: {module} stands on no floor; add it to FLOORS"));
            }
            continue;
        };
        for used in paths_after(&text, "crate::") {
            let Some(&below) = floors.get(used) else { continue };
            if used != module && below >= floor {
                faults.push(format!("{file}: floor {floor} uses crate::{used} on floor {below}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_outside_library_has_one_home() {
    let mut faults = Vec::new();
    for Source { file, text } in sources() {
        for (library, homes) in HOMES {
            let is_home = homes.iter().any(|home| file.starts_with(home));
            if !is_home && names(&text, library) {
                faults.push(format!("{file} names {library}, whose home is {}", homes.join(", ")));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_core_knows_neither_clock_nor_async_nor_wire() {
    let banned = ["tokio", "serde", "std::net::UdpSocket", "std::fs", "std::thread", "tracing"];
    for Source { file, text } in sources() {
        if module_of(&file) == "core" {
            for name in banned {
                assert!(!text.contains(&format!("{name}::")), "{file} uses {name}");
            }
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    for Source { file, text } in sources() {
        let lines = text.lines().count();
        assert!(lines <= 600, "{file} has {lines} lines; split it at 600");
    }
}

struct Source {
    /// Below `src`, with forward slashes.
    file: String,
    /// Without comments, and without the tests at its end, which may reach further.
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &mut found);
    assert!(found.len() > 20, "the sources are not where they were");
    let source = |path: &PathBuf| {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let whole = fs::read_to_string(path).unwrap();
        let code = whole.split("#[cfg(test)]\nmod tests").next().unwrap();
        let text = code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
        Source { file, text }
    };
    let is_test = |path: &PathBuf| ["_test.rs", "_tests.rs"].iter().any(|end| path.to_str().unwrap().ends_with(end));
    found.iter().filter(|path| !is_test(path)).map(source).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// `camera/device.rs` and `camera.rs` are both of `camera`.
fn module_of(file: &str) -> String {
    let first = file.split('/').next().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The first name after each `prefix`; of a list in braces, each.
fn paths_after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let rest = &text[at + prefix.len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let list = list.split("};").next().unwrap_or(list);
            found.extend(list.split([',', '{', '}']).map(|item| name_at_start(item.trim())));
        } else {
            found.push(name_at_start(rest));
        }
    }
    found
}

fn name_at_start(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Whether `library::` stands anywhere as the start of a path.
fn names(text: &str, library: &str) -> bool {
    let path = format!("{library}::");
    text.match_indices(&path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
    })
}
