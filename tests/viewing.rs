//! The real publisher and peers against viewers on a simulated network, in virtual time. Over 600 lines: one scene each, all of one kind.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test is where time begins, and may fail loudly")]

#[allow(unreachable_pub, dead_code, reason = "shared by several test programs")]
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use edgecam::core::camera::Rendition;
use edgecam::core::figures::Quality;
use edgecam::core::signal::{CloseReason, Notice, RejectReason, Reply, Request, Signal};
use edgecam::core::transmit::Transport;
use edgecam::core::trigger::Action;
use support::house::{House, filling, front, pictures};
use support::network::{LinkSettings, Profile, lan};
use support::viewer::{Tells, Viewer, thousand_candidates};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

#[test]
fn a_viewer_on_a_good_network_gets_every_picture_from_a_keyframe_on() {
    let mut house = House::new(8);
    let ann = house.join(lan());
    house.run_for(10 * S);
    let received = &house.viewers[ann].viewer.received;
    assert!(received.pictures()[0].1, "begins with a keyframe");
    assert!(
        received.pictures().len() as u64 >= house.captured - 5,
        "{} of {}",
        received.pictures().len(),
        house.captured
    );
    assert_eq!(received.duplicates, 0);
}

#[test]
fn the_first_picture_comes_without_waiting_for_a_timer() {
    let mut house = House::new(8);
    house.join(lan());
    house.run_for(5 * S);
    let bob = house.join(lan());
    let took = house.run_until(S, |house| pictures(house, bob) > 0);
    assert!(took < 80 * MS, "{took:?}");
}

#[test]
fn a_clock_runs_through_the_pictures_at_90_khz() {
    let mut house = House::new(8);
    let ann = house.join(lan());
    house.run_for(3 * S);
    let pictures = house.viewers[ann].viewer.received.pictures();
    for pair in pictures.windows(2) {
        let ticks = pair[1].0.wrapping_sub(pair[0].0);
        assert!((2999..=3001).contains(&ticks), "{ticks} ticks in 33.3 ms");
    }
}

#[test]
fn random_loss_is_mended_by_retransmission() {
    for (loss, least) in [(0.02, 0.99), (0.05, 0.97)] {
        let mut house = House::new(8);
        let ann = house.join(LinkSettings { delay: 20 * MS, loss, ..Default::default() });
        house.run_for(30 * S);
        let part = pictures(&house, ann) as f64 / house.captured as f64;
        assert!(part >= least, "{loss}: {part} {:?}", house.counters);
    }
}

#[test]
fn reordering_costs_no_picture_and_hardly_a_repeat() {
    let mut house = House::new(8);
    let ann = house.join(LinkSettings { delay: 10 * MS, jitter: 8 * MS, ..Default::default() });
    house.run_for(10 * S);
    assert!(
        pictures(&house, ann) as u64 >= house.captured - 10,
        "{} of {} {:?}",
        pictures(&house, ann),
        house.captured,
        house.counters
    );
}

#[test]
fn a_slow_viewer_still_sees_keyframes_and_costs_the_fast_one_nothing() {
    let mut house = House::new(8);
    let fast = house.join(lan());
    let link = LinkSettings { delay: 30 * MS, rate: Some(1_000_000.0), ..Default::default() };
    let slow = house.join_who(link, Tells::Nothing);
    house.run_for(60 * S);
    assert!(pictures(&house, fast) as u64 >= house.captured - 5, "{} of {}", pictures(&house, fast), house.captured);
    let keyframes = house.viewers[slow].viewer.received.keyframes();
    assert!(keyframes >= 6, "{keyframes} keyframes in a minute");
    assert!(house.counters.units_skipped.get() > 1000, "the rest was not even sent");
    // The stream is 2.2 Mbit/s, the link 1: what is sent must not be a multiple of what was encoded.
    let sent = house.viewers[slow].bytes_down as f64 * 8.0 / 60.0;
    assert!(sent < 2_500_000.0, "{sent} bit/s");
}

