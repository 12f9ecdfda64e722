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
use rtc::rtcp::receiver_report::ReceiverReport;
use rtc::rtcp::reception_report::ReceptionReport;
use rtc::rtcp::transport_feedbacks::transport_layer_nack::TransportLayerNack;
use rtc::sansio::Protocol;
use rtc::shared::error::Error;

/// Kept between two looks of the peer, which looks after each datagram; one compound packet holds far less.
const MOST_KEPT: usize = 1024;

/// One piece of feedback.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    /// PLI (RFC 4585, section 6.3.1) or FIR (RFC 5104, section 4.3.1).
    KeyframeWanted,
    /// One lost packet (RFC 4585, section 6.2.1).
    Nack { sequence_number: u16 },
    /// How our stream arrives (RFC 3550, section 6.4.1).
    Report { ssrc: u32, fraction_lost: f32, last_sequence_number: u32, last_sender_report: u32, delay: u32 },
}

/// The peer's end.
#[derive(Clone, Debug, Default)]
pub(super) struct Feedback(Arc<Mutex<Vec<Heard>>>);

impl Feedback {
    pub(super) fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn listener(&self) -> Listener {
        Listener { heard: self.clone(), reads: VecDeque::new(), writes: VecDeque::new() }
    }

    fn push(&self, heard: Heard) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MOST_KEPT {
            all.push(heard);
        }
    }
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
