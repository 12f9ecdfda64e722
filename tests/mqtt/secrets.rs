//! Secrets with feathers: put into every place that takes one, and looked for wherever the program says anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use edgecam::config::{Config, Sources};
use edgecam::probe::Connection;
use serde_json::json;

use super::broker::{Broker, BrokerPlan, BrokerTls, PATIENCE};
use super::certificates::Authority;
use super::client::{Client, trusting};
use super::daemon::{Daemon, DaemonPlan, FRONT, edgecam};
use super::viewing::{Watching, answered, offer_message, said};

const PASSWORD: &str = "canary-mqtt-password";
const TOKEN_KEY: &str = "canary-token-key-that-has-32-bytes-and-more";
const TURN_SECRET: &str = "canary-turn-secret";
const TURN_PASSWORD: &str = "canary-turn-password";
/// An address that only this viewer's candidate has.
const VIEWER_ADDRESS: &str = "203.0.113.77";

/// Everything our own code and the libraries can be made to say.
const LOUDEST: &str = "trace,rumqttc=trace,rustls=trace,rtc=trace,webrtc=trace,hyper=trace,axum=trace,ureq=trace";

#[tokio::test]
async fn no_secret_is_ever_said_and_viewers_are_not_talked_about() {
    let authority = Authority::new("house");
    let server = authority.server("localhost");
    let broker = Broker::with(BrokerPlan {
        users: vec![("frontdoor".into(), PASSWORD.into()), ("anna".into(), "word".into())],
        tls: Some(BrokerTls {
            ca: authority.pem().to_owned(),
            certificate: server.certificate,
            key: server.key,
            asks_for_certificates: false,
        }),
        ..BrokerPlan::default()
    })
    .await;
    let identity = authority.client("frontdoor");
    let client_key = identity.key.clone();
    let mut daemon = Daemon::with(DaemonPlan {
        mqtt: format!(
            "url = \"{}\"\nusername = \"frontdoor\"\npassword_file = \"password\"\nca_file = \"ca.pem\"\n\
             client_cert_file = \"client.pem\"\nclient_key_file = \"client.key\"\n",
            broker.tls_url()
        ),
        auth: "token_key_file = \"token-key\"\n".to_owned(),
        rest: format!(
            "[[ice.servers]]\nurls = [\"turn:turn.example.org:3478\"]\nsecret_file = \"turn-secret\"\n\
             [[ice.servers]]\nurls = [\"turn:turn2.example.org:3478\"]\nusername = \"edgecam\"\n\
             credential_file = \"turn-password\"\n{FRONT}"
        ),
        files: vec![
            ("password", PASSWORD.to_owned()),
            ("token-key", TOKEN_KEY.to_owned()),
            ("turn-secret", TURN_SECRET.to_owned()),
            ("turn-password", TURN_PASSWORD.to_owned()),
            ("ca.pem", authority.pem().to_owned()),
            ("client.pem", identity.certificate),
            ("client.key", identity.key),
        ],
        log_level: LOUDEST,
        ..DaemonPlan::new("")
    })
    .await;
    let token = daemon.token(&["--camera", "front"]);

    let mut options = trusting(authority.pem(), broker.tls_port());
    options.set_client_id("anna".to_owned());
    options.set_credentials("anna", "word");
    let mut anna = Client::with(options).await.unwrap();
    let (requests, responses) = (daemon.topic("rpc/anna"), daemon.topic("rsp/anna"));
    anna.subscribes(&daemon.topic("status")).await;
    anna.subscribes(&responses).await;
    anna.hears_that(&daemon.topic("status"), |status| status.text() == "online").await;

    // A token that is good, ones that are not, and each where it does not belong.
    anna.publishes(&requests, said(&json!({ "v": 1, "type": "hello", "token": token }))).await;
    let welcome = anna.hears_json(&responses).await;
    assert_eq!(welcome["type"], "welcome");
    let turn_password = welcome["ice_servers"][0]["credential"].as_str().unwrap().to_owned();
    let broken = format!("{token}canary");
    anna.publishes(&requests, said(&json!({ "v": 1, "type": "hello", "token": broken }))).await;
    assert_eq!(anna.hears_json(&responses).await["type"], "error");
    anna.publishes(&requests, format!("{{\"v\":1,\"type\":\"hello\",\"token\":[\"{token}\"]")).await;
    assert_eq!(anna.hears_json(&responses).await["type"], "error");

    let (mut connection, offer) = Connection::offer(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).await.unwrap();
    let candidate = format!("a=candidate:7 1 udp 2130706431 {VIEWER_ADDRESS} 50000 typ host\r\n");
    let mut message = offer_message("1", "s", &(offer + &candidate));
    message["token"] = json!(token);
    anna.publishes(&requests, said(&message)).await;
    let answer = anna.hears_json(&responses).await;
    connection.accept(answered(&answer)).await.unwrap();
    let watching = Watching::of(connection).await;
    anna.publishes(&requests, said(&offer_message("2", "t", &format!("nonsense {VIEWER_ADDRESS}")))).await;
    assert_eq!(anna.hears_json(&responses).await["type"], "error");
    watching.has_lost_nothing().await;

    let mut said_anywhere = daemon.get_with_token("/metrics", &token).await;
    said_anywhere += &daemon.get_with_token("/api/cameras", &token).await;
    said_anywhere += &daemon.get_with_token("/healthz", &token).await;
    for command in [&["config", "show"][..], &["check"]] {
        let config = daemon.config();
        let output = edgecam(&[command, &["--config", &config]].concat());
        assert!(output.status.success(), "{output:?}");
        write!(said_anywhere, "{output:?}").unwrap();
    }
    // What a bug report or a panic would show.
    let config = Some(daemon.config().into());
    let loaded = Config::load(&Sources { environment: BTreeMap::new(), ..Sources::of_this_process(config, vec![]) });
    assert!(loaded.is_ok(), "{loaded:?}");
    write!(said_anywhere, "{loaded:?}\n{loaded:#?}").unwrap();

    let log = daemon.log();
    assert!(log.contains("TRACE"), "the log is not as loud as this test believes");
    said_anywhere += &log;
    // The next one does not come in, and complains.
    std::fs::write(daemon.folder().join("password"), "canary-wrong-password").unwrap();
    assert!(daemon.stop().await.success());
    daemon.start().await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while !daemon.log()[log.len()..].contains("password") {
        assert!(std::time::Instant::now() < deadline, "no complaint about the password");
        super::broker::pause().await;
    }
    let log = daemon.log();
    said_anywhere += &log;

    let key_lines: Vec<&str> = client_key.lines().filter(|line| !line.starts_with("-----")).collect();
    let secrets = [PASSWORD, "canary-wrong-password", TOKEN_KEY, TURN_SECRET, TURN_PASSWORD, &token, &turn_password];
    for secret in secrets.into_iter().chain(key_lines) {
        for form in forms(secret) {
            let place = said_anywhere.lines().find(|line| line.contains(&form));
            assert!(place.is_none(), "{secret} is said: {place:?}");
        }
    }
    for line in log.lines().filter(|line| !line.contains("DEBUG") && !line.contains("TRACE")) {
        for word in [VIEWER_ADDRESS, "candidate:", "ufrag", "a=fingerprint", "v=0", "eyJ"] {
            assert!(!line.contains(word), "{word} is no matter for everybody: {line}");
        }
    }
}

/// As it is, and as programs like to print bytes.
fn forms(secret: &str) -> [String; 3] {
    let bytes = secret.as_bytes();
    let hex = bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let list = format!("{bytes:?}");
    [secret.to_owned(), hex, list.trim_matches(['[', ']']).to_owned()]
}
