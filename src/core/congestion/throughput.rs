//! Bytes over time, in both directions of a question: what did we send, and what of it arrived.

use std::time::Duration;

/// Coarse, so that a second fits into a few words; fine enough for windows of a few pictures.
const SLOT: Duration = Duration::from_millis(20);
const SLOTS: usize = 64;

/// The last 1.28 s.
#[derive(Debug)]
pub(super) struct Throughput {
    bytes: [u32; SLOTS],
    /// Of the newest byte, and of the oldest there ever was.
    newest: Option<Duration>,
    since: Duration,
}

impl Default for Throughput {
    fn default() -> Self {
        Self { bytes: [0; SLOTS], newest: None, since: Duration::ZERO }
    }
}

impl Throughput {
    pub(super) fn add(&mut self, bytes: u32, at: Duration) {
        let newest = match self.newest {
            // A clock that leaps is a new clock.
            Some(newest) if at > newest + SLOT * (SLOTS as u32) || at + SLOT * (SLOTS as u32) <= newest => {
                *self = Self::default();
                self.since = at;
                at
            }
            Some(newest) => newest,
            None => {
                self.since = at;
                at
            }
        };
        for slot in slot(newest) + 1..=slot(at) {
            self.bytes[index(slot)] = 0;
        }
        self.newest = Some(newest.max(at));
        self.since = self.since.min(at);
        let bin = &mut self.bytes[index(slot(at))];
        *bin = bin.saturating_add(bytes);
    }

    /// Bits per second over the window that ends with the newest byte, or `now` if that is later; `None` before there was
    /// such a window, or when all is older.
    pub(super) fn rate(&self, window: Duration, now: Option<Duration>) -> Option<f64> {
        let newest = self.newest?;
        let end = now.unwrap_or(newest).max(newest);
        let slots = (window.as_nanos() / SLOT.as_nanos()).clamp(1, SLOTS as u128 - 1) as u64;
        let first = slot(end).saturating_sub(slots - 1);
        let start = SLOT * u32::try_from(first).unwrap_or(u32::MAX);
        if start < self.since || first > slot(newest) {
            return None;
        }
        let bytes: u64 = (first..=slot(newest)).map(|slot| u64::from(self.bytes[index(slot)])).sum();
        let span = (end - start).max(SLOT / 2);
        Some(bytes as f64 * 8.0 / span.as_secs_f64())
    }
}

fn slot(at: Duration) -> u64 {
    u64::try_from(at.as_nanos() / SLOT.as_nanos()).unwrap_or(u64::MAX)
}

fn index(slot: u64) -> usize {
    (slot % SLOTS as u64) as usize
}
