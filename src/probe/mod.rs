//! `edgecam probe`: a headless viewer over WHEP. The tests' viewer too.
//!
//! It stands on crate `webrtc`, the async shell over the library that `peer.rs` drives by hand: one peer, no hurry.

pub mod daemon;
pub mod ice_server;
mod pictures;
mod report;
mod whep;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rtc::ice::mdns::MulticastDnsMode;
use rtc::peer_connection::configuration::media_engine::{MIME_TYPE_H264, MIME_TYPE_RTX};
use rtc::peer_connection::transport::RTCDtlsTransportState;
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtp_transceiver::rtp_sender::{RTCRtpCodec, RTCRtpCodecParameters, RtpCodecKind};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Interval, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use ureq::http::Uri;
use webrtc::media_stream::track_remote::{TrackRemote, TrackRemoteEvent};
use webrtc::peer_connection::transport::DtlsTransport;
use webrtc::peer_connection::{
    MediaEngine, PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCBundlePolicy,
    RTCConfigurationBuilder, RTCIceGatheringState, RTCPeerConnectionState, RTCSessionDescription, Registry,
    SettingEngineBuilder, configure_nack, configure_rtcp_reports, configure_twcc_receiver_only,
};
use webrtc::rtp_transceiver::{RTCRtpTransceiverDirection, RTCRtpTransceiverInit};

pub use pictures::{Counts, Packet, Picture, Pictures};
pub use report::{Report, Shortfall};
pub use whep::{Endpoint, EndpointError, WhepError};

use whep::Whep;

/// How one probe is made.
#[derive(Clone, Debug)]
pub struct ProbeSettings {
    pub endpoint: Endpoint,
    /// How long to wait for the first keyframe before giving up.
    pub patience: Duration,
    /// How long to watch from the first keyframe on.
    pub watch: Duration,
}

impl ProbeSettings {
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, patience: Duration::from_secs(10), watch: Duration::from_secs(5) }
    }
}

