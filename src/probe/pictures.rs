//! Packets in, whole pictures out (RFC 6184). Pure: no clock, no network.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

/// One received H.264 packet, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Packet {
    pub sequence: u16,
    pub timestamp: u32,
    pub marker: bool,
    pub payload: Bytes,
}

/// One picture of which every packet arrived.
#[derive(Clone, Debug)]
pub struct Picture {
    pub timestamp: u32,
    /// An IDR picture with its parameter sets: a decoder can begin here.
    pub is_keyframe: bool,
    /// The RTP payloads, in order.
    pub payloads: Vec<Bytes>,
}

impl Picture {
    pub fn size(&self) -> usize {
        self.payloads.iter().map(Bytes::len).sum()
    }

    /// The picture as a decoder wants it: NAL units behind start codes (ITU-T H.264, annex B).
    pub fn annex_b(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.size() + 64);
        for payload in &self.payloads {
            match payload_kind(payload) {
                Payload::Single(_) => put_nal(&mut out, payload),
                Payload::Aggregate => aggregated(payload).for_each(|nal| put_nal(&mut out, nal)),
                Payload::FragmentStart(_) => {
                    put_nal(&mut out, &[payload[0] & 0xe0 | payload[1] & 0x1f]);
                    out.extend_from_slice(&payload[2..]);
                }
                Payload::Fragment => out.extend_from_slice(&payload[2..]),
                Payload::Empty => {}
            }
        }
        out.freeze()
    }
}

/// Puts pictures together from packets that may come late, twice or never.
#[derive(Debug, Default)]
pub struct Pictures {
    /// The newest packets by sequence number, which is unwrapped to 64 bits.
    held: BTreeMap<u64, Held>,
    oldest: u64,
    newest: u64,
    counts: Counts,
}

/// What came and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub packets: u64,
    /// RTP payload bytes.
    pub bytes: u64,
    /// Packets that came after a later one: reordered, or sent again.
    pub late: u64,
    /// Packets that never came.
    pub lost: u64,
    pub pictures: u64,
    pub keyframes: u64,
}

/// Enough for a second of a fast stream; a packet later than that is of no use to anybody.
const HELD: u64 = 2048;

#[derive(Debug)]
struct Held {
    packet: Packet,
    /// Set on the last packet of a picture that was given out.
    given: bool,
}

impl Pictures {
    pub fn counts(&self) -> Counts {
        let expected = if self.counts.packets == 0 { 0 } else { self.newest - self.oldest + 1 };
        Counts { lost: expected - self.counts.packets, ..self.counts }
    }

    /// Takes one packet; gives the picture it completes.
    pub fn push(&mut self, packet: Packet) -> Option<Picture> {
        let sequence = self.unwrap_sequence(packet.sequence);
        if self.counts.packets > 0 && sequence + HELD < self.newest || self.held.contains_key(&sequence) {
            return None;
        }
        self.counts.packets += 1;
        self.counts.bytes += packet.payload.len() as u64;
        let in_order = sequence > self.newest;
        if in_order {
            self.newest = sequence;
        } else if self.counts.packets > 1 {
            self.counts.late += 1;
        }
        self.oldest = if self.counts.packets == 1 { sequence } else { self.oldest.min(sequence) };
        let may_complete = packet.marker || !in_order;
        self.held.insert(sequence, Held { packet, given: false });
        while self.held.first_key_value().is_some_and(|(&first, _)| first + HELD < self.newest) {
            self.held.pop_first();
        }
        if may_complete { self.complete(sequence) } else { None }
    }

    fn unwrap_sequence(&self, sequence: u16) -> u64 {
        if self.counts.packets == 0 {
            // Leaves room below, for packets older than the first one that came.
            return u64::from(sequence) + 0x1_0000;
        }
        let step = sequence.wrapping_sub(self.newest as u16) as i16;
        self.newest.saturating_add_signed(i64::from(step))
    }

