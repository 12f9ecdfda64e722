//! One viewer's WebRTC connection, without I/O: datagrams, time and pictures go in, datagrams and events come out.
//!
//! The only place that names `rtc`, the sans-I/O core under the crate `webrtc`. The core's own loop, one socket for all
//! and no driver per peer make a viewer cost less than half (`docs/decisions`).

mod feedback;
mod history;
mod sdp;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rtc::crypto::{RTCCryptoProvider, SignatureScheme};
use rtc::interceptor::{Registry, Slot};
use rtc::media_stream::MediaStreamTrack;
use rtc::peer_connection::certificate::{CertificateParams, RTCCertificate};
use rtc::peer_connection::configuration::RTCConfigurationBuilder;
use rtc::peer_connection::configuration::media_engine::{MIME_TYPE_H264, MIME_TYPE_RTX, MediaEngine};
use rtc::peer_connection::configuration::setting_engine::{SettingEngine, SettingEngineBuilder};
use rtc::peer_connection::event::RTCPeerConnectionEvent;
use rtc::peer_connection::message::{RTCMessage, TaggedRTCMessage};
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::peer_connection::state::RTCPeerConnectionState;
use rtc::peer_connection::transport::{RTCDtlsTransportState, RTCIceCandidateInit};
use rtc::peer_connection::{RTCPeerConnection, RTCPeerConnectionBuilder};
use rtc::rtcp::sender_report::SenderReport;
use rtc::rtp;
use rtc::rtp::codec::h264::H264Payloader;
use rtc::rtp::packetizer::Payloader;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
    RTCRtpHeaderExtensionCapability, RTCRtpRtxParameters, RtpCodecKind,
};
use rtc::rtp_transceiver::{RTCRtpSenderId, RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use rtc::sansio::Protocol;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};
use tracing::debug;

use self::feedback::{Feedback, Heard};
use self::history::{History, Repeat};
use self::sdp::{RemoteCandidate, VideoOffer};
use crate::core::access_unit::AccessUnit;
use crate::core::counters::ViewerCounters;
use crate::core::sessions::PeerEvent;
use crate::core::signal::RejectReason;
use crate::core::transmit::Transmit;

/// RTP payload bytes of a packet: with RTP, SRTP, UDP and IPv6 headers below the 1280 bytes that any path carries.
const PAYLOAD_SIZE: usize = 1180;
/// Checks go out as often as this until one succeeds; the library's 200 ms would be seen in every first picture.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Then an address that never answered is given up; the viewer's own checks still revive it.
const CHECKS: u16 = 100;
/// The library gives a silent viewer up in two steps; this is the first.
const SILENT_AFTER: Duration = Duration::from_secs(5);
const CONSENT_INTERVAL: Duration = Duration::from_secs(2);
const SENDER_REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Handling the same timeout again sooner only burns CPU.
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);
/// <http://www.webrtc.org/experiments/rtp-hdrext/playout-delay>: minimum and maximum 0, show each picture at once.
const PLAYOUT_DELAY_URI: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
const NO_PLAYOUT_DELAY: Bytes = Bytes::from_static(&[0, 0, 0]);

/// What all peers of a process share.
#[derive(Clone)]
pub struct PeerSettings {
    /// Where viewers can reach the media socket; goes into each answer, best first.
    pub candidates: Vec<SocketAddr>,
    /// Where the stream's clock counts from.
    pub epoch: Instant,
    /// A viewer who answered no consent check for so long is gone (RFC 7675, section 5.1: 30 s).
    pub lost_after: Duration,
    pub identity: Identity,
}

