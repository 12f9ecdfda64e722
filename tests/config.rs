//! The configuration as its owner meets it: layers, secrets, and what is said when something is wrong.
//! Longer than a file should be, since most of it is one table: every mistake beside the words it is answered with.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgecam::camera::{CameraSettings, Source};
use edgecam::config::{Config, ConfigError, Flag, Sources};
use edgecam::core::access_unit::Bitrate;
use edgecam::net::tcp::TcpSettings;
use edgecam::signaling::access::Rule;
use edgecam::signaling::ice_servers::Credentials;
use tempfile::TempDir;

#[test]
fn without_any_file_there_is_a_test_camera_on_loopback() {
    let config = Machine::new().load().unwrap();
    assert_eq!(config.device, "frontdoor");
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert!(matches!(config.access.rule, Rule::Open));
    let [camera] = config.cameras.as_slice() else { panic!("{:?}", config.cameras) };
    assert_eq!((camera.id.as_str(), &camera.source), ("test", &Source::Test));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_file_that_configures_no_camera_is_said_to_show_the_test_camera() {
    let config = Machine::new().file("[http]\nlisten = \"127.0.0.1:9000\"").load().unwrap();
    assert_eq!(config.warnings, ["no [[camera]] is configured; showing the built-in test camera"]);
}

#[test]
fn a_whole_configuration_becomes_the_settings_of_the_parts() {
    let machine = Machine::new().file(
        r#"
        [device]
        id = "porch"
        [ice]
        udp_port = 9001
        advertise = ["203.0.113.7", "203.0.113.8:9000"]
        [[camera]]
        id = "front"
        source = "v4l2:/dev/v4l/by-id/usb-camera"
        width = 1920
        height = 1080
        fps = 25
        linger_s = 60
        max_viewers = 2
        [camera.encoder]
        max_kbps = 4000
        keyframe_interval_s = 4
        [camera.low]
        width = 640
        max_kbps = 700
        [camera.controls]
        brightness = -12
        [[camera]]
        id = "back"
        encoder.max_kbps = 400
        [[camera]]
        id = "side"
        source = "test"
        low.enabled = false
        "#,
    );
    let config = machine.load().unwrap();
    assert_eq!(config.device, "porch");
    let advertised: Vec<String> = config.media.advertise.iter().map(ToString::to_string).collect();
    assert_eq!(advertised, ["203.0.113.7:0", "203.0.113.8:9000"]);
    let bitrate = Bitrate::from_kbps(4000); // of the fastest camera
    assert_eq!(config.media.tcp, Some(TcpSettings { bitrate }));
    let [front, back, side] = config.cameras.as_slice() else { panic!("{:?}", config.cameras) };
    assert_eq!(front.source, Source::V4l2("/dev/v4l/by-id/usb-camera".into()));
    assert_eq!((front.width, front.height, front.fps, front.linger), (1920, 1080, 25, Duration::from_secs(60)));
    assert_eq!((front.encoder.max.kbps(), front.encoder.min.kbps()), (4000, 150));
    assert_eq!(front.controls, BTreeMap::from([("brightness".to_owned(), -12)]));
    assert_eq!(back.source, Source::Auto);
    let low = |camera: &CameraSettings| camera.low.map(|low| (low.width, low.height, low.max.kbps(), low.min.kbps()));
    assert_eq!(low(front), Some((Some(640), None, 700, 100)));
    assert_eq!(low(back), Some((None, None, 320, 100)), "never more than four fifths of the encoder's own");
    assert_eq!(low(side), None);
    let places: Vec<usize> = config.sessions.cameras.iter().map(|camera| camera.max_viewers).collect();
    assert_eq!(places, [2, 8, 8]);
}

#[test]
fn later_layers_win_key_by_key() {
    let machine = Machine::new()
        .file("[http]\nlisten = \"127.0.0.1:1\"\nmax_connections = 100\n[limits]\nnegotiations = 5")
        .drop_in("20-later.toml", "[http]\nlisten = \"127.0.0.1:3\"")
        .drop_in("10-earlier.toml", "[http]\nlisten = \"127.0.0.1:2\"\nheader_timeout_s = 7")
        .drop_in("notes.txt", "not TOML");
    assert_eq!(machine.load().unwrap().listen.port(), 3);

    let machine = machine.variable("EDGECAM__HTTP__LISTEN", "127.0.0.1:4");
    assert_eq!(machine.load().unwrap().listen.port(), 4);

    let config = machine.flag("--listen", "http.listen", "127.0.0.1:5").load().unwrap();
    assert_eq!(config.listen.port(), 5);
    assert_eq!((config.http.max_connections, config.http.header_timeout.as_secs()), (100, 7));
    assert_eq!(config.sessions.max_negotiations, 5);
}

#[test]
fn a_list_of_cameras_in_a_later_file_replaces_the_earlier_list() {
    let machine = Machine::new()
        .file("[[camera]]\nid = \"a\"\nsource = \"test\"\n[[camera]]\nid = \"b\"")
        .drop_in("only.toml", "[[camera]]\nid = \"c\"");
    let ids: Vec<String> = machine.load().unwrap().cameras.iter().map(|camera| camera.id.to_string()).collect();
    assert_eq!(ids, ["c"]);
}

#[test]
fn a_variable_is_read_as_the_type_its_key_has() {
    let machine = Machine::new().variable("EDGECAM__DEVICE__ID", "0123").variable("EDGECAM__ICE__UDP_PORT", "0");
    let config = machine.load().unwrap();
    assert_eq!((config.device.as_str(), config.media.udp_port), ("0123", 0));
}

#[test]
fn other_programs_variables_are_none_of_our_business() {
    let machine = Machine::new().variable("EDGECAMERA_HOME", "/x").variable("PATH", "/bin").variable("OTHER__X", "1");
    assert!(machine.load().is_ok());
}

#[test]
fn state_is_kept_where_the_owner_says_else_where_systemd_says() {
    let state_dir = |machine: &Machine| machine.load().unwrap().state_dir;
    let systemd = |folders: &str| Machine::new().variable("STATE_DIRECTORY", folders);
    assert_eq!(state_dir(&Machine::new()), Path::new("/var/lib/edgecam"));
    assert_eq!(state_dir(&systemd("/var/lib/private/cam:/var/lib/more")), Path::new("/var/lib/private/cam"));
    let given = systemd("/var/lib/cam").file("[device]\nstate_dir = \"/srv/cam\"");
    assert_eq!(state_dir(&given), Path::new("/srv/cam"));
    let complaint = Machine::new().file("[device]\nstate_dir = \"state\"").complaint();
    assert!(complaint.contains("device.state_dir") && complaint.contains("whole path"), "{complaint}");
}

#[test]
fn a_host_name_is_made_fit_to_be_a_device_id() {
    for (host_name, id) in [
        ("frontdoor", "frontdoor"),
        ("frontdoor.example.org", "frontdoor"),
        ("-tür 1-", "t-r-1"),
        ("", "edgecam"),
        ("---", "edgecam"),
    ] {
        let mut machine = Machine::new();
        machine.sources.host_name = host_name.into();
        assert_eq!(machine.load().unwrap().device, id);
    }
}

#[test]
fn a_secret_is_looked_for_among_systemds_credentials_first() {
    let credentials = TempDir::new().unwrap();
    let machine = Machine::new()
        .file(&turn("secret_file = \"turn-secret\""))
        .secret("turn-secret", "next to the file", 0o600)
        .variable("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap());
    assert_eq!(turn_secret(&machine), "next to the file");

    fs::write(credentials.path().join("turn-secret"), "from systemd\n").unwrap();
    assert_eq!(turn_secret(&machine), "from systemd");
}

#[test]
fn the_packages_unit_hands_over_a_whole_folder_of_secrets() {
    // systemd names each file of a folder after the folder's credential: systemd.exec(5), "LoadCredential=".
    let credentials = TempDir::new().unwrap();
    fs::write(credentials.path().join("secrets_turn-secret"), "from systemd\n").unwrap();
    let machine = Machine::new().file(&turn("secret_file = \"turn-secret\""));
    fs::create_dir(machine.path("secrets")).unwrap();
    let machine = machine.secret("secrets/turn-secret", "in the folder", 0o600);
    assert_eq!(turn_secret(&machine), "in the folder");
    let machine = machine.variable("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap());
    assert_eq!(turn_secret(&machine), "from systemd");
}

#[test]
fn a_secret_that_others_can_read_is_warned_of() {
    let machine = Machine::new().file("[auth]\ntoken_key_file = \"key\"").secret("key", &KEY.repeat(2), 0o640);
    let warnings = machine.load().unwrap().warnings;
    let key = machine.path("key");
    assert_eq!(warnings[1..], [format!("{0} can be read by other users; run: chmod go= {0}", key.display())]);
}

#[test]
fn with_a_token_key_any_address_may_be_listened_on() {
    let file = "[http]\nlisten = \"0.0.0.0:8080\"\n[auth]\ntoken_key_file = \"key\"";
    let config = Machine::new().file(file).secret("key", &KEY.repeat(2), 0o600).load().unwrap();
    assert!(matches!(config.access.rule, Rule::Key(_)));
}

#[test]
fn with_the_owners_word_anyone_may_watch() {
    let file = "[http]\nlisten = \"[::]:8080\"\n[auth]\nanyone_may_watch = true";
    assert!(matches!(Machine::new().file(file).load().unwrap().access.rule, Rule::Open));
}

#[test]
fn every_loopback_address_needs_no_token() {
    for listen in ["127.0.0.1:80", "127.1.2.3:0", "[::1]:8080", "[::ffff:127.0.0.1]:8080", "localhost:8080"] {
        let machine = Machine::new().variable("EDGECAM__HTTP__LISTEN", listen);
        assert!(machine.load().is_ok(), "{listen}");
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let machine =
        Machine::new().file("[http]\nlisten = \"x\"\n[log]\nlevel = \"loud\"\n[[camera]]\nid = \"a\"\nfps = 0");
    let Err(ConfigError::Invalid(problems)) = machine.load() else { panic!("it was taken") };
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["http.listen", "log.level", "camera[0].fps"]);
    let said = machine.complaint();
    assert!(said.starts_with("3 settings are wrong:\n  http.listen: "), "{said}");
}

#[test]
fn a_missing_file_is_an_error_only_if_it_was_named() {
    let mut machine = Machine::new();
    machine.sources.config = Some(machine.path("absent.toml"));
    assert_eq!(
        machine.complaint(),
        "cannot read absent.toml; see that it exists and that edgecam may read it: No such file or directory (os error 2)"
    );
}

#[test]
fn a_file_that_is_not_toml_is_shown_where_it_breaks() {
    let complaint = Machine::new().file("[http]\nlisten = 127.0.0.1").complaint();
    assert!(
        complaint.starts_with("edgecam.toml is not a TOML file: TOML parse error at line 2, column"),
        "{complaint}"
    );
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    for file in [
        "[http]\nmax_connections = \"hunter2\"",
        "[auth]\ntoken_key = \"hunter2\"",
        "[[camera]]\nid = \"a\"\nsource = \"rtsp://user:hunter2@camera\"",
        "[[camera]]\nid = \"a\"\nsource = \"http://user:hunter2@camera\"",
    ] {
        let complaint = Machine::new().file(file).complaint();
        assert!(!complaint.contains("hunter2"), "{complaint}");
    }
    let complaint = Machine::new().variable("EDGECAM__AUTH__PASSWORD", "hunter2").complaint();
    assert!(!complaint.contains("hunter2"), "{complaint}");
}

#[test]
fn secrets_are_not_in_the_configurations_debug_text() {
    let machine = Machine::new()
        .file(&format!("{}\n[auth]\ntoken_key_file = \"key\"", turn("secret_file = \"turn-secret\"")))
        .secret("key", &"hunter2 ".repeat(8), 0o600)
        .secret("turn-secret", "hunter2", 0o600);
    let text = format!("{:?}", machine.load().unwrap());
    let bytes = format!("{:?}", "hunter2".as_bytes());
    assert!(!text.contains("hunter2") && !text.contains(bytes.trim_matches(['[', ']'])), "{text}");
}

/// `[mqtt]` with these lines, on a machine where anyone may watch.
fn with_broker(lines: &str) -> Machine {
    Machine::new().file(&format!("[auth]\nanyone_may_watch = true\n[mqtt]\n{lines}"))
}

#[test]
fn without_a_url_there_is_no_broker() {
    assert!(Machine::new().load().unwrap().mqtt.is_none());
    assert!(with_broker("url = \"\"\nprefix = \"home/cams\"").load().unwrap().mqtt.is_none());
}

#[test]
fn a_brokers_url_has_a_port_by_its_scheme() {
    for (url, host, port) in [
        ("mqtt://broker.example.org", "broker.example.org", 1883),
        ("mqtt://192.168.1.5:1884/", "192.168.1.5", 1884),
        ("mqtt://[fd00::2]", "fd00::2", 1883),
        ("mqtt://[fd00::2]:1885", "fd00::2", 1885),
        ("mqtt://localhost:18830", "localhost", 18830),
    ] {
        let mqtt = with_broker(&format!("url = \"{url}\"")).load().unwrap().mqtt.unwrap();
        assert_eq!((mqtt.host.as_str(), mqtt.port, mqtt.tls.is_none()), (host, port, true), "{url}");
    }
}

#[test]
fn tls_is_spoken_with_whoever_the_ca_file_vouches_for() {
    let authority = rcgen::generate_simple_self_signed(vec!["broker.example.org".into()]).unwrap();
    let machine = with_broker("url = \"mqtts://broker.example.org\"\nca_file = \"ca.pem\"");
    let mqtt = machine.secret("ca.pem", &authority.cert.pem(), 0o644).load().unwrap().mqtt.unwrap();
    assert_eq!((mqtt.port, mqtt.tls.is_some()), (8883, true));
}

#[test]
fn a_password_that_travels_in_clear_text_is_warned_of() {
    let at = |host: &str| {
        let lines = format!("url = \"mqtt://{host}\"\nusername = \"frontdoor\"\npassword_file = \"password\"");
        with_broker(&lines).secret("password", "hunter2\n", 0o600).load().unwrap()
    };
    let config = at("broker.example.org");
    assert_eq!(config.mqtt.as_ref().unwrap().password, "hunter2");
    assert!(config.warnings.iter().any(|warning| warning.contains("clear text")), "{:?}", config.warnings);
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!at("127.0.0.1").warnings.iter().any(|warning| warning.contains("clear text")));
}

#[test]
fn what_is_wrong_with_the_broker_is_said_with_the_remedy() {
    for (lines, key, words) in [
        ("url = \"broker\"", "url", "write mqtts://"),
        ("url = \"mqtt://\"", "url", "write mqtts://"),
        ("url = \"mqtt://broker/topic\"", "url", "write mqtts://"),
        ("url = \"mqtt://broker:0\"", "url", "1 to 65535"),
        ("url = \"mqtt://broker:99999\"", "url", "1 to 65535"),
        ("url = \"mqtt://[fd00::2\"", "url", "write mqtts://"),
        ("url = \"tcp://broker\"", "url", "write mqtt://"),
        ("url = \"wss://broker\"", "url", "mqtts:// port"),
        ("url = \"mqtt://me:hunter2@broker\"", "url", "password_file"),
        ("username = \"me\"", "username", "goes with url"),
        ("home_assistant = true", "home_assistant", "goes with url"),
        ("url = \"mqtt://broker\"\npassword_file = \"x\"", "username", "goes with password_file"),
        ("url = \"mqtt://broker\"\nca_file = \"x\"", "ca_file", "mqtts://"),
        ("url = \"mqtt://broker\"\nprefix = \"a/+\"", "prefix", "one to three names"),
        ("url = \"mqtt://broker\"\nprefix = \"a/b/c/d\"", "prefix", "one to three names"),
        ("url = \"mqtt://broker\"\ndiscovery_prefix = \"\"", "discovery_prefix", "one to three names"),
        ("url = \"mqtt://broker\"\npage_url = \"frontdoor\"", "page_url", "https://"),
        ("url = \"mqtts://broker\"\nca_file = \"absent\"", "ca_file", "cannot be read"),
        ("url = \"mqtts://broker\"\nca_file = \"edgecam.toml\"", "ca_file", "BEGIN CERTIFICATE"),
        ("url = \"mqtts://broker\"\nclient_cert_file = \"x\"", "client_key_file", "goes with client_cert_file"),
    ] {
        let complaint = with_broker(lines).complaint();
        assert!(complaint.starts_with(&format!("mqtt.{key}: ")), "{lines}: {complaint}");
        assert!(complaint.contains(words) && !complaint.contains("hunter2"), "{lines}: {complaint}");
    }
}

/// What stands in the file, and the whole of what is said about it.
const BAD_FILES: &[(&str, &str)] = &[
    // Keys that are not there.
    ("[htpt]", "htpt: there is no such key; did you mean http? (in edgecam.toml)"),
    ("[http]\nlisen = 1", "http.lisen: there is no such key; did you mean listen? (in edgecam.toml)"),
    ("listen = \"x\"", "listen: there is no such key here; did you mean http.listen? (in edgecam.toml)"),
    (
        "[[camera]]\nid = \"a\"\nmax_kbps = 5",
        "camera[0].max_kbps: there is no such key here; did you mean camera.encoder.max_kbps? (in edgecam.toml)",
    ),
    (
        "[auth]\nx = 1",
        "auth.x: there is no such key; here may stand: anyone_may_watch, token_key_file (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.encoder]\nkeyframe_interval = 2",
        "camera[0].encoder.keyframe_interval: there is no such key; did you mean keyframe_interval_s? (in edgecam.toml)",
    ),
    (
        "[mqtt]\npassword = \"x\"",
        "mqtt.password: secrets stand in files of their own; name the file with password_file (in edgecam.toml)",
    ),
    (
        "[ice]\nservers = [{ urls = [\"turn:x\"], credential = \"x\" }]",
        "ice.servers[0].credential: secrets stand in files of their own; name the file with credential_file (in edgecam.toml)",
    ),
    // Types.
    (
        "[ice]\nudp_port = 8189.7",
        "ice.udp_port: a number with a point was found, a whole number is wanted (in edgecam.toml)",
    ),
    (
        "[http]\nlisten = true",
        "http.listen: true or false was found, text is wanted; put it in quotes (in edgecam.toml)",
    ),
    (
        "[http]\nmax_connections = \"64\"",
        "http.max_connections: text was found, a whole number is wanted; take the quotes away (in edgecam.toml)",
    ),
    (
        "[ice]\nadvertise = \"203.0.113.7\"",
        "ice.advertise: text was found, a list is wanted; put it in [ ] (in edgecam.toml)",
    ),
    ("[camera]\nid = \"a\"", "camera: a section was found, a list is wanted; write [[camera]] (in edgecam.toml)"),
    (
        "[[camera]]\nid = \"a\"\n[camera.controls]\nbrightness = 0.5",
        "camera[0].controls.brightness: a number with a point was found, a whole number is wanted (in edgecam.toml)",
    ),
    // Values.
    (
        "[device]\nid = \"front door\"",
        "device.id: \"front door\" cannot be a name; 1 to 64 of the characters a-z A-Z 0-9 _ - (in edgecam.toml)",
    ),
    (
        "[http]\nlisten = \"8080\"",
        "http.listen: \"8080\" is not an address and port; write 127.0.0.1:8080 for this machine only, \
         0.0.0.0:8080 or [::]:8080 for all (in edgecam.toml)",
    ),
    (
        "[http]\nlisten = \"0.0.0.0:8080\"",
        "http.listen: 0.0.0.0:8080 can be reached from other machines, and nothing asks who watches; \
         set auth.token_key_file, or auth.anyone_may_watch = true if that is what you want (in edgecam.toml)",
    ),
    ("[http]\nmax_connections = 0", "http.max_connections: 0 is outside 1 to 10000 (in edgecam.toml)"),
    (
        "[http]\nmax_connections_per_address = 100",
        "http.max_connections_per_address: 100 is above max_connections (64); lower it or raise max_connections \
         (in edgecam.toml)",
    ),
    ("[http]\nbody_timeout_s = 600", "http.body_timeout_s: 600 is outside 1 to 60 seconds (in edgecam.toml)"),
    (
        "[http]\nallowed_origins = [\"https://panel.example.org/\"]",
        "http.allowed_origins: \"https://panel.example.org/\" is not an origin; write it like \
         https://panel.example.org, without a path (in edgecam.toml)",
    ),
    ("[ice]\nudp_port = 70000", "ice.udp_port: 70000 is outside 0 to 65535 (in edgecam.toml)"),
    ("[ice]\nudp_port = -1", "ice.udp_port: -1 is outside 0 to 65535 (in edgecam.toml)"),
    (
        "[ice]\nadvertise = [\"home.example.org\"]",
        "ice.advertise: \"home.example.org\" is not an address; write 203.0.113.7 or 203.0.113.7:8189, not a host name \
         (in edgecam.toml)",
    ),
    (
        "[ice]\nadvertise = [\"0.0.0.0\"]",
        "ice.advertise: 0.0.0.0 is no address that viewers can reach (in edgecam.toml)",
    ),
    (
        "[ice]\ninterfaces = [\"eth0 wlan0\"]",
        "ice.interfaces: \"eth0 wlan0\" cannot be a network interface; write names like eth0 (in edgecam.toml)",
    ),
    (
        "[ice]\nservers = [{}]",
        "ice.servers[0].urls: missing; write urls = [\"turn:turn.example.org:3478\"] (in edgecam.toml)",
    ),
    (
        "[ice]\nservers = [{ urls = [\"turn.example.org\"] }]",
        "ice.servers[0].urls: \"turn.example.org\" does not begin with stun:, stuns:, turn: or turns: (in edgecam.toml)",
    ),
    (
        "[ice]\nservers = [{ urls = [\"turn:x\"] }]",
        "ice.servers[0].secret_file: missing; a TURN server wants secret_file, or username and credential_file \
         (in edgecam.toml)",
    ),
    (
        "[ice]\nservers = [{ urls = [\"turn:x\"], username = \"u\" }]",
        "ice.servers[0].credential_file: missing; it goes with username (in edgecam.toml)",
    ),
    (
        "[ice]\nservers = [{ urls = [\"turn:x\"], secret_file = \"absent\" }]",
        "ice.servers[0].secret_file: the secret in absent cannot be read: No such file or directory (os error 2) \
         (in edgecam.toml)",
    ),
    (
        "[auth]\ntoken_key_file = \"short\"",
        "auth.token_key_file: the token key has 5 bytes, too few to be safe; make one of 32 or more: \
         openssl rand -base64 32 (in edgecam.toml)",
    ),
    ("[auth]\ntoken_key_file = \"empty\"", "auth.token_key_file: empty is empty (in edgecam.toml)"),
    (
        "[auth]\ntoken_key_file = \"short\"\nanyone_may_watch = true",
        "auth.anyone_may_watch: contradicts auth.token_key_file; remove one of them (in edgecam.toml)",
    ),
    ("[limits]\nnegotiation_s = 0", "limits.negotiation_s: 0 is outside 1 to 60 seconds (in edgecam.toml)"),
    (
        "[limits]\nkeyframe_gap_ms = 1",
        "limits.keyframe_gap_ms: 1 is outside 100 to 10000 milliseconds (in edgecam.toml)",
    ),
    ("[log]\nformat = \"xml\"", "log.format: \"xml\" is not one of auto, text, json, journald (in edgecam.toml)"),
    (
        "[log]\nlevel = \"verbose\"",
        "log.level: \"verbose\" is not a log level; write error, warn, info, debug or trace, and after it single modules \
         if need be: info,edgecam::publisher=debug (in edgecam.toml)",
    ),
    ("camera = []", "camera: the list is empty; add a [[camera]] (in edgecam.toml)"),
    (
        "[[camera]]\nfps = 30",
        "camera[0].id: every camera needs one; 1 to 64 of the characters a-z A-Z 0-9 _ - (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"tür\"",
        "camera[0].id: \"tür\" cannot be a name; 1 to 64 of the characters a-z A-Z 0-9 _ - (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"ws\"",
        "camera[0].id: ws is a path of edgecam's own on the page's address; choose another name (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\nsource = \"test\"\n[[camera]]\nid = \"a\"",
        "camera[1].id: a is the id of another camera too; give each its own (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[[camera]]\nid = \"b\"",
        "camera[1].source: camera a has this source too, and only one can open it (in edgecam.toml)",
    ),
    ("[[camera]]\nid = \"a\"\nsource = \"/dev/video0\"", "camera[0].source: write v4l2:/dev/video0 (in edgecam.toml)"),
    (
        "[[camera]]\nid = \"a\"\nsource = \"v4l2:video0\"",
        "camera[0].source: \"video0\" is not a whole path; write v4l2:/… (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\nsource = \"rtsp://x\"",
        "camera[0].source: RTSP is not part of this version yet (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\nsource = \"webcam\"",
        "camera[0].source: not a source; write auto, test, v4l2:/dev/video0 or clip:/path/to/file.h264 (in edgecam.toml)",
    ),
    ("[[camera]]\nid = \"a\"\nfps = 0", "camera[0].fps: 0 is outside 1 to 120 pictures a second (in edgecam.toml)"),
    ("[[camera]]\nid = \"a\"\nfps = 240", "camera[0].fps: 240 is outside 1 to 120 pictures a second (in edgecam.toml)"),
    (
        "[[camera]]\nid = \"a\"\nwidth = 1281",
        "camera[0].width: 1281 is odd; H.264 video has an even number of pixels, write 1280 (in edgecam.toml)",
    ),
    ("[[camera]]\nid = \"a\"\nheight = 9999", "camera[0].height: 9999 is outside 32 to 4320 pixels (in edgecam.toml)"),
    (
        "[[camera]]\nid = \"a\"\nmax_viewers = 4294967296",
        "camera[0].max_viewers: 4294967296 is outside 1 to 1000 (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.encoder]\nmin_kbps = 3000",
        "camera[0].encoder.min_kbps: 3000 is above max_kbps (2500); lower it or raise max_kbps (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.encoder]\nmax_kbps = 30000",
        "camera[0].encoder.max_kbps: 30000 is outside 25 to 25000 kbit/s (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.encoder]\nkeyframe_interval_s = 0",
        "camera[0].encoder.keyframe_interval_s: 0 is outside 1 to 60 seconds (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\nfps = 1\n[camera.encoder]\nkeyframe_interval_s = 1",
        "camera[0].encoder.keyframe_interval_s: makes every picture a keyframe at 1 picture a second, which some encoders \
         hang on; raise one of them (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.low]\nwidth = 641",
        "camera[0].low.width: 641 is odd; H.264 video has an even number of pixels, write 640 (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.low]\nheight = 720",
        "camera[0].low.height: 720 is not below the camera's own height (720); lower it, or write 0 for half (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.low]\nwidth = 16",
        "camera[0].low.width: 16 is outside 32 to 7680 pixels (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.low]\nmin_kbps = 600",
        "camera[0].low.min_kbps: 600 is above max_kbps (500); lower it or raise max_kbps (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.low]\nmin_kbps = 10",
        "camera[0].low.min_kbps: 10 is outside 25 to 25000 kbit/s (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.encoder]\nprefer = \"gpu\"",
        "camera[0].encoder.prefer: \"gpu\" is not one of auto, hardware, software, passthrough (in edgecam.toml)",
    ),
    (
        "[[camera]]\nid = \"a\"\n[camera.controls]\n\"White Balance\" = 1",
        "camera[0].controls.White Balance: cannot be a control; `edgecam devices` lists their names, like \
         white_balance_temperature (in edgecam.toml)",
    ),
];

#[test]
fn what_is_wrong_in_a_file_is_said_with_key_place_and_remedy() {
    for (file, expected) in BAD_FILES {
        let machine = Machine::new().file(file).secret("short", "short", 0o600).secret("empty", "\n", 0o600);
        assert_eq!(machine.complaint(), *expected, "of\n{file}");
    }
}

/// A variable, and the whole of what is said about it.
const BAD_VARIABLES: &[(&str, &str, &str)] = &[
    (
        "EDGECAM_LOG_LEVEL",
        "debug",
        "EDGECAM_LOG_LEVEL: edgecam does not read this name; did you mean EDGECAM__LOG__LEVEL? (in the environment)",
    ),
    (
        "edgecam__log__level",
        "debug",
        "edgecam__log__level: edgecam does not read this name; did you mean EDGECAM__LOG__LEVEL? (in the environment)",
    ),
    (
        "EDGECAM_CONFIG",
        "x",
        "EDGECAM_CONFIG: edgecam does not read this name; settings are EDGECAM__SECTION__KEY, with two underscores \
         (in the environment)",
    ),
    (
        "EDGECAM__LOG__LEVL",
        "debug",
        "log.levl: there is no such key; did you mean level? (in the variable EDGECAM__LOG__LEVL)",
    ),
    ("EDGECAM__ICE__UDP_PORT", "8189.5", "ice.udp_port: not a whole number (in the variable EDGECAM__ICE__UDP_PORT)"),
    (
        "EDGECAM__AUTH__ANYONE_MAY_WATCH",
        "yes",
        "auth.anyone_may_watch: neither true nor false (in the variable EDGECAM__AUTH__ANYONE_MAY_WATCH)",
    ),
    (
        "EDGECAM__CAMERA__0__ID",
        "front",
        "camera.0.id: lists can only be set in a file (in the variable EDGECAM__CAMERA__0__ID)",
    ),
    (
        "EDGECAM__ICE__ADVERTISE",
        "203.0.113.7",
        "ice.advertise: lists can only be set in a file (in the variable EDGECAM__ICE__ADVERTISE)",
    ),
    ("EDGECAM__HTTP", "x", "http: this is a section; name a key in it (in the variable EDGECAM__HTTP)"),
    (
        "EDGECAM__MQTT__URL",
        "mqtt://x",
        "mqtt.url: whoever may speak with the broker can watch, and nothing asks who that is; set auth.token_key_file, \
         or auth.anyone_may_watch = true if the broker's own access rules are enough for you \
         (in the variable EDGECAM__MQTT__URL)",
    ),
    (
        "EDGECAM__HTTP__LISTEN",
        "0.0.0.0:80",
        "http.listen: 0.0.0.0:80 can be reached from other machines, and nothing asks who watches; \
         set auth.token_key_file, or auth.anyone_may_watch = true if that is what you want \
         (in the variable EDGECAM__HTTP__LISTEN)",
    ),
];

#[test]
fn what_is_wrong_with_a_variable_is_said_with_its_name() {
    for (name, value, expected) in BAD_VARIABLES {
        assert_eq!(Machine::new().variable(name, value).complaint(), *expected, "of {name}={value}");
    }
}

#[test]
fn what_is_wrong_in_a_drop_in_names_that_file() {
    let machine = Machine::new().file("[http]").drop_in("50-ports.toml", "[ice]\nudp_port = 99999");
    assert_eq!(machine.complaint(), "ice.udp_port: 99999 is outside 0 to 65535 (in conf.d/50-ports.toml)");
}

#[test]
fn what_is_wrong_in_a_flag_names_the_flag() {
    let machine = Machine::new().flag("--log-level", "log.level", "loud");
    assert!(machine.complaint().ends_with("(in the flag --log-level)"), "{}", machine.complaint());
}

#[test]
fn what_holds_is_shown_with_where_it_was_set() {
    let machine = Machine::new()
        .file("[ice]\nadvertise = [\"203.0.113.7\"]\n[[camera]]\nid = \"a\"\n[camera.controls]\nbrightness = 7")
        .variable("EDGECAM__LOG__LEVEL", "debug");
    let shown = Config::show(&machine.sources).unwrap().replace(&format!("{}/", machine.folder.path().display()), "");
    for lines in [
        "\n[ice]\nadvertise = [\"203.0.113.7\"]  # in edgecam.toml\n",
        "\n[[camera]]\nfps = 30  # by default\n",
        "\n[camera.controls]\nbrightness = 7  # in edgecam.toml\n",
        "\nlevel = \"debug\"  # in the variable EDGECAM__LOG__LEVEL\n",
        "\nallowed_origins = []  # by default\n",
    ] {
        assert!(shown.contains(lines), "{lines:?} is missing in\n{shown}");
    }
    let again = Machine::new().file(&shown);
    assert_eq!(Config::show(&again.sources).unwrap().lines().count(), shown.lines().count());
}

#[test]
fn every_example_in_the_manual_is_understood() {
    let manual = include_str!("../docs/configuration.md");
    let examples: Vec<&str> = manual.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() > 4);
    for example in examples {
        let machine = ["token-key", "mqtt-password", "turn-secret", "turn-password"]
            .into_iter()
            .fold(Machine::new().file(example), |machine, name| machine.secret(name, &KEY.repeat(2), 0o600));
        machine.load().unwrap_or_else(|error| panic!("{error}\nin\n{example}"));
    }
}

const KEY: &str = "0123456789abcdef";

fn turn(credentials: &str) -> String {
    format!("[ice]\nservers = [{{ urls = [\"turn:turn.example.org:3478\"], {credentials} }}]")
}

fn turn_secret(machine: &Machine) -> String {
    match &machine.load().unwrap().ice_servers[0].credentials {
        Credentials::Shared { secret } => String::from_utf8(secret.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A machine made up for one test: a folder in place of /etc/edgecam, and an environment.
struct Machine {
    folder: TempDir,
    sources: Sources,
}

impl Machine {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let sources = Sources {
            config: None,
            default_config: folder.path().join("edgecam.toml"),
            environment: BTreeMap::new(),
            flags: Vec::new(),
            host_name: "frontdoor".into(),
        };
        Self { folder, sources }
    }

    fn file(self, text: &str) -> Self {
        self.write("edgecam.toml", text)
    }

    fn drop_in(self, name: &str, text: &str) -> Self {
        fs::create_dir_all(self.path("conf.d")).unwrap();
        self.write(&format!("conf.d/{name}"), text)
    }

    fn secret(self, name: &str, text: &str, mode: u32) -> Self {
        let machine = self.write(name, text);
        fs::set_permissions(machine.path(name), fs::Permissions::from_mode(mode)).unwrap();
        machine
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.insert(name.into(), value.into());
        self
    }

    fn flag(mut self, name: &'static str, key: &'static str, value: &str) -> Self {
        self.sources.flags.push(Flag { name, key, value: value.into() });
        self
    }

    fn write(self, name: &str, text: &str) -> Self {
        fs::write(self.path(name), text).unwrap();
        self
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.sources)
    }

    /// What the owner reads, with the folder left out of paths.
    fn complaint(&self) -> String {
        let error = anyhow::Error::from(self.load().expect_err("it was taken"));
        format!("{error:#}").replace(&format!("{}/", self.folder.path().display()), "")
    }
}
