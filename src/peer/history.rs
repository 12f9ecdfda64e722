//! What was sent lately, and whether it may be sent again.
//!
//! Answering every NACK at once multiplies the traffic on a link that is too slow for the stream: the repeats are lost as
//! well and asked for again. So nothing is repeated while its last repeat may still be on its way, and repeats as a whole
//! have a budget.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::stream::StreamPacket;

/// Older packets are of no use to a live picture.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Packets and bytes kept at most: one second of 10 Mbit/s. The bytes are the same for all viewers.
const KEPT_PACKETS: usize = 1024;
const KEPT_BYTES: usize = 1_250_000;
/// Of each byte sent, this part may be sent again: enough for 20 % loss, lost repeats included.
const REPEAT_SHARE: f64 = 0.25;
/// Savings of repeats in bytes: a large keyframe lost whole.
const REPEAT_SAVINGS: f64 = 150_000.0;
/// A viewer asks again no sooner than this, however near it is.
const LEAST_ROUND_TRIP: Duration = Duration::from_millis(20);
/// Until the first report comes, a far viewer is assumed.
const ASSUMED_ROUND_TRIP: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Sent {
    packet: StreamPacket,
    sent_at: Instant,
    /// As the viewer's repair, not as a filler.
    is_repeated: bool,
    /// It is to be sent again, and waits for its turn.
    is_granted: bool,
}

/// What a NACK of one packet comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Granted,
    /// Its repeat may still arrive, or waits to be sent, or the budget is spent.
    Refused,
    /// It is not kept any more, or never was.
    Gone,
}

/// The packets of the last second, in the order of their sequence numbers.
#[derive(Debug)]
pub(super) struct History {
    sent: VecDeque<Sent>,
    bytes: usize,
    budget: f64,
    round_trip: Option<Duration>,
}

impl History {
    pub(super) fn new() -> Self {
        Self { sent: VecDeque::new(), bytes: 0, budget: REPEAT_SAVINGS / 2.0, round_trip: None }
    }

    /// Takes the next packet; its sequence number must follow the last one's.
    pub(super) fn push(&mut self, packet: StreamPacket, now: Instant) {
        self.bytes += packet.payload.len();
        while let Some(first) = self.sent.front()
            && (self.sent.len() >= KEPT_PACKETS
                || self.bytes > KEPT_BYTES
                || now.saturating_duration_since(first.sent_at) > KEPT_FOR)
        {
            self.bytes -= first.packet.payload.len();
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { packet, sent_at: now, is_repeated: false, is_granted: false });
    }

    /// So many bytes of the stream went by, sent or not.
    pub(super) fn earn(&mut self, bytes: usize) {
        self.budget = (self.budget + bytes as f64 * REPEAT_SHARE).min(REPEAT_SAVINGS);
    }

