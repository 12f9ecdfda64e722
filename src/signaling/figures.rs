//! How viewers fare, in JSON: for the viewers themselves and for the camera's owner.

use serde::Serialize;

use crate::core::camera::LowState;
use crate::core::figures::{Figures, Path, Seen};

/// One session's figures of this moment; what is not known is `null`.
#[derive(Serialize)]
pub(super) struct FiguresJson {
    quality: &'static str,
    rendition: Option<&'static str>,
    thinned: bool,
    estimate_kbps: Option<u32>,
    sent_kbps: u32,
    /// 0 to 1.
    loss: f64,
    round_trip_ms: Option<f64>,
    units_sent: u64,
    units_skipped: u64,
    path: Option<PathJson>,
}

#[derive(Serialize)]
struct PathJson {
    transport: &'static str,
    local: String,
    local_type: &'static str,
    remote: String,
    remote_relayed: bool,
}

/// One session, for the owner.
#[derive(Serialize)]
pub(super) struct SessionJson {
    session: u64,
    link: &'static str,
    #[serde(flatten)]
    figures: FiguresJson,
}

/// What became of a camera's low rendition.
#[derive(Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum LowJson {
    Closed,
    Open { width: u32, height: u32, encoder: String },
    Unavailable { reason: String },
}

impl From<&Figures> for FiguresJson {
    fn from(figures: &Figures) -> Self {
        Self {
            quality: figures.quality.slug(),
            rendition: figures.rendition.map(|rendition| rendition.slug()),
            thinned: figures.is_thinned,
            estimate_kbps: figures.estimate.map(|estimate| estimate.kbps()),
            sent_kbps: figures.sent.kbps(),
            loss: rounded(f64::from(figures.loss), 10_000.0),
            round_trip_ms: figures.round_trip.map(|time| rounded(time.as_secs_f64() * 1000.0, 10.0)),
            units_sent: figures.units_sent,
            units_skipped: figures.units_skipped,
            path: figures.path.as_ref().map(PathJson::from),
        }
    }
}

impl From<&Path> for PathJson {
    fn from(path: &Path) -> Self {
        Self {
            transport: path.transport.slug(),
            local: path.local.to_string(),
            local_type: path.local_kind.slug(),
            remote: path.remote.to_string(),
            remote_relayed: path.is_remote_relayed,
        }
    }
}

impl From<&Seen> for SessionJson {
    fn from(seen: &Seen) -> Self {
        Self { session: seen.number, link: seen.link.slug(), figures: (&seen.figures).into() }
    }
}

impl From<&LowState> for LowJson {
    fn from(low: &LowState) -> Self {
        match low.clone() {
            LowState::Closed => Self::Closed,
            LowState::Open { width, height, encoder } => Self::Open { width, height, encoder },
            LowState::Unavailable { reason } => Self::Unavailable { reason },
        }
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
