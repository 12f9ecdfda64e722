//! Up slowly, down at once: the rate that follows from what the network shows (draft-ietf-rmcat-gcc-02, section 5.5).
//!
//! ```text
//!   Raise ──queue grows──▶ Drain ──queue is gone──▶ Raise, from just below what the link carried
//! ```

use std::time::{Duration, Instant};

use super::trend::Usage;

/// While nothing is known of the link's end, each second so much more.
const FAR: f64 = 0.08;
/// Near to what the link was seen to carry at most.
const NEAR: f64 = 0.025;
/// From this part of it to that, the rate is near.
const NEAR_FROM: f64 = 0.9;
const NEAR_TO: f64 = 1.15;
/// Above what arrives, only so much: what is not used is not proven.
const UNPROVEN: f64 = 1.2;
/// The queue is to be gone after this.
const DRAIN_WITHIN: f64 = 0.8;
const GENTLEST: f64 = 0.95;
const HARDEST: f64 = 0.5;
/// As long as the queue may be a passing one, what arrives may be little for want of pictures: down in steps.
const UNDENIABLE: Duration = Duration::from_millis(100);
const STEP: f64 = 0.75;
const STEP_EVERY: Duration = Duration::from_millis(250);
/// A queue below this is as good as none.
const DRAINED: Duration = Duration::from_millis(25);
/// A queue that neither grows nor shrinks is one too, if it is longer than this.
const STANDING: Duration = Duration::from_millis(60);
/// A queue that was given this long to drain and did not is no queue of ours.
const GIVE_UP_DRAINING: Duration = Duration::from_secs(4);
/// What the link carried this long ago says nothing any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// What one feedback packet shows. Rates in bits per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signs {
    pub(super) usage: Usage,
    pub(super) queue: Duration,
    /// What arrived in the last 200 ms, and in the last second.
    pub(super) arriving: Option<f64>,
    pub(super) arrived: Option<f64>,
    pub(super) may_raise: bool,
    /// More is of no use.
    pub(super) wanted: f64,
}

#[derive(Debug)]
pub(super) struct Rate {
    /// In bits per second.
    estimate: f64,
    phase: Phase,
    /// What the link carried when its queue grew.
    capacity: Option<(f64, Instant)>,
    updated_at: Instant,
    lowered_at: Option<Instant>,
    stepped_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Raise,
    Drain { since: Instant, queue: Duration },
}

/// What the rate says about the queue it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Usual,
    /// Sending less did not make it shorter: it is none.
    NoQueue,
}

impl Rate {
    pub(super) fn new(estimate: f64, now: Instant) -> Self {
        Self { estimate, phase: Phase::Raise, capacity: None, updated_at: now, lowered_at: None, stepped_at: None }
    }

    pub(super) fn estimate(&self) -> f64 {
        self.estimate
    }

    pub(super) fn is_draining(&self) -> bool {
        self.phase != Phase::Raise
    }

    /// What the link carries at most, where that was seen.
    pub(super) fn capacity(&self) -> Option<f64> {
        self.capacity.map(|(capacity, _)| capacity)
    }

    /// When the network last had too much.
    pub(super) fn lowered_at(&self) -> Option<Instant> {
        self.lowered_at
    }

    pub(super) fn set(&mut self, estimate: f64) {
        self.estimate = estimate;
    }

    /// The link carried so much for a moment. `is_all`: of what was sent, and it might have carried more.
    pub(super) fn handle_shown(&mut self, rate: f64, is_all: bool, now: Instant) {
        self.estimate = self.estimate.max(rate);
        if !is_all {
            self.capacity = Some((rate, now));
        } else if self.capacity.is_some_and(|(capacity, _)| rate > capacity) {
            self.capacity = None;
        }
    }

    /// Arrives with loss: that much is the link's end.
    pub(super) fn handle_saturated(&mut self, rate: f64, now: Instant) {
        self.capacity = Some((rate, now));
        self.lowered_at = Some(now);
        self.estimate = self.estimate.min(rate * GENTLEST);
    }

    pub(super) fn update(&mut self, signs: Signs, now: Instant) -> Outcome {
        let passed = now.saturating_duration_since(self.updated_at).as_secs_f64().min(0.5);
        self.updated_at = now;
        if self.capacity.is_some_and(|(_, at)| now.saturating_duration_since(at) > FORGOTTEN_AFTER) {
            self.capacity = None;
        }
        let is_standing = signs.queue > STANDING && signs.usage == Usage::Normal && self.phase == Phase::Raise;
        if signs.usage == Usage::Over || is_standing {
            self.lower(signs, now);
            return Outcome::Usual;
        }
        match self.phase {
            Phase::Drain { since, queue } => {
                let is_stuck = now.saturating_duration_since(since) > GIVE_UP_DRAINING && signs.queue * 2 > queue;
                if signs.queue < DRAINED || is_stuck {
                    self.phase = Phase::Raise;
                    if let Some((capacity, _)) = self.capacity {
                        self.estimate = self.estimate.max(capacity * GENTLEST.min(0.92));
                    }
                }
                if is_stuck {
                    return Outcome::NoQueue;
                }
            }
            Phase::Raise if signs.may_raise && signs.usage == Usage::Normal && signs.queue < 2 * DRAINED => {
                self.raise(signs, passed);
            }
            Phase::Raise => {}
        }
        Outcome::Usual
    }

