//! Machines that open, photograph and shut cameras.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::broker::{Broker, PATIENCE, pause};
use super::client::{Client, Extras};
use super::daemon::{Daemon, DaemonPlan};
use super::viewing::{Watching, said};

/// A sensor that hears its answers and the camera's events.
struct Bell {
    client: Client,
    daemon: Daemon,
}

impl Bell {
    async fn at(broker: &Broker) -> Self {
        Self::of(broker, Daemon::at(broker).await).await
    }

    /// With a clip for a camera.
    async fn at_clip(broker: &Broker, clip: &Path) -> Self {
        let camera = format!("[[camera]]\nid = \"front\"\nsource = \"clip:{}\"\nlinger_s = 1\n", clip.display());
        let daemon = Daemon::with(DaemonPlan { rest: camera, ..DaemonPlan::new(&broker.url()) }).await;
        daemon.is_linked().await;
        Self::of(broker, daemon).await
    }

    async fn of(broker: &Broker, daemon: Daemon) -> Self {
        let mut client = Client::comes(broker.port(), "bell").await;
        client.subscribes(&daemon.topic("rsp/bell")).await;
        client.subscribes(&daemon.topic("cam/front/event")).await;
        Self { client, daemon }
    }

    async fn rings(&mut self, trigger: &str) {
        let extras = Extras {
            response_topic: Some(self.daemon.topic("rsp/bell")),
            correlation: Some("ring".into()),
            ..Extras::default()
        };
        self.client.publishes_with(&self.daemon.topic("cam/front/trigger"), trigger.to_owned(), extras).await;
    }

    async fn hears_answer(&mut self) -> Value {
        let answer = self.client.hears(&self.daemon.topic("rsp/bell")).await;
        assert_eq!(answer.correlation.as_deref(), Some(&b"ring"[..]));
        answer.json()
    }

    /// The next event of this name; those before it are let go.
    async fn hears_event(&mut self, name: &str) -> Value {
        let topic = self.daemon.topic("cam/front/event");
        let event = self.client.hears_that(&topic, |event| event.json()["event"] == name).await;
        assert!(!event.retained);
        event.json()
    }
}

