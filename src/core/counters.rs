//! What is counted, as plain atomics that any thread may add to; `telemetry` turns them into metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::camera::Rendition;
use super::figures::{Figures, Seen};
use super::server_url::ServerTransport;
use super::signal::CloseReason;

/// A number that only goes up, or (through [`Count::set`]) a level.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often a value fell into each of a fixed row of classes. Inside, all is in millionths: of a second, or of one.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One for each bound, and one for what is above them all.
    classes: Box<[Count]>,
    sum: Count,
}

impl Histogram {
    /// Of a picture's way through this program. Each bound is about 1.4 times the one before.
    pub const DELAYS: &[u64] = &[
        50, 70, 100, 140, 200, 280, 400, 500, 700, 1000, 1400, 2000, 3000, 4000, 5500, 7500, 10_000, 14_000, 20_000,
        33_000, 50_000, 100_000,
    ];
    /// Of the way to a viewer and back: from the same desk to the other side of the world and a full queue.
    pub const ROUND_TRIPS: &[u64] = &[
        1000, 2000, 5000, 10_000, 20_000, 35_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000, 500_000,
        1_000_000, 2_000_000,
    ];
    /// Of the part of the packets that is lost, none at all first.
    pub const LOSSES: &[u64] = &[0, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000];

    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, classes: (0..=bounds.len()).map(|_| Count::default()).collect(), sum: Count::default() }
    }

    pub fn observe(&self, time: Duration) {
        self.count(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// `part`: 0 to 1.
    pub fn observe_part(&self, part: f32) {
        self.count((f64::from(part.clamp(0.0, 1.0)) * 1e6).round() as u64);
    }

    /// Each class's upper bound, the last one without, and how many fell into it; and the sum of all. In seconds, or parts of one.
    pub fn classes(&self) -> (Vec<(f64, u64)>, f64) {
        let bounds = self.bounds.iter().map(|&bound| bound as f64 / 1e6).chain([f64::MAX]);
        (bounds.zip(self.classes.iter().map(Count::get)).collect(), self.sum.get() as f64 / 1e6)
    }

    fn count(&self, millionths: u64) {
        let class = self.bounds.partition_point(|&bound| bound < millionths);
        if let Some(class) = self.classes.get(class) {
            class.add(1);
        }
        self.sum.add(millionths);
    }
}

/// One of [`Histogram::DELAYS`].
impl Default for Histogram {
    fn default() -> Self {
        Self::new(Self::DELAYS)
    }
}

/// One camera's figures.
#[derive(Debug, Default)]
pub struct CameraCounters {
    /// Access units that came out of the encoder, and their bytes.
    pub units_captured: Count,
    pub bytes_captured: Count,
    pub keyframes_captured: Count,
    /// Keyframes asked of the encoder, after merging.
    pub keyframes_asked: Count,
    /// Times the camera was opened, and times it failed or stalled.
    pub opened: Count,
    pub failed: Count,
    /// Wakes and sleeps that were carried out, and stills that were given out.
    pub triggers: Count,
    pub stills: Count,
    /// Level: sessions that hold a place.
    pub viewers: Count,
    /// Level: 1 while its owner has switched it off.
    pub switched_off: Count,
    /// Level: the bitrate asked of the encoder; zero before it ran.
    pub bitrate_kbps: Count,
    pub low: LowCounters,
    /// In the order of [`Rendition::ALL`].
    pub viewers_of: [RenditionCounters; Rendition::ALL.len()],
}

impl CameraCounters {
    /// How everybody fares who watches now; to be told about once a second.
    pub fn note(&self, viewers: &[Seen]) {
        for (rendition, counters) in Rendition::ALL.into_iter().zip(&self.viewers_of) {
            let of_this = viewers.iter().map(|seen| &seen.figures).filter(|seen| seen.rendition == Some(rendition));
            counters.note(&of_this.collect::<Vec<_>>());
        }
    }
}

/// How the viewers of one rendition of a camera fare. Levels, but for the two histograms.
#[derive(Debug)]
pub struct RenditionCounters {
    pub viewers: Count,
    /// Those whose network is known; what the slowest of them carries, and all together.
    pub estimated: Count,
    pub least_estimate_kbps: Count,
    pub estimates_kbps: Count,
    /// Of each viewer, about once a second.
    pub loss: Histogram,
    pub round_trip: Histogram,
}

impl RenditionCounters {
    fn note(&self, viewers: &[&Figures]) {
        let estimates = || viewers.iter().filter_map(|figures| Some(u64::from(figures.estimate?.kbps())));
        self.viewers.set(viewers.len() as u64);
        self.estimated.set(estimates().count() as u64);
        self.least_estimate_kbps.set(estimates().min().unwrap_or_default());
        self.estimates_kbps.set(estimates().sum());
        for figures in viewers {
            self.loss.observe_part(figures.loss);
            if let Some(round_trip) = figures.round_trip {
                self.round_trip.observe(round_trip);
            }
        }
    }
}

impl Default for RenditionCounters {
    fn default() -> Self {
        Self {
            viewers: Count::default(),
            estimated: Count::default(),
            least_estimate_kbps: Count::default(),
            estimates_kbps: Count::default(),
            loss: Histogram::new(Histogram::LOSSES),
            round_trip: Histogram::new(Histogram::ROUND_TRIPS),
        }
    }
}

/// The figures of a camera's low rendition; those of the camera itself do not hold them.
#[derive(Debug, Default)]
pub struct LowCounters {
    /// Access units that came out of the second encoder, and their bytes.
    pub units_captured: Count,
    pub bytes_captured: Count,
    pub keyframes_captured: Count,
    /// Keyframes asked of it, after merging.
    pub keyframes_asked: Count,
    /// Times it was opened, and times it could not be or failed.
    pub opened: Count,
    pub failed: Count,
    /// Level: the bitrate asked of it; zero while it is closed.
    pub bitrate_kbps: Count,
}

/// The whole daemon's figures about viewers.
#[derive(Debug, Default)]
pub struct ViewerCounters {
    pub sessions_opened: Count,
    /// In the order of `CloseReason::ALL`.
    pub sessions_closed: [Count; CloseReason::ALL.len()],
    /// Access units handed to viewers, and those a slow viewer missed.
    pub units_sent: Count,
    pub units_skipped: Count,
    pub packets_sent: Count,
    pub bytes_sent: Count,
    /// Datagrams the kernel did not take.
    pub packets_dropped: Count,
    pub packets_retransmitted: Count,
    /// Retransmissions refused by the budget.
    pub retransmissions_refused: Count,
    pub nacks_received: Count,
    /// PLI and FIR received, before merging.
    pub keyframe_requests: Count,
    /// From the encoder's output to the picture's last packet handed to the kernel.
    pub send_delay: Histogram,
    pub tcp: TcpCounters,
}

/// Figures of ICE over TCP.
#[derive(Debug, Default)]
pub struct TcpCounters {
    /// Level: connections that hold a place.
    pub connections: Count,
    /// Connections turned away because all places, or all of one address, were taken.
    pub refused: Count,
    /// Connections closed because their first frame did not come in time, or named no session.
    pub strangers: Count,
    /// Bytes of datagrams that a viewer did not take in time. The datagrams are among `packets_dropped`.
    pub bytes_dropped: Count,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::access_unit::Bitrate;
    use crate::core::figures::Quality;
    use crate::core::signal::LinkId;

    #[test]
    fn a_histogram_counts_each_duration_in_its_class_and_all_above() {
        let histogram = Histogram::default();
        for us in [10, 50, 51, 1_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let (classes, sum) = histogram.classes();
        assert_eq!(classes[..3], [(0.000_05, 2), (0.000_07, 1), (0.0001, 0)]);
        assert_eq!(classes.last(), Some(&(f64::MAX, 1)));
        assert_eq!(sum, 1.000_111);
    }

    #[test]
    fn the_part_that_is_lost_has_classes_of_its_own() {
        let histogram = Histogram::new(Histogram::LOSSES);
        for part in [0.0, 0.0005, 0.03, 7.0, f32::NAN] {
            histogram.observe_part(part);
        }
        let (classes, _) = histogram.classes();
        let counted: Vec<_> = classes.into_iter().filter(|&(_, count)| count > 0).collect();
        assert_eq!(counted, [(0.0, 2), (0.001, 1), (0.05, 1), (f64::MAX, 1)]);
    }

    #[test]
    fn a_cameras_viewers_are_summed_up_by_rendition() {
        let viewer = |rendition, kbps: Option<u32>| Seen {
            number: 1,
            link: LinkId::Whep,
            figures: Figures { rendition, estimate: kbps.map(Bitrate::from_kbps), ..Figures::unknown(Quality::Auto) },
        };
        let (high, low) = (Some(Rendition::High), Some(Rendition::Low));
        let counters = CameraCounters::default();
        let levels = |rendition: usize| {
            let RenditionCounters { viewers, estimated, least_estimate_kbps, estimates_kbps, .. } =
                &counters.viewers_of[rendition];
            [viewers, estimated, least_estimate_kbps, estimates_kbps].map(Count::get)
        };
        let unconnected = viewer(None, None);
        counters.note(&[
            viewer(high, Some(900)),
            viewer(high, Some(700)),
            viewer(high, None),
            viewer(low, Some(90)),
            unconnected,
        ]);
        assert_eq!((levels(0), levels(1)), ([3, 2, 700, 1600], [1, 1, 90, 90]));
        counters.note(&[]);
        assert_eq!((levels(0), levels(1)), ([0; 4], [0; 4]));
    }
}

/// What the ways in are used for, and what they turn away.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// Level: TCP connections that hold a place, WebSockets among them.
    pub connections: Count,
    /// Connections turned away because all places, or all of one address, were taken.
    pub connections_refused: Count,
    /// Connections cut off because the other end sent its request, or took its answer, too slowly.
    pub connections_cut: Count,
    pub sockets_opened: Count,
    pub sockets_closed: Count,
    /// Level: WHEP sessions that have a URL.
    pub whep_sessions: Count,
    /// WebSocket messages, and those answered with an error by the link itself.
    pub messages: Count,
    pub messages_refused: Count,
    /// Requests without a sufficient token, or from a foreign page.
    pub denied: Count,
    pub mqtt: MqttCounters,
}

/// What the camera's own STUN and TURN servers do for it.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// Level: STUN servers that say where they see us.
    pub stun_answering: Count,
    /// Levels, in the order of [`ServerTransport::ALL`]: 1 while an allocation stands that is reached so.
    pub allocated: [Count; ServerTransport::ALL.len()],
    pub allocations: Count,
    /// Tries that ended without an allocation, and allocations that were lost.
    pub allocation_failures: Count,
    /// Peers' data, without the relay's envelope.
    pub bytes_sent: Count,
    pub bytes_received: Count,
    /// Datagrams for peers that the relay does not let us send to (yet), or that its connection had no room for.
    pub packets_dropped: Count,
}

