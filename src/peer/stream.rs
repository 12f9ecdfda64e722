//! How one viewer's packets are numbered, timed and marked.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rtc::rtcp::sender_report::SenderReport;
use rtc::rtp::{self, header::Header};
use tracing::debug;

use super::sdp::VideoOffer;

const SENDER_REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// <http://www.webrtc.org/experiments/rtp-hdrext/playout-delay>
pub(super) const PLAYOUT_DELAY_URI: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
/// Minimum and maximum 0: show each picture at once.
const NO_PLAYOUT_DELAY: Bytes = Bytes::from_static(&[0, 0, 0]);

pub(super) struct Stream {
    pub(super) ssrc: u32,
    payload_type: u8,
    next_sequence_number: u16,
    timestamp_offset: u32,
    epoch: Instant,
    rtx: Option<Rtx>,
    /// The extension's number where the viewer knows it (RFC 8285).
    pub(super) playout_delay_id: Option<u8>,
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
            rtx,
            playout_delay_id: None,
            next_report_at: None,
            packets: 0,
            octets: 0,
        }
    }

    pub(super) fn rtx_ssrc(&self) -> Option<u32> {
        self.rtx.as_ref().map(|rtx| rtx.ssrc)
    }

    /// Ticks of 90 kHz, the RTP clock of video (RFC 6184, section 8.2.1), modulo 2^32.
    pub(super) fn timestamp(&self, captured_at: Instant) -> u32 {
        let ticks = captured_at.saturating_duration_since(self.epoch).as_nanos() * 9 / 100_000;
        self.timestamp_offset.wrapping_add(ticks as u32)
    }

    /// The header of the stream's next packet.
    pub(super) fn next_header(&mut self, timestamp: u32, marker: bool, is_keyframe: bool, payload: &Bytes) -> Header {
        let sequence_number = self.next_sequence_number;
        self.next_sequence_number = sequence_number.wrapping_add(1);
        self.packets = self.packets.wrapping_add(1);
        self.octets = self.octets.wrapping_add(payload.len() as u32);
        let mut header = self.header(sequence_number, timestamp, marker);
        // On keyframes only: a receiver keeps it, and the others' packets stay of one size.
        if is_keyframe
            && let Some(id) = self.playout_delay_id
            && let Err(error) = header.set_extension(id, NO_PLAYOUT_DELAY)
        {
            debug!(%error, "no playout-delay");
        }
        header
    }

    /// A packet sent before: in the stream of repeats if the viewer takes one (RFC 4588, section 4), else to the bit as it
    /// was, since SRTP must not encrypt two things under one number (RFC 3711, section 9.1).
    pub(super) fn repeat(&mut self, packet: rtp::Packet) -> rtp::Packet {
        let Some(rtx) = &mut self.rtx else { return packet };
        let rtp::Packet { header: original, payload: content } = packet;
        let mut payload = BytesMut::with_capacity(2 + content.len());
        payload.extend_from_slice(&original.sequence_number.to_be_bytes());
        payload.extend_from_slice(&content);
        let sequence_number = rtx.next_sequence_number;
        rtx.next_sequence_number = sequence_number.wrapping_add(1);
        let header = Header {
            version: 2,
            marker: original.marker,
            payload_type: rtx.payload_type,
            sequence_number,
            timestamp: original.timestamp,
            ssrc: rtx.ssrc,
            ..Default::default()
        };
        rtp::Packet { header, payload: payload.freeze() }
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

    fn header(&self, sequence_number: u16, timestamp: u32, marker: bool) -> Header {
        Header {
            version: 2, // the type's default of 0 is thrown away by every receiver
            marker,
            payload_type: self.payload_type,
            sequence_number,
            timestamp,
            ssrc: self.ssrc,
            ..Default::default()
        }
    }

    /// NTP format (RFC 3550, section 4) of the monotonic clock: its zero does not matter to a round trip.
    fn ntp(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.epoch) + Duration::from_secs(3600);
        let fraction = (u64::from(elapsed.subsec_nanos()) << 32) / 1_000_000_000;
        (elapsed.as_secs() << 32) | fraction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(epoch: Instant) -> Stream {
        let video = VideoOffer { payload_type: 108, fmtp: String::new(), rtx_payload_type: Some(109) };
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

    #[test]
    fn a_repeat_goes_by_its_own_stream_and_names_the_packet_it_stands_for() {
        let mut stream = stream(Instant::now());
        let payload = Bytes::from_static(b"picture");
        let header = Header { sequence_number: 0x1234, ..stream.next_header(90, true, true, &payload) };
        let packet = stream.repeat(rtp::Packet { header, payload });
        assert_eq!(&packet.payload[..], b"\x12\x34picture");
        assert_eq!((packet.header.payload_type, packet.header.timestamp, packet.header.marker), (109, 90, true));
        assert_ne!(packet.header.ssrc, stream.ssrc);
    }

    #[test]
    fn without_a_stream_for_repeats_a_packet_goes_out_again_to_the_bit_as_it_was() {
        let mut stream = stream(Instant::now());
        (stream.rtx, stream.playout_delay_id) = (None, Some(5));
        let payload = Bytes::from_static(b"picture");
        let packet = rtp::Packet { header: stream.next_header(90, true, true, &payload), payload };
        assert!(packet.header.extension);
        assert_eq!(stream.repeat(packet.clone()), packet);
    }
}