#[test]
fn no_packet_goes_out_twice_within_a_round_trip_however_often_it_is_asked_for() {
    let mut house = House::new(8);
    let link = LinkSettings { delay: 50 * MS, rate: Some(1_500_000.0), ..Default::default() };
    let slow = house.join_who(link, Tells::Nothing);
    house.run_for(30 * S);
    let counters = &house.counters;
    assert!(counters.retransmissions_refused.get() > 0, "there was something to refuse");
    let encoded = 30.0 * 2_200_000.0 / 8.0;
    let sent = house.viewers[slow].bytes_down as f64;
    assert!(sent < encoded * 1.3, "{sent} bytes of a stream of {encoded}");
}

#[test]
fn a_viewer_who_asks_for_a_keyframe_gets_one_at_once_and_a_storm_gets_two_a_second() {
    let mut house = House::new(8);
    let ann = house.join(lan());
    house.run_for(1500 * MS);
    let before = house.viewers[ann].viewer.received.keyframes();
    let now = house.now;
    house.viewers[ann].viewer.ask_for_keyframe(now);
    house.viewers[ann].viewer.handle_timeout(now);
    house.run_until(100 * MS, |house| house.viewers[ann].viewer.received.keyframes() > before);
    let asked = house.demand.keyframe;
    for _ in 0..500 {
        let now = house.now;
        house.viewers[ann].viewer.ask_for_keyframe(now);
        house.run_for(2 * MS);
    }
    assert!(house.demand.keyframe - asked <= 2, "{} in a second", house.demand.keyframe - asked);
    for _ in 0..100 {
        let now = house.now;
        house.viewers[ann].viewer.ask_for_keyframe(now);
        house.run_for(200 * MS);
    }
    assert!(house.demand.keyframe - asked <= 14, "{} in twenty seconds more", house.demand.keyframe - asked);
}

#[test]
fn a_viewer_who_vanishes_frees_its_place_within_35_seconds() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(3 * S);
    house.viewers[ann].dead = true;
    let took = house.run_until(35 * S, |house| house.publisher.viewers(&front()) == 0);
    assert!(took > 5 * S, "a short silence is forgiven: {took:?}");
    assert_eq!(house.viewers[ann].replies.last(), Some(&Reply::Bye(CloseReason::Lost)));
    assert!(!house.demand.running);
}

#[test]
fn a_viewer_who_closes_its_connection_frees_its_place_at_once() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(3 * S);
    house.viewers[ann].viewer.close();
    let took = house.run_until(S, |house| house.publisher.viewers(&front()) == 0);
    assert!(took < 100 * MS, "{took:?}");
}

#[test]
fn a_viewer_behind_a_hidden_address_is_found_by_its_own_checks() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.say(ann, Signal::Candidate { line: "candidate:2 1 udp 1 3f2a.local 50000 typ host".into() });
    house.run_until(S, |house| pictures(house, ann) > 0);
}

#[test]
fn an_unplugged_camera_keeps_its_viewers_and_goes_on_with_a_keyframe() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(3 * S);
    house.plugged = false;
    let now = house.now;
    house.publisher.handle_camera_lost(&front(), "unplugged", now, &mut drop);
    house.run_for(60 * S);
    let before = pictures(&house, ann);
    house.plugged = true;
    let now = house.now;
    house.publisher.handle_camera_back(&front(), now, &mut drop);
    house.run_until(3 * S, |house| pictures(house, ann) > before + 10);
    let lost = Reply::Notice(Notice::CameraLost { reason: "unplugged".into() });
    let notices: Vec<_> = house.viewers[ann].replies.iter().filter(|reply| matches!(reply, Reply::Notice(_))).collect();
    assert_eq!(notices, [&lost, &Reply::Notice(Notice::CameraBack)]);
}

