//! One direction of one viewer's link: delay, jitter, loss, and a bottleneck with a queue.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

#[derive(Clone, Copy, Debug, Default)]
pub struct LinkSettings {
    pub delay: Duration,
    /// Added at random to each datagram, so that some overtake others.
    pub jitter: Duration,
    /// Part of the datagrams that vanish, 0 to 1.
    pub loss: f64,
    /// Bits a second; `None`: as fast as can be.
    pub rate: Option<f64>,
    /// Nothing gets through any more.
    pub cut: bool,
}

pub struct Link {
    pub settings: LinkSettings,
    random: SmallRng,
    free_at: Option<Instant>,
}

/// A bottleneck's queue holds so much; what comes on top is dropped.
const QUEUE: Duration = Duration::from_millis(200);

impl Link {
    pub fn new(settings: LinkSettings, seed: u64) -> Self {
        Self { settings, random: SmallRng::seed_from_u64(seed), free_at: None }
    }

    /// When a datagram sent now arrives, if it does.
    pub fn carry(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let LinkSettings { delay, jitter, loss, rate, cut } = self.settings;
        if cut || self.random.random_bool(loss) {
            return None;
        }
        let mut at = now;
        if let Some(rate) = rate {
            let start = self.free_at.map_or(now, |free| free.max(now));
            if start - now > QUEUE {
                return None;
            }
            at = start + Duration::from_secs_f64((bytes + 28) as f64 * 8.0 / rate);
            self.free_at = Some(at);
        }
        Some(at + delay + jitter.mul_f64(self.random.random_range(0.0..1.0)))
    }
}
