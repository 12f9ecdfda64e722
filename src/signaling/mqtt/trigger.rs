//! `cam/<cam>/trigger`: what machines ask of a camera, how often they may, and what they are answered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::super::wire::{self, Fault, Outgoing as Reply, VERSION};
use crate::core::counters::MqttDrop;
use crate::core::pace::{Pace, Rate};
use crate::core::signal::{CameraId, Correlation, RejectReason};
use crate::core::trigger::Action;

/// Triggers of one camera.
const EACH: Rate = Rate::new(Duration::from_secs(1), 10);
/// Triggers of all cameras that are not there: names cost their senders nothing.
const UNKNOWN: Rate = Rate::new(Duration::from_millis(10), 200);
/// How often it is told on `event` that a trigger was refused.
const TELL: Rate = Rate::new(Duration::from_secs(1), 5);

const DEFAULT_TTL_S: u64 = 60;
const MAX_TTL_S: u64 = 3600;
/// A trigger that was this long on its way asks for what nobody wants any more.
const FRESH_FOR: Duration = Duration::from_secs(30);
/// Clocks may differ a little.
const LEEWAY: Duration = Duration::from_secs(30);
const MAX_ID: usize = 128;

/// What a trigger asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub id: Correlation,
    pub what: What,
    /// In the sender's words, for the log.
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Camera(Action),
    Still,
}

impl What {
    pub fn slug(self) -> &'static str {
        match self {
            Self::Camera(Action::Wake { .. }) => "wake",
            Self::Camera(Action::Sleep) => "sleep",
            Self::Still => "still",
        }
    }
}

/// Why a trigger, or a word for the privacy switch, is not followed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("a trigger is a JSON object: {{\"v\":1,\"action\":\"wake\"}}")]
    NotJson,
    #[error("this device speaks version {VERSION} of the protocol; send \"v\":{VERSION}")]
    UnknownVersion,
    #[error("{field} {problem}")]
    Field { field: &'static str, problem: &'static str },
    #[error("action is wake, still or sleep, not {0:?}")]
    UnknownAction(String),
    #[error("this was sent {} s ago; send it again, or see that both clocks are right", .0.as_secs())]
    Expired(Duration),
    #[error("it was published to be kept, so nobody can tell when; publish it without the retain flag")]
    Retained,
    #[error("the switch takes ON and OFF")]
    NotAWord,
    #[error("too often; try again in {} s", .0.as_secs().max(1))]
    RateLimited(Duration),
    #[error("the device is busy; try again in {} s", .0.as_secs().max(1))]
    Busy(Duration),
    #[error("no picture could be made: {0}")]
    NoPicture(String),
    #[error("the picture cannot be sent: {0}")]
    Unsent(String),
    #[error(transparent)]
    Camera(#[from] RejectReason),
}

impl Refusal {
    /// The stable word for programs.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::NotJson => "not-json",
            Self::UnknownVersion => "unknown-version",
            Self::Field { .. } | Self::NotAWord => "bad-field",
            Self::UnknownAction(_) => "unknown-action",
            Self::Expired(_) => "expired",
            Self::Retained => "retained",
            Self::RateLimited(_) => "rate-limited",
            Self::Busy(_) => "busy",
            Self::NoPicture(_) => "no-still",
            Self::Unsent(_) => "too-large",
            Self::Camera(reason) => reason.slug(),
        }
    }

    /// It was not even looked at.
    pub(super) fn may_be_flood(&self) -> bool {
        matches!(self, Self::RateLimited(_) | Self::Retained)
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited(wait) | Self::Busy(wait) => Some(*wait),
            Self::Camera(reason) => reason.retry_after(),
            _ => None,
        }
    }
}

impl From<&Refusal> for MqttDrop {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Retained => Self::Retained,
            Refusal::RateLimited(_) => Self::RateLimited,
            _ => Self::Refused,
        }
    }
}