#[test]
fn a_ninth_viewer_is_refused_and_the_eight_lose_nothing() {
    let mut house = House::new(8);
    for _ in 0..8 {
        house.join(lan());
    }
    house.run_for(3 * S);
    let ninth = house.join(lan());
    assert!(matches!(house.viewers[ninth].replies[..], [Reply::Rejected(RejectReason::Full { limit: 8, .. }), ..]));
    let before: Vec<_> = (0..8).map(|seat| pictures(&house, seat)).collect();
    let captured = house.captured;
    house.run_for(5 * S);
    for (seat, before) in before.into_iter().enumerate() {
        let got = (pictures(&house, seat) - before) as u64;
        assert!(got >= house.captured - captured - 2, "viewer {seat}: {got}");
    }
}

#[test]
fn bad_offers_and_candidates_are_told_their_fault_and_disturb_nobody() {
    let mut house = House::new(8);
    let ann = house.join(lan());
    house.run_for(2 * S);
    let good = Viewer::new("198.51.100.99:9".parse().unwrap(), Tells::Arrivals, house.now).offer(false, house.now);
    for sdp in [
        String::new(),
        "\u{0}\u{1}binary".to_owned(),
        "v=0\r\n".to_owned(),
        "v=0\r\n".repeat(10_000),
        good.replace("H264", "VP8"),
        good.replace("recvonly", "sendonly"),
        good.replace("m=video", "m=audio"),
        good.replace("a=ice-pwd", "a=x"),
    ] {
        let from = support::house::address_of("mallory");
        let request =
            Request { from, id: None, signal: Signal::Offer { camera: front(), sdp, quality: Quality::Auto } };
        let now = house.now;
        house.publisher.handle_request(request, now, &mut drop);
        let refused = std::iter::from_fn(|| house.publisher.poll_effect()).any(|effect| {
            matches!(effect, edgecam::publisher::Effect::Respond(response) if matches!(response.reply, Reply::Rejected(_)))
        });
        assert!(refused);
    }
    house.say(ann, Signal::Candidate { line: "candidate:rubbish".into() });
    assert!(matches!(house.viewers[ann].replies.last(), Some(Reply::Rejected(RejectReason::BadCandidate(_)))));
    let before = pictures(&house, ann);
    house.run_for(S);
    assert!(pictures(&house, ann) > before + 25);
    assert_eq!(house.publisher.viewers(&front()), 1);
}

#[test]
fn an_offer_with_a_thousand_candidates_is_refused_and_sends_nothing_to_any_of_them() {
    let mut house = House::new(8);
    let mallory = Viewer::new("198.51.100.99:9".parse().unwrap(), Tells::Arrivals, house.now).offer(false, house.now);
    let mut sent = 0;
    let signal = Signal::Offer { camera: front(), sdp: mallory + &thousand_candidates(), quality: Quality::Auto };
    let request = Request { from: support::house::address_of("mallory"), id: None, signal };
    let now = house.now;
    house.publisher.handle_request(request, now, &mut |_| sent += 1);
    for ms in 0..100 {
        house.publisher.handle_timeout(now + MS * ms, &mut |_| sent += 1);
    }
    assert_eq!((sent, house.publisher.viewers(&front())), (0, 0));
}

/// For how many milliseconds a viewer holds pictures back.
fn held_back(house: &House, seat: usize) -> u32 {
    house.viewers[seat].viewer.received.playout_delays.last().unwrap().1
}

#[test]
fn pictures_are_held_back_for_repeats_while_packets_are_lost_and_shown_at_once_before_and_after() {
    let mut house = House::new(8);
    let ann = house.join(LinkSettings { delay: 25 * MS, ..Default::default() });
    let near = house.join(lan());
    house.run_for(8 * S);
    assert_eq!(held_back(&house, ann), 0);

    house.viewers[ann].down.settings.loss = 0.05;
    house.run_for(4 * S);
    let held = held_back(&house, ann);
    assert!((200..=260).contains(&held), "{held} ms with a round trip of 50 ms");
    house.run_for(20 * S);
    assert!((200..=260).contains(&held_back(&house, ann)));

    house.viewers[ann].down.settings.loss = 0.0;
    house.run_for(9 * S);
    assert!(held_back(&house, ann) > 0);
    house.run_for(10 * S);
    assert_eq!(held_back(&house, ann), 0);

    let told = &house.viewers[ann].viewer.received.playout_delays;
    for pair in told.windows(2) {
        // Pictures whose delay was told may be lost, but not many in a row.
        assert!(pair[0].1.abs_diff(pair[1].1) <= 30, "a leap: {told:?}");
    }
    assert_eq!(house.viewers[near].viewer.received.playout_delays.len(), 1, "nobody else is told");
}

