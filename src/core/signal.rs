//! What viewer and camera say to each other, whatever link carries it.
//!
//! A link turns bytes into [`Request`]s and [`Response`]s into bytes; everything between is here and knows no wire format.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::figures::{Figures, Quality};

/// A camera's name in the configuration, in topics and in URLs: `[a-zA-Z0-9_-]{1,64}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CameraId(Arc<str>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a name is 1 to 64 of the characters a-z A-Z 0-9 _ -, not {0:?}")]
pub struct BadName(String);

impl CameraId {
    pub fn new(name: &str) -> Result<Self, BadName> {
        if is_name(name) { Ok(Self(name.into())) } else { Err(BadName(name.chars().take(80).collect())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CameraId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` may stand as one level of a topic and one part of a URL.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Levels that a prefix may have: with five more of ours a topic has at most the seven slashes that AWS IoT takes.
pub const MAX_PREFIX_LEVELS: usize = 3;

/// Whether `text` may stand before the device's name in a topic: one to three names with slashes between.
pub fn is_prefix(text: &str) -> bool {
    is_path(text, MAX_PREFIX_LEVELS)
}

/// Whether `text` is names with slashes between, so many at most.
pub fn is_path(text: &str, max_levels: usize) -> bool {
    text.split('/').count() <= max_levels && text.split('/').all(is_name)
}

/// A way to signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkId {
    WebSocket,
    Whep,
    Mqtt,
}

impl LinkId {
    /// The stable word for programs.
    pub fn slug(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Whep => "whep",
            Self::Mqtt => "mqtt",
        }
    }
}

/// Whoever is at the other end of a link: one socket, one WHEP session, one topic level of a broker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    pub link: LinkId,
    /// Unique on its link.
    pub name: Arc<str>,
}

/// A session's name, chosen by the viewer (so that a repeated offer is recognised) and unique for its client only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionName(Arc<str>);

impl SessionName {
    pub fn new(name: &str) -> Result<Self, BadName> {
        if is_name(name) { Ok(Self(name.into())) } else { Err(BadName(name.chars().take(80).collect())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One session of one client: the address on every request and response.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    pub client: ClientId,
    pub session: SessionName,
}

/// The sender's own mark on a request, given back on the response to it.
pub type Correlation = Option<Arc<str>>;

#[derive(Clone, Debug)]
pub struct Request {
    pub from: Address,
    pub id: Correlation,
    pub signal: Signal,
}

#[derive(Clone, Debug)]
pub struct Response {
    pub to: Address,
    /// Set when this answers a request, `None` when the camera speaks first.
    pub id: Correlation,
    pub reply: Reply,
}

/// What a viewer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// An SDP offer to receive this camera.
    Offer {
        camera: CameraId,
        sdp: String,
        quality: Quality,
    },
    /// A trickled ICE candidate, the attribute's value (`candidate:…`, RFC 8839, section 5.1); empty: no more will come.
    Candidate {
        line: String,
    },
    /// A new offer with new ICE credentials for a live session (RFC 8839, section 4.4.1.1.1).
    Restart {
        sdp: String,
    },
    /// What the viewer asks for from now on. Not answered.
    Prefer {
        quality: Quality,
    },
    /// How it fares; answered by [`Reply::Stats`].
    Stats,
    Bye,
}

/// What a camera says.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Answers `Offer` and `Restart`; holds every candidate of the camera.
    Answer {
        sdp: String,
    },
    Rejected(RejectReason),
    /// Something happened; the session stays.
    Notice(Notice),
    /// Answers `Stats`.
    Stats(Figures),
    /// The session is over; the last response it gets.
    Bye(CloseReason),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    CameraLost {
        reason: String,
    },
    CameraBack,
    /// This device's network changed, and the paths to it with it: a viewer restarts ICE.
    AddressChanged,
}

/// Why a request was not granted. The session, if one was running, goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    #[error("there is no camera named {0}")]
    NoSuchCamera(CameraId),
    #[error("there is no such session; send an offer first")]
    NoSuchSession,
    #[error("all {limit} places are taken; try again in {} s", retry_after.as_secs())]
    Full { limit: usize, retry_after: Duration },
    #[error("too many ask just now; try again in {} s", retry_after.as_secs())]
    Busy { retry_after: Duration },
    #[error("the offer cannot be used: {0}")]
    BadOffer(String),
    #[error("the offer has no H.264 video with packetization-mode 1, the only codec this camera sends")]
    NoCommonCodec,
    #[error("the candidate cannot be used: {0}")]
    BadCandidate(String),
    #[error("more than {0} candidates in one session")]
    TooManyCandidates(usize),
    #[error("the camera is switched off; its owner can switch it on")]
    Disabled,
    #[error("the camera shows nothing: {0}")]
    CameraLost(String),
    #[error("the camera is shutting down")]
    ShuttingDown,
}

impl RejectReason {
    /// The stable word for programs: `code` on the wire, a label in metrics.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::NoSuchCamera(_) => "no-such-camera",
            Self::NoSuchSession => "no-such-session",
            Self::Full { .. } => "full",
            Self::Busy { .. } => "busy",
            Self::BadOffer(_) => "bad-offer",
            Self::NoCommonCodec => "no-common-codec",
            Self::BadCandidate(_) => "bad-candidate",
            Self::TooManyCandidates(_) => "too-many-candidates",
            Self::Disabled => "disabled",
            Self::CameraLost(_) => "camera-lost",
            Self::ShuttingDown => "shutting-down",
        }
    }

    /// How long a well-behaved viewer waits before it asks again; `None`: asking again will not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Full { retry_after, .. } | Self::Busy { retry_after } => Some(*retry_after),
            Self::ShuttingDown => Some(Duration::from_secs(5)),
            _ => None,
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloseReason {
    /// The viewer said bye, closed its connection, or its link went away.
    ViewerLeft,
    /// ICE and DTLS did not come up in time.
    ConnectTimeout,
    /// The viewer stopped answering consent checks (RFC 7675).
    Lost,
    /// The same client offered again under the same session name.
    Replaced,
    /// The viewer's link did not take its messages.
    LinkTooSlow,
    /// The camera was switched off.
    Disabled,
    Shutdown,
}

impl CloseReason {
    pub const ALL: [Self; 7] = [
        Self::ViewerLeft,
        Self::ConnectTimeout,
        Self::Lost,
        Self::Replaced,
        Self::LinkTooSlow,
        Self::Disabled,
        Self::Shutdown,
    ];

    /// The stable word for programs: `reason` on the wire, a label in metrics.
    pub fn slug(self) -> &'static str {
        match self {
            Self::ViewerLeft => "viewer-left",
            Self::ConnectTimeout => "connect-timeout",
            Self::Lost => "lost",
            Self::Replaced => "replaced",
            Self::LinkTooSlow => "link-too-slow",
            Self::Disabled => "disabled",
            Self::Shutdown => "shutdown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_up_to_three_names() {
        for good in ["edgecam", "home/cams", "dt/site-1/cams"] {
            assert!(is_prefix(good), "{good}");
        }
        for bad in ["", "/", "edgecam/", "/edgecam", "a//b", "a/b/c/d", "a/+", "a/#", "$SYS"] {
            assert!(!is_prefix(bad), "{bad}");
        }
    }
}
