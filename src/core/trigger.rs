//! What somebody other than a viewer asks of a camera, and what everybody may know that happened to it.
//!
//! A door bell wakes a camera, the phone it calls finds a picture at once: the events along that way carry the trigger's id.

use std::time::Duration;

use super::signal::{CameraId, CloseReason, Correlation};

/// A camera's session asked for by a machine: a door bell, a motion sensor, an automation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    pub camera: CameraId,
    /// Given back in the answer and on the events that follow.
    pub id: Correlation,
    pub action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open the camera and keep it open for `ttl` from its first picture on, so that whoever comes sees a picture at once.
    Wake { ttl: Duration },
    /// No need to keep it open any longer. Viewers are not touched.
    Sleep,
}

impl Action {
    /// A trigger holds a camera no longer; who needs it longer triggers again.
    pub const LONGEST_TTL: Duration = Duration::from_secs(3600);
}

/// Something that happened to a camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub camera: CameraId,
    /// The trigger that did it; else the newest one that holds the camera open, or did until now.
    pub trigger: Correlation,
    pub happening: Happening,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A trigger woke the camera, and it delivers.
    Woken,
    /// What a trigger asked for is over.
    Asleep,
    /// Pictures flow to one more; with those who hold a place now.
    ViewerJoined {
        viewers: usize,
    },
    /// Somebody who had pictures is gone.
    ViewerLeft {
        viewers: usize,
        reason: CloseReason,
    },
    CameraLost {
        reason: String,
    },
    CameraBack,
    /// A picture was made and given out.
    StillTaken,
    /// The privacy switch.
    Enabled,
    Disabled,
}

impl Happening {
    /// The stable word for programs.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::Woken => "woken",
            Self::Asleep => "asleep",
            Self::ViewerJoined { .. } => "viewer-joined",
            Self::ViewerLeft { .. } => "viewer-left",
            Self::CameraLost { .. } => "camera-lost",
            Self::CameraBack => "camera-back",
            Self::StillTaken => "still-taken",
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
        }
    }
}