#[test]
fn a_viewer_that_names_anothers_address_does_not_get_its_datagrams() {
    let mut house = House::new(8);
    let ann = house.join(LinkSettings { delay: 20 * MS, loss: 0.05, ..Default::default() });
    house.run_for(3 * S);
    let victim = house.viewers[ann].viewer.candidate();
    let mallory = house.join(lan());
    house.say(mallory, Signal::Candidate { line: victim });
    house.run_for(S);
    // Had it worked, nothing of what Ann loses would be repeated any more, and no consent of hers be heard.
    let before = (pictures(&house, ann), house.captured);
    house.run_for(40 * S);
    let part = (pictures(&house, ann) - before.0) as f64 / (house.captured - before.1) as f64;
    assert!(part > 0.95, "{part}");
    assert_eq!(house.publisher.viewers(&front()), 2);
}

#[test]
fn the_same_address_directly_and_through_the_relay_is_two_viewers() {
    let mut house = House::new(8);
    house.open_relay();
    let ann = house.join(lan());
    let address = house.viewers[ann].viewer.address;
    house.run_for(S);
    let far = LinkSettings { delay: 20 * MS, loss: 0.02, ..Default::default() };
    let bob = house.join_at(address, true, far, Tells::Arrivals);
    house.run_for(3 * S);
    let (before, captured) = ([ann, bob].map(|seat| pictures(&house, seat)), house.captured);
    house.run_for(30 * S);
    for (seat, before) in [ann, bob].into_iter().zip(before) {
        let part = (pictures(&house, seat) - before) as f64 / (house.captured - captured) as f64;
        assert!(part > 0.95, "{seat}: {part} {:?}", house.figures(seat));
    }
}

#[test]
fn random_datagrams_do_no_harm() {
    use rand::{RngExt, SeedableRng};
    let mut house = House::new(8);
    let ann = house.join(lan());
    house.run_for(2 * S);
    let mut random = rand::rngs::SmallRng::seed_from_u64(7);
    let (theirs, ours) = (house.viewers[ann].viewer.address, support::house::camera_address());
    for _ in 0..2000 {
        let data: Vec<u8> = (0..random.random_range(0..200)).map(|_| random.random()).collect();
        let now = house.now;
        house.publisher.handle_datagram(theirs, ours, Transport::Udp, &data, now, &mut drop);
    }
    let before = pictures(&house, ann);
    house.run_for(S);
    assert!(pictures(&house, ann) > before + 25);
}

#[test]
fn who_is_called_by_a_bell_finds_the_camera_running() {
    let mut house = House::new(8);
    house.trigger("bell", Action::Wake { ttl: 60 * S }).unwrap();
    house.run_until(S, |house| house.happened() == [(Some("bell"), "woken")]);
    house.run_for(5 * S);
    let captured = house.captured;
    assert!(captured > 100, "it runs without a viewer");
    let phone = house.join(lan());
    let took = house.run_until(S, |house| pictures(house, phone) > 0);
    assert!(took < 80 * MS, "{took:?}");
    assert_eq!(house.happened()[1..], [(Some("bell"), "viewer-joined")]);

    house.run_for(60 * S);
    assert_eq!(house.happened()[2..], [(Some("bell"), "asleep")]);
    assert!(house.demand.running, "somebody watches");
    house.say(phone, Signal::Bye);
    assert_eq!(house.happened()[3..], [(None, "viewer-left")]);
    assert!(!house.demand.running);
}

