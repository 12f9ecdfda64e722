//! The topics of one device, built and read. Nothing here talks to a broker.
//!
//! ```text
//! <prefix>/<device>/status                    <prefix>/<device>/cam/<cam>/state
//! <prefix>/<device>/info                      <prefix>/<device>/cam/<cam>/trigger, /still, /event
//! <prefix>/<device>/rpc/<client>, /rsp/…      <prefix>/<device>/cam/<cam>/enabled/set, /enabled/state
//! ```

use crate::core::signal::{CameraId, is_name, is_path};

/// Levels below `rsp/` that a Response Topic may have.
const MAX_RESPONSE_LEVELS: usize = 3;

/// The topics of one device.
#[derive(Clone, Debug)]
pub struct Topics {
    /// `<prefix>/<device>`
    base: String,
}

/// What a message is for, by its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// A viewer's message; the name of the client.
    Rpc(&'a str),
    Trigger(CameraId),
    EnabledSet(CameraId),
}

impl Topics {
    pub fn new(prefix: &str, device: &str) -> Self {
        Self { base: format!("{prefix}/{device}") }
    }

    pub(super) fn status(&self) -> String {
        self.below("status")
    }

    pub(super) fn info(&self) -> String {
        self.below("info")
    }

    pub(super) fn rpc(&self, client: &str) -> String {
        format!("{}/rpc/{client}", self.base)
    }

    pub fn rsp(&self, client: &str) -> String {
        format!("{}/rsp/{client}", self.base)
    }

    pub(super) fn state(&self, camera: &CameraId) -> String {
        self.camera(camera.as_str(), "state")
    }

    pub(super) fn enabled_state(&self, camera: &CameraId) -> String {
        self.camera(camera.as_str(), "enabled/state")
    }

    pub(super) fn enabled_set(&self, camera: &CameraId) -> String {
        self.camera(camera.as_str(), "enabled/set")
    }

    pub(super) fn trigger(&self, camera: &CameraId) -> String {
        self.camera(camera.as_str(), "trigger")
    }

    pub(super) fn still(&self, camera: &CameraId) -> String {
        self.camera(camera.as_str(), "still")
    }

    pub(super) fn event(&self, camera: &CameraId) -> String {
        self.camera(camera.as_str(), "event")
    }

    /// What the device listens to.
    pub(super) fn filters(&self) -> Vec<String> {
        vec![self.rpc("+"), self.camera("+", "trigger"), self.camera("+", "enabled/set")]
    }

    /// Everything below which this device ever leaves something with the broker.
    pub(super) fn retained_filters(&self) -> Vec<String> {
        vec![self.status(), self.info(), self.camera("+", "state"), self.camera("+", "enabled/state")]
    }

