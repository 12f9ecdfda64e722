//! A publisher, a camera and some viewers on a simulated network, in virtual time: a minute takes a moment, and each run
//! with the same seed goes the same way but for the keys.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgecam::core::access_unit::{AccessUnit, Bitrate};
use edgecam::core::camera::{Demand, Rendition};
use edgecam::core::candidate::{Candidate, CandidateKind};
use edgecam::core::counters::ViewerCounters;
use edgecam::core::demand::StillId;
use edgecam::core::figures::{Figures, Quality};
use edgecam::core::renditions::{Range, RenditionsSettings};
use edgecam::core::sessions::{SessionsSettings, ViewedCamera};
use edgecam::core::signal::{Address, CameraId, ClientId, LinkId, RejectReason, Reply, Request, SessionName, Signal};
use edgecam::core::transmit::{Transmit, Transport};
use edgecam::core::trigger::{Action, Event, Trigger};
use edgecam::peer::{Identity, PeerSettings};
use edgecam::publisher::{Effect, Publisher, PublisherSettings};

use super::network::{Link, LinkSettings};
use super::viewer::{Tells, Viewer};

const FRAME: Duration = Duration::from_nanos(33_333_333);
/// Of each kbit/s, at 30 pictures a second, keyframes eight times as large.
const DELTA_BYTES_PER_KBPS: f64 = 3.5;
const KEYFRAME_BYTES_PER_KBPS: f64 = 28.0;

pub const RENDITIONS: RenditionsSettings = RenditionsSettings {
    high: Range { least: Bitrate::from_kbps(150), most: Bitrate::from_kbps(2000) },
    low: Some(Range { least: Bitrate::from_kbps(100), most: Bitrate::from_kbps(500) }),
};

pub struct House {
    pub publisher: Publisher,
    pub counters: Arc<ViewerCounters>,
    pub now: Instant,
    pub viewers: Vec<Seat>,
    pub demand: Demand,
    pub events: Vec<Event>,
    pub stills: Vec<Result<AccessUnit, RejectReason>>,
    /// The device's one address.
    pub device_at: SocketAddr,
    /// The camera delivers; false: it is unplugged.
    pub plugged: bool,
    pub captured: u64,
    /// Pictures from one keyframe that nobody asked for to the next.
    pub keyframe_every: u64,
    pub keyframes_captured: u64,
    pub low_captured: u64,
    /// How often the publisher's timers woke the loop.
    pub wakes: u64,
    keyframe_done: u64,
    low_keyframe_done: u64,
    next_frame: Instant,
    flights: BinaryHeap<Reverse<Flight>>,
    flown: u64,
}

pub struct Seat {
    pub viewer: Viewer,
    pub name: String,
    pub down: Link,
    pub up: Link,
    pub replies: Vec<Reply>,
    pub bytes_down: usize,
    /// It reaches the camera at [`relayed_address`] only, else only at its own.
    is_relayed: bool,
    /// The viewer's machine is switched off.
    pub dead: bool,
}

impl Seat {
    /// Where it reaches the camera.
    fn door(&self, device_at: SocketAddr) -> SocketAddr {
        if self.is_relayed { relayed_address() } else { device_at }
    }
}

struct Flight {
    arrives: Instant,
    number: u64,
    from: SocketAddr,
    to: SocketAddr,
    data: Vec<u8>,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Flight {}
impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.arrives, self.number).cmp(&(other.arrives, other.number))
    }
}

pub fn front() -> CameraId {
    CameraId::new("front").unwrap()
}

pub fn camera_address() -> SocketAddr {
    "192.0.2.1:8189".parse().unwrap()
}

/// The camera's address on a TURN server; answers name it once [`House::open_relay`] was called.
pub fn relayed_address() -> SocketAddr {
    "203.0.113.2:49160".parse().unwrap()
}

impl House {
    pub fn new(max_viewers: usize) -> Self {
        Self::with_renditions(max_viewers, RENDITIONS)
    }

