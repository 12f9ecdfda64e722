//! Against servers that exist only in virtual time.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use rtc_stun::attributes::{
    ATTR_ERROR_CODE, ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM, ATTR_USERNAME, ATTR_XOR_RELAYED_ADDRESS,
    ATTR_XORMAPPED_ADDRESS,
};
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    CLASS_ERROR_RESPONSE, CLASS_SUCCESS_RESPONSE, METHOD_ALLOCATE, METHOD_BINDING, METHOD_CHANNEL_BIND,
    METHOD_CREATE_PERMISSION, METHOD_REFRESH, Message, MessageType, Method, Setter, TransactionId,
};
use rtc_stun::textattrs::TextAttribute;
use rtc_stun::xoraddr::XorMappedAddress;

use super::*;
use crate::relay::Credentials;

const BASE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 168, 1, 9)), 8189);
const MAPPED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5)), 40_001);
const VIEWER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 77)), 50_000);
const HOLD_FOR: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);
/// Where the media socket is meant, and not a connection of the relay's own.
const MEDIA: Ticket = 0;

/// A TURN server.
pub(in crate::relay) struct Server {
    pub(in crate::relay) is_up: bool,
    /// How long a message takes to it, or from it.
    pub(in crate::relay) delay: Duration,
    pub(in crate::relay) password: &'static str,
    nonce: u32,
    /// Requests until the nonce is stale.
    nonce_holds: u32,
    /// Who has the allocation on which way, and which request it was given for.
    pub(in crate::relay) holders: HashMap<Ticket, (String, [u8; 12])>,
    pub(in crate::relay) allocations: u16,
    /// Who asked for an allocation where there was one already.
    pub(in crate::relay) mismatches: u32,
    heard: Vec<Method>,
    pub(in crate::relay) data: Vec<Vec<u8>>,
}

impl Server {
    pub(in crate::relay) fn new() -> Self {
        Self {
            is_up: true,
            delay: Duration::ZERO,
            password: "south",
            nonce: 1,
            nonce_holds: 50,
            holders: HashMap::new(),
            allocations: 0,
            mismatches: 0,
            heard: Vec::new(),
            data: Vec::new(),
        }
    }

