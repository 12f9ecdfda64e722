//! `edgecam doctor` as an owner meets it: the real program on a made-up configuration, with and without a daemon.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test is where time begins, and may fail loudly")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/ports.rs"]
mod ports;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use broker::{Broker, BrokerPlan};
use machine::Machine;
use ports::free_port;

#[test]
fn a_configuration_that_works_is_told_so_and_ends_with_0() {
    let machine = Machine::new(&format!("{}{TEST_CAMERA}", here(free_port())));
    let report = machine.doctor();
    let good = format!("good: device porch, page on http://127.0.0.1:{}/ without a token", machine.port());
    assert_eq!(report.line("configuration"), ("ok".into(), good));
    let (verdict, words) = report.line("camera front");
    assert_eq!(verdict, "ok", "{words}");
    assert!(words.starts_with("gives pictures: test picture 320x240 at 30 fps; "), "{words}");
    assert_eq!(report.line("encoder").0, "ok");
    assert_eq!(report.line("page"), ("warn".into(), "the page is for this machine only".into()));
    assert_eq!(report.code, Some(0), "{report:?}");
}

#[test]
fn a_missing_camera_is_told_with_the_remedy_and_ends_with_1() {
    let camera = "[[camera]]\nid = \"front\"\nsource = \"v4l2:/dev/edgecam-has-no-such-camera\"\n";
    let machine = Machine::new(&format!("{}{camera}", here(free_port())));
    let report = machine.doctor();
    let words = "no camera at /dev/edgecam-has-no-such-camera";
    assert_eq!(report.line("camera front"), ("fail".into(), words.into()));
    assert_eq!(report.code, Some(1), "{report:?}");

    let text = machine.edgecam(&["doctor"]);
    let page = String::from_utf8(text.stdout).unwrap();
    assert!(page.lines().any(|line| line.starts_with("fail  camera front ") && line.ends_with(words)), "{page}");
    assert!(page.contains("→ plug it in or correct `source`"), "{page}");
    assert_eq!(String::from_utf8(text.stderr).unwrap().lines().last(), Some("edgecam: one check failed"));
}

#[test]
fn a_bad_configuration_is_told_as_check_tells_it_and_the_rest_is_looked_at() {
    let machine = Machine::new("[ice]\nudp_port = 70000\n");
    let report = machine.doctor();
    let (verdict, words) = report.line("configuration");
    assert_eq!(verdict, "fail");
    let check = machine.edgecam(&["check"]);
    assert_eq!(String::from_utf8(check.stderr).unwrap().trim(), format!("edgecam: {words}"));
    assert_eq!(report.line("encoder").0, "ok");
    assert_eq!(report.code, Some(1));
}

#[test]
fn a_key_that_others_can_read_is_warned_of() {
    let machine = Machine::new(&format!("{}{TEST_CAMERA}[auth]\ntoken_key_file = \"key\"\n", here(free_port())));
    let key = machine.path("key");
    fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let words = format!("{} can be read by other users", key.display());
    let report = machine.doctor();
    assert!(report.lines.contains(&("configuration".into(), "warn".into(), words)), "{report:?}");
    assert!(!format!("{report:?}").contains("0123456789abcdef"), "a secret is in the report");
}

#[test]
fn a_port_that_another_program_holds_is_told_with_its_name() {
    let held = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = held.local_addr().unwrap().port();
    let report = Machine::new(&format!("{}{TEST_CAMERA}", here(port))).doctor();
    let (verdict, words) = report.line("ports");
    assert_eq!(verdict, "fail");
    let mine = format!("TCP 127.0.0.1:{port}, for the page, is taken by ");
    assert!(words.starts_with(&mine) && words.ends_with(&format!("(pid {})", std::process::id())), "{words}");
    assert_eq!(report.code, Some(1));
}

#[test]
fn ports_and_cameras_of_a_running_daemon_are_well() {
    let auth = "[auth]\ntoken_key_file = \"key\"\n";
    let machine = Machine::new(&format!("{}{TEST_CAMERA}{auth}", here(free_port())));
    fs::write(machine.path("key"), "0123456789abcdef0123456789abcdef").unwrap();
    let _daemon = machine.start();
    let report = machine.doctor();
    assert_eq!(report.line("daemon"), ("ok".into(), "runs and is well".into()));
    let ports: Vec<_> = report.lines.iter().filter(|(check, ..)| check == "ports").collect();
    assert_eq!(ports.len(), 3);
    assert!(ports.iter().all(|(_, _, words)| words.ends_with("is in use by edgecam itself")), "{report:?}");
    assert_eq!(report.line("camera front").0, "ok");
    assert_eq!(report.code, Some(0), "{report:?}");
}

