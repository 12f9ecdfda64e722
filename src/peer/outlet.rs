//! When a viewer's packets may leave, and what is known of the network they leave into.
//!
//! ```text
//!   feedback ─▶ Congestion ─▶ estimate ─▶ (who gets which rendition, and how many bits)
//!                    │
//!                    ├─ pacing rate ─▶ Pacer ─▶ may a packet leave?
//!                    └─ probe: for a moment the probe's own pacer says so
//! ```

use std::time::{Duration, Instant};

use crate::core::access_unit::Bitrate;
use crate::core::congestion::pacer::Pacer;
use crate::core::congestion::{Arrival, Basis, Congestion, CongestionSettings, Probe};
use crate::core::renditions::{Network, Wanted};

/// UDP, and IPv4 or IPv6 (RFC 768, RFC 791, RFC 8200).
const UDP_IPV4: usize = 8 + 20;
const UDP_IPV6: usize = 8 + 40;
/// The authentication tag of SRTP's AES-GCM (RFC 7714).
const SRTP: usize = 16;
/// A viewer who agreed to transport-wide feedback and sent so many reports without any will not begin.
const PATIENCE: u32 = 3;
/// An estimate is a guess for so long, unless it says that the network carries less than was thought: the others' pictures
/// are not made worse for a guess.
const SETTLING: Duration = Duration::from_millis(600);
/// The same after the viewer was silent: its estimate was lowered for want of answers, and a probe has to show what is true.
const SETTLING_AFTER_SILENCE: Duration = Duration::from_millis(2500);
/// So much of what is wanted is as good as all.
const ENOUGH: f64 = 0.95;
/// A near viewer's packets leave at this many times the most that a far one is thought to carry: a keyframe within one picture's
/// time. A network that is near and slow all the same shows it by a queue, and counts as a far one for a while.
const NEAR_PACE: f64 = 5.0;
const NEAR_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// So far behind its pacer a viewer wakes the loop, and no sooner: some packets leave together.
const LEAST_REST: Duration = Duration::from_millis(5);
/// A queue on the way that a picture alone does not make: what is lost then is lost in it.
const OWN_QUEUE: Duration = Duration::from_millis(40);
/// In a probe the rate is what counts.
const LEAST_PROBE_REST: Duration = Duration::from_millis(1);

/// A viewer that cannot be probed and was well for so long may carry more.
const WELL_FOR: Duration = Duration::from_secs(3);
/// It is well while its own estimate is no less than this part of what it is sent, nor falls by more than this at once.
const WELL: f64 = 0.75;
/// And while its reports tell of no more than this: repeats mend what a noisy link loses, and round trips differ a little.
const MOST_LOSS: f32 = 0.15;
const LONG_QUEUE: Duration = Duration::from_millis(200);
/// What is given on trial is sent so much faster than it comes: a keyframe is eight pictures large.
const TRIAL_PACE: f64 = 1.5;

/// What is known of a viewer's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Nothing: it does not say which arrive when.
    None,
    /// It says when each arrives, or agreed to; but there is no stream of repeats to fill a probe up with.
    Unprobed,
    Probed,
}

pub(super) struct Outlet {
    congestion: Congestion,
    settings: CongestionSettings,
    start: Bitrate,
    settled_at: Instant,
    wanted: Wanted,
    /// So near that there is most likely no bottleneck on the way.
    is_near: bool,
    numbers: Numbers,
    /// When a viewer's own estimate or its reports last said that its network has too much.
    troubled_at: Option<Instant>,
    /// `None`: nothing is held back, since nothing is known of the network, nor will be.
    pacer: Option<Pacer>,
    probing: Option<Probing>,
    reports: u32,
    sent: Meter,
    /// Of each packet, below RTP.
    overhead: usize,
}

struct Probing {
    probe: Probe,
    pacer: Pacer,
    sent: usize,
}

impl Outlet {
    pub(super) fn new(settings: CongestionSettings, numbers: Numbers, now: Instant) -> Self {
        Self {
            congestion: Congestion::new(settings, now),
            settings,
            start: settings.start,
            settled_at: now + SETTLING,
            wanted: Wanted { most: settings.most, on_trial: None },
            is_near: false,
            numbers,
            troubled_at: None,
            pacer: None,
            probing: None,
            reports: 0,
            sent: Meter { since: now, bytes: 0, rate: Bitrate::from_kbps(0) },
            overhead: SRTP + UDP_IPV4,
        }
    }

