//! Whether loss means that there is no room.
//!
//! A radio loses packets at random, and sending less does not help; a queue that is full, or a policer that has none, loses
//! what is too much, and sending less is all that helps. Where a queue was seen with the loss, it is the second. Where
//! none was, it is tried: the rate is lowered for a moment, and given back if the loss stays.

use std::time::{Duration, Instant};

/// A verdict needs so many packets, over so much time.
const LEAST_PACKETS: u32 = 60;
const LEAST_TIME: Duration = Duration::from_millis(700);
/// A viewer of few packets is judged by what there is.
const MOST_TIME: Duration = Duration::from_secs(3);
/// Up to here repeats mend everything, and it is not worth a trial.
const MENDED: f32 = 0.10;
/// More than what is usual on this link.
const UNUSUAL: f32 = 0.05;
/// So much more than usual, and the rate is not raised.
const SUSPECT: f32 = 0.03;
/// Waiting for the encoder to follow and the network to settle.
const SETTLE: Duration = Duration::from_millis(400);
/// After a trial that did not help, the next waits; and twice that after the next.
const FIRST_REST: Duration = Duration::from_secs(15);
const LONGEST_REST: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Less must be sent: what arrives is what there is room for.
    Congested,
    /// As `Congested`, to see whether it helps.
    Try,
    /// It did not help: as before the trial.
    Undo,
    /// It helped.
    Keep,
}

#[derive(Debug)]
pub(super) struct Loss {
    window: Option<Window>,
    last: f32,
    /// What is lost on this link when there is room.
    usual: f32,
    bad_windows: u32,
    trial: Option<Trial>,
    rest: Duration,
    rested_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    arrived: u32,
    lost: u32,
    saw_queue: bool,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    judged_from: Instant,
    loss: f32,
}

impl Default for Loss {
    fn default() -> Self {
        Self { window: None, last: 0.0, usual: 0.0, bad_windows: 0, trial: None, rest: FIRST_REST, rested_at: None }
    }
}

impl Loss {
    /// One feedback packet's count. `sees_queue`: packets wait, or waited when these were sent.
    pub(super) fn handle(
        &mut self,
        arrived: u32,
        lost: u32,
        late: u32,
        sees_queue: bool,
        now: Instant,
    ) -> Option<Verdict> {
        let window = self.window.get_or_insert(Window { since: now, arrived: 0, lost: 0, saw_queue: false });
        window.arrived += arrived + late;
        window.lost = (window.lost + lost).saturating_sub(late);
        window.saw_queue |= sees_queue;
        let window = *window;
        let (packets, time) = (window.arrived + window.lost, now.saturating_duration_since(window.since));
        let is_full = packets >= LEAST_PACKETS && time >= LEAST_TIME || packets > 0 && time >= MOST_TIME;
        if !is_full {
            return None;
        }
        self.window = None;
        self.last = window.lost as f32 / packets as f32;
        self.judge(window.saw_queue, now)
    }

    /// Of this window if it tells something already, else of the last one.
    pub(super) fn fraction(&self) -> f32 {
        let telling = self.window.filter(|window| window.arrived + window.lost >= LEAST_PACKETS);
        telling.map_or(self.last, |window| window.lost as f32 / (window.arrived + window.lost) as f32)
    }

    pub(super) fn may_raise(&self) -> bool {
        self.trial.is_none() && self.last < self.usual + SUSPECT
    }

    /// What was lost lately is no sign of anything.
    pub(super) fn forget_window(&mut self) {
        self.window = None;
        self.bad_windows = 0;
    }

    fn judge(&mut self, saw_queue: bool, now: Instant) -> Option<Verdict> {
        if let Some(trial) = self.trial {
            return self.judge_trial(trial, now);
        }
        if self.last <= MENDED || self.last <= self.usual + UNUSUAL {
            self.bad_windows = 0;
            self.grow_used_to(saw_queue);
            return None;
        }
        if saw_queue {
            return Some(Verdict::Congested);
        }
        self.bad_windows += 1;
        // One burst of a bad radio fills one window.
        if self.bad_windows < 2 || self.rested_at.is_some_and(|at| now < at) {
            return None;
        }
        self.bad_windows = 0;
        self.trial = Some(Trial { judged_from: now + SETTLE, loss: self.last });
        Some(Verdict::Try)
    }