    pub fn with_renditions(max_viewers: usize, renditions: RenditionsSettings) -> Self {
        let now = Instant::now();
        let counters = Arc::<ViewerCounters>::default();
        let bitrate = renditions.high.most;
        let settings = PublisherSettings {
            sessions: SessionsSettings {
                cameras: vec![ViewedCamera { id: front(), max_viewers, renditions }],
                switched_off: BTreeSet::new(),
                negotiation_timeout: Duration::from_secs(10),
                max_negotiations: 16,
                max_candidates: 64,
                keyframe_gap: Duration::from_millis(500),
            },
            peers: PeerSettings {
                candidates: vec![Candidate::host(camera_address())],
                epoch: now,
                lost_after: Duration::from_secs(30),
                identity: Identity::generate().unwrap(),
            },
        };
        Self {
            publisher: Publisher::new(settings, counters.clone()),
            counters,
            now,
            viewers: Vec::new(),
            demand: Demand { running: false, off: false, bitrate, keyframe: 0, low: None },
            events: Vec::new(),
            stills: Vec::new(),
            device_at: camera_address(),
            plugged: true,
            captured: 0,
            keyframe_every: 60,
            keyframes_captured: 0,
            low_captured: 0,
            wakes: 0,
            keyframe_done: 0,
            low_keyframe_done: 0,
            next_frame: now,
            flights: BinaryHeap::new(),
            flown: 0,
        }
    }

    /// A new viewer with the same link both ways, who offers at once. Returns its seat.
    pub fn join(&mut self, link: LinkSettings) -> usize {
        self.join_who(link, Tells::Arrivals)
    }

    pub fn join_who(&mut self, link: LinkSettings, tells: Tells) -> usize {
        let address = SocketAddr::from(([198, 51, 100, u8::try_from(self.viewers.len()).unwrap() + 1], 50_000));
        self.join_at(address, false, link, tells)
    }

    /// The camera has an allocation from now on.
    pub fn open_relay(&mut self) {
        let kind = CandidateKind::Relayed { mapped: camera_address() };
        let relayed = Candidate { kind, ..Candidate::host(relayed_address()) };
        self.publisher.set_candidates(vec![Candidate::host(camera_address()), relayed]);
    }

    /// The same at this address, through the relay or not.
    pub fn join_at(&mut self, address: SocketAddr, is_relayed: bool, link: LinkSettings, tells: Tells) -> usize {
        let seat = self.viewers.len();
        self.viewers.push(Seat {
            viewer: Viewer::new(address, tells, self.now),
            name: format!("viewer-{seat}"),
            down: Link::new(link, seat as u64 + 1),
            up: Link::new(LinkSettings { rate: None, ..link }, seat as u64 + 1001),
            replies: Vec::new(),
            bytes_down: 0,
            is_relayed,
            dead: false,
        });
        let sdp = self.viewers[seat].viewer.offer(false, self.now);
        self.say(seat, Signal::Offer { camera: front(), sdp, quality: Quality::Auto });
        let line = self.viewers[seat].viewer.candidate();
        self.say(seat, Signal::Candidate { line });
        seat
    }

    pub fn say(&mut self, seat: usize, signal: Signal) {
        let from = address_of(&self.viewers[seat].name);
        let mut sent = Vec::new();
        self.publisher.handle_request(Request { from, id: None, signal }, self.now, &mut |out| sent.push(out));
        self.launch(sent);
        self.carry_out();
    }

    pub fn trigger(&mut self, id: &str, action: Action) -> Result<(), RejectReason> {
        let trigger = Trigger { camera: front(), id: Some(id.into()), action };
        let mut sent = Vec::new();
        let outcome = self.publisher.handle_trigger(trigger, self.now, &mut |out| sent.push(out));
        self.launch(sent);
        self.carry_out();
        outcome
    }

    /// How the viewer in this seat fares; sessions are numbered as viewers come.
    pub fn figures(&self, seat: usize) -> Figures {
        let mut all = self.publisher.figures(&front(), self.now).into_iter();
        all.find(|seen| seen.number == seat as u64 + 1).unwrap().figures
    }

    pub fn ask_still(&mut self, still: u64) {
        let mut sent = Vec::new();
        self.publisher.handle_still(front(), StillId(still), self.now, &mut |out| sent.push(out));
        self.launch(sent);
        self.carry_out();
    }