    fn complete(&mut self, within: u64) -> Option<Picture> {
        let timestamp = self.held.get(&within)?.packet.timestamp;
        let same_picture = |sequence: u64| self.held.get(&sequence).filter(|held| held.packet.timestamp == timestamp);
        let mut last = within;
        while !same_picture(last)?.packet.marker {
            last += 1;
        }
        let mut first = within;
        while same_picture(first - 1).is_some() {
            first -= 1;
        }
        if same_picture(last)?.given {
            return None;
        }
        // With the packet before unknown, only the payload can say whether the picture begins here.
        if !self.held.contains_key(&(first - 1)) && !begins_picture(&self.held.get(&first)?.packet.payload) {
            return None;
        }
        let payloads: Vec<Bytes> = self.held.range(first..=last).map(|(_, held)| held.packet.payload.clone()).collect();
        let nal_types = || payloads.iter().flat_map(nal_types);
        let is_keyframe = nal_types().any(|kind| kind == IDR) && nal_types().any(|kind| kind == SPS);
        self.counts.pictures += 1;
        self.counts.keyframes += u64::from(is_keyframe);
        self.held.get_mut(&last)?.given = true;
        Some(Picture { timestamp, is_keyframe, payloads })
    }
}

/// NAL unit types (ITU-T H.264, table 7-1).
const SLICE: u8 = 1;
const IDR: u8 = 5;
const SPS: u8 = 7;
const AUD: u8 = 9;

/// Packet types (RFC 6184, section 5.2) edgecam sends: one NAL unit, several (STAP-A), or a piece of one (FU-A).
enum Payload {
    Single(u8),
    Aggregate,
    FragmentStart(u8),
    Fragment,
    Empty,
}

fn payload_kind(payload: &[u8]) -> Payload {
    match payload {
        [] | [_] => Payload::Empty,
        [first, ..] if first & 0x1f == 24 => Payload::Aggregate,
        [first, header, ..] if first & 0x1f == 28 && header & 0x80 != 0 => Payload::FragmentStart(header & 0x1f),
        [first, ..] if first & 0x1f == 28 => Payload::Fragment,
        [first, ..] => Payload::Single(first & 0x1f),
    }
}

fn nal_types(payload: &Bytes) -> Vec<u8> {
    match payload_kind(payload) {
        Payload::Single(kind) | Payload::FragmentStart(kind) => vec![kind],
        Payload::Aggregate => aggregated(payload).filter_map(|nal| Some(nal.first()? & 0x1f)).collect(),
        Payload::Fragment | Payload::Empty => vec![],
    }
}

/// The NAL units of a STAP-A (RFC 6184, section 5.7.1); a length that points outside ends it.
fn aggregated(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = &payload[1..];
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (nal, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        rest = after;
        Some(nal)
    })
}

/// Whether no packet of the same picture can stand before this one.
fn begins_picture(payload: &Bytes) -> bool {
    // A slice begins a picture when its first_mb_in_slice is 0, which Exp-Golomb writes as a single 1 bit.
    // For an IDR slice that is not enough: its parameter sets stand before it.
    match payload_kind(payload) {
        Payload::Single(SPS | AUD) => true,
        Payload::Single(SLICE) => payload[1] & 0x80 != 0,
        Payload::FragmentStart(SLICE) => payload.get(2).is_some_and(|byte| byte & 0x80 != 0),
        Payload::Aggregate => {
            aggregated(payload).next().is_some_and(|nal| nal.first().is_some_and(|b| matches!(b & 0x1f, SPS | AUD)))
        }
        _ => false,
    }
}

