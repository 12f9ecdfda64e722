use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::core::access_unit::Bitrate;
use crate::core::renditions::{Range, RenditionsSettings};
use crate::core::signal::CameraId;

const GAP: Duration = Duration::from_millis(500);
const RENDITIONS: RenditionsSettings = RenditionsSettings {
    high: Range { least: Bitrate::from_kbps(150), most: Bitrate::from_kbps(2000) },
    low: Some(Range { least: Bitrate::from_kbps(100), most: Bitrate::from_kbps(500) }),
};
const MINUTE: Duration = Duration::from_secs(60);

fn camera() -> Camera {
    let settings = ViewedCamera { id: CameraId::new("front").unwrap(), max_viewers: 8, renditions: RENDITIONS };
    Camera::new(settings, true, GAP)
}

/// One whose source is open; its linger may keep it so.
fn open_camera(now: Instant) -> Camera {
    let mut camera = camera();
    camera.handle_back(now);
    camera
}

fn keyframe(captured_at: Instant) -> AccessUnit {
    AccessUnit { captured_at, is_keyframe: true, data: Bytes::from_static(b"a keyframe") }
}

fn picture_comes(camera: &mut Camera, now: Instant) {
    camera.handle_unit(Rendition::High, &keyframe(now), now);
}

fn id(name: &str) -> Correlation {
    Some(name.into())
}

fn wake(camera: &mut Camera, name: &str, ttl: Duration, now: Instant) {
    camera.trigger(Action::Wake { ttl }, id(name), now).unwrap();
}

/// What was told so far is of no interest.
fn forget_told(camera: &mut Camera) {
    camera.take_told().for_each(drop);
}

/// Each event with its trigger's id.
fn events(camera: &mut Camera) -> Vec<(String, Happening)> {
    let event = |told| match told {
        Told::Event(Event { trigger, happening, .. }) => Some((trigger.as_deref().unwrap_or("-").into(), happening)),
        _ => None,
    };
    camera.take_told().filter_map(event).collect()
}

fn stills(camera: &mut Camera) -> Vec<(u64, Result<Instant, RejectReason>)> {
    let still = |told| match told {
        Told::Still { still, outcome } => Some((still.0, outcome.map(|unit| unit.captured_at))),
        _ => None,
    };
    camera.take_told().filter_map(still).collect()
}

fn demands(camera: &mut Camera) -> Vec<Demand> {
    let demand = |told| if let Told::Demand(demand) = told { Some(demand) } else { None };
    camera.take_told().filter_map(demand).collect()
}

#[test]
fn a_trigger_opens_the_camera_and_is_told_of_the_first_picture_and_of_the_end() {
    let (mut camera, now) = (camera(), Instant::now());
    wake(&mut camera, "bell", MINUTE, now);
    assert!(matches!(demands(&mut camera)[..], [Demand { running: true, keyframe: 1, .. }]));
    picture_comes(&mut camera, now);
    assert_eq!(events(&mut camera), [], "who looks now finds it still opening");
    camera.handle_back(now);
    picture_comes(&mut camera, now);
    assert_eq!(events(&mut camera), [("bell".into(), Happening::Woken)]);
    assert_eq!(camera.poll_timeout(), Some(now + MINUTE));
    camera.handle_timeout(now + MINUTE);
    let told: Vec<_> = camera.take_told().collect();
    assert!(matches!(&told[0], Told::Event(Event { happening: Happening::Asleep, .. })), "{told:?}");
    assert!(matches!(told[1..], [Told::Demand(Demand { running: false, off: false, .. })]), "{told:?}");
}

#[test]
fn a_triggers_time_begins_with_the_picture_but_is_not_waited_for_without_end() {
    let now = Instant::now();
    let mut camera = open_camera(now);
    let second = Duration::from_secs(1);
    wake(&mut camera, "bell", second, now);
    picture_comes(&mut camera, now + second * 8);
    assert_eq!(camera.poll_timeout(), Some(now + second * 9));

    wake(&mut camera, "bell", second, now + second * 8);
    camera.handle_timeout(now + second * 18);
    assert_eq!(events(&mut camera).last(), Some(&("bell".into(), Happening::Asleep)), "it gives no picture");
}

