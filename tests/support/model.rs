//! One viewer as plain numbers, in virtual time: an encoder that follows the estimate, our pacer and our estimator, a link,
//! and a receiver that tells what arrived, asks for what did not, and shows pictures. No ICE, no crypto, no bytes: a minute
//! takes some milliseconds. Over 600 lines: one loop, whose parts share all that it knows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use edgecam::core::access_unit::Bitrate;
use edgecam::core::congestion::pacer::Pacer;
use edgecam::core::congestion::{Arrival, Congestion, CongestionSettings, Probe};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::network::Link;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const FRAME: Duration = Duration::from_nanos(33_333_333);
const KEYFRAME_EVERY: u64 = 60;
/// Against the pictures between.
const KEYFRAME_SIZE: f64 = 8.0;
const PAYLOAD: usize = 1188;
/// IP, UDP, RTP with its extension, SRTP's tag.
const HEADERS: usize = 28 + 20 + 16;
/// What the encoder may use of the estimate, in which steps, and how soon it may go up again.
const USABLE: f64 = 0.9;
const STEP_KBPS: u32 = 25;
const RAISE_AFTER: Duration = Duration::from_millis(500);
const ENCODER_LAG: Duration = Duration::from_millis(100);
/// A viewer further behind is taken to a keyframe.
const BEHIND: Duration = Duration::from_millis(400);
const KEYFRAME_GAP: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub struct ModelSettings {
    pub start_kbps: u32,
    pub least_kbps: u32,
    pub max_kbps: u32,
    /// How much the picture's size swings, and what the encoder is off its mark on average.
    pub noise: f64,
    pub bias: f64,
    /// The way back, one way.
    pub delay_back: Duration,
    pub loss_back: f64,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            start_kbps: 1000,
            least_kbps: 150,
            max_kbps: 2500,
            noise: 0.15,
            bias: 1.03,
            delay_back: Duration::from_millis(25),
            loss_back: 0.0,
        }
    }
}

/// What was seen of it, each second or at each feedback.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: Instant,
    pub estimate_kbps: u32,
    pub target_kbps: u32,
    /// What the link carries; `None`: no limit.
    pub capacity_kbps: Option<f64>,
}

pub struct Model {
    pub now: Instant,
    pub started: Instant,
    pub link: Link,
    pub congestion: Congestion,
    /// When which picture was shown.
    pub shown: Vec<(Instant, u64)>,
    pub moments: Vec<Moment>,
    pub bytes_sent: usize,
    pub bytes_repeated: usize,
    pub bytes_probed: usize,
    pub skipped: u64,
    /// Part of the encoder's bitrate that the scene needs.
    pub activity: f64,
    settings: ModelSettings,
    random: SmallRng,
    pacer: Pacer,
    encoder: Encoder,
    /// Captured and not wholly sent.
    ring: VecDeque<Picture>,
    waits_for_keyframe: bool,
    keyframe_wanted: bool,
    keyframe_asked_at: Option<Instant>,
    repeats: VecDeque<u64>,
    history: BTreeMap<u64, Packet>,
    next_sequence: u64,
    next_number: u64,
    probe: Option<(Probe, usize, Pacer)>,
    flights: BinaryHeap<Reverse<Flight>>,
    flown: u64,
    receiver: Receiver,
}

struct Encoder {
    frame: u64,
    since_keyframe: u64,
    next_at: Instant,
    target_kbps: u32,
    /// What it was told, and when it obeys.
    told: VecDeque<(Instant, u32)>,
    used_kbps: u32,
    raised_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Picture {
    id: u64,
    captured_at: Instant,
    is_keyframe: bool,
    packets: usize,
    sent: usize,
    last_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    sequence: u64,
    picture: u64,
    is_keyframe: bool,
    index: usize,
    of: usize,
    bytes: usize,
    first_sent_at: Instant,
    sent_at: Instant,
}

#[derive(Clone, Debug)]
enum Cargo {
    Packet { number: u64, packet: Option<Packet> },
    Feedback(Vec<Arrival>),
    Nack(Vec<u64>),
    Pli,
}

#[derive(Clone, Debug)]
struct Flight {
    arrives: Instant,
    order: u64,
    cargo: Cargo,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
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
        (self.arrives, self.order).cmp(&(other.arrives, other.order))
    }
}