#[test]
fn a_still_is_a_keyframe_and_no_viewer_notices() {
    let mut house = House::new(8);
    let ann = house.join(lan());
    house.run_for(5 * S);
    house.ask_still(1);
    house.run_until(S, |house| !house.stills.is_empty());
    assert!(matches!(&house.stills[..], [Ok(unit)] if unit.is_keyframe));
    house.run_for(S);
    assert!(pictures(&house, ann) as u64 >= house.captured - 5);
}

#[test]
fn a_camera_switched_off_sends_nothing_more_and_shows_nothing_old_when_it_is_on_again() {
    let mut house = House::new(8);
    let ann = house.join(lan());
    house.run_for(5 * S);
    house.switch(false);
    assert!(house.demand.off && !house.demand.running);
    assert_eq!(house.viewers[ann].replies.last(), Some(&Reply::Bye(CloseReason::Disabled)));
    let sent = house.viewers[ann].bytes_down;
    let bob = house.join(lan());
    assert_eq!(house.viewers[bob].replies[0], Reply::Rejected(RejectReason::Disabled));
    // What the camera had under way comes all the same.
    house.picture_comes(house.now - MS);
    house.picture_comes(house.now);
    house.run_for(S);
    assert_eq!(house.viewers[ann].bytes_down, sent);

    house.switch(true);
    house.picture_comes(house.now - MS);
    house.plugged = false;
    let eve = house.join(lan());
    house.run_for(5 * S);
    assert_eq!(pictures(&house, eve), 0, "a picture from before the switch");
    house.plugged = true;
    house.run_until(S, |house| pictures(house, eve) > 0);
}

fn slow(kbps: u32, delay: Duration) -> LinkSettings {
    LinkSettings { delay, rate: Some(f64::from(kbps) * 1000.0), ..Default::default() }
}

/// Datagrams that the bottleneck's queue had no room for.
fn dropped(house: &House, seat: usize) -> usize {
    house.viewers[seat].down.waits.iter().filter(|wait| wait.is_dropped).count()
}

#[test]
fn a_keyframe_does_not_overflow_the_queue_of_a_slow_link() {
    let mut house = House::new(8);
    let ann = house.join(slow(1500, 25 * MS));
    house.run_for(20 * S);
    assert_eq!(dropped(&house, ann), 0);
    assert!(house.viewers[ann].viewer.received.keyframes() > 8);
    let longest = house.viewers[ann].down.waits.iter().map(|wait| wait.queue).max();
    assert!(longest < Some(150 * MS), "{longest:?}");
    assert!(house.viewers[ann].viewer.received.is_without_gap(), "what is not sent leaves no gap in the numbers");
    assert_eq!(house.viewers[ann].viewer.received.playout_delays.len(), 1, "nothing is lost, so nothing is held back");
}

#[test]
fn the_encoder_follows_a_lone_viewers_link_and_the_pictures_go_on_at_full_rate() {
    let mut house = House::new(8);
    let ann = house.join(slow(1500, 25 * MS));
    house.run_for(10 * S);
    let (before, captured) = (pictures(&house, ann), house.captured);
    house.run_for(20 * S);
    let part = (pictures(&house, ann) - before) as f64 / (house.captured - captured) as f64;
    assert!(part > 0.98, "{part}");
    assert!((1000..1400).contains(&house.demand.bitrate.kbps()), "{}", house.demand.bitrate);
    assert_eq!(house.demand.low, None, "who is alone drags nobody");
}

#[test]
fn the_estimate_finds_its_way_up_by_probing_when_the_link_gets_better() {
    let mut house = House::new(8);
    let ann = house.join(slow(1000, 25 * MS));
    house.run_for(20 * S);
    assert!(house.figures(ann).estimate.unwrap().kbps() < 1100);
    house.viewers[ann].down.settings.rate = Some(10_000_000.0);
    house.run_until(10 * S, |house| house.demand.bitrate.kbps() >= 1800);
    let figures = house.figures(ann);
    assert!(figures.round_trip.is_some_and(|round_trip| round_trip < 200 * MS));
    assert_eq!(figures.path.unwrap().remote, house.viewers[ann].viewer.address);
}

