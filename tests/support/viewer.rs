//! A viewer made of the same library's receiving half: it offers, connects, decrypts, repairs loss by NACK, and keeps book
//! of the pictures it could have decoded. It sends its NACKs itself, as browsers do: the library's own generator does not
//! see what came by RTX and goes on asking for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rtc::interceptor::{Registry, Slot, TwccReceiverBuilder};
use rtc::peer_connection::configuration::interceptor_registry::configure_rtcp_reports;
use rtc::peer_connection::configuration::media_engine::{MIME_TYPE_H264, MIME_TYPE_RTX, MediaEngine};
use rtc::peer_connection::configuration::setting_engine::SettingEngineBuilder;
use rtc::peer_connection::event::RTCPeerConnectionEvent;
use rtc::peer_connection::message::RTCMessage;
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::peer_connection::state::RTCPeerConnectionState;
use rtc::peer_connection::transport::RTCIceCandidateInit;
use rtc::peer_connection::{RTCPeerConnection, RTCPeerConnectionBuilder};
use rtc::rtcp::transport_feedbacks::transport_layer_nack::{TransportLayerNack, nack_pairs_from_sequence_numbers};
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpHeaderExtensionCapability, RtpCodecKind,
};
use rtc::rtp_transceiver::{RTCRtpReceiverId, RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use rtc::sansio::Protocol;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};

pub struct Viewer {
    connection: RTCPeerConnection,
    receiver: RTCRtpReceiverId,
    /// Where its datagrams come from.
    pub address: SocketAddr,
    /// What its own machine calls that: another, once a NAT was renewed.
    inside: SocketAddr,
    /// By TCP the address is where it connects from, and its port means nothing.
    pub transport: TransportProtocol,
    pub connected: bool,
    pub received: Received,
    playout_delay_id: Option<u8>,
    next_pli_at: Option<Instant>,
    next_nack_at: Option<Instant>,
}

/// What a viewer tells of its network, beside the reports on loss that all send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// When each packet arrived, as browsers do.
    Arrivals,
    /// The same, but it knows no stream of repeats, without which its network cannot be probed.
    ArrivalsWithoutRepeats,
    /// It agreed to tell, and never does.
    Never,
    Nothing,
}

const TRANSPORT_WIDE: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
const PLAYOUT_DELAY: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
const FEEDBACK_INTERVAL: Duration = Duration::from_millis(50);

/// What is missing is asked for as often, for as long as it may still be of use.
const NACK_INTERVAL: Duration = Duration::from_millis(50);
const NACK_REACH: u64 = 200;

/// More than an offer may hold, as lines of SDP.
pub fn thousand_candidates() -> String {
    (1..=1000).map(|n| format!("a=candidate:{n} 1 udp 1 203.0.113.{} {} typ host\r\n", n % 250 + 1, 1000 + n)).collect()
}

/// What arrived, in the order of the stream.
#[derive(Default)]
pub struct Received {
    /// Packets by unwrapped sequence number.
    packets: BTreeMap<u64, Part>,
    newest: Option<u64>,
    /// Not there yet, and recent enough to be asked for.
    gaps: BTreeSet<u64>,
    pub duplicates: usize,
    pub packets_total: usize,
    /// For how long it was asked to hold pictures back: the timestamp of the first of them, and milliseconds.
    pub playout_delays: Vec<(u32, u32)>,
    ssrc: u32,
}

#[derive(Clone, Copy, PartialEq)]
struct Part {
    timestamp: u32,
    marker: bool,
    starts_keyframe: bool,
    /// The last byte of it: what its slice is filled with.
    filling: u8,
}

/// A picture that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub timestamp: u32,
    pub is_keyframe: bool,
    pub filling: u8,
}