/// The figures of the link to the MQTT broker.
#[derive(Debug, Default)]
pub struct MqttCounters {
    /// Level: 1 while the broker can be spoken to.
    pub connected: Count,
    /// Times a connection came up, and times one could not be made or was lost.
    pub connects: Count,
    pub failures: Count,
    pub messages_received: Count,
    pub messages_sent: Count,
    /// In the order of [`MqttDrop::ALL`].
    pub messages_dropped: [Count; MqttDrop::ALL.len()],
    /// Topics that the broker did not let us subscribe to or publish on.
    pub topics_refused: Count,
}

impl MqttCounters {
    pub fn dropped(&self, reason: MqttDrop) {
        self.messages_dropped[reason as usize].add(1);
    }
}

/// Why a message from or for the broker went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MqttDrop {
    /// From the broker: more came than could be looked at.
    Flooded,
    /// A sender, or all of them, went over the rate.
    RateLimited,
    /// Signalling that the broker had kept: it is stale.
    Retained,
    /// Not one of our topics, or a name in it that cannot be one.
    BadTopic,
    /// The same offer once more.
    Repeated,
    /// It could not be understood, or asked for what there is not.
    Refused,
    /// For the broker: there was no connection.
    Away,
    /// The broker did not take its messages as fast as they came.
    Full,
    /// Larger than the broker takes, or than we send.
    TooLarge,
}

impl MqttDrop {
    pub const ALL: [Self; 9] = [
        Self::Flooded,
        Self::RateLimited,
        Self::Retained,
        Self::BadTopic,
        Self::Repeated,
        Self::Refused,
        Self::Away,
        Self::Full,
        Self::TooLarge,
    ];

    /// The label in metrics.
    pub fn slug(self) -> &'static str {
        match self {
            Self::Flooded => "flooded",
            Self::RateLimited => "rate-limited",
            Self::Retained => "retained",
            Self::BadTopic => "bad-topic",
            Self::Repeated => "repeated",
            Self::Refused => "refused",
            Self::Away => "away",
            Self::Full => "full",
            Self::TooLarge => "too-large",
        }
    }
}