#[test]
fn of_several_triggers_the_longest_holds_and_the_newest_is_named() {
    let now = Instant::now();
    let mut camera = open_camera(now);
    wake(&mut camera, "bell", MINUTE, now);
    picture_comes(&mut camera, now);
    wake(&mut camera, "sensor", MINUTE / 60, now);
    picture_comes(&mut camera, now);
    let woken = |id: &str| (id.to_owned(), Happening::Woken);
    assert_eq!(events(&mut camera), [woken("bell"), woken("sensor")]);
    camera.handle_timeout(now + MINUTE - GAP);
    assert_eq!(events(&mut camera), []);
    camera.handle_timeout(now + MINUTE);
    assert_eq!(events(&mut camera), [("sensor".into(), Happening::Asleep)]);
}

#[test]
fn a_trigger_holds_no_camera_for_longer_than_an_hour() {
    let (mut camera, now) = (camera(), Instant::now());
    wake(&mut camera, "bell", Duration::MAX, now);
    assert_eq!(camera.poll_timeout(), Some(now + Action::LONGEST_TTL));
}

#[test]
fn sleep_ends_what_a_trigger_holds_and_leaves_viewers_alone() {
    let (mut camera, now) = (camera(), Instant::now());
    wake(&mut camera, "bell", MINUTE, now);
    camera.watch(now);
    forget_told(&mut camera);
    camera.trigger(Action::Sleep, id("timer"), now).unwrap();
    assert_eq!(events(&mut camera), [("timer".into(), Happening::Asleep)]);
    camera.trigger(Action::Sleep, id("timer"), now).unwrap();
    assert!(camera.take_told().next().is_none(), "nothing was left to end");
    camera.unwatch();
    assert!(matches!(demands(&mut camera)[..], [Demand { running: false, .. }]));
}

/// What is told of renditions: moves, and the demand as it is at last.
fn moved(camera: &mut Camera) -> (Vec<Rendition>, Option<Demand>) {
    let (mut moves, mut demand) = (Vec::new(), None);
    for told in camera.take_told() {
        match told {
            Told::Move { rendition, .. } => moves.push(rendition),
            Told::Demand(new) => demand = Some(new),
            _ => {}
        }
    }
    (moves, demand)
}

#[test]
fn a_slow_viewer_opens_the_low_rendition_and_one_that_heals_goes_back_with_a_keyframe() {
    let (mut camera, mut now) = (open_camera(Instant::now()), Instant::now());
    let [fast, slow] = [1, 2].map(SessionId::numbered);
    for session in [fast, slow] {
        camera.watch(now);
        camera.viewer_joined(session, Quality::Auto, now);
        camera.hear(session, Network::Carries { estimate: Bitrate::from_kbps(5000), is_untried: false }, now);
    }
    moved(&mut camera);
    let mut run = |camera: &mut Camera, estimate, time: Duration| {
        camera.hear(slow, Network::Carries { estimate: Bitrate::from_kbps(estimate), is_untried: false }, now);
        let end = now + time;
        while let Some(at) = camera.poll_timeout().filter(|&at| at <= end) {
            now = at;
            camera.handle_timeout(now);
        }
        now = end;
        moved(camera)
    };
    let (moves, demand) = run(&mut camera, 400, Duration::from_secs(10));
    let Demand { bitrate, low, keyframe, .. } = demand.unwrap();
    assert_eq!((moves, bitrate.kbps()), (vec![Rendition::Low], 2000));
    assert_eq!(low.unwrap().bitrate.kbps(), 350);
    assert_eq!(camera.rendition(slow), Rendition::Low);
    let (moves, demand) = run(&mut camera, 5000, Duration::from_secs(20));
    let demand = demand.unwrap();
    assert_eq!((moves, demand.low), (vec![Rendition::High], None));
    assert_eq!(demand.keyframe, keyframe + 1);
    assert_eq!(camera.poll_timeout(), None, "nothing is left to be decided");
}

#[test]
fn viewers_who_come_while_a_trigger_holds_the_camera_are_told_with_its_id() {
    let (mut camera, now) = (camera(), Instant::now());
    wake(&mut camera, "bell", MINUTE, now);
    camera.viewers = 1;
    camera.viewer_joined(SessionId::numbered(1), Quality::Auto, now);
    assert_eq!(events(&mut camera), [("bell".into(), Happening::ViewerJoined { viewers: 1 })]);
}

