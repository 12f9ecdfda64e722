//! What everybody may know of a device without asking it.

use serde_json::{Value, json};

use super::broker::Broker;
use super::client::{Client, Extras, Message};
use super::daemon::{Daemon, DaemonPlan, edgecam};
use super::viewing::Watching;

fn says(word: &'static str) -> impl Fn(&Message) -> bool {
    move |message| message.text() == word
}

#[tokio::test]
async fn a_device_is_online_then_offline_when_its_plug_is_pulled() {
    let broker = Broker::open().await;
    let mut house = Client::comes(broker.port(), "house").await;
    house.subscribes("edgecam/frontdoor/status").await;
    let mut daemon = Daemon::at(&broker).await;
    house.hears_that("edgecam/frontdoor/status", says("online")).await;
    daemon.kill();
    house.hears_that("edgecam/frontdoor/status", says("offline")).await;
    // Kept for who comes later, until the device is back.
    let mut late = Client::comes(broker.port(), "late").await;
    late.subscribes("edgecam/frontdoor/status").await;
    let status = late.hears("edgecam/frontdoor/status").await;
    assert_eq!((status.text(), status.retained), ("offline", true));
    daemon.start().await;
    house.hears_that("edgecam/frontdoor/status", says("online")).await;
}

#[tokio::test]
async fn a_device_that_is_told_to_stop_says_so() {
    let broker = Broker::open().await;
    let mut house = Client::comes(broker.port(), "house").await;
    house.subscribes("edgecam/frontdoor/status").await;
    let mut daemon = Daemon::at(&broker).await;
    house.hears_that("edgecam/frontdoor/status", says("online")).await;
    assert!(daemon.stop().await.success());
    assert_eq!(house.hears("edgecam/frontdoor/status").await.text(), "stopped");
    // The broker does not make an `offline` of it: the goodbye was orderly.
    let mut late = Client::comes(broker.port(), "late").await;
    late.subscribes("edgecam/frontdoor/status").await;
    assert_eq!(late.hears("edgecam/frontdoor/status").await.text(), "stopped");
}

#[tokio::test]
async fn who_comes_late_finds_info_and_states() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    has_said_everything(&broker, &daemon).await;
    let mut late = Client::comes(broker.port(), "late").await;
    late.subscribes("edgecam/#").await;
    let info = late.hears(&daemon.topic("info")).await;
    assert!(info.retained);
    let info = info.json();
    assert_eq!(
        (&info["v"], &info["versions"], &info["device"]),
        (&json!(1), &json!([1]), &json!("frontdoor")),
        "{info}"
    );
    assert_eq!((&info["cameras"][0]["id"], &info["codecs"]), (&json!("front"), &json!(["H264"])), "{info}");
    let state = late.hears(&daemon.topic("cam/front/state")).await;
    assert!(state.retained);
    let state = state.json();
    assert_eq!((&state["v"], &state["live"], &state["viewers"]), (&json!(1), &json!(false), &json!(0)), "{state}");
    let enabled = late.hears(&daemon.topic("cam/front/enabled/state")).await;
    assert_eq!((enabled.text(), enabled.retained), ("ON", true));
}

#[tokio::test]
async fn a_viewer_shows_in_the_cameras_state_and_so_does_its_leaving() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut house = Client::comes(broker.port(), "house").await;
    let state = daemon.topic("cam/front/state");
    house.subscribes(&state).await;
    let watching = Watching::by_whep(&daemon).await;
    let live =
        house.hears_that(&state, |state| state.json()["viewers"] == 1 && state.json()["state"] == "running").await;
    let shown = live.json();
    assert_eq!((&shown["live"], &shown["width"]), (&json!(true), &json!(160)), "{live:?}");
    assert_eq!((&shown["fps"], &shown["error"]), (&json!(15), &Value::Null), "{live:?}");
    watching.has_lost_nothing().await;
    let left = house.hears_that(&state, |state| state.json()["viewers"] == 0 && state.json()["live"] == false).await;
    assert_eq!(left.json()["enabled"], true);
}

#[tokio::test]
async fn everything_is_said_again_to_a_broker_that_forgot_it() {
    let mut broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    broker.restart().await;
    // The first try after a loss comes within a second or two.
    daemon.reaches("edgecam_mqtt_connects_total", "", 2.0, super::broker::PATIENCE).await;
    let mut late = Client::comes(broker.port(), "late").await;
    late.subscribes("edgecam/#").await;
    late.hears_that(&daemon.topic("status"), says("online")).await;
    late.hears(&daemon.topic("info")).await;
    late.hears(&daemon.topic("cam/front/state")).await;
    assert_eq!(late.hears(&daemon.topic("cam/front/enabled/state")).await.text(), "ON");
    // And it listens again.
    Watching::by_mqtt(&mut late, &daemon, "late").await.has_lost_nothing().await;
}

#[tokio::test]
async fn a_device_that_is_to_be_forgotten_leaves_nothing_behind() {
    let broker = Broker::open().await;
    let plan =
        DaemonPlan { mqtt: format!("url = \"{}\"\nhome_assistant = true\n", broker.url()), ..DaemonPlan::new("") };
    let mut daemon = Daemon::with(plan).await;
    daemon.is_linked().await;
    let announcement = "homeassistant/device/edgecam_frontdoor/config";
    let mut house = Client::comes(broker.port(), "house").await;
    house.subscribes(announcement).await;
    assert_eq!(house.hears(announcement).await.json()["device"]["name"], "frontdoor");
    // A camera that was taken out of the configuration since.
    let left = Extras { retain: true, ..Extras::default() };
    house.publishes_with("edgecam/frontdoor/cam/garden/state", "{}", left).await;
    daemon.stop().await;
    let config = daemon.config();
    let output = tokio::task::spawn_blocking(move || edgecam(&["mqtt", "forget", "--config", &config])).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("edgecam/frontdoor/cam/garden/state"), "{output:?}");
    let mut late = Client::comes(broker.port(), "late").await;
    late.subscribes("edgecam/#").await;
    late.subscribes("homeassistant/#").await;
    assert_eq!(late.has_heard_by_now("edgecam/x").await, []);
}

#[tokio::test]
async fn a_device_is_announced_again_when_home_assistant_comes_back() {
    let broker = Broker::open().await;
    let plan =
        DaemonPlan { mqtt: format!("url = \"{}\"\nhome_assistant = true\n", broker.url()), ..DaemonPlan::new("") };
    let daemon = Daemon::with(plan).await;
    has_said_everything(&broker, &daemon).await;
    let announcement = "homeassistant/device/edgecam_frontdoor/config";
    let mut house = Client::comes(broker.port(), "house").await;
    house.subscribes(announcement).await;
    assert!(house.hears(announcement).await.retained);
    house.publishes("homeassistant/status", "online").await;
    assert!(!house.hears(announcement).await.retained);
}

/// A device says last that it is there; the broker keeps everything from then on.
async fn has_said_everything(broker: &Broker, daemon: &Daemon) {
    let mut witness = Client::comes(broker.port(), "witness").await;
    witness.subscribes(&daemon.topic("status")).await;
    witness.hears_that(&daemon.topic("status"), says("online")).await;
}
