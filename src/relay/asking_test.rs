//! Several servers, in virtual time.

use proptest::prelude::*;
use rtc_stun::message::METHOD_ALLOCATE;

use super::*;
use crate::relay::gathering::tests::{Server, World};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn by_udp(server: usize) -> (String, &'static str) {
    (format!("turn:10.0.0.{server}"), "south")
}

fn by_tcp(server: usize) -> (String, &'static str) {
    (format!("turn:10.0.0.{server}?transport=tcp"), "south")
}

fn by_tls(server: usize) -> (String, &'static str) {
    (format!("turns:10.0.0.{server}:3478"), "south")
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_silent_server_costs_half_a_second_and_is_told_of() {
    let mut world = World::new(2, "south");
    world.servers[0].is_up = false;
    world.run_for(ms(499));
    assert_eq!((world.relayed(), world.servers[1].count(METHOD_ALLOCATE)), (None, 0));
    world.run_for(ms(1));
    assert_eq!(world.relayed(), Some(world.servers[1].relayed()));
    assert_eq!(world.counters.allocation_failures.get(), 1);
    world.servers[0].is_up = true;
    world.run_for(10 * MINUTE);
    assert_eq!(world.servers[0].count(METHOD_ALLOCATE), 0, "nothing stays of what was given up");
    assert_eq!(world.counters.allocation_failures.get(), 1);
}

#[test]
fn where_udp_is_blocked_a_relay_stands_within_a_second() {
    let mut world = World::with(&[by_udp(0), by_tcp(1), by_tls(2)]);
    world.servers[0].is_up = false;
    world.servers.iter_mut().for_each(|server| server.delay = ms(50));
    for _ in 0..2 {
        world.run_for(SECOND);
        assert_eq!(world.relayed(), Some(world.servers[1].relayed()));
        assert_eq!((world.servers[2].count(METHOD_ALLOCATE), world.connected.len()), (0, 1));
        // It is lost at the next refresh.
        world.run_for(2 * MINUTE - SECOND);
        world.servers[1].holders.clear();
        world.run_for(ms(100) + 15 * SECOND);
    }
    assert_eq!(world.servers[1].allocations, 3);
}

#[test]
fn where_the_first_server_answers_in_time_no_other_is_asked() {
    let mut world = World::new(2, "south");
    world.servers[0].delay = ms(120);
    world.run_for(10 * MINUTE);
    assert!(world.relayed().is_some());
    assert_eq!((world.servers[0].allocations, world.servers[1].count(METHOD_ALLOCATE)), (1, 0));
}

#[test]
fn a_server_that_refuses_makes_room_for_the_next_at_once() {
    let mut world = World::new(2, "south");
    world.servers[0].password = "north";
    world.run_for(Duration::ZERO);
    assert_eq!(world.relayed(), Some(world.servers[1].relayed()));
    assert_eq!((world.servers[0].allocations, world.servers[1].allocations), (0, 1));
}

#[test]
fn what_a_late_server_gives_is_given_back() {
    for first in [by_udp(0), by_tcp(0)] {
        let is_by_udp = first == by_udp(0);
        let mut world = World::with(&[first, by_udp(1)]);
        world.servers[0].delay = if is_by_udp { ms(200) } else { ms(110) };
        world.run_for(ms(550));
        let relayed = world.relayed();
        assert_eq!(relayed, Some(world.servers[1].relayed()));
        world.run_for(ms(55));
        assert_eq!(world.servers[0].holders.len(), 1, "its answer is on its way");
        world.run_for(ms(200));
        assert!(world.servers[0].holders.is_empty());
        world.run_for(10 * MINUTE);
        assert_eq!((world.servers[0].allocations, world.servers[1].allocations), (1, 1));
        assert_eq!((world.relayed(), world.connected.len()), (relayed, 0));
    }
}

#[test]
fn what_a_server_gave_without_being_heard_is_given_back() {
    let mut world = World::new(1, "south");
    world.servers[0].delay = SECOND;
    world.run_for(2 * SECOND);
    world.servers[0].delay = 6 * SECOND;
    world.run_for(9 * SECOND);
    assert_eq!((world.relayed(), world.servers[0].holders.len()), (None, 1), "it was given up after five seconds");
    world.run_for(3 * SECOND);
    assert!(world.servers[0].holders.is_empty());
}

#[test]
fn what_is_asked_for_at_the_end_is_given_back() {
    let mut world = World::new(1, "south");
    world.servers[0].delay = ms(200);
    world.run_for(ms(450));
    world.shut_down();
    assert_eq!((world.servers[0].allocations, world.servers[0].holders.len()), (1, 0));
}

#[test]
fn silent_servers_are_tried_ever_more_seldom() {
    let mut world = World::new(3, "south");
    world.servers.iter_mut().for_each(|server| server.is_up = false);
    world.run_for(10 * MINUTE);
    let tries = world.counters.allocation_failures.get();
    assert!((3 * 18..=3 * 28).contains(&tries), "{tries} tries in ten minutes");
}

#[test]
fn two_urls_of_one_address_never_ask_at_once() {
    let urls = [("turn:10.0.0.0".to_owned(), "north"), ("turn:10.0.0.0:3478?transport=udp".to_owned(), "south")];
    let [mut world, mut alone] = [World::with(&urls), World::with(&urls[..1])];
    for world in [&mut world, &mut alone] {
        world.servers[0].delay = ms(300);
        world.run_for(ms(1799));
    }
    assert_eq!(world.servers[0].count(METHOD_ALLOCATE), alone.servers[0].count(METHOD_ALLOCATE));
    assert_eq!(world.relayed(), None);
    // The first is refused, and then the second is asked.
    world.run_for(ms(1201));
    assert_eq!(world.relayed(), Some(world.servers[0].relayed()));
}

/// What a server does from now on.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Silent,
    Refusing,
    Answering,
}

