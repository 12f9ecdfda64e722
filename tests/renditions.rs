//! Who gets which rendition, with the camera, the viewers and their networks in the loop, in virtual time.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests say what they expect")]

#[allow(unreachable_pub, dead_code, reason = "shared by several test programs")]
mod support;

use std::time::Duration;

use edgecam::core::access_unit::Bitrate;
use edgecam::core::camera::Rendition;
use edgecam::core::renditions::{Range, RenditionsSettings};

use support::house::{House, RENDITIONS};
use support::network::{LinkSettings, Queue};
use support::viewer::Tells;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn slow(kbps: u32, delay: Duration) -> LinkSettings {
    LinkSettings { delay, rate: Some(f64::from(kbps) * 1000.0), ..Default::default() }
}

fn set_rate(house: &mut House, seat: usize, kbps: u32) {
    house.viewers[seat].down.settings.rate = Some(f64::from(kbps) * 1000.0);
}

#[test]
fn a_viewer_who_vanishes_costs_the_others_nothing_and_opens_no_second_encoder() {
    let mut house = House::new(8);
    house.join(slow(20_000, 10 * MS));
    let bob = house.join(slow(20_000, 25 * MS));
    house.run_for(15 * S);
    assert_eq!((house.demand.bitrate.kbps(), house.demand.low), (2000, None));
    house.viewers[bob].dead = true;
    for _ in 0..400 {
        house.run_for(100 * MS);
        assert_eq!((house.demand.bitrate.kbps(), house.demand.low), (2000, None));
    }
}

#[test]
fn a_viewer_who_was_not_heard_for_a_moment_is_where_it_was_when_it_is_heard_again() {
    for pause in [800 * MS, 1500 * MS, 3 * S, 8 * S] {
        let mut house = House::new(8);
        house.join(slow(20_000, 10 * MS));
        let bob = house.join(slow(20_000, 25 * MS));
        house.run_for(15 * S);
        house.viewers[bob].up.settings.cut = true;
        house.viewers[bob].down.settings.cut = true;
        house.run_for(pause);
        house.viewers[bob].up.settings.cut = false;
        house.viewers[bob].down.settings.cut = false;
        for _ in 0..100 {
            house.run_for(100 * MS);
            assert_eq!((house.demand.bitrate.kbps(), house.demand.low), (2000, None), "{pause:?}");
        }
        assert!(house.figures(bob).estimate.unwrap().kbps() > 2000, "{pause:?}");
    }
}

#[test]
fn a_viewer_who_vanishes_between_two_networks_is_not_waited_for() {
    let mut house = House::new(8);
    house.join(slow(20_000, 10 * MS));
    let bob = house.join(slow(1600, 25 * MS));
    house.run_for(15 * S);
    assert!(house.demand.bitrate.kbps() < 1600, "{} kbit/s for both", house.demand.bitrate.kbps());
    house.restart(bob, "198.51.100.77:50000".parse().unwrap());
    house.viewers[bob].dead = true;
    house.run_until(3 * S, |house| house.demand.bitrate.kbps() == 2000);
}

#[test]
fn a_network_that_collapses_is_no_silence_however_long_its_queue() {
    for queue in [200 * MS, 2 * S] {
        let mut house = House::new(8);
        let ann = house.join(slow(20_000, 10 * MS));
        let bob = house.join(LinkSettings { queue: Queue::Time(queue), ..slow(20_000, 25 * MS) });
        house.run_for(15 * S);
        set_rate(&mut house, bob, 300);
        house.run_until(6 * S, |house| house.figures(bob).rendition == Some(Rendition::Low));
        assert_eq!(house.figures(ann).rendition, Some(Rendition::High));
        house.run_for(10 * S);
        assert_eq!(house.figures(bob).rendition, Some(Rendition::Low));
        assert_eq!(house.demand.bitrate.kbps(), 2000);
    }
}

/// A viewer whose own estimate is all it tells: of what arrives it believes half as much again, as libwebrtc's does.
fn run_with_own_estimate(house: &mut House, seat: usize, network: u32, time: Duration) {
    let end = house.now + time;
    while house.now < end {
        let (now, sent) = (house.now, house.figures(seat).sent.kbps());
        house.viewers[seat].viewer.say_estimate(network.min(sent * 3 / 2 + 10), now);
        house.run_for(500 * MS);
    }
}

