use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::core::access_unit::Bitrate;
use crate::core::camera::Demand;
use crate::core::renditions::Range;
use crate::core::signal::{LinkId, SessionName};
use crate::core::trigger::{self, Action, Happening};

const GAP: Duration = Duration::from_millis(500);
const RENDITIONS: RenditionsSettings = RenditionsSettings {
    high: Range { least: Bitrate::from_kbps(150), most: Bitrate::from_kbps(2000) },
    low: Some(Range { least: Bitrate::from_kbps(100), most: Bitrate::from_kbps(500) }),
};

fn camera(name: &str) -> CameraId {
    CameraId::new(name).unwrap()
}

fn sessions(max_viewers: usize) -> Sessions {
    let cameras = ["front", "back"].map(|name| ViewedCamera { id: camera(name), max_viewers, renditions: RENDITIONS });
    let settings = SessionsSettings {
        cameras: cameras.to_vec(),
        switched_off: BTreeSet::new(),
        negotiation_timeout: Duration::from_secs(10),
        max_negotiations: 4,
        max_candidates: 3,
        keyframe_gap: GAP,
    };
    Sessions::new(settings, Arc::default())
}

fn viewer(name: &str) -> Address {
    let client = ClientId { link: LinkId::WebSocket, name: name.into() };
    Address { client, session: SessionName::new("s").unwrap() }
}

/// What a viewer says, with its offer answered.
fn say(sessions: &mut Sessions, name: &str, signal: Signal, now: Instant) -> Vec<Output> {
    let mut outputs = ask(sessions, name, signal, now);
    let session = outputs
        .iter()
        .find_map(|output| if let Output::OpenPeer { session, .. } = output { Some(*session) } else { None });
    if let Some(session) = session {
        sessions.handle_answer(session, Ok("answer".into()), now);
        outputs.extend(drain(sessions));
    }
    outputs
}

/// The same, with the offer not answered yet.
fn ask(sessions: &mut Sessions, name: &str, signal: Signal, now: Instant) -> Vec<Output> {
    sessions.handle_signal(Request { from: viewer(name), id: Some("7".into()), signal }, now);
    drain(sessions)
}

fn offer() -> Signal {
    Signal::Offer { camera: camera("front"), sdp: "v=0".into(), quality: Quality::Auto }
}

fn drain(sessions: &mut Sessions) -> Vec<Output> {
    std::iter::from_fn(|| sessions.poll_output()).collect()
}

fn replies(outputs: &[Output]) -> Vec<&Reply> {
    let reply = |output| if let &Output::Respond(Response { ref reply, .. }) = output { Some(reply) } else { None };
    outputs.iter().filter_map(reply).collect()
}

fn demands(outputs: &[Output]) -> Vec<Demand> {
    let demand = |output: &Output| match output {
        Output::Camera { told: Told::Demand(demand), .. } => Some(*demand),
        _ => None,
    };
    outputs.iter().filter_map(demand).collect()
}

fn happenings(outputs: &[Output]) -> Vec<Happening> {
    let happening = |output: &Output| match output {
        Output::Camera { told: Told::Event(event), .. } => Some(event.happening.clone()),
        _ => None,
    };
    outputs.iter().filter_map(happening).collect()
}

fn opened(outputs: &[Output]) -> SessionId {
    let open = |output: &Output| if let Output::OpenPeer { session, .. } = output { Some(*session) } else { None };
    outputs.iter().find_map(open).expect("a peer was opened")
}

#[test]
fn an_offer_opens_a_peer_and_starts_the_camera_with_a_keyframe() {
    let mut sessions = sessions(8);
    let outputs = say(&mut sessions, "ann", offer(), Instant::now());
    opened(&outputs);
    assert!(matches!(demands(&outputs)[..], [Demand { running: true, keyframe: 1, .. }]));
}

#[test]
fn the_answer_carries_the_offers_correlation() {
    let mut sessions = sessions(8);
    let now = Instant::now();
    let session = opened(&ask(&mut sessions, "ann", offer(), now));
    sessions.handle_answer(session, Ok("answer".into()), now);
    let outputs = drain(&mut sessions);
    let Some(Output::Respond(response)) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!((response.id.as_deref(), &response.to), (Some("7"), &viewer("ann")));
}

