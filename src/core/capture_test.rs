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
    assert_eq!(state, CameraState::BackingOff { error: "no picture for 2 s".into(), retry_in: Duration::from_secs(1) });
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