#[test]
fn a_still_opens_the_camera_gets_the_next_keyframe_and_lets_go() {
    let (mut camera, now) = (camera(), Instant::now());
    camera.ask_still(StillId(1), now);
    camera.ask_still(StillId(2), now);
    assert!(matches!(demands(&mut camera)[..], [Demand { running: true, keyframe: 1, .. }]));
    camera.handle_unit(Rendition::High, &AccessUnit { is_keyframe: false, ..keyframe(now) }, now);
    assert_eq!(stills(&mut camera), []);
    picture_comes(&mut camera, now + GAP);
    let told: Vec<_> = camera.take_told().collect();
    assert!(
        matches!(
            &told[..],
            [
                Told::Still { still: StillId(1), outcome: Ok(_) },
                Told::Still { still: StillId(2), outcome: Ok(_) },
                Told::Demand(Demand { running: false, .. }),
            ]
        ),
        "{told:?}"
    );
}

#[test]
fn no_more_than_eight_wait_for_a_still_and_none_for_longer_than_ten_seconds() {
    let (mut camera, now) = (camera(), Instant::now());
    for still in 0..9 {
        camera.ask_still(StillId(still), now);
    }
    assert!(matches!(stills(&mut camera)[..], [(8, Err(RejectReason::Busy { .. }))]));
    camera.handle_timeout(now + GAP);
    assert_eq!(camera.poll_timeout(), Some(now + STILL_WITHIN));
    forget_told(&mut camera);
    camera.handle_timeout(now + STILL_WITHIN);
    let told = stills(&mut camera);
    assert_eq!(told.len(), 8);
    assert!(told.iter().all(|(_, outcome)| matches!(outcome, Err(RejectReason::CameraLost(_)))), "{told:?}");
    assert_eq!(camera.poll_timeout(), None);
}

#[test]
fn who_asks_for_still_after_still_does_not_spoil_the_picture_of_those_who_watch() {
    let (mut camera, start) = (camera(), Instant::now());
    camera.watch(start);
    let mut keyframes = 0;
    for second in 1..=60 {
        let now = start + Duration::from_secs(second);
        camera.ask_still(StillId(second), now);
        camera.handle_timeout(now + GAP);
        let asked = demands(&mut camera).last().map_or(keyframes, |demand| demand.keyframe);
        if asked > keyframes {
            picture_comes(&mut camera, now + GAP);
        }
        keyframes = asked;
    }
    assert!((30..=36).contains(&keyframes), "{keyframes} keyframes in a minute");
}

#[test]
fn a_camera_that_fails_gives_no_stills_and_says_so_at_once() {
    let (mut camera, now) = (camera(), Instant::now());
    wake(&mut camera, "bell", MINUTE, now);
    camera.ask_still(StillId(1), now);
    assert!(camera.handle_lost("unplugged"));
    camera.ask_still(StillId(2), now);
    let lost = || Err(RejectReason::CameraLost("unplugged".into()));
    assert_eq!(stills(&mut camera), [(1, lost()), (2, lost())]);
}

#[test]
fn a_camera_that_fails_and_comes_back_is_told_of_without_any_viewer() {
    let (mut camera, now) = (camera(), Instant::now());
    wake(&mut camera, "bell", MINUTE, now);
    camera.handle_lost("unplugged");
    camera.handle_lost("unplugged");
    camera.handle_back(now);
    camera.handle_back(now);
    let reason = "unplugged".into();
    let expected = [Happening::CameraLost { reason }, Happening::CameraBack].map(|what| ("bell".into(), what));
    assert_eq!(events(&mut camera), expected);
}

#[test]
fn switching_off_stops_the_camera_first_and_ends_all_that_held_it() {
    let (mut camera, now) = (camera(), Instant::now());
    wake(&mut camera, "bell", MINUTE, now);
    camera.ask_still(StillId(1), now);
    forget_told(&mut camera);
    camera.switch(false, id("owner"), now);
    let told: Vec<_> = camera.take_told().collect();
    assert!(
        matches!(
            &told[..],
            [
                Told::Demand(Demand { running: false, off: true, .. }),
                Told::ForgetPictures,
                Told::Switched { on: false },
                Told::Event(Event { happening: Happening::Disabled, .. }),
                Told::Still { outcome: Err(RejectReason::Disabled), .. },
                Told::Event(Event { happening: Happening::Asleep, .. }),
            ]
        ),
        "{told:?}"
    );
    assert_eq!(camera.trigger(Action::Wake { ttl: MINUTE }, None, now), Err(RejectReason::Disabled));
    camera.ask_still(StillId(2), now);
    assert_eq!(stills(&mut camera), [(2, Err(RejectReason::Disabled))]);
}