#[test]
fn an_unknown_camera_is_named_in_the_refusal() {
    let mut sessions = sessions(8);
    let signal = Signal::Offer { camera: camera("attic"), sdp: String::new(), quality: Quality::Auto };
    let outputs = say(&mut sessions, "ann", signal, Instant::now());
    assert_eq!(replies(&outputs), [&Reply::Rejected(RejectReason::NoSuchCamera(camera("attic")))]);
}

#[test]
fn a_full_house_says_when_to_come_again_and_frees_a_place_with_each_bye() {
    let (mut sessions, now) = (sessions(1), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    let outputs = say(&mut sessions, "bob", offer(), now);
    assert!(matches!(replies(&outputs)[..], [Reply::Rejected(RejectReason::Full { limit: 1, .. })]));
    say(&mut sessions, "ann", Signal::Bye, now);
    opened(&say(&mut sessions, "bob", offer(), now));
}

#[test]
fn too_many_viewers_between_offer_and_connection_are_told_to_wait() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    let first = opened(&say(&mut sessions, "v0", offer(), now));
    for name in ["v1", "v2", "v3"] {
        say(&mut sessions, name, offer(), now);
    }
    let outputs = say(&mut sessions, "v4", offer(), now);
    assert!(matches!(replies(&outputs)[..], [Reply::Rejected(RejectReason::Busy { .. })]));
    sessions.handle_peer(first, PeerEvent::Connected, now);
    opened(&say(&mut sessions, "v4", offer(), now));
}

#[test]
fn a_viewer_who_offers_again_gets_a_new_peer_and_no_bye_for_the_old() {
    let (mut sessions, now) = (sessions(1), Instant::now());
    let old = opened(&say(&mut sessions, "ann", offer(), now));
    let outputs = say(&mut sessions, "ann", offer(), now);
    assert!(matches!(outputs[0], Output::ClosePeer { session } if session == old));
    assert_ne!(opened(&outputs), old);
    assert!(matches!(replies(&outputs)[..], [Reply::Answer { .. }]));
}

#[test]
fn a_new_offer_that_finds_no_place_leaves_the_old_session_alone() {
    let (mut sessions, now) = (sessions(1), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    let back = Signal::Offer { camera: camera("back"), sdp: String::new(), quality: Quality::Auto };
    say(&mut sessions, "bob", back.clone(), now);
    let outputs = say(&mut sessions, "ann", back, now);
    assert!(matches!(outputs[..], [Output::Respond(_)]), "{outputs:?}");
    assert_eq!(sessions.viewers(&camera("front")), 1);
}

#[test]
fn offers_that_nobody_follows_up_do_not_keep_others_out_for_long() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    for name in ["m0", "m1", "m2", "m3"] {
        say(&mut sessions, name, offer(), now);
    }
    let outputs = say(&mut sessions, "ann", offer(), now + Duration::from_secs(2));
    opened(&outputs);
    assert!(matches!(replies(&outputs)[..], [Reply::Bye(CloseReason::ConnectTimeout), Reply::Answer { .. }]));
}

#[test]
fn who_comes_while_the_camera_is_lost_is_told_after_the_answer() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    sessions.handle_camera_lost(&camera("front"), "unplugged");
    drain(&mut sessions);
    let bob = opened(&ask(&mut sessions, "bob", offer(), now));
    sessions.handle_answer(bob, Ok("answer".into()), now);
    let (answer, lost) = (Reply::Answer { sdp: "answer".into() }, Notice::CameraLost { reason: "unplugged".into() });
    assert_eq!(replies(&drain(&mut sessions)), [&answer, &Reply::Notice(lost.clone())]);
    ask(&mut sessions, "bob", Signal::Restart { sdp: String::new() }, now);
    sessions.handle_answer(bob, Ok("answer".into()), now);
    assert_eq!(replies(&drain(&mut sessions)), [&answer, &Reply::Notice(lost)], "it may have missed the first");
}