    pub(in crate::relay) fn relayed(&self) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 2], 49_000 + self.allocations))
    }

    pub(in crate::relay) fn count(&self, method: Method) -> usize {
        self.heard.iter().filter(|heard| **heard == method).count()
    }

    pub(in crate::relay) fn answer(&mut self, way: Ticket, data: &[u8]) -> Option<Vec<u8>> {
        if !self.is_up {
            return None;
        }
        let mut request = Message { raw: data.to_vec(), ..Message::default() };
        if request.decode().is_err() || !matches!(data[1], 1 | 3 | 4 | 8 | 9) {
            self.data.push(data.to_vec());
            return None;
        }
        let method = request.typ.method;
        self.heard.push(method);
        if method == METHOD_BINDING {
            let mut answer = response(&request, CLASS_SUCCESS_RESPONSE);
            add_address(&mut answer, ATTR_XORMAPPED_ADDRESS, MAPPED);
            return Some(answer.raw);
        }
        let text = |kind| TextAttribute::get_from_as(&request, kind).map(|text| text.text).ok();
        self.nonce_holds -= 1;
        if self.nonce_holds == 0 {
            (self.nonce, self.nonce_holds) = (self.nonce + 1, 50);
        }
        let nonce = self.nonce.to_string();
        let (user, is_fresh) = (text(ATTR_USERNAME), text(ATTR_NONCE).as_ref() == Some(&nonce));
        let provider = rtc::crypto::default_provider().unwrap();
        let key = |user: &str| {
            let words = (user.to_owned(), "example.org".to_owned(), self.password.to_owned());
            MessageIntegrity::long_term_integrity_key(words.0, words.1, words.2, provider.crypto()).unwrap()
        };
        let is_signed =
            |user: &String| MessageIntegrity::check(&mut request.clone(), &key(user), provider.crypto()).is_ok();
        let Some(user) = user.filter(is_signed) else { return Some(refused(&request, 401, &nonce)) };
        if !is_fresh {
            return Some(refused(&request, 438, &nonce));
        }
        let id = request.transaction_id.0;
        let holder = self.holders.get(&way);
        let is_repeated = holder.is_some_and(|(_, given_for)| *given_for == id);
        let holds = holder.is_some_and(|(holder, _)| *holder == user);
        if method == METHOD_ALLOCATE && holder.is_some() && !is_repeated {
            self.mismatches += 1;
            return Some(refused(&request, 437, &nonce));
        }
        if method != METHOD_ALLOCATE && !holds {
            return Some(refused(&request, 437, &nonce));
        }
        let mut answer = response(&request, CLASS_SUCCESS_RESPONSE);
        if method == METHOD_ALLOCATE {
            self.allocations += u16::from(!is_repeated);
            self.holders.insert(way, (user.clone(), id));
            let relayed = self.relayed();
            add_address(&mut answer, ATTR_XOR_RELAYED_ADDRESS, relayed);
            add_address(&mut answer, ATTR_XORMAPPED_ADDRESS, MAPPED);
            answer.add(ATTR_LIFETIME, &600u32.to_be_bytes());
        }
        if method == METHOD_REFRESH && request.get(ATTR_LIFETIME).is_ok_and(|lifetime| lifetime == [0; 4]) {
            self.holders.remove(&way);
        }
        MessageIntegrity::new_raw_integrity_with_provider(key(&user), provider.crypto()).add_to(&mut answer).unwrap();
        Some(answer.raw)
    }
}

fn response(request: &Message, class: rtc_stun::message::MessageClass) -> Message {
    let mut answer = Message::new();
    let id = TransactionId(request.transaction_id.0);
    answer.build(&[Box::new(MessageType::new(request.typ.method, class)), Box::new(id)]).unwrap();
    answer
}

fn refused(request: &Message, code: u16, nonce: &str) -> Vec<u8> {
    let mut answer = response(request, CLASS_ERROR_RESPONSE);
    answer.add(ATTR_ERROR_CODE, &[0, 0, (code / 100) as u8, (code % 100) as u8, b'n', b'o']);
    for (kind, text) in [(ATTR_REALM, "example.org"), (ATTR_NONCE, nonce)] {
        TextAttribute::new(kind, text.to_owned()).add_to(&mut answer).unwrap();
    }
    answer.raw
}

fn add_address(message: &mut Message, kind: rtc_stun::attributes::AttrType, address: SocketAddr) {
    XorMappedAddress { ip: address.ip(), port: address.port() }.add_to_as(message, kind).unwrap();
}

/// The camera's end, its servers, and the time.
pub(in crate::relay) struct World {
    start: Instant,
    now: Instant,
    pub(in crate::relay) gathering: Gathering,
    /// By the last number of their address.
    pub(in crate::relay) servers: Vec<Server>,
    pub(in crate::relay) counters: Arc<RelayCounters>,
    /// Connections that were asked for and not left, and to which server.
    pub(in crate::relay) connected: HashMap<Ticket, usize>,
    /// What is on its way, and when it is there.
    pub(in crate::relay) flights: Vec<(Instant, Flight)>,
}

pub(in crate::relay) enum Flight {
    Request { server: usize, way: Ticket, data: Bytes },
    Answer { server: usize, way: Ticket, data: Vec<u8> },
    Reached { ticket: Ticket, reached: Reached },
}

impl World {
    /// With so many servers, reached by UDP.
    pub(in crate::relay) fn new(servers: usize, password: &'static str) -> Self {
        let urls: Vec<_> = (0..servers).map(|number| (format!("turn:10.0.0.{number}"), password)).collect();
        Self::with(&urls)
    }

