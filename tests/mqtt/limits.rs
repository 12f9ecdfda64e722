//! Brokers that take less than others.

use serde_json::json;

use super::broker::{Broker, BrokerPlan};
use super::client::{Client, Extras, Message};
use super::daemon::Daemon;
use super::viewing::said;

const STATUS: &str = "edgecam/frontdoor/status";

fn says(word: &'static str) -> impl Fn(&Message) -> bool {
    move |message| message.text() == word
}

#[tokio::test]
async fn a_still_that_the_broker_does_not_take_is_refused_and_costs_no_connection() {
    let broker = Broker::with(BrokerPlan { lines: "max_packet_size 1500".into(), ..BrokerPlan::default() }).await;
    let daemon = Daemon::at(&broker).await;
    let mut bell = Client::comes(broker.port(), "bell").await;
    for topic in [daemon.topic("rsp/bell"), daemon.topic("cam/front/still"), "bell".into()] {
        bell.subscribes(&topic).await;
    }
    let extras = Extras { response_topic: Some(daemon.topic("rsp/bell")), ..Extras::default() };
    let trigger = r#"{"v":1,"id":"photo","action":"still"}"#;
    bell.publishes_with(&daemon.topic("cam/front/trigger"), trigger, extras).await;
    let answer = bell.hears_json(&daemon.topic("rsp/bell")).await;
    assert_eq!((&answer["id"], &answer["code"]), (&json!("photo"), &json!("too-large")), "{answer}");
    assert!(answer["message"].as_str().is_some_and(|words| words.contains("1500")), "{answer}");
    assert_eq!(bell.has_heard_by_now("bell").await, []);
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 1.0);
    assert_eq!(daemon.metric("edgecam_mqtt_failures_total", "").await, 0.0);
}

#[tokio::test]
async fn a_broker_without_acknowledgements_is_served_without() {
    let broker = Broker::with(BrokerPlan { listener_lines: "max_qos 0".into(), ..BrokerPlan::default() }).await;
    let mut daemon = Daemon::at(&broker).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(STATUS).await;
    anna.hears_that(STATUS, says("online")).await;
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    let ping = said(&json!({ "v": 1, "id": "1", "type": "ping" }));
    anna.publishes_lightly(&daemon.topic("rpc/anna"), ping).await;
    assert_eq!(anna.hears_json(&daemon.topic("rsp/anna")).await["type"], "pong");
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 1.0);
    daemon.kill();
    anna.hears_that(STATUS, says("offline")).await;
}

#[tokio::test]
async fn a_broker_that_keeps_nothing_is_served_and_that_is_said() {
    let broker = Broker::with(BrokerPlan { lines: "retain_available false".into(), ..BrokerPlan::default() }).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(STATUS).await;
    let mut daemon = Daemon::at(&broker).await;
    assert!(!anna.hears_that(STATUS, says("online")).await.retained);
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    anna.publishes(&daemon.topic("rpc/anna"), said(&json!({ "v": 1, "id": "1", "type": "ping" }))).await;
    assert_eq!(anna.hears_json(&daemon.topic("rsp/anna")).await["type"], "pong");
    let log = daemon.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("keeps no messages")), "{log}");
    daemon.kill();
    anna.hears_that(STATUS, says("offline")).await;
}