#[test]
fn a_camera_that_everybody_left_is_not_lost_to_those_who_come_later() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    sessions.handle_camera_lost(&camera("front"), "unplugged");
    say(&mut sessions, "ann", Signal::Bye, now);
    say(&mut sessions, "bob", offer(), now);
    sessions.handle_camera_lost(&camera("front"), "still unplugged");
    let lost = Reply::Notice(Notice::CameraLost { reason: "still unplugged".into() });
    assert_eq!(replies(&drain(&mut sessions)), [&lost]);
}

#[test]
fn a_viewer_who_does_not_connect_in_ten_seconds_is_let_go() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    assert_eq!(sessions.poll_timeout(), Some(now + Duration::from_secs(10)));
    sessions.handle_timeout(now + Duration::from_secs(10));
    let outputs = drain(&mut sessions);
    assert_eq!(replies(&outputs), [&Reply::Bye(CloseReason::ConnectTimeout)]);
    assert_eq!(sessions.viewers(&camera("front")), 0);
}

#[test]
fn the_last_viewer_to_leave_stops_the_camera() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    say(&mut sessions, "bob", offer(), now);
    assert_eq!(demands(&say(&mut sessions, "ann", Signal::Bye, now)), []);
    assert!(matches!(demands(&say(&mut sessions, "bob", Signal::Bye, now))[..], [Demand { running: false, .. }]));
}

#[test]
fn keyframe_requests_are_merged_and_a_late_one_is_put_off_not_lost() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    let session = opened(&say(&mut sessions, "ann", offer(), now));
    for _ in 0..1000 {
        sessions.handle_peer(session, PeerEvent::KeyframeWanted, now + Duration::from_millis(100));
    }
    assert_eq!(demands(&drain(&mut sessions)), []);
    assert_eq!(sessions.poll_timeout(), Some(now + GAP));
    sessions.handle_timeout(now + GAP);
    assert!(matches!(demands(&drain(&mut sessions))[..], [Demand { keyframe: 2, .. }]));
    sessions.handle_timeout(now + GAP * 2);
    assert_eq!(demands(&drain(&mut sessions)), []);
}

#[test]
fn a_candidate_without_a_session_is_refused_and_too_many_are_too() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    let candidate = || Signal::Candidate { line: "candidate:1".into() };
    let outputs = say(&mut sessions, "ann", candidate(), now);
    assert_eq!(replies(&outputs), [&Reply::Rejected(RejectReason::NoSuchSession)]);
    say(&mut sessions, "ann", offer(), now);
    for _ in 0..3 {
        assert!(matches!(say(&mut sessions, "ann", candidate(), now)[..], [Output::AddCandidate { .. }]));
    }
    let outputs = say(&mut sessions, "ann", candidate(), now);
    assert_eq!(replies(&outputs), [&Reply::Rejected(RejectReason::TooManyCandidates(3))]);
}

#[test]
fn a_refused_offer_leaves_nothing_behind() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    let session = opened(&ask(&mut sessions, "ann", offer(), now));
    sessions.handle_refused(session, RejectReason::NoCommonCodec);
    let outputs = drain(&mut sessions);
    assert_eq!(replies(&outputs), [&Reply::Rejected(RejectReason::NoCommonCodec)]);
    assert_eq!(demands(&outputs), [], "a bad offer costs those who watch no keyframe");
    assert_eq!(sessions.poll_timeout(), None);
}

#[test]
fn viewers_are_told_once_when_their_camera_goes_and_once_when_it_comes_back() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    for _ in 0..2 {
        sessions.handle_camera_lost(&camera("front"), "unplugged");
    }
    for _ in 0..2 {
        sessions.handle_camera_back(&camera("front"), now);
    }
    let outputs = drain(&mut sessions);
    let lost = Reply::Notice(Notice::CameraLost { reason: "unplugged".into() });
    assert_eq!(replies(&outputs), [&lost, &Reply::Notice(Notice::CameraBack)]);
}

#[test]
fn whose_way_is_gone_with_an_address_of_ours_is_told_and_nobody_else() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    let ann = opened(&say(&mut sessions, "ann", offer(), now));
    say(&mut sessions, "bob", offer(), now);
    sessions.handle_stranded(ann);
    let outputs = drain(&mut sessions);
    assert_eq!(replies(&outputs), [&Reply::Notice(Notice::AddressChanged)]);
}

