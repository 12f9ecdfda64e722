//! What one viewer's network carries, told from what was sent and what came of it.

pub mod pacer;

use std::time::{Duration, Instant};

use super::access_unit::Bitrate;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CongestionSettings {
    /// Thought of a viewer of whom nothing is known yet.
    pub start: Bitrate,
    pub least: Bitrate,
    pub most: Bitrate,
}

/// One line of transport-wide feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The packet's transport-wide number, unwrapped: it never repeats in the life of a viewer.
    pub number: u64,
    /// On the viewer's clock, whose zero is nobody's business; `None`: it did not arrive.
    pub at: Option<Duration>,
}

/// A burst that shows whether the network carries more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub id: u32,
    pub rate: Bitrate,
    /// To be sent at `rate`: packets of the stream, filled up with repeats of old ones.
    pub bytes: usize,
}

/// What the estimate rests on, from the least to the most telling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// The viewer has told nothing yet: the estimate is a guess.
    #[default]
    Nothing,
    /// Receiver reports: loss and round trip.
    Reports,
    /// The viewer's own estimate.
    Remb,
    /// Transport-wide feedback.
    Feedback,
}

#[derive(Debug)]
pub struct Congestion {
    estimate: Bitrate,
}

impl Congestion {
    pub fn new(settings: CongestionSettings, _now: Instant) -> Self {
        Self { estimate: settings.start }
    }

    /// More than this is of no use to the viewer now: it is not probed for.
    pub fn set_wanted(&mut self, _wanted: Bitrate) {}

    /// A packet left: stream, repeat or padding. `bytes` with all headers down to IP. `probe`: it is part of that one.
    pub fn handle_sent(&mut self, _number: u64, _bytes: usize, _probe: Option<u32>, _now: Instant) {}

    /// One feedback packet, in the order of its numbers.
    pub fn handle_feedback(&mut self, _arrivals: &[Arrival], _now: Instant) {}

    /// The viewer's own estimate (draft-alvestrand-rmcat-remb-03), for those without transport-wide feedback.
    pub fn handle_remb(&mut self, _estimate: Bitrate, _now: Instant) {}

    /// A receiver report (RFC 3550, section 6.4.1): the part of the packets lost, 0 to 1, and the round trip where it shows.
    pub fn handle_report(&mut self, _fraction_lost: f32, _round_trip: Option<Duration>, _now: Instant) {}

    /// The path is another one from here on.
    pub fn handle_new_path(&mut self, _now: Instant) {}

    pub fn handle_timeout(&mut self, _now: Instant) {}

    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// A probe to begin now.
    pub fn poll_probe(&mut self, _now: Instant) -> Option<Probe> {
        None
    }

    /// What the path carries, all headers down to IP counted, within the settings' limits.
    pub fn estimate(&self) -> Bitrate {
        self.estimate
    }

    pub fn basis(&self) -> Basis {
        Basis::Nothing
    }

    /// How fast packets may leave while some wait: the pacer's rate. Above the estimate, so that a keyframe is through
    /// before long; on a link that has no more to give only a little above it, and below it while a queue drains.
    pub fn pacing_rate(&self) -> Bitrate {
        Bitrate::from_kbps(self.estimate.kbps().saturating_mul(5) / 2)
    }

    /// The part of the packets that did not arrive in the last second or so, 0 to 1; before repeats.
    pub fn loss(&self) -> f32 {
        0.0
    }

    /// From a packet's leaving to the feedback about it, the viewer's wait before it reports included; `None` before one.
    pub fn round_trip(&self) -> Option<Duration> {
        None
    }

    /// What packets wait on the way, above the least of the last while; `None` without transport-wide feedback.
    pub fn queue_delay(&self) -> Option<Duration> {
        None
    }
}