#[test]
fn a_switch_that_changes_nothing_tells_nothing() {
    let (mut camera, now) = (camera(), Instant::now());
    camera.switch(true, None, now);
    camera.switch(false, None, now);
    forget_told(&mut camera);
    camera.switch(false, None, now);
    assert!(camera.take_told().next().is_none());
}

#[test]
fn no_picture_from_before_the_switch_is_shown_after_it() {
    let (mut camera, now) = (camera(), Instant::now());
    wake(&mut camera, "bell", MINUTE, now);
    camera.switch(false, None, now + GAP);
    camera.switch(true, None, now + GAP * 2);
    wake(&mut camera, "bell", MINUTE, now + GAP * 2);
    let mut shows = |gaps| camera.handle_unit(Rendition::High, &keyframe(now + GAP * gaps), now + GAP * 2);
    assert!(!shows(0), "taken before it was switched off");
    assert!(!shows(1), "taken while it was off");
    assert!(shows(2));
}

#[derive(Clone, Debug)]
enum Op {
    Watch,
    Unwatch,
    Wake(u64),
    Sleep,
    Still,
    Unit { is_keyframe: bool, age_ms: u64 },
    Lost,
    Back,
    KeyframeWanted,
    Switch(bool),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Watch),
        Just(Op::Unwatch),
        (1..20_000u64).prop_map(Op::Wake),
        Just(Op::Sleep),
        Just(Op::Still),
        (any::<bool>(), 0..2000u64).prop_map(|(is_keyframe, age_ms)| Op::Unit { is_keyframe, age_ms }),
        Just(Op::Lost),
        Just(Op::Back),
        Just(Op::KeyframeWanted),
        any::<bool>().prop_map(Op::Switch),
        (0..6000u64).prop_map(Op::Wait),
    ]
}

/// What is known of a camera by what it told, and by what was asked of it.
struct World {
    camera: Camera,
    now: Instant,
    running: bool,
    on: bool,
    watching: usize,
    /// The end of what holds it, as long as no picture comes.
    held_until: Option<Instant>,
    /// The longest time that was asked for since the last picture, the end of those before, and whether a picture came.
    awaited: Option<(Duration, Option<Instant>, bool)>,
    is_open: bool,
    waiting: Vec<(u64, Instant)>,
    asked: u64,
    switched_at: Option<Instant>,
    keyframes: (u64, Option<Instant>),
}

impl World {
    fn new() -> Self {
        Self {
            camera: camera(),
            now: Instant::now(),
            running: false,
            on: true,
            watching: 0,
            held_until: None,
            awaited: None,
            is_open: false,
            waiting: Vec::new(),
            asked: 0,
            switched_at: None,
            keyframes: (0, None),
        }
    }

