//! Viewers and the device change their addresses: the real publisher and peers on a simulated network, in virtual time.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test is where time begins, and may fail loudly")]

#[allow(unreachable_pub, dead_code, reason = "shared by several test programs")]
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use edgecam::core::candidate::Candidate;
use edgecam::core::signal::{Notice, Reply, Signal};
use support::house::{House, front, pictures};
use support::network::lan;
use support::viewer::{Tells, Viewer, thousand_candidates};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

#[test]
fn a_viewer_who_changes_networks_restarts_ice_and_keeps_its_session() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(3 * S);
    let roamed: SocketAddr = "203.0.113.9:40000".parse().unwrap();
    house.restart(ann, roamed);
    assert!(matches!(house.viewers[ann].replies.last(), Some(Reply::Answer { .. })));
    let before = pictures(&house, ann);
    house.run_until(2 * S, |house| pictures(house, ann) > before + 10);
    assert_eq!(house.publisher.viewers(&front()), 1);
    house.run_for(40 * S);
    assert!(!house.viewers[ann].replies.iter().any(|reply| matches!(reply, Reply::Bye(_))), "the session goes on");
}

#[test]
fn a_viewer_whose_way_went_with_the_devices_address_is_told_until_it_restarts_and_keeps_its_session() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(3 * S);
    house.look();
    assert_eq!(notices(&house, ann), 0, "nothing changed");
    house.renumber("192.0.2.77:8189".parse().unwrap());
    for told in 1..=2 {
        house.run_for(2 * S);
        house.look();
        assert_eq!(notices(&house, ann), told);
    }
    let before = pictures(&house, ann);
    let address = house.viewers[ann].viewer.address;
    house.restart(ann, address);
    house.look();
    let took = house.run_until(S, |house| pictures(house, ann) > before + 10);
    assert!(took < 700 * MS, "{took:?}");
    house.look();
    assert_eq!(notices(&house, ann), 2, "it has found its way");
    house.run_for(40 * S);
    assert_eq!(house.publisher.viewers(&front()), 1);
    assert!(!house.viewers[ann].replies.iter().any(|reply| matches!(reply, Reply::Bye(_))), "the session goes on");
}

#[test]
fn a_restart_that_is_refused_changes_nothing() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(3 * S);
    house.renumber("192.0.2.77:8189".parse().unwrap());
    house.look();
    assert_eq!(notices(&house, ann), 1);
    let offer = Viewer::new("198.51.100.99:9".parse().unwrap(), Tells::Arrivals, house.now).offer(true, house.now);
    house.say(ann, Signal::Restart { sdp: offer + &thousand_candidates() });
    assert!(matches!(house.viewers[ann].replies.last(), Some(Reply::Rejected(_))));
    house.look();
    assert_eq!(notices(&house, ann), 2, "its way is as gone as before");
}

fn notices(house: &House, seat: usize) -> usize {
    let replies = house.viewers[seat].replies.iter();
    replies.filter(|reply| **reply == Reply::Notice(Notice::AddressChanged)).count()
}

#[test]
fn a_viewer_whose_address_changes_under_it_is_followed_without_a_word() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(3 * S);
    // A NAT forgot: what it sends comes from elsewhere now, and what is sent to where it was gets lost.
    for elsewhere in ["203.0.113.9:40000", "203.0.113.10:40001", "203.0.113.9:40000"] {
        let elsewhere: SocketAddr = elsewhere.parse().unwrap();
        let before = pictures(&house, ann);
        house.viewers[ann].viewer.appear_at(elsewhere);
        // Five seconds until the old way counts as broken, two until the next consent check, and a keyframe.
        house.run_until(8 * S, |house| pictures(house, ann) > before + 10);
        house.run_for(10 * S);
        assert_eq!(house.figures(ann).path.unwrap().remote, elsewhere);
    }
    house.run_for(40 * S);
    assert!(!house.viewers[ann].replies.iter().any(|reply| matches!(reply, Reply::Bye(_))), "the session goes on");
}

#[test]
fn a_viewer_that_was_near_is_not_taken_for_near_where_it_went() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(3 * S);
    let elsewhere: SocketAddr = "203.0.113.9:40000".parse().unwrap();
    let seat = &mut house.viewers[ann];
    (seat.down.settings.delay, seat.up.settings.delay) = (40 * MS, 40 * MS);
    seat.viewer.appear_at(elsewhere);
    house.run_until(8 * S, |house| house.figures(ann).path.unwrap().remote == elsewhere);
    let before = house.viewers[ann].bytes_down;
    house.run_for(200 * MS);
    let sent = house.viewers[ann].bytes_down - before;
    // A far network is thought to carry 1,000 kbit/s, and packets leave at twice that.
    assert!(sent < 2_000_000 / 8 / 5 + 20_000, "{sent} bytes in 200 ms");
}

#[test]
fn a_restart_is_answered_with_the_addresses_of_now() {
    let mut house = House::new(1);
    let ann = house.join(lan());
    house.run_for(S);
    house.publisher.set_candidates(vec![Candidate::host("203.0.113.77:8189".parse().unwrap())]);
    let roamed = house.viewers[ann].viewer.address;
    house.restart(ann, roamed);
    let Some(Reply::Answer { sdp }) = house.viewers[ann].replies.last() else { panic!("no answer") };
    assert!(sdp.contains("203.0.113.77 8189") && !sdp.contains("192.0.2.1 8189"), "{sdp}");
}
