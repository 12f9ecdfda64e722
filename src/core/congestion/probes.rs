//! Bursts that show whether the network carries more than is sent: for that, more has to be sent for a moment.

use std::time::{Duration, Instant};

use super::super::access_unit::Bitrate;
use super::Probe;

/// Long enough that a shaper's bucket or a radio's frame does not pass for a fast link; short enough that a queue of a
/// failed one is gone before anybody sees it.
const LENGTH: Duration = Duration::from_millis(40);
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
    factor: f64,
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
        Self { next_id: 1, running: None, next_at: now, wait: SHORTEST_WAIT, factor: FIRST_FACTOR, known: None }
    }

    /// Ids are never used twice.
    pub(super) fn go_on_counting(&mut self, others: &Self) {
        self.next_id = others.next_id;
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

    pub(super) fn poll_timeout(&self) -> Instant {
        self.running.map_or(self.next_at, |running| running.give_up_at)
    }

    /// One to begin now, for a link thought to carry `estimate` of which `wanted` is of use.
    pub(super) fn poll(&mut self, estimate: f64, wanted: f64, now: Instant) -> Option<Probe> {
        if self.running.is_some_and(|running| now < running.give_up_at) || now < self.next_at {
            return None;
        }
        self.running = None;
        let rate = self.known.take().unwrap_or(estimate * self.factor).min(wanted);
        self.next_at = now + self.wait;
        if rate < estimate * 1.02 {
            return None;
        }
        let bytes = ((rate * LENGTH.as_secs_f64() / 8.0) as usize).max(LEAST_BYTES);
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
            self.wait = (self.wait * 3 / 2).min(LONGEST_WAIT);
            self.factor = CAREFUL_FACTOR;
            self.next_at = self.next_at.max(now + self.wait);
        }
        shown
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
