//! How long a viewer is asked to hold pictures back, so that what was lost can be sent again in time.
//!
//! A picture shown the moment it is whole is the newest there can be, and on a clean network nothing else is wanted. Where
//! packets are lost, each one stops the picture until its repeat is there. Held back for as long as that takes,
//! nobody sees it.
//!
//! ```text
//!   delay                    ┌───────────────────────┐ lost packets, sent twice, are still in time
//!   0 ───────────────────────┘                       └─────────────
//!       loss ≥ 1 %, within about a second          10 s without loss
//! ```
//! Both ways are a slope: a leap would be a jerk of its own.

use std::time::{Duration, Instant};

/// In the last second or two so much was lost: pictures are held back.
const LOSSY: f32 = 0.01;
/// And less than this is as good as nothing.
const CLEAN: f32 = 0.005;
/// How long what was lost weighs.
const MEMORY: Duration = Duration::from_secs(1);
const HELD_FOR: Duration = Duration::from_secs(10);
/// A viewer that does not know its round trip asks again no sooner; so Chromium when it only receives.
const ASKS_AGAIN: Duration = Duration::from_millis(100);
/// Until it is noticed that a packet is missing (the next picture's first shows it), until the timer comes round by which
/// is asked again, and decoding.
const NOTICED: Duration = Duration::from_millis(80);
const MOST: Duration = Duration::from_millis(400);
const ASSUMED_ROUND_TRIP: Duration = Duration::from_millis(100);
/// A need that differs by less is none of another delay.
const ALIKE: Duration = Duration::from_millis(30);
/// Pictures play by so much of a second slower in each one while the delay grows, and faster while it shrinks.
const GROWS: f64 = 0.5;
const SHRINKS: f64 = 0.1;
/// The unit it is told in.
pub const STEP: Duration = Duration::from_millis(10);
/// After a change it is told with each picture for so long: some of them are lost.
const NEWS: Duration = Duration::from_secs(1);

/// One viewer's.
#[derive(Clone, Debug, Default)]
pub struct Playout {
    loss: f32,
    heard_at: Option<Instant>,
    /// When something was lost last.
    lossy_at: Option<Instant>,
    target: Duration,
    delay: Duration,
    moved_at: Option<Instant>,
    told: Duration,
    told_anew_at: Option<Instant>,
}

impl Playout {
    /// What part of the packets was lost lately, 0 to 1, and the round trip; to be told again as long as it is so.
    pub fn handle_loss(&mut self, loss: f32, round_trip: Option<Duration>, now: Instant) {
        let loss = if loss.is_finite() { loss.clamp(0.0, 1.0) } else { 0.0 };
        let since = self.heard_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.heard_at = Some(now);
        let weight = 1.0 - (-since.as_secs_f32() / MEMORY.as_secs_f32()).exp();
        self.loss += (loss - self.loss) * weight;
        let is_held = self.target > Duration::ZERO;
        if self.loss >= LOSSY || is_held && self.loss >= CLEAN {
            self.lossy_at = Some(now);
            let needed = needed(round_trip.unwrap_or(ASSUMED_ROUND_TRIP));
            if needed > self.target || needed + ALIKE < self.target {
                self.target = needed;
            }
        } else if self.lossy_at.is_none_or(|at| now.saturating_duration_since(at) >= HELD_FOR) {
            self.target = Duration::ZERO;
        }
    }

    /// What to say with the next picture, if anything: for how long to hold it and those that follow back, in whole steps,
    /// 400 ms at most.
    pub fn tell(&mut self, is_keyframe: bool, now: Instant) -> Option<Duration> {
        let delay = self.delay(now);
        if self.told != delay {
            (self.told, self.told_anew_at) = (delay, Some(now));
        }
        let is_news = self.told_anew_at.is_some_and(|at| now.saturating_duration_since(at) < NEWS);
        (is_keyframe || is_news).then_some(delay)
    }

    fn delay(&mut self, now: Instant) -> Duration {
        let since = self.moved_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.moved_at = Some(now);
        self.delay = if self.target > self.delay {
            self.target.min(self.delay + since.mul_f64(GROWS))
        } else {
            self.target.max(self.delay.saturating_sub(since.mul_f64(SHRINKS)))
        };
        STEP * (self.delay.as_millis() / STEP.as_millis()) as u32
    }
}