impl Viewer {
    pub fn new(address: SocketAddr, tells: Tells, now: Instant) -> Self {
        let fmtp = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f";
        let mut media = MediaEngine::default();
        let mut feedback = vec![("nack", ""), ("nack", "pli"), ("ccm", "fir"), ("goog-remb", "")];
        let extension = RTCRtpHeaderExtensionCapability { uri: PLAYOUT_DELAY.into() };
        media.register_header_extension(extension, RtpCodecKind::Video, None).unwrap();
        let mut registry = configure_rtcp_reports(Registry::new());
        if tells != Tells::Nothing {
            feedback.push(("transport-cc", ""));
            let extension = RTCRtpHeaderExtensionCapability { uri: TRANSPORT_WIDE.into() };
            media.register_header_extension(extension, RtpCodecKind::Video, None).unwrap();
        }
        if matches!(tells, Tells::Arrivals | Tells::ArrivalsWithoutRepeats) {
            let receiver = TwccReceiverBuilder::new().with_interval(FEEDBACK_INTERVAL).build();
            registry = registry.with(Slot::TwccReceiver, receiver);
        }
        let rtcp_feedback = feedback
            .into_iter()
            .map(|(typ, parameter)| RTCPFeedback { typ: typ.into(), parameter: parameter.into() })
            .collect::<Vec<_>>();
        let repeats = (tells != Tells::ArrivalsWithoutRepeats).then(|| (MIME_TYPE_RTX, 109, "apt=108", vec![]));
        let codecs = [(MIME_TYPE_H264, 108, fmtp, rtcp_feedback)].into_iter().chain(repeats);
        for (mime_type, payload_type, sdp_fmtp_line, rtcp_feedback) in codecs {
            let rtp_codec = RTCRtpCodec {
                mime_type: mime_type.into(),
                clock_rate: 90_000,
                channels: 0,
                sdp_fmtp_line: sdp_fmtp_line.into(),
                rtcp_feedback,
            };
            media.register_codec(RTCRtpCodecParameters { rtp_codec, payload_type }, RtpCodecKind::Video).unwrap();
        }
        let setting = SettingEngineBuilder::new()
            .with_multicast_dns_mode(rtc::ice::mdns::MulticastDnsMode::Disabled)
            .with_ice_connection_attempts(Some(Duration::from_millis(20)), Some(100))
            .with_srtp_replay_protection_window(1024) // as in browsers: a keyframe reordered is more than 64 packets
            .build();
        let mut connection = RTCPeerConnectionBuilder::new()
            .with_media_engine(media)
            .with_setting_engine(setting)
            .with_interceptor_registry(registry)
            .build(now)
            .unwrap();
        let init = RTCRtpTransceiverInit { direction: RTCRtpTransceiverDirection::Recvonly, ..Default::default() };
        let transceiver = connection.add_transceiver_from_kind(RtpCodecKind::Video, Some(init)).unwrap();
        let receiver = connection.rtp_transceiver(transceiver).unwrap().receiver().unwrap();
        Self {
            connection,
            receiver,
            address,
            inside: address,
            transport: TransportProtocol::UDP,
            connected: false,
            received: Received::default(),
            playout_delay_id: None,
            next_pli_at: None,
            next_nack_at: None,
        }
    }

    /// An offer; with `restart` one that asks for new ICE credentials.
    pub fn offer(&mut self, restart: bool, now: Instant) -> String {
        if restart {
            self.connection.restart_ice();
        }
        let offer = self.connection.create_offer(None).unwrap();
        self.connection.set_local_description(now, offer).unwrap();
        self.connection.add_local_candidate(candidate(&self.candidate())).unwrap();
        let sdp = self.connection.local_description().unwrap().sdp;
        let mut extensions = sdp.lines().filter_map(|line| line.strip_prefix("a=extmap:")?.split_once(' '));
        self.playout_delay_id = extensions.find(|(_, uri)| *uri == PLAYOUT_DELAY).map(|(id, _)| id.parse().unwrap());
        sdp
    }

    pub fn candidate(&self) -> String {
        let (ip, port) = (self.inside.ip(), self.inside.port());
        if self.transport == TransportProtocol::TCP {
            return format!("candidate:1 1 tcp 1518280447 {ip} 9 typ host tcptype active");
        }
        format!("candidate:1 1 udp 2130706431 {ip} {port} typ host")
    }

    pub fn answer(&mut self, sdp: &str, now: Instant) {
        self.connection.set_remote_description(now, RTCSessionDescription::answer(sdp.into()).unwrap()).unwrap();
    }

