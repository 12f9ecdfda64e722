//! What one viewer's network carries, told from what was sent and what came of it.

mod bursts;
mod history;
mod loss;
pub mod pacer;
mod probes;
mod rate;
mod throughput;
mod trend;

use std::time::{Duration, Instant};

use super::access_unit::Bitrate;
use bursts::Bursts;
use history::{History, News};
use loss::{Loss, Verdict};
use probes::Probes;
use rate::{Outcome, Rate, Signs};
use throughput::Throughput;
use trend::{Trend, Usage};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CongestionSettings {
    /// Thought of a viewer of whom nothing is known yet.
    pub start: Bitrate,
    pub least: Bitrate,
    pub most: Bitrate,
}

/// One line of transport-wide feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The packet's transport-wide number, unwrapped: it never repeats in the life of a viewer.
    pub number: u64,
    /// On the viewer's clock, whose zero is nobody's business; `None`: it did not arrive.
    pub at: Option<Duration>,
}

/// A burst that shows whether the network carries more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub id: u32,
    pub rate: Bitrate,
    /// To be sent at `rate`: packets of the stream, filled up with repeats of old ones.
    pub bytes: usize,
}

/// What the estimate rests on, from the least to the most telling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// The viewer has told nothing yet: the estimate is a guess.
    #[default]
    Nothing,
    /// Receiver reports: loss and round trip.
    Reports,
    /// The viewer's own estimate.
    Remb,
    /// Transport-wide feedback.
    Feedback,
}

/// One viewer's.
#[derive(Debug)]
pub struct Congestion {
    settings: CongestionSettings,
    wanted: Bitrate,
    basis: Basis,
    started: Instant,
    rate: Rate,
    history: History,
    sent: Throughput,
    arrived: Throughput,
    trend: Trend,
    bursts: Bursts,
    loss: Loss,
    probes: Probes,
    /// When something was last told.
    seen_at: Instant,
    sent_at: Option<Instant>,
    /// The newest packet that belongs to a probe.
    newest_probing: Option<u64>,
    /// From the viewer's clock to one that runs as ours, in microseconds.
    clock_offset: Option<i64>,
    /// The newest packet that is known to have arrived.
    newest_arrived: Option<u64>,
    /// Since when packets are on their way and nothing is said about them.
    unanswered_since: Option<Instant>,
    outage: Option<Outage>,
    round_trip: Option<Duration>,
    /// For viewers whose reports are all there is.
    least_round_trip: Option<Duration>,
    reported_at: Option<Instant>,
    reported_loss: f32,
    /// Before a trial of the loss controller.
    before_trial: Option<f64>,
}

/// Nothing is heard from the viewer.
#[derive(Clone, Copy, Debug)]
struct Outage {
    /// The estimate before it.
    estimate: f64,
    backed_off_at: Instant,
}

/// Feedback that stays out so long while packets are on their way means that they do not get through.
const SILENCE: Duration = Duration::from_millis(500);
/// And each time it goes on for so long.
const BACKED_OFF: f64 = 0.7;
/// The viewer's clock runs as ours does; one that differs by more has been set anew.
const GREATEST_LEAP: i64 = 30_000_000;
/// A window short enough to be of this moment, and one long enough that pictures and pauses even out.
const MOMENT: Duration = Duration::from_millis(120);
const WHILE: Duration = Duration::from_secs(1);
/// After the network had too much, probes wait.
const CALM: Duration = Duration::from_secs(1);
/// Of the round trip, above the least there was, for those of whom there are only reports.
const SHORT_QUEUE: Duration = Duration::from_millis(50);
const LONG_QUEUE: Duration = Duration::from_millis(200);
const DOUBTFUL: f32 = 0.05;
const HOPELESS: f32 = 0.20;
/// How far packets that wait may outrun the estimate: at first and after each overload little, and the longer all goes
/// well the more.
const LEAST_PACE: f64 = 1.1;
const MOST_PACE: f64 = 2.0;
const MOST_PACE_OF_THE_SHORT: f64 = 1.4;
const PACE_GAIN: f64 = 0.1;
const PAST_THE_END: f64 = 1.05;

