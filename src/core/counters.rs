//! What is counted, as plain atomics that any thread may add to; `telemetry` turns them into metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

/// How often a duration fell into each of a fixed row of classes.
#[derive(Debug)]
pub struct Histogram {
    /// One for each of `BOUNDS`, and one for what is above them all.
    classes: [Count; Self::BOUNDS.len() + 1],
    sum_us: Count,
}

impl Histogram {
    /// Upper bounds in microseconds, each about 1.4 times the one before.
    pub const BOUNDS: [u64; 22] = [
        50, 70, 100, 140, 200, 280, 400, 500, 700, 1000, 1400, 2000, 3000, 4000, 5500, 7500, 10_000, 14_000, 20_000,
        33_000, 50_000, 100_000,
    ];

    pub fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let class = Self::BOUNDS.partition_point(|&bound| bound < us);
        self.classes[class].add(1);
        self.sum_us.add(us);
    }

    /// How many fell into each class, the last one above all bounds; and their sum.
    pub fn classes(&self) -> ([u64; Self::BOUNDS.len() + 1], Duration) {
        (std::array::from_fn(|class| self.classes[class].get()), Duration::from_micros(self.sum_us.get()))
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { classes: std::array::from_fn(|_| Count::default()), sum_us: Count::default() }
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

    #[test]
    fn a_histogram_counts_each_duration_in_its_class_and_all_above() {
        let histogram = Histogram::default();
        for us in [10, 50, 51, 1_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let (counts, sum) = histogram.classes();
        assert_eq!(counts[..3], [2, 1, 0]);
        assert_eq!(counts[Histogram::BOUNDS.len()], 1);
        assert_eq!(sum, Duration::from_micros(1_000_111));
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
