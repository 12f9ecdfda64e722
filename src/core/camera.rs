//! What is told to a camera and about it, for viewers, the API and the log.

use std::time::Duration;

use super::access_unit::Bitrate;

/// One encoded version of a camera. There are never more, whatever the number of viewers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rendition {
    /// What the configuration asks of the camera.
    High,
    /// Fewer pixels and bits, for viewers whose network cannot carry the other; encoded only while one of them needs it.
    Low,
}

impl Rendition {
    pub const ALL: [Self; 2] = [Self::High, Self::Low];

    /// The stable word for programs.
    pub fn slug(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Low => "low",
        }
    }
}

/// What the viewers need of a camera now. The latest wish counts; nothing is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub running: bool,
    /// Switched off by its owner: an open camera is closed at once, without linger.
    pub off: bool,
    pub bitrate: Bitrate,
    /// Counts up; higher than last time: a keyframe is wanted.
    pub keyframe: u64,
    /// `None`: nobody needs the low rendition, and its encoder is closed.
    pub low: Option<LowDemand>,
}

/// What the viewers of the low rendition need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowDemand {
    pub bitrate: Bitrate,
    /// Counts up over the life of the camera, as [`Demand::keyframe`] does.
    pub keyframe: u64,
}

/// The privacy switch of one camera, set by its owner and kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Off: the camera is closed, and nobody can open it.
    pub on: bool,
    /// Why the next start will not know of it.
    pub unkept: Option<String>,
}

impl Default for Switch {
    fn default() -> Self {
        Self { on: true, unkept: None }
    }
}

/// What a camera is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraStatus {
    pub state: CameraState,
    /// What was chosen when the camera was opened last; kept while it is closed.
    pub stream: Option<Stream>,
    pub low: LowState,
}

/// What became of the low rendition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LowState {
    /// Not asked for, or not there yet.
    Closed,
    Open {
        width: u32,
        height: u32,
        /// The encoder's name in GStreamer.
        encoder: String,
    },
    /// This camera cannot have one, for this reason in words for the owner: nobody waits for it.
    Unavailable { reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CameraState {
    /// Closed; nobody watches.
    Idle,
    Opening,
    Running,
    /// Failed; `retry_in` from the moment this was published. Tried again for as long as anybody watches.
    BackingOff {
        error: String,
        retry_in: Duration,
    },
}

impl CameraState {
    /// The stable word for programs.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Opening => "opening",
            Self::Running => "running",
            Self::BackingOff { .. } => "failed",
        }
    }
}

/// What runs between lens and network, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// What is captured: "YUYV 1280x720 at 30 fps from /dev/video0".
    pub source: String,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    /// The encoder's name in GStreamer ("x264enc"), or "passthrough".
    pub encoder: String,
    /// Why this encoder, and why not a better one.
    pub encoder_reason: String,
}
