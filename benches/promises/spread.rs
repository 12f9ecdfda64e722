//! How long a sender takes from a picture's first packet, whoever gets it, to its last packet for each viewer.
//!
//! Needs nothing of the sender, so it is the same measure for every server. Each viewer's RTP clock has its own random
//! start; equal payloads tell which picture is which.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;

use crate::viewer::Stamp;

#[derive(Default)]
pub(crate) struct Spread {
    /// The newest pictures: the hash of the payload, and the time on the first viewer's clock. No more than a second of
    /// them, since test pictures repeat themselves.
    known: VecDeque<(u64, u32)>,
    /// Pictures on their way, by time on the first viewer's clock.
    open: BTreeMap<u32, Times>,
    /// Microseconds, one for each viewer and picture.
    delays: Vec<u32>,
}

#[derive(Default)]
struct Times {
    first: Option<Stamp>,
    last: Vec<Stamp>,
}

const KNOWN: usize = 30;

/// Pictures in the making at one time; older ones are closed.
const OPEN: usize = 64;

impl Spread {
    /// Learns from a whole picture; gives the viewer's clock against the first viewer's as far as it is known now.
    pub(crate) fn align(&mut self, last_payload: &Bytes, timestamp: u32, clock: Option<u32>) -> Option<u32> {
        let mut hasher = DefaultHasher::new();
        last_payload.hash(&mut hasher);
        let hash = hasher.finish();
        let same = self.known.iter().rev().find(|(known, _)| *known == hash).map(|&(_, time)| time);
        let clock = match (clock, same) {
            (Some(clock), _) => clock,
            (None, Some(time)) => timestamp.wrapping_sub(time),
            (None, None) if self.known.is_empty() => timestamp,
            (None, None) => return None,
        };
        if same.is_none() {
            self.known.push_back((hash, timestamp.wrapping_sub(clock)));
            if self.known.len() > KNOWN {
                self.known.pop_front();
            }
        }
        Some(clock)
    }

    /// Takes the header of one packet: the picture's time on the first viewer's clock, and when it arrived.
    pub(crate) fn packet(&mut self, time: u32, is_last: bool, at: Stamp) {
        let times = self.open.entry(time).or_default();
        times.first = Some(times.first.map_or(at, |first| first.min(at)));
        if is_last {
            times.last.push(at);
        }
        if self.open.len() > OPEN {
            self.close_oldest();
        }
    }

    /// Forgets what was measured so far.
    pub(crate) fn mark(&mut self) {
        self.open.clear();
        self.delays.clear();
    }

    /// The delays since the mark, in microseconds, ascending.
    pub(crate) fn take(&mut self) -> Vec<u32> {
        while !self.open.is_empty() {
            self.close_oldest();
        }
        let mut delays = std::mem::take(&mut self.delays);
        delays.sort_unstable();
        delays
    }

    fn close_oldest(&mut self) {
        let Some((_, Times { first: Some(first), last })) = self.open.pop_first() else { return };
        // A picture of which only the end was seen since the mark looks faster than it was; there is one such at most.
        self.delays.extend(last.into_iter().map(|at| (at.saturating_sub(first) / 1000) as u32));
    }
}