prop_compose! {
    fn server()(
        behaviour in prop_oneof![Just(Behaviour::Silent), Just(Behaviour::Refusing), Just(Behaviour::Answering)],
        delay in prop_oneof![Just(0), 1u64..2000],
    ) -> (Behaviour, Duration) {
        (behaviour, ms(delay))
    }
}

fn start(world: &mut World, server: usize, (behaviour, delay): (Behaviour, Duration)) {
    let server = world.restart(server);
    server.delay = delay;
    match behaviour {
        Behaviour::Silent => server.is_up = false,
        Behaviour::Refusing => server.password = "north",
        Behaviour::Answering => {}
    }
}

fn held(world: &World) -> usize {
    world.servers.iter().map(|server| server.holders.len()).sum()
}

/// And looks whenever nothing is on its way.
fn run(world: &mut World, time: Duration) {
    const STEP: Duration = Duration::from_millis(100);
    for _ in 0..time.as_millis() / STEP.as_millis() {
        world.run_for(STEP);
        assert!(!world.flights.is_empty() || held(world) <= 1, "nobody uses one of these allocations");
        assert!(world.servers.iter().all(|server| server.mismatches == 0), "two were asked for on one way");
    }
}

proptest! {
    #[test]
    fn whatever_servers_do_one_allocation_stands_while_one_of_them_works(
        urls in prop::collection::vec((0usize..3, any::<bool>()), 1..6),
        first in prop::array::uniform3(server()),
        then in prop::collection::vec((0usize..3, server(), 0u32..40), 0..8),
        delay in 0u64..300,
        works in any::<prop::sample::Index>(),
    ) {
        let of = |(server, is_by_tcp): &(usize, bool)| if *is_by_tcp { by_tcp(*server) } else { by_udp(*server) };
        let mut world = World::with(&urls.iter().map(of).collect::<Vec<_>>());
        world.servers.resize_with(3, Server::new);
        for (number, server) in first.into_iter().enumerate() {
            start(&mut world, number, server);
        }
        for (number, server, seconds) in then {
            run(&mut world, seconds * SECOND);
            start(&mut world, number, server);
        }
        start(&mut world, works.get(&urls).0, (Behaviour::Answering, ms(delay)));
        run(&mut world, 2 * MINUTE);
        while !world.flights.is_empty() {
            run(&mut world, ms(100));
        }
        prop_assert!(world.relayed().is_some());
        prop_assert_eq!(held(&world), 1);
    }
}