    /// The path stands, for the first time or anew. What was known of another one does not count.
    pub(super) fn begin(&mut self, is_near: bool, now: Instant) {
        let CongestionSettings { start, most, .. } = self.settings;
        self.start = if is_near { most } else { start };
        self.settled_at = now + SETTLING;
        self.congestion = Congestion::new(CongestionSettings { start: self.start, ..self.settings }, now);
        self.congestion.set_wanted(self.wanted.most);
        self.is_near = is_near;
        self.probing = None;
        self.reports = 0;
        self.troubled_at = None;
        self.pacer = (self.numbers != Numbers::None).then(|| Pacer::new(now));
        let pace = self.pace(now);
        if let Some(pacer) = &mut self.pacer {
            pacer.set_rate(pace);
        }
    }

    pub(super) fn set_is_ipv6(&mut self, is_ipv6: bool) {
        self.overhead = SRTP + if is_ipv6 { UDP_IPV6 } else { UDP_IPV4 };
    }

    pub(super) fn set_wanted(&mut self, wanted: Wanted, now: Instant) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.congestion.set_wanted(wanted.most);
            self.follow(now);
        }
    }

    pub(super) fn may_send(&self, now: Instant) -> bool {
        match &self.probing {
            Some(probing) => probing.pacer.may_send(now),
            None => self.pacer.is_none_or(|pacer| pacer.may_send(now)),
        }
    }

    /// When the next packet may leave, a little later where that saves a turn of the loop.
    pub(super) fn ready_at(&self, now: Instant) -> Instant {
        match (&self.probing, self.pacer) {
            (Some(probing), _) => probing.pacer.ready_at(now).max(now + LEAST_PROBE_REST),
            (None, Some(pacer)) => pacer.ready_at(now).max(now + LEAST_REST),
            (None, None) => now + LEAST_REST,
        }
    }

    /// A packet left, of so many bytes with its RTP header.
    pub(super) fn handle_sent(&mut self, number: Option<u64>, rtp_bytes: usize, now: Instant) {
        let bytes = rtp_bytes + self.overhead;
        self.sent.add(bytes, now);
        let probe = self.probing.as_ref().map(|probing| probing.probe.id);
        if let Some(number) = number {
            self.congestion.handle_sent(number, bytes, probe, now);
        }
        if let Some(pacer) = &mut self.pacer {
            pacer.handle_sent(bytes, now);
        }
        if let Some(probing) = &mut self.probing {
            probing.pacer.handle_sent(bytes, now);
            probing.sent += bytes;
            if probing.sent >= probing.probe.bytes {
                self.probing = None;
            }
        }
    }

    /// Begins a probe if one is due: there is something to send, and a stream of repeats to fill it up.
    pub(super) fn begin_probe(&mut self, now: Instant) {
        if self.probing.is_none()
            && self.numbers == Numbers::Probed
            && self.pacer.is_some()
            && let Some(probe) = self.congestion.poll_probe(now)
        {
            let mut pacer = Pacer::new(now);
            pacer.set_rate(probe.rate);
            self.probing = Some(Probing { probe, pacer, sent: 0 });
        }
    }

    pub(super) fn is_probing(&self) -> bool {
        self.probing.is_some()
    }

    /// There was nothing to send for it.
    pub(super) fn end_probe(&mut self) {
        self.probing = None;
    }

    pub(super) fn handle_arrivals(&mut self, arrivals: &[Arrival], now: Instant) {
        if !arrivals.is_empty() {
            let was_silent = self.congestion.is_silent();
            self.congestion.handle_feedback(arrivals, now);
            if was_silent && !self.congestion.is_silent() {
                (self.start, self.settled_at) = (self.congestion.estimate(), now + SETTLING_AFTER_SILENCE);
            }
            self.follow(now);
        }
    }

    pub(super) fn handle_remb(&mut self, estimate: Bitrate, now: Instant) {
        let before = f64::from(self.congestion.estimate().kbps());
        self.congestion.handle_remb(estimate, now);
        if self.congestion.basis() == Basis::Remb && f64::from(self.congestion.estimate().kbps()) < before * WELL {
            self.troubled_at = Some(now);
        }
        self.follow(now);
    }

    pub(super) fn handle_report(&mut self, fraction_lost: f32, round_trip: Option<Duration>, now: Instant) {
        self.congestion.handle_report(fraction_lost, round_trip, now);
        if fraction_lost > MOST_LOSS || self.congestion.queue_delay().is_some_and(|queue| queue > LONG_QUEUE) {
            self.troubled_at = Some(now);
        }
        self.reports = self.reports.saturating_add(1);
        self.follow(now);
    }

    /// To be called as long as something is sent. Nobody is woken for it: when nothing is sent, nothing can fail to arrive.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.congestion.poll_timeout().is_some_and(|at| at <= now) {
            self.congestion.handle_timeout(now);
            self.follow(now);
        }
    }

    /// What the network carries; `None` while the viewer has said too little to tell.
    pub(super) fn estimate(&self, now: Instant) -> Option<Bitrate> {
        let estimate = self.congestion.estimate();
        let is_settled = now >= self.settled_at || estimate < self.start;
        (self.is_known() && is_settled).then_some(estimate)
    }

    /// The same, as it concerns the camera's renditions: nothing that was thought of it while it was silent does.
    pub(super) fn network(&self, now: Instant) -> Option<Network> {
        if self.congestion.is_silent() {
            return Some(Network::Silent);
        }
        let estimate = self.estimate(now)?;
        Some(Network::Carries { estimate, is_untried: self.is_untried(now) })
    }

    /// It carries what it is sent, or what it has on trial, and whether it carries more can only be tried.
    fn is_untried(&self, now: Instant) -> bool {
        let can_be_probed = self.congestion.basis() == Basis::Feedback && self.numbers == Numbers::Probed;
        let troubled_at = self.troubled_at.max(self.congestion.lowered_at());
        let is_well = troubled_at.is_none_or(|at| now.saturating_duration_since(at) >= WELL_FOR);
        let takes_all = || f64::from(self.congestion.estimate().kbps()) >= f64::from(self.sent(now).kbps()) * WELL;
        !can_be_probed && is_well && (self.wanted.on_trial.is_some() || takes_all())
    }

    /// What was sent in the last second or so, with all headers.
    pub(super) fn sent(&self, now: Instant) -> Bitrate {
        self.sent.rate(now)
    }

    /// The part of the packets that was lost lately, 0 to 1, before repeats, of a viewer that says which arrived.
    pub(super) fn loss(&self) -> Option<f32> {
        (self.congestion.basis() == Basis::Feedback).then(|| self.congestion.loss())
    }

    /// Whether what is lost now is lost because the network's queue is full: that passes with the queue.
    pub(super) fn is_congested(&self) -> bool {
        self.congestion.queue_delay().is_some_and(|delay| delay > OWN_QUEUE)
    }

    /// The estimate rests on more than loss reports.
    pub(super) fn is_known(&self) -> bool {
        self.congestion.basis() >= Basis::Remb
    }

    /// The pacer follows the estimate.
    fn follow(&mut self, now: Instant) {
        if self.is_known() {
            let pace = self.pace(now);
            self.pacer.get_or_insert_with(|| Pacer::new(now)).set_rate(pace);
        } else if self.reports >= PATIENCE {
            self.pacer = None;
        }
    }

    fn pace(&self, now: Instant) -> Bitrate {
        let enough = scaled(self.wanted.most, ENOUGH);
        let slow_at = self.congestion.lowered_at().max(self.congestion.spread_at());
        let is_calm = slow_at.is_none_or(|at| now.saturating_duration_since(at) >= NEAR_AGAIN_AFTER);
        let pace = self.congestion.pacing_rate();
        if self.is_near && is_calm && self.congestion.estimate() >= enough {
            return pace.max(scaled(self.settings.most, NEAR_PACE));
        }
        self.wanted.on_trial.map_or(pace, |rate| pace.max(scaled(rate, TRIAL_PACE)))
    }
}

