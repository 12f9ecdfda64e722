//! One viewer's WebRTC connection, without I/O: datagrams, time and pictures go in, datagrams and events come out.
//!
//! The only place that names `rtc`, the sans-I/O core under the crate `webrtc`. The core's own loop, one socket for all
//! and no driver per peer make a viewer cost less than half (`docs/decisions`).

mod feedback;
mod history;
mod outlet;
mod picture;
mod reports;
mod sdp;
mod sending;
mod setup;
mod stream;
mod succession;
mod transport_wide;

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
use rtc::rtp_transceiver::RTCRtpSenderId;
use rtc::sansio::Protocol;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};
use rtc::statistics::StatsSelector;
use rtc::statistics::report::RTCStatsReportEntry;
use tracing::debug;

use self::feedback::{Feedback, Heard};
use self::history::History;
use self::outlet::{Numbers, Outlet};
use self::picture::Underway;
use self::reports::Reports;
use self::sdp::RemoteCandidate;
use self::stream::{PLAYOUT_DELAY_URI, Stream};
use self::succession::{Succession, Way};
use self::transport_wide::{Numbering, TRANSPORT_WIDE_URI};
use crate::core::candidate::{Candidate, CandidateKind};
use crate::core::congestion::CongestionSettings;
use crate::core::counters::ViewerCounters;
use crate::core::figures::{Figures, Path, Quality};
use crate::core::playout::Playout;
use crate::core::renditions::{Network, Wanted};
use crate::core::roaming::is_stranded;
use crate::core::sessions::PeerEvent;
use crate::core::signal::RejectReason;
use crate::core::transmit::{Transmit, Transport};

pub use self::feedback::read_arrivals;
pub use self::picture::Picture;
pub use self::setup::{Identity, IdentityError, PeerSettings};

/// Each is checked fifty times a second, so that a long list would be a flood; the best come first in it.
const CHECKED_CANDIDATES: usize = 16;
/// Handling the same timeout again sooner only burns CPU.
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);
/// A viewer so near is most likely on the same network, where there is no sense in slowing the first keyframe down.
const NEAR: Duration = Duration::from_millis(10);

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
    outlet: Outlet,
    numbering: Numbering,
    playout: Playout,
    /// The picture that is being sent.
    underway: Option<Underway>,
    /// Sequence numbers of what is to be sent again, oldest first.
    repeats: VecDeque<u16>,
    /// Packets sent again to fill the probe that is under way.
    fillers: usize,
    events: VecDeque<PeerEvent>,
    succession: Succession,
    /// What part of the packets the viewer missed, as of its last report: the latest, and whether it was looked at.
    fraction_lost: f32,
    unread_loss: Option<f32>,
    reports: Reports,
    connected: bool,
    /// From connection to restart: the library drops what is written while there is none.
    has_path: bool,
    keyframe_sent_at: Option<Instant>,
    units_sent: u64,
    /// Where the stream goes: from, to, by.
    route: Option<(SocketAddr, SocketAddr, Transport)>,
    /// Addresses of the viewer's that it said are its TURN server's.
    relayed: Vec<SocketAddr>,
    /// Candidates of the viewer that we check, of this offer.
    checked: usize,
    /// When the library wants to be woken, as of the last time it was asked.
    library_timeout: Option<Instant>,
    counters: Arc<ViewerCounters>,
}

