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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_stream_has_its_rate_in_every_window() {
        let mut throughput = Throughput::default();
        for millisecond in 0..5000 {
            throughput.add(125, MS * millisecond);
        }
        for window in [100, 200, 1000] {
            let rate = throughput.rate(MS * window, None).unwrap();
            assert!((rate / 1_000_000.0 - 1.0).abs() < 0.02, "{rate} bit/s in {window} ms");
        }
    }

    #[test]
    fn nothing_is_said_of_a_window_that_was_not_lived_through() {
        let mut throughput = Throughput::default();
        assert_eq!(throughput.rate(100 * MS, None), None);
        throughput.add(1000, 5000 * MS);
        throughput.add(1000, 5050 * MS);
        assert_eq!(throughput.rate(100 * MS, None), None);
        assert_eq!(throughput.rate(100 * MS, Some(9000 * MS)), None, "all of it is older");
    }

    #[test]
    fn what_overtook_and_what_came_late_are_counted_where_they_belong() {
        let mut throughput = Throughput::default();
        for millisecond in (0..2000).step_by(10) {
            throughput.add(1250, MS * (millisecond ^ 32));
        }
        let rate = throughput.rate(1000 * MS, None).unwrap();
        assert!((rate / 1_000_000.0 - 1.0).abs() < 0.1, "{rate} bit/s");
    }

    #[test]
    fn a_clock_that_leaps_begins_anew() {
        let mut throughput = Throughput::default();
        throughput.add(u32::MAX, 100 * MS);
        throughput.add(1, 3_600_000 * MS);
        throughput.add(1, 5 * MS);
        assert_eq!(throughput.rate(1000 * MS, None), None);
    }
}