/// Why there was nothing to report on.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("cannot find the address of the camera's host; check the name in the URL")]
    Resolve(#[source] std::io::Error),
    #[error("no session")]
    Whep(#[from] WhepError),
    #[error("the WebRTC library failed; this is a defect of edgecam or of the camera's answer")]
    WebRtc(#[from] webrtc::error::Error),
    #[error("the blocking task ended early")]
    Task(#[from] tokio::task::JoinError),
}

/// Watches one camera and says what it saw; ends early when `stopping` is cancelled.
///
/// A camera that answered but showed nothing is no error here: see [`Report::shortfall`].
pub async fn run(settings: ProbeSettings, stopping: CancellationToken) -> Result<Report, ProbeError> {
    let mut probe = Probe::connect(&settings).await?;
    let watching = async {
        if timeout(settings.patience, probe.next_keyframe()).await.is_ok_and(|picture| picture.is_some()) {
            probe.watch_for(settings.watch).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = stopping.cancelled() => {}
    }
    Ok(probe.close().await)
}

/// One viewer of one camera, over WHEP. End it with [`Probe::close`].
pub struct Probe {
    connection: Connection,
    whep: Whep,
    session: Uri,
}

/// One viewer's connection to one camera, whichever way offer and answer travel.
///
/// Nothing happens behind the caller's back: packets are taken in while [`Connection::next`] (or a method that calls
/// it) is awaited, and a few hundred wait in between. End it with [`Connection::close`]; a dropped one leaks.
pub struct Connection {
    peer: Arc<dyn PeerConnection>,
    happenings: mpsc::Receiver<Happening>,
    track: Option<Arc<dyn TrackRemote>>,
    started: Instant,
    ended: Option<Ended>,
    look_for_end: Interval,
    pictures: Pictures,
    newest_picture_at: Option<Instant>,
    report: Report,
}

/// What a viewer notices.
#[derive(Debug)]
pub enum Event {
    Connected,
    /// A whole picture arrived.
    Picture(Picture),
    Ended(Ended),
}

/// Why no more will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The camera said goodbye.
    Closed,
    /// The camera could not be reached, or is not heard from any more.
    Lost,
}

/// What the peer connection's own task has to tell.
enum Happening {
    Gathered,
    State(RTCPeerConnectionState),
    Track(Arc<dyn TrackRemote>),
}

/// How long the local candidates may take; only sockets are opened for them.
const GATHERING: Duration = Duration::from_secs(2);

/// How long the camera's web server may take for an answer, and for a goodbye.
const HTTP: Duration = Duration::from_secs(15);

/// How long the goodbye of the peer connection itself may take.
const CLOSING: Duration = Duration::from_secs(2);

/// The library gives no event when the camera closes its end, so its state is asked for this often.
const LOOK_FOR_END: Duration = Duration::from_millis(250);

impl Probe {
    /// Offers, and returns with the camera's answer applied.
    pub async fn connect(settings: &ProbeSettings) -> Result<Self, ProbeError> {
        let whep = Whep::new(settings.endpoint.clone(), HTTP);
        let endpoint = settings.endpoint.clone();
        let hosts = spawn_blocking(move || endpoint.resolve()).await?.map_err(ProbeError::Resolve)?;
        let (mut connection, offer) = Connection::offer(&hosts).await?;
        let speaker = whep.clone();
        let answered = spawn_blocking(move || speaker.offer(&offer)).await.map_err(ProbeError::Task);
        let answer = match answered.and_then(|answer| Ok(answer?)) {
            Ok(answer) => answer,
            Err(error) => {
                connection.close().await;
                return Err(error);
            }
        };
        if let Err(error) = connection.accept(answer.sdp).await {
            let session = answer.session;
            // The camera's time limit ends the session should this fail too.
            let _ = spawn_blocking(move || whep.leave(&session)).await;
            connection.close().await;
            return Err(error);
        }
        Ok(Self { connection, whep, session: answer.session })
    }

    /// Says goodbye to the camera and frees the connection.
    pub async fn close(self) -> Report {
        let Self { connection, whep, session } = self;
        let report = connection.report_at_end().await;
        let was_ended = connection.ended.is_some();
        match spawn_blocking(move || whep.leave(&session)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if was_ended => debug!(%error, "the session was gone already"),
            Ok(Err(error)) => warn!(%error, "the camera did not take the goodbye"),
            Err(error) => warn!(%error, "no goodbye was sent"),
        }
        connection.close().await;
        report
    }
}

impl Deref for Probe {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Probe {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl Connection {
    /// Opens the ways to a camera at these addresses; gives the offer for it, with every candidate in it.
    pub async fn offer(camera: &[IpAddr]) -> Result<(Self, String), ProbeError> {
        let (happens, mut happenings) = mpsc::channel(64);
        let peer: Arc<dyn PeerConnection> = Arc::new(build_peer(camera, Observer { happens }).await?);
        match gather(&peer, &mut happenings).await {
            Ok(offer) => {
                let connection = Self {
                    peer,
                    happenings,
                    track: None,
                    started: now(),
                    ended: None,
                    look_for_end: interval(LOOK_FOR_END),
                    pictures: Pictures::default(),
                    newest_picture_at: None,
                    report: Report::default(),
                };
                Ok((connection, offer))
            }
            Err(error) => {
                close_peer(&peer).await;
                Err(error)
            }
        }
    }

    /// Takes the camera's answer.
    pub async fn accept(&mut self, answer: String) -> Result<(), ProbeError> {
        self.report.answer_after = now().duration_since(self.started);
        Ok(self.peer.set_remote_description(RTCSessionDescription::answer(answer)?).await?)
    }

    /// Waits for the next event. After [`Event::Ended`] it gives that again and again.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(ended) = self.ended {
                return Event::Ended(ended);
            }
            let event = tokio::select! {
                biased;
                Some(happening) = self.happenings.recv() => self.handle_happening(happening),
                event = next_on(self.track.as_deref()) => self.handle_track(event),
                _ = self.look_for_end.tick(), if self.report.connected_after.is_some() => {
                    if self.is_closed_by_camera().await { self.end(Ended::Closed) } else { None }
                }
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Waits for the next whole keyframe; `None` when the session ends before.
    pub async fn next_keyframe(&mut self) -> Option<Picture> {
        loop {
            match self.next().await {
                Event::Picture(picture) if picture.is_keyframe => return Some(picture),
                Event::Ended(_) => return None,
                _ => {}
            }
        }
    }

    /// Watches for this long; gives what ended the session, if anything did.
    pub async fn watch_for(&mut self, time: Duration) -> Option<Ended> {
        let until_ended = async {
            loop {
                if let Event::Ended(ended) = self.next().await {
                    return ended;
                }
            }
        };
        timeout(time, until_ended).await.ok()
    }

    /// Asks the camera for a keyframe as a decoder that lost one would (PLI, RFC 4585, section 6.3.1).
    pub async fn request_keyframe(&self) -> Result<(), ProbeError> {
        let Some(track) = &self.track else { return Ok(()) };
        for media_ssrc in track.ssrcs().await {
            let request = PictureLossIndication { sender_ssrc: 0, media_ssrc };
            track.write_rtcp(vec![Box::new(request)]).await?;
        }
        Ok(())
    }

    /// What was seen so far.
    pub fn report(&self) -> Report {
        Report { counts: self.pictures.counts(), ..self.report.clone() }
    }

    /// Frees the connection.
    pub async fn close(self) {
        close_peer(&self.peer).await;
    }

    async fn report_at_end(&self) -> Report {
        Report { candidate_pair: self.candidate_pair().await, ..self.report() }
    }

    fn handle_happening(&mut self, happening: Happening) -> Option<Event> {
        match happening {
            Happening::Gathered => None,
            Happening::Track(track) => {
                self.track = Some(track);
                None
            }
            Happening::State(RTCPeerConnectionState::Connected) if self.report.connected_after.is_none() => {
                self.report.connected_after = Some(now().duration_since(self.started));
                Some(Event::Connected)
            }
            Happening::State(RTCPeerConnectionState::Closed) => self.end(Ended::Closed),
            Happening::State(RTCPeerConnectionState::Failed) => self.end(Ended::Lost),
            Happening::State(_) => None,
        }
    }

    fn handle_track(&mut self, event: Option<TrackRemoteEvent>) -> Option<Event> {
        match event {
            Some(TrackRemoteEvent::OnRtpPacket(packet)) => self.handle_packet(Packet {
                sequence: packet.header.sequence_number,
                timestamp: packet.header.timestamp,
                marker: packet.header.marker,
                payload: packet.payload,
            }),
            Some(TrackRemoteEvent::OnEnded) | None => self.end(Ended::Closed),
            Some(_) => None,
        }
    }

    fn handle_packet(&mut self, packet: Packet) -> Option<Event> {
        let now = now();
        let after = now.duration_since(self.started);
        let report = &mut self.report;
        report.first_packet_after.get_or_insert(after);
        let picture = self.pictures.push(packet)?;
        match (report.first_keyframe_after, self.newest_picture_at) {
            (None, _) if !picture.is_keyframe => return None,
            (Some(first), Some(newest)) => {
                report.watched = after.saturating_sub(first);
                report.pictures_watched += 1;
                report.bytes_watched += picture.size() as u64;
                report.longest_gap = report.longest_gap.max(now.duration_since(newest));
            }
            _ => report.first_keyframe_after = Some(after),
        }
        self.newest_picture_at = Some(now);
        Some(Event::Picture(picture))
    }

    fn end(&mut self, ended: Ended) -> Option<Event> {
        self.ended = Some(ended);
        Some(Event::Ended(ended))
    }

    async fn is_closed_by_camera(&self) -> bool {
        let Some(transport) = self.transport().await else { return false };
        matches!(transport.state().await, Ok(RTCDtlsTransportState::Closed | RTCDtlsTransportState::Failed))
    }

    async fn candidate_pair(&self) -> Option<String> {
        self.report.connected_after?;
        let pair = self.transport().await?.ice_transport().get_selected_candidate_pair().await.ok()??;
        Some(pair.to_string())
    }

    async fn transport(&self) -> Option<Arc<dyn DtlsTransport>> {
        self.peer.get_receivers().await.first()?.transport().await.ok()?
    }
}

/// A track's next event; without a track, waits for ever.
async fn next_on(track: Option<&dyn TrackRemote>) -> Option<TrackRemoteEvent> {
    match track {
        Some(track) => track.poll().await,
        None => std::future::pending().await,
    }
}

/// Makes the offer and waits for its candidates.
async fn gather(
    peer: &Arc<dyn PeerConnection>,
    happenings: &mut mpsc::Receiver<Happening>,
) -> Result<String, ProbeError> {
    let receive = RTCRtpTransceiverInit { direction: RTCRtpTransceiverDirection::Recvonly, ..Default::default() };
    peer.add_transceiver_from_kind(RtpCodecKind::Video, Some(receive)).await?;
    peer.set_local_description(peer.create_offer(None).await?).await?;
    // WHEP cannot carry the camera's candidates later, so ours are best given at once too: no PATCH, one way less to fail.
    let gathered = async { while !matches!(happenings.recv().await, Some(Happening::Gathered) | None) {} };
    if timeout(GATHERING, gathered).await.is_err() {
        debug!("candidates are still being gathered; offering those there are");
    }
    Ok(peer.local_description().await.map(|description| description.sdp).unwrap_or_default())
}

async fn build_peer(camera: &[IpAddr], observer: Observer) -> Result<impl PeerConnection, ProbeError> {
    let mut media = MediaEngine::default();
    // The only kind edgecam sends, and its retransmissions (RFC 4588).
    let h264 = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f";
    media.register_codec(codec(102, MIME_TYPE_H264, h264), RtpCodecKind::Video)?;
    media.register_codec(codec(103, MIME_TYPE_RTX, "apt=102"), RtpCodecKind::Video)?;
    let interceptors = configure_rtcp_reports(configure_nack(Registry::new(), &mut media));
    let interceptors = configure_twcc_receiver_only(interceptors, &mut media)?;
    let settings = SettingEngineBuilder::new()
        // The library's own 200 ms would be most of the time to the first picture.
        .with_ice_connection_attempts(Some(Duration::from_millis(20)), Some(500))
        // Asks for a multicast group, which a host without a multicast route refuses.
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .build();
    let peer = PeerConnectionBuilder::new()
        .with_configuration(RTCConfigurationBuilder::new().with_bundle_policy(RTCBundlePolicy::MaxBundle).build())
        .with_media_engine(media)
        .with_interceptor_registry(interceptors)
        .with_setting_engine(settings)
        .with_handler(Arc::new(observer))
        .with_udp_addrs(local_addresses(camera))
        .build()
        .await?;
    Ok(peer)
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

/// Where to receive from a camera at these addresses: `0.0.0.0` stands for every interface but loopback.
fn local_addresses(camera: &[IpAddr]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    if camera.iter().any(IpAddr::is_loopback) {
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    } else {
        addresses.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        if camera.iter().any(IpAddr::is_ipv6) {
            addresses.push(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
        }
    }
    addresses
}

/// Without it the library keeps the connection's task, sockets and memory for good.
async fn close_peer(peer: &Arc<dyn PeerConnection>) {
    match timeout(CLOSING, peer.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "the peer connection did not close cleanly"),
        Err(_) => warn!("the peer connection did not close in {CLOSING:?}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "the probe is its own edge: it exists to measure time")]
fn now() -> Instant {
    Instant::now()
}

/// Passes on what the connection's own task says; it must never wait, since that task does.
struct Observer {
    happens: mpsc::Sender<Happening>,
}

impl Observer {
    fn tell(&self, happening: Happening) {
        if self.happens.try_send(happening).is_err() {
            debug!("the probe does not listen; an event of its connection is lost");
        }
    }
}

#[async_trait]
impl PeerConnectionEventHandler for Observer {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete {
            self.tell(Happening::Gathered);
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        self.tell(Happening::State(state));
    }

    async fn on_track(&self, track: Arc<dyn TrackRemote>) {
        self.tell(Happening::Track(track));
    }
}
