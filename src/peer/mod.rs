//! One viewer's WebRTC connection, without I/O: datagrams, time and pictures go in, datagrams and events come out.
//!
//! The only place that names `rtc`, the sans-I/O core under the crate `webrtc`. The core's own loop, one socket for all
//! and no driver per peer make a viewer cost less than half (`docs/decisions`).

mod feedback;
mod history;
mod picture;
mod reconnection;
mod sdp;
mod setup;
mod stream;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtc::peer_connection::RTCPeerConnection;
use rtc::peer_connection::event::RTCPeerConnectionEvent;
use rtc::peer_connection::message::{RTCMessage, TaggedRTCMessage};
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::peer_connection::state::RTCPeerConnectionState;
use rtc::peer_connection::transport::{RTCDtlsTransportState, RTCIceCandidateInit};
use rtc::rtp;
use rtc::rtp_transceiver::RTCRtpSenderId;
use rtc::sansio::Protocol;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};
use tracing::debug;

use self::feedback::{Feedback, Heard};
use self::history::{History, Repeat};
use self::reconnection::Reconnection;
use self::sdp::RemoteCandidate;
use self::stream::{PLAYOUT_DELAY_URI, Stream};
use crate::core::candidate::{Candidate, CandidateKind};
use crate::core::counters::ViewerCounters;
use crate::core::sessions::PeerEvent;
use crate::core::signal::RejectReason;
use crate::core::transmit::{Transmit, Transport};

pub use self::picture::Picture;
pub use self::setup::{Identity, IdentityError, PeerSettings};

/// Each is checked fifty times a second, so that a long list would be a flood; the best come first in it.
const CHECKED_CANDIDATES: usize = 16;
/// Handling the same timeout again sooner only burns CPU.
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);

/// An answer, and what tells the datagrams of its viewer from those of others.
#[derive(Debug)]
pub struct Answer {
    pub sdp: String,
    pub ice_ufrag: String,
}

pub struct Peer {
    connection: RTCPeerConnection,
    sender: RTCRtpSenderId,
    candidates: Vec<Candidate>,
    feedback: Feedback,
    stream: Stream,
    history: History,
    events: VecDeque<PeerEvent>,
    reconnection: Reconnection,
    /// What part of the packets the viewer missed, as of its last report.
    fraction_lost: Option<f32>,
    reported_up_to: Option<u32>,
    connected: bool,
    /// Candidates of the viewer that we check, of this offer.
    checked: usize,
    counters: Arc<ViewerCounters>,
}

impl Peer {
    /// Answers an offer with one H.264 track to send.
    pub fn answer(
        offer: &str,
        settings: &PeerSettings,
        counters: Arc<ViewerCounters>,
        now: Instant,
    ) -> Result<(Self, Answer), RejectReason> {
        let video = sdp::read_offer(offer)?;
        let feedback = Feedback::default();
        let stream = Stream::new(&video, settings.epoch);
        let mut connection = setup::connect(&video, settings, &feedback, now).map_err(unusable)?;
        let sender = setup::add_track(&mut connection, &video, &stream).map_err(unusable)?;
        let mut peer = Self {
            connection,
            sender,
            candidates: settings.candidates.clone(),
            feedback,
            stream,
            history: History::new(),
            events: VecDeque::new(),
            reconnection: Reconnection::default(),
            fraction_lost: None,
            reported_up_to: None,
            connected: false,
            checked: 0,
            counters,
        };
        let answer = peer.negotiate(offer, now)?;
        Ok((peer, answer))
    }

    /// Answers an offer with new ICE credentials. Pictures stop until the new path stands: the library gives up the old one.
    pub fn restart(&mut self, offer: &str, candidates: &[Candidate], now: Instant) -> Result<Answer, RejectReason> {
        sdp::read_offer(offer)?;
        self.candidates = candidates.to_vec();
        self.checked = 0;
        self.negotiate(offer, now)
    }

