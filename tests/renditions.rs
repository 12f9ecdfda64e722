//! Who gets which rendition, with the camera, the viewers and their networks in the loop, in virtual time.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests say what they expect")]

#[allow(unreachable_pub, dead_code, reason = "shared by several test programs")]
mod support;

use std::time::Duration;

use edgecam::core::camera::Rendition;

use support::house::House;
use support::network::{LinkSettings, Queue};

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