/// Until a packet is there of which the original and the first repeat were lost.
fn needed(round_trip: Duration) -> Duration {
    (NOTICED + round_trip.max(ASKS_AGAIN) + round_trip).min(MOST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const FRAME: Duration = Duration::from_millis(33);

    /// A viewer that is sent pictures, and says ten times a second what was lost.
    struct Watch {
        playout: Playout,
        now: Instant,
        told: Vec<Duration>,
    }

    impl Watch {
        fn new() -> Self {
            Self { playout: Playout::default(), now: Instant::now(), told: Vec::new() }
        }

        fn run(&mut self, time: Duration, loss: f32, round_trip: Duration) -> Duration {
            for frame in 0..time.as_millis() / FRAME.as_millis() {
                self.now += FRAME;
                if frame % 3 == 0 {
                    self.playout.handle_loss(loss, Some(round_trip), self.now);
                }
                self.told.push(self.playout.delay(self.now));
            }
            self.told.last().copied().unwrap_or_default()
        }
    }

    #[test]
    fn on_a_clean_network_pictures_are_shown_at_once() {
        let mut watch = Watch::new();
        assert_eq!(watch.run(30_000 * MS, 0.0, 50 * MS), Duration::ZERO);
        assert_eq!(watch.run(30_000 * MS, 0.009, 50 * MS), Duration::ZERO);
        assert!(watch.told.iter().all(Duration::is_zero));
    }

    #[test]
    fn under_loss_there_is_soon_room_for_two_repeats_and_more_of_it_for_a_far_viewer() {
        for (loss, round_trip, within, least, most) in [
            (0.05, 50, 1000, 210, 260),
            (0.02, 50, 1500, 210, 260),
            (0.05, 1, 1000, 170, 200),
            (0.05, 140, 1500, 360, 400),
            (0.05, 2000, 1500, 400, 400),
        ] {
            let mut watch = Watch::new();
            watch.run(10_000 * MS, 0.0, round_trip * MS);
            let delay = watch.run(within * MS, loss, round_trip * MS);
            assert!((least * MS..=most * MS).contains(&delay), "{loss} {round_trip}: {delay:?}");
        }
    }

    #[test]
    fn one_lost_packet_changes_nothing() {
        let mut watch = Watch::new();
        watch.run(5000 * MS, 0.0, 50 * MS);
        watch.run(700 * MS, 0.012, 50 * MS); // one of eighty, until the next count
        assert!(watch.run(5000 * MS, 0.0, 50 * MS).is_zero() && watch.told.iter().all(Duration::is_zero));
    }

    #[test]
    fn it_is_kept_while_something_is_lost_now_and_then_and_given_back_after_ten_seconds_without() {
        let mut watch = Watch::new();
        let held = watch.run(5000 * MS, 0.05, 50 * MS);
        assert!(held > Duration::ZERO);
        for _ in 0..10 {
            assert_eq!(watch.run(5000 * MS, 0.0, 50 * MS), held);
            assert_eq!(watch.run(1000 * MS, 0.02, 50 * MS), held);
        }
        assert_eq!(watch.run(9000 * MS, 0.0, 50 * MS), held);
        assert!(watch.run(10_000 * MS, 0.0, 50 * MS).is_zero());
    }

    #[test]
    fn a_change_is_told_with_each_picture_of_a_second_and_all_else_with_keyframes() {
        let mut watch = Watch::new();
        assert_eq!(watch.playout.tell(false, watch.now), None);
        assert_eq!(watch.playout.tell(true, watch.now), Some(Duration::ZERO));
        let held = watch.run(5000 * MS, 0.05, 50 * MS);
        for ms in (0..1000).step_by(33) {
            assert_eq!(watch.playout.tell(false, watch.now + ms * MS), Some(held));
        }
        assert_eq!(watch.playout.tell(false, watch.now + 1000 * MS), None);
        assert_eq!(watch.playout.tell(true, watch.now + 1000 * MS), Some(held));
    }

    #[test]
    fn a_round_trip_that_wavers_does_not_move_it() {
        let mut watch = Watch::new();
        watch.run(5000 * MS, 0.05, 60 * MS);
        let before = watch.told.len();
        for _ in 0..20 {
            watch.run(500 * MS, 0.05, 50 * MS);
            watch.run(500 * MS, 0.05, 60 * MS);
        }
        assert!(watch.told[before..].windows(2).all(|pair| pair[0] == pair[1]));
    }

    proptest! {
        /// Whatever is told: within its bounds, in its unit, never a leap, and nothing is left after quiet.
        #[test]
        fn it_never_leaps_and_always_comes_back(
            tells in proptest::collection::vec((-1f32..2.0, 0u64..3000, 0u32..60), 0..200)
        ) {
            let mut watch = Watch::new();
            watch.playout.handle_loss(f32::NAN, None, watch.now);
            for (loss, round_trip, frames) in tells {
                watch.run(FRAME * frames, loss, Duration::from_millis(round_trip));
            }
            prop_assert!(watch.told.iter().all(|told| *told <= MOST && told.as_millis() % 10 == 0));
            prop_assert!(watch.told.windows(2).all(|pair| pair[0].abs_diff(pair[1]) <= 20 * MS));
            prop_assert!(watch.run(30_000 * MS, 0.0, 50 * MS).is_zero());
        }
    }
}