    /// With these urls and passwords.
    pub(in crate::relay) fn with(urls: &[(String, &'static str)]) -> Self {
        let start = Instant::now();
        let counters = Arc::<RelayCounters>::default();
        let minted = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let server = |(url, password): &(String, &'static str)| {
            let (minted, password) = (Arc::clone(&minted), *password);
            let mint = move || Credentials {
                username: minted.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string(),
                password: password.to_owned(),
                hold_for: Some(HOLD_FOR),
            };
            RelayServer { url: ServerUrl::parse(url).unwrap(), mint: Some(Arc::new(mint)) }
        };
        Self::of(urls.iter().map(server).collect(), counters, start)
    }

    fn of(servers: Vec<RelayServer>, counters: Arc<RelayCounters>, start: Instant) -> Self {
        let real = servers.iter().map(|_| Server::new()).collect();
        let gathering = Gathering::new(servers, &counters, start);
        let (connected, flights) = (HashMap::new(), Vec::new());
        Self { start, now: start, gathering, servers: real, counters, connected, flights }
    }

    fn address(server: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, server as u8], 3478))
    }

    fn at(address: SocketAddr) -> usize {
        let SocketAddr::V4(address) = address else { panic!("{address} is nobody's") };
        address.ip().octets()[3].into()
    }

    pub(in crate::relay) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.exchange();
        loop {
            let timer = self.gathering.poll_timeout();
            let landing = self.flights.iter().map(|(at, _)| *at).min();
            let Some(at) = timer.into_iter().chain(landing).min().filter(|at| *at <= end) else { break };
            assert!(at >= self.now || self.now == self.start);
            self.now = at.max(self.now);
            if landing.is_some_and(|at| at <= self.now) {
                self.land();
            } else {
                self.gathering.handle_timeout(self.now);
            }
            self.exchange();
        }
        self.now = end;
    }

    /// Until nobody has anything to say.
    fn exchange(&mut self) {
        while let Some(output) = self.gathering.poll_output() {
            match output {
                Output::Datagram { to, data } => self.request(Self::at(to), MEDIA, data),
                Output::Write { ticket, data } => {
                    if let Some(server) = self.connected.get(&ticket) {
                        self.request(*server, ticket, data);
                    }
                }
                Output::Reach { ticket, url, how } => self.reach(ticket, &url, how),
                Output::Leave { ticket } => {
                    self.connected.remove(&ticket);
                }
            }
        }
    }

    fn reach(&mut self, ticket: Ticket, url: &ServerUrl, how: How) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let address = SocketAddr::new(url.host.parse().unwrap(), url.port);
        if how == How::Resolve {
            self.gathering.handle_reached(ticket, Reached::Addresses(vec![address]), self.now);
            return self.gathering.handle_timeout(self.now);
        }
        let server = Self::at(address);
        self.connected.insert(ticket, server);
        let Server { is_up, delay, .. } = &self.servers[server];
        let (after, reached) = match url.transport {
            ServerTransport::Udp => (Duration::ZERO, Reached::Connected),
            _ if *is_up => (2 * *delay, Reached::Connected),
            _ => (PATIENCE, Reached::Failed("no answer".to_owned())),
        };
        self.fly(after, Flight::Reached { ticket, reached });
    }

    fn request(&mut self, server: usize, way: Ticket, data: Bytes) {
        self.fly(self.servers[server].delay, Flight::Request { server, way, data });
    }

    fn fly(&mut self, time: Duration, flight: Flight) {
        if time.is_zero() {
            self.arrive(flight);
        } else {
            self.flights.push((self.now + time, flight));
        }
    }

    /// What is due arrives, in the order in which it was sent.
    fn land(&mut self) {
        while let Some(next) = self.flights.iter().position(|(at, _)| *at <= self.now) {
            let (_, flight) = self.flights.remove(next);
            self.arrive(flight);
        }
    }

    fn arrive(&mut self, flight: Flight) {
        match flight {
            Flight::Request { server, way, data } => {
                if let Some(data) = self.servers[server].answer(way, &data) {
                    self.fly(self.servers[server].delay, Flight::Answer { server, way, data });
                }
            }
            Flight::Answer { server, way: MEDIA, data } => {
                // Who has given up does not recognize a late one, and the ICE agents drop what they did not ask for.
                self.gathering.handle_datagram(Self::address(server), BASE, &data, self.now);
            }
            Flight::Answer { way, data, .. } if self.connected.contains_key(&way) => {
                self.gathering.handle_frame(way, &data, self.now);
            }
            Flight::Reached { ticket, reached } if self.connected.contains_key(&ticket) => {
                self.gathering.handle_reached(ticket, reached, self.now);
            }
            Flight::Answer { .. } | Flight::Reached { .. } => {}
        }
    }

    /// A server starts anew: what it knew and what was on its way are gone.
    pub(in crate::relay) fn restart(&mut self, number: usize) -> &mut Server {
        self.flights.retain(|(_, flight)| match flight {
            Flight::Request { server, .. } | Flight::Answer { server, .. } => *server != number,
            Flight::Reached { .. } => true,
        });
        self.servers[number] = Server::new();
        &mut self.servers[number]
    }

    /// Nothing is begun any more, but what was sent arrives.
    pub(in crate::relay) fn shut_down(&mut self) {
        self.gathering.shut_down(self.now);
        self.exchange();
        while let Some(at) = self.flights.iter().map(|(at, _)| *at).min() {
            self.now = at;
            self.land();
            self.exchange();
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.gathering.candidates(&[Candidate::host(BASE)])
    }

    pub(in crate::relay) fn relayed(&self) -> Option<SocketAddr> {
        let relayed = |candidate: &Candidate| matches!(candidate.kind, CandidateKind::Relayed { .. });
        self.candidates().into_iter().find(relayed).map(|candidate| candidate.address)
    }

    /// Sends from the relay to the viewer; whether it was taken.
    fn send(&mut self, from: SocketAddr, data: &[u8]) -> bool {
        let transmit = Transmit { from, to: VIEWER, transport: Transport::Udp, data: data.into() };
        let route = self.gathering.route(transmit, self.now);
        let is_taken = match route {
            Route::Media(transmit) => {
                assert_ne!(transmit.from, from, "a relayed packet went out bare");
                self.request(Self::at(transmit.to), MEDIA, Bytes::copy_from_slice(&transmit.data));
                true
            }
            Route::Own(..) => true,
            Route::Nowhere => false,
        };
        self.exchange();
        is_taken
    }
}