/// A field as it comes, so that one of a wrong kind is named instead of spoiling the whole.
#[derive(Deserialize)]
#[serde(untagged)]
enum Field {
    Text(String),
    Whole(u64),
    Number(f64),
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct TriggerJson {
    v: Option<Field>,
    id: Option<Field>,
    action: Option<Field>,
    ttl_s: Option<Field>,
    reason: Option<Field>,
    at: Option<Field>,
}

/// What a trigger says; on failure with its id, as far as that could be read.
pub fn parse(payload: &[u8], wall: SystemTime) -> Result<Ask, (Correlation, Refusal)> {
    let json = (payload.len() <= wire::MAX_MESSAGE).then(|| wire::read::<TriggerJson>(payload)).flatten();
    let json = json.ok_or((None, Refusal::NotJson))?;
    let id = json.id();
    json.read(&id, wall).map_err(|refusal| (id, refusal))
}

/// A trigger's id, as far as that can be read.
pub fn id(payload: &[u8]) -> Correlation {
    let json = (payload.len() <= wire::MAX_MESSAGE).then(|| wire::read::<TriggerJson>(payload)).flatten();
    json.and_then(|json| json.id())
}

impl TriggerJson {
    fn id(&self) -> Correlation {
        match &self.id {
            Some(Field::Text(id)) if id.len() <= MAX_ID => Some(id.as_str().into()),
            _ => None,
        }
    }

    fn read(self, id: &Correlation, wall: SystemTime) -> Result<Ask, Refusal> {
        let wrong = |field, problem| Err(Refusal::Field { field, problem });
        if !matches!(self.v, Some(Field::Whole(VERSION))) {
            return Err(Refusal::UnknownVersion);
        }
        if self.id.is_some() && id.is_none() {
            return wrong("id", "is a string of at most 128 bytes");
        }
        match self.at {
            None => {}
            Some(Field::Whole(at)) => check_age(Duration::from_secs(at), wall)?,
            Some(Field::Number(at)) if (0.0..1e12).contains(&at) => check_age(Duration::from_secs_f64(at), wall)?,
            Some(_) => return wrong("at", "is when it was sent, in seconds since 1970"),
        }
        let ttl_s = match self.ttl_s {
            None => DEFAULT_TTL_S,
            Some(Field::Whole(ttl_s @ 1..=MAX_TTL_S)) => ttl_s,
            Some(_) => return wrong("ttl_s", "is a whole number from 1 to 3600"),
        };
        let reason = match self.reason {
            None => None,
            Some(Field::Text(reason)) => Some(reason.chars().take(200).collect()),
            Some(_) => return wrong("reason", "is a string"),
        };
        let what = match self.action {
            Some(Field::Text(action)) => match action.as_str() {
                "wake" => What::Camera(Action::Wake { ttl: Duration::from_secs(ttl_s) }),
                "sleep" => What::Camera(Action::Sleep),
                "still" => What::Still,
                other => return Err(Refusal::UnknownAction(other.chars().take(40).collect())),
            },
            _ => return wrong("action", "is missing; it is wake, still or sleep"),
        };
        Ok(Ask { id: id.clone(), what, reason })
    }
}

fn check_age(at: Duration, wall: SystemTime) -> Result<(), Refusal> {
    let now = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = now.saturating_sub(at);
    if age > FRESH_FOR {
        return Err(Refusal::Expired(age));
    }
    if at > now + LEEWAY {
        return Err(Refusal::Field { field: "at", problem: "is in the future; see that both clocks are right" });
    }
    Ok(())
}

/// What the privacy switch is told.
pub fn parse_switch(payload: &[u8]) -> Result<bool, Refusal> {
    match payload {
        b"ON" => Ok(true),
        b"OFF" => Ok(false),
        _ => Err(Refusal::NotAWord),
    }
}

/// How often cameras may be triggered. Each has its own pace and no share in the others', so that the sensor that has gone mad at
/// one of them silences that one only; with the number of cameras, all together are bounded.
pub(super) struct Paces {
    cameras: BTreeMap<CameraId, CameraPace>,
    unknown: Pace,
}

struct CameraPace {
    triggers: Pace,
    told: Pace,
}

impl Paces {
    pub(super) fn new(cameras: impl Iterator<Item = CameraId>, now: Instant) -> Self {
        let pace = |camera| (camera, CameraPace { triggers: Pace::new(now), told: Pace::new(now) });
        Self { cameras: cameras.map(pace).collect(), unknown: Pace::new(now) }
    }