    /// Down soon, up slowly, and not to what repeats do not mend: that takes a trial.
    fn grow_used_to(&mut self, saw_queue: bool) {
        let difference = self.last - self.usual;
        if difference < 0.0 {
            self.usual += difference * 0.5;
        } else if !saw_queue && self.last <= MENDED {
            self.usual += difference * 0.25;
        }
    }

    fn judge_trial(&mut self, trial: Trial, now: Instant) -> Option<Verdict> {
        // The whole window has to be of the time after it settled.
        if now < trial.judged_from + LEAST_TIME {
            return None;
        }
        self.trial = None;
        if self.last < trial.loss / 2.0 {
            self.rest = FIRST_REST;
            return Some(Verdict::Keep);
        }
        self.usual = self.last.max(self.usual);
        self.rested_at = Some(now + self.rest);
        self.rest = (self.rest * 2).min(LONGEST_REST);
        Some(Verdict::Undo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Feedback every 100 ms about 24 packets; the loss at the time is given.
    fn verdicts(
        loss: &mut Loss,
        start: Instant,
        seconds: u32,
        mut lost: impl FnMut(u32, Option<Verdict>) -> f32,
        sees_queue: bool,
    ) -> Vec<(u32, Verdict)> {
        let mut last = None;
        let mut all = Vec::new();
        let mut debt = 0.0;
        for tick in 0..seconds * 10 {
            debt += 24.0 * lost(tick, last);
            let gone = debt as u32;
            debt -= gone as f32;
            if let Some(verdict) = loss.handle(24 - gone, gone, 0, sees_queue, start + 100 * MS * tick) {
                all.push((tick, verdict));
                last = Some(verdict);
            }
        }
        all
    }

    #[test]
    fn loss_that_repeats_mend_is_let_be_and_becomes_usual() {
        let (mut loss, now) = (Loss::default(), Instant::now());
        assert_eq!(verdicts(&mut loss, now, 60, |_, _| 0.08, false), []);
        assert!(loss.may_raise());
        assert!((loss.fraction() - 0.08).abs() < 0.02);
    }

    #[test]
    fn loss_with_a_queue_is_congestion() {
        let (mut loss, now) = (Loss::default(), Instant::now());
        let all = verdicts(&mut loss, now, 2, |_, _| 0.2, true);
        assert_eq!(all[0].1, Verdict::Congested);
    }

    #[test]
    fn without_a_queue_less_is_tried_and_kept_if_it_helps() {
        let (mut loss, now) = (Loss::default(), Instant::now());
        let policer = |_, last| if matches!(last, Some(Verdict::Try | Verdict::Keep)) { 0.0 } else { 0.3 };
        let all: Vec<_> = verdicts(&mut loss, now, 30, policer, false).iter().map(|(_, verdict)| *verdict).collect();
        assert_eq!(all, [Verdict::Try, Verdict::Keep]);
    }

    #[test]
    fn what_does_not_help_is_undone_and_tried_ever_more_rarely() {
        let (mut loss, now) = (Loss::default(), Instant::now());
        // It becomes a little worse all the time, so that it never is the usual.
        let all = verdicts(&mut loss, now, 100, |tick, _| 0.12 + tick as f32 * 0.0007, false);
        let tries: Vec<_> = all.iter().filter(|(_, verdict)| *verdict == Verdict::Try).map(|(tick, _)| *tick).collect();
        assert!(tries.len() >= 2, "{all:?}");
        assert!(tries.windows(2).all(|pair| pair[1] - pair[0] >= 150), "{all:?}");
        assert_eq!(all.iter().filter(|(_, verdict)| *verdict == Verdict::Undo).count(), tries.len());
    }

    #[test]
    fn while_more_is_lost_than_usual_the_rate_is_not_raised() {
        let (mut loss, now) = (Loss::default(), Instant::now());
        verdicts(&mut loss, now, 5, |_, _| 0.01, false);
        assert!(loss.may_raise());
        verdicts(&mut loss, now + 5000 * MS, 1, |_, _| 0.09, false);
        assert!(!loss.may_raise());
    }
}
