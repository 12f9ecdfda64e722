//! The delays between attempts: growing, limited, jittered. The schedule only; the waiting happens elsewhere.

use std::time::Duration;

/// Delays of 1–1.5 s, 2–3 s, 4–6 s, 8–12 s, 16–24 s, then 20–30 s for ever.
///
/// Where in its range a delay lies is chosen by the caller's random number, so that a rack of cameras that lost
/// the same hub does not come back in one stroke.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    pub const SHORTEST: Duration = Duration::from_secs(1);
    pub const LONGEST: Duration = Duration::from_secs(30);

    /// How far a delay may lie above the bottom of its range.
    const SPREAD: f64 = 0.5;

    /// The delay before the next attempt; each call counts one failure. `random` is in 0.0..=1.0.
    pub fn next(&mut self, random: f64) -> Duration {
        let bottom = Self::SHORTEST.saturating_mul(1 << self.failures.min(16));
        let bottom = bottom.min(Self::LONGEST.div_f64(1.0 + Self::SPREAD));
        self.failures = self.failures.saturating_add(1);
        bottom.mul_f64(1.0 + Self::SPREAD * random.clamp(0.0, 1.0)).min(Self::LONGEST)
    }

    /// What was tried works: the next failure waits the shortest delay again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_delays_double_until_the_longest() {
        let mut backoff = Backoff::default();
        let seconds: Vec<u64> = (0..7).map(|_| backoff.next(0.0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 20, 20]);
        assert_eq!(backoff.next(1.0), Backoff::LONGEST);
    }

    #[test]
    fn after_a_success_the_delays_start_over() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.next(0.5);
        }
        backoff.reset();
        assert_eq!(backoff.next(0.0), Backoff::SHORTEST);
    }

    proptest! {
        #[test]
        fn every_delay_is_between_the_shortest_and_the_longest(randoms in prop::collection::vec(-1.0f64..2.0, 1..200)) {
            let mut backoff = Backoff::default();
            for random in randoms {
                let delay = backoff.next(random);
                prop_assert!((Backoff::SHORTEST..=Backoff::LONGEST).contains(&delay), "{delay:?}");
            }
        }

        #[test]
        fn with_the_same_luck_no_delay_is_shorter_than_the_one_before(random in 0.0f64..=1.0, attempts in 2usize..100) {
            let mut backoff = Backoff::default();
            let delays: Vec<_> = (0..attempts).map(|_| backoff.next(random)).collect();
            prop_assert!(delays.is_sorted(), "{delays:?}");
        }

        #[test]
        fn luck_decides_the_delay(attempt in 0usize..20) {
            let (mut lucky, mut unlucky) = (Backoff::default(), Backoff::default());
            for _ in 0..attempt {
                lucky.next(0.0);
                unlucky.next(0.0);
            }
            prop_assert!(lucky.next(0.0) < unlucky.next(1.0));
        }
    }
}
