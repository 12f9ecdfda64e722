//! Bursts that show whether the network carries more than is sent: for that, more has to be sent for a moment.

use std::time::{Duration, Instant};

use super::super::access_unit::Bitrate;
use super::Probe;

/// Long enough that a radio's frame does not pass for a fast link; short enough that a queue of a failed one is gone before
/// anybody sees it.
const LENGTH: Duration = Duration::from_millis(40);
/// A shaper lets bursts pass that are shorter than its bucket, so a probe that promised too much is followed by longer ones.
const LONGEST: Duration = Duration::from_millis(160);
/// Too much so soon after a probe: the probe was wrong.
const ANSWERABLE_FOR: Duration = Duration::from_secs(2);
const AFTER_A_LIE: Duration = Duration::from_secs(6);
const LEAST_BYTES: usize = 5 * 1200;
/// The first goes to three times the start, the next to twice what it showed: libwebrtc's three and six.
const FIRST_FACTOR: f64 = 3.0;
const NEXT_FACTOR: f64 = 2.0;
/// After a failure one asks for less.
const CAREFUL_FACTOR: f64 = 1.5;
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// After one that succeeded: as soon as the rate it gave is in use.
const AT_ONCE: Duration = Duration::from_millis(100);
/// One that is not answered by then was not sent, or was lost.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// Received at this part of the rate it was sent at: the network carried all of it.
const CARRIED: f64 = 0.9;
/// What a saturated link gives in a burst is a little more than what it gives for long.
const SAFE: f64 = 0.9;

#[derive(Debug)]
pub(super) struct Probes {
    next_id: u32,
    running: Option<Running>,
    next_at: Instant,
    wait: Duration,
    length: Duration,
    factor: f64,
    /// When one last raised the estimate.
    raised_at: Option<Instant>,
    /// To be tried before anything else: what the link once carried.
    known: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    id: u32,
    rate: f64,
    bytes: usize,
    give_up_at: Instant,
    cluster: Cluster,
}

/// After libwebrtc's ProbeBitrateEstimator: the size between the first and the last packet, over the time between.
#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    packets: u32,
    bytes: usize,
    first_sent: Duration,
    last_sent: Duration,
    last_sent_bytes: usize,
    first_arrival: Duration,
    first_arrival_bytes: usize,
    last_arrival: Duration,
}

/// What a probe showed, in bits per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) rate: f64,
    /// The network carried all of it, and perhaps more.
    pub(super) is_all: bool,
}