#[test]
fn on_an_ample_network_nothing_waits_for_a_timer() {
    let mut house = House::new(8);
    house.join(lan());
    house.run_for(5 * S);
    let before = (house.wakes, house.captured);
    house.run_for(20 * S);
    let wakes = house.wakes - before.0;
    // The library's own timers, five a second.
    assert!(wakes <= 20 * 6, "{wakes} in 20 s with {} pictures", house.captured - before.1);
}

#[test]
fn a_viewer_whose_pictures_wait_wakes_the_loop_seldom_and_one_for_whom_nothing_waits_never() {
    let mut house = House::new(8);
    let ann = house.join(slow(1000, 25 * MS));
    house.run_for(10 * S);
    let before = house.wakes;
    house.run_for(10 * S);
    assert!(house.wakes - before < 10 * 200, "{} in 10 s", house.wakes - before);
    house.plugged = false;
    house.run_for(2 * S);
    let before = house.wakes;
    house.run_for(10 * S);
    assert!(house.wakes - before <= 10 * 6, "{} in 10 s without a picture", house.wakes - before);
    assert!(house.figures(ann).sent.kbps() < 10);
}

#[test]
fn a_viewer_that_tells_nothing_gets_every_picture_at_once() {
    let mut house = House::new(8);
    let ann = house.join_who(LinkSettings { delay: 40 * MS, ..Default::default() }, Tells::Nothing);
    let took = house.run_until(S, |house| pictures(house, ann) > 0);
    assert!(took < 500 * MS, "{took:?}");
    house.run_for(10 * S);
    assert!(pictures(&house, ann) as u64 >= house.captured - 15);
    let figures = house.figures(ann);
    assert_eq!((figures.estimate, figures.rendition), (None, Some(Rendition::High)));
    assert_eq!(house.demand.bitrate.kbps(), 2000);
}

#[test]
fn a_viewer_that_agreed_to_tell_and_does_not_is_not_held_back_for_good() {
    let mut house = House::new(8);
    let mute = house.join_who(LinkSettings { delay: 40 * MS, ..Default::default() }, Tells::Never);
    house.run_for(8 * S);
    let (before, captured) = (pictures(&house, mute), house.captured);
    house.run_for(10 * S);
    assert!((pictures(&house, mute) - before) as u64 >= house.captured - captured - 5);
    assert_eq!(house.figures(mute).estimate, None);
}

#[test]
fn what_a_viewer_estimates_itself_is_heeded() {
    let mut house = House::new(8);
    let fast = house.join(lan());
    let ann = house.join_who(lan(), Tells::Nothing);
    for _ in 0..20 {
        let now = house.now;
        house.viewers[ann].viewer.say_estimate(400, now);
        house.run_for(200 * MS);
    }
    assert_eq!(house.figures(ann).estimate.unwrap().kbps(), 400);
    assert_eq!(house.figures(ann).rendition, Some(Rendition::Low));
    assert_eq!(house.figures(fast).rendition, Some(Rendition::High));
    for kbps in [0, u32::MAX] {
        let now = house.now;
        house.viewers[ann].viewer.say_estimate(kbps, now);
        house.run_for(200 * MS);
    }
    assert!(pictures(&house, fast) as u64 >= house.captured - 5);
}

#[test]
fn a_viewers_slow_link_costs_the_others_not_one_picture() {
    let mut house = House::new(8);
    let others = [house.join(lan()), house.join(slow(10_000, 25 * MS)), house.join(lan())];
    house.run_for(3 * S);
    let ann = house.join(slow(400, 40 * MS));
    house.run_for(5 * S);
    let captured = house.captured;
    let before: Vec<_> = others.iter().chain([&ann]).map(|&seat| pictures(&house, seat)).collect();
    house.run_for(60 * S);
    for (&seat, before) in others.iter().zip(&before) {
        let got = (pictures(&house, seat) - before) as u64;
        assert!(got + 2 >= house.captured - captured, "viewer {seat}: {got} of {}", house.captured - captured);
        assert!(house.viewers[seat].viewer.received.is_without_gap());
    }
    assert_eq!(house.demand.bitrate.kbps(), 2000, "nobody is made worse");
    let slow = house.viewers[ann].viewer.received.shown();
    assert!(slow.len() - before[3] >= 60 * 25, "{} pictures in a minute", slow.len() - before[3]);
    assert_eq!(slow.last().unwrap().filling, filling(Rendition::Low));
    let recent = house.viewers[ann].down.waits.iter().filter(|wait| house.now - wait.sent < 50 * S);
    assert!(recent.map(|wait| wait.queue).max() < Some(200 * MS));
}