    fn handle(&mut self, op: Op) {
        let now = self.now;
        match op {
            // As `Sessions` does: nobody is admitted while it is off.
            Op::Watch if self.on => {
                self.watching += 1;
                self.camera.watch(now);
            }
            Op::Unwatch if self.watching > 0 => {
                self.watching -= 1;
                self.camera.unwatch();
            }
            Op::Watch | Op::Unwatch => {}
            Op::Wake(ms) => {
                let ttl = Duration::from_millis(ms);
                let outcome = self.camera.trigger(Action::Wake { ttl }, id("w"), now);
                assert_eq!(outcome.is_ok(), self.on);
                if self.on {
                    let (longest, before, _) = self.awaited.unwrap_or((ttl, self.held_until, false));
                    self.awaited = Some((ttl.max(longest), before, false));
                    self.held_until = self.held_until.max(Some(now + ttl.max(OPENS_WITHIN)));
                }
            }
            Op::Sleep => self.camera.trigger(Action::Sleep, None, now).unwrap(),
            Op::Still => {
                self.asked += 1;
                self.waiting.push((self.asked, now));
                self.camera.ask_still(StillId(self.asked), now);
            }
            Op::Unit { is_keyframe, age_ms } => {
                let captured_at = now - Duration::from_millis(age_ms);
                let shown =
                    self.camera.handle_unit(Rendition::High, &AccessUnit { is_keyframe, ..keyframe(captured_at) }, now);
                let is_of_now = self.switched_at.is_none_or(|at| captured_at >= at);
                assert_eq!(shown, self.on && is_of_now);
                if let Some((_, _, has_picture)) = &mut self.awaited {
                    *has_picture |= shown;
                }
                self.note_woken();
            }
            Op::Lost => {
                self.is_open = false;
                self.camera.handle_lost("unplugged");
            }
            Op::Back => {
                self.is_open = true;
                self.camera.handle_back(now);
                self.note_woken();
            }
            Op::KeyframeWanted if self.watching > 0 => self.camera.want_keyframe(Rendition::High, now),
            Op::KeyframeWanted => {}
            Op::Switch(on) => {
                if on != self.on {
                    self.switched_at = Some(now);
                }
                self.camera.switch(on, None, now);
                for _ in 0..if on { 0 } else { std::mem::take(&mut self.watching) } {
                    self.camera.unwatch();
                }
            }
            Op::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.camera.handle_timeout(self.now);
                assert!(self.camera.poll_timeout().is_none_or(|at| at > self.now), "a timeout that stays due spins");
            }
        }
        self.listen();
        self.check();
    }

    fn note_woken(&mut self) {
        if let Some((ttl, before, _)) = self.awaited.take_if(|(_, _, has_picture)| *has_picture && self.is_open) {
            self.held_until = before.max(Some(self.now + ttl));
        }
    }

    fn listen(&mut self) {
        for told in self.camera.take_told() {
            match told {
                Told::Demand(demand) => {
                    assert!(!(demand.off && demand.running), "runs although it is off");
                    self.running = demand.running;
                    let (count, at) = self.keyframes;
                    if demand.keyframe > count {
                        assert!(at.is_none_or(|at| self.now >= at + GAP), "two keyframes within the gap");
                        self.keyframes = (demand.keyframe, Some(self.now));
                    }
                }
                Told::Still { still, outcome } => {
                    let at = self.waiting.iter().position(|(waiting, _)| *waiting == still.0);
                    self.waiting.remove(at.expect("a still that was asked for and has no answer yet"));
                    if let Ok(unit) = outcome {
                        assert!(self.on && unit.is_keyframe);
                        assert!(self.switched_at.is_none_or(|at| unit.captured_at >= at));
                    }
                }
                Told::Event(Event { happening: Happening::Asleep, .. }) => {
                    assert!(self.held_until.take().is_some(), "nothing held it");
                    self.awaited = None;
                }
                Told::Event(Event { happening: Happening::Woken, .. }) => assert!(self.held_until.is_some()),
                Told::Switched { on } => self.on = on,
                Told::Event(_) | Told::ForgetPictures | Told::Move { .. } => {}
            }
        }
    }

    fn check(&self) {
        let held = self.held_until.is_some_and(|until| until > self.now);
        assert_eq!(self.held_until.is_some(), held, "the hold ends with its time");
        let wanted = self.watching > 0 || held || !self.waiting.is_empty();
        assert_eq!(self.running, wanted && self.on, "the camera runs exactly while somebody wants it");
        assert!(self.waiting.len() <= MAX_STILLS);
        assert!(self.waiting.iter().all(|(_, at)| *at + STILL_WITHIN > self.now), "waits for ever");
    }
}

proptest! {
    /// Whatever happens in whatever order: the camera runs exactly while a viewer, an unexpired trigger or a still wants it and
    /// never while it is off; each still gets exactly one answer; a hold has exactly one end; no picture crosses the switch.
    #[test]
    fn a_camera_runs_exactly_while_somebody_wants_it_and_never_while_off(ops in prop::collection::vec(op(), 0..150)) {
        let mut world = World::new();
        for op in ops {
            world.handle(op);
        }
        world.camera.shut_down();
        world.listen();
        prop_assert!(world.waiting.is_empty() && world.held_until.is_none());
    }
}
