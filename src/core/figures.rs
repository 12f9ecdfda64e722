//! How one viewer fares, for the viewer, the API and the log.

use std::net::SocketAddr;
use std::time::Duration;

use super::access_unit::Bitrate;
use super::camera::Rendition;
use super::candidate::CandidateKind;
use super::transmit::Transport;

/// What a viewer asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quality {
    /// Whatever its network carries.
    #[default]
    Auto,
    /// The high rendition, at a lower frame rate if need be.
    High,
    /// The low rendition, to save data.
    Low,
}

impl Quality {
    pub const ALL: [Self; 3] = [Self::Auto, Self::High, Self::Low];

    /// The stable word for programs.
    pub fn slug(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::High => "high",
            Self::Low => "low",
        }
    }
}

/// One session's figures of this moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    pub quality: Quality,
    /// `None`: nothing is sent yet.
    pub rendition: Option<Rendition>,
    /// Its link carries only some of the pictures.
    pub is_thinned: bool,
    /// What its network is thought to carry; `None`: the viewer does not say enough to tell.
    pub estimate: Option<Bitrate>,
    /// What it was sent in the last second or so.
    pub sent: Bitrate,
    /// The part of the packets that did not arrive at first, 0 to 1.
    pub loss: f32,
    pub round_trip: Option<Duration>,
    /// Pictures sent, and those it was spared.
    pub units_sent: u64,
    pub units_skipped: u64,
    /// The way its pictures take; `None` before it is connected.
    pub path: Option<Path>,
}

/// The selected candidate pair, as we see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    pub transport: Transport,
    pub local: SocketAddr,
    pub local_kind: CandidateKind,
    pub remote: SocketAddr,
    /// The viewer sits behind its own TURN server, as far as it told.
    pub is_remote_relayed: bool,
}
