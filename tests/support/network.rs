//! One direction of one viewer's link: a bottleneck with a queue, delay, jitter, and loss of several kinds, each of which
//! may change over time.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

#[derive(Clone, Copy, Debug, Default)]
pub struct LinkSettings {
    pub delay: Duration,
    /// Added at random to each datagram, so that some overtake others.
    pub jitter: Duration,
    /// Jitter delays, but nobody overtakes anybody.
    pub in_order: bool,
    /// Part of the datagrams that vanish, 0 to 1.
    pub loss: f64,
    /// Datagrams that vanish in bursts, on top.
    pub bursts: Option<Bursts>,
    /// Bits a second; `None`: as fast as can be.
    pub rate: Option<f64>,
    /// What a rest saves, in bytes: so many pass as fast as can be before the rate is felt (a token bucket, as shapers are).
    pub bucket: usize,
    /// What waits for the bottleneck.
    pub queue: Queue,
    /// Nothing gets through any more.
    pub cut: bool,
}

/// A bottleneck's queue holds so much; what comes on top is dropped.
#[derive(Clone, Copy, Debug)]
pub enum Queue {
    Time(Duration),
    Bytes(usize),
}

impl Default for Queue {
    fn default() -> Self {
        Self::Time(Duration::from_millis(200))
    }
}

/// Gilbert's and Elliott's channel: it is good and loses nothing, or bad and loses all.
#[derive(Clone, Copy, Debug)]
pub struct Bursts {
    /// Part of the datagrams that vanish, 0 to 1.
    pub mean: f64,
    /// Datagrams in a row that vanish, on average.
    pub length: f64,
}

/// From then on the link is another one.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub after: Duration,
    pub settings: LinkSettings,
}

/// Of one datagram that was carried, or dropped because the queue was full.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub sent: Instant,
    /// Before the bottleneck began with it.
    pub queue: Duration,
    pub bytes: usize,
    pub is_dropped: bool,
}

pub struct Link {
    pub settings: LinkSettings,
    /// Of each datagram that came to the bottleneck, in order.
    pub waits: Vec<Wait>,
    steps: Vec<(Instant, LinkSettings)>,
    random: SmallRng,
    free_at: Option<Instant>,
    is_bad: bool,
    last_arrival: Option<Instant>,
}

/// IP and UDP, in front of each datagram.
const HEADERS: usize = 28;

/// A home's own network.
pub fn lan() -> LinkSettings {
    LinkSettings { delay: Duration::from_millis(1), ..Default::default() }
}

impl Link {
    pub fn new(settings: LinkSettings, seed: u64) -> Self {
        Self {
            settings,
            waits: Vec::new(),
            steps: Vec::new(),
            random: SmallRng::seed_from_u64(seed),
            free_at: None,
            is_bad: false,
            last_arrival: None,
        }
    }

    /// The link changes with time; `steps` in their order.
    pub fn follow(&mut self, steps: &[Step], now: Instant) {
        self.steps = steps.iter().map(|step| (now + step.after, step.settings)).rev().collect();
    }

    /// When a datagram sent now arrives, if it does. To be called in the order of time.
    pub fn carry(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        while let Some((_, settings)) = self.steps.pop_if(|(at, _)| *at <= now) {
            self.settings = settings;
        }
        let LinkSettings { delay, jitter, in_order, loss, rate, cut, .. } = self.settings;
        if cut || self.random.random_bool(loss) || self.is_in_burst() {
            return None;
        }
        let mut at = now;
        if let Some(rate) = rate {
            let saved = Duration::from_secs_f64(self.settings.bucket as f64 * 8.0 / rate);
            let free_at = self.free_at.map_or(now - saved, |free| free.max(now - saved));
            let start = free_at.max(now);
            let is_dropped = match self.settings.queue {
                Queue::Time(most) => start - now > most,
                Queue::Bytes(most) => self.bits_between(now, start) / 8.0 > most as f64,
            };
            self.waits.push(Wait { sent: now, queue: start - now, bytes: bytes + HEADERS, is_dropped });
            if is_dropped {
                return None;
            }
            let end = self.end_of((bytes + HEADERS) as f64 * 8.0, free_at);
            self.free_at = Some(end);
            at = end.max(now);
        }
        at += delay + jitter.mul_f64(self.random.random_range(0.0..1.0));
        if in_order {
            at = self.last_arrival.map_or(at, |last| last.max(at));
            self.last_arrival = Some(at);
        }
        Some(at)
    }

    /// Bits a second at this time, as far as is known now.
    pub fn rate_at(&self, at: Instant) -> Option<f64> {
        self.pieces(at).next().and_then(|(_, settings)| settings.rate)
    }

    /// A link that is good for a while, bad for a moment, and so on.
    fn is_in_burst(&mut self) -> bool {
        let Some(Bursts { mean, length }) = self.settings.bursts else { return false };
        let change = if self.is_bad { 1.0 / length } else { mean / (length * (1.0 - mean)) };
        if self.random.random_bool(change.min(1.0)) {
            self.is_bad = !self.is_bad;
        }
        self.is_bad
    }

