//! One camera's life: when its source is opened, closed and tried again.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::camera::CameraState;

/// What decides over one camera's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long the camera stays open when nobody watches any more.
    pub linger: Duration,
    /// Running, yet no picture for so long: the camera is closed and opened again.
    pub stall_after: Duration,
    /// Pictures for so long: the camera is well, and its next failure is retried soon.
    pub well_after: Duration,
}

/// What the owner of a [`Capture`] has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Open the source; report with [`Capture::handle_opened`] or [`Capture::handle_failure`].
    Open,
    /// Close the source; report with [`Capture::handle_closed`] when the device is free.
    Close,
}

/// One camera: when it is opened, closed and tried again. Told the time, does nothing itself.
///
/// ```text
///          wanted              opened              unwanted for `linger`
///   Idle ─────────▶ Opening ───────────▶ Running ────────────────────────▶ Closing ─▶ Idle
///    ▲               ▲   │ failed           │ failed, stalled                 (wanted again: Opening)
///    │ unwanted      │   ▼                  ▼
///    └────────── BackingOff ◀── closed ── Closing
/// ```
#[derive(Debug)]
pub struct Capture {
    patience: Patience,
    phase: Phase,
    /// Since when nobody wants pictures; `None` while somebody does.
    unwanted_since: Option<Instant>,
    lingers: bool,
    backoff: Backoff,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Opening,
    Running {
        since: Instant,
        last_unit: Instant,
        /// When it was seen to give no pictures.
        silent_at: Option<Instant>,
    },
    /// The device is being let go; with the reason when that was not our wish.
    Closing(Option<Failure>),
    BackingOff(Failure),
}

#[derive(Clone, Debug)]
struct Failure {
    error: String,
    retry_at: Instant,
}

impl Capture {
    /// A camera that seems silent is looked at once more after so long: where the whole machine stood still, what it gave
    /// meanwhile was only not counted yet.
    const SECOND_LOOK: Duration = Duration::from_millis(250);

    /// A closed camera that nobody watches.
    pub fn new(patience: Patience, now: Instant) -> Self {
        Self { patience, phase: Phase::Idle, unwanted_since: Some(now), lingers: true, backoff: Backoff::default() }
    }

    /// Whether anybody watches.
    pub fn set_wanted(&mut self, wanted: bool, now: Instant) -> Option<Step> {
        match (wanted, self.unwanted_since) {
            (true, _) => self.unwanted_since = None,
            (false, None) => self.unwanted_since = Some(now),
            (false, Some(_)) => {}
        }
        match self.phase {
            Phase::Idle if wanted => self.open(),
            // Lingering is for open devices: nobody needs a broken one kept warm.
            Phase::BackingOff(_) if !wanted => self.go_idle(),
            _ => self.close_if_lingered(now),
        }
    }

    /// Whether an open camera nobody wants may stay open for the linger; counts from the next call of anything else.
    pub fn set_lingering(&mut self, lingers: bool) {
        self.lingers = lingers;
    }

    /// Nobody will ask for this camera again.
    pub fn shut_down(&mut self, now: Instant) -> Option<Step> {
        self.set_lingering(false);
        self.set_wanted(false, now)
    }

    /// The source is open and has given its first picture.
    pub fn handle_opened(&mut self, now: Instant) -> Option<Step> {
        if !matches!(self.phase, Phase::Opening) {
            return None;
        }
        self.phase = Phase::Running { since: now, last_unit: now, silent_at: None };
        self.close_if_lingered(now)
    }

    /// Pictures have come, one or many, the newest at this time.
    pub fn handle_unit(&mut self, at: Instant) {
        if let Phase::Running { since, last_unit, silent_at } = &mut self.phase {
            if at > *last_unit {
                (*last_unit, *silent_at) = (at, None);
            }
            if at.saturating_duration_since(*since) >= self.patience.well_after {
                self.backoff.reset();
            }
        }
    }

    /// The source could not be opened, or failed while open. `random` in 0.0..=1.0 spreads the retry.
    pub fn handle_failure(&mut self, error: String, random: f64, now: Instant) -> Option<Step> {
        match self.phase {
            Phase::Opening if self.unwanted_since.is_some() => self.go_idle(),
            Phase::Opening => {
                self.phase = Phase::BackingOff(self.failure(error, random, now));
                None
            }
            Phase::Running { .. } => {
                self.phase = Phase::Closing(Some(self.failure(error, random, now)));
                Some(Step::Close)
            }
            Phase::Idle | Phase::Closing(_) | Phase::BackingOff(_) => None,
        }
    }