impl Congestion {
    pub fn new(settings: CongestionSettings, now: Instant) -> Self {
        Self {
            settings,
            wanted: settings.most,
            basis: Basis::Nothing,
            started: now,
            rate: Rate::new(bits(settings.start), now),
            history: History::default(),
            sent: Throughput::default(),
            arrived: Throughput::default(),
            trend: Trend::default(),
            bursts: Bursts::default(),
            loss: Loss::default(),
            probes: Probes::new(now),
            seen_at: now,
            sent_at: None,
            newest_probing: None,
            clock_offset: None,
            newest_arrived: None,
            unanswered_since: None,
            outage: None,
            round_trip: None,
            least_round_trip: None,
            reported_at: None,
            reported_loss: 0.0,
            before_trial: None,
        }
    }

    /// More than this is of no use to the viewer now: it is not probed for.
    pub fn set_wanted(&mut self, wanted: Bitrate) {
        self.wanted = wanted;
    }

    /// A packet left: stream, repeat or padding. `bytes` with all headers down to IP. `probe`: it is part of that one.
    pub fn handle_sent(&mut self, number: u64, bytes: usize, probe: Option<u32>, now: Instant) {
        let at = now.saturating_duration_since(self.started);
        self.history.push(number, bytes, probe, at);
        self.sent.add(u32::try_from(bytes).unwrap_or(u32::MAX), at);
        self.unanswered_since.get_or_insert(now);
        (self.sent_at, self.seen_at) = (Some(now), now);
        if probe.is_some() {
            self.newest_probing = Some(number);
        }
    }

    /// One feedback packet, in the order of its numbers.
    pub fn handle_feedback(&mut self, arrivals: &[Arrival], now: Instant) {
        self.seen_at = now;
        let (mut arrived, mut lost, mut late) = (0, 0, 0);
        for &Arrival { number, at } in arrivals {
            let Some(news) = self.history.answer(number, at.is_some()) else { continue };
            let sent = match news {
                News::Lost => {
                    lost += 1;
                    continue;
                }
                News::ArrivedLate(sent) => {
                    late += 1;
                    sent
                }
                News::Arrived(sent) => {
                    arrived += 1;
                    sent
                }
            };
            let Some(at) = at else { continue };
            let at = self.on_our_clock(at, sent.at);
            self.newest_arrived = self.newest_arrived.max(Some(number));
            self.arrived.add(sent.bytes, at);
            self.trend.add(sent.at, at);
            self.bursts.add(sent.at, at, now);
            if sent.probe.is_some_and(|probe| self.probes.is_running(probe)) {
                self.probes.add(sent.bytes, sent.at, at);
            }
            self.round_trip = Some((self.started + sent.at).min(now)).map(|sent| now - sent);
        }
        if arrived + lost + late == 0 {
            return;
        }
        self.basis = Basis::Feedback;
        let is_all_answered = self.newest_arrived.is_some_and(|newest| newest.saturating_add(1) >= self.history.next());
        self.unanswered_since = (!is_all_answered).then_some(now);
        if let Some(outage) = self.outage.take() {
            // What was lost or late meanwhile says nothing of the rate.
            self.trend.forget_samples();
            self.loss.forget_window();
            self.probes.hope_for(outage.estimate, now);
            return;
        }
        self.judge_probe(arrivals, now);
        self.trend.update();
        self.judge_rate(now);
        self.judge_loss(arrived, lost, late, now);
    }

    /// The viewer's own estimate (draft-alvestrand-rmcat-remb-03), for those without transport-wide feedback.
    pub fn handle_remb(&mut self, estimate: Bitrate, _now: Instant) {
        if self.basis == Basis::Feedback {
            return;
        }
        self.basis = Basis::Remb;
        self.rate.set(bits(estimate));
    }

    /// A receiver report (RFC 3550, section 6.4.1): the part of the packets lost, 0 to 1, and the round trip where it shows.
    pub fn handle_report(&mut self, fraction_lost: f32, round_trip: Option<Duration>, now: Instant) {
        if self.basis == Basis::Feedback {
            return; // the arrivals say more
        }
        if let Some(round_trip) = round_trip {
            self.round_trip = Some(round_trip);
            self.least_round_trip = Some(self.least_round_trip.map_or(round_trip, |least| least.min(round_trip)));
        }
        if self.basis == Basis::Remb {
            return;
        }
        self.basis = Basis::Reports;
        let lost = if fraction_lost.is_finite() { fraction_lost.clamp(0.0, 1.0) } else { 0.0 };
        self.reported_loss = lost;
        let since = self.reported_at.replace(now);
        let passed = since.map_or(1.0, |since| now.saturating_duration_since(since).as_secs_f64().min(2.0));
        self.judge_report(lost, passed, now);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.seen_at = now;
        let Some(at) = self.silence_ends_at() else { return };
        if now < at {
            return;
        }
        let estimate = self.outage.map_or(self.rate.estimate(), |outage| outage.estimate);
        self.outage = Some(Outage { estimate, backed_off_at: now });
        self.rate.set(self.within(self.rate.estimate() * BACKED_OFF));
    }

