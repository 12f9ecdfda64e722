//! Whether what leaves in one go also arrives in one go. The trend does not say: for it a burst counts by its quickest packet.

use std::time::{Duration, Instant};

/// Packets that left within this of each other belong to one burst.
const GAP: Duration = Duration::from_millis(10);
/// The end of a burst that was on its way for so much longer than its beginning waited behind it, more than a picture's time. A radio
/// that holds packets back lets them go together, and this is not so.
const SPREAD: Duration = Duration::from_millis(40);

#[derive(Debug, Default)]
pub(super) struct Bursts {
    burst: Option<Burst>,
    spread_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    last_sent: Duration,
    first_sent: Duration,
    first_arrival: Duration,
}

impl Bursts {
    /// A packet arrived; in the order of leaving.
    pub(super) fn add(&mut self, sent: Duration, arrival: Duration, now: Instant) {
        match &mut self.burst {
            Some(burst) if sent < burst.last_sent => {}
            Some(burst) if sent - burst.last_sent <= GAP => {
                burst.last_sent = sent;
                let took = arrival.saturating_sub(burst.first_arrival);
                if took.saturating_sub(sent - burst.first_sent) > SPREAD {
                    self.spread_at = Some(now);
                }
            }
            _ => self.burst = Some(Burst { last_sent: sent, first_sent: sent, first_arrival: arrival }),
        }
    }

    /// When one last arrived as a queue.
    pub(super) fn spread_at(&self) -> Option<Instant> {
        self.spread_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A keyframe of 50 packets, sent over 20 ms, arriving over `takes`.
    fn is_spread(takes: Duration, later: Duration) -> bool {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        for packet in 0..50 {
            bursts.add(20 * MS * packet / 50, later + takes * packet / 50, now);
        }
        bursts.add(100 * MS, later + 300 * MS, now);
        bursts.spread_at().is_some()
    }

    #[test]
    fn a_burst_that_trickles_out_of_a_queue_is_told_from_one_that_was_held_back() {
        assert!(is_spread(90 * MS, 10 * MS));
        assert!(!is_spread(20 * MS, 10 * MS));
        assert!(!is_spread(50 * MS, 10 * MS), "not much longer than it took to send");
        assert!(!is_spread(MS, 200 * MS), "a radio that slept");
    }
}
