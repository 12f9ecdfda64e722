//! Offer, answer and goodbye through the broker, for clients of both versions.

use std::net::{IpAddr, Ipv4Addr};

use edgecam::probe::{Connection, Ended};
use serde_json::json;

use super::broker::Broker;
use super::client::{Client, Extras};
use super::daemon::{Daemon, DaemonPlan};
use super::viewing::{Watching, answered, offer_message, said};

#[tokio::test]
async fn a_viewer_with_mqtt_5_sees_pictures_and_names_where_answers_go() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    let responses = daemon.topic("rsp/anna/tablet");
    anna.subscribes(&responses).await;
    let (mut connection, offer) = Connection::offer(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).await.unwrap();
    let extras = Extras {
        response_topic: Some(responses.clone()),
        correlation: Some("seventeen".into()),
        expiry_s: Some(30),
        ..Extras::default()
    };
    anna.publishes_with(&daemon.topic("rpc/anna"), said(&offer_message("1", "s", &offer)), extras).await;
    let answer = anna.hears(&responses).await;
    assert_eq!(answer.correlation.as_deref(), Some(&b"seventeen"[..]));
    assert!(!answer.retained);
    assert!(answer.expiry_s.is_some_and(|left| left <= 30), "{answer:?}");
    let answer = answer.json();
    assert_eq!((&answer["id"], &answer["session"]), (&json!("1"), &json!("s")));
    connection.accept(answered(&answer)).await.unwrap();
    let watching = Watching::of(connection).await;
    watching.sees(15).await;

    anna.publishes(&daemon.topic("rpc/anna"), said(&json!({ "v": 1, "type": "bye", "session": "s" }))).await;
    assert_eq!(watching.sees_the_end().await, Ended::Closed);
}

#[tokio::test]
async fn a_viewer_with_mqtt_3_1_1_sees_pictures() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut old = Client::comes_with_3_1_1(broker.port(), "old").await;
    let watching = Watching::by_mqtt(&mut old, &daemon, "old").await;
    watching.sees(15).await;
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn a_hello_is_answered_with_what_a_viewer_needs_to_know() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    anna.publishes(&daemon.topic("rpc/anna"), said(&json!({ "v": 1, "id": "1", "type": "hello" }))).await;
    let welcome = anna.hears_json(&daemon.topic("rsp/anna")).await;
    assert_eq!((&welcome["type"], &welcome["id"]), (&json!("welcome"), &json!("1")), "{welcome}");
    assert_eq!((&welcome["device"], &welcome["cameras"]), (&json!("frontdoor"), &json!(["front"])), "{welcome}");
    anna.publishes(&daemon.topic("rpc/anna"), said(&json!({ "v": 1, "id": "2", "type": "ping" }))).await;
    assert_eq!(anna.hears_json(&daemon.topic("rsp/anna")).await, json!({ "v": 1, "id": "2", "type": "pong" }));
}

#[tokio::test]
async fn an_offer_delivered_twice_is_one_session() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    let (mut connection, offer) = Connection::offer(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).await.unwrap();
    let message = said(&offer_message("1", "s", &offer));
    anna.publishes(&daemon.topic("rpc/anna"), message.clone()).await;
    anna.publishes(&daemon.topic("rpc/anna"), message).await;
    let answer = anna.hears_json(&daemon.topic("rsp/anna")).await;
    connection.accept(answered(&answer)).await.unwrap();
    let watching = Watching::of(connection).await;
    watching.sees(5).await;
    assert_eq!(daemon.camera("front").await["viewers"], 1);
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn candidates_may_come_after_the_offer() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    let (mut connection, offer) = Connection::offer(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).await.unwrap();
    let is_candidate = |line: &&str| line.starts_with("a=candidate:");
    let bare: String = offer.split_inclusive("\r\n").filter(|line| !is_candidate(line)).collect();
    let candidates: Vec<&str> = offer.lines().filter(is_candidate).collect();
    assert!(!candidates.is_empty() && bare.len() < offer.len());
    anna.publishes(&daemon.topic("rpc/anna"), said(&offer_message("1", "s", &bare))).await;
    let answer = anna.hears_json(&daemon.topic("rsp/anna")).await;
    connection.accept(answered(&answer)).await.unwrap();
    for line in candidates {
        let candidate = json!({ "candidate": line.trim_start_matches("a="), "sdpMid": "0", "sdpMLineIndex": 0 });
        let message = json!({ "v": 1, "type": "candidate", "session": "s", "candidate": candidate });
        anna.publishes(&daemon.topic("rpc/anna"), said(&message)).await;
    }
    let last = json!({ "v": 1, "type": "candidate", "session": "s", "candidate": null });
    anna.publishes(&daemon.topic("rpc/anna"), said(&last)).await;
    Watching::of(connection).await.has_lost_nothing().await;
}