    /// Moves to another address, as a phone from Wi-Fi to mobile data.
    pub fn roam(&mut self, address: SocketAddr) {
        (self.address, self.inside) = (address, address);
    }

    /// The NAT that it is behind takes another address for it. It does not know.
    pub fn appear_at(&mut self, address: SocketAddr) {
        self.address = address;
    }

    pub fn handle_datagram(&mut self, from: SocketAddr, data: &[u8], now: Instant) {
        let transport = TransportContext {
            local_addr: self.inside,
            peer_addr: from,
            transport_protocol: self.transport,
            ecn: None,
        };
        self.connection.handle_read(TaggedBytesMut { now, transport, message: data.into() }).unwrap();
        self.look(now);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.connection.handle_timeout(now).unwrap();
        self.look(now);
    }

    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let nack = self.next_nack_at.filter(|_| !self.received.gaps.is_empty());
        self.connection.poll_timeout().into_iter().chain(nack).min().map(|at| at.max(now + Duration::from_millis(1)))
    }

    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.connection.poll_write().map(|out| (out.transport.peer_addr, out.message.to_vec()))
    }

    pub fn ask_for_keyframe(&mut self, now: Instant) {
        use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
        let pli = PictureLossIndication { sender_ssrc: 1, media_ssrc: self.received.ssrc };
        self.connection.rtp_receiver(self.receiver).unwrap().write_rtcp(now, vec![Box::new(pli)]).unwrap();
    }

    /// Says what its network carries (draft-alvestrand-rmcat-remb-03).
    pub fn say_estimate(&mut self, kbps: u32, now: Instant) {
        use rtc::rtcp::payload_feedbacks::receiver_estimated_maximum_bitrate::ReceiverEstimatedMaximumBitrate;
        let bitrate = kbps as f32 * 1000.0;
        let ssrcs = vec![self.received.ssrc];
        self.say(Box::new(ReceiverEstimatedMaximumBitrate { sender_ssrc: 1, bitrate, ssrcs }), now);
    }

    /// Sends a control packet, whatever is in it.
    pub fn say(&mut self, packet: Box<dyn rtc::rtcp::Packet>, now: Instant) {
        self.connection.rtp_receiver(self.receiver).unwrap().write_rtcp(now, vec![packet]).unwrap();
    }

    pub fn close(&mut self) {
        self.connection.close().unwrap();
    }

    fn look(&mut self, now: Instant) {
        while let Some(event) = self.connection.poll_event() {
            if let RTCPeerConnectionEvent::OnConnectionStateChangeEvent(state) = event {
                self.connected = state == RTCPeerConnectionState::Connected;
            }
        }
        while let Some(read) = self.connection.poll_read() {
            if let RTCMessage::RtpPacket(_, packet) = read.message {
                self.received.ssrc = packet.header.ssrc;
                self.received.take(packet.header.sequence_number, &packet);
                if let Some(delay) = self.playout_delay_id.and_then(|id| packet.header.get_extension(id)) {
                    self.received.hold_back(packet.header.timestamp, &delay);
                }
            }
        }
        if self.next_nack_at.is_none_or(|at| now >= at) {
            let missing = self.received.missing();
            if !missing.is_empty() {
                self.next_nack_at = Some(now + NACK_INTERVAL);
                let nacks = nack_pairs_from_sequence_numbers(&missing);
                let nack = TransportLayerNack { sender_ssrc: 1, media_ssrc: self.received.ssrc, nacks };
                self.connection.rtp_receiver(self.receiver).unwrap().write_rtcp(now, vec![Box::new(nack)]).unwrap();
            }
        }
        // As a browser does: a gap that is not mended in a while is given up, and a keyframe asked for.
        if self.received.has_hopeless_gap() && self.next_pli_at.is_none_or(|at| now >= at) {
            self.next_pli_at = Some(now + Duration::from_millis(300));
            self.ask_for_keyframe(now);
        }
    }
}

