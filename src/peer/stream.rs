//! How one viewer's packets are numbered, timed and marked.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rtc::rtcp::sender_report::SenderReport;
use rtc::rtp;
use rtc::rtp::header::{EXTENSION_PROFILE_ONE_BYTE, Extension, Header};

use super::sdp::VideoOffer;
use super::transport_wide;
use crate::core::playout;

const SENDER_REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// <http://www.webrtc.org/experiments/rtp-hdrext/playout-delay>
pub(super) const PLAYOUT_DELAY_URI: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";

pub(super) struct Stream {
    pub(super) ssrc: u32,
    payload_type: u8,
    next_sequence_number: u16,
    timestamp_offset: u32,
    epoch: Instant,
    /// Where the clock of the stream stands, in ticks since the epoch.
    last_tick: Option<u64>,
    rtx: Option<Rtx>,
    /// The extensions' numbers where the viewer knows them (RFC 8285).
    pub(super) playout_delay_id: Option<u8>,
    pub(super) transport_wide_id: Option<u8>,
    next_report_at: Option<Instant>,
    packets: u32,
    octets: u32,
}

/// The stream of repeats (RFC 4588, section 4).
struct Rtx {
    ssrc: u32,
    payload_type: u8,
    next_sequence_number: u16,
}

/// What tells a packet of the stream from all others: enough to make it once more, to the bit.
#[derive(Clone, Debug)]
pub(super) struct StreamPacket {
    pub(super) sequence_number: u16,
    pub(super) timestamp: u32,
    pub(super) marker: bool,
    /// How long the viewer is to hold its picture back, where that is said.
    pub(super) playout_delay: Option<Duration>,
    /// Its transport-wide number, where the viewer reports on them.
    pub(super) number: Option<u64>,
    pub(super) payload: Bytes,
}

impl Stream {
    pub(super) fn new(video: &VideoOffer, epoch: Instant) -> Self {
        let rtx = video.rtx_payload_type.map(|payload_type| Rtx {
            ssrc: rand::random(),
            payload_type,
            next_sequence_number: rand::random(),
        });
        Self {
            ssrc: rand::random(),
            payload_type: video.payload_type,
            next_sequence_number: rand::random(),
            timestamp_offset: rand::random(),
            epoch,
            last_tick: None,
            rtx,
            playout_delay_id: None,
            transport_wide_id: None,
            next_report_at: None,
            packets: 0,
            octets: 0,
        }
    }

    pub(super) fn rtx_ssrc(&self) -> Option<u32> {
        self.rtx.as_ref().map(|rtx| rtx.ssrc)
    }

    /// Of the newest packet, if there is one.
    pub(super) fn last_sequence_number(&self) -> Option<u16> {
        (self.packets > 0).then(|| self.next_sequence_number.wrapping_sub(1))
    }

    /// The time of the next picture in ticks of 90 kHz, the RTP clock of video (RFC 6184, section 8.2.1), modulo 2^32. It always
    /// goes on: one of the other rendition may have been taken a little earlier than the last.
    pub(super) fn timestamp(&mut self, captured_at: Instant) -> u32 {
        let tick = captured_at.saturating_duration_since(self.epoch).as_nanos() * 9 / 100_000;
        let tick = (tick as u64).max(self.last_tick.map_or(0, |last| last + 1));
        self.last_tick = Some(tick);
        self.timestamp_offset.wrapping_add(tick as u32)
    }

    /// The stream's next packet.
    pub(super) fn next_packet(
        &mut self,
        timestamp: u32,
        marker: bool,
        playout_delay: Option<Duration>,
        payload: Bytes,
        number: Option<u64>,
    ) -> StreamPacket {
        let sequence_number = self.next_sequence_number;
        self.next_sequence_number = sequence_number.wrapping_add(1);
        self.packets = self.packets.wrapping_add(1);
        self.octets = self.octets.wrapping_add(payload.len() as u32);
        StreamPacket { sequence_number, timestamp, marker, playout_delay, number, payload }
    }