#[test]
fn both_candidates_stand_as_soon_as_a_server_answers() {
    let mut world = World::new(1, "south");
    world.run_for(Duration::ZERO);
    let mapped =
        Candidate { address: MAPPED, transport: Transport::Udp, kind: CandidateKind::ServerReflexive { base: BASE } };
    let relayed = Candidate {
        address: world.servers[0].relayed(),
        transport: Transport::Udp,
        kind: CandidateKind::Relayed { mapped: MAPPED },
    };
    assert_eq!(world.candidates(), [mapped, relayed]);
    let elsewhere = Candidate::host("192.168.2.2:8189".parse().unwrap());
    assert_eq!(world.gathering.candidates(&[elsewhere]), [relayed], "a base that viewers are not told");
    assert_eq!(
        world.gathering.candidates(&[Candidate::host(BASE), Candidate::host(MAPPED)]),
        [relayed],
        "told already"
    );
}

#[test]
fn a_viewer_is_let_through_when_first_sent_to_and_gets_a_channel_when_it_answers() {
    let mut world = World::new(1, "south");
    world.run_for(Duration::ZERO);
    let relayed = world.relayed().unwrap();
    assert!(!world.send(relayed, b"first"), "its permission is only asked for");
    assert!(world.send(relayed, b"second"));
    assert_eq!(world.servers[0].count(METHOD_CREATE_PERMISSION), 1);
    let mut from_viewer = message::send_indication(VIEWER, b"hello").unwrap();
    from_viewer[1] = 0x17;
    let got = world.gathering.handle_datagram(World::address(0), BASE, &from_viewer, world.now);
    assert_eq!(got, Some(Unwrapped { from: VIEWER, to: relayed, data: b"hello" }));
    assert!(world.send(relayed, b"third") && world.send(relayed, b"fourth"));
    assert_eq!(world.servers[0].count(METHOD_CHANNEL_BIND), 1);
    assert_eq!(world.servers[0].data.last().unwrap(), b"\x40\x00\x00\x06fourth");
    let got = world.gathering.handle_datagram(World::address(0), BASE, b"\x40\x00\x00\x02hi", world.now);
    assert_eq!(got, Some(Unwrapped { from: VIEWER, to: relayed, data: b"hi" }));
}

