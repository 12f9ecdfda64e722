//! What was sent lately, and whether it may be sent again.
//!
//! Answering every NACK at once multiplies the traffic on a link that is too slow for the stream: the repeats are lost as
//! well and asked for again. So a packet is not repeated within a round trip, and repeats as a whole have a budget.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rtc::rtp::Packet;

/// Older packets are of no use to a live picture.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Packets kept at most: one second of 10 Mbit/s.
const KEPT_PACKETS: usize = 1024;
/// Of each byte sent, this part may be sent again: enough for 20 % loss, lost repeats included.
const REPEAT_SHARE: f64 = 0.25;
/// Savings of repeats in bytes: a large keyframe lost whole.
const REPEAT_SAVINGS: f64 = 150_000.0;
/// A viewer asks again no sooner than this, however near it is.
const LEAST_ROUND_TRIP: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Sent {
    packet: Packet,
    sent_at: Instant,
}

/// What a NACK of one packet comes to.
#[derive(Debug)]
pub(super) enum Repeat {
    Send(Packet),
    /// It was sent less than a round trip ago, or the budget is spent.
    Refused,
    /// It is not kept any more, or never was.
    Gone,
}

/// The packets of the last second, in the order of their sequence numbers.
#[derive(Debug)]
pub(super) struct History {
    sent: VecDeque<Sent>,
    budget: f64,
    round_trip: Duration,
}

impl History {
    pub(super) fn new() -> Self {
        // Until the first report comes, a far viewer is assumed.
        Self { sent: VecDeque::new(), budget: REPEAT_SAVINGS / 2.0, round_trip: Duration::from_millis(100) }
    }

    /// Takes the next packet; its sequence number must follow the last one's.
    pub(super) fn push(&mut self, packet: Packet, now: Instant) {
        while self.sent.front().is_some_and(|first| {
            self.sent.len() >= KEPT_PACKETS || now.saturating_duration_since(first.sent_at) > KEPT_FOR
        }) {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { packet, sent_at: now });
    }

    /// So many bytes of the stream went by, sent or not.
    pub(super) fn earn(&mut self, bytes: usize) {
        self.budget = (self.budget + bytes as f64 * REPEAT_SHARE).min(REPEAT_SAVINGS);
    }

    /// A measured round trip (RFC 3550, section 6.4.1), smoothed as RFC 6298, section 2.3 does.
    pub(super) fn measured(&mut self, round_trip: Duration) {
        self.round_trip = (self.round_trip * 7 + round_trip) / 8;
    }

    pub(super) fn repeat(&mut self, sequence_number: u16, now: Instant) -> Repeat {
        let Some(first) = self.sent.front() else { return Repeat::Gone };
        let index = usize::from(sequence_number.wrapping_sub(first.packet.header.sequence_number));
        let hold = self.round_trip.max(LEAST_ROUND_TRIP);
        let Some(Sent { packet, sent_at }) = self.sent.get_mut(index) else { return Repeat::Gone };
        let cost = packet.payload.len() as f64;
        if now.saturating_duration_since(*sent_at) < hold || self.budget < cost {
            return Repeat::Refused;
        }
        self.budget -= cost;
        *sent_at = now;
        Repeat::Send(packet.clone())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use rtc::rtp::Header;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn packet(sequence_number: u16) -> Packet {
        Packet { header: Header { sequence_number, ..Default::default() }, payload: Bytes::from_static(&[0; 1000]) }
    }

    fn history(first: u16, packets: u16, now: Instant) -> History {
        let mut history = History::new();
        for at in 0..packets {
            history.push(packet(first.wrapping_add(at)), now);
        }
        history
    }

    #[test]
    fn a_lost_packet_is_repeated_across_the_wrap_of_sequence_numbers() {
        let now = Instant::now();
        let mut history = history(65530, 20, now);
        let Repeat::Send(packet) = history.repeat(3, now + 200 * MS) else { panic!("not sent") };
        assert_eq!(packet.header.sequence_number, 3);
        assert!(matches!(history.repeat(65529, now + 200 * MS), Repeat::Gone));
        assert!(matches!(history.repeat(14, now + 200 * MS), Repeat::Gone));
    }

    #[test]
    fn the_same_packet_is_not_sent_twice_within_a_round_trip() {
        let now = Instant::now();
        let mut history = history(0, 1, now);
        assert!(matches!(history.repeat(0, now + 99 * MS), Repeat::Refused));
        assert!(matches!(history.repeat(0, now + 100 * MS), Repeat::Send(_)));
        assert!(matches!(history.repeat(0, now + 199 * MS), Repeat::Refused));
        assert!(matches!(history.repeat(0, now + 200 * MS), Repeat::Send(_)));
    }

    #[test]
    fn a_near_viewer_is_answered_sooner() {
        let now = Instant::now();
        let mut history = history(0, 1, now);
        for _ in 0..100 {
            history.measured(MS);
        }
        assert!(matches!(history.repeat(0, now + 20 * MS), Repeat::Send(_)));
    }

    #[test]
    fn old_packets_are_forgotten() {
        let now = Instant::now();
        let mut history = history(0, 10, now);
        history.push(packet(10), now + 1001 * MS);
        assert!(matches!(history.repeat(9, now + 1001 * MS), Repeat::Gone));
    }

    proptest! {
        /// Whatever is asked for, and however often: repeats stay within their share of what was sent.
        #[test]
        fn repeats_never_exceed_their_budget(asks in proptest::collection::vec((0u16..400, 0u32..60), 0..800)) {
            let mut now = Instant::now();
            let mut history = History::new();
            let (mut sent, mut repeated, mut next) = (0.0, 0.0, 0u16);
            for (back, wait) in asks {
                now += MS * wait;
                history.push(packet(next), now);
                history.earn(1000);
                sent += 1000.0;
                if let Repeat::Send(packet) = history.repeat(next.wrapping_sub(back), now) {
                    repeated += packet.payload.len() as f64;
                }
                next = next.wrapping_add(1);
            }
            prop_assert!(repeated <= sent * REPEAT_SHARE + REPEAT_SAVINGS);
        }
    }
}
