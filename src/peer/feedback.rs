//! What a viewer reports back, caught on its way in.
//!
//! `rtc` drops inbound RTCP at the end of its interceptor chain and hands over only what names a track it knows, so a
//! compound packet that begins with a report on the retransmission stream would be lost whole. This interceptor reads all.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rtc::interceptor::{Interceptor, Packet, StreamInfo, TaggedPacket};
use rtc::rtcp::payload_feedbacks::full_intra_request::FullIntraRequest;
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtcp::payload_feedbacks::receiver_estimated_maximum_bitrate::ReceiverEstimatedMaximumBitrate;
use rtc::rtcp::receiver_report::ReceiverReport;
use rtc::rtcp::reception_report::ReceptionReport;
use rtc::rtcp::transport_feedbacks::transport_layer_cc::{
    PacketStatusChunk, RecvDelta, SymbolTypeTcc, TransportLayerCc,
};
use rtc::rtcp::transport_feedbacks::transport_layer_nack::TransportLayerNack;
use rtc::sansio::Protocol;
use rtc::shared::error::Error;

use super::transport_wide::Numbering;
use crate::core::access_unit::Bitrate;
use crate::core::congestion::Arrival;

/// Kept between two looks of the peer, which looks after each datagram; one compound packet holds far less.
const MOST_KEPT: usize = 1024;
/// Packets that the feedback in one datagram may speak of: seconds of video. The format lets forty bytes name 65,535.
const MOST_ARRIVALS: usize = 2048;

/// One piece of feedback.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    /// PLI (RFC 4585, section 6.3.1) or FIR (RFC 5104, section 4.3.1).
    KeyframeWanted,
    /// One lost packet (RFC 4585, section 6.2.1).
    Nack { sequence_number: u16 },
    /// How our stream arrives (RFC 3550, section 6.4.1).
    Report { ssrc: u32, fraction_lost: f32, last_sequence_number: u32, last_sender_report: u32, delay: u32 },
    /// When packets arrived.
    Arrived(Arrivals),
    /// REMB: what the viewer thinks its network carries (draft-alvestrand-rmcat-remb-03).
    Estimate(Bitrate),
}

/// One transport-wide feedback packet (draft-holmer-rmcat-transport-wide-cc-extensions-01, section 3.1).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Arrivals {
    /// The number of the first packet it speaks of.
    pub(super) base: u16,
    /// On the viewer's clock, in 64 ms, of 24 bits.
    pub(super) reference: u32,
    /// How far each is ahead of the first, and microseconds after the reference; `None`: it did not arrive.
    pub(super) packets: Vec<(u16, Option<i64>)>,
}

impl Arrivals {
    /// What it says of so many packets at most.
    fn read(feedback: &TransportLayerCc, most: usize) -> Self {
        let count = usize::from(feedback.packet_status_count).min(most);
        let mut packets = Vec::with_capacity(count);
        let mut deltas = feedback.recv_deltas.iter().map(|RecvDelta { delta, .. }| *delta);
        let mut time = 0;
        let symbols = feedback.packet_chunks.iter().flat_map(|chunk| {
            let (symbol, length, list) = match chunk {
                PacketStatusChunk::RunLengthChunk(run) => (run.packet_status_symbol, run.run_length, &[][..]),
                PacketStatusChunk::StatusVectorChunk(vector) => {
                    (SymbolTypeTcc::PacketNotReceived, 0, &vector.symbol_list[..])
                }
            };
            std::iter::repeat_n(symbol, length.into()).chain(list.iter().copied())
        });
        for (ahead, symbol) in (0..).zip(symbols.take(count)) {
            match symbol {
                SymbolTypeTcc::PacketNotReceived => packets.push((ahead, None)),
                SymbolTypeTcc::PacketReceivedSmallDelta | SymbolTypeTcc::PacketReceivedLargeDelta => {
                    let Some(delta) = deltas.next() else { break };
                    time += delta;
                    packets.push((ahead, Some(time)));
                }
                // It arrived, nobody knows when.
                SymbolTypeTcc::PacketReceivedWithoutDelta => {}
            }
        }
        Self { base: feedback.base_sequence_number, reference: feedback.reference_time, packets }
    }
}

