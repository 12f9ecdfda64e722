//! How often something may happen: a steady rate with room for a burst (the generic cell rate algorithm, ITU-T I.371).

use std::time::{Duration, Instant};

/// A steady rate and how much of it may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Between two events, on average.
    pub gap: Duration,
    /// Events that may come at once after a rest.
    pub burst: u32,
}

impl Rate {
    pub const fn new(gap: Duration, burst: u32) -> Self {
        Self { gap, burst }
    }
}

/// One counted party. All it remembers is when its debt is paid.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    paid_at: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { paid_at: now }
    }

    /// How long to wait before the next event is within the rate; zero: it is now.
    pub fn wait(&self, rate: Rate, now: Instant) -> Duration {
        let room = rate.gap * rate.burst.saturating_sub(1);
        self.paid_at.saturating_duration_since(now).saturating_sub(room)
    }

    /// One event happened, allowed or not.
    pub fn count(&mut self, rate: Rate, now: Instant) {
        self.paid_at = self.paid_at.max(now) + rate.gap;
    }

    pub fn paid_at(&self) -> Instant {
        self.paid_at
    }

    /// Whether the party has rested long enough to be forgotten.
    pub fn is_rested(&self, now: Instant) -> bool {
        self.paid_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate::new(Duration::from_millis(50), 3);

    #[test]
    fn a_burst_passes_and_the_next_has_to_wait_one_gap() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..3 {
            assert_eq!(pace.wait(RATE, now), Duration::ZERO);
            pace.count(RATE, now);
        }
        assert_eq!(pace.wait(RATE, now), Duration::from_millis(50));
        assert_eq!(pace.wait(RATE, now + Duration::from_millis(50)), Duration::ZERO);
    }

    #[test]
    fn the_steady_rate_passes_for_ever() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..1000 {
            assert_eq!(pace.wait(RATE, now), Duration::ZERO);
            pace.count(RATE, now);
            now += RATE.gap;
        }
        assert!(pace.is_rested(now));
    }
}
