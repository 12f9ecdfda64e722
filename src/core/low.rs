//! When a camera's second encoder is opened, closed and tried again.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::camera::LowState;

/// What the owner of a [`LowCapture`] has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowStep {
    /// Open the second encoder; report with [`LowCapture::handle_state`].
    Open,
    /// Close it. Nothing is waited for.
    Close,
}

/// The low rendition of one camera: open exactly while it is wanted and the camera runs. What fails is left alone for a while, and
/// then tried again as long as it is wanted. Told the time, does nothing itself.
#[derive(Debug)]
pub struct LowCapture {
    wanted: bool,
    /// Whether the camera is open, and can have one.
    source: Source,
    phase: Phase,
    backoff: Backoff,
}

#[derive(Debug)]
enum Source {
    Closed,
    Open,
    /// There is nothing to encode a second time, for this reason; known until the camera is opened the next time.
    Unfit(String),
}

#[derive(Debug)]
enum Phase {
    Closed,
    Opening,
    Open { state: LowState, since: Instant },
    Failed { reason: String, retry_at: Instant },
}

impl LowCapture {
    /// A rendition that had been open for so long was well, and its next failure is retried soon.
    const WELL_AFTER: Duration = Duration::from_secs(10);

    /// Of a closed camera.
    pub fn new() -> Self {
        Self { wanted: false, source: Source::Closed, phase: Phase::Closed, backoff: Backoff::default() }
    }

    pub fn set_wanted(&mut self, wanted: bool) -> Option<LowStep> {
        self.wanted = wanted;
        match self.phase {
            Phase::Closed => self.open_if_wanted(),
            Phase::Opening | Phase::Open { .. } if !wanted => {
                self.phase = Phase::Closed;
                Some(LowStep::Close)
            }
            // A failure is kept until its time is over: who asks again and again does not make it try again and again.
            Phase::Opening | Phase::Open { .. } | Phase::Failed { .. } => None,
        }
    }

    /// The camera is open; what failed before may work with it now. `unfit`: why it can have no second encoder.
    pub fn handle_source_opened(&mut self, unfit: Option<String>) -> Option<LowStep> {
        self.phase = Phase::Closed;
        self.backoff.reset();
        self.source = unfit.map_or(Source::Open, Source::Unfit);
        self.open_if_wanted()
    }

    /// The camera closes, and the second encoder with it.
    pub fn handle_source_closed(&mut self) {
        self.phase = Phase::Closed;
        if matches!(self.source, Source::Open) {
            self.source = Source::Closed;
        }
    }

    /// What became of the second encoder. `random` in 0.0..=1.0 spreads the retry.
    pub fn handle_state(&mut self, state: LowState, random: f64, now: Instant) {
        if !matches!(self.phase, Phase::Opening | Phase::Open { .. }) {
            return;
        }
        match state {
            LowState::Unavailable { reason } => {
                let was_well = |since: &Instant| now.saturating_duration_since(*since) >= Self::WELL_AFTER;
                if matches!(&self.phase, Phase::Open { since, .. } if was_well(since)) {
                    self.backoff.reset();
                }
                self.phase = Phase::Failed { reason, retry_at: now + self.backoff.next(random) };
            }
            LowState::Open { .. } => self.phase = Phase::Open { state, since: now },
            LowState::Closed => {}
        }
    }

    /// To be called at [`Self::poll_timeout`]; calling it early or late does no harm.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<LowStep> {
        match self.phase {
            Phase::Failed { retry_at, .. } if now >= retry_at => {
                self.phase = Phase::Closed;
                self.open_if_wanted()
            }
            _ => None,
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Failed { retry_at, .. } => Some(retry_at),
            _ => None,
        }
    }

    /// Whether bitrate and keyframe requests reach an encoder.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Open { .. })
    }

    /// What is told to the world.
    pub fn state(&self) -> LowState {
        match (&self.source, &self.phase) {
            (Source::Unfit(reason), _) | (_, Phase::Failed { reason, .. }) => {
                LowState::Unavailable { reason: reason.clone() }
            }
            (_, Phase::Open { state, .. }) => state.clone(),
            (_, Phase::Closed | Phase::Opening) => LowState::Closed,
        }
    }

    fn open_if_wanted(&mut self) -> Option<LowStep> {
        let opens = self.wanted && matches!(self.source, Source::Open);
        opens.then(|| {
            self.phase = Phase::Opening;
            LowStep::Open
        })
    }
}