    pub fn switch(&mut self, on: bool) {
        let mut sent = Vec::new();
        self.publisher.handle_switch(&front(), on, None, self.now, &mut |out| sent.push(out)).unwrap();
        self.launch(sent);
        self.carry_out();
    }

    /// A keyframe the camera took at this time.
    pub fn picture_comes(&mut self, captured_at: Instant) {
        let unit =
            AccessUnit { captured_at, is_keyframe: true, data: picture(true, Rendition::High, self.demand.bitrate) };
        let mut sent = Vec::new();
        self.publisher.handle_unit(&front(), Rendition::High, &unit, self.now, &mut |out| sent.push(out));
        self.launch(sent);
        self.carry_out();
    }

    /// What happened, with the trigger it happened for.
    pub fn happened(&self) -> Vec<(Option<&str>, &'static str)> {
        self.events.iter().map(|event| (event.trigger.as_deref(), event.happening.slug())).collect()
    }

    pub fn restart(&mut self, seat: usize, address: SocketAddr) {
        self.viewers[seat].viewer.roam(address);
        let sdp = self.viewers[seat].viewer.offer(true, self.now);
        self.say(seat, Signal::Restart { sdp });
    }

    /// The device gets another address in place of the one it has.
    pub fn renumber(&mut self, address: SocketAddr) {
        self.device_at = address;
    }

