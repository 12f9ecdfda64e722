//! What this device tells whoever listens: `info`, each camera's `state`, and `event`s. JSON, and when it is due.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::super::figures::LowJson;
use super::super::wire::{self, VERSION};
use super::super::{CameraBoard, Links};
use super::topics::Topics;
use super::trigger::Refusal;
use crate::core::camera::{CameraState, Stream};
use crate::core::signal::{CameraId, Correlation};
use crate::core::trigger::{Event, Happening};

pub(super) const ONLINE: &str = "online";
/// The will: gone without a word.
pub(super) const OFFLINE: &str = "offline";
/// A clean exit.
pub(super) const STOPPED: &str = "stopped";

/// What comes together is told together.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two states of one camera.
const GAP: Duration = Duration::from_secs(1);
/// How often what nobody announces, like the bit rate, is looked at.
const REFRESH: Duration = Duration::from_secs(10);

/// When each camera's state is to be told.
pub(super) struct Schedule {
    cameras: Vec<Due>,
    refresh_at: Instant,
}

#[derive(Clone, Copy)]
struct Due {
    at: Option<Instant>,
    /// Not before: the last one was just told.
    rests_until: Instant,
}

impl Schedule {
    pub(super) fn new(cameras: usize, now: Instant) -> Self {
        Self { cameras: vec![Due { at: None, rests_until: now }; cameras], refresh_at: now + REFRESH }
    }

    /// Something about this camera has changed, or may have.
    pub(super) fn touch(&mut self, camera: usize, now: Instant) {
        if let Some(due) = self.cameras.get_mut(camera) {
            due.at.get_or_insert((now + SETTLE).max(due.rests_until));
        }
    }

    /// The cameras whose state is to be told now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<usize> {
        if now >= self.refresh_at {
            self.refresh_at = now + REFRESH;
            (0..self.cameras.len()).for_each(|camera| self.touch(camera, now));
        }
        let mut due = Vec::new();
        for (index, camera) in self.cameras.iter_mut().enumerate() {
            if camera.at.is_some_and(|at| now >= at) {
                *camera = Due { at: None, rests_until: now + GAP };
                due.push(index);
            }
        }
        due
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.cameras.iter().filter_map(|camera| camera.at).min().unwrap_or(self.refresh_at).min(self.refresh_at)
    }
}

/// `cam/<cam>/enabled/state`.
pub(super) fn on_off(board: &CameraBoard) -> &'static str {
    if board.switch.borrow().on { "ON" } else { "OFF" }
}

/// `cam/<cam>/state`; what is not known before the camera was opened once is `null`.
pub(super) fn state(board: &CameraBoard) -> String {
    let status = board.status.borrow().clone();
    let switch = board.switch.borrow().clone();
    let stream = status.stream.as_ref();
    let of = |field: fn(&Stream) -> u32| stream.map(field);
    let viewers = board.counters.viewers.get();
    let error = match &status.state {
        CameraState::BackingOff { error, .. } => Some(error.clone()),
        CameraState::Idle | CameraState::Opening | CameraState::Running => switch.unkept,
    };
    wire::write(&StateJson {
        v: VERSION,
        enabled: switch.on,
        live: viewers > 0 && status.state == CameraState::Running,
        state: status.state.slug(),
        source: stream.map(|stream| stream.source.as_str()),
        viewers,
        max_viewers: board.max_viewers,
        encoder: stream.map(|stream| stream.encoder.as_str()),
        width: of(|stream| stream.width),
        height: of(|stream| stream.height),
        fps: of(|stream| stream.fps),
        bitrate_kbps: Some(board.counters.bitrate_kbps.get()).filter(|&kbps| kbps > 0),
        low: LowJson::from(&status.low),
        error,
    })
}

/// `info`: what a viewer has to know to speak with this device.
pub(super) fn info(links: &Links, topics: &Topics, page_url: Option<&str>) -> String {
    let cameras: Vec<_> = links.cameras.iter().map(|board| CameraJson { id: board.id.as_str() }).collect();
    wire::write(&InfoJson {
        v: VERSION,
        versions: [VERSION],
        device: &links.device,
        software: SOFTWARE,
        cameras,
        codecs: ["H264"],
        limits: LimitsJson { message_bytes: wire::MAX_MESSAGE, candidates: links.settings.max_candidates },
        topics: TopicsJson { rpc: topics.rpc("<client>"), rsp: topics.rsp("<client>") },
        urls: page_url.into_iter().collect(),
    })
}