impl Probes {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next_id: 1,
            running: None,
            next_at: now,
            wait: SHORTEST_WAIT,
            length: LENGTH,
            factor: FIRST_FACTOR,
            raised_at: None,
            known: None,
        }
    }

    /// A rate that the link once carried, before it failed; to be tried soon.
    pub(super) fn hope_for(&mut self, rate: f64, now: Instant) {
        self.known = Some(rate);
        self.wait = SHORTEST_WAIT;
        self.next_at = self.next_at.min(now + AT_ONCE);
    }

    /// Not before then.
    pub(super) fn hold_until(&mut self, at: Instant) {
        self.next_at = self.next_at.max(at);
    }

    /// The network has too much.
    pub(super) fn handle_overload(&mut self, now: Instant) {
        if self.raised_at.take().is_some_and(|at| now.saturating_duration_since(at) < ANSWERABLE_FOR) {
            self.length = (self.length * 2).min(LONGEST);
            self.factor = CAREFUL_FACTOR;
            self.hold_until(now + AFTER_A_LIE);
        }
    }

    /// None was ever made.
    pub(super) fn is_fresh(&self) -> bool {
        self.next_id == 1
    }

    /// One to begin now, for a link thought to carry `estimate` of which `wanted` is of use.
    pub(super) fn poll(&mut self, estimate: f64, wanted: f64, now: Instant) -> Option<Probe> {
        match self.running {
            Some(running) if now < running.give_up_at => return None,
            Some(_) => self.fail(now),
            None => {}
        }
        if now < self.next_at {
            return None;
        }
        let rate = self.known.take().unwrap_or(estimate * self.factor).min(wanted);
        self.next_at = now + self.wait;
        if rate < estimate * 1.02 {
            return None;
        }
        let bytes = ((rate * self.length.as_secs_f64() / 8.0) as usize).max(LEAST_BYTES);
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        self.running =
            Some(Running { id, rate, bytes, give_up_at: now + ANSWERED_WITHIN, cluster: Cluster::default() });
        Some(Probe { id, rate: Bitrate::from_kbps((rate / 1000.0) as u32), bytes })
    }

    pub(super) fn is_running(&self, id: u32) -> bool {
        self.running.is_some_and(|running| running.id == id)
    }

    /// A packet of the probe arrived.
    pub(super) fn add(&mut self, bytes: u32, sent: Duration, arrival: Duration) {
        let Some(Running { cluster, .. }) = &mut self.running else { return };
        let bytes = bytes as usize;
        if cluster.packets == 0 || arrival < cluster.first_arrival {
            (cluster.first_arrival, cluster.first_arrival_bytes) = (arrival, bytes);
        }
        if cluster.packets == 0 || sent >= cluster.last_sent {
            (cluster.last_sent, cluster.last_sent_bytes) = (sent, bytes);
        }
        if cluster.packets == 0 {
            cluster.first_sent = sent;
        }
        cluster.first_sent = cluster.first_sent.min(sent);
        cluster.last_arrival = cluster.last_arrival.max(arrival);
        cluster.packets += 1;
        cluster.bytes += bytes;
    }

    /// A feedback packet was read. `is_past`: it told of packets that left after the probe.
    pub(super) fn conclude(&mut self, estimate: f64, is_past: bool, now: Instant) -> Option<Shown> {
        let running = self.running?;
        let is_whole = running.cluster.bytes >= running.bytes;
        if !is_whole && !is_past && now < running.give_up_at {
            return None;
        }
        if running.cluster.packets == 0 && now < running.give_up_at {
            return None;
        }
        self.running = None;
        let shown = running.cluster.shown(running.rate, running.bytes);
        let is_more = shown.is_some_and(|shown| shown.rate > estimate * 1.02);
        if shown.is_some_and(|shown| shown.is_all) && is_more {
            self.wait = SHORTEST_WAIT;
            self.factor = NEXT_FACTOR;
            self.next_at = now + AT_ONCE;
        } else {
            self.fail(now);
        }
        if is_more {
            self.raised_at = Some(now);
        }
        shown
    }

    fn fail(&mut self, now: Instant) {
        self.running = None;
        self.wait = (self.wait * 3 / 2).min(LONGEST_WAIT);
        self.factor = CAREFUL_FACTOR;
        self.hold_until(now + self.wait);
    }
}

