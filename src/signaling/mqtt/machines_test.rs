//! Pictures on their way to the broker. No broker is needed here.

use tokio::sync::{mpsc, watch};

use super::super::super::access::Rule;
use super::super::super::still::Stills;
use super::super::broker::Unplugged;
use super::super::tests::{front, links, message};
use super::super::topics::Topics;
use super::*;
use crate::core::trigger::Happening;

const STILL: &str = "edgecam/frontdoor/cam/front/still";
const EVENT: &str = "edgecam/frontdoor/cam/front/event";

struct Device {
    link: Link,
    broker: Unplugged,
    switched_off: watch::Sender<std::collections::BTreeSet<CameraId>>,
}

impl Device {
    /// Connected, and all that is retained has been said.
    fn new() -> Self {
        let switched_off = watch::Sender::default();
        let stills = Stills::new(Arc::new(|_| Err("no decoder".into())), switched_off.subscribe());
        let links = Arc::new(super::super::Links { stills, ..links(Rule::Open, mpsc::channel(4).0) });
        let settings = super::super::tests::settings();
        let topics = Topics::new("edgecam", "frontdoor");
        let link = Link::new(links, topics, settings, mpsc::channel(1).0, mpsc::channel(1).0);
        let mut device = Self { link, broker: Unplugged::new(), switched_off };
        device.link.handle_line(Some(device.broker.line.clone()));
        device.link.send_waiting();
        device.broker.sends();
        device.broker.acknowledges();
        device
    }

    /// A still is ready; its answer goes to `rsp/<name>`.
    fn has_still(&mut self, name: &str) {
        let outcome = Ok(Some(Bytes::from_static(b"a jpeg")));
        let what = What::Still.slug();
        self.link.handle_outcome(Outcome { camera: front(), id: None, what, to: Some(to(name)), outcome });
        self.link.send_waiting();
    }

    /// What is handed over next.
    fn hands_over(&mut self) -> Vec<String> {
        self.link.send_waiting();
        let queued = self.broker.queued();
        self.broker.sends();
        queued
    }
}

fn to(name: &str) -> ReplyTo {
    ReplyTo { topic: format!("rsp/{name}"), correlation: None }
}

#[test]
fn one_still_is_on_its_way_at_a_time_and_what_is_said_passes_those_that_wait() {
    let mut device = Device::new();
    for name in ["a", "b", "c", "d"] {
        device.has_still(name);
    }
    // The first is published, two wait, and the fourth is one too many.
    assert_eq!(device.hands_over(), [STILL, "rsp/a", "rsp/d", EVENT]);
    device.link.say(to("viewer"), "an answer".into());
    assert_eq!(device.hands_over(), ["rsp/viewer"]);
    assert_eq!(device.hands_over(), [""; 0], "the first is not acknowledged yet");
    device.broker.acknowledges();
    assert_eq!(device.hands_over(), [STILL, "rsp/b"]);
    device.broker.acknowledges();
    assert_eq!(device.hands_over(), [STILL, "rsp/c"]);
}

#[test]
fn a_still_is_told_to_be_taken_when_it_is_published_and_not_before() {
    let mut device = Device::new();
    let mut events = device.link.links.events.subscribe();
    device.has_still("a");
    let taken = events.try_recv().unwrap();
    assert_eq!((taken.camera, taken.happening), (front(), Happening::StillTaken));
    device.has_still("b");
    device.switched_off.send_replace([front()].into());
    device.link.send_waiting();
    assert!(events.try_recv().is_err(), "the second never left");
}

#[test]
fn a_still_waits_until_nothing_stands_before_it() {
    let mut device = Device::new();
    device.link.say(to("viewer"), "an answer".into());
    device.has_still("a");
    assert_eq!(device.hands_over(), ["rsp/viewer"]);
    assert_eq!(device.hands_over(), [STILL, "rsp/a"]);
}

#[test]
fn a_still_that_waits_when_the_switch_goes_off_does_not_leave() {
    let mut device = Device::new();
    device.has_still("a");
    device.has_still("b");
    device.has_still("c");
    assert_eq!(device.hands_over(), [STILL, "rsp/a"]);
    device.broker.acknowledges();
    device.switched_off.send_replace([front()].into());
    assert_eq!(device.hands_over(), ["rsp/b", EVENT, "rsp/c", EVENT]);
    device.switched_off.send_replace([].into());
    assert_eq!(device.hands_over(), [""; 0], "it was taken before");
}

#[test]
fn a_still_that_is_ready_after_the_switch_went_off_does_not_leave() {
    let mut device = Device::new();
    device.switched_off.send_replace([front()].into());
    device.has_still("a");
    assert_eq!(device.hands_over(), ["rsp/a", EVENT]);
}

#[test]
fn correlation_data_that_is_too_long_is_not_kept() {
    let device = Device::new();
    let correlation = |bytes: usize| {
        let response_topic = Some("edgecam/frontdoor/rsp/bell".into());
        let asked = Incoming { response_topic, correlation: Some(vec![7; bytes].into()), ..message("") };
        device.link.answer_to(&asked).unwrap().correlation.map(|data| data.len())
    };
    assert_eq!((correlation(256), correlation(257)), (Some(256), None));
}