const SOFTWARE: &str = concat!("edgecam ", env!("CARGO_PKG_VERSION"));

/// `cam/<cam>/event`.
pub(super) fn event(Event { camera, trigger, happening }: &Event, wall: SystemTime) -> String {
    let mut json = EventJson::new(happening.slug(), camera, trigger, wall);
    match happening {
        Happening::ViewerJoined { viewers } => json.viewers = Some(*viewers),
        Happening::ViewerLeft { viewers, reason } => {
            json.viewers = Some(*viewers);
            json.reason = Some(reason.slug());
        }
        Happening::CameraLost { reason } => json.reason = Some(reason),
        Happening::Woken
        | Happening::Asleep
        | Happening::CameraBack
        | Happening::StillTaken
        | Happening::Enabled
        | Happening::Disabled => {}
    }
    wire::write(&json)
}

/// The event of a trigger that is not followed, for senders who gave no Response Topic.
pub(super) fn refused(camera: &CameraId, trigger: &Correlation, refusal: &Refusal, wall: SystemTime) -> String {
    let json = EventJson::new("trigger-refused", camera, trigger, wall);
    wire::write(&EventJson { code: Some(refusal.slug()), message: Some(refusal.to_string()), ..json })
}

#[derive(Serialize)]
struct StateJson<'a> {
    v: u64,
    enabled: bool,
    live: bool,
    state: &'static str,
    source: Option<&'a str>,
    viewers: u64,
    max_viewers: usize,
    encoder: Option<&'a str>,
    width: Option<u32>,
    height: Option<u32>,
    fps: Option<u32>,
    bitrate_kbps: Option<u64>,
    low: LowJson,
    error: Option<String>,
}

#[derive(Serialize)]
struct InfoJson<'a> {
    v: u64,
    versions: [u64; 1],
    device: &'a str,
    software: &'static str,
    cameras: Vec<CameraJson<'a>>,
    codecs: [&'static str; 1],
    limits: LimitsJson,
    topics: TopicsJson,
    urls: Vec<&'a str>,
}

#[derive(Serialize)]
struct CameraJson<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct LimitsJson {
    message_bytes: usize,
    candidates: usize,
}

#[derive(Serialize)]
struct TopicsJson {
    rpc: String,
    rsp: String,
}

#[derive(Serialize)]
struct EventJson<'a> {
    v: u64,
    r#type: &'static str,
    event: &'static str,
    camera: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trigger: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    viewers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Seconds since 1970.
    at: u64,
}

impl<'a> EventJson<'a> {
    fn new(event: &'static str, camera: &'a CameraId, trigger: &'a Correlation, wall: SystemTime) -> Self {
        Self {
            v: VERSION,
            r#type: "event",
            event,
            camera: camera.as_str(),
            trigger: trigger.as_deref(),
            viewers: None,
            reason: None,
            code: None,
            message: None,
            at: wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::signal::CloseReason;

    #[test]
    fn what_changes_at_once_is_told_once_and_then_rests() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut schedule = Schedule::new(2, start);
        for _ in 0..100 {
            schedule.touch(0, start);
        }
        assert_eq!(schedule.take_due(ms(99)), Vec::<usize>::new());
        assert_eq!(schedule.poll_timeout(), ms(100));
        assert_eq!(schedule.take_due(ms(100)), [0]);
        schedule.touch(0, ms(150));
        assert_eq!(schedule.poll_timeout(), ms(1100));
        assert_eq!(schedule.take_due(ms(1100)), [0]);
        assert_eq!(schedule.poll_timeout(), start + REFRESH);
    }

    #[test]
    fn what_nobody_announces_is_looked_at_now_and_then() {
        let start = Instant::now();
        let mut schedule = Schedule::new(2, start);
        assert_eq!(schedule.take_due(start + REFRESH), Vec::<usize>::new());
        assert_eq!(schedule.take_due(start + REFRESH + SETTLE), [0, 1]);
    }

    #[test]
    fn an_event_has_what_a_chain_of_machines_needs() {
        let happening = Happening::ViewerLeft { viewers: 0, reason: CloseReason::Lost };
        let left = Event { camera: CameraId::new("front").unwrap(), trigger: Some("bell-17".into()), happening };
        let wall = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(
            event(&left, wall),
            r#"{"v":1,"type":"event","event":"viewer-left","camera":"front","trigger":"bell-17","viewers":0,"reason":"lost","at":1800000000}"#
        );
    }
}