#[test]
fn who_tells_only_an_estimate_of_what_it_gets_comes_back_up() {
    let mut house = House::new(8);
    let ann = house.join(slow(20_000, 10 * MS));
    let bob = house.join_who(slow(20_000, 25 * MS), Tells::Nothing);
    house.run_for(3 * S);
    set_rate(&mut house, bob, 400);
    run_with_own_estimate(&mut house, bob, 380, 30 * S);
    assert_eq!(house.figures(bob).rendition, Some(Rendition::Low));
    assert_eq!(house.figures(ann).rendition, Some(Rendition::High));
    set_rate(&mut house, bob, 20_000);
    run_with_own_estimate(&mut house, bob, 10_000, 60 * S);
    assert_eq!(house.figures(bob).rendition, Some(Rendition::High));
    let before = house.figures(bob).units_skipped;
    run_with_own_estimate(&mut house, bob, 10_000, 60 * S);
    assert_eq!(house.figures(bob).rendition, Some(Rendition::High), "and stays");
    assert_eq!(house.figures(bob).units_skipped, before);
    assert_eq!((house.demand.bitrate.kbps(), house.demand.low), (2000, None));
}

#[test]
fn who_has_no_stream_of_repeats_to_be_probed_with_comes_back_up() {
    let mut house = House::new(8);
    house.join(slow(20_000, 10 * MS));
    let bob = house.join_who(slow(20_000, 25 * MS), Tells::ArrivalsWithoutRepeats);
    house.run_for(5 * S);
    set_rate(&mut house, bob, 400);
    house.run_for(20 * S);
    assert_eq!(house.figures(bob).rendition, Some(Rendition::Low));
    set_rate(&mut house, bob, 20_000);
    house.run_for(60 * S);
    assert_eq!(house.figures(bob).rendition, Some(Rendition::High));
    house.run_for(60 * S);
    assert_eq!(house.figures(bob).rendition, Some(Rendition::High), "and stays");
    assert_eq!((house.demand.bitrate.kbps(), house.demand.low), (2000, None));
}

#[test]
fn who_cannot_be_probed_and_stays_slow_is_tried_seldom_and_costs_the_others_nothing() {
    for tells in [Tells::Nothing, Tells::ArrivalsWithoutRepeats] {
        let mut house = House::new(8);
        house.join(slow(20_000, 10 * MS));
        let bob = house.join_who(slow(800, 25 * MS), tells);
        let (mut moves, mut is_up) = (0, 0);
        let mut last = None;
        for half in 0..600 {
            if tells == Tells::Nothing && half > 2 {
                run_with_own_estimate(&mut house, bob, 760, 500 * MS);
            } else {
                house.run_for(500 * MS);
            }
            let rendition = house.figures(bob).rendition;
            moves += u32::from(rendition != last);
            is_up += u32::from(half > 20 && rendition == Some(Rendition::High));
            last = rendition;
            assert!(half < 20 || house.demand.bitrate.kbps() == 2000, "{tells:?}: {}", house.demand.bitrate);
        }
        assert!(moves <= 14, "{tells:?}: {moves} moves in 5 minutes");
        assert!(is_up <= 40, "{tells:?}: {is_up} half seconds with more than it carries");
    }
}

#[test]
fn renditions_of_about_the_same_rate_keep_nobody_down() {
    for high in [500, 520, 600, 800] {
        let most = Bitrate::from_kbps(high);
        let settings = RenditionsSettings { high: Range { most, ..RENDITIONS.high }, ..RENDITIONS };
        let mut house = House::with_renditions(8, settings);
        house.join(slow(20_000, 10 * MS));
        let bob = house.join(slow(10_000, 25 * MS));
        house.run_for(5 * S);
        set_rate(&mut house, bob, 250);
        house.run_for(20 * S);
        assert_eq!(house.figures(bob).rendition, Some(Rendition::Low));
        set_rate(&mut house, bob, 10_000);
        house.run_for(60 * S);
        assert_eq!(house.figures(bob).rendition, Some(Rendition::High), "high: {high} kbit/s");
    }
}