impl Peer {
    /// Answers an offer with one H.264 track to send.
    pub fn answer(
        offer: &str,
        settings: &PeerSettings,
        congestion: CongestionSettings,
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
            outlet: Outlet::new(congestion, Numbers::None, now),
            numbering: Numbering::default(),
            playout: Playout::default(),
            underway: None,
            repeats: VecDeque::new(),
            fillers: 0,
            events: VecDeque::new(),
            succession: Succession::default(),
            fraction_lost: 0.0,
            unread_loss: None,
            reports: Reports::default(),
            connected: false,
            has_path: false,
            keyframe_sent_at: None,
            units_sent: 0,
            route: None,
            relayed: Vec::new(),
            checked: 0,
            library_timeout: None,
            counters,
        };
        let answer = peer.negotiate(offer, now)?;
        peer.stream.playout_delay_id = peer.negotiated_extension(PLAYOUT_DELAY_URI);
        peer.stream.transport_wide_id = peer.negotiated_extension(TRANSPORT_WIDE_URI).filter(|_| video.transport_cc);
        let numbers = match (peer.stream.transport_wide_id, peer.stream.rtx_ssrc()) {
            (None, _) => Numbers::None,
            (Some(_), None) => Numbers::Unprobed,
            (Some(_), Some(_)) => Numbers::Probed,
        };
        peer.outlet = Outlet::new(congestion, numbers, now);
        Ok((peer, answer))
    }

    /// Answers an offer with new ICE credentials. Pictures stop until the new path stands: the library gives up the old one.
    pub fn restart(&mut self, offer: &str, candidates: &[Candidate], now: Instant) -> Result<Answer, RejectReason> {
        sdp::read_offer(offer)?;
        let candidates = std::mem::replace(&mut self.candidates, candidates.to_vec());
        let relayed = std::mem::take(&mut self.relayed);
        let checked = std::mem::take(&mut self.checked);
        let answer = self.negotiate(offer, now);
        if answer.is_ok() {
            self.succession = Succession::default();
            self.has_path = false;
        } else {
            (self.candidates, self.relayed, self.checked) = (candidates, relayed, checked);
        }
        answer
    }

    /// A candidate of the viewer, from its offer or trickled.
    pub fn add_candidate(&mut self, line: &str) -> Result<(), RejectReason> {
        let is_usable = sdp::read_candidate(line)? == RemoteCandidate::Usable;
        if !is_usable || self.checked == CHECKED_CANDIDATES {
            return Ok(()); // its own checks will show us where it is
        }
        self.checked += 1;
        self.relayed.extend(sdp::relayed_address(line));
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
        let Way { transport, local: local_addr, remote: peer_addr } =
            self.succession.name(Way { transport, local: to, remote: from }, data, now);
        let transport_protocol = match transport {
            Transport::Udp => TransportProtocol::UDP,
            Transport::Tcp => TransportProtocol::TCP,
        };
        let transport = TransportContext { local_addr, peer_addr, transport_protocol, ecn: None };
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

    /// A TCP connection of the viewer is closed.
    pub fn handle_closed(&mut self, address: SocketAddr) {
        self.succession.handle_closed(address);
    }

    /// False: it was nothing but time to send what waits; [`Self::flush`] does that.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.library_timeout.take_if(|at| *at <= now).is_none() {
            return false;
        }
        if let Err(error) = self.connection.handle_timeout(now) {
            debug!(%error, "timeout not handled");
        }
        self.poll_connection(now);
        true
    }

    /// So much of the stream went by, sent to this viewer or not: repeats may take a share of it.
    pub fn earn(&mut self, bytes: usize) {
        self.history.earn(bytes);
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let Some(TaggedBytesMut { now, transport, message: data }) = self.connection.poll_write() else {
            self.succession.end_trial();
            return None;
        };
        let TransportContext { local_addr: local, peer_addr: remote, transport_protocol, .. } = transport;
        let transport = match transport_protocol {
            TransportProtocol::TCP => Transport::Tcp,
            _ => Transport::Udp,
        };
        let Way { transport, local: from, remote: to } =
            self.succession.way(Way { transport, local, remote }, &data, now);
        let route = (from, to, transport);
        if is_rtp(&data) && self.route != Some(route) {
            self.outlet.set_is_ipv6(to.is_ipv6());
            if self.route.replace(route).is_some() {
                // Without a restart: the viewer chose another pair of candidates, or opened a new TCP connection.
                // How near it is now no check has told.
                self.begin_path(false, now);
            }
        }
        Some(Transmit { from, to, transport, data })
    }

    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.events.pop_front()
    }

    /// When it wants to be woken, for [`Self::handle_timeout`] or [`Self::flush`].
    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        self.library_timeout = self.connection.poll_timeout().map(|at| at.max(now + LEAST_TIMEOUT));
        self.timeout(now)
    }

    /// The same, when nothing happened since but that packets were sent.
    pub fn timeout(&self, now: Instant) -> Option<Instant> {
        let has_more = self.underway.is_some() || !self.repeats.is_empty() || self.outlet.is_probing();
        let waits = self.has_path && has_more;
        let flush_at = waits.then(|| self.outlet.ready_at(now));
        self.library_timeout.into_iter().chain(flush_at).min()
    }

    /// What part of the packets the viewer missed, 0 to 1; given once for each of its reports.
    pub fn take_loss(&mut self) -> Option<f32> {
        self.unread_loss.take()
    }

    /// What is heard of its network; `None`: nothing yet, or nothing again, and what was heard before holds.
    pub fn network(&self, now: Instant) -> Option<Network> {
        let is_between_paths = self.connected && !self.has_path;
        if is_between_paths { Some(Network::Silent) } else { self.outlet.network(now) }
    }

    /// Its estimate rests on more than loss reports, and its packets leave as its network allows.
    pub fn is_estimated(&self) -> bool {
        self.outlet.is_known()
    }

    /// Whether its way is gone, now that these are our addresses, and it does not look for another yet.
    pub fn is_stranded(&self, candidates: &[Candidate]) -> bool {
        self.has_path && self.path().is_some_and(|path| is_stranded(&path, &self.candidates, candidates))
    }

    pub fn set_wanted(&mut self, wanted: Wanted, now: Instant) {
        self.outlet.set_wanted(wanted, now);
    }

    /// How it fares, as far as the connection knows; what it asked for and was given is not known here.
    pub fn figures(&self, now: Instant) -> Figures {
        Figures {
            quality: Quality::Auto,
            rendition: None,
            is_thinned: false,
            estimate: self.outlet.estimate(now),
            sent: self.outlet.sent(now),
            loss: self.fraction_lost,
            round_trip: self.history.round_trip(),
            units_sent: self.units_sent,
            units_skipped: 0,
            path: self.path(),
        }
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
        for line in candidates {
            if let Err(reason) = self.add_candidate(line) {
                debug!(%reason, "a candidate in the offer is passed over");
            }
        }
        Ok(Answer { sdp, ice_ufrag })
    }

    /// The number that a header extension has in this connection (RFC 8285), where both sides know it.
    fn negotiated_extension(&mut self, uri: &str) -> Option<u8> {
        let mut sender = self.connection.rtp_sender(self.sender)?;
        let extensions = &sender.get_parameters().rtp_parameters.header_extensions;
        let id = extensions.iter().find(|extension| extension.uri == uri)?.id;
        // More would need the two-byte form (RFC 8285, section 4.3), which no browser asks for.
        u8::try_from(id).ok().filter(|id| (1..=14).contains(id))
    }

    fn poll_connection(&mut self, now: Instant) {
        while let Some(event) = self.connection.poll_event() {
            let RTCPeerConnectionEvent::OnConnectionStateChangeEvent(state) = event else { continue };
            match state {
                RTCPeerConnectionState::Connected => {
                    // Without a restart the newest answered check may have gone by another path.
                    let is_near = !self.has_path && self.is_near(now);
                    (self.connected, self.has_path) = (true, true);
                    // What was under way when the old path went is not waited for any more.
                    self.route = None;
                    self.underway = None;
                    self.repeats.clear();
                    self.begin_path(is_near, now);
                    self.events.push_back(PeerEvent::Connected);
                }
                RTCPeerConnectionState::Failed => self.events.push_back(PeerEvent::Lost),
                _ => {}
            }
        }
    }

    /// The stream goes, or goes on, by a path of which nothing is known yet.
    fn begin_path(&mut self, is_near: bool, now: Instant) {
        self.outlet.begin(is_near, now);
        self.reports.begin_path(self.stream.last_sequence_number());
    }

    /// Whether the newest ICE check was answered so soon that the viewer is most likely on the same network.
    fn is_near(&mut self, now: Instant) -> bool {
        let report = self.connection.get_stats(now, StatsSelector::None);
        let selected = report.transport().and_then(|transport| report.get(&transport.selected_candidate_pair_id));
        let Some(RTCStatsReportEntry::IceCandidatePair(pair)) = selected else { return false };
        pair.current_round_trip_time > 0.0 && pair.current_round_trip_time < NEAR.as_secs_f64()
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
                Heard::Nack { sequence_number } => self.hear_nack(sequence_number, now),
                Heard::Report { ssrc, fraction_lost, last_sequence_number, last_sender_report, delay }
                    if ssrc == self.stream.ssrc =>
                {
                    let round_trip = self.stream.round_trip(last_sender_report, delay, now);
                    if let Some(round_trip) = round_trip {
                        self.history.measured(round_trip);
                    }
                    if self.reports.take(last_sequence_number) {
                        self.fraction_lost = fraction_lost;
                        self.unread_loss = Some(fraction_lost);
                        self.outlet.handle_report(fraction_lost, round_trip, now);
                        self.hear_loss(now);
                    }
                }
                Heard::Report { .. } => {}
                Heard::Arrived(arrivals) => {
                    let arrivals = self.numbering.read(&arrivals);
                    self.outlet.handle_arrivals(&arrivals, now);
                    self.hear_loss(now);
                }
                Heard::Estimate(estimate) => self.outlet.handle_remb(estimate, now),
            }
        }
    }

    fn hear_loss(&mut self, now: Instant) {
        // To wait for repeats is no help against a full queue: fewer bits are.
        let loss = if self.outlet.is_congested() { 0.0 } else { self.outlet.loss().unwrap_or(self.fraction_lost) };
        self.playout.handle_loss(loss, self.history.round_trip(), now);
    }

    fn write_message(&mut self, message: RTCMessage, now: Instant) {
        if let Err(error) = self.connection.handle_write(TaggedRTCMessage { now, message }) {
            debug!(%error, "packet not written");
        }
    }

    fn path(&self) -> Option<Path> {
        let (local, remote, transport) = self.route?;
        let is_local = |candidate: &&Candidate| match candidate.kind {
            CandidateKind::ServerReflexive { base } => base == local,
            CandidateKind::Host | CandidateKind::Relayed { .. } => candidate.address == local,
        };
        // What a NAT forwards to an address of ours counts as the address itself.
        let kind = self.candidates.iter().filter(is_local).map(|candidate| candidate.kind);
        let local_kind = kind.min_by_key(|kind| *kind != CandidateKind::Host).unwrap_or(CandidateKind::Host);
        Some(Path { transport, local, local_kind, remote, is_remote_relayed: self.relayed.contains(&remote) })
    }
}

/// RTP and RTCP (RFC 7983, section 7).
fn is_rtp(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| (128..=191).contains(first))
}

fn unusable(error: rtc::shared::error::Error) -> RejectReason {
    RejectReason::BadOffer(error.to_string())
}