fn put_nal(out: &mut BytesMut, nal: &[u8]) {
    out.put_u32(1);
    out.extend_from_slice(nal);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETER_SETS: &[u8] = &[0x78, 0, 2, 0x67, 1, 0, 2, 0x68, 2];
    const IDR_START: &[u8] = &[0x7c, 0x85, 0x88, 1];
    const IDR_END: &[u8] = &[0x7c, 0x45, 2];
    const DELTA: &[u8] = &[0x41, 0x9a, 3];
    const DELTA_SECOND_SLICE: &[u8] = &[0x41, 0x02, 4];

    fn packet(sequence: u16, timestamp: u32, marker: bool, payload: &'static [u8]) -> Packet {
        Packet { sequence, timestamp, marker, payload: Bytes::from_static(payload) }
    }

    /// A keyframe of three packets, then deltas of one, across the wrap of the sequence number.
    fn stream() -> Vec<Packet> {
        vec![
            packet(65534, 0, false, PARAMETER_SETS),
            packet(65535, 0, false, IDR_START),
            packet(0, 0, true, IDR_END),
            packet(1, 3000, true, DELTA),
            packet(2, 6000, true, DELTA),
        ]
    }

    fn keyframes_and_pictures(packets: impl IntoIterator<Item = Packet>) -> (u64, u64, Counts) {
        let mut pictures = Pictures::default();
        packets.into_iter().for_each(|packet| drop(pictures.push(packet)));
        (pictures.counts().keyframes, pictures.counts().pictures, pictures.counts())
    }

    #[test]
    fn pictures_in_order_come_out_as_annex_b() {
        let mut pictures = Pictures::default();
        let out: Vec<_> = stream().into_iter().filter_map(|packet| pictures.push(packet)).collect();
        assert_eq!(out.iter().map(|picture| picture.is_keyframe).collect::<Vec<_>>(), [true, false, false]);
        let keyframe: &[u8] = &[0, 0, 0, 1, 0x67, 1, 0, 0, 0, 1, 0x68, 2, 0, 0, 0, 1, 0x65, 0x88, 1, 2];
        assert_eq!(out[0].annex_b(), keyframe);
        assert_eq!(pictures.counts().lost, 0);
    }

    #[test]
    fn every_order_of_arrival_gives_every_picture_once() {
        let mut order = stream();
        // Heap's algorithm over five packets: 120 orders.
        let mut swaps = [0; 5];
        let mut at = 0;
        while at < 5 {
            if swaps[at] < at {
                order.swap(if at % 2 == 0 { 0 } else { swaps[at] }, at);
                let twice = order.iter().chain(&order).cloned();
                let (keyframes, pictures, counts) = keyframes_and_pictures(twice);
                assert_eq!((keyframes, pictures, counts.lost, counts.packets), (1, 3, 0, 5), "{order:?}");
                swaps[at] += 1;
                at = 0;
            } else {
                swaps[at] = 0;
                at += 1;
            }
        }
    }

    #[test]
    fn a_picture_with_a_hole_is_not_a_picture() {
        for lost in 0..3 {
            let mut packets = stream();
            packets.remove(lost);
            let (keyframes, pictures, _) = keyframes_and_pictures(packets);
            assert_eq!((keyframes, pictures), (0, 2), "packet {lost} was lost");
        }
    }

    #[test]
    fn a_second_slice_alone_is_not_a_picture() {
        let packets = [
            packet(1, 0, true, DELTA),
            // 2, the first slice, is lost.
            packet(3, 3000, true, DELTA_SECOND_SLICE),
            packet(4, 6000, false, DELTA),
            packet(5, 6000, true, DELTA_SECOND_SLICE),
        ];
        let (_, pictures, counts) = keyframes_and_pictures(packets);
        assert_eq!((pictures, counts.lost), (2, 1));
    }

    #[test]
    fn an_aggregate_that_lies_about_its_lengths_is_cut_short() {
        let lies = Bytes::from_static(&[0x78, 0, 2, 0x67, 1, 0xff, 0xff, 0x68]);
        assert_eq!(nal_types(&lies), [SPS]);
        assert!(nal_types(&Bytes::from_static(&[0x78, 0])).is_empty());
    }

    #[test]
    fn old_packets_are_let_go() {
        let mut pictures = Pictures::default();
        for n in 0..10_000_u32 {
            pictures.push(packet(n as u16, n * 3000, true, DELTA));
        }
        assert!(pictures.held.len() as u64 <= HELD + 1);
        assert_eq!(pictures.counts().pictures, 10_000);
    }
}