    fn lower(&mut self, signs: Signs, now: Instant) {
        self.lowered_at = Some(now);
        let since = match self.phase {
            Phase::Raise => now,
            Phase::Drain { since, .. } => since,
        };
        self.phase = Phase::Drain { since, queue: signs.queue };
        let Some(arriving) = signs.arriving else { return };
        let part = (1.0 - signs.queue.as_secs_f64() / DRAIN_WITHIN).clamp(HARDEST, GENTLEST);
        let target = arriving * part;
        if target >= self.estimate {
            return;
        }
        self.capacity = Some((arriving, now));
        if target < self.estimate * STEP && signs.queue < UNDENIABLE {
            if self.stepped_at.is_some_and(|at| now.saturating_duration_since(at) < STEP_EVERY) {
                return;
            }
            self.stepped_at = Some(now);
            self.estimate *= STEP;
        } else {
            self.estimate = target;
        }
    }

    fn raise(&mut self, signs: Signs, passed: f64) {
        let ceiling = (signs.arrived.unwrap_or(0.0) * UNPROVEN).min(signs.wanted);
        let is_near = |capacity: f64| (capacity * NEAR_FROM..capacity * NEAR_TO).contains(&self.estimate);
        let step = if self.capacity.is_some_and(|(capacity, _)| is_near(capacity)) { NEAR } else { FAR };
        let raised = self.estimate * (1.0 + step * passed);
        self.estimate = self.estimate.max(raised.min(ceiling));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MBIT: f64 = 1_000_000.0;

    fn calm(arriving: f64) -> Signs {
        Signs {
            usage: Usage::Normal,
            queue: Duration::ZERO,
            arriving: Some(arriving),
            arrived: Some(arriving),
            may_raise: true,
            wanted: 10.0 * MBIT,
        }
    }

    fn growing(arriving: f64, queue: Duration) -> Signs {
        Signs { usage: Usage::Over, queue, ..calm(arriving) }
    }

    /// Feedback every 100 ms for so many seconds.
    fn go_on(rate: &mut Rate, signs: impl Fn(f64) -> Signs, seconds: u32, from: Instant) -> Instant {
        for tick in 0..seconds * 10 {
            rate.update(signs(rate.estimate()), from + 100 * MS * tick);
        }
        from + 1000 * MS * seconds
    }

    #[test]
    fn with_a_long_queue_it_falls_at_once_below_what_arrives_and_returns_when_that_is_gone() {
        let now = Instant::now();
        let mut rate = Rate::new(3.0 * MBIT, now);
        rate.update(growing(MBIT, 400 * MS), now + 100 * MS);
        assert!(rate.is_draining());
        assert!((0.49 * MBIT..0.6 * MBIT).contains(&rate.estimate()), "{}", rate.estimate());
        rate.update(Signs { usage: Usage::Under, queue: 200 * MS, ..calm(MBIT) }, now + 200 * MS);
        assert!(rate.estimate() < 0.6 * MBIT);
        rate.update(Signs { queue: 10 * MS, ..calm(MBIT) }, now + 300 * MS);
        assert!(!rate.is_draining());
        assert!((0.9 * MBIT..MBIT).contains(&rate.estimate()), "{}", rate.estimate());
    }

    #[test]
    fn a_short_queue_while_little_is_sent_lowers_it_in_steps() {
        let now = Instant::now();
        let mut rate = Rate::new(3.0 * MBIT, now);
        rate.update(growing(0.3 * MBIT, 50 * MS), now + 100 * MS);
        assert_eq!(rate.estimate(), 3.0 * MBIT * STEP);
        rate.update(growing(0.3 * MBIT, 50 * MS), now + 150 * MS);
        assert_eq!(rate.estimate(), 3.0 * MBIT * STEP, "not again so soon");
    }

    #[test]
    fn it_rises_no_further_than_what_arrives_proves_and_what_is_wanted() {
        let now = Instant::now();
        let mut rate = Rate::new(MBIT, now);
        let now = go_on(&mut rate, |_| calm(MBIT), 60, now);
        assert!((1.19 * MBIT..=1.2 * MBIT).contains(&rate.estimate()), "{}", rate.estimate());
        go_on(&mut rate, |estimate| Signs { wanted: 2.0 * MBIT, ..calm(estimate) }, 60, now);
        assert_eq!(rate.estimate(), 2.0 * MBIT);
    }

    #[test]
    fn what_is_not_used_does_not_decay() {
        let now = Instant::now();
        let mut rate = Rate::new(3.0 * MBIT, now);
        go_on(&mut rate, |_| calm(0.1 * MBIT), 600, now);
        assert_eq!(rate.estimate(), 3.0 * MBIT);
    }

    #[test]
    fn near_the_links_end_it_rises_slowly() {
        let now = Instant::now();
        let (mut far, mut near) = (Rate::new(MBIT, now), Rate::new(1.1 * MBIT, now));
        near.update(growing(1.05 * MBIT, 40 * MS), now);
        near.update(calm(MBIT), now + 100 * MS);
        let begin = near.estimate();
        go_on(&mut near, calm, 2, now + 200 * MS);
        go_on(&mut far, calm, 2, now + 200 * MS);
        assert!(near.estimate() / begin < 1.06 && far.estimate() / MBIT > 1.15, "{near:?} {far:?}");
    }

    #[test]
    fn a_delay_that_stays_however_little_is_sent_is_no_queue() {
        let now = Instant::now();
        let mut rate = Rate::new(3.0 * MBIT, now);
        let outcomes: Vec<_> = (0..60)
            .map(|tick| rate.update(Signs { queue: 120 * MS, ..calm(rate.estimate()) }, now + 100 * MS * tick))
            .collect();
        assert!(outcomes.contains(&Outcome::NoQueue));
    }
}
