//! The commands as a shell sees them: what they print and what they end with.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

#[test]
fn a_good_configuration_is_said_to_be_good() {
    let folder = TempDir::new().unwrap();
    let output = edgecam(&["check", "--config", &file(&folder, "[device]\nid = \"porch\"")]);
    assert_eq!(said(&output), "good: device porch, cameras test, page on http://127.0.0.1:8080/\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_bad_configuration_ends_with_78_and_one_line() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "[ice]\nudp_port = 70000");
    for command in ["check", "run"] {
        let output = edgecam(&[command, "--config", &path]);
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(complaint, format!("edgecam: ice.udp_port: 70000 is outside 0 to 65535 (in {path})\n"));
        assert_eq!(output.status.code(), Some(78), "{command}");
    }
}

#[test]
fn what_cannot_be_understood_ends_with_64() {
    for arguments in [&[][..], &["fly"], &["run", "--fast"], &["check", "--config"]] {
        assert_eq!(edgecam(arguments).status.code(), Some(64), "{arguments:?}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for arguments in [["--help"], ["--version"]] {
        let output = edgecam(&arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(said(&output).to_lowercase().contains("edgecam"), "{}", said(&output));
    }
}

#[test]
fn what_is_shown_can_be_used_as_a_configuration() {
    let folder = TempDir::new().unwrap();
    let shown = said(&edgecam(&["config", "show", "--config", &file(&folder, "[log]\nlevel = \"debug\"")]));
    let output = edgecam(&["check", "--config", &file(&folder, &shown)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}\n{shown}");
}

#[test]
fn a_token_is_printed_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("key"), "0123456789abcdef0123456789abcdef").unwrap();
    let path = file(&folder, "[auth]\ntoken_key_file = \"key\"");
    let token =
        said(&edgecam(&["token", "--config", &path, "--camera", "test", "--allow", "view,control", "--ttl", "15m"]));
    assert_eq!(token.trim_end().split('.').count(), 3, "{token}");
    assert_eq!(token.lines().count(), 1, "{token}");
}

#[test]
fn no_token_is_made_without_a_key_or_for_a_camera_that_is_not_there() {
    let folder = TempDir::new().unwrap();
    let output = edgecam(&["token", "--config", &file(&folder, "")]);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(complaint, "edgecam: this device asks for no tokens, so it can make none; set auth.token_key_file\n");
    assert_eq!(output.status.code(), Some(1));

    fs::write(folder.path().join("key"), "0123456789abcdef0123456789abcdef").unwrap();
    let path = file(&folder, "[auth]\ntoken_key_file = \"key\"");
    let output = edgecam(&["token", "--config", &path, "--camera", "cellar"]);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "edgecam: there is no camera cellar; there is test\n");
}

#[test]
fn a_camera_that_cannot_be_asked_ends_a_probe_with_1() {
    let output = edgecam(&["probe", "not a url"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("give one like http://"), "no remedy is named");
}

fn edgecam(arguments: &[&str]) -> Output {
    // Nothing of the machine the test runs on: a variable there could change what is loaded.
    Command::new(env!("CARGO_BIN_EXE_edgecam")).args(arguments).env_clear().output().unwrap()
}

fn file(folder: &TempDir, text: &str) -> String {
    let path = folder.path().join("edgecam.toml");
    fs::write(&path, text).unwrap();
    Path::to_str(&path).unwrap().to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