#[test]
fn what_a_viewer_prefers_holds_from_its_offer_on_and_can_be_changed() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    let low = Signal::Offer { camera: camera("front"), sdp: String::new(), quality: Quality::Low };
    let ann = opened(&say(&mut sessions, "ann", low, now));
    let moves = |outputs: &[Output]| {
        let moved = |output: &Output| match output {
            Output::Camera { told: Told::Move { session, rendition }, .. } => Some((*session, *rendition)),
            _ => None,
        };
        outputs.iter().filter_map(moved).collect::<Vec<_>>()
    };
    assert_eq!(sessions.quality(ann), Quality::Low);
    sessions.handle_peer(ann, PeerEvent::Connected, now);
    assert_eq!(moves(&drain(&mut sessions)), [(ann, Rendition::Low)]);
    let later = now + Duration::from_secs(1);
    let outputs = say(&mut sessions, "ann", Signal::Prefer { quality: Quality::High }, later);
    assert_eq!((moves(&outputs), replies(&outputs)), (vec![(ann, Rendition::High)], vec![]), "and is not answered");
    assert_eq!(sessions.quality(ann), Quality::High);
}

#[test]
fn figures_go_to_who_asked_and_without_a_session_there_are_none() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    for signal in [Signal::Stats, Signal::Prefer { quality: Quality::Low }] {
        let outputs = say(&mut sessions, "ann", signal, now);
        assert_eq!(replies(&outputs), [&Reply::Rejected(RejectReason::NoSuchSession)]);
    }
    let ann = opened(&say(&mut sessions, "ann", offer(), now));
    let outputs = say(&mut sessions, "ann", Signal::Stats, now);
    let [Output::Stats { session, id }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((*session, id.as_deref()), (ann, Some("7")));
    sessions.handle_stats(ann, id.clone(), Figures::unknown(Quality::Auto));
    let outputs = drain(&mut sessions);
    let [Output::Respond(response)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((response.id.as_deref(), &response.reply), (Some("7"), &Reply::Stats(Figures::unknown(Quality::Auto))));
}

#[test]
fn shutting_down_says_bye_to_all_and_refuses_new_offers() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    sessions.shut_down();
    assert_eq!(replies(&drain(&mut sessions)), [&Reply::Bye(CloseReason::Shutdown)]);
    let outputs = say(&mut sessions, "bob", offer(), now);
    assert_eq!(replies(&outputs), [&Reply::Rejected(RejectReason::ShuttingDown)]);
}

#[test]
fn switching_off_ends_the_cameras_sessions_and_refuses_new_ones_until_it_is_on() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    say(&mut sessions, "ann", offer(), now);
    let back = Signal::Offer { camera: camera("back"), sdp: String::new(), quality: Quality::Auto };
    say(&mut sessions, "bob", back, now);
    sessions.handle_switch(&camera("front"), false, None, now).unwrap();
    let outputs = drain(&mut sessions);
    assert_eq!(replies(&outputs), [&Reply::Bye(CloseReason::Disabled)]);
    assert!(matches!(demands(&outputs)[..], [Demand { running: false, off: true, .. }]));
    let outputs = say(&mut sessions, "ann", offer(), now);
    assert_eq!(replies(&outputs), [&Reply::Rejected(RejectReason::Disabled)]);
    sessions.handle_switch(&camera("front"), true, None, now).unwrap();
    opened(&say(&mut sessions, "ann", offer(), now));
}

#[test]
fn a_camera_that_was_off_when_the_device_stopped_is_off_from_the_start() {
    let settings = SessionsSettings { switched_off: BTreeSet::from([camera("front")]), ..sessions(8).settings };
    let (mut sessions, now) = (Sessions::new(settings, Arc::default()), Instant::now());
    let outputs = say(&mut sessions, "ann", offer(), now);
    assert_eq!(replies(&outputs), [&Reply::Rejected(RejectReason::Disabled)]);
}