impl Cluster {
    fn shown(&self, asked: f64, bytes: usize) -> Option<Shown> {
        if self.packets < 4 || self.bytes * 2 < bytes {
            return None;
        }
        let sent_over = self.last_sent.saturating_sub(self.first_sent).max(Duration::from_millis(1));
        let arrived_over = self.last_arrival.saturating_sub(self.first_arrival).max(Duration::from_millis(1));
        let sent = (self.bytes - self.last_sent_bytes) as f64 * 8.0 / sent_over.as_secs_f64();
        let arrived = (self.bytes - self.first_arrival_bytes) as f64 * 8.0 / arrived_over.as_secs_f64();
        let is_all = arrived >= sent * CARRIED;
        let rate = if is_all { sent.min(asked) } else { (arrived * SAFE).min(asked) };
        Some(Shown { rate, is_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MBIT: f64 = 1_000_000.0;

    /// Sends the probe as it asks, over a link of this rate, and reads the feedback.
    fn run(probes: &mut Probes, probe: Probe, carries: f64, estimate: f64, now: Instant) -> Option<Shown> {
        let (mut sent, mut arrival, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
        while bytes < probe.bytes {
            arrival = arrival.max(sent) + Duration::from_secs_f64(1200.0 * 8.0 / carries);
            probes.add(1200, sent, arrival);
            bytes += 1200;
            sent += Duration::from_secs_f64(1200.0 * 8.0 / probe.rate.bits_per_second() as f64);
        }
        probes.conclude(estimate, false, now + 100 * MS)
    }

    #[test]
    fn an_ample_link_shows_all_that_is_wanted_in_a_few_steps() {
        let (mut probes, mut now, mut estimate) = (Probes::new(Instant::now()), Instant::now(), MBIT);
        let mut rates = Vec::new();
        while estimate < 9.5 * MBIT {
            let Some(probe) = probes.poll(estimate, 10.0 * MBIT, now) else {
                now += 10 * MS;
                continue;
            };
            rates.push(probe.rate.kbps());
            estimate = run(&mut probes, probe, 100.0 * MBIT, estimate, now).unwrap().rate;
        }
        assert_eq!(rates, [3000, 6000, 10_000]);
        assert_eq!(probes.poll(estimate, 10.0 * MBIT, now + 60_000 * MS), None);
    }

    #[test]
    fn a_saturated_link_shows_a_little_less_than_it_carries() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        let probe = probes.poll(MBIT, 10.0 * MBIT, now).unwrap();
        let shown = run(&mut probes, probe, 1.5 * MBIT, MBIT, now).unwrap();
        assert!(!shown.is_all);
        assert!((1.3 * MBIT..1.5 * MBIT).contains(&shown.rate), "{shown:?}");
    }

    #[test]
    fn probes_that_fail_wait_longer_but_not_for_ever() {
        let mut now = Instant::now();
        let mut probes = Probes::new(now);
        let (mut last, mut waits) = (None, Vec::new());
        while waits.len() < 8 {
            now += 10 * MS;
            let Some(probe) = probes.poll(MBIT, 10.0 * MBIT, now) else { continue };
            if let Some(last) = last.replace(now) {
                waits.push(now - last);
            }
            run(&mut probes, probe, MBIT, MBIT, now);
        }
        assert!(waits[0] < 2000 * MS && waits.is_sorted(), "{waits:?}");
        assert!((LONGEST_WAIT..LONGEST_WAIT + 200 * MS).contains(&waits[7]), "{waits:?}");
    }

    #[test]
    fn one_that_promised_too_much_is_followed_by_a_longer_one_and_not_soon() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        let probe = probes.poll(MBIT, 10.0 * MBIT, now).unwrap();
        run(&mut probes, probe, 100.0 * MBIT, MBIT, now);
        probes.handle_overload(now + 500 * MS);
        assert_eq!(probes.poll(MBIT, 10.0 * MBIT, now + 4000 * MS), None);
        let next = probes.poll(MBIT, 10.0 * MBIT, now + 9000 * MS).unwrap();
        let length = |probe: Probe| probe.bytes as f64 * 8.0 / probe.rate.bits_per_second() as f64;
        assert!(length(next) > 1.9 * length(probe));
    }

    #[test]
    fn one_that_nobody_answers_ends_by_itself() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        let first = probes.poll(MBIT, 10.0 * MBIT, now).unwrap();
        assert_eq!(probes.poll(MBIT, 10.0 * MBIT, now + 999 * MS), None);
        assert_eq!(probes.conclude(MBIT, true, now + 500 * MS), None);
        assert_eq!(probes.poll(MBIT, 10.0 * MBIT, now + 1000 * MS), None);
        let second = probes.poll(MBIT, 10.0 * MBIT, now + 3000 * MS).unwrap();
        assert_ne!(first.id, second.id);
    }
}