fn scaled(rate: Bitrate, by: f64) -> Bitrate {
    Bitrate::from_kbps((f64::from(rate.kbps()) * by) as u32)
}

/// Bytes over about a second.
#[derive(Debug)]
struct Meter {
    since: Instant,
    bytes: usize,
    rate: Bitrate,
}

impl Meter {
    const WINDOW: Duration = Duration::from_secs(1);
    const LEAST: Duration = Duration::from_millis(200);

    fn add(&mut self, bytes: usize, now: Instant) {
        if now.saturating_duration_since(self.since) >= Self::WINDOW {
            *self = Self { since: now, bytes: 0, rate: self.rate(now) };
        }
        self.bytes += bytes;
    }

    fn rate(&self, now: Instant) -> Bitrate {
        let time = now.saturating_duration_since(self.since);
        // Of the first second, what there is of it.
        if time < Self::WINDOW && (self.rate.kbps() > 0 || time < Self::LEAST) {
            return self.rate;
        }
        if time >= 2 * Self::WINDOW {
            return Bitrate::from_kbps(0); // nothing came since
        }
        let kbps = self.bytes as u128 * 8 / time.as_millis().max(1);
        Bitrate::from_kbps(u32::try_from(kbps).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PACKET: usize = 1200;
    const SETTINGS: CongestionSettings = CongestionSettings {
        start: Bitrate::from_kbps(1000),
        least: Bitrate::from_kbps(50),
        most: Bitrate::from_kbps(4000),
    };

    /// How many packets leave at once.
    fn burst(outlet: &mut Outlet, now: Instant) -> usize {
        (0..200)
            .take_while(|_| {
                let may = outlet.may_send(now);
                if may {
                    outlet.handle_sent(None, PACKET, now);
                }
                may
            })
            .count()
    }

    #[test]
    fn a_near_viewers_first_keyframe_leaves_within_one_pictures_time_and_not_at_once() {
        let start = Instant::now();
        let mut outlet = Outlet::new(SETTINGS, Numbers::Probed, start);
        outlet.begin(true, start);
        // Eight pictures' worth of 2 Mbit/s: the half of `most`, which is twice what the camera's encoder gives.
        let (mut now, mut left) = (start, 8 * 2_000_000 / 8 / 30 / PACKET);
        let mut most_at_once = 0;
        loop {
            let sent = burst(&mut outlet, now);
            most_at_once = most_at_once.max(sent);
            left = left.saturating_sub(sent);
            if left == 0 {
                break;
            }
            now = outlet.ready_at(now);
        }
        assert!(now - start < 33 * MS && most_at_once < 20, "{:?}, {most_at_once} packets at once", now - start);
    }

    #[test]
    fn a_far_viewer_who_will_tell_is_paced_from_the_first_packet_and_who_will_not_is_not() {
        let now = Instant::now();
        for (numbers, is_paced) in [(Numbers::Probed, true), (Numbers::Unprobed, true), (Numbers::None, false)] {
            let mut outlet = Outlet::new(SETTINGS, numbers, now);
            outlet.begin(false, now);
            assert_eq!(burst(&mut outlet, now) < 10, is_paced, "{numbers:?}");
        }
    }

    #[test]
    fn who_agreed_to_tell_and_only_reports_is_not_paced_any_more() {
        let now = Instant::now();
        let mut outlet = Outlet::new(SETTINGS, Numbers::Probed, now);
        outlet.begin(false, now);
        for _ in 0..PATIENCE {
            assert!(burst(&mut outlet, now) < 10);
            outlet.handle_report(0.0, None, now);
        }
        assert_eq!(burst(&mut outlet, now), 200);
        assert_eq!(outlet.estimate(now + 10_000 * MS), None);
    }

    #[test]
    fn the_viewers_own_estimate_is_paced_by_and_an_estimate_of_more_waits_until_it_is_settled() {
        let now = Instant::now();
        let mut outlet = Outlet::new(SETTINGS, Numbers::None, now);
        outlet.begin(false, now);
        outlet.handle_remb(Bitrate::from_kbps(1500), now);
        assert!(burst(&mut outlet, now) < 10);
        assert_eq!(outlet.estimate(now + 599 * MS), None);
        assert_eq!(outlet.estimate(now + 600 * MS), Some(Bitrate::from_kbps(1500)));
        outlet.handle_remb(Bitrate::from_kbps(300), now);
        assert_eq!(outlet.estimate(now), Some(Bitrate::from_kbps(300)), "bad news at once");
    }

    #[test]
    fn a_probe_leaves_at_its_own_rate_and_ends_with_its_bytes() {
        let now = Instant::now();
        let mut outlet = Outlet::new(SETTINGS, Numbers::Probed, now);
        outlet.begin(false, now);
        outlet.begin_probe(now);
        let probe = outlet.probing.as_ref().unwrap().probe;
        let (mut at, mut bytes) = (now, 0);
        while outlet.is_probing() {
            bytes += burst(&mut outlet, at) * (PACKET + outlet.overhead);
            let next = outlet.ready_at(at);
            assert!(next >= at + MS);
            at = next;
        }
        let took = probe.bytes as f64 * 8.0 / probe.rate.bits_per_second() as f64;
        assert!(bytes >= probe.bytes && (at - now).as_secs_f64() < took * 1.5 + 0.005, "{bytes} in {:?}", at - now);
    }

    #[test]
    fn what_was_sent_is_counted_by_the_second_and_forgotten_when_nothing_follows() {
        let now = Instant::now();
        let mut meter = Meter { since: now, bytes: 0, rate: Bitrate::from_kbps(0) };
        for ms in 0..=1000 {
            meter.add(125, now + MS * ms);
            let rate = meter.rate(now + MS * ms).kbps();
            assert!(if ms < 200 { rate == 0 } else { (990..=1010).contains(&rate) }, "{rate} kbit/s after {ms} ms");
        }
        assert_eq!(meter.rate(now + 1000 * MS).kbps(), 1000);
        assert_eq!(meter.rate(now + 3000 * MS).kbps(), 0);
    }
}