    /// The opening was cut short because nobody wanted it any more. Whoever has come since then did nothing wrong.
    pub fn handle_cancelled(&mut self) -> Option<Step> {
        match self.phase {
            Phase::Opening if self.unwanted_since.is_some() => self.go_idle(),
            Phase::Opening => self.open(),
            Phase::Idle | Phase::Running { .. } | Phase::Closing(_) | Phase::BackingOff(_) => None,
        }
    }

    /// The source is closed and the device free.
    pub fn handle_closed(&mut self, now: Instant) -> Option<Step> {
        let Phase::Closing(failure) = &mut self.phase else { return None };
        match failure.take() {
            _ if self.unwanted_since.is_some() => self.go_idle(),
            None => self.open(),
            Some(failure) => {
                self.phase = Phase::BackingOff(failure);
                self.handle_timeout(0.0, now)
            }
        }
    }

    /// A device has come that was missing: no need to wait longer.
    pub fn handle_plugged(&mut self) -> Option<Step> {
        let Phase::BackingOff(_) = self.phase else { return None };
        // It may need another moment, until its permissions are set.
        self.backoff.reset();
        self.open()
    }

    /// To be called at [`Self::poll_timeout`]; calling it early or late does no harm.
    pub fn handle_timeout(&mut self, random: f64, now: Instant) -> Option<Step> {
        let stall_after = self.patience.stall_after;
        match &mut self.phase {
            Phase::Running { last_unit, silent_at: Some(since), .. }
                if now >= *since + Self::SECOND_LOOK && now >= *last_unit + stall_after =>
            {
                let error = format!("no picture for {} s", stall_after.as_secs_f32());
                self.handle_failure(error, random, now)
            }
            Phase::Running { last_unit, silent_at, .. } => {
                if now + Self::SECOND_LOOK >= *last_unit + stall_after {
                    silent_at.get_or_insert(now);
                }
                self.close_if_lingered(now)
            }
            Phase::BackingOff(failure) if now >= failure.retry_at => self.open(),
            _ => None,
        }
    }