#[test]
fn a_viewer_moved_between_renditions_can_decode_every_step_of_it() {
    let mut house = House::new(8);
    house.join(lan());
    let ann = house.join(slow(10_000, 25 * MS));
    house.run_for(5 * S);
    house.viewers[ann].down.settings.rate = Some(400_000.0);
    house.run_until(10 * S, |house| house.figures(ann).rendition == Some(Rendition::Low));
    house.run_for(5 * S);
    house.viewers[ann].down.settings.rate = Some(10_000_000.0);
    house.run_until(40 * S, |house| house.figures(ann).rendition == Some(Rendition::High));
    house.run_for(2 * S);
    let received = &house.viewers[ann].viewer.received;
    let shown = received.shown();
    let mut switches = Vec::new();
    for pair in shown.windows(2) {
        let ticks = pair[1].timestamp.wrapping_sub(pair[0].timestamp);
        assert!((1..90_000 * 5).contains(&ticks), "the clock goes on: {ticks}");
        if pair[0].filling != pair[1].filling {
            assert!(pair[1].is_keyframe, "a switch begins with a keyframe");
            switches.push(pair[1].filling);
        }
    }
    assert_eq!(switches, [filling(Rendition::Low), filling(Rendition::High)]);
    // The way up was seamless: nothing was lost or left out around it.
    let up = shown.iter().rposition(|shown| shown.filling == filling(Rendition::Low)).unwrap();
    for pair in shown[up - 30..].windows(2) {
        assert!(pair[1].timestamp.wrapping_sub(pair[0].timestamp) < 9000, "100 ms");
    }
}

#[test]
fn hostile_feedback_does_no_harm() {
    use rand::{RngExt, SeedableRng};
    use rtc::rtcp::transport_feedbacks::transport_layer_cc::*;
    let mut house = House::new(8);
    let ann = house.join(slow(10_000, 25 * MS));
    let mallory = house.join(lan());
    house.run_for(3 * S);
    let mut random = rand::rngs::SmallRng::seed_from_u64(11);
    for _ in 0..2000 {
        let symbols = [
            SymbolTypeTcc::PacketNotReceived,
            SymbolTypeTcc::PacketReceivedSmallDelta,
            SymbolTypeTcc::PacketReceivedLargeDelta,
        ];
        let packet_status_symbol = symbols[random.random_range(0..3)];
        let run_length = if random.random_bool(0.5) { 8191 } else { random.random_range(0..20) };
        let run = RunLengthChunk { type_tcc: StatusChunkTypeTcc::RunLengthChunk, packet_status_symbol, run_length };
        let is_large = packet_status_symbol == SymbolTypeTcc::PacketReceivedLargeDelta;
        let delta = || if is_large { i64::from(i16::MIN) * 250 } else { 250 };
        let deltas = if packet_status_symbol == SymbolTypeTcc::PacketNotReceived { 0 } else { run_length };
        let recv_deltas =
            (0..deltas.min(400)).map(|_| RecvDelta { type_tcc_packet: packet_status_symbol, delta: delta() }).collect();
        let feedback = TransportLayerCc {
            sender_ssrc: 1,
            media_ssrc: 1,
            base_sequence_number: random.random(),
            packet_status_count: if random.random_bool(0.5) { u16::MAX } else { run_length },
            reference_time: random.random_range(0..1 << 24),
            fb_pkt_count: random.random(),
            packet_chunks: vec![PacketStatusChunk::RunLengthChunk(run); random.random_range(1..9)],
            recv_deltas,
        };
        let now = house.now;
        house.viewers[mallory].viewer.say(Box::new(feedback), now);
        house.run_for(5 * MS);
    }
    assert!(pictures(&house, ann) as u64 + 20 >= house.captured, "the others see everything");
    let estimate = house.figures(mallory).estimate.unwrap();
    assert!((50..=4000).contains(&estimate.kbps()), "{estimate}");
    assert!(house.wakes < 20_000, "{}", house.wakes);
}