    /// `None`: not a topic that we listen to, or with a name that cannot be one.
    pub fn parse<'a>(&self, topic: &'a str) -> Option<Purpose<'a>> {
        let rest = topic.strip_prefix(&self.base)?.strip_prefix('/')?;
        if let Some(client) = rest.strip_prefix("rpc/") {
            return is_name(client).then_some(Purpose::Rpc(client));
        }
        let (camera, kind) = rest.strip_prefix("cam/")?.split_once('/')?;
        let camera = CameraId::new(camera).ok()?;
        match kind {
            "trigger" => Some(Purpose::Trigger(camera)),
            "enabled/set" => Some(Purpose::EnabledSet(camera)),
            _ => None,
        }
    }

    /// Whether an answer may be sent there: below our own `rsp/` only, else anybody could make us write anywhere that the
    /// broker lets us write.
    pub fn is_response_topic(&self, topic: &str) -> bool {
        self.below_rsp(topic).is_some()
    }

    /// The same for a viewer's answer: at its own level or below it, so that nobody has answers sent to others.
    pub fn is_response_topic_of(&self, client: &str, topic: &str) -> bool {
        self.below_rsp(topic).is_some_and(|path| path.split('/').next() == Some(client))
    }

    fn below_rsp<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let path = topic.strip_prefix(&self.base)?.strip_prefix("/rsp/")?;
        is_path(path, MAX_RESPONSE_LEVELS).then_some(path)
    }

    fn below(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    fn camera(&self, camera: &str, name: &str) -> String {
        format!("{}/cam/{camera}/{name}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topics() -> Topics {
        Topics::new("edgecam", "frontdoor")
    }

    fn front() -> CameraId {
        CameraId::new("front").unwrap()
    }

    #[test]
    fn each_topic_we_listen_to_is_told_by_its_purpose() {
        let topics = topics();
        assert_eq!(topics.parse("edgecam/frontdoor/rpc/kitchen"), Some(Purpose::Rpc("kitchen")));
        assert_eq!(topics.parse(&topics.trigger(&front())), Some(Purpose::Trigger(front())));
        assert_eq!(topics.parse(&topics.enabled_set(&front())), Some(Purpose::EnabledSet(front())));
    }

    #[test]
    fn everything_else_is_nothing_to_us() {
        for topic in [
            "",
            "edgecam",
            "edgecam/frontdoor",
            "edgecam/frontdoor/",
            "edgecam/frontdoors/rpc/a",
            "edgecam/frontdoor/rpc/",
            "edgecam/frontdoor/rpc/a/b",
            "edgecam/frontdoor/rpc/ä",
            "edgecam/frontdoor/rsp/a",
            "edgecam/frontdoor/cam/front",
            "edgecam/frontdoor/cam//trigger",
            "edgecam/frontdoor/cam/front/enabled/state",
            "edgecam/frontdoor/cam/front/trigger/",
            "other/frontdoor/rpc/a",
        ] {
            assert_eq!(topics().parse(topic), None, "{topic}");
        }
    }

    #[test]
    fn answers_go_below_our_own_rsp_only() {
        let topics = topics();
        for good in ["edgecam/frontdoor/rsp/bell", "edgecam/frontdoor/rsp/bell/answers/7"] {
            assert!(topics.is_response_topic(good), "{good}");
        }
        for bad in [
            "edgecam/frontdoor/rsp",
            "edgecam/frontdoor/rsp/",
            "edgecam/frontdoor/rsp//a",
            "edgecam/frontdoor/rsp/+",
            "edgecam/frontdoor/rsp/a/#",
            "edgecam/frontdoor/rsp/a/b/c/d",
            "edgecam/frontdoor/rsp/../status",
            "edgecam/frontdoor/status",
            "edgecam/other/rsp/a",
            "homeassistant/status",
        ] {
            assert!(!topics.is_response_topic(bad), "{bad}");
        }
    }

    #[test]
    fn a_viewer_is_answered_at_its_own_level() {
        let topics = topics();
        assert!(topics.is_response_topic_of("a", "edgecam/frontdoor/rsp/a"));
        assert!(topics.is_response_topic_of("a", "edgecam/frontdoor/rsp/a/7"));
        assert!(!topics.is_response_topic_of("a", "edgecam/frontdoor/rsp/b"));
        assert!(!topics.is_response_topic_of("a", "edgecam/frontdoor/rsp/ab"));
    }

    #[test]
    fn no_topic_has_more_slashes_than_aws_iot_takes() {
        let topics = Topics::new("a/b/c", "frontdoor");
        for topic in [topics.enabled_state(&front()), topics.trigger(&front()), topics.rsp("x"), topics.status()] {
            assert!(topic.matches('/').count() <= 7, "{topic}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_topic_a_client_is_a_name(topic in "(edgecam/frontdoor/)?(rpc|rsp|cam)?/?.{0,80}") {
            if let Some(Purpose::Rpc(client)) = topics().parse(&topic) {
                prop_assert!(is_name(client));
            }
        }

        #[test]
        fn no_response_topic_leaves_rsp(topic in ".{0,80}") {
            let topics = topics();
            if topics.is_response_topic(&topic) {
                prop_assert!(topic.starts_with("edgecam/frontdoor/rsp/"));
                prop_assert!(!topic.contains(['+', '#', '\0']));
            }
        }
    }
}
