//! How a connection is built: exactly one codec, one certificate, fast checks, our own ears.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rtc::crypto::{RTCCryptoProvider, SignatureScheme};
use rtc::interceptor::{Registry, Slot};
use rtc::media_stream::MediaStreamTrack;
use rtc::peer_connection::certificate::{CertificateParams, RTCCertificate};
use rtc::peer_connection::configuration::RTCConfigurationBuilder;
use rtc::peer_connection::configuration::media_engine::{MIME_TYPE_H264, MIME_TYPE_RTX, MediaEngine};
use rtc::peer_connection::configuration::setting_engine::{SettingEngine, SettingEngineBuilder};
use rtc::peer_connection::{RTCPeerConnection, RTCPeerConnectionBuilder};
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
    RTCRtpHeaderExtensionCapability, RTCRtpRtxParameters, RtpCodecKind,
};
use rtc::rtp_transceiver::{RTCRtpSenderId, RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use rtc::shared::error::{Error, Result};

use super::feedback::Feedback;
use super::sdp::VideoOffer;
use super::stream::{PLAYOUT_DELAY_URI, Stream};
use super::transport_wide::TRANSPORT_WIDE_URI;
use crate::core::candidate::Candidate;

/// Checks go out as often as this until one succeeds; the library's 200 ms would be seen in every first picture.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Then an address that never answered is given up; the viewer's own checks still revive it.
const CHECKS: u16 = 50;
/// The library gives a silent viewer up in two steps; this is the first.
const SILENT_AFTER: Duration = Duration::from_secs(5);
const CONSENT_INTERVAL: Duration = Duration::from_secs(2);

/// What all peers of a process share.
#[derive(Clone)]
pub struct PeerSettings {
    /// Where viewers can reach the media socket; goes into each answer, best first.
    pub candidates: Vec<Candidate>,
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
    pub fn generate() -> std::result::Result<Self, IdentityError> {
        let failed = |error: &dyn std::fmt::Display| IdentityError(error.to_string());
        let crypto = rtc::crypto::default_provider().map_err(|error| failed(&error))?;
        let scheme = SignatureScheme::EcdsaP256Sha256;
        let certificate = RTCCertificate::generate(crypto.crypto(), scheme, CertificateParams::default())
            .map_err(|error| failed(&error))?;
        Ok(Self { certificate, crypto })
    }
}

pub(super) fn connect(
    video: &VideoOffer,
    settings: &PeerSettings,
    feedback: &Feedback,
    now: Instant,
) -> Result<RTCPeerConnection> {
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
        // Our addresses may have changed since the first answer.
        .with_discard_local_candidates_during_ice_restart(true)
        // Off: it would join a multicast group, and fail on a host without a route for it.
        .with_multicast_dns_mode(rtc::ice::mdns::MulticastDnsMode::Disabled)
        .build()
}

/// Exactly the one H.264 of the offer, so that the answer cannot name another.
fn media_engine(video: &VideoOffer) -> Result<MediaEngine> {
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
    for uri in [PLAYOUT_DELAY_URI, TRANSPORT_WIDE_URI] {
        let extension = RTCRtpHeaderExtensionCapability { uri: uri.to_owned() };
        engine.register_header_extension(extension, RtpCodecKind::Video, None)?;
    }
    Ok(engine)
}

fn h264(video: &VideoOffer) -> RTCRtpCodec {
    let feedback = [("nack", ""), ("nack", "pli"), ("ccm", "fir"), ("transport-cc", ""), ("goog-remb", "")]
        .map(|(typ, parameter)| RTCPFeedback { typ: typ.to_owned(), parameter: parameter.to_owned() });
    RTCRtpCodec {
        mime_type: MIME_TYPE_H264.to_owned(),
        clock_rate: 90_000,
        channels: 0,
        sdp_fmtp_line: video.fmtp.clone(),
        rtcp_feedback: feedback.to_vec(),
    }
}

pub(super) fn add_track(
    connection: &mut RTCPeerConnection,
    video: &VideoOffer,
    stream: &Stream,
) -> Result<RTCRtpSenderId> {
    let coding = RTCRtpCodingParameters {
        ssrc: Some(stream.ssrc),
        rtx: stream.rtx_ssrc().map(|ssrc| RTCRtpRtxParameters { ssrc }),
        ..Default::default()
    };
    let encoding = RTCRtpEncodingParameters { rtp_coding_parameters: coding, codec: h264(video), ..Default::default() };
    let name = |what: &str| format!("edgecam-{what}");
    let track =
        MediaStreamTrack::new(name("stream"), name("video"), name("video"), RtpCodecKind::Video, vec![encoding]);
    let init = RTCRtpTransceiverInit { direction: RTCRtpTransceiverDirection::Sendonly, ..Default::default() };
    let transceiver = connection.add_transceiver_from_track(track, Some(init))?;
    let sender = connection.rtp_transceiver(transceiver).and_then(|transceiver| transceiver.sender());
    sender.ok_or(Error::ErrRTPSenderNotExisted)
}