/// The peer's end.
#[derive(Clone, Debug, Default)]
pub(super) struct Feedback(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    heard: Vec<Heard>,
    /// Packets that what is kept speaks of.
    arrivals: usize,
}

impl Feedback {
    pub(super) fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).heard
    }

    pub(super) fn listener(&self) -> Listener {
        Listener { heard: self.clone(), reads: VecDeque::new(), writes: VecDeque::new() }
    }

    fn push(&self, heard: Heard) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.heard.len() < MOST_KEPT {
            kept.heard.push(heard);
        }
    }

    fn push_arrivals(&self, feedback: &TransportLayerCc) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_ARRIVALS.saturating_sub(kept.arrivals);
        if kept.heard.len() < MOST_KEPT && room > 0 {
            let arrivals = Arrivals::read(feedback, room);
            // One that names nothing was work too.
            kept.arrivals += arrivals.packets.len().max(1);
            kept.heard.push(Heard::Arrived(arrivals));
        }
    }
}

/// What a viewer, who was sent so many packets, says of their arrival in this RTCP, decrypted. For those who look whether any bytes
/// can do harm.
pub fn read_arrivals(mut rtcp: &[u8], sent: u64) -> Vec<Arrival> {
    let feedback = Feedback::default();
    let listener = feedback.listener();
    for packet in rtc::rtcp::packet::unmarshal(&mut rtcp).unwrap_or_default() {
        listener.listen(packet.as_ref());
    }
    let mut numbering = Numbering::starting_at(sent);
    let said = feedback.take().into_iter().filter_map(|heard| match heard {
        Heard::Arrived(arrivals) => Some(arrivals),
        _ => None,
    });
    said.flat_map(|arrivals| numbering.read(&arrivals)).collect()
}

/// The end in `rtc`'s chain.
pub(super) struct Listener {
    heard: Feedback,
    reads: VecDeque<TaggedPacket>,
    writes: VecDeque<TaggedPacket>,
}

impl Listener {
    fn listen(&self, packet: &dyn rtc::rtcp::Packet) {
        let any = packet.as_any();
        if any.is::<PictureLossIndication>() || any.is::<FullIntraRequest>() {
            self.heard.push(Heard::KeyframeWanted);
        } else if let Some(nack) = any.downcast_ref::<TransportLayerNack>() {
            for pair in &nack.nacks {
                for sequence_number in pair.packet_list() {
                    self.heard.push(Heard::Nack { sequence_number });
                }
            }
        } else if let Some(report) = any.downcast_ref::<ReceiverReport>() {
            for block in &report.reports {
                self.heard.push(Heard::from(block));
            }
        } else if let Some(feedback) = any.downcast_ref::<TransportLayerCc>() {
            self.heard.push_arrivals(feedback);
        } else if let Some(remb) = any.downcast_ref::<ReceiverEstimatedMaximumBitrate>() {
            // A cast of a float keeps to the range: nonsense becomes 0 or the most there is.
            self.heard.push(Heard::Estimate(Bitrate::from_kbps((remb.bitrate / 1000.0) as u32)));
        }
    }
}