#[test]
fn another_network_is_judged_anew() {
    let mut house = House::new(8);
    let ann = house.join(slow(400, 40 * MS));
    house.run_for(10 * S);
    assert!(house.figures(ann).estimate.unwrap().kbps() < 500);
    house.viewers[ann].down.settings = lan();
    house.viewers[ann].up.settings = lan();
    let roamed: SocketAddr = "203.0.113.9:40000".parse().unwrap();
    house.restart(ann, roamed);
    let took =
        house.run_until(3 * S, |house| house.figures(ann).estimate.is_some_and(|estimate| estimate.kbps() > 2000));
    assert!(took < 1500 * MS, "{took:?}");
    assert_eq!(house.figures(ann).path.unwrap().remote, roamed);
}

#[test]
fn a_viewer_too_slow_for_the_only_rendition_sees_a_part_of_each_gop_however_rare_keyframes_are() {
    for (keyframe_every, kbps) in [(60, 900), (600, 900), (600, 400)] {
        let mut house = House::new(8);
        house.keyframe_every = keyframe_every;
        house.publisher.handle_low(&front(), false, house.now, &mut |_| {});
        let fast = house.join(lan());
        house.run_for(3 * S);
        let slow =
            house.join(LinkSettings { delay: 40 * MS, rate: Some(f64::from(kbps) * 1000.0), ..Default::default() });
        house.run_for(60 * S);
        let shown = house.viewers[slow].viewer.received.shown();
        let gaps = shown.windows(2).skip(2).map(|pair| pair[1].timestamp.wrapping_sub(pair[0].timestamp));
        let longest = Duration::from_micros(u64::from(gaps.max().unwrap_or(u32::MAX)) * 1000 / 90);
        assert!(longest < 4 * S, "{longest:?} at {kbps} kbit/s, a keyframe in {keyframe_every} pictures");
        let least = if kbps == 900 { 300 } else { 40 };
        assert!(shown.len() > least, "{} in a minute at {kbps} kbit/s, a keyframe in {keyframe_every}", shown.len());
        assert!(pictures(&house, fast) as u64 >= house.captured - 5);
    }
}

#[test]
fn a_near_viewer_behind_a_slow_uplink_is_paced_once_that_shows() {
    let mut house = House::new(8);
    let ann = house.join(slow(5000, MS));
    house.run_for(5 * S);
    let since = house.now;
    house.run_for(20 * S);
    let waits = house.viewers[ann].down.waits.iter().filter(|wait| wait.sent > since);
    let longest = waits.map(|wait| wait.queue).max().unwrap();
    assert!(longest < 60 * MS, "{longest:?}");
    assert!(pictures(&house, ann) as u64 + 10 >= house.captured);
}

#[test]
fn on_every_kind_of_network_pictures_move_and_a_viewer_at_home_notices_nothing() {
    for (profile, seed) in Profile::ALL.into_iter().flat_map(|profile| [(profile, 1), (profile, 2)]) {
        let mut house = House::new(8);
        let home = house.join(lan());
        let steps = profile.steps(40 * S, seed);
        let away = house.join(steps[0].settings);
        let now = house.now;
        house.viewers[away].down.follow(&steps, now);
        house.run_for(40 * S);
        let name = profile.name();
        let least = if profile == Profile::Train { 500 } else { 900 };
        let moved = house.viewers[away].viewer.received.shown().len();
        assert!(moved > least, "{name} {seed}: {moved} of {} pictures", house.captured);
        let missed = house.captured - pictures(&house, home) as u64;
        assert!(missed <= 5, "{name} {seed}: {missed} of the other's");
    }
}