/// The viewer's end.
struct Receiver {
    arrivals: BTreeMap<u64, Instant>,
    reported_to: u64,
    feedback_at: Instant,
    next_sequence: u64,
    missing: BTreeMap<u64, (Instant, u32)>,
    pictures: BTreeMap<u64, Assembly>,
    shown: Option<u64>,
    pli_at: Option<Instant>,
    progress_at: Instant,
}

struct Assembly {
    is_keyframe: bool,
    of: usize,
    have: BTreeSet<usize>,
    /// The first packet's number in the stream: what is before it was another picture's.
    begins: u64,
}

impl Model {
    pub fn new(settings: ModelSettings, link: Link, now: Instant, seed: u64) -> Self {
        let congestion = Congestion::new(
            CongestionSettings {
                start: Bitrate::from_kbps(settings.start_kbps),
                least: Bitrate::from_kbps(settings.least_kbps),
                most: Bitrate::from_kbps(settings.max_kbps * 2),
            },
            now,
        );
        let mut model = Self {
            now,
            started: now,
            link,
            congestion,
            shown: Vec::new(),
            moments: Vec::new(),
            bytes_sent: 0,
            bytes_repeated: 0,
            bytes_probed: 0,
            skipped: 0,
            activity: 1.0,
            settings,
            random: SmallRng::seed_from_u64(seed),
            pacer: Pacer::new(now),
            encoder: Encoder {
                frame: 0,
                since_keyframe: 0,
                next_at: now,
                target_kbps: settings.start_kbps,
                told: VecDeque::new(),
                used_kbps: settings.start_kbps,
                raised_at: None,
            },
            ring: VecDeque::new(),
            waits_for_keyframe: false,
            keyframe_wanted: false,
            keyframe_asked_at: None,
            repeats: VecDeque::new(),
            history: BTreeMap::new(),
            next_sequence: 0,
            next_number: 1,
            probe: None,
            flights: BinaryHeap::new(),
            flown: 0,
            receiver: Receiver {
                arrivals: BTreeMap::new(),
                reported_to: 1,
                feedback_at: now + 50 * MS,
                next_sequence: 0,
                missing: BTreeMap::new(),
                pictures: BTreeMap::new(),
                shown: None,
                pli_at: None,
                progress_at: now,
            },
        };
        model.congestion.set_wanted(Bitrate::from_kbps((f64::from(settings.max_kbps) / USABLE) as u32));
        model
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.next_event().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.act();
        }
        self.now = end;
    }

    fn next_event(&self) -> Option<Instant> {
        let mut at = self.encoder.next_at.min(self.receiver.feedback_at);
        if let Some(Reverse(flight)) = self.flights.peek() {
            at = at.min(flight.arrives);
        }
        if let Some((_, _, pacer)) = &self.probe {
            at = at.min(pacer.ready_at(self.now));
        } else if !self.ring.is_empty() || !self.repeats.is_empty() {
            at = at.min(self.pacer.ready_at(self.now));
        }
        if let Some(timeout) = self.congestion.poll_timeout() {
            at = at.min(timeout.max(self.now + MS));
        }
        Some(at)
    }

    fn act(&mut self) {
        while self.flights.peek().is_some_and(|Reverse(flight)| flight.arrives <= self.now) {
            let Some(Reverse(flight)) = self.flights.pop() else { break };
            self.land(flight.cargo);
        }
        if self.encoder.next_at <= self.now {
            self.capture();
        }
        if self.receiver.feedback_at <= self.now {
            self.report();
        }
        self.congestion.handle_timeout(self.now);
        self.send();
    }

    // The camera's end.

    fn capture(&mut self) {
        self.encoder.next_at += FRAME;
        self.follow_estimate();
        while let Some(&(_, kbps)) = self.encoder.told.front().filter(|(at, _)| *at <= self.now) {
            self.encoder.used_kbps = kbps;
            self.encoder.told.pop_front();
        }
        let asked = self.keyframe_wanted
            && self.keyframe_asked_at.is_none_or(|at| self.now - at >= KEYFRAME_GAP || self.now == at);
        let is_keyframe = self.encoder.since_keyframe >= KEYFRAME_EVERY || self.encoder.frame == 0 || asked;
        if is_keyframe {
            self.encoder.since_keyframe = 0;
            self.keyframe_wanted = false;
            self.keyframe_asked_at = Some(self.now);
        }
        self.encoder.since_keyframe += 1;
        let every = KEYFRAME_EVERY as f64;
        let mean = f64::from(self.encoder.used_kbps) * 1000.0 / 8.0 / 30.0 * every / (every - 1.0 + KEYFRAME_SIZE);
        let swing = 1.0 + self.settings.noise * self.random.random_range(-1.0..1.0);
        let activity = if is_keyframe { self.activity.max(0.5) } else { self.activity };
        let size = mean * if is_keyframe { KEYFRAME_SIZE } else { 1.0 } * swing * self.settings.bias * activity;
        let size = (size as usize).max(100);
        let packets = size.div_ceil(PAYLOAD);
        self.ring.push_back(Picture {
            id: self.encoder.frame,
            captured_at: self.now,
            is_keyframe,
            packets,
            sent: 0,
            last_bytes: size - (packets - 1) * PAYLOAD,
        });
        self.encoder.frame += 1;
    }

    fn follow_estimate(&mut self) {
        let estimate = self.congestion.estimate().kbps();
        let usable = (f64::from(estimate) * USABLE) as u32 / STEP_KBPS * STEP_KBPS;
        let target = usable.clamp(self.settings.least_kbps, self.settings.max_kbps);
        let encoder = &mut self.encoder;
        let raise = f64::from(target) >= f64::from(encoder.target_kbps) * 1.05 || target == self.settings.max_kbps;
        let may_raise = encoder.raised_at.is_none_or(|at| self.now - at >= RAISE_AFTER);
        if target < encoder.target_kbps || target > encoder.target_kbps && raise && may_raise {
            if target > encoder.target_kbps {
                encoder.raised_at = Some(self.now);
            }
            encoder.target_kbps = target;
            encoder.told.push_back((self.now + ENCODER_LAG, target));
        }
    }

    fn send(&mut self) {
        self.skip_what_is_old();
        self.pacer.set_rate(self.congestion.pacing_rate());
        if self.probe.is_none()
            && let Some(probe) = self.congestion.poll_probe(self.now)
        {
            let mut pacer = Pacer::new(self.now);
            pacer.set_rate(probe.rate);
            self.probe = Some((probe, 0, pacer));
        }
        while let Some((probe, sent, mut pacer)) = self.probe {
            if !pacer.may_send(self.now) {
                return;
            }
            let bytes = self.send_next(Some(probe.id)).unwrap_or_else(|| self.send_padding(probe.id));
            pacer.handle_sent(bytes, self.now);
            self.probe = (sent + bytes < probe.bytes).then_some((probe, sent + bytes, pacer));
        }
        while self.pacer.may_send(self.now) {
            if self.send_next(None).is_none() {
                return;
            }
        }
    }

    fn skip_what_is_old(&mut self) {
        if self.ring.front().is_some_and(|picture| self.now - picture.captured_at > BEHIND && picture.sent == 0)
            || self.waits_for_keyframe
        {
            let newest_keyframe = self.ring.iter().rposition(|picture| picture.is_keyframe && picture.sent == 0);
            match newest_keyframe {
                Some(index) if index > 0 || self.waits_for_keyframe => {
                    self.skipped += index as u64;
                    self.ring.drain(..index);
                    self.repeats.clear();
                    self.waits_for_keyframe = false;
                }
                Some(_) => {}
                None => {
                    self.skipped += self.ring.len() as u64;
                    self.ring.clear();
                    if !self.waits_for_keyframe {
                        self.keyframe_wanted = true;
                    }
                    self.waits_for_keyframe = true;
                }
            }
        }
    }

    /// A repeat, or the next packet of the stream, if there is one.
    fn send_next(&mut self, probe: Option<u32>) -> Option<usize> {
        while let Some(sequence) = self.repeats.pop_front() {
            let least = self.congestion.round_trip().unwrap_or(50 * MS).min(200 * MS);
            let now = self.now;
            let Some(packet) = self.history.get_mut(&sequence) else { continue };
            let is_late = now - packet.first_sent_at > S;
            if now - packet.sent_at < least || is_late || self.bytes_repeated * 4 > self.bytes_sent {
                continue;
            }
            packet.sent_at = now;
            let packet = *packet;
            self.bytes_repeated += packet.bytes;
            return Some(self.launch(Some(packet), packet.bytes, probe));
        }
        let picture = self.ring.front_mut()?;
        let is_last = picture.sent + 1 == picture.packets;
        let bytes = HEADERS + if is_last { picture.last_bytes } else { PAYLOAD };
        let packet = Packet {
            sequence: self.next_sequence,
            picture: picture.id,
            is_keyframe: picture.is_keyframe,
            index: picture.sent,
            of: picture.packets,
            bytes,
            first_sent_at: self.now,
            sent_at: self.now,
        };
        picture.sent += 1;
        if is_last {
            self.ring.pop_front();
        }
        self.next_sequence += 1;
        self.history.insert(packet.sequence, packet);
        if self.history.len() > 500 {
            self.history.pop_first();
        }
        Some(self.launch(Some(packet), bytes, probe))
    }

    fn send_padding(&mut self, probe: u32) -> usize {
        let bytes = self.history.values().next_back().map_or(300, |packet| packet.bytes.max(300));
        self.launch(None, bytes, Some(probe))
    }

    fn launch(&mut self, packet: Option<Packet>, bytes: usize, probe: Option<u32>) -> usize {
        let number = self.next_number;
        self.next_number += 1;
        self.congestion.handle_sent(number, bytes, probe, self.now);
        self.pacer.handle_sent(bytes, self.now);
        self.bytes_sent += bytes;
        if packet.is_none() {
            self.bytes_probed += bytes;
        }
        if let Some(arrives) = self.link.carry(bytes - 28, self.now) {
            self.fly(Cargo::Packet { number, packet }, arrives);
        }
        bytes
    }

    fn fly(&mut self, cargo: Cargo, arrives: Instant) {
        self.flown += 1;
        self.flights.push(Reverse(Flight { arrives, order: self.flown, cargo }));
    }

    fn fly_back(&mut self, cargo: Cargo) {
        if !self.link.settings.cut && !self.random.random_bool(self.settings.loss_back) {
            self.fly(cargo, self.now + self.settings.delay_back);
        }
    }

    fn land(&mut self, cargo: Cargo) {
        match cargo {
            Cargo::Packet { number, packet } => self.receive(number, packet),
            Cargo::Feedback(arrivals) => {
                self.congestion.handle_feedback(&arrivals, self.now);
                self.moments.push(Moment {
                    at: self.now,
                    estimate_kbps: self.congestion.estimate().kbps(),
                    target_kbps: self.encoder.target_kbps,
                    capacity_kbps: self.link.rate_at(self.now).map(|rate| rate / 1000.0),
                });
            }
            Cargo::Nack(sequences) => self.repeats.extend(sequences),
            Cargo::Pli => self.keyframe_wanted = true,
        }
    }

    // The viewer's end.

    fn receive(&mut self, number: u64, packet: Option<Packet>) {
        self.receiver.arrivals.insert(number, self.now);
        let Some(packet) = packet else { return };
        let receiver = &mut self.receiver;
        receiver.missing.remove(&packet.sequence);
        for missing in receiver.next_sequence..packet.sequence {
            receiver.missing.insert(missing, (self.now + 10 * MS, 0));
        }
        receiver.next_sequence = receiver.next_sequence.max(packet.sequence + 1);
        if receiver.shown.is_some_and(|shown| packet.picture <= shown) {
            return;
        }
        let assembly = receiver.pictures.entry(packet.picture).or_insert_with(|| Assembly {
            is_keyframe: packet.is_keyframe,
            of: packet.of,
            have: BTreeSet::new(),
            begins: packet.sequence - packet.index as u64,
        });
        assembly.have.insert(packet.index);
        self.show();
    }

    /// All pictures that can be decoded now: the next ones in the stream's order, or a whole keyframe ahead.
    fn show(&mut self) {
        let receiver = &mut self.receiver;
        while let Some((&id, first)) = receiver.pictures.first_key_value() {
            let follows = receiver.shown.is_some()
                && receiver.missing.keys().next().is_none_or(|missing| *missing > first.begins);
            if first.have.len() == first.of && (follows || first.is_keyframe) {
                receiver.pictures.pop_first();
                receiver.shown = Some(id);
                receiver.progress_at = self.now;
                self.shown.push((self.now, id));
                continue;
            }
            // Stuck: a whole keyframe further on ends the wait.
            let ahead = receiver
                .pictures
                .iter()
                .find(|(_, picture)| picture.is_keyframe && picture.have.len() == picture.of)
                .map(|(&id, picture)| (id, picture.begins));
            let Some((keyframe, begins)) = ahead else { break };
            receiver.pictures.retain(|&id, _| id >= keyframe);
            receiver.missing.retain(|&sequence, _| sequence >= begins);
        }
    }

    fn report(&mut self) {
        let wait = self.random.random_range(50..100);
        self.receiver.feedback_at = self.now + MS * wait;
        let (now, started) = (self.now, self.started);
        let receiver = &mut self.receiver;
        if let Some((&last, _)) = receiver.arrivals.last_key_value() {
            let from = receiver.reported_to.min(*receiver.arrivals.first_key_value().unwrap().0);
            let to = last.max(receiver.reported_to.saturating_sub(1));
            let arrivals = (from..=to)
                .filter(|number| *number >= receiver.reported_to || receiver.arrivals.contains_key(number))
                .map(|number| Arrival {
                    number,
                    at: receiver.arrivals.get(&number).map(|at| viewers_clock(*at - started)),
                })
                .collect();
            self.receiver.reported_to = to + 1;
            self.receiver.arrivals.clear();
            self.fly_back(Cargo::Feedback(arrivals));
        }
        let mut nacks = Vec::new();
        for (sequence, (ask_at, asked)) in &mut self.receiver.missing {
            if *ask_at <= now && *asked < 10 {
                nacks.push(*sequence);
                *asked += 1;
                *ask_at = now + 100 * MS;
            }
        }
        if !nacks.is_empty() {
            self.fly_back(Cargo::Nack(nacks));
        }
        let is_stuck = now - self.receiver.progress_at > 600 * MS && !self.receiver.pictures.is_empty();
        if is_stuck && self.receiver.pli_at.is_none_or(|at| now - at > S) {
            self.receiver.pli_at = Some(now);
            self.fly_back(Cargo::Pli);
        }
    }

    // What came of it.

    /// What the encoder was last told.
    pub fn target_kbps(&self) -> u32 {
        self.encoder.target_kbps
    }

    /// The longest time between two pictures shown from `from` on, up to now.
    pub fn longest_freeze(&self, from: Instant) -> Duration {
        let shown = self.shown.iter().map(|(at, _)| *at).filter(|at| *at >= from).chain([self.now]);
        let mut last = from;
        let mut longest = Duration::ZERO;
        for at in shown {
            longest = longest.max(at - last);
            last = at;
        }
        longest
    }

    pub fn freezes(&self, from: Instant, longer_than: Duration) -> usize {
        let shown: Vec<_> = self.shown.iter().map(|(at, _)| *at).filter(|at| *at >= from).collect();
        shown.windows(2).filter(|pair| pair[1] - pair[0] > longer_than).count()
    }

    /// Pictures a second from `from` to `to`.
    pub fn fps(&self, from: Instant, to: Instant) -> f64 {
        let shown = self.shown.iter().filter(|(at, _)| *at >= from && *at < to).count();
        shown as f64 / (to - from).as_secs_f64()
    }

    /// Each packet's wait in the link's queue from `from` on, shortest first.
    pub fn queue_delays(&self, from: Instant) -> Vec<Duration> {
        let waits = self.link.waits.iter().filter(|wait| wait.sent >= from && !wait.is_dropped);
        let mut delays: Vec<_> = waits.map(|wait| wait.queue).collect();
        delays.sort_unstable();
        delays
    }

    /// What the link carried, in kbit/s.
    pub fn carried_kbps(&self, from: Instant, to: Instant) -> f64 {
        let waits = self.link.waits.iter().filter(|wait| wait.sent >= from && wait.sent < to && !wait.is_dropped);
        waits.map(|wait| wait.bytes as f64).sum::<f64>() * 8.0 / 1000.0 / (to - from).as_secs_f64()
    }

    /// The mean estimate between two times.
    pub fn mean_estimate(&self, from: Instant, to: Instant) -> f64 {
        let moments: Vec<_> = self.moments.iter().filter(|moment| moment.at >= from && moment.at < to).collect();
        moments.iter().map(|moment| f64::from(moment.estimate_kbps)).sum::<f64>() / moments.len().max(1) as f64
    }
}

/// Some other zero, a little faster, in steps of 250 µs as the feedback tells it.
fn viewers_clock(since_start: Duration) -> Duration {
    let micros = since_start.as_micros() as f64 * 1.00003;
    Duration::from_micros(123_456_000_000 + micros as u64 / 250 * 250)
}

/// The `part`th of sorted values.
pub fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}
