//! When the next packet may leave, so that a large picture does not fill the network's queue.
//!
//! A debt in time (the generic cell rate algorithm, ITU-T I.371): each packet costs what it takes at the rate, and the
//! next may leave as soon as all is paid. Rest is saved up to a window, so that an ordinary picture on an ample network
//! leaves in one go, in one system call.

use std::time::{Duration, Instant};

use super::super::access_unit::Bitrate;

/// What rest saves, in time at the rate. Less would cut ordinary pictures into several system calls; more would be felt as
/// delay by whoever shares a slow link.
const BURST: Duration = Duration::from_millis(20);

/// One viewer's.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    kbps: u32,
    /// When the packets sent so far are paid for.
    paid_at: Instant,
}

impl Pacer {
    /// One that holds nothing back until a rate is set.
    pub fn new(now: Instant) -> Self {
        Self { kbps: u32::MAX, paid_at: now }
    }

    /// Holds for packets sent from now on.
    pub fn set_rate(&mut self, rate: Bitrate) {
        self.kbps = rate.kbps().max(1);
    }

    /// Whether a packet may leave; it may cost more than is left, and the next ones wait for it.
    pub fn may_send(&self, now: Instant) -> bool {
        self.paid_at <= now
    }

    /// A packet left, allowed or not.
    pub fn handle_sent(&mut self, bytes: usize, now: Instant) {
        let rested_since = now.checked_sub(BURST).unwrap_or(now);
        self.paid_at = self.paid_at.max(rested_since) + self.cost(bytes);
    }

    /// When `may_send` becomes true; `now` where it is.
    pub fn ready_at(&self, now: Instant) -> Instant {
        self.paid_at.max(now)
    }

    fn cost(&self, bytes: usize) -> Duration {
        // A bit at 1 kbit/s lasts a million nanoseconds.
        Duration::from_nanos((bytes as u64).saturating_mul(8_000_000) / u64::from(self.kbps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pacer(kbps: u32, now: Instant) -> Pacer {
        let mut pacer = Pacer::new(now);
        pacer.set_rate(Bitrate::from_kbps(kbps));
        pacer
    }

    /// How many packets of 1,250 bytes leave at this moment.
    fn leave(pacer: &mut Pacer, now: Instant) -> usize {
        let mut packets = 0;
        while pacer.may_send(now) {
            pacer.handle_sent(1250, now);
            packets += 1;
        }
        packets
    }

    #[test]
    fn after_a_rest_of_any_length_one_window_leaves_at_once() {
        let now = Instant::now();
        let mut pacer = pacer(5000, now);
        assert_eq!(leave(&mut pacer, now + 10_000 * MS), 11, "20 ms of 2 ms each, and one that overdraws");
    }

    #[test]
    fn a_long_queue_leaves_at_the_rate() {
        let start = Instant::now();
        let mut pacer = pacer(1000, start);
        let (mut now, mut packets) = (start, 0);
        while now - start < 1000 * MS {
            packets += leave(&mut pacer, now);
            now = pacer.ready_at(now);
        }
        assert!((100..=101).contains(&packets), "{packets} packets of 10 ms in a second");
    }

    #[test]
    fn it_is_ready_exactly_when_it_says() {
        let mut now = Instant::now();
        let mut pacer = pacer(777, now);
        for bytes in [1, 40, 1200, 1500, 65_000] {
            pacer.handle_sent(bytes, now);
            let ready = pacer.ready_at(now);
            if ready > now {
                assert!(!pacer.may_send(ready - Duration::from_nanos(1)));
            }
            assert!(pacer.may_send(ready));
            now = ready;
        }
    }

    #[test]
    fn nothing_is_held_back_before_a_rate_is_known_and_no_rate_stops_it_for_good() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        for _ in 0..10_000 {
            assert!(pacer.may_send(now + 20 * MS));
            pacer.handle_sent(1200, now + 20 * MS);
        }
        pacer.set_rate(Bitrate::from_kbps(0));
        pacer.handle_sent(1200, now);
        assert!(pacer.may_send(now + 10_000 * MS));
    }
}