#[tokio::test]
async fn what_cannot_be_understood_is_answered_with_its_clear_error() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    for (message, code) in [
        ("{", "not-json"),
        (r#"{"v":9,"type":"ping"}"#, "unknown-version"),
        (r#"{"v":1,"type":"dance"}"#, "unknown-type"),
        (r#"{"v":1,"type":"bye","session":5}"#, "bad-field"),
    ] {
        anna.publishes(&daemon.topic("rpc/anna"), message).await;
        let error = anna.hears_json(&daemon.topic("rsp/anna")).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{error}");
    }
}

#[tokio::test]
async fn no_answer_goes_where_a_viewer_has_no_business() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    // Everything: whatever the device says, and where.
    anna.subscribes("#").await;
    for elsewhere in [
        "edgecam/frontdoor/status",
        "edgecam/frontdoor/rsp/berta",
        "edgecam/garden/rsp/anna",
        "edgecam/frontdoor/rsp/../status",
        "homeassistant/status",
        "edgecam/frontdoor/rpc/anna",
    ] {
        let extras = Extras {
            response_topic: Some(elsewhere.to_owned()),
            correlation: Some("elsewhere".into()),
            ..Extras::default()
        };
        let ping = said(&json!({ "v": 1, "id": elsewhere, "type": "ping" }));
        anna.publishes_with(&daemon.topic("rpc/anna"), ping, extras).await;
    }
    // One that is good comes last; what the device said before it is here by then.
    anna.publishes(&daemon.topic("rpc/anna"), said(&json!({ "v": 1, "id": "good", "type": "ping" }))).await;
    loop {
        let message = anna.hears_anything().await;
        if message.topic == daemon.topic("rpc/anna") || message.retained {
            continue;
        }
        assert!(!message.text().contains("pong") || message.topic == daemon.topic("rsp/anna"), "{message:?}");
        if message.text().contains("good") {
            break;
        }
    }
}

#[tokio::test]
async fn where_tokens_are_needed_an_offer_brings_its_own() {
    let broker = Broker::open().await;
    let daemon = Daemon::with(DaemonPlan {
        auth: "token_key_file = \"token-key\"\n".to_owned(),
        files: vec![("token-key", "a key for tests only, of 32 bytes and more".to_owned())],
        ..DaemonPlan::new(&broker.url())
    })
    .await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    let responses = daemon.topic("rsp/anna");
    anna.subscribes(&responses).await;
    // The device's own account of its link needs a token here, so its presence tells that it is there.
    anna.subscribes(&daemon.topic("status")).await;
    anna.hears_that(&daemon.topic("status"), |status| status.text() == "online").await;

    let (mut connection, offer) = Connection::offer(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).await.unwrap();
    let mut message = offer_message("1", "s", &offer);
    anna.publishes(&daemon.topic("rpc/anna"), said(&message)).await;
    assert_eq!(anna.hears_json(&responses).await["code"], "token-needed");
    message["token"] = json!("a.b.c");
    anna.publishes(&daemon.topic("rpc/anna"), said(&message)).await;
    assert_eq!(anna.hears_json(&responses).await["code"], "token-invalid");
    message["token"] = json!(daemon.token(&["--camera", "front"]));
    message["id"] = json!("2");
    anna.publishes(&daemon.topic("rpc/anna"), said(&message)).await;
    let answer = anna.hears_json(&responses).await;
    connection.accept(answered(&answer)).await.unwrap();
    Watching::of(connection).await.has_lost_nothing().await;

    // What one viewer may, another may not for that.
    let mut berta = Client::comes(broker.port(), "berta").await;
    berta.subscribes(&daemon.topic("rsp/berta")).await;
    berta.publishes(&daemon.topic("rpc/berta"), said(&offer_message("1", "s", &offer))).await;
    assert_eq!(berta.hears_json(&daemon.topic("rsp/berta")).await["code"], "token-needed");
}