impl Received {
    fn take(&mut self, sequence_number: u16, packet: &rtc::rtp::Packet) {
        let near = self.newest.unwrap_or((1 << 32) | u64::from(sequence_number));
        let unwrapped = near.wrapping_add_signed(i64::from(sequence_number.wrapping_sub(near as u16) as i16));
        let payload = &packet.payload;
        let starts_keyframe = payload.first().is_some_and(|first| first & 0x1f == 24);
        let filling = payload.last().copied().unwrap_or_default();
        let part = Part { timestamp: packet.header.timestamp, marker: packet.header.marker, starts_keyframe, filling };
        self.packets_total += 1;
        match self.packets.insert(unwrapped, part) {
            Some(before) => {
                assert!(before == part, "a repeated packet differs from the first");
                self.duplicates += 1;
            }
            None => {
                self.gaps.extend(near + 1..unwrapped);
                self.gaps.remove(&unwrapped);
                self.newest = Some(near.max(unwrapped));
                self.gaps = self.gaps.split_off(&near.saturating_sub(NACK_REACH));
            }
        }
    }

    /// The playout delay's minimum and maximum have 12 bits each, and count in steps of 10 ms.
    fn hold_back(&mut self, timestamp: u32, extension: &[u8]) {
        let &[high, middle, low] = extension else { panic!("{} bytes of playout delay", extension.len()) };
        let both = u32::from_be_bytes([0, high, middle, low]);
        assert_eq!(both >> 12, both & 0xfff, "minimum and maximum");
        let delay = (both >> 12) * 10;
        if self.playout_delays.last().is_none_or(|&(_, last)| last != delay) {
            self.playout_delays.push((timestamp, delay));
        }
    }

    /// The pictures that can be decoded, as (timestamp, is keyframe): whole, and no gap since a keyframe.
    pub fn pictures(&self) -> Vec<(u32, bool)> {
        self.shown().iter().map(|shown| (shown.timestamp, shown.is_keyframe)).collect()
    }

    /// The pictures that can be decoded: whole, and neither a gap nor another stream since a keyframe.
    pub fn shown(&self) -> Vec<Shown> {
        self.decodable(|stream, filling| stream == filling)
    }

    /// The same of a real camera, whose slices end as they like.
    pub fn pictures_of_a_real_camera(&self) -> usize {
        self.decodable(|_, _| true).len()
    }

    fn decodable(&self, is_of: fn(u8, u8) -> bool) -> Vec<Shown> {
        let mut pictures = Vec::new();
        let (mut decodable, mut whole, mut last, mut is_keyframe, mut stream) = (false, false, None, false, 0);
        for (&at, part) in &self.packets {
            if last != Some(at - 1) {
                (decodable, whole) = (false, false);
            }
            if part.starts_keyframe {
                (decodable, whole, is_keyframe) = (true, true, true);
            }
            if part.marker {
                if is_keyframe {
                    stream = part.filling;
                }
                decodable &= is_of(stream, part.filling);
                if decodable && whole {
                    let &Part { timestamp, filling, .. } = part;
                    pictures.push(Shown { timestamp, is_keyframe, filling });
                }
                (whole, is_keyframe) = (decodable, false);
            }
            last = Some(at);
        }
        pictures
    }

    /// Whether every packet came, sooner or later.
    pub fn is_without_gap(&self) -> bool {
        self.gaps.is_empty() && self.packets.keys().zip(self.packets.keys().skip(1)).all(|(one, next)| one + 1 == *next)
    }

    pub fn keyframes(&self) -> usize {
        self.pictures().iter().filter(|(_, is_keyframe)| *is_keyframe).count()
    }

    /// The sequence numbers not there yet, among the newest.
    fn missing(&self) -> Vec<u16> {
        self.gaps.iter().map(|&at| at as u16).collect()
    }

    fn has_hopeless_gap(&self) -> bool {
        let Some(newest) = self.newest else { return false };
        // What is still missing so far back is not asked for any more.
        let mut near =
            self.packets.range(newest.saturating_sub(300)..newest.saturating_sub(NACK_REACH)).map(|(&at, _)| at);
        let Some(mut last) = near.next() else { return false };
        near.any(|at| {
            let gap = at != last + 1;
            last = at;
            gap
        })
    }
}

fn candidate(line: &str) -> RTCIceCandidateInit {
    RTCIceCandidateInit { candidate: line.to_owned(), ..Default::default() }
}