#[test]
fn who_had_pictures_is_told_of_when_it_comes_and_goes_and_who_had_none_is_not() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    let ann = opened(&say(&mut sessions, "ann", offer(), now));
    say(&mut sessions, "bob", offer(), now);
    for _ in 0..2 {
        sessions.handle_peer(ann, PeerEvent::Connected, now);
    }
    say(&mut sessions, "bob", Signal::Bye, now);
    sessions.handle_peer(ann, PeerEvent::Lost, now);
    sessions.handle_signal(Request { from: viewer("ann"), id: None, signal: offer() }, now);
    let outputs = drain(&mut sessions);
    assert_eq!(happenings(&outputs), [Happening::ViewerLeft { viewers: 0, reason: CloseReason::Lost }]);
}

#[test]
fn what_is_asked_of_an_unknown_camera_or_of_one_that_stops_is_refused() {
    let (mut sessions, now) = (sessions(8), Instant::now());
    for (name, reason) in
        [("attic", RejectReason::NoSuchCamera(camera("attic"))), ("front", RejectReason::ShuttingDown)]
    {
        let trigger = Trigger { camera: camera(name), id: None, action: Action::Sleep };
        assert_eq!(sessions.handle_trigger(trigger, now), Err(reason.clone()));
        assert_eq!(sessions.handle_switch(&camera(name), true, None, now), Err(reason.clone()));
        sessions.handle_still(camera(name), StillId(1), now);
        let outputs = drain(&mut sessions);
        let [Output::Camera { told: Told::Still { outcome: Err(refused), .. }, .. }] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        assert_eq!(*refused, reason);
        sessions.shut_down();
    }
}

#[derive(Clone, Debug)]
enum Op {
    Say(u8, SayOp),
    Left(u8),
    FullOutbox(u8),
    NextOfferIsGood(bool),
    Peer(u8, PeerEvent),
    Camera(bool),
    Wake(bool),
    Switch(bool),
    Wait(u64),
    ShutDown,
}

#[derive(Clone, Debug)]
enum SayOp {
    Offer(bool),
    Candidate,
    Restart,
    Prefer(Quality),
    Stats,
    Bye,
}

fn op() -> impl Strategy<Value = Op> {
    let say = prop_oneof![
        3 => any::<bool>().prop_map(SayOp::Offer),
        1 => Just(SayOp::Candidate),
        1 => Just(SayOp::Restart),
        1 => proptest::sample::select(&Quality::ALL).prop_map(SayOp::Prefer),
        1 => Just(SayOp::Stats),
        1 => Just(SayOp::Bye),
    ];
    let event = prop_oneof![
        Just(PeerEvent::Connected),
        Just(PeerEvent::Closed),
        Just(PeerEvent::Lost),
        Just(PeerEvent::KeyframeWanted),
    ];
    prop_oneof![
        8 => (0..6u8, say).prop_map(|(who, what)| Op::Say(who, what)),
        1 => (0..6u8).prop_map(Op::Left),
        1 => (0..6u8).prop_map(Op::FullOutbox),
        2 => any::<bool>().prop_map(Op::NextOfferIsGood),
        4 => (0..30u8, event).prop_map(|(session, event)| Op::Peer(session, event)),
        1 => any::<bool>().prop_map(Op::Camera),
        1 => any::<bool>().prop_map(Op::Wake),
        1 => any::<bool>().prop_map(Op::Switch),
        3 => (0..4000u64).prop_map(Op::Wait),
        1 => Just(Op::ShutDown),
    ]
}

