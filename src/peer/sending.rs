//! What leaves, and in which order: repeats first, then the picture under way, then what a probe lacks.

use std::time::Instant;

use rtc::peer_connection::message::RTCMessage;
use rtc::rtp;
use rtc::shared::marshal::MarshalSize;

use super::history::Verdict;
use super::picture::Underway;
use super::stream::StreamPacket;
use super::{Peer, Picture};

/// Repeats that may wait for their turn; what is asked for beyond that would come too late.
const WAITING_REPEATS: usize = 256;

impl Peer {
    /// Takes the next picture to send; there must be none under way.
    pub fn begin(&mut self, picture: Picture, now: Instant) {
        let timestamp = self.stream.timestamp(picture.captured_at);
        self.outlet.begin_probe(now);
        self.fillers = 0;
        let playout_delay = self.playout.tell(picture.is_keyframe(), now);
        self.underway = Some(Underway::new(picture, timestamp, playout_delay));
    }

    /// Sends what may leave now: repeats first, then of the picture under way, then what a probe lacks.
    pub fn flush(&mut self, now: Instant) {
        if !self.has_path {
            return;
        }
        self.outlet.handle_timeout(now);
        while let Some(&sequence_number) = self.repeats.front()
            && self.outlet.may_send(now)
        {
            self.repeats.pop_front();
            if let Some(packet) = self.history.repeat(sequence_number, now) {
                self.counters.packets_retransmitted.add(1);
                self.send_again(&packet, now);
            }
        }
        if let Some(mut underway) = self.underway.take() {
            self.send_picture(&mut underway, now);
            if underway.is_whole() {
                self.end_picture(&underway, now);
            } else {
                self.underway = Some(underway);
            }
        }
        while self.outlet.is_probing() && self.underway.is_none() && self.outlet.may_send(now) {
            match self.history.filler(self.fillers, now) {
                Some(packet) => self.send_again(&packet, now),
                None => self.outlet.end_probe(),
            }
            self.fillers += 1;
        }
    }

    /// Whether a picture is under way.
    pub fn is_sending(&self) -> bool {
        self.underway.is_some()
    }

    /// Whether a keyframe is on its way to the viewer, as far as can be told: it need not be sent another.
    pub fn has_keyframe_on_the_way(&self, now: Instant) -> bool {
        let travels = self.history.round_trip().unwrap_or_default();
        self.underway.as_ref().is_some_and(|underway| underway.picture.is_keyframe())
            || self.keyframe_sent_at.is_some_and(|at| now.saturating_duration_since(at) < travels)
    }

    pub(super) fn hear_nack(&mut self, sequence_number: u16, now: Instant) {
        self.counters.nacks_received.add(1);
        let is_full = self.repeats.len() >= WAITING_REPEATS;
        match if is_full { Verdict::Refused } else { self.history.ask(sequence_number, now) } {
            Verdict::Granted => self.repeats.push_back(sequence_number),
            Verdict::Refused => self.counters.retransmissions_refused.add(1),
            Verdict::Gone => {}
        }
    }

    fn send_picture(&mut self, underway: &mut Underway, now: Instant) {
        while self.outlet.may_send(now)
            && let Some((payload, marker)) = underway.next()
        {
            let number = self.next_number();
            let packet = self.stream.next_packet(underway.timestamp, marker, underway.playout_delay, payload, number);
            self.send(self.stream.packet(&packet), number, now);
            self.history.push(packet, now);
        }
    }

    fn end_picture(&mut self, underway: &Underway, now: Instant) {
        self.units_sent += 1;
        self.counters.units_sent.add(1);
        if underway.picture.is_keyframe() {
            self.keyframe_sent_at = Some(now);
        }
        if let Some(report) = self.stream.report(underway.timestamp, now) {
            self.write_message(RTCMessage::RtcpPacket(String::new(), vec![Box::new(report)]), now);
        }
    }

    fn send_again(&mut self, packet: &StreamPacket, now: Instant) {
        if self.stream.rtx_ssrc().is_some() {
            let number = self.next_number();
            if let Some(repeat) = self.stream.repeat(packet, number) {
                self.send(repeat, number, now);
            }
        } else {
            // Its number of old: it says nothing new about the network.
            self.send(self.stream.packet(packet), None, now);
        }
    }

    fn next_number(&mut self) -> Option<u64> {
        self.stream.transport_wide_id.map(|_| self.numbering.take())
    }

    fn send(&mut self, packet: rtp::Packet, number: Option<u64>, now: Instant) {
        self.outlet.handle_sent(number, packet.marshal_size(), now);
        // Straight into the chain: `RTCRtpSender::write_rtp` looks the codec up and copies the track's name each time.
        self.write_message(RTCMessage::RtpPacket(String::new(), packet), now);
    }
}
