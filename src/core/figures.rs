//! How one viewer fares, for the viewer, the API and the log.

use std::net::SocketAddr;
use std::time::Duration;

use super::access_unit::Bitrate;
use super::camera::Rendition;
use super::candidate::CandidateKind;
use super::signal::LinkId;
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

    /// The other way round.
    pub fn named(slug: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quality| quality.slug() == slug)
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

impl Figures {
    /// Of a session that nothing is known of yet but what it asked for.
    pub fn unknown(quality: Quality) -> Self {
        Self {
            quality,
            rendition: None,
            is_thinned: false,
            estimate: None,
            sent: Bitrate::from_kbps(0),
            loss: 0.0,
            round_trip: None,
            units_sent: 0,
            units_skipped: 0,
            path: None,
        }
    }
}

/// One session of a camera, for its owner.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// As in the log; never used twice in one process.
    pub number: u64,
    pub link: LinkId,
    pub figures: Figures,
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