    /// From `from` on: until when which settings hold.
    fn pieces(&self, from: Instant) -> impl Iterator<Item = (Option<Instant>, LinkSettings)> {
        let past = self.steps.iter().rev().take_while(|(at, _)| *at <= from).count();
        let ahead = self.steps.len() - past;
        let settings_of = move |index: usize| self.steps.get(index).map_or(self.settings, |(_, settings)| *settings);
        (0..=ahead).rev().map(move |left| {
            let until = left.checked_sub(1).map(|next| self.steps[next].0);
            (until, settings_of(left))
        })
    }

    /// When so many bits are through, if the bottleneck begins with them at `start`.
    fn end_of(&self, bits: f64, start: Instant) -> Instant {
        let (mut left, mut at) = (bits, start);
        for (until, settings) in self.pieces(start) {
            let Some(rate) = settings.rate else { return at };
            let needs = Duration::from_secs_f64(left / rate);
            match until {
                Some(until) if at + needs > until => {
                    left -= rate * (until - at).as_secs_f64();
                    at = until;
                }
                _ => return at + needs,
            }
        }
        at
    }

    fn bits_between(&self, from: Instant, to: Instant) -> f64 {
        let (mut bits, mut at) = (0.0, from);
        for (until, settings) in self.pieces(from) {
            let end = until.map_or(to, |until| until.min(to));
            if end <= at {
                break;
            }
            bits += settings.rate.unwrap_or(0.0) * (end - at).as_secs_f64();
            at = end;
        }
        bits
    }
}

/// Networks that viewers sit behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    GoodWifi,
    HomeUplink,
    Lte,
    Congested,
    Train,
}

impl Profile {
    pub const ALL: [Self; 5] = [Self::GoodWifi, Self::HomeUplink, Self::Lte, Self::Congested, Self::Train];

    pub fn name(self) -> &'static str {
        match self {
            Self::GoodWifi => "good-wifi",
            Self::HomeUplink => "home-uplink",
            Self::Lte => "lte",
            Self::Congested => "congested",
            Self::Train => "train",
        }
    }

    /// How it goes for so long; the same seed, the same way.
    pub fn steps(self, length: Duration, seed: u64) -> Vec<Step> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut steps = Vec::new();
        let mut after = Duration::ZERO;
        let mut wander = 0.5;
        while after < length {
            wander = f64::clamp(wander + random.random_range(-0.2..0.2), 0.0, 1.0);
            let settings = self.settings(wander);
            steps.push(Step { after, settings });
            let (lasts, pause) = self.lasts(&mut random);
            after += lasts;
            if let Some(pause) = pause {
                let still = match self {
                    Self::Train => LinkSettings { cut: true, ..settings },
                    // Held back, and let go at once.
                    _ => LinkSettings { rate: Some(1000.0), ..settings },
                };
                steps.push(Step { after, settings: still });
                after += pause;
            }
        }
        steps
    }

    fn settings(self, wander: f64) -> LinkSettings {
        let ms = Duration::from_millis;
        let base = LinkSettings { in_order: true, ..LinkSettings::default() };
        match self {
            Self::GoodWifi => LinkSettings {
                delay: ms(3),
                jitter: ms(5),
                loss: 0.002,
                rate: Some(20e6 + 20e6 * wander),
                queue: Queue::Bytes(250_000),
                ..base
            },
            Self::HomeUplink => LinkSettings {
                delay: ms(12),
                jitter: ms(2),
                loss: 0.0005,
                rate: Some(3e6),
                queue: Queue::Time(ms(500)),
                ..base
            },
            Self::Lte => LinkSettings {
                delay: ms(35),
                jitter: ms(10),
                loss: 0.001,
                rate: Some(1.5e6 + 10e6 * wander),
                queue: Queue::Bytes(400_000),
                ..base
            },
            Self::Congested => LinkSettings {
                delay: ms(30),
                jitter: ms(10),
                bursts: Some(Bursts { mean: 0.01, length: 4.0 }),
                rate: Some(0.6e6 + 1.2e6 * wander),
                queue: Queue::Time(ms(200)),
                ..base
            },
            Self::Train => LinkSettings {
                delay: ms(45),
                jitter: ms(20),
                bursts: Some(Bursts { mean: 0.02, length: 8.0 }),
                rate: Some(0.4e6 + 7e6 * wander),
                queue: Queue::Bytes(300_000),
                ..base
            },
        }
    }

    /// Until it changes, and the pause after that.
    fn lasts(self, random: &mut SmallRng) -> (Duration, Option<Duration>) {
        let mut between = |from: u64, to: u64| Duration::from_millis(random.random_range(from..to));
        match self {
            Self::GoodWifi => (between(1000, 6000), Some(between(20, 80))),
            Self::HomeUplink => (Duration::from_secs(3600), None),
            Self::Lte => {
                let lasts = between(500, 1500);
                (lasts, (between(0, 20) == Duration::ZERO).then_some(between(80, 250)))
            }
            Self::Congested => (between(1000, 4000), None),
            Self::Train => {
                let lasts = between(500, 2000);
                (lasts, (between(0, 20) == Duration::ZERO).then_some(between(1000, 4000)))
            }
        }
    }
}