proptest! {
    /// Whatever happens in whatever order: each peer opened is closed at most once and at the end exactly once, a camera
    /// that nobody woke runs exactly while it has viewers, one that is switched off has none, who joined leaves once, no house
    /// is over-full, and keyframes are asked for no faster than the gap.
    #[test]
    fn every_peer_opened_is_closed_once_and_demand_follows_viewers(ops in proptest::collection::vec(op(), 0..120)) {
        let mut sessions = sessions(2);
        let mut now = Instant::now();
        let (mut open, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut running = BTreeMap::new();
        let mut next_offer_is_good = true;
        let mut asked: BTreeMap<CameraId, (u64, Instant)> = BTreeMap::new();
        let mut watching: BTreeMap<CameraId, i32> = BTreeMap::new();
        let (mut awake, mut on) = (false, true);
        for op in ops.into_iter().chain([Op::ShutDown]) {
            match op {
                Op::Say(who, what) => {
                    let signal = match what {
                        SayOp::Offer(front) => {
                            let camera = camera(if front { "front" } else { "back" });
                            Signal::Offer { camera, sdp: String::new(), quality: Quality::Auto }
                        }
                        SayOp::Candidate => Signal::Candidate { line: "candidate:".into() },
                        SayOp::Restart => Signal::Restart { sdp: String::new() },
                        SayOp::Prefer(quality) => Signal::Prefer { quality },
                        SayOp::Stats => Signal::Stats,
                        SayOp::Bye => Signal::Bye,
                    };
                    sessions.handle_signal(Request { from: viewer(&who.to_string()), id: None, signal }, now);
                }
                Op::Left(who) => sessions.handle_left(&viewer(&who.to_string()).client),
                Op::FullOutbox(who) => sessions.handle_full_outbox(&viewer(&who.to_string()).client),
                Op::NextOfferIsGood(good) => next_offer_is_good = good,
                Op::Peer(session, event) => sessions.handle_peer(SessionId(session.into()), event, now),
                Op::Camera(true) => sessions.handle_camera_back(&camera("front"), now),
                Op::Camera(false) => sessions.handle_camera_lost(&camera("front"), "gone"),
                Op::Wake(front) => {
                    let action = if front { Action::Wake { ttl: Duration::from_secs(5) } } else { Action::Sleep };
                    let woken = sessions.handle_trigger(Trigger { camera: camera("front"), id: None, action }, now);
                    awake |= front && woken.is_ok();
                }
                Op::Switch(on) => {
                    let _ = sessions.handle_switch(&camera("front"), on, None, now);
                }
                Op::Wait(ms) => {
                    now += Duration::from_millis(ms);
                    sessions.handle_timeout(now);
                    prop_assert!(sessions.poll_timeout().is_none_or(|at| at > now), "a timeout that stays due spins");
                }
                Op::ShutDown => sessions.shut_down(),
            }
            while let Some(output) = sessions.poll_output() {
                match output {
                    Output::OpenPeer { session, .. } => {
                        prop_assert!(seen.insert(session), "{session:?} opened twice");
                        if next_offer_is_good {
                            open.insert(session);
                            sessions.handle_answer(session, Ok(String::new()), now);
                        } else {
                            sessions.handle_refused(session, RejectReason::NoCommonCodec);
                        }
                    }
                    Output::ClosePeer { session } => prop_assert!(open.remove(&session), "{session:?} was not open"),
                    Output::RestartPeer { session, .. } | Output::AddCandidate { session, .. } | Output::Stats { session, .. } => {
                        prop_assert!(open.contains(&session), "{session:?} is not open");
                    }
                    Output::Camera { camera, told: Told::Demand(demand) } => {
                        let (count, at) = asked.get(&camera).copied().unwrap_or((0, now));
                        if demand.keyframe > count {
                            prop_assert!(count == 0 || now >= at + GAP, "two keyframes within the gap");
                            asked.insert(camera.clone(), (demand.keyframe, now));
                        }
                        running.insert(camera, demand.running);
                    }
                    Output::Camera { told: Told::Switched { on: is_on }, .. } => on = is_on,
                    Output::Camera { camera, told: Told::Event(trigger::Event { happening, .. }) } => {
                        let watching = watching.entry(camera.clone()).or_default();
                        match happening {
                            Happening::ViewerJoined { .. } => *watching += 1,
                            Happening::ViewerLeft { .. } => *watching -= 1,
                            Happening::Asleep => awake = false,
                            _ => {}
                        }
                        prop_assert!(*watching >= 0, "somebody left who had not joined");
                    }
                    Output::Respond(_) | Output::Camera { .. } => {}
                }
            }
            for name in ["front", "back"] {
                let viewers = sessions.viewers(&camera(name));
                prop_assert!(viewers <= 2);
                let awake = awake && name == "front";
                prop_assert!(on || name != "front" || viewers == 0 && !awake);
                prop_assert_eq!(running.get(&camera(name)).copied().unwrap_or(false), viewers > 0 || awake);
            }
        }
        prop_assert!(open.is_empty(), "left open: {open:?}");
        prop_assert!(watching.values().all(|&watching| watching == 0), "joined and never left: {watching:?}");
    }
}