#[tokio::test]
async fn a_bell_wakes_the_camera_and_every_step_after_carries_its_id() {
    let broker = Broker::open().await;
    let mut bell = Bell::at(&broker).await;
    bell.rings(r#"{"v":1,"id":"bell-17","action":"wake","ttl_s":60,"reason":"door bell"}"#).await;
    let done = json!({ "v": 1, "id": "bell-17", "type": "done", "camera": "front", "action": "wake" });
    assert_eq!(bell.hears_answer().await, done);
    let woken = bell.hears_event("woken").await;
    assert_eq!((&woken["v"], &woken["type"], &woken["camera"]), (&json!(1), &json!("event"), &json!("front")));
    assert_eq!(woken["trigger"], "bell-17");
    // Without a viewer.
    let camera = bell.daemon.camera("front").await;
    assert_eq!((&camera["state"], &camera["viewers"]), (&json!("running"), &json!(0)));

    let mut phone = Client::comes(broker.port(), "phone").await;
    let watching = Watching::by_mqtt(&mut phone, &bell.daemon, "phone").await;
    let joined = bell.hears_event("viewer-joined").await;
    assert_eq!((&joined["trigger"], &joined["viewers"]), (&json!("bell-17"), &json!(1)));
    watching.has_lost_nothing().await;
    let left = bell.hears_event("viewer-left").await;
    assert_eq!((&left["trigger"], &left["viewers"]), (&json!("bell-17"), &json!(0)));

    bell.rings(r#"{"v":1,"id":"bell-18","action":"sleep"}"#).await;
    assert_eq!(bell.hears_answer().await["type"], "done");
    bell.hears_event("asleep").await;
    let state = bell.daemon.topic("cam/front/state");
    bell.client.subscribes(&state).await;
    bell.client.hears_that(&state, |state| state.json()["state"] == "idle").await;
}

#[tokio::test]
async fn a_wake_ends_by_itself() {
    let broker = Broker::open().await;
    let mut bell = Bell::at(&broker).await;
    bell.rings(r#"{"v":1,"id":"short","action":"wake","ttl_s":1}"#).await;
    assert_eq!(bell.hears_event("woken").await["trigger"], "short");
    assert_eq!(bell.hears_event("asleep").await["trigger"], "short");
}

#[tokio::test]
async fn a_still_is_a_jpeg_of_the_camera_and_is_not_kept() {
    let broker = Broker::open().await;
    let mut bell = Bell::at(&broker).await;
    let topic = bell.daemon.topic("cam/front/still");
    bell.client.subscribes(&topic).await;
    bell.rings(r#"{"v":1,"id":"photo","action":"still"}"#).await;
    let still = bell.client.hears(&topic).await;
    assert!(!still.retained);
    assert_eq!(size_of_jpeg(&still.payload), Some((160, 96)));
    let answer = bell.hears_answer().await;
    assert_eq!((&answer["type"], &answer["id"]), (&json!("done"), &json!("photo")), "{answer}");
    assert_eq!(bell.hears_event("still-taken").await["trigger"], "photo");
    let mut late = Client::comes(broker.port(), "late").await;
    late.subscribes(&topic).await;
    assert_eq!(late.has_heard_by_now(&topic).await, []);
}

/// The least that is a recording: parameter sets, a keyframe and another picture, of 1280x720.
const CLIP: &[u8] = b"\0\0\0\x01\x67\x42\xc0\x1f\xd9\x00\x50\x05\xbb\x01\x10\x80\0\0\0\x01\x68\xcb\x83\xcb\x20\
    \0\0\0\x01\x65\x88\x84\x21\0\0\0\x01\x41\x9a\x24";

#[tokio::test]
async fn a_camera_that_fails_and_comes_back_says_so_with_the_triggers_id() {
    let broker = Broker::open().await;
    let folder = TempDir::with_prefix("edgecam-clip-").unwrap();
    let clip = folder.path().join("clip.h264");
    let mut bell = Bell::at_clip(&broker, &clip).await;
    let state = bell.daemon.topic("cam/front/state");
    bell.client.subscribes(&state).await;
    bell.rings(r#"{"v":1,"id":"bell-19","action":"wake"}"#).await;
    assert_eq!(bell.hears_answer().await["type"], "done");
    let lost = bell.hears_event("camera-lost").await;
    assert_eq!(lost["trigger"], "bell-19");
    assert!(lost["reason"].as_str().is_some_and(|why| why.contains("clip.h264")), "{lost}");
    let failed = bell.client.hears_that(&state, |state| state.json()["state"] == "failed").await.json();
    assert_eq!(failed["error"], lost["reason"], "{failed}");
    bell.rings(r#"{"v":1,"id":"photo","action":"still"}"#).await;
    let answer = bell.hears_answer().await;
    assert_eq!((&answer["id"], &answer["code"]), (&json!("photo"), &json!("camera-lost")), "{answer}");

    fs::write(folder.path().join("unfinished"), CLIP).unwrap();
    fs::rename(folder.path().join("unfinished"), &clip).unwrap();
    assert_eq!(bell.hears_event("camera-back").await["trigger"], "bell-19");
    assert_eq!(bell.hears_event("woken").await["trigger"], "bell-19");
    let running = bell.client.hears_that(&state, |state| state.json()["state"] == "running").await.json();
    assert_eq!((&running["error"], &running["width"]), (&Value::Null, &json!(1280)), "{running}");
}

#[tokio::test]
async fn of_many_who_want_a_still_at_once_the_ninth_is_told_that_the_device_is_busy() {
    let broker = Broker::open().await;
    let folder = TempDir::with_prefix("edgecam-clip-").unwrap();
    // A camera that opens for ever: nobody writes into it.
    let clip = folder.path().join("clip.h264");
    assert!(Command::new("mkfifo").arg(&clip).status().unwrap().success());
    let mut bell = Bell::at_clip(&broker, &clip).await;
    for number in 1..=9 {
        bell.rings(&format!(r#"{{"v":1,"id":"photo-{number}","action":"still"}}"#)).await;
    }
    let answer = bell.hears_answer().await;
    assert_eq!((&answer["id"], &answer["code"]), (&json!("photo-9"), &json!("busy")), "{answer}");
    assert!(answer["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{answer}");
}

#[tokio::test]
async fn a_camera_that_is_switched_off_is_neither_woken_nor_photographed() {
    let broker = Broker::open().await;
    let mut bell = Bell::at(&broker).await;
    let state = bell.daemon.topic("cam/front/enabled/state");
    bell.client.subscribes(&state).await;
    bell.client.publishes(&bell.daemon.topic("cam/front/enabled/set"), "OFF").await;
    bell.client.hears_that(&state, |state| state.text() == "OFF").await;
    for action in ["wake", "still"] {
        bell.rings(&format!(r#"{{"v":1,"id":"{action}-1","action":"{action}"}}"#)).await;
        let answer = bell.hears_answer().await;
        assert_eq!((&answer["id"], &answer["code"]), (&json!(format!("{action}-1")), &json!("disabled")), "{answer}");
        assert_eq!(bell.hears_event("trigger-refused").await["code"], "disabled");
    }
    assert_eq!(bell.daemon.camera("front").await["state"], "idle");
}

#[tokio::test]
async fn refused_triggers_are_answered_told_to_all_and_counted() {
    let broker = Broker::open().await;
    let mut bell = Bell::at(&broker).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let stale = format!(r#"{{"v":1,"id":"x","action":"wake","at":{}}}"#, now - 300);
    let table = [
        (r#"{"v":1,"id":"x","action":"dance"}"#, "unknown-action"),
        ("ring ring", "not-json"),
        (r#"{"v":2,"id":"x","action":"wake"}"#, "unknown-version"),
        (r#"{"v":1,"id":"x","action":"wake","ttl_s":"long"}"#, "bad-field"),
        (r#"{"v":1,"id":"x","action":"wake","ttl_s":100000}"#, "bad-field"),
        (&stale, "expired"),
    ];
    for (trigger, code) in table {
        bell.rings(trigger).await;
        let answer = bell.hears_answer().await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{trigger}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|words| !words.is_empty()), "{answer}");
        if code != "not-json" {
            assert_eq!(answer["id"], "x", "{answer}");
        }
    }
    let refused = bell.hears_event("trigger-refused").await;
    assert_eq!(refused["code"], "unknown-action", "{refused}");
    let counted = bell.daemon.metric("edgecam_mqtt_messages_dropped_total", "reason=\"refused\"").await;
    assert!(counted >= table.len() as f64, "{counted}");
    assert_eq!(bell.daemon.camera("front").await["state"], "idle");
}

#[tokio::test]
async fn a_bell_that_does_not_stop_ringing_is_told_so() {
    let broker = Broker::open().await;
    let mut bell = Bell::at(&broker).await;
    for _ in 0..15 {
        bell.rings(r#"{"v":1,"id":"again","action":"wake","ttl_s":5}"#).await;
    }
    loop {
        let answer = bell.hears_answer().await;
        if answer["type"] == "error" {
            assert_eq!((&answer["code"], &answer["id"]), (&json!("rate-limited"), &json!("again")), "{answer}");
            assert!(answer["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{answer}");
            break;
        }
    }
    assert!(bell.daemon.metric("edgecam_mqtt_messages_dropped_total", "reason=\"rate-limited\"").await >= 1.0);
}

#[tokio::test]
async fn a_trigger_for_a_camera_that_is_not_there_says_so() {
    let broker = Broker::open().await;
    let mut bell = Bell::at(&broker).await;
    let extras = Extras { response_topic: Some(bell.daemon.topic("rsp/bell")), ..Extras::default() };
    let trigger = r#"{"v":1,"id":"lost","action":"wake"}"#;
    bell.client.publishes_with(&bell.daemon.topic("cam/cellar/trigger"), trigger, extras).await;
    let answer = bell.client.hears_json(&bell.daemon.topic("rsp/bell")).await;
    assert_eq!((&answer["id"], &answer["code"]), (&json!("lost"), &json!("no-such-camera")), "{answer}");
}

#[tokio::test]
async fn a_sensor_with_mqtt_3_1_1_wakes_the_camera_too_and_reads_the_events() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut old = Client::comes_with_3_1_1(broker.port(), "old").await;
    let events = daemon.topic("cam/front/event");
    old.subscribes(&events).await;
    let trigger = daemon.topic("cam/front/trigger");
    old.publishes(&trigger, r#"{"v":1,"id":"old-1","action":"wake","ttl_s":5}"#).await;
    old.hears_that(&events, |event| event.json()["event"] == "woken" && event.json()["trigger"] == "old-1").await;
    old.publishes(&trigger, r#"{"v":1,"id":"old-2","action":"dance"}"#).await;
    let refused = old.hears_that(&events, |event| event.json()["event"] == "trigger-refused").await.json();
    assert_eq!((&refused["trigger"], &refused["code"]), (&json!("old-2"), &json!("unknown-action")));
}

#[tokio::test]
async fn the_privacy_switch_ends_sessions_refuses_new_ones_and_survives_a_restart() {
    let broker = Broker::open().await;
    let mut daemon = Daemon::at(&broker).await;
    let mut house = Client::comes(broker.port(), "house").await;
    let (set, state) = (daemon.topic("cam/front/enabled/set"), daemon.topic("cam/front/enabled/state"));
    let events = daemon.topic("cam/front/event");
    house.subscribes(&state).await;
    house.subscribes(&events).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    let watching = Watching::by_mqtt(&mut anna, &daemon, "anna").await;

    house.publishes(&set, "OFF").await;
    house.hears_that(&state, |state| state.text() == "OFF").await;
    watching.sees_the_end().await;
    let bye = anna.hears_that(&daemon.topic("rsp/anna"), |message| message.json()["type"] == "bye").await;
    assert_eq!(bye.json()["reason"], "disabled");
    house.hears_that(&events, |event| event.json()["event"] == "disabled").await;
    refused_as_disabled(&mut anna, &daemon).await;
    // Its pictures ended at once; the device takes a moment to close.
    let deadline = Instant::now() + PATIENCE;
    while daemon.camera("front").await["state"] != "idle" {
        assert!(Instant::now() < deadline, "{}", daemon.camera("front").await);
        pause().await;
    }

    // It is as it was before the plug was pulled, from the first moment on.
    daemon.kill();
    daemon.start().await;
    daemon.is_linked().await;
    refused_as_disabled(&mut anna, &daemon).await;
    let mut late = Client::comes(broker.port(), "late").await;
    late.subscribes(&state).await;
    assert_eq!(late.hears(&state).await.text(), "OFF");

    house.publishes(&set, "perhaps").await;
    house.hears_that(&events, |event| event.json()["event"] == "trigger-refused").await;
    house.publishes(&set, "ON").await;
    house.hears_that(&state, |state| state.text() == "ON").await;
    let watching = Watching::by_mqtt(&mut anna, &daemon, "anna").await;
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn a_switch_that_cannot_be_kept_still_holds() {
    let broker = Broker::open().await;
    // A folder that nobody, not even root, can write into.
    let mut plan = DaemonPlan::new(&broker.url());
    plan.state_dir = Some("/proc/edgecam".to_owned());
    let daemon = Daemon::with(plan).await;
    daemon.is_linked().await;
    let mut house = Client::comes(broker.port(), "house").await;
    let state = daemon.topic("cam/front/enabled/state");
    house.subscribes(&state).await;
    let watching = Watching::by_whep(&daemon).await;
    house.publishes(&daemon.topic("cam/front/enabled/set"), "OFF").await;
    house.hears_that(&state, |state| state.text() == "OFF").await;
    watching.sees_the_end().await;
    let log = daemon.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("/proc/edgecam")), "{log}");
}

async fn refused_as_disabled(client: &mut Client, daemon: &Daemon) {
    // A name that no test watches from, so that no bye of a session stands in between.
    let responses = daemon.topic("rsp/refused");
    client.subscribes(&responses).await;
    let offer = super::viewing::offer_message("again", "again", "v=0\r\n");
    client.publishes(&daemon.topic("rpc/refused"), said(&offer)).await;
    let error = client.hears_json(&responses).await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("disabled")), "{error}");
}

/// Width and height from a JPEG's frame header (ITU-T T.81, B.2.2); `None`: no whole JPEG.
pub fn size_of_jpeg(bytes: &[u8]) -> Option<(u16, u16)> {
    if !bytes.starts_with(&[0xff, 0xd8]) || !bytes.ends_with(&[0xff, 0xd9]) {
        return None;
    }
    let mut at = 2;
    loop {
        let [0xff, marker, high, low] = *bytes.get(at..at + 4)? else { return None };
        if matches!(marker, 0xc0..=0xc2) {
            let [_, _, _, _, _, a, b, c, d] = *bytes.get(at..at + 9)? else { return None };
            return Some((u16::from_be_bytes([c, d]), u16::from_be_bytes([a, b])));
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
}