#[test]
fn what_is_not_the_relays_goes_on_as_it_is() {
    let mut world = World::new(1, "south");
    world.run_for(Duration::ZERO);
    let as_is = Unwrapped { from: VIEWER, to: BASE, data: b"\x40\x00\x00\x02hi" };
    assert_eq!(world.gathering.handle_datagram(VIEWER, BASE, as_is.data, world.now), Some(as_is));
    let transmit = Transmit { from: BASE, to: VIEWER, transport: Transport::Udp, data: b"direct"[..].into() };
    assert!(matches!(world.gathering.route(transmit, world.now), Route::Media(out) if out.from == BASE));
}

#[test]
fn an_allocation_lives_for_hours_with_stale_nonces_and_little_talk() {
    let mut world = World::new(1, "south");
    world.run_for(HOLD_FOR / 2 - MINUTE);
    assert_eq!(world.servers[0].allocations, 1);
    let asked = world.servers[0].heard.len() as u64;
    let seconds = (HOLD_FOR / 2).as_secs();
    assert!(asked < seconds / 9, "{asked} requests in {seconds} s");
}

#[test]
fn a_dead_server_is_noticed_within_half_a_minute_and_used_again_within_another() {
    let mut world = World::new(1, "south");
    world.run_for(10 * MINUTE);
    let relayed = world.relayed().unwrap();
    world.servers[0] = Server { is_up: false, ..Server::new() };
    world.run_for(Duration::from_secs(25));
    assert_eq!(world.relayed(), None);
    assert!(!world.send(relayed, b"late"), "nothing leaves bare from an address that is gone");
    world.run_for(10 * MINUTE);
    assert_eq!(world.candidates(), []);
    world.servers[0].is_up = true;
    world.run_for(Duration::from_secs(36));
    assert_eq!(world.candidates().len(), 2);
}

#[test]
fn a_server_that_forgot_us_gives_another_allocation() {
    let mut world = World::new(1, "south");
    world.run_for(10 * MINUTE);
    world.servers[0].holders.clear();
    world.run_for(Duration::from_secs(16));
    assert_eq!((world.servers[0].allocations, world.relayed()), (2, Some(world.servers[0].relayed())));
}

#[test]
fn after_a_change_of_our_addresses_nobody_waits_for_the_next_refresh() {
    let mut world = World::new(1, "south");
    world.run_for(10 * MINUTE + Duration::from_secs(1));
    // By another of our addresses it does not know us.
    world.servers[0].holders.clear();
    world.gathering.hurry(world.now);
    world.run_for(Duration::from_secs(1));
    assert_eq!((world.servers[0].allocations, world.relayed()), (2, Some(world.servers[0].relayed())));
}

