//! One viewer: a whole WebRTC receiver (ICE, DTLS, SRTP, receiver reports, NACK) on a UDP socket of its own.
//!
//! It decodes nothing; a picture counts when its last packet is decrypted. Times are the kernel's, taken when it
//! accepted the datagram, so a busy receiver does not look like a slow sender.

use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use edgecam::probe::{Packet, Pictures};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, ReceiveTimestampns};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use rtc::ice::mdns::MulticastDnsMode;
use rtc::peer_connection::certificate::RTCCertificate;
use rtc::peer_connection::configuration::RTCConfigurationBuilder;
use rtc::peer_connection::configuration::interceptor_registry::{
    Registry, configure_nack, configure_rtcp_reports, configure_twcc_receiver_only,
};
use rtc::peer_connection::configuration::media_engine::{MIME_TYPE_H264, MIME_TYPE_RTX, MediaEngine};
use rtc::peer_connection::configuration::setting_engine::SettingEngineBuilder;
use rtc::peer_connection::event::RTCPeerConnectionEvent;
use rtc::peer_connection::message::RTCMessage;
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::peer_connection::state::RTCPeerConnectionState;
use rtc::peer_connection::transport::RTCIceCandidateInit;
use rtc::peer_connection::{RTCPeerConnection, RTCPeerConnectionBuilder};
use rtc::rtp_transceiver::rtp_sender::{RTCRtpCodec, RTCRtpCodecParameters, RtpCodecKind};
use rtc::rtp_transceiver::{RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use rtc::sansio::Protocol;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};

use crate::spread::Spread;

/// Nanoseconds since 1970, the clock of the kernel's receive stamps.
pub(crate) type Stamp = u64;

pub(crate) fn stamp() -> Stamp {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as Stamp)
}

pub(crate) struct Viewer {
    connection: RTCPeerConnection,
    socket: UdpSocket,
    address: SocketAddr,
    payload_type: Option<u8>,
    pictures: Pictures,
    /// This viewer's RTP clock against the first viewer's; see [`Spread`].
    clock: Option<u32>,
    /// Decrypt everything; else only until the first pictures are seen, then look at RTP headers alone.
    thorough: bool,
    /// Header-only packets, which `pictures` does not see.
    skimmed: u64,
    pub(crate) connected_at: Option<Stamp>,
    pub(crate) first_keyframe_at: Option<Stamp>,
    pub(crate) failed: bool,
    /// When it wants [`Viewer::handle_timeout`] next.
    pub(crate) deadline: Option<Instant>,
}

/// What a viewer got since it was last asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) packets: u64,
    pub(crate) lost: u64,
}