    /// As it goes out, and without a stream for repeats goes out again: to the bit as it was, since SRTP must not encrypt two
    /// things under one number (RFC 3711, section 9.1).
    pub(super) fn packet(&self, packet: &StreamPacket) -> rtp::Packet {
        let &StreamPacket { sequence_number, timestamp, marker, .. } = packet;
        let mut header = Header {
            version: 2, // the type's default of 0 is thrown away by every receiver
            marker,
            payload_type: self.payload_type,
            sequence_number,
            timestamp,
            ssrc: self.ssrc,
            ..Default::default()
        };
        // Within a picture all packets are of one size, so that they leave in one call.
        let playout_delay = self.playout_delay_id.zip(packet.playout_delay.map(playout_delay_extension));
        extend(&mut header, playout_delay, self.numbered(packet.number));
        rtp::Packet { header, payload: packet.payload.clone() }
    }

    /// A packet sent before, in the stream of repeats, where the viewer takes one (RFC 4588, section 4).
    pub(super) fn repeat(&mut self, packet: &StreamPacket, number: Option<u64>) -> Option<rtp::Packet> {
        let numbered = self.numbered(number);
        let rtx = self.rtx.as_mut()?;
        let mut payload = BytesMut::with_capacity(2 + packet.payload.len());
        payload.extend_from_slice(&packet.sequence_number.to_be_bytes());
        payload.extend_from_slice(&packet.payload);
        let sequence_number = rtx.next_sequence_number;
        rtx.next_sequence_number = sequence_number.wrapping_add(1);
        let mut header = Header {
            version: 2,
            marker: packet.marker,
            payload_type: rtx.payload_type,
            sequence_number,
            timestamp: packet.timestamp,
            ssrc: rtx.ssrc,
            ..Default::default()
        };
        extend(&mut header, None, numbered);
        Some(rtp::Packet { header, payload: payload.freeze() })
    }

    fn numbered(&self, number: Option<u64>) -> Option<(u8, Bytes)> {
        Some((self.transport_wide_id?, transport_wide::extension(number?)))
    }

    /// A sender report when one is due (RFC 3550, section 6.4.1): the viewer's answer to it shows the round trip.
    pub(super) fn report(&mut self, timestamp: u32, now: Instant) -> Option<SenderReport> {
        if self.next_report_at.is_some_and(|at| now < at) {
            return None;
        }
        self.next_report_at = Some(now + SENDER_REPORT_INTERVAL);
        Some(SenderReport {
            ssrc: self.ssrc,
            ntp_time: self.ntp(now),
            rtp_time: timestamp,
            packet_count: self.packets,
            octet_count: self.octets,
            ..Default::default()
        })
    }

    /// The round trip that a report shows: now, less when its sender report left and how long the viewer held it.
    pub(super) fn round_trip(&self, last_sender_report: u32, delay: u32, now: Instant) -> Option<Duration> {
        const MINUTE: u32 = 60 << 16;
        let short_ntp = (self.ntp(now) >> 16) as u32; // its middle 32 bits, as reports quote it
        let round_trip = short_ntp.wrapping_sub(last_sender_report.wrapping_add(delay));
        // More than a minute is no round trip but a report on something else.
        (last_sender_report != 0 && round_trip < MINUTE)
            .then(|| Duration::from_micros((u64::from(round_trip) * 1_000_000) >> 16))
    }

    /// NTP format (RFC 3550, section 4) of the monotonic clock: its zero does not matter to a round trip.
    fn ntp(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.epoch) + Duration::from_secs(3600);
        let fraction = (u64::from(elapsed.subsec_nanos()) << 32) / 1_000_000_000;
        (elapsed.as_secs() << 32) | fraction
    }
}

/// Minimum and maximum are the same, in 12 bits each: a receiver that is given a minimum of 0 has no buffer at all (libwebrtc
/// then shows each picture at once), and one that is given a range takes longer to give back what it took.
fn playout_delay_extension(delay: Duration) -> Bytes {
    let steps = (delay.as_millis() / playout::STEP.as_millis()).min(0xfff) as u32;
    let [_, bytes @ ..] = (steps << 12 | steps).to_be_bytes();
    Bytes::copy_from_slice(&bytes)
}

/// Puts extensions into a header that has none; their numbers are 1 to 14 (RFC 8285, section 4.2).
fn extend(header: &mut Header, first: Option<(u8, Bytes)>, second: Option<(u8, Bytes)>) {
    if first.is_some() || second.is_some() {
        header.extension = true;
        header.extension_profile = EXTENSION_PROFILE_ONE_BYTE;
        header.extensions = first.into_iter().chain(second).map(|(id, payload)| Extension { id, payload }).collect();
    }
}

