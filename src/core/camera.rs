//! What is told to a camera and about it, for viewers, the API and the log.

use std::time::Duration;

use super::access_unit::Bitrate;

/// What the viewers need of a camera now. The latest wish counts; nothing is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub running: bool,
    /// Switched off by its owner: an open camera is closed at once, without linger.
    pub off: bool,
    pub bitrate: Bitrate,
    /// Counts up; higher than last time: a keyframe is wanted.
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