impl Viewer {
    pub(crate) fn new(certificate: &RTCCertificate, host: IpAddr, thorough: bool) -> Result<Self> {
        let socket = UdpSocket::bind((host, 0)).context("no socket for a viewer")?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        setsockopt(&socket, RcvBuf, &(4 << 20))?;
        let address = socket.local_addr()?;
        let connection = connect(certificate, thorough).context("no peer connection")?;
        Ok(Self {
            connection,
            socket,
            address,
            payload_type: None,
            pictures: Pictures::default(),
            clock: None,
            thorough,
            skimmed: 0,
            connected_at: None,
            first_keyframe_at: None,
            failed: false,
            deadline: None,
        })
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    pub(crate) fn offer(&mut self) -> Result<String> {
        let receive = RTCRtpTransceiverInit { direction: RTCRtpTransceiverDirection::Recvonly, ..Default::default() };
        self.connection.add_transceiver_from_kind(RtpCodecKind::Video, Some(receive))?;
        self.add_own_candidate()?;
        let offer = self.connection.create_offer(None)?;
        self.connection.set_local_description(Instant::now(), offer)?;
        self.local_sdp()
    }

    pub(crate) fn take_answer(&mut self, sdp: String) -> Result<()> {
        self.payload_type = h264_payload_type(&sdp);
        self.connection.set_remote_description(Instant::now(), RTCSessionDescription::answer(sdp)?)?;
        self.flush();
        Ok(())
    }

    pub(crate) fn answer(&mut self, offer: String) -> Result<String> {
        self.payload_type = h264_payload_type(&offer);
        let now = Instant::now();
        self.connection.set_remote_description(now, RTCSessionDescription::offer(offer)?)?;
        self.add_own_candidate()?;
        let answer = self.connection.create_answer(None)?;
        self.connection.set_local_description(now, answer)?;
        self.flush();
        self.local_sdp()
    }

    /// Reads what the socket holds, up to a fair share.
    pub(crate) fn receive(&mut self, spread: &mut Spread) {
        const SHARE: usize = 64;
        let mut buffer = [0; 2048];
        let mut control = cmsg_space!(TimeSpec);
        for _ in 0..SHARE {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received =
                recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty());
            let (length, from, at) = match received {
                Ok(message) => {
                    let from = message.address.map(|address| SocketAddr::from((address.ip(), address.port())));
                    let at = message.cmsgs().ok().and_then(|mut parts| {
                        parts.find_map(|part| match part {
                            ControlMessageOwned::ScmTimestampns(at) => {
                                Some(at.tv_sec() as u64 * 1_000_000_000 + at.tv_nsec() as u64)
                            }
                            _ => None,
                        })
                    });
                    (message.bytes, from, at.unwrap_or_else(stamp))
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(_) => {
                    self.failed = true;
                    break;
                }
            };
            if let Some(from) = from {
                self.handle_datagram(from, &buffer[..length], at, spread);
            }
        }
        self.flush();
    }

    pub(crate) fn handle_timeout(&mut self) {
        // What fails here shows as a viewer without pictures.
        let _ = self.connection.handle_timeout(Instant::now());
        self.flush();
    }

    pub(crate) fn close(&mut self) {
        let _ = self.connection.close();
        self.flush();
    }

    pub(crate) fn tally(&self) -> Tally {
        let counts = self.pictures.counts();
        Tally { packets: counts.packets + self.skimmed, lost: counts.lost }
    }

    fn handle_datagram(&mut self, from: SocketAddr, data: &[u8], at: Stamp, spread: &mut Spread) {
        if let Some(header) = RtpHeader::read(data).filter(|header| Some(header.payload_type) == self.payload_type) {
            if let Some(clock) = self.clock {
                spread.packet(header.timestamp.wrapping_sub(clock), header.marker, at);
            }
            if !self.thorough && self.clock.is_some() && self.first_keyframe_at.is_some() {
                self.skimmed += 1;
                return;
            }
        }
        let transport = TransportContext {
            local_addr: self.address,
            peer_addr: from,
            transport_protocol: TransportProtocol::UDP,
            ecn: None,
        };
        let now = Instant::now();
        let _ = self.connection.handle_read(TaggedBytesMut { now, transport, message: data.into() });
        while let Some(message) = self.connection.poll_read() {
            let RTCMessage::RtpPacket(_, packet) = message.message else { continue };
            self.handle_packet(packet.header, packet.payload, at, spread);
        }
    }

    fn handle_packet(&mut self, header: rtc::rtp::Header, payload: Bytes, at: Stamp, spread: &mut Spread) {
        let (sequence, timestamp, marker) = (header.sequence_number, header.timestamp, header.marker);
        let Some(picture) = self.pictures.push(Packet { sequence, timestamp, marker, payload }) else { return };
        if picture.is_keyframe && self.first_keyframe_at.is_none() {
            self.first_keyframe_at = Some(at);
        }
        if let Some(last) = picture.payloads.last() {
            self.clock = spread.align(last, timestamp, self.clock);
        }
    }

    fn flush(&mut self) {
        while let Some(transmit) = self.connection.poll_write() {
            match self.socket.send_to(&transmit.message, transmit.transport.peer_addr) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => self.failed = true,
                _ => {}
            }
        }
        while let Some(event) = self.connection.poll_event() {
            match event {
                RTCPeerConnectionEvent::OnConnectionStateChangeEvent(RTCPeerConnectionState::Connected) => {
                    self.connected_at.get_or_insert_with(stamp);
                }
                RTCPeerConnectionEvent::OnConnectionStateChangeEvent(RTCPeerConnectionState::Failed) => {
                    self.failed = true;
                }
                _ => {}
            }
        }
        let soonest = Instant::now() + Duration::from_millis(1);
        self.deadline = self.connection.poll_timeout().map(|at| at.max(soonest));
    }

