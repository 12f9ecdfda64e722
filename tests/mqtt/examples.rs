//! The programs of `docs/examples/mqtt`, run as they are written there, on the broker that stands beside them.

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;

use super::daemon::{Daemon, DaemonPlan};
use super::documented::{Documented, EXAMPLES, password};
use super::triggers::size_of_jpeg;

/// What the examples' reader has: the broker, the device, and a folder with options and secrets.
struct Reader {
    house: Documented,
    daemon: Daemon,
    home: TempDir,
}

impl Reader {
    async fn starts() -> Self {
        let house = Documented::starts().await;
        let mut plan = DaemonPlan::new(&house.url());
        plan.mqtt += "username = \"frontdoor\"\npassword_file = \"password\"\nca_file = \"ca.pem\"\n";
        plan.files.push(("password", password("frontdoor")));
        plan.files.push(("ca.pem", house.authority.pem().to_owned()));
        plan.auth = "token_key_file = \"token-key\"\n".to_owned();
        plan.files.push(("token-key", "a key for tests only, of 32 bytes and more".to_owned()));
        let daemon = Daemon::with(plan).await;
        let mut anna = house.client("anna").await;
        anna.subscribes(&daemon.topic("status")).await;
        anna.hears_that(&daemon.topic("status"), |status| status.text() == "online").await;
        Self { house, daemon, home: TempDir::with_prefix("edgecam-reader-").unwrap() }
    }

    fn is(&self, user: &str) -> Vec<(&'static str, String)> {
        let file = |name: &str, text: &str| {
            let path = self.home.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let broker = &self.house.broker;
        let ca = broker.folder().join("ca.pem").to_str().unwrap().to_owned();
        let options = format!(
            "--host localhost\n--port {}\n--username {user}\n--pw {}\n--cafile {ca}\n",
            broker.port(),
            password(user)
        );
        file("mosquitto_rr", &options);
        file("mosquitto_sub", &options);
        vec![
            ("XDG_CONFIG_HOME", self.home.path().to_str().unwrap().to_owned()),
            ("USERNAME", user.to_owned()),
            ("DEVICE", "frontdoor".to_owned()),
            ("CAMERA", "front".to_owned()),
            ("MQTT_URL", format!("mqtts://{user}@localhost:{}", broker.port())),
            ("MQTT_PASSWORD_FILE", file("password", &password(user))),
            ("MQTT_CA_FILE", ca),
            ("TOKEN_FILE", file("token", &self.daemon.token(&["--camera", "front"]))),
        ]
    }

    async fn runs(&self, program: &str, arguments: &[&str], user: &str) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).envs(self.is(user)).current_dir(EXAMPLES);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        eprintln!("{program}: {output:?}");
        output
    }
}

#[tokio::test]
async fn the_wake_script_opens_the_camera_and_prints_the_answer() {
    let reader = Reader::starts().await;
    let mut house = reader.house.client("house").await;
    let events = reader.daemon.topic("cam/front/event");
    house.subscribes(&events).await;
    let output = reader.runs("./wake.sh", &["5"], "bell").await;
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("\"type\":\"done\""));
    let woken = house.hears_that(&events, |event| event.json()["event"] == "woken").await.json();
    assert!(woken["trigger"].as_str().unwrap().starts_with("bell-"), "{woken}");
}

#[tokio::test]
async fn the_wake_script_fails_when_it_is_refused() {
    let reader = Reader::starts().await;
    let output = reader.runs("./wake.sh", &["100000"], "bell").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("bad-field"));
}

#[tokio::test]
async fn the_still_script_writes_a_jpeg() {
    let reader = Reader::starts().await;
    let file = reader.home.path().join("still.jpg");
    let output = reader.runs("./still.sh", &[file.to_str().unwrap()], "house").await;
    assert!(output.status.success());
    assert_eq!(size_of_jpeg(&fs::read(file).unwrap()), Some((160, 96)));
}

/// An implementation of MQTT and of WebRTC that shares nothing with ours.
#[tokio::test]
async fn the_python_viewer_sees_a_picture() {
    let reader = Reader::starts().await;
    let python = tokio::task::spawn_blocking(|| {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mqtt/python")).output().unwrap()
    });
    let python = python.await.unwrap();
    assert!(python.status.success(), "no Python with paho-mqtt and aiortc: {python:?}");
    let python = String::from_utf8(python.stdout).unwrap();
    let output = reader.runs(python.trim_end(), &["viewer.py", "frontdoor", "front"], "anna").await;
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("answer after") && said.contains("first picture after") && said.contains("160x96"), "{said}");
}