#[test]
fn a_stun_server_that_is_not_there_is_told() {
    let closed = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let ice = format!("[ice]\nudp_port = 0\nservers = [{{ urls = [\"stun:{closed}\"] }}]\n");
    let report = Machine::new(&format!("[http]\nlisten = \"127.0.0.1:{}\"\n{ice}{TEST_CAMERA}", free_port())).doctor();
    let (verdict, words) = report.line("stun");
    assert_eq!(verdict, "fail");
    assert!(words.starts_with(&format!("stun:{closed}: {closed} does not answer")), "{words}");
}

#[tokio::test]
async fn a_broker_that_lets_the_device_in_is_well() {
    let broker = Broker::open().await;
    let report = behind(&broker, "").doctor();
    let words = format!("127.0.0.1 port {} lets this device in, and takes what it says", broker.port());
    assert_eq!(report.line("broker"), ("ok".into(), words));
}

#[tokio::test]
async fn a_broker_that_keeps_the_device_out_is_told_with_the_remedy() {
    let users = vec![("porch".to_owned(), "right".to_owned())];
    let broker = Broker::with(BrokerPlan { users, ..BrokerPlan::default() }).await;
    let (verdict, words) = behind(&broker, "").doctor().line("broker");
    assert_eq!((verdict.as_str(), words.as_str()), ("fail", "the broker wants to know who we are"));

    let machine = behind(&broker, "username = \"porch\"\npassword_file = \"password\"\n");
    fs::write(machine.path("password"), "wrong").unwrap();
    let report = machine.doctor();
    assert_eq!(report.line("broker").0, "fail");
    assert!(!format!("{report:?}").contains("wrong"), "a secret is in the report");
    fs::write(machine.path("password"), "right").unwrap();
    assert_eq!(machine.doctor().line("broker").0, "ok");
}

#[tokio::test]
async fn a_broker_that_shuts_topics_off_is_told_with_them() {
    let users = vec![("porch".to_owned(), "right".to_owned())];
    let acl = "user porch\ntopic readwrite edgecam/porch/rpc/#\n".to_owned();
    let broker = Broker::with(BrokerPlan { users, acl: Some(acl), ..BrokerPlan::default() }).await;
    let machine = behind(&broker, "username = \"porch\"\npassword_file = \"password\"\n");
    fs::write(machine.path("password"), "right").unwrap();
    let (verdict, words) = machine.doctor().line("broker");
    assert_eq!(verdict, "fail");
    assert!(words.ends_with("refuses this device its topics edgecam/porch/rsp/edgecam-doctor"), "{words}");
}

#[test]
fn a_camera_that_is_switched_off_is_not_opened() {
    let machine = Machine::new(&format!("{}{TEST_CAMERA}", here(free_port())));
    let state = machine.path("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("switched-off"), "# Cameras that are switched off\nfront\n").unwrap();
    let config = fs::read_to_string(machine.path("edgecam.toml")).unwrap();
    let named = config.replace("[device]\n", &format!("[device]\nstate_dir = {state:?}\n"));
    fs::write(machine.path("edgecam.toml"), named).unwrap();
    let (verdict, words) = machine.doctor().line("camera front");
    assert_eq!(verdict, "ok");
    assert!(words.starts_with("is switched off, so it was not opened"), "{words}");
}

/// A device on this machine alone, with this broker.
fn behind(broker: &Broker, more: &str) -> Machine {
    let mqtt = format!("[auth]\nanyone_may_watch = true\n[mqtt]\nurl = {:?}\n{more}", broker.url());
    Machine::new(&format!("{}{mqtt}{TEST_CAMERA}", here(free_port())))
}

const TEST_CAMERA: &str = "[[camera]]\nid = \"front\"\nsource = \"test\"\nwidth = 320\nheight = 240\n";

fn here(port: u16) -> String {
    format!("[http]\nlisten = \"127.0.0.1:{port}\"\n[ice]\nudp_port = {}\n", free_port())
}