    /// Has the publisher look at the device's addresses.
    pub fn look(&mut self) {
        let mut sent = Vec::new();
        let candidates = vec![Candidate::host(self.device_at)];
        self.publisher.handle_candidates(candidates, self.now, &mut |out| sent.push(out));
        self.launch(sent);
        self.carry_out();
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.next_event().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.step();
        }
        self.now = end;
    }

    /// Runs until `done`, which must come true within `limit`; returns how long it took.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            let at = self.next_event().unwrap_or(start + limit + FRAME);
            assert!(at <= start + limit, "not within {limit:?}");
            self.now = self.now.max(at);
            self.step();
        }
        self.now - start
    }

    fn next_event(&mut self) -> Option<Instant> {
        let now = self.now;
        let viewers =
            self.viewers.iter_mut().filter(|seat| !seat.dead).filter_map(|seat| seat.viewer.poll_timeout(now));
        let flights = self.flights.peek().map(|Reverse(flight)| flight.arrives);
        let frame = self.demand.running.then_some(self.next_frame);
        viewers.chain(flights).chain(self.publisher.poll_timeout()).chain(frame).min()
    }

    fn step(&mut self) {
        let now = self.now;
        let mut sent = Vec::new();
        while self.flights.peek().is_some_and(|Reverse(flight)| flight.arrives <= now) {
            let Some(Reverse(flight)) = self.flights.pop() else { break };
            let is_relayed = flight.from == relayed_address();
            if [self.device_at, relayed_address()].contains(&flight.to) {
                self.publisher.handle_datagram(flight.from, flight.to, Transport::Udp, &flight.data, now, &mut |out| {
                    sent.push(out)
                });
            } else if let Some(seat) = self
                .viewers
                .iter_mut()
                .find(|seat| !seat.dead && seat.viewer.address == flight.to && seat.is_relayed == is_relayed)
            {
                seat.viewer.handle_datagram(flight.from, &flight.data, now);
            }
        }
        for seat in self.viewers.iter_mut().filter(|seat| !seat.dead) {
            if seat.viewer.poll_timeout(now).is_some_and(|at| at <= now + Duration::from_millis(1)) {
                seat.viewer.handle_timeout(now);
            }
        }
        if self.publisher.poll_timeout().is_some_and(|at| at <= now) {
            self.wakes += 1;
            self.publisher.handle_timeout(now, &mut |out| sent.push(out));
        }
        if self.demand.running && self.next_frame <= now {
            self.next_frame = now + FRAME;
            if self.plugged {
                self.capture(&mut sent);
            }
        }
        self.launch(sent);
        self.carry_out();
    }

    fn capture(&mut self, sent: &mut Vec<Transmit>) {
        let is_keyframe =
            self.captured.is_multiple_of(self.keyframe_every) || self.demand.keyframe > self.keyframe_done;
        self.keyframe_done = self.demand.keyframe;
        self.captured += 1;
        self.keyframes_captured += u64::from(is_keyframe);
        let mut give = |rendition, is_keyframe, bitrate| {
            let unit =
                AccessUnit { captured_at: self.now, is_keyframe, data: picture(is_keyframe, rendition, bitrate) };
            self.publisher.handle_unit(&front(), rendition, &unit, self.now, &mut |out| sent.push(out));
        };
        give(Rendition::High, is_keyframe, self.demand.bitrate);
        match self.demand.low {
            Some(low) => {
                let is_keyframe =
                    self.low_captured.is_multiple_of(self.keyframe_every) || low.keyframe > self.low_keyframe_done;
                give(Rendition::Low, is_keyframe, low.bitrate);
                self.low_keyframe_done = low.keyframe;
                self.low_captured += 1;
            }
            None => self.low_captured = 0, // its encoder is closed
        }
        // A camera is said to be open after its first picture.
        if self.captured == 1 {
            self.publisher.handle_camera_back(&front(), self.now, &mut |out| sent.push(out));
        }
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.publisher.poll_effect() {
            match effect {
                Effect::Demand { demand, .. } => self.demand = demand,
                Effect::Respond(response) => {
                    let name = &response.to.client.name;
                    let Some(seat) = self.viewers.iter_mut().find(|seat| *seat.name == **name) else { continue };
                    if let Reply::Answer { sdp } = &response.reply {
                        seat.viewer.answer(sdp, self.now);
                    }
                    seat.replies.push(response.reply);
                }
                Effect::Still { outcome, .. } => self.stills.push(outcome),
                Effect::Event(event) => self.events.push(event),
                Effect::Switched { .. } => {}
            }
        }
        for at in 0..self.viewers.len() {
            while let Some((to, data)) = self.viewers[at].viewer.poll_transmit() {
                let seat = &mut self.viewers[at];
                let from = seat.viewer.address;
                if !seat.dead
                    && to == seat.door(self.device_at)
                    && let Some(arrives) = seat.up.carry(data.len(), self.now)
                {
                    self.fly(from, to, data, arrives);
                }
            }
        }
    }

    fn launch(&mut self, sent: Vec<Transmit>) {
        // The kernel sends nothing from an address that is not its own.
        let device_at = self.device_at;
        for Transmit { from, to, data, .. } in sent {
            let is_reached = |seat: &&mut Seat| seat.viewer.address == to && seat.door(device_at) == from;
            let Some(seat) = self.viewers.iter_mut().find(is_reached) else { continue };
            seat.bytes_down += data.len();
            if let Some(arrives) = seat.down.carry(data.len(), self.now) {
                self.fly(from, to, data.to_vec(), arrives);
            }
        }
    }

    fn fly(&mut self, from: SocketAddr, to: SocketAddr, data: Vec<u8>, arrives: Instant) {
        self.flown += 1;
        self.flights.push(Reverse(Flight { arrives, number: self.flown, from, to, data }));
    }
}

/// How many the viewer in this seat could show.
pub fn pictures(house: &House, seat: usize) -> usize {
    house.viewers[seat].viewer.received.pictures().len()
}

pub fn address_of(name: &str) -> Address {
    let client = ClientId { link: LinkId::WebSocket, name: name.into() };
    Address { client, session: SessionName::new("tile-1").unwrap() }
}

/// What the slices are filled with, so that renditions can be told apart.
pub fn filling(rendition: Rendition) -> u8 {
    match rendition {
        Rendition::High => 0xAA,
        Rendition::Low => 0xBB,
    }
}

/// Annex B of the right shape and size; what is in the slices does not matter here.
fn picture(is_keyframe: bool, rendition: Rendition, bitrate: Bitrate) -> Bytes {
    let mut data = Vec::new();
    if is_keyframe {
        data.extend([0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80]);
    }
    let (kind, bytes) = if is_keyframe { (0x65, KEYFRAME_BYTES_PER_KBPS) } else { (0x41, DELTA_BYTES_PER_KBPS) };
    data.extend([0, 0, 0, 1, kind]);
    data.resize(data.len() + (bytes * f64::from(bitrate.kbps())) as usize, filling(rendition));
    data.into()
}
