//! `edgecam setup` as an owner meets it: the real program on a fresh folder.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test is where time begins, and may fail loudly")]

#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use edgecam::config::{Config, Sources};
use edgecam::core::signal::CameraId;
use edgecam::signaling::access::Rule;
use edgecam::signaling::token::{self, Grant, Permission, TokenError};
use machine::Machine;

#[test]
fn a_fresh_installation_gets_a_key_settings_and_a_link_that_opens_it() {
    let machine = Machine::new("");
    let said = machine.setup(&[]);
    assert!(said.contains("made   ") && said.contains("wrote  "), "{said}");
    assert_eq!(mode(&machine.path("secrets")), 0o700);
    assert_eq!(mode(&machine.path("secrets/token-key")), 0o600);
    assert_eq!(mode(&machine.path("conf.d/10-setup.toml")), 0o644);

    let config = machine.config();
    assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.cameras[0].id.as_str(), "camera");
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(grant(&config, &link(&said), Duration::ZERO).unwrap().permissions, [Permission::View]);
}

#[test]
fn two_fresh_installations_get_different_keys() {
    let key = || {
        let machine = Machine::new("");
        machine.setup(&[]);
        fs::read_to_string(machine.path("secrets/token-key")).unwrap()
    };
    let (one, other) = (key(), key());
    assert_ne!(one, other);
    assert_eq!(one.trim().len(), 44, "32 bytes as base64");
}

#[test]
fn the_key_itself_is_never_printed() {
    let machine = Machine::new("");
    let output = machine.edgecam(&["setup"]);
    let key = fs::read_to_string(machine.path("secrets/token-key")).unwrap();
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(printed.iter().all(|text| !text.contains(key.trim())));
}

#[test]
fn a_second_time_changes_nothing_and_gives_a_fresh_link() {
    let machine = Machine::new("");
    let first = machine.setup(&["--ttl", "1h"]);
    let before = machine.files();
    let second = machine.setup(&["--ttl", "2h"]);
    assert_eq!(machine.files(), before);
    assert!(!second.contains("made   ") && !second.contains("wrote  "), "{second}");
    assert_ne!(link(&first), link(&second));

    let config = machine.config();
    let later = Duration::from_secs(90 * 60);
    assert_eq!(grant(&config, &link(&first), later), Err(TokenError::Expired));
    assert!(grant(&config, &link(&second), later).is_ok());
}

#[test]
fn what_the_owner_wrote_stays_as_it_is() {
    let own = "[http]\nlisten = \"127.0.0.1:9000\"\n\n[auth]\ntoken_key_file = \"mine\"\n\n[[camera]]\nid = \"porch\"\nsource = \"test\"\n";
    let machine = Machine::bare(own);
    fs::write(machine.path("mine"), "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(machine.path("mine"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = machine.files();
    let said = machine.setup(&[]);
    assert_eq!(machine.files(), before);
    for kept in ["the page's address", "the key that signs tokens", "the cameras"] {
        let line = format!("kept   {kept}, set in {}", machine.path("edgecam.toml").display());
        assert!(said.lines().any(|said| said == line), "{line}\n{said}");
    }
    assert!(said.contains("http://127.0.0.1:9000/#token="), "{said}");
}

#[test]
fn a_key_that_is_there_is_taken() {
    let machine = Machine::new("");
    fs::create_dir(machine.path("secrets")).unwrap();
    fs::write(machine.path("secrets/token-key"), "0123456789abcdef0123456789abcdef").unwrap();
    let said = machine.setup(&[]);
    assert!(!said.contains("made   "), "{said}");
    assert_eq!(fs::read_to_string(machine.path("secrets/token-key")).unwrap(), "0123456789abcdef0123456789abcdef");
    assert!(grant(&machine.config(), &link(&said), Duration::ZERO).is_ok());
}

#[test]
fn where_anyone_may_watch_the_link_needs_no_token() {
    let machine = Machine::new("[auth]\nanyone_may_watch = true\n");
    let said = machine.setup(&[]);
    assert!(said.contains("Anyone who reaches this machine may watch:"), "{said}");
    assert!(!said.contains("#token="), "{said}");
    assert!(!machine.path("secrets").exists());
}

#[test]
fn a_wrong_configuration_is_told_before_anything_is_written() {
    let machine = Machine::bare("[http]\nport = 80\n");
    let output = machine.edgecam(&["setup"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(!machine.path("secrets").exists() && !machine.path("conf.d").exists());
}

#[test]
fn a_token_can_be_had_as_a_link_of_one_camera() {
    let machine = Machine::new("");
    machine.setup(&[]);
    let said = String::from_utf8(machine.edgecam(&["token", "--camera", "camera", "--link"]).stdout).unwrap();
    let link = link(&said);
    assert!(link.contains("/camera#token="), "{link}");
    let grant = grant(&machine.config(), &link, Duration::ZERO).unwrap();
    assert_eq!(grant.camera, Some(CameraId::new("camera").unwrap()));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The first link that was printed; without any network, there is none but on loopback.
fn link(said: &str) -> String {
    let line = said.lines().map(str::trim).find(|line| line.starts_with("http://"));
    line.unwrap_or_else(|| panic!("no link in\n{said}")).to_owned()
}

/// What a link opens, some time from now.
fn grant(config: &Config, link: &str, later: Duration) -> Result<Grant, TokenError> {
    let Rule::Key(key) = &config.access.rule else { panic!("no token is asked for") };
    let token = link.split_once("#token=").unwrap().1;
    token::check(key, &config.device, token, SystemTime::now() + later)
}

trait Setup {
    fn setup(&self, arguments: &[&str]) -> String;
    fn config(&self) -> Config;
}

impl Setup for Machine {
    fn setup(&self, arguments: &[&str]) -> String {
        let output = self.edgecam(&[&["setup"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn config(&self) -> Config {
        Config::load(&Sources {
            config: Some(self.path("edgecam.toml")),
            default_config: "/nonexistent".into(),
            environment: std::collections::BTreeMap::new(),
            flags: Vec::new(),
            host_name: "vm".into(),
        })
        .unwrap()
    }
}
