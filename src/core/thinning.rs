//! A viewer whose link is too slow for the stream gets keyframes only for a while, and then a new chance.
//!
//! Without it such a viewer sees nothing at all: each picture misses packets, repeats only add to the crowd, and whatever
//! arrives cannot be decoded. A keyframe now and then, on a link that has time to carry it, is a picture.
//!
//! This is for viewers of whom nothing is known but their loss reports. Whoever says when packets arrive, or what its network
//! carries, is sent as much as that (`congestion`), and needs no such rule.
//!
//! ```text
//!   Full ──two bad reports in a row──▶ Thinned ──until over──▶ Full
//!    ▲ good reports for long: the next thinning is short again
//! ```

use std::time::{Duration, Instant};

/// A report with more loss than this is bad. Retransmissions mend what a noisy link loses (5 %, even 10 %); this much
/// means that there is no room.
const BAD_LOSS: f32 = 0.20;
/// Reports come about once a second.
const BAD_REPORTS: u32 = 2;
const FIRST_THINNING: Duration = Duration::from_secs(4);
const LONGEST_THINNING: Duration = Duration::from_secs(60);
/// Keyframes asked for by others come more often than a thinned viewer's link can bear.
const KEYFRAME_SPACING: Duration = Duration::from_millis(1900);
/// So long without a bad report, and the link counts as good again.
const GOOD_AFTER: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinning {
    bad_reports: u32,
    last_bad_at: Option<Instant>,
    until: Option<Instant>,
    next: Duration,
    keyframe_taken_at: Option<Instant>,
}

impl Default for Thinning {
    fn default() -> Self {
        Self { bad_reports: 0, last_bad_at: None, until: None, next: FIRST_THINNING, keyframe_taken_at: None }
    }
}

impl Thinning {
    /// A viewer's report: the part of the packets that it missed, 0 to 1.
    pub fn handle_report(&mut self, fraction_lost: f32, now: Instant) {
        if self.is_thinned(now) {
            return; // it speaks of the few keyframes
        }
        if fraction_lost < BAD_LOSS {
            self.bad_reports = 0;
            return;
        }
        if self.last_bad_at.is_none_or(|at| now.saturating_duration_since(at) > GOOD_AFTER + self.next) {
            self.next = FIRST_THINNING;
        }
        self.last_bad_at = Some(now);
        self.bad_reports += 1;
        if self.bad_reports >= BAD_REPORTS {
            self.bad_reports = 0;
            self.until = Some(now + self.next);
            self.next = (self.next * 2).min(LONGEST_THINNING);
        }
    }

    /// Whether this viewer is to get this picture.
    pub fn takes(&mut self, is_keyframe: bool, now: Instant) -> bool {
        if self.is_thinned(now) {
            let spaced = |at| now.saturating_duration_since(at) >= KEYFRAME_SPACING;
            if !is_keyframe || !self.keyframe_taken_at.is_none_or(spaced) {
                return false;
            }
        }
        if is_keyframe {
            self.keyframe_taken_at = Some(now);
        }
        true
    }

    /// Whether only keyframes, and not all of them, are to be sent now. Such a viewer's own requests for keyframes are not
    /// heeded: the next one comes anyway, and the others would pay for it.
    pub fn is_thinned(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn one_bad_report_is_forgiven_and_two_are_not() {
        let (mut thinning, now) = (Thinning::default(), Instant::now());
        thinning.handle_report(0.5, now);
        thinning.handle_report(0.0, now + S);
        thinning.handle_report(0.5, now + 2 * S);
        assert!(!thinning.is_thinned(now + 2 * S));
        thinning.handle_report(0.5, now + 3 * S);
        assert!(thinning.is_thinned(now + 3 * S));
    }

    #[test]
    fn loss_that_retransmissions_mend_is_left_to_them() {
        let (mut thinning, now) = (Thinning::default(), Instant::now());
        for second in 0..100 {
            thinning.handle_report(0.1, now + S * second);
            assert!(!thinning.is_thinned(now + S * second));
        }
    }

    #[test]
    fn each_new_chance_that_fails_makes_the_next_one_wait_longer_up_to_a_minute() {
        let (mut thinning, mut now) = (Thinning::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..6 {
            while !thinning.is_thinned(now) {
                now += S;
                thinning.handle_report(0.5, now);
            }
            let start = now;
            while thinning.is_thinned(now) {
                now += S;
            }
            waits.push((now - start).as_secs());
        }
        assert_eq!(waits, [4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_thinned_viewer_gets_keyframes_with_time_between_them_and_nothing_else() {
        let (mut thinning, now) = (Thinning::default(), Instant::now());
        thinning.handle_report(0.5, now);
        thinning.handle_report(0.5, now);
        assert!(thinning.takes(true, now));
        assert!(!thinning.takes(false, now));
        assert!(!thinning.takes(true, now + S));
        assert!(thinning.takes(true, now + 2 * S));
        assert!(thinning.takes(false, now + 4 * S));
    }

    #[test]
    fn a_link_that_was_good_for_long_begins_with_a_short_thinning_again() {
        let (mut thinning, mut now) = (Thinning::default(), Instant::now());
        thinning.handle_report(0.5, now);
        thinning.handle_report(0.5, now);
        now += 60 * S;
        thinning.handle_report(0.5, now);
        thinning.handle_report(0.5, now);
        assert!(!thinning.is_thinned(now + 4 * S));
    }
}