/// The DTLS certificate of this process, and the crypto library behind it.
#[derive(Clone)]
pub struct Identity {
    certificate: RTCCertificate,
    crypto: Arc<dyn RTCCryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
#[error("no DTLS certificate could be made: {0}")]
pub struct IdentityError(String);

impl Identity {
    /// A new self-signed ECDSA P-256 certificate (RFC 8827, section 6.5).
    pub fn generate() -> Result<Self, IdentityError> {
        let failed = |error: &dyn std::fmt::Display| IdentityError(error.to_string());
        let crypto = rtc::crypto::default_provider().map_err(|error| failed(&error))?;
        let scheme = SignatureScheme::EcdsaP256Sha256;
        let certificate = RTCCertificate::generate(crypto.crypto(), scheme, CertificateParams::default())
            .map_err(|error| failed(&error))?;
        Ok(Self { certificate, crypto })
    }
}

/// One picture, cut into RTP payloads: done once, whatever the number of viewers.
#[derive(Clone, Debug)]
pub struct Picture {
    captured_at: Instant,
    is_keyframe: bool,
    payloads: Arc<[Bytes]>,
}

impl Picture {
    /// Cuts by RFC 6184, section 5: parameter sets in a STAP-A, what does not fit a packet in FU-As.
    pub fn cut(unit: &AccessUnit) -> Self {
        // The payloader keeps parameter sets for the next picture when they come last; ours always come first.
        let payloads = H264Payloader::default().payload(PAYLOAD_SIZE, &unit.data).unwrap_or_default();
        Self { captured_at: unit.captured_at, is_keyframe: unit.is_keyframe, payloads: payloads.into() }
    }

    pub fn is_keyframe(&self) -> bool {
        self.is_keyframe
    }

    pub fn bytes(&self) -> usize {
        self.payloads.iter().map(Bytes::len).sum()
    }
}

/// An answer, and what tells the datagrams of its viewer from those of others.
#[derive(Debug)]
pub struct Answer {
    pub sdp: String,
    pub ice_ufrag: String,
}

pub struct Peer {
    connection: RTCPeerConnection,
    sender: RTCRtpSenderId,
    candidates: Vec<SocketAddr>,
    feedback: Feedback,
    stream: Stream,
    history: History,
    events: VecDeque<PeerEvent>,
    /// What part of the packets the viewer missed, as of its last report.
    fraction_lost: Option<f32>,
    reported_up_to: Option<u32>,
    connected: bool,
    counters: Arc<ViewerCounters>,
}

/// How this viewer's packets are numbered and marked.
struct Stream {
    ssrc: u32,
    payload_type: u8,
    next_sequence_number: u16,
    timestamp_offset: u32,
    epoch: Instant,
    rtx: Option<Rtx>,
    playout_delay_id: Option<u8>,
    next_report_at: Option<Instant>,
    packets: u32,
    octets: u32,
}

struct Rtx {
    ssrc: u32,
    payload_type: u8,
    next_sequence_number: u16,
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
        let mut connection = connect(&video, settings, &feedback, now).map_err(unusable)?;
        let sender = add_track(&mut connection, &video, &stream).map_err(unusable)?;
        let mut peer = Self {
            connection,
            sender,
            candidates: settings.candidates.clone(),
            feedback,
            stream,
            history: History::new(),
            events: VecDeque::new(),
            fraction_lost: None,
            reported_up_to: None,
            connected: false,
            counters,
        };
        let answer = peer.negotiate(offer, now)?;
        Ok((peer, answer))
    }

    /// Answers an offer with new ICE credentials; pictures go on over the old path until the new one stands.
    pub fn restart(&mut self, offer: &str, now: Instant) -> Result<Answer, RejectReason> {
        sdp::read_offer(offer)?;
        self.negotiate(offer, now)
    }

    /// A trickled candidate of the viewer.
    pub fn add_candidate(&mut self, line: &str) -> Result<(), RejectReason> {
        match sdp::read_candidate(line)? {
            RemoteCandidate::Ignored => Ok(()),
            RemoteCandidate::Usable => self
                .connection
                .add_remote_candidate(RTCIceCandidateInit { candidate: line.to_owned(), ..Default::default() })
                .map_err(|error| RejectReason::BadCandidate(error.to_string())),
        }
    }