    /// When [`Self::handle_timeout`] has something to do; `None` while only an event can change anything.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Running { last_unit, silent_at, .. } => {
                let stalled_at = *last_unit + self.patience.stall_after;
                let stalled_at =
                    silent_at.map_or(stalled_at - Self::SECOND_LOOK, |at| stalled_at.max(at + Self::SECOND_LOOK));
                Some(self.lingered_at().map_or(stalled_at, |at| at.min(stalled_at)))
            }
            Phase::BackingOff(failure) => Some(failure.retry_at),
            Phase::Idle | Phase::Opening | Phase::Closing(_) => None,
        }
    }

    /// Whether the device is certainly not ours: neither open nor on its way there or back.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::BackingOff(_))
    }

    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }

    /// What is told to the world.
    pub fn state(&self, now: Instant) -> CameraState {
        match &self.phase {
            Phase::Idle => CameraState::Idle,
            Phase::Closing(None) if self.unwanted_since.is_some() => CameraState::Running,
            Phase::Opening | Phase::Closing(None) => CameraState::Opening,
            Phase::Running { .. } => CameraState::Running,
            Phase::Closing(Some(failure)) | Phase::BackingOff(failure) => CameraState::BackingOff {
                error: failure.error.clone(),
                retry_in: failure.retry_at.saturating_duration_since(now),
            },
        }
    }

    fn open(&mut self) -> Option<Step> {
        self.phase = Phase::Opening;
        Some(Step::Open)
    }

    fn go_idle(&mut self) -> Option<Step> {
        self.phase = Phase::Idle;
        self.backoff.reset();
        None
    }

    fn close_if_lingered(&mut self, now: Instant) -> Option<Step> {
        let Phase::Running { .. } = self.phase else { return None };
        let lingered = self.lingered_at().is_some_and(|at| now >= at);
        lingered.then(|| {
            self.phase = Phase::Closing(None);
            Step::Close
        })
    }

    /// When a camera that is open is to be closed; `None` while it is wanted.
    fn lingered_at(&self) -> Option<Instant> {
        let linger = if self.lingers { self.patience.linger } else { Duration::ZERO };
        self.unwanted_since.map(|since| since + linger)
    }

    fn failure(&mut self, error: String, random: f64, now: Instant) -> Failure {
        Failure { error, retry_at: now + self.backoff.next(random) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Patience = Patience {
        linger: Duration::from_secs(10),
        stall_after: Duration::from_secs(2),
        well_after: Duration::from_secs(10),
    };

    #[test]
    fn a_camera_nobody_watches_closes_after_the_linger() {
        let t0 = start();
        let mut capture = running(t0);
        assert_eq!(capture.set_wanted(false, t0), None);
        for s in 1..10 {
            capture.handle_unit(after(t0, s));
            assert_eq!(capture.handle_timeout(0.5, after(t0, s)), None);
        }
        assert_eq!(capture.handle_timeout(0.5, after(t0, 10)), Some(Step::Close));
        assert_eq!(capture.handle_closed(after(t0, 11)), None);
        assert_eq!(capture.state(after(t0, 11)), CameraState::Idle);
    }

    #[test]
    fn a_viewer_who_comes_back_within_the_linger_finds_the_camera_open() {
        let t0 = start();
        let mut capture = running(t0);
        capture.set_wanted(false, t0);
        capture.set_wanted(true, after(t0, 9));
        capture.handle_unit(after(t0, 60));
        assert_eq!(capture.handle_timeout(0.5, after(t0, 60)), None);
        assert!(capture.is_running());
    }

    #[test]
    fn asking_again_to_close_does_not_prolong_the_linger() {
        let t0 = start();
        let mut capture = running(t0);
        capture.set_wanted(false, t0);
        assert_eq!(capture.set_wanted(false, after(t0, 9)), None);
        assert_eq!(capture.set_wanted(false, after(t0, 10)), Some(Step::Close));
    }

    #[test]
    fn a_silent_camera_is_closed_and_opened_again() {
        let t0 = start();
        let mut capture = running(t0);
        assert_eq!(capture.poll_timeout(), Some(after(t0, 2) - Capture::SECOND_LOOK));
        assert_eq!(capture.handle_timeout(0.0, after(t0, 2) - Capture::SECOND_LOOK), None);
        assert_eq!(capture.poll_timeout(), Some(after(t0, 2)));
        assert_eq!(capture.handle_timeout(0.0, after(t0, 2)), Some(Step::Close));
        let state = capture.state(after(t0, 2));
        assert_eq!(
            state,
            CameraState::BackingOff { error: "no picture for 2 s".into(), retry_in: Duration::from_secs(1) }
        );
        assert_eq!(capture.handle_closed(after(t0, 2)), None);
        assert_eq!(capture.handle_timeout(0.0, after(t0, 3)), Some(Step::Open));
    }

    #[test]
    fn where_the_whole_machine_stood_still_the_camera_has_a_moment_to_show_that_it_did_not() {
        let t0 = start();
        let mut capture = running(t0);
        let woken = after(t0, 5);
        assert_eq!(capture.handle_timeout(0.0, woken), None);
        assert_eq!(capture.poll_timeout(), Some(woken + Capture::SECOND_LOOK));
        capture.handle_unit(woken + Capture::SECOND_LOOK / 2);
        assert_eq!(capture.handle_timeout(0.0, woken + Capture::SECOND_LOOK), None);
        assert!(capture.is_running());
    }

    #[test]
    fn a_device_that_took_long_to_close_is_opened_at_once() {
        let t0 = start();
        let mut capture = running(t0);
        capture.handle_failure("unplugged".into(), 0.0, t0);
        assert_eq!(capture.handle_closed(after(t0, 5)), Some(Step::Open));
    }

    #[test]
    fn a_camera_that_fails_after_each_start_is_retried_less_and_less_often() {
        let t0 = start();
        let mut now = t0;
        let mut capture = running(now);
        let mut delays = Vec::new();
        for _ in 0..7 {
            capture.handle_unit(now);
            capture.handle_failure("unplugged".into(), 0.0, now);
            capture.handle_closed(now);
            delays.push((capture.poll_timeout().unwrap() - now).as_secs());
            now = capture.poll_timeout().unwrap();
            assert_eq!(capture.handle_timeout(0.0, now), Some(Step::Open));
            capture.handle_opened(now);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 20, 20]);
    }

    #[test]
    fn a_camera_that_was_well_is_retried_soon() {
        let t0 = start();
        let mut capture = running(t0);
        for failure in 0..5 {
            let start = after(t0, 100 * failure);
            capture.handle_unit(start + PATIENCE.well_after);
            capture.handle_failure("unplugged".into(), 0.0, start + PATIENCE.well_after);
            capture.handle_closed(start + PATIENCE.well_after);
            assert_eq!(capture.poll_timeout(), Some(start + PATIENCE.well_after + Backoff::SHORTEST));
            capture.handle_timeout(0.0, after(t0, 100 * (failure + 1)));
            capture.handle_opened(after(t0, 100 * (failure + 1)));
        }
    }

    #[test]
    fn a_camera_plugged_in_again_is_opened_at_once() {
        let t0 = start();
        let mut capture = Capture::new(PATIENCE, t0);
        assert_eq!(capture.set_wanted(true, t0), Some(Step::Open));
        assert_eq!(capture.handle_failure("absent".into(), 1.0, t0), None);
        assert_eq!(capture.handle_plugged(), Some(Step::Open));
        assert_eq!(capture.handle_plugged(), None);
    }

    #[test]
    fn a_broken_camera_is_left_alone_when_nobody_watches() {
        let t0 = start();
        let mut capture = Capture::new(PATIENCE, t0);
        capture.set_wanted(true, t0);
        capture.handle_failure("absent".into(), 0.0, t0);
        assert_eq!(capture.set_wanted(false, t0), None);
        assert_eq!(capture.state(t0), CameraState::Idle);
        assert_eq!(capture.poll_timeout(), None);
    }

    #[test]
    fn shutting_down_closes_without_linger_even_while_opening() {
        let t0 = start();
        let mut capture = running(t0);
        assert_eq!(capture.shut_down(t0), Some(Step::Close));

        let mut capture = Capture::new(PATIENCE, t0);
        capture.set_wanted(true, t0);
        assert_eq!(capture.shut_down(t0), None);
        assert_eq!(capture.handle_opened(t0), Some(Step::Close));
        assert_eq!(capture.handle_closed(t0), None);
        assert!(capture.is_closed());
    }

    #[test]
    fn a_camera_switched_off_closes_at_once_even_while_it_lingers() {
        let t0 = start();
        let mut capture = running(t0);
        capture.set_lingering(false);
        assert_eq!(capture.set_wanted(false, t0), Some(Step::Close));

        let mut capture = running(t0);
        assert_eq!(capture.set_wanted(false, t0), None);
        capture.set_lingering(false);
        assert_eq!(capture.set_wanted(false, after(t0, 1)), Some(Step::Close));
        assert_eq!(capture.handle_closed(after(t0, 1)), None);
        capture.set_lingering(true);
        assert_eq!(capture.set_wanted(true, after(t0, 2)), Some(Step::Open));
    }

    /// The world around a [`Capture`]: a device that is opened and closed as told, and may break.
    struct World {
        now: Instant,
        capture: Capture,
        wanted: bool,
        off: bool,
        device: Device,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Device {
        Closed,
        Opening,
        Open,
        Closing,
    }

    #[derive(Clone, Copy, Debug)]
    enum Happening {
        Wanted(bool),
        SwitchedOff,
        Wait(Duration),
        /// The device finishes what it was told.
        Done,
        /// The device fails, whether it is being opened or open.
        Fails,
        Unit,
        Plugged,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            any::<bool>().prop_map(Happening::Wanted),
            Just(Happening::SwitchedOff),
            (0u64..15_000).prop_map(|ms| Happening::Wait(Duration::from_millis(ms))),
            Just(Happening::Done),
            Just(Happening::Fails),
            Just(Happening::Unit),
            Just(Happening::Plugged),
        ]
    }

    impl World {
        fn new() -> Self {
            let now = start();
            Self { now, capture: Capture::new(PATIENCE, now), wanted: false, off: false, device: Device::Closed }
        }

        fn handle(&mut self, happening: Happening) {
            let now = self.now;
            let step = match (happening, self.device) {
                (Happening::Wanted(wanted), _) => {
                    (self.wanted, self.off) = (wanted, false);
                    self.capture.set_lingering(true);
                    self.capture.set_wanted(wanted, now)
                }
                (Happening::SwitchedOff, _) => {
                    (self.wanted, self.off) = (false, true);
                    self.capture.set_lingering(false);
                    self.capture.set_wanted(false, now)
                }
                (Happening::Wait(time), _) => {
                    self.now += time;
                    self.capture.handle_timeout(0.5, self.now)
                }
                (Happening::Done, Device::Opening) => {
                    self.device = Device::Open;
                    self.capture.handle_opened(now)
                }
                (Happening::Done, Device::Closing) => {
                    self.device = Device::Closed;
                    self.capture.handle_closed(now)
                }
                (Happening::Fails, Device::Opening) => {
                    self.device = Device::Closed;
                    self.capture.handle_failure("broken".into(), 0.5, now)
                }
                (Happening::Fails, Device::Open) => self.capture.handle_failure("broken".into(), 0.5, now),
                (Happening::Unit, Device::Open) => {
                    self.capture.handle_unit(now);
                    None
                }
                (Happening::Plugged, _) => self.capture.handle_plugged(),
                (Happening::Done | Happening::Fails | Happening::Unit, _) => None,
            };
            match step {
                Some(Step::Open) => {
                    assert_eq!(self.device, Device::Closed, "opened a device that was not closed");
                    assert!(self.wanted, "opened a camera nobody watches");
                    self.device = Device::Opening;
                }
                Some(Step::Close) => {
                    assert_eq!(self.device, Device::Open, "closed a device that was not open");
                    self.device = Device::Closing;
                }
                None => {}
            }
            assert!(!self.off || self.device != Device::Open, "open although it is switched off");
            assert_eq!(self.capture.is_running(), self.device == Device::Open);
            assert_eq!(self.capture.is_closed(), self.device == Device::Closed);
        }

        /// Lets the device do as told and the time pass, for as long as the capture itself asks for.
        fn settle(&mut self, pictures: bool) {
            for _ in 0..8 {
                self.handle(Happening::Done);
                if pictures {
                    self.handle(Happening::Unit);
                }
                let wait = match self.capture.poll_timeout() {
                    Some(at) if !(pictures && self.wanted && self.capture.is_running()) => {
                        at.saturating_duration_since(self.now)
                    }
                    _ => Duration::ZERO,
                };
                self.handle(Happening::Wait(wait));
            }
        }
    }

    proptest! {
        #[test]
        fn a_device_is_never_opened_twice_nor_closed_twice(happenings in prop::collection::vec(happening(), 0..200)) {
            let mut world = World::new();
            for happening in happenings {
                world.handle(happening);
            }
        }

        #[test]
        fn a_watched_camera_runs_in_the_end_whatever_happened(happenings in prop::collection::vec(happening(), 0..100)) {
            let mut world = World::new();
            for happening in happenings {
                world.handle(happening);
            }
            world.handle(Happening::Wanted(true));
            world.settle(true);
            prop_assert!(world.capture.is_running());
        }

        #[test]
        fn an_unwatched_camera_is_closed_in_the_end(happenings in prop::collection::vec(happening(), 0..100)) {
            let mut world = World::new();
            for happening in happenings {
                world.handle(happening);
            }
            world.handle(Happening::Wanted(false));
            world.settle(false);
            prop_assert_eq!(world.capture.state(world.now), CameraState::Idle);
            prop_assert_eq!(world.capture.poll_timeout(), None);
        }

        #[test]
        fn a_watched_camera_is_retried_for_ever(failures in 1usize..200) {
            let mut world = World::new();
            world.handle(Happening::Wanted(true));
            for _ in 0..failures {
                world.handle(Happening::Fails);
                let at = world.capture.poll_timeout().unwrap();
                prop_assert!(at - world.now <= Backoff::LONGEST);
                world.handle(Happening::Wait(at - world.now));
                prop_assert_eq!(world.device, Device::Opening);
            }
        }
    }

    fn running(now: Instant) -> Capture {
        let mut capture = Capture::new(PATIENCE, now);
        assert_eq!(capture.set_wanted(true, now), Some(Step::Open));
        assert_eq!(capture.handle_opened(now), None);
        capture
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do to count from")]
    fn start() -> Instant {
        Instant::now()
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }
}