#[cfg(test)]
mod tests {
    use rtc::shared::marshal::Marshal;

    use super::*;

    fn stream(epoch: Instant) -> Stream {
        let video =
            VideoOffer { payload_type: 108, fmtp: String::new(), rtx_payload_type: Some(109), transport_cc: true };
        Stream::new(&video, epoch)
    }

    #[test]
    fn a_report_shows_the_round_trip_without_the_time_the_viewer_held_it() {
        let epoch = Instant::now();
        let mut stream = stream(epoch);
        let sent_at = epoch + Duration::from_secs(5);
        let report = stream.report(0, sent_at).unwrap();
        assert!(stream.report(0, sent_at + Duration::from_millis(999)).is_none());
        let quoted = (report.ntp_time >> 16) as u32;
        let held = 65536 / 2; // half a second
        let round_trip = stream.round_trip(quoted, held, sent_at + Duration::from_millis(580)).unwrap();
        assert!((79..=81).contains(&round_trip.as_millis()), "{round_trip:?}");
        assert_eq!(stream.round_trip(0, 0, sent_at), None);
        assert_eq!(stream.round_trip(quoted.wrapping_add(1 << 20), 0, sent_at), None);
    }

    fn packet(stream: &mut Stream, number: Option<u64>) -> StreamPacket {
        stream.next_packet(90, true, Some(Duration::ZERO), Bytes::from_static(b"picture"), number)
    }

    #[test]
    fn a_repeat_goes_by_its_own_stream_and_names_the_packet_it_stands_for() {
        let mut stream = stream(Instant::now());
        stream.transport_wide_id = Some(3);
        let packet = StreamPacket { sequence_number: 0x1234, ..packet(&mut stream, Some(7)) };
        let repeat = stream.repeat(&packet, Some(0x1_0102)).unwrap();
        assert_eq!(&repeat.payload[..], b"\x12\x34picture");
        assert_eq!((repeat.header.payload_type, repeat.header.timestamp, repeat.header.marker), (109, 90, true));
        assert_ne!(repeat.header.ssrc, stream.ssrc);
        assert_eq!(repeat.header.get_extension(3).unwrap()[..], [1, 2], "a number of its own");
    }

    #[test]
    fn without_a_stream_for_repeats_a_packet_goes_out_again_to_the_bit_as_it_was() {
        let mut stream = stream(Instant::now());
        (stream.rtx, stream.playout_delay_id, stream.transport_wide_id) = (None, Some(5), Some(3));
        let packet = packet(&mut stream, Some(9));
        assert!(stream.repeat(&packet, Some(10)).is_none());
        assert!(stream.packet(&packet).header.extension);
        assert_eq!(stream.packet(&packet), stream.packet(&packet));
    }

    #[test]
    fn the_playout_delay_is_said_as_a_minimum_and_a_maximum_of_twelve_bits() {
        assert_eq!(playout_delay_extension(Duration::ZERO)[..], [0, 0, 0]);
        assert_eq!(playout_delay_extension(Duration::from_millis(239))[..], [0x01, 0x70, 0x17]);
        assert_eq!(playout_delay_extension(Duration::MAX)[..], [0xff, 0xff, 0xff]);
    }

    #[test]
    fn the_packets_of_a_picture_are_of_one_size() {
        let mut stream = stream(Instant::now());
        (stream.playout_delay_id, stream.transport_wide_id) = (Some(5), Some(3));
        for delay in [None, Some(Duration::ZERO), Some(Duration::from_millis(400))] {
            let mut sizes = (0..300).map(|number| {
                let packet = stream.next_packet(90, number == 299, delay, Bytes::from_static(b"x"), Some(number));
                stream.packet(&packet).marshal().unwrap().len()
            });
            let first = sizes.next().unwrap();
            assert!(sizes.all(|size| size == first));
        }
    }

    #[test]
    fn the_clock_goes_on_even_when_a_picture_was_taken_before_the_last_one() {
        let epoch = Instant::now();
        let mut stream = stream(epoch);
        let mut at = |ms| stream.timestamp(epoch + Duration::from_millis(ms));
        let first = at(1000);
        assert_eq!([at(1000), at(900), at(1033)].map(|time| time.wrapping_sub(first)), [1, 2, 33 * 90]);
    }
}