    /// A candidate of the viewer, from its offer or trickled.
    pub fn add_candidate(&mut self, line: &str) -> Result<(), RejectReason> {
        let is_usable = sdp::read_candidate(line)? == RemoteCandidate::Usable;
        if !is_usable || self.checked == CHECKED_CANDIDATES {
            return Ok(()); // its own checks will show us where it is
        }
        self.checked += 1;
        let candidate = line.strip_prefix("a=").unwrap_or(line).to_owned();
        self.connection
            .add_remote_candidate(RTCIceCandidateInit { candidate, ..Default::default() })
            .map_err(|error| RejectReason::BadCandidate(error.to_string()))
    }

    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        transport: Transport,
        data: &[u8],
        now: Instant,
    ) {
        let (from, transport_protocol) = match transport {
            Transport::Udp => (from, TransportProtocol::UDP),
            Transport::Tcp => (self.reconnection.name(from, data, now), TransportProtocol::TCP),
        };
        let transport = TransportContext { local_addr: to, peer_addr: from, transport_protocol, ecn: None };
        if let Err(error) = self.connection.handle_read(TaggedBytesMut { now, transport, message: data.into() }) {
            debug!(%error, "datagram not taken");
        }
        // A camera reads no media and no data channel; what comes is thrown away.
        while self.connection.poll_read().is_some() {}
        self.poll_connection();
        self.hear(now);
        // RFC 7983, section 7: 20 to 63 is DTLS, where the viewer may have said close_notify.
        if self.connected && data.first().is_some_and(|first| (20..=63).contains(first)) && self.is_closed_by_viewer() {
            self.events.push_back(PeerEvent::Closed);
        }
    }

    /// A TCP connection of the viewer is closed.
    pub fn handle_closed(&mut self, address: SocketAddr) {
        self.reconnection.handle_closed(address);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if let Err(error) = self.connection.handle_timeout(now) {
            debug!(%error, "timeout not handled");
        }
        self.poll_connection();
    }

    /// Sends one picture: new headers around the shared payloads.
    pub fn write(&mut self, picture: &Picture, now: Instant) {
        let timestamp = self.stream.timestamp(picture.captured_at);
        let last = picture.payloads.len().saturating_sub(1);
        for (index, payload) in picture.payloads.iter().enumerate() {
            let marker = index == last;
            let header = self.stream.next_header(timestamp, marker, picture.is_keyframe(), payload);
            let packet = rtp::Packet { header, payload: payload.clone() };
            self.history.push(packet.clone(), now);
            self.write_rtp(packet, now);
        }
        self.counters.units_sent.add(1);
        if let Some(report) = self.stream.report(timestamp, now) {
            self.write_message(RTCMessage::RtcpPacket(String::new(), vec![Box::new(report)]), now);
        }
    }

    /// So much of the stream went by, sent to this viewer or not: repeats may take a share of it.
    pub fn earn(&mut self, bytes: usize) {
        self.history.earn(bytes);
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let TaggedBytesMut { now, transport, message: data } = self.connection.poll_write()?;
        let TransportContext { local_addr: from, peer_addr: to, transport_protocol, .. } = transport;
        Some(match transport_protocol {
            TransportProtocol::TCP => {
                let to = self.reconnection.address(to, &data, now);
                Transmit { from, to, transport: Transport::Tcp, data }
            }
            _ => Transmit { from, to, transport: Transport::Udp, data },
        })
    }

    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.events.pop_front()
    }

    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        self.connection.poll_timeout().map(|at| at.max(now + LEAST_TIMEOUT))
    }

    /// What part of the packets the viewer missed, 0 to 1; given once for each of its reports.
    pub fn take_loss(&mut self) -> Option<f32> {
        self.fraction_lost.take()
    }

    /// Says close_notify; transmits may follow.
    pub fn close(&mut self) {
        if let Err(error) = self.connection.close() {
            debug!(%error, "closing");
        }
    }

    fn negotiate(&mut self, offer: &str, now: Instant) -> Result<Answer, RejectReason> {
        let (offer, candidates) = sdp::take_candidates(offer)?;
        let offer = RTCSessionDescription::offer(offer).map_err(unusable)?;
        self.connection.set_remote_description(now, offer).map_err(unusable)?;
        for (index, candidate) in self.candidates.iter().enumerate() {
            // We send from its base, a host candidate: as a pair of its own it would only be checked twice (RFC 8445, section 6.1.2.4).
            if matches!(candidate.kind, CandidateKind::ServerReflexive { .. }) {
                continue;
            }
            let candidate = sdp::candidate_line(index, candidate);
            let candidate = RTCIceCandidateInit { candidate, ..Default::default() };
            self.connection.add_local_candidate(candidate).map_err(unusable)?;
        }
        let answer = self.connection.create_answer(None).map_err(unusable)?;
        let sdp = sdp::place_candidates(&answer.sdp, &self.candidates).ok_or_else(|| {
            RejectReason::BadOffer("its video section lacks what an answer needs (mid, codec, direction)".to_owned())
        })?;
        self.connection.set_local_description(now, answer).map_err(unusable)?;
        let ice_ufrag = sdp::ice_ufrag(&sdp).unwrap_or_default().to_owned();
        self.stream.playout_delay_id = self.negotiated_playout_delay();
        for line in candidates {
            if let Err(reason) = self.add_candidate(line) {
                debug!(%reason, "a candidate in the offer is passed over");
            }
        }
        Ok(Answer { sdp, ice_ufrag })
    }

    fn negotiated_playout_delay(&mut self) -> Option<u8> {
        let mut sender = self.connection.rtp_sender(self.sender)?;
        let extensions = &sender.get_parameters().rtp_parameters.header_extensions;
        let id = extensions.iter().find(|extension| extension.uri == PLAYOUT_DELAY_URI)?.id;
        u8::try_from(id).ok()
    }

    fn poll_connection(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            let RTCPeerConnectionEvent::OnConnectionStateChangeEvent(state) = event else { continue };
            match state {
                RTCPeerConnectionState::Connected => {
                    self.connected = true;
                    self.events.push_back(PeerEvent::Connected);
                }
                RTCPeerConnectionState::Failed => self.events.push_back(PeerEvent::Lost),
                _ => {}
            }
        }
    }

    fn is_closed_by_viewer(&mut self) -> bool {
        let Some(sender) = self.connection.rtp_sender(self.sender) else { return false };
        let Some(transport) = sender.transport() else { return false };
        matches!(transport.state(), RTCDtlsTransportState::Closed | RTCDtlsTransportState::Failed)
    }

    fn hear(&mut self, now: Instant) {
        for heard in self.feedback.take() {
            match heard {
                Heard::KeyframeWanted => {
                    self.counters.keyframe_requests.add(1);
                    self.events.push_back(PeerEvent::KeyframeWanted);
                }
                Heard::Nack { sequence_number } => self.repeat(sequence_number, now),
                Heard::Report { ssrc, fraction_lost, last_sequence_number, last_sender_report, delay }
                    if ssrc == self.stream.ssrc =>
                {
                    // A report in which nothing new arrived tells nothing.
                    if self.reported_up_to.replace(last_sequence_number) != Some(last_sequence_number) {
                        self.fraction_lost = Some(fraction_lost);
                    }
                    if let Some(round_trip) = self.stream.round_trip(last_sender_report, delay, now) {
                        self.history.measured(round_trip);
                    }
                }
                Heard::Report { .. } => {}
            }
        }
    }

    fn repeat(&mut self, sequence_number: u16, now: Instant) {
        self.counters.nacks_received.add(1);
        let packet = match self.history.repeat(sequence_number, now) {
            Repeat::Send(packet) => packet,
            Repeat::Refused => {
                self.counters.retransmissions_refused.add(1);
                return;
            }
            Repeat::Gone => return,
        };
        self.counters.packets_retransmitted.add(1);
        let packet = self.stream.repeat(packet);
        self.write_rtp(packet, now);
    }

    fn write_rtp(&mut self, packet: rtp::Packet, now: Instant) {
        // Straight into the chain: `RTCRtpSender::write_rtp` looks the codec up and copies the track's name each time.
        self.write_message(RTCMessage::RtpPacket(String::new(), packet), now);
    }

    fn write_message(&mut self, message: RTCMessage, now: Instant) {
        if let Err(error) = self.connection.handle_write(TaggedRTCMessage { now, message }) {
            debug!(%error, "packet not written");
        }
    }
}

fn unusable(error: rtc::shared::error::Error) -> RejectReason {
    RejectReason::BadOffer(error.to_string())
}