    /// A measured round trip (RFC 3550, section 6.4.1), smoothed as RFC 6298, section 2.3 does.
    pub(super) fn measured(&mut self, round_trip: Duration) {
        self.round_trip = Some(self.round_trip.map_or(round_trip, |before| (before * 7 + round_trip) / 8));
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Decides about a NACK. What is granted is to be taken with [`Self::repeat`] when it may leave.
    pub(super) fn ask(&mut self, sequence_number: u16, now: Instant) -> Verdict {
        let round_trip = self.round_trip.unwrap_or(ASSUMED_ROUND_TRIP).max(LEAST_ROUND_TRIP);
        let budget = self.budget;
        let Some(sent) = self.find(sequence_number) else { return Verdict::Gone };
        // What came after it shows a viewer that it is lost, a round trip after it left and hardly later than the round trip was
        // measured to be; who is refused then asks again only after a while. Of a repeat, only time tells that it is lost.
        let hold = if sent.is_repeated { round_trip * 7 / 8 } else { round_trip / 2 };
        let cost = sent.packet.payload.len() as f64;
        if sent.is_granted || now.saturating_duration_since(sent.sent_at) < hold || budget < cost {
            return Verdict::Refused;
        }
        sent.is_granted = true;
        self.budget -= cost;
        Verdict::Granted
    }

    /// A packet that was granted, to leave now; `None`: it grew too old while it waited.
    pub(super) fn repeat(&mut self, sequence_number: u16, now: Instant) -> Option<StreamPacket> {
        let sent = self.find(sequence_number).filter(|sent| sent.is_granted)?;
        (sent.is_granted, sent.is_repeated) = (false, true);
        sent.sent_at = now;
        Some(sent.packet.clone())
    }

    /// The packet so far back from the newest, counted in rounds over what is kept: to be sent again for its size alone.
    pub(super) fn filler(&mut self, back: usize, now: Instant) -> Option<StreamPacket> {
        let last = self.sent.len().checked_sub(1)?;
        let sent = self.sent.get_mut(last - back % (last + 1))?;
        sent.sent_at = now;
        Some(sent.packet.clone())
    }

    fn find(&mut self, sequence_number: u16) -> Option<&mut Sent> {
        let first = self.sent.front()?.packet.sequence_number;
        self.sent.get_mut(usize::from(sequence_number.wrapping_sub(first)))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn packet(sequence_number: u16) -> StreamPacket {
        StreamPacket {
            sequence_number,
            timestamp: 0,
            marker: false,
            playout_delay: None,
            number: None,
            payload: Bytes::from_static(&[0; 1000]),
        }
    }

    fn history(first: u16, packets: u16, now: Instant) -> History {
        let mut history = History::new();
        for at in 0..packets {
            history.push(packet(first.wrapping_add(at)), now);
        }
        history
    }

    fn answer(history: &mut History, sequence_number: u16, now: Instant) -> Verdict {
        let verdict = history.ask(sequence_number, now);
        let repeated = history.repeat(sequence_number, now).map(|packet| packet.sequence_number);
        assert_eq!(repeated, (verdict == Verdict::Granted).then_some(sequence_number));
        verdict
    }

    #[test]
    fn a_lost_packet_is_repeated_across_the_wrap_of_sequence_numbers() {
        let now = Instant::now();
        let mut history = history(65530, 20, now);
        assert_eq!(answer(&mut history, 3, now + 200 * MS), Verdict::Granted);
        assert_eq!(answer(&mut history, 65529, now + 200 * MS), Verdict::Gone);
        assert_eq!(answer(&mut history, 14, now + 200 * MS), Verdict::Gone);
    }

    #[test]
    fn the_same_packet_is_not_repeated_twice_within_a_round_trip() {
        let now = Instant::now();
        let mut history = history(0, 1, now);
        assert_eq!(answer(&mut history, 0, now + 100 * MS), Verdict::Granted);
        assert_eq!(answer(&mut history, 0, now + 187 * MS), Verdict::Refused);
        assert_eq!(answer(&mut history, 0, now + 188 * MS), Verdict::Granted);
        assert_eq!(answer(&mut history, 0, now + 275 * MS), Verdict::Refused);
    }

    #[test]
    fn who_asks_for_the_first_time_is_not_refused_because_the_round_trip_was_shorter_than_usual() {
        let now = Instant::now();
        let mut history = history(0, 1, now);
        history.measured(60 * MS);
        assert_eq!(answer(&mut history, 0, now + 29 * MS), Verdict::Refused);
        assert_eq!(answer(&mut history, 0, now + 50 * MS), Verdict::Granted);
    }

    #[test]
    fn what_waits_for_its_turn_is_not_granted_again_and_the_round_trip_begins_when_it_leaves() {
        let now = Instant::now();
        let mut history = history(0, 1, now);
        assert_eq!(history.ask(0, now + 100 * MS), Verdict::Granted);
        assert_eq!(history.ask(0, now + 300 * MS), Verdict::Refused);
        history.repeat(0, now + 300 * MS).unwrap();
        assert_eq!(history.ask(0, now + 387 * MS), Verdict::Refused);
        assert_eq!(history.ask(0, now + 388 * MS), Verdict::Granted);
    }

    #[test]
    fn a_near_viewer_is_answered_sooner() {
        let now = Instant::now();
        let mut history = history(0, 1, now);
        history.measured(MS);
        assert_eq!(answer(&mut history, 0, now + 20 * MS), Verdict::Granted);
    }

    #[test]
    fn old_packets_are_forgotten() {
        let now = Instant::now();
        let mut history = history(0, 10, now);
        history.push(packet(10), now + 1001 * MS);
        assert_eq!(answer(&mut history, 9, now + 1001 * MS), Verdict::Gone);
    }

    #[test]
    fn neither_many_packets_nor_large_ones_make_it_grow() {
        let now = Instant::now();
        let mut history = history(0, 5000, now);
        assert_eq!(history.sent.len(), KEPT_PACKETS);
        for at in 0..5000 {
            let payload = Bytes::from_static(&[0; 10_000]);
            history.push(StreamPacket { payload, ..packet(5000 + at) }, now);
            assert!(history.bytes <= KEPT_BYTES + 10_000);
        }
        assert_eq!(history.sent.len(), KEPT_BYTES / 10_000);
    }

    #[test]
    fn fillers_are_the_newest_packets_in_rounds() {
        let now = Instant::now();
        let mut history = history(7, 3, now);
        let mut filler = |back| history.filler(back, now).map(|packet| packet.sequence_number);
        assert_eq!([filler(0), filler(1), filler(2), filler(3)], [Some(9), Some(8), Some(7), Some(9)]);
        assert!(History::new().filler(0, now).is_none());
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
                if answer(&mut history, next.wrapping_sub(back), now) == Verdict::Granted {
                    repeated += 1000.0;
                }
                next = next.wrapping_add(1);
            }
            prop_assert!(repeated <= sent * REPEAT_SHARE + REPEAT_SAVINGS);
        }
    }
}