    fn add_own_candidate(&mut self) -> Result<()> {
        let candidate = format!("candidate:1 1 udp 2130706431 {} {} typ host", self.address.ip(), self.address.port());
        Ok(self.connection.add_local_candidate(RTCIceCandidateInit { candidate, ..Default::default() })?)
    }

    fn local_sdp(&self) -> Result<String> {
        let description = self.connection.local_description().ok_or_else(|| anyhow!("no local description"))?;
        Ok(description.sdp)
    }
}

struct RtpHeader {
    payload_type: u8,
    marker: bool,
    timestamp: u32,
}

impl RtpHeader {
    /// The clear part of an SRTP packet (RFC 3550, section 5.1); `None` for STUN, DTLS and RTCP (RFC 7983, RFC 5761).
    fn read(data: &[u8]) -> Option<Self> {
        let (&[first, second, _, _, t0, t1, t2, t3], _) = data.split_first_chunk::<8>()?;
        let is_rtp = (128..=191).contains(&first) && !(64..=95).contains(&(second & 0x7f));
        is_rtp.then(|| Self {
            payload_type: second & 0x7f,
            marker: second & 0x80 != 0,
            timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
        })
    }
}

fn h264_payload_type(sdp: &str) -> Option<u8> {
    let line = sdp.lines().find(|line| line.starts_with("a=rtpmap:") && line.contains("H264/90000"))?;
    line.strip_prefix("a=rtpmap:")?.split(' ').next()?.parse().ok()
}

/// What a browser would negotiate for one video, as far as a camera can answer it. One that is not thorough cannot tell which packets
/// arrive, so it does not offer to: else it would be taken for lost.
fn connect(certificate: &RTCCertificate, thorough: bool) -> Result<RTCPeerConnection> {
    let mut media = MediaEngine::default();
    let h264 = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f";
    media.register_codec(codec(102, MIME_TYPE_H264, h264), RtpCodecKind::Video)?;
    media.register_codec(codec(103, MIME_TYPE_RTX, "apt=102"), RtpCodecKind::Video)?;
    let mut interceptors = configure_rtcp_reports(configure_nack(Registry::new(), &mut media));
    if thorough {
        interceptors = configure_twcc_receiver_only(interceptors, &mut media)?;
    }
    let settings = SettingEngineBuilder::new()
        .with_ice_connection_attempts(Some(Duration::from_millis(20)), Some(500))
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .build();
    let configuration = RTCConfigurationBuilder::new().with_certificates(vec![certificate.clone()]).build();
    Ok(RTCPeerConnectionBuilder::new()
        .with_configuration(configuration)
        .with_media_engine(media)
        .with_interceptor_registry(interceptors)
        .with_setting_engine(settings)
        .build(Instant::now())?)
}

fn codec(payload_type: u8, mime_type: &str, fmtp: &str) -> RTCRtpCodecParameters {
    let rtp_codec = RTCRtpCodec {
        mime_type: mime_type.to_owned(),
        clock_rate: 90_000,
        sdp_fmtp_line: fmtp.to_owned(),
        ..Default::default()
    };
    RTCRtpCodecParameters { rtp_codec, payload_type }
}