impl From<&ReceptionReport> for Heard {
    fn from(block: &ReceptionReport) -> Self {
        Self::Report {
            ssrc: block.ssrc,
            fraction_lost: f32::from(block.fraction_lost) / 256.0,
            last_sequence_number: block.last_sequence_number,
            last_sender_report: block.last_sender_report,
            delay: block.delay,
        }
    }
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for Listener {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = Error;
    type Time = Instant;

    fn handle_read(&mut self, packet: TaggedPacket) -> Result<(), Error> {
        match &packet.message.packet {
            Packet::Rtcp(compound) => {
                for packet in compound {
                    self.listen(packet.as_ref());
                }
            }
            // A camera takes no media: it goes no further.
            _ => return Ok(()),
        }
        self.reads.push_back(packet);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<TaggedPacket> {
        self.reads.pop_front()
    }

    fn handle_write(&mut self, packet: TaggedPacket) -> Result<(), Error> {
        self.writes.push_back(packet);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<TaggedPacket> {
        self.writes.pop_front()
    }
}

impl Interceptor for Listener {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}

#[cfg(test)]
mod tests {
    use rtc::rtcp::transport_feedbacks::transport_layer_cc::{
        RunLengthChunk, StatusChunkTypeTcc, StatusVectorChunk, SymbolSizeTypeTcc,
    };

    use super::*;

    const SMALL: SymbolTypeTcc = SymbolTypeTcc::PacketReceivedSmallDelta;
    const LARGE: SymbolTypeTcc = SymbolTypeTcc::PacketReceivedLargeDelta;
    const LOST: SymbolTypeTcc = SymbolTypeTcc::PacketNotReceived;
    const UNTIMED: SymbolTypeTcc = SymbolTypeTcc::PacketReceivedWithoutDelta;

    fn run(packet_status_symbol: SymbolTypeTcc, run_length: u16) -> PacketStatusChunk {
        let type_tcc = StatusChunkTypeTcc::RunLengthChunk;
        PacketStatusChunk::RunLengthChunk(RunLengthChunk { type_tcc, packet_status_symbol, run_length })
    }

    fn vector(symbol_list: &[SymbolTypeTcc]) -> PacketStatusChunk {
        let (type_tcc, symbol_size) = (StatusChunkTypeTcc::StatusVectorChunk, SymbolSizeTypeTcc::TwoBit);
        let symbol_list = symbol_list.to_vec();
        PacketStatusChunk::StatusVectorChunk(StatusVectorChunk { type_tcc, symbol_size, symbol_list })
    }

    fn read(count: u16, packet_chunks: Vec<PacketStatusChunk>, deltas: &[i64]) -> Vec<(u16, Option<i64>)> {
        let recv_deltas = deltas.iter().map(|&delta| RecvDelta { type_tcc_packet: SMALL, delta }).collect();
        let feedback =
            TransportLayerCc { packet_status_count: count, packet_chunks, recv_deltas, ..Default::default() };
        Arrivals::read(&feedback, MOST_ARRIVALS).packets
    }

    #[test]
    fn runs_and_vectors_are_read_one_after_the_other_and_times_add_up() {
        let chunks = vec![run(SMALL, 2), vector(&[LOST, LARGE, UNTIMED, SMALL, LOST, LOST, LOST])];
        let packets = read(7, chunks, &[250, 500, -250, 1000]);
        assert_eq!(packets, [(0, Some(250)), (1, Some(750)), (2, None), (3, Some(500)), (5, Some(1500)), (6, None)]);
    }

    #[test]
    fn what_is_named_without_a_time_for_it_ends_the_reading() {
        assert_eq!(read(5, vec![run(SMALL, 5)], &[250]), [(0, Some(250))]);
    }

    #[test]
    fn a_few_bytes_that_name_all_the_numbers_there_are_cost_little() {
        assert_eq!(read(u16::MAX, vec![run(LOST, 8191); 8], &[]).len(), MOST_ARRIVALS);
        let feedback = Feedback::default();
        let bomb = TransportLayerCc {
            packet_status_count: u16::MAX,
            packet_chunks: vec![run(LOST, 8191); 8],
            ..Default::default()
        };
        for _ in 0..100 {
            feedback.listener().listen(&bomb);
        }
        let named = feedback.take().into_iter().map(|heard| match heard {
            Heard::Arrived(arrivals) => arrivals.packets.len(),
            _ => 0,
        });
        assert_eq!(named.sum::<usize>(), MOST_ARRIVALS, "of all that come in one datagram");
        feedback.listener().listen(&bomb);
        assert_eq!(feedback.take().len(), 1, "the next is heard again");
    }
}
