//! How long to wait before the next connection, by how the ones before have ended. A rule only; the waiting happens elsewhere.

use std::time::{Duration, Instant};

use super::complaint::{Complaint, is_contended};
use crate::core::backoff::Backoff;

/// A connection that lived so long was a good one: the next failure is new.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// While the broker is away so shortly, it is tried at least every [`LONGEST_AT_FIRST`].
const SHORT_OUTAGE: Duration = Duration::from_secs(120);
/// With the time that a connection takes, the device is back within five seconds of the broker.
const LONGEST_AT_FIRST: Duration = Duration::from_secs(4);
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// Connections cut in a row, soon and without a word, that are no accident any more. A broker that is updated restarts once or
/// twice.
const CUT_TOO_OFTEN: u32 = 3;

/// From the end of the last good connection on.
pub(super) struct Outage {
    backoff: Backoff,
    lost_at: Instant,
    /// Connections in a row that were cut soon after they came up.
    cut_short: u32,
}

/// What to say, and how long to wait.
pub(super) struct Verdict {
    pub(super) complaint: Complaint,
    pub(super) pause: Duration,
    /// What ended was a good connection, so this is news.
    pub(super) was_healthy: bool,
}

impl Outage {
    pub(super) fn new(now: Instant) -> Self {
        Self { backoff: Backoff::default(), lost_at: now, cut_short: 0 }
    }

    /// A connection, up since `connected_at`, or an attempt at one has ended. `random` is in 0.0..1.0.
    pub(super) fn judge(
        &mut self,
        complaint: Complaint,
        connected_at: Option<Instant>,
        now: Instant,
        random: f64,
    ) -> Verdict {
        let lived = connected_at.map(|since| now.saturating_duration_since(since));
        let was_healthy = lived.is_some_and(|lived| lived >= HEALTHY_AFTER);
        if was_healthy {
            self.backoff.reset();
        }
        if lived.is_some() {
            self.lost_at = now;
        }
        let was_cut_short = lived.is_some() && !was_healthy && complaint.is_without_words();
        self.cut_short = if was_cut_short { self.cut_short.saturating_add(1) } else { 0 };
        let is_accident = self.cut_short < CUT_TOO_OFTEN;
        let complaint = if is_accident { complaint } else { Complaint::of_cut_off_again() };
        let pause = self.pause(&complaint, now, random);
        Verdict { complaint, pause, was_healthy }
    }

    /// Full jitter, so that a fleet does not come back in one stroke; soon while the broker is only restarted.
    fn pause(&mut self, complaint: &Complaint, now: Instant, random: f64) -> Duration {
        if is_contended(complaint) {
            // The other device connects again at once; neither of us is to throw the other out every second.
            return Backoff::LONGEST.mul_f64(1.0 + random);
        }
        let away = now.saturating_duration_since(self.lost_at);
        let longest = if away < SHORT_OUTAGE { LONGEST_AT_FIRST } else { Backoff::LONGEST };
        self.backoff.next(1.0).min(longest).mul_f64(random).max(LEAST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn cut() -> Complaint {
        Complaint { slug: "closed", words: String::new() }
    }

    fn refused() -> Complaint {
        Complaint { slug: "refused", words: String::new() }
    }

    #[test]
    fn a_broker_restarted_twice_within_a_minute_is_found_again_within_seconds() {
        let start = Instant::now();
        let mut outage = Outage::new(start);
        for restart in 1..=2 {
            let connected_at = start + 20 * restart * Duration::from_secs(1);
            let now = connected_at + Duration::from_secs(10);
            let Verdict { complaint, pause, .. } = outage.judge(cut(), Some(connected_at), now, 1.0);
            assert!(pause <= LONGEST_AT_FIRST, "restart {restart}: {pause:?}");
            assert!(!is_contended(&complaint), "restart {restart}: {complaint:?}");
            let Verdict { pause, .. } = outage.judge(refused(), None, now + Duration::from_secs(1), 1.0);
            assert!(pause <= LONGEST_AT_FIRST, "restart {restart}: {pause:?}");
        }
    }

    #[test]
    fn a_broker_is_tried_every_four_seconds_and_after_two_minutes_less_often() {
        let start = Instant::now();
        let mut outage = Outage::new(start);
        let mut pause_at = |now| outage.judge(refused(), None, now, 1.0).pause;
        let pauses: Vec<_> = (0..10).map(|n| pause_at(start + 10 * n * Duration::from_secs(1))).collect();
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_AT_FIRST), "{pauses:?}");
        assert_eq!(pause_at(start + SHORT_OUTAGE), Backoff::LONGEST);
    }

    proptest! {
        /// Two devices of one name, on a broker that says why (MQTT 5, reason 0x8e) or, like mosquitto 2.0, does not.
        #[test]
        fn two_devices_of_one_name_connect_a_few_times_a_minute(
            lives_ms in prop::collection::vec(0u64..59_999, 20),
            randoms in prop::collection::vec(0.0f64..1.0, 20),
        ) {
            let mut now = Instant::now();
            let mut outage = Outage::new(now);
            let mut connects = Vec::new();
            for (live_ms, random) in lives_ms.into_iter().zip(randoms) {
                connects.push(now);
                let ended_at = now + Duration::from_millis(live_ms);
                now = ended_at + outage.judge(cut(), Some(now), ended_at, random).pause;
            }
            for (index, first) in connects.iter().enumerate() {
                let within = connects[index..].iter().filter(|at| at.duration_since(*first) < MINUTE).count();
                prop_assert!(within <= 4, "{within} connections in a minute");
            }
        }

        #[test]
        fn no_pause_is_too_short_for_a_broker_or_longer_than_a_minute(
            ends in prop::collection::vec((any::<bool>(), 0u64..200, 0.0f64..1.0), 1..100),
        ) {
            let mut now = Instant::now();
            let mut outage = Outage::new(now);
            for (was_connected, lived_s, random) in ends {
                let since = now;
                now += Duration::from_secs(lived_s);
                let complaint = if was_connected { cut() } else { refused() };
                let Verdict { pause, .. } = outage.judge(complaint, was_connected.then_some(since), now, random);
                prop_assert!((LEAST_PAUSE..=2 * Backoff::LONGEST).contains(&pause), "{pause:?}");
                now += pause;
            }
        }
    }
}