    /// One more trigger for this camera.
    pub(super) fn check(&mut self, camera: &CameraId, now: Instant) -> Result<(), Refusal> {
        let known = self.cameras.get_mut(camera);
        let is_known = known.is_some();
        let (pace, rate) = known.map_or((&mut self.unknown, UNKNOWN), |known| (&mut known.triggers, EACH));
        let wait = pace.wait(rate, now);
        if !wait.is_zero() {
            return Err(Refusal::RateLimited(wait));
        }
        pace.count(rate, now);
        if is_known { Ok(()) } else { Err(RejectReason::NoSuchCamera(camera.clone()).into()) }
    }

    /// Whether one more refusal may be told to everybody.
    pub(super) fn may_tell(&mut self, camera: &CameraId, now: Instant) -> bool {
        let Some(CameraPace { told, .. }) = self.cameras.get_mut(camera) else { return false };
        let may = told.wait(TELL, now).is_zero();
        if may {
            told.count(TELL, now);
        }
        may
    }
}

/// The answer to whoever gave a Response Topic.
pub(super) fn done(id: &Correlation, camera: &CameraId, what: &'static str) -> String {
    wire::write(&DoneJson { v: VERSION, id: id.as_deref(), r#type: "done", camera: camera.as_str(), action: what })
}

pub fn error(id: &Correlation, refusal: &Refusal) -> String {
    let fault = Fault {
        id: id.clone(),
        session: None,
        code: refusal.slug(),
        message: refusal.to_string(),
        retry_after_ms: refusal.retry_after().map(|wait| wait.as_millis()),
    };
    wire::encode(&Reply::Error(fault))
}

#[derive(Serialize)]
struct DoneJson<'a> {
    v: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    r#type: &'static str,
    camera: &'a str,
    action: &'static str,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn wall() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn refused(payload: &str) -> (Correlation, &'static str) {
        let (id, refusal) = parse(payload.as_bytes(), wall()).unwrap_err();
        (id, refusal.slug())
    }

    #[test]
    fn a_trigger_says_what_it_wants_and_for_how_long() {
        let ask = parse(br#"{"v":1,"id":"bell-17","action":"wake","ttl_s":90,"reason":"door bell"}"#, wall()).unwrap();
        assert_eq!(ask.id.as_deref(), Some("bell-17"));
        assert_eq!(ask.what, What::Camera(Action::Wake { ttl: Duration::from_secs(90) }));
        assert_eq!(ask.reason.as_deref(), Some("door bell"));
    }

    #[test]
    fn the_least_trigger_wakes_for_a_minute() {
        let ask = parse(br#"{"v":1,"action":"wake"}"#, wall()).unwrap();
        assert_eq!(ask.what, What::Camera(Action::Wake { ttl: Duration::from_secs(60) }));
    }

    #[test]
    fn what_cannot_be_followed_is_told_by_its_word_and_id() {
        let id: Correlation = Some("7".into());
        for (payload, slug) in [
            (r#"{"v":2,"id":"7","action":"wake"}"#, "unknown-version"),
            (r#"{"id":"7","action":"wake"}"#, "unknown-version"),
            (r#"{"v":1,"id":"7","action":"dance"}"#, "unknown-action"),
            (r#"{"v":1,"id":"7"}"#, "bad-field"),
            (r#"{"v":1,"id":"7","action":["wake"]}"#, "bad-field"),
            (r#"{"v":1,"id":"7","action":"wake","ttl_s":0}"#, "bad-field"),
            (r#"{"v":1,"id":"7","action":"wake","ttl_s":3601}"#, "bad-field"),
            (r#"{"v":1,"id":"7","action":"wake","ttl_s":-1}"#, "bad-field"),
            (r#"{"v":1,"id":"7","action":"wake","ttl_s":1.5}"#, "bad-field"),
            (r#"{"v":1,"id":"7","action":"wake","reason":7}"#, "bad-field"),
            (r#"{"v":1,"id":"7","action":"wake","at":"now"}"#, "bad-field"),
            (r#"{"v":1,"id":"7","action":"wake","at":1799999969}"#, "expired"),
            (r#"{"v":1,"id":"7","action":"wake","at":1800000031}"#, "bad-field"),
        ] {
            assert_eq!(refused(payload), (id.clone(), slug), "{payload}");
        }
        for payload in ["", "wake", "[]x", "7", "\"wake\"", "{\"v\":1"] {
            assert_eq!(refused(payload), (None, "not-json"), "{payload}");
        }
    }

    #[test]
    fn a_trigger_of_a_moment_ago_is_followed() {
        assert!(parse(br#"{"v":1,"action":"sleep","at":1799999970.5}"#, wall()).is_ok());
        assert!(parse(br#"{"v":1,"action":"sleep","at":1800000005}"#, wall()).is_ok());
    }

    #[test]
    fn the_switch_takes_two_words() {
        assert!(parse_switch(b"ON").unwrap());
        assert!(!parse_switch(b"OFF").unwrap());
        for other in [&b""[..], b"on", b"OFF ", b"1", b"true"] {
            assert!(parse_switch(other).is_err());
        }
    }

    #[test]
    fn a_camera_is_triggered_ten_times_at_once_then_once_a_second() {
        let now = Instant::now();
        let front = CameraId::new("front").unwrap();
        let mut paces = Paces::new([front.clone()].into_iter(), now);
        for _ in 0..10 {
            assert!(paces.check(&front, now).is_ok());
        }
        assert!(matches!(paces.check(&front, now), Err(Refusal::RateLimited(_))));
        assert!(paces.check(&front, now + Duration::from_secs(1)).is_ok());
        let back = CameraId::new("back").unwrap();
        assert_eq!(paces.check(&back, now).unwrap_err().slug(), "no-such-camera");
    }

    #[test]
    fn a_sensor_gone_mad_silences_its_own_camera_only() {
        let now = Instant::now();
        let [front, back, cellar] = ["front", "back", "cellar"].map(|name| CameraId::new(name).unwrap());
        let mut paces = Paces::new([front.clone(), back.clone()].into_iter(), now);
        for _ in 0..10_000 {
            let _ = paces.check(&front, now);
            let _ = paces.check(&cellar, now);
        }
        assert_eq!(paces.check(&front, now).unwrap_err().slug(), "rate-limited");
        assert_eq!(paces.check(&cellar, now).unwrap_err().slug(), "rate-limited");
        assert!(paces.check(&back, now).is_ok());
    }

    #[test]
    fn answers_are_as_the_manual_shows_them() {
        let id: Correlation = Some("bell-17".into());
        let front = CameraId::new("front").unwrap();
        let what = What::Camera(Action::Sleep).slug();
        assert_eq!(
            done(&id, &front, what),
            r#"{"v":1,"id":"bell-17","type":"done","camera":"front","action":"sleep"}"#
        );
        assert!(error(&id, &Refusal::RateLimited(Duration::from_millis(700))).contains(r#""retry_after_ms":700"#));
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_stumble(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&payload, wall());
        }

        #[test]
        fn no_trigger_keeps_a_camera_open_for_more_than_an_hour(ttl_s in any::<u64>()) {
            let payload = format!(r#"{{"v":1,"action":"wake","ttl_s":{ttl_s}}}"#);
            if let Ok(Ask { what: What::Camera(Action::Wake { ttl }), .. }) = parse(payload.as_bytes(), wall()) {
                prop_assert!(ttl <= Duration::from_secs(3600) && !ttl.is_zero());
            }
        }
    }
}