    pub fn handle_datagram(&mut self, from: SocketAddr, to: SocketAddr, data: &[u8], now: Instant) {
        let transport =
            TransportContext { local_addr: to, peer_addr: from, transport_protocol: TransportProtocol::UDP, ecn: None };
        if let Err(error) = self.connection.handle_read(TaggedBytesMut { now, transport, message: data.into() }) {
            debug!(%error, "datagram not taken");
        }
        // A camera reads no media and no data channel; what comes is thrown away.
        while self.connection.poll_read().is_some() {}
        self.poll_connection(now);
        self.hear(now);
        // RFC 7983, section 7: 20 to 63 is DTLS, where the viewer may have said close_notify.
        if self.connected && data.first().is_some_and(|first| (20..=63).contains(first)) && self.is_closed_by_viewer() {
            self.events.push_back(PeerEvent::Closed);
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if let Err(error) = self.connection.handle_timeout(now) {
            debug!(%error, "timeout not handled");
        }
        self.poll_connection(now);
    }

    /// Sends one picture: new headers around the shared payloads.
    pub fn write(&mut self, picture: &Picture, now: Instant) {
        let timestamp = self.stream.timestamp(picture.captured_at);
        let last = picture.payloads.len().saturating_sub(1);
        for (index, payload) in picture.payloads.iter().enumerate() {
            let sequence_number = self.stream.next_sequence_number;
            self.stream.next_sequence_number = sequence_number.wrapping_add(1);
            let marker = index == last;
            self.history.push(sequence_number, timestamp, marker, payload.clone(), now);
            self.stream.packets = self.stream.packets.wrapping_add(1);
            self.stream.octets = self.stream.octets.wrapping_add(payload.len() as u32);
            let mut header = self.stream.header(sequence_number, timestamp, marker);
            if picture.is_keyframe
                && let Some(id) = self.stream.playout_delay_id
                && let Err(error) = header.set_extension(id, NO_PLAYOUT_DELAY)
            {
                debug!(%error, "no playout-delay");
            }
            self.write_rtp(rtp::Packet { header, payload: payload.clone() }, now);
        }
        self.counters.units_sent.add(1);
        self.report(timestamp, now);
    }

    /// So much of the stream went by, sent to this viewer or not: repeats may take a share of it.
    pub fn earn(&mut self, bytes: usize) {
        self.history.earn(bytes);
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let TaggedBytesMut { transport, message, .. } = self.connection.poll_write()?;
        Some(Transmit { from: transport.local_addr, to: transport.peer_addr, data: message })
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
        let offer = RTCSessionDescription::offer(offer.to_owned()).map_err(unusable)?;
        self.connection.set_remote_description(now, offer).map_err(unusable)?;
        for (index, &address) in self.candidates.iter().enumerate() {
            let candidate = sdp::candidate_line(index, address);
            let candidate = RTCIceCandidateInit { candidate, ..Default::default() };
            self.connection.add_local_candidate(candidate).map_err(unusable)?;
        }
        let answer = self.connection.create_answer(None).map_err(unusable)?;
        let sdp = sdp::place_candidates(&answer.sdp, &self.candidates);
        self.connection.set_local_description(now, answer).map_err(unusable)?;
        let ice_ufrag = sdp::ice_ufrag(&sdp).unwrap_or_default().to_owned();
        self.stream.playout_delay_id = self.negotiated_playout_delay();
        Ok(Answer { sdp, ice_ufrag })
    }

    fn negotiated_playout_delay(&mut self) -> Option<u8> {
        let mut sender = self.connection.rtp_sender(self.sender)?;
        let extensions = &sender.get_parameters().rtp_parameters.header_extensions;
        let id = extensions.iter().find(|extension| extension.uri == PLAYOUT_DELAY_URI)?.id;
        u8::try_from(id).ok()
    }

    fn poll_connection(&mut self, now: Instant) {
        while let Some(event) = self.connection.poll_event() {
            let RTCPeerConnectionEvent::OnConnectionStateChangeEvent(state) = event else { continue };
            match state {
                RTCPeerConnectionState::Connected if !self.connected => {
                    self.connected = true;
                    self.stream.next_report_at = Some(now);
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
                Heard::KeyframeWanted => self.events.push_back(PeerEvent::KeyframeWanted),
                Heard::Nack { sequence_number } => self.repeat(sequence_number, now),
                Heard::Report { ssrc, fraction_lost, last_sequence_number, last_sender_report, delay }
                    if ssrc == self.stream.ssrc =>
                {
                    // A report in which nothing new arrived tells nothing.
                    if self.reported_up_to.replace(last_sequence_number) != Some(last_sequence_number) {
                        self.fraction_lost = Some(fraction_lost);
                    }
                    if last_sender_report != 0 {
                        let sent_and_held = last_sender_report.wrapping_add(delay);
                        let round_trip = self.stream.short_ntp(now).wrapping_sub(sent_and_held);
                        // A report that is not about one of ours gives nonsense; more than a minute is no round trip.
                        if round_trip < 60 << 16 {
                            self.history.measured(Duration::from_micros((u64::from(round_trip) * 1_000_000) >> 16));
                        }
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
        let mut header = self.stream.header(packet.sequence_number, packet.timestamp, packet.marker);
        let mut payload = packet.payload;
        if let Some(rtx) = &mut self.stream.rtx {
            // RFC 4588, section 4: the original sequence number, then the original payload, in a stream of its own.
            let mut original = BytesMut::with_capacity(2 + payload.len());
            original.extend_from_slice(&packet.sequence_number.to_be_bytes());
            original.extend_from_slice(&payload);
            payload = original.freeze();
            header.ssrc = rtx.ssrc;
            header.payload_type = rtx.payload_type;
            header.sequence_number = rtx.next_sequence_number;
            rtx.next_sequence_number = rtx.next_sequence_number.wrapping_add(1);
        }
        self.write_rtp(rtp::Packet { header, payload }, now);
    }

    /// A sender report when one is due (RFC 3550, section 6.4.1): the viewer's answer to it shows the round trip.
    fn report(&mut self, timestamp: u32, now: Instant) {
        if self.stream.next_report_at.is_none_or(|at| now < at) {
            return;
        }
        self.stream.next_report_at = Some(now + SENDER_REPORT_INTERVAL);
        let report = SenderReport {
            ssrc: self.stream.ssrc,
            ntp_time: self.stream.ntp(now),
            rtp_time: timestamp,
            packet_count: self.stream.packets,
            octet_count: self.stream.octets,
            ..Default::default()
        };
        self.write_message(RTCMessage::RtcpPacket(String::new(), vec![Box::new(report)]), now);
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

impl Stream {
    fn new(video: &VideoOffer, epoch: Instant) -> Self {
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

    fn header(&self, sequence_number: u16, timestamp: u32, marker: bool) -> rtp::Header {
        rtp::Header {
            version: 2, // the type's default of 0 is thrown away by every receiver
            marker,
            payload_type: self.payload_type,
            sequence_number,
            timestamp,
            ssrc: self.ssrc,
            ..Default::default()
        }
    }

    /// Ticks of 90 kHz, the RTP clock of video (RFC 6184, section 8.2.1), modulo 2^32.
    fn timestamp(&self, captured_at: Instant) -> u32 {
        let ticks = captured_at.saturating_duration_since(self.epoch).as_nanos() * 9 / 100_000;
        self.timestamp_offset.wrapping_add(ticks as u32)
    }

    /// NTP format (RFC 3550, section 4) of the monotonic clock: its zero does not matter to a round trip.
    fn ntp(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.epoch) + Duration::from_secs(3600);
        let fraction = (u64::from(elapsed.subsec_nanos()) << 32) / 1_000_000_000;
        (elapsed.as_secs() << 32) | fraction
    }

    /// Its middle 32 bits, as reports quote it.
    fn short_ntp(&self, now: Instant) -> u32 {
        (self.ntp(now) >> 16) as u32
    }
}

fn unusable(error: rtc::shared::error::Error) -> RejectReason {
    RejectReason::BadOffer(error.to_string())
}

fn connect(
    video: &VideoOffer,
    settings: &PeerSettings,
    feedback: &Feedback,
    now: Instant,
) -> Result<RTCPeerConnection, rtc::shared::error::Error> {
    let configuration =
        RTCConfigurationBuilder::new().with_certificates(vec![settings.identity.certificate.clone()]).build();
    RTCPeerConnectionBuilder::new()
        .with_configuration(configuration)
        .with_media_engine(media_engine(video)?)
        .with_setting_engine(setting_engine(settings))
        .with_interceptor_registry(Registry::new().with(Slot::NackResponder, feedback.listener()))
        .build(now)
}

fn setting_engine(settings: &PeerSettings) -> SettingEngine {
    SettingEngineBuilder::new()
        .with_crypto_provider(settings.identity.crypto.clone())
        .with_ice_connection_attempts(Some(CHECK_INTERVAL), Some(CHECKS))
        .with_ice_timeouts(
            Some(SILENT_AFTER.min(settings.lost_after / 2)),
            Some(settings.lost_after.saturating_sub(SILENT_AFTER)),
            Some(CONSENT_INTERVAL),
        )
        // Off: it would join a multicast group, and fail on a host without a route for it.
        .with_multicast_dns_mode(rtc::ice::mdns::MulticastDnsMode::Disabled)
        .build()
}

/// Exactly the one H.264 of the offer, so that the answer cannot name another.
fn media_engine(video: &VideoOffer) -> Result<MediaEngine, rtc::shared::error::Error> {
    let mut engine = MediaEngine::default();
    engine.register_codec(
        RTCRtpCodecParameters { rtp_codec: h264(video), payload_type: video.payload_type },
        RtpCodecKind::Video,
    )?;
    if let Some(payload_type) = video.rtx_payload_type {
        let rtp_codec = RTCRtpCodec {
            mime_type: MIME_TYPE_RTX.to_owned(),
            clock_rate: 90_000,
            channels: 0,
            sdp_fmtp_line: format!("apt={}", video.payload_type),
            rtcp_feedback: Vec::new(),
        };
        engine.register_codec(RTCRtpCodecParameters { rtp_codec, payload_type }, RtpCodecKind::Video)?;
    }
    let playout_delay = RTCRtpHeaderExtensionCapability { uri: PLAYOUT_DELAY_URI.to_owned() };
    engine.register_header_extension(playout_delay, RtpCodecKind::Video, None)?;
    Ok(engine)
}

fn h264(video: &VideoOffer) -> RTCRtpCodec {
    let feedback = [("nack", ""), ("nack", "pli"), ("ccm", "fir")]
        .map(|(typ, parameter)| RTCPFeedback { typ: typ.to_owned(), parameter: parameter.to_owned() });
    RTCRtpCodec {
        mime_type: MIME_TYPE_H264.to_owned(),
        clock_rate: 90_000,
        channels: 0,
        sdp_fmtp_line: video.fmtp.clone(),
        rtcp_feedback: feedback.to_vec(),
    }
}

fn add_track(
    connection: &mut RTCPeerConnection,
    video: &VideoOffer,
    stream: &Stream,
) -> Result<RTCRtpSenderId, rtc::shared::error::Error> {
    let coding = RTCRtpCodingParameters {
        ssrc: Some(stream.ssrc),
        rtx: stream.rtx.as_ref().map(|rtx| RTCRtpRtxParameters { ssrc: rtx.ssrc }),
        ..Default::default()
    };
    let encoding = RTCRtpEncodingParameters { rtp_coding_parameters: coding, codec: h264(video), ..Default::default() };
    let name = |what: &str| format!("edgecam-{what}");
    let track =
        MediaStreamTrack::new(name("stream"), name("video"), name("video"), RtpCodecKind::Video, vec![encoding]);
    let init = RTCRtpTransceiverInit { direction: RTCRtpTransceiverDirection::Sendonly, ..Default::default() };
    let transceiver = connection.add_transceiver_from_track(track, Some(init))?;
    let sender = connection.rtp_transceiver(transceiver).and_then(|transceiver| transceiver.sender());
    sender.ok_or(rtc::shared::error::Error::ErrRTPSenderNotExisted)
}