    /// When to call `handle_timeout`. Probes have no time of their own: they are begun with the next packets.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.silence_ends_at()
    }

    /// A probe to begin now; to be asked whenever packets are to leave.
    pub fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        if !self.may_probe() {
            return None;
        }
        let wanted = self.within(bits(self.wanted));
        self.probes.poll(self.rate.estimate(), wanted, now)
    }

    /// What the path carries, all headers down to IP counted, within the settings' limits.
    pub fn estimate(&self) -> Bitrate {
        Bitrate::from_kbps((self.within(self.rate.estimate()) / 1000.0) as u32)
    }

    /// When the network last had too much, as far as its viewer tells when packets arrive.
    pub fn lowered_at(&self) -> Option<Instant> {
        self.rate.lowered_at()
    }

    /// When a burst last arrived as a queue: what leaves in one go is more than the network takes in one go.
    pub fn spread_at(&self) -> Option<Instant> {
        self.bursts.spread_at()
    }

    /// Packets are on their way, and for some time nothing was said about them. The estimate is a guess meanwhile.
    pub fn is_silent(&self) -> bool {
        self.outage.is_some()
    }

    pub fn basis(&self) -> Basis {
        self.basis
    }

    /// How fast packets may leave while some wait: the pacer's rate. Above the estimate, so that a keyframe is through
    /// before long; on a link that has no more to give only a little above it.
    pub fn pacing_rate(&self) -> Bitrate {
        let is_short = self.rate.estimate() < bits(self.wanted) * 0.95;
        let estimate = self.within(self.rate.estimate()).min(bits(self.wanted).max(bits(self.settings.least)));
        let most = if is_short && self.basis == Basis::Feedback { MOST_PACE_OF_THE_SHORT } else { MOST_PACE };
        let factor = match self.rate.lowered_at() {
            None => most,
            Some(at) => {
                let calm = self.seen_at.saturating_duration_since(at).as_secs_f64();
                (LEAST_PACE + PACE_GAIN * (calm - 2.0).max(0.0)).min(most)
            }
        };
        let factor = if self.rate.is_draining() { 1.0 } else { factor };
        // A link whose end was seen is not sent more than it carries.
        let end = self.rate.capacity().map_or(f64::INFINITY, |capacity| capacity.max(estimate) * PAST_THE_END);
        Bitrate::from_kbps(((estimate * factor).min(end) / 1000.0) as u32)
    }

    /// What packets wait on the way, above the least of the last while; without transport-wide feedback as far as round trips show
    /// it.
    pub fn queue_delay(&self) -> Option<Duration> {
        self.trend.queue().or_else(|| Some(self.round_trip?.saturating_sub(self.least_round_trip?)))
    }

    /// The part of the packets that did not arrive in the last second or so, 0 to 1; before repeats.
    pub fn loss(&self) -> f32 {
        if self.basis == Basis::Feedback { self.loss.fraction() } else { self.reported_loss }
    }

    /// From a packet's leaving to the feedback about it, the viewer's wait before it reports included; `None` before one.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    fn judge_rate(&mut self, now: Instant) {
        let signs = Signs {
            usage: self.trend.usage(),
            queue: self.trend.queue().unwrap_or_default(),
            arriving: [MOMENT, 2 * MOMENT]
                .into_iter()
                .filter_map(|window| self.arrived.rate(window, None))
                .reduce(f64::max),
            arrived: self.arrived.rate(WHILE, None),
            may_raise: self.loss.may_raise(),
            wanted: bits(self.wanted),
        };
        if self.rate.update(signs, now) == Outcome::NoQueue {
            self.trend.accept_delay();
        }
        self.rate.set(self.within(self.rate.estimate()));
        if signs.usage == Usage::Over {
            self.probes.handle_overload(now);
        }
        if self.rate.is_draining() {
            self.probes.hold_until(now + CALM);
        }
    }

    fn judge_loss(&mut self, arrived: u32, lost: u32, late: u32, now: Instant) {
        let sees_queue = self.trend.queue().is_some_and(|queue| queue > Duration::from_millis(40));
        let verdict = self.loss.handle(arrived, lost, late, sees_queue, now);
        let delivered = self.arrived.rate(WHILE, None);
        match verdict {
            None => {}
            Some(Verdict::Congested) => {
                if let Some(delivered) = delivered {
                    self.rate.handle_saturated(delivered, now);
                }
            }
            Some(Verdict::Try) => {
                self.before_trial = Some(self.rate.estimate());
                if let Some(delivered) = delivered {
                    self.rate.handle_saturated(delivered, now);
                }
            }
            Some(Verdict::Undo) => {
                if let Some(before) = self.before_trial.take() {
                    self.rate.handle_shown(before, true, now);
                }
            }
            Some(Verdict::Keep) => self.before_trial = None,
        }
        self.rate.set(self.within(self.rate.estimate()));
        if verdict.is_some() {
            self.probes.hold_until(now + CALM);
        }
    }

    fn judge_probe(&mut self, arrivals: &[Arrival], now: Instant) {
        let is_past = arrivals.last().is_some_and(|last| Some(last.number) > self.newest_probing);
        let Some(shown) = self.probes.conclude(self.rate.estimate(), is_past, now) else { return };
        // The queue that it made is its own, and will be gone.
        self.trend.forget_samples();
        if !self.rate.is_draining() {
            self.rate.handle_shown(self.within(shown.rate), shown.is_all, now);
        }
    }

    fn judge_report(&mut self, lost: f32, passed: f64, now: Instant) {
        let Some(sent) = self.sent.rate(WHILE, Some(now.saturating_duration_since(self.started))) else { return };
        let queue = self.queue_delay().unwrap_or_default();
        let estimate = self.rate.estimate();
        let is_full = queue > LONG_QUEUE || lost > HOPELESS || lost > DOUBTFUL && queue > SHORT_QUEUE;
        let next = if is_full {
            estimate.min(sent * f64::from(1.0 - lost) * 0.9)
        } else if lost <= 2.0 * DOUBTFUL && queue < SHORT_QUEUE {
            estimate.max((estimate * (1.0 + 0.08 * passed)).min(sent * 1.2))
        } else {
            estimate
        };
        self.rate.set(self.within(next));
    }

    fn may_probe(&self) -> bool {
        // Before the first feedback one may be made, of the first pictures; after that only by what it says.
        let is_answered = self.basis == Basis::Feedback || self.basis == Basis::Nothing && self.probes.is_fresh();
        is_answered && self.outage.is_none() && self.rate.estimate() < bits(self.wanted) * 0.98
    }

    fn silence_ends_at(&self) -> Option<Instant> {
        let since = self.outage.map(|outage| outage.backed_off_at).or(self.unanswered_since)?;
        // Where sending stopped, nothing can be said about it.
        let is_sending = self.sent_at.is_some_and(|at| at > since + SILENCE / 2);
        let usual = self.round_trip.unwrap_or_default().min(SILENCE);
        (self.basis == Basis::Feedback && is_sending).then_some(since + SILENCE + usual)
    }

    /// A time of the viewer's clock as one that can be compared with ours; only differences of it mean anything.
    fn on_our_clock(&mut self, at: Duration, sent: Duration) -> Duration {
        let (at, sent) = (micros(at), micros(sent));
        let offset = *self.clock_offset.get_or_insert(at - sent - GREATEST_LEAP);
        let ours = at - offset;
        if (0..=2 * GREATEST_LEAP).contains(&(ours - sent)) {
            return Duration::from_micros(ours.unsigned_abs());
        }
        // Another clock: nothing of the old one can be compared with it.
        self.clock_offset = Some(at - sent - GREATEST_LEAP);
        (self.trend, self.bursts, self.arrived) = (Trend::default(), Bursts::default(), Throughput::default());
        Duration::from_micros((sent + GREATEST_LEAP).unsigned_abs())
    }

    fn within(&self, rate: f64) -> f64 {
        rate.min(bits(self.settings.most)).max(bits(self.settings.least))
    }
}

fn bits(rate: Bitrate) -> f64 {
    rate.bits_per_second() as f64
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

#[cfg(test)]
#[path = "congestion_test.rs"]
mod congestion_test;