#[test]
fn the_second_server_is_used_while_the_first_is_away() {
    let mut world = World::new(2, "south");
    world.servers[0].is_up = false;
    world.run_for(Duration::from_secs(10));
    assert_eq!((world.servers[0].allocations, world.servers[1].allocations), (0, 1));
    world.servers[0].is_up = true;
    world.run_for(10 * MINUTE);
    assert_eq!(world.servers[0].allocations, 0, "what works stays");
    world.servers[1].is_up = false;
    world.run_for(Duration::from_secs(30));
    assert_eq!(world.servers[0].allocations, 1);
}

#[test]
fn wrong_credentials_are_tried_ever_more_seldom() {
    let mut world = World::new(1, "wrong");
    world.run_for(10 * MINUTE);
    let tries = world.counters.allocation_failures.get();
    assert!((15..=40).contains(&tries), "{tries} tries in ten minutes");
    assert_eq!(world.relayed(), None);
}

#[test]
fn new_credentials_are_used_before_the_old_end_once_nobody_is_disturbed() {
    let mut world = World::new(1, "south");
    world.run_for(HOLD_FOR / 2 - MINUTE);
    let relayed = world.relayed().unwrap();
    world.send(relayed, b"asks for a permission");
    for _ in 0..30 {
        world.run_for(Duration::from_secs(10));
        assert!(world.send(relayed, b"a picture"));
    }
    assert_eq!(world.servers[0].holders[&MEDIA].0, "0", "somebody watches");
    world.run_for(2 * MINUTE);
    assert_eq!(world.servers[0].holders[&MEDIA].0, "1");
    assert_ne!(world.relayed(), Some(relayed));
}

#[test]
fn a_server_that_keeps_what_a_crash_left_is_reached_from_another_port() {
    let mut world = World::new(1, "south");
    world.servers[0].holders.insert(MEDIA, ("us, before".to_owned(), [0; 12]));
    world.run_for(Duration::from_secs(1));
    assert_eq!((world.connected.len(), world.servers[0].allocations), (1, 1));
    assert_eq!(world.relayed(), Some(world.servers[0].relayed()));
}

#[test]
fn what_is_held_is_given_back_at_the_end() {
    let mut world = World::new(1, "south");
    world.run_for(MINUTE);
    world.shut_down();
    assert!(world.servers[0].holders.is_empty());
}

/// A viewer's relay lets through whom the viewer was told of: behind a NAT that is not us, but where a server sees us.
#[test]
fn without_a_relay_of_its_own_the_camera_still_learns_where_servers_see_it() {
    let start = Instant::now();
    let url = ServerUrl::parse("turn:10.0.0.0").unwrap();
    let mut world = World::of(vec![RelayServer { url, mint: None }], Arc::default(), start);
    world.run_for(10 * MINUTE);
    let kind = CandidateKind::ServerReflexive { base: BASE };
    assert_eq!(world.candidates(), [Candidate { address: MAPPED, transport: Transport::Udp, kind }]);
    assert!(world.servers[0].heard.iter().all(|method| *method == METHOD_BINDING));
}

#[test]
fn an_address_that_is_gone_is_remembered_for_a_minute() {
    let mut world = World::new(1, "south");
    world.run_for(MINUTE);
    let relayed = world.relayed().unwrap();
    world.servers[0].is_up = false;
    world.run_for(Duration::from_secs(25));
    let is_remembered = |world: &mut World| {
        let transmit = Transmit { from: relayed, to: VIEWER, transport: Transport::Udp, data: b"late"[..].into() };
        matches!(world.gathering.route(transmit, world.now), Route::Nowhere)
    };
    assert!(is_remembered(&mut world));
    world.run_for(Duration::from_secs(30));
    assert!(is_remembered(&mut world));
    world.run_for(Duration::from_secs(30));
    assert!(!is_remembered(&mut world));
}

#[test]
fn without_servers_there_is_no_timer() {
    assert_eq!(World::new(0, "south").gathering.poll_timeout(), None);
}