impl Default for LowCapture {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_opens_when_the_camera_runs_and_closes_when_nobody_needs_it() {
        let mut low = LowCapture::new();
        assert_eq!(low.set_wanted(true), None);
        assert_eq!(low.handle_source_opened(None), Some(LowStep::Open));
        low.handle_state(open(), 0.0, start());
        assert_eq!(low.state(), open());
        assert_eq!(low.set_wanted(false), Some(LowStep::Close));
        assert_eq!(low.state(), LowState::Closed);
        assert_eq!(low.set_wanted(true), Some(LowStep::Open));
    }

    #[test]
    fn a_camera_without_raw_pictures_says_so_and_is_never_asked() {
        let mut low = LowCapture::new();
        low.set_wanted(true);
        assert_eq!(low.handle_source_opened(Some("it encodes itself".into())), None);
        low.handle_source_closed();
        assert_eq!(low.set_wanted(true), None);
        assert_eq!(low.state(), unavailable("it encodes itself"));
    }

    #[test]
    fn what_failed_is_left_alone_for_longer_each_time() {
        let t0 = start();
        let mut low = running();
        let mut now = t0;
        for seconds in [1, 2, 4, 8] {
            low.handle_state(unavailable("broken"), 0.0, now);
            assert_eq!(low.state(), unavailable("broken"));
            assert_eq!(low.set_wanted(false), None);
            assert_eq!(low.set_wanted(true), None, "asking anew does not hurry it");
            assert_eq!(low.poll_timeout(), Some(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
            assert_eq!(low.handle_timeout(now), Some(LowStep::Open));
        }
    }

    #[test]
    fn a_failure_is_forgotten_when_its_time_is_over_so_that_somebody_may_ask_again() {
        let t0 = start();
        let mut low = running();
        low.handle_state(unavailable("broken"), 0.0, t0);
        low.set_wanted(false);
        assert_eq!(low.handle_timeout(t0 + Duration::from_secs(1)), None);
        assert_eq!(low.state(), LowState::Closed);
        assert_eq!(low.set_wanted(true), Some(LowStep::Open));
    }

    #[test]
    fn a_camera_that_is_opened_again_tries_at_once() {
        let t0 = start();
        let mut low = running();
        low.handle_state(unavailable("broken"), 0.0, t0);
        low.handle_source_closed();
        assert_eq!(low.state(), LowState::Closed);
        assert_eq!(low.handle_source_opened(None), Some(LowStep::Open));
    }

    #[test]
    fn one_failure_after_a_long_good_time_is_retried_soon() {
        let t0 = start();
        let mut low = running();
        for _ in 0..5 {
            low.handle_state(unavailable("broken"), 0.0, t0);
            low.handle_timeout(low.poll_timeout().unwrap());
        }
        low.handle_state(open(), 0.0, t0);
        let later = t0 + LowCapture::WELL_AFTER;
        low.handle_state(unavailable("broken"), 0.0, later);
        assert_eq!(low.poll_timeout(), Some(later + Backoff::SHORTEST));
    }

    proptest! {
        /// Whatever happens: it is open only while wanted on a running camera, and steps come in turns.
        #[test]
        fn steps_alternate_and_follow_the_wish(events in prop::collection::vec(0u8..7, 0..60)) {
            let (mut low, mut now, mut is_open) = (LowCapture::new(), start(), false);
            let (mut wanted, mut runs) = (false, false);
            for event in events {
                now += Duration::from_millis(700);
                let step = match event {
                    0 => { wanted = true; low.set_wanted(true) }
                    1 => { wanted = false; low.set_wanted(false) }
                    2 if !runs => { runs = true; low.handle_source_opened(None) }
                    3 => { (runs, is_open) = (false, false); low.handle_source_closed(); None }
                    4 => { low.handle_state(open(), 0.5, now); None }
                    5 => { low.handle_state(unavailable("broken"), 0.5, now); is_open = false; None }
                    _ => low.handle_timeout(now),
                };
                match step {
                    Some(LowStep::Open) => { prop_assert!(!is_open && wanted && runs); is_open = true; }
                    Some(LowStep::Close) => { prop_assert!(is_open && !wanted); is_open = false; }
                    None => {}
                }
                prop_assert_eq!(low.is_open(), is_open);
                prop_assert!(!is_open || wanted && runs);
                prop_assert!(is_open || !(wanted && runs) || low.poll_timeout().is_some());
            }
        }
    }

    fn running() -> LowCapture {
        let mut low = LowCapture::new();
        low.set_wanted(true);
        low.handle_source_opened(None);
        low
    }

    fn open() -> LowState {
        LowState::Open { width: 640, height: 360, encoder: "x264enc".into() }
    }

    fn unavailable(reason: &str) -> LowState {
        LowState::Unavailable { reason: reason.into() }
    }

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a test is where time begins")]
        Instant::now()
    }
}
