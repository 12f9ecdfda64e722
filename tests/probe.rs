//! The probe against the smallest camera that speaks WHEP, made with the same library's sending side.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{delete, post};
use bytes::Bytes;
use edgecam::probe::{self, Ended, Endpoint, Event, Probe, ProbeError, ProbeSettings, Shortfall, WhepError};
use rtc::ice::mdns::MulticastDnsMode;
use rtc::interceptor::{Interceptor, Packet, Slot, StreamInfo, TaggedPacket};
use rtc::peer_connection::configuration::media_engine::{MIME_TYPE_H264, MediaEngine};
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtp::codec::h264::H264Payloader;
use rtc::rtp::packetizer::Payloader;
use rtc::rtp_transceiver::rtp_sender::{
    RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters, RtpCodecKind,
};
use rtc::sansio::Protocol;
use rtc::shared::error::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use webrtc::media_stream::MediaStreamTrack;
use webrtc::media_stream::track_local::TrackLocal;
use webrtc::media_stream::track_local::static_rtp::TrackLocalStaticRTP;
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCIceGatheringState, RTCPeerConnectionState,
    RTCSessionDescription, Registry, SettingEngineBuilder, configure_nack, configure_rtcp_reports,
};

#[tokio::test]
async fn a_probe_reports_what_it_saw_and_says_goodbye() {
    let camera = Camera::start(Behaviour::default()).await;
    let settings = ProbeSettings { watch: Duration::from_secs(5), ..camera.settings() };

    let report = probe::run(settings, CancellationToken::new()).await.unwrap();

    assert_eq!(report.shortfall(), None, "{report}");
    assert!(report.answer_after <= report.connected_after.unwrap(), "{report}");
    assert!(report.first_packet_after.unwrap() <= report.first_keyframe_after.unwrap(), "{report}");
    assert!(report.counts.keyframes >= 2, "{report}");
    assert!(report.fps() > 1.0 && report.kbps() > 100.0, "{report}");
    assert_eq!(report.counts.lost, 0, "{report}");
    assert!(report.candidate_pair.as_deref().unwrap().contains("127.0.0.1"), "{report}");
    assert_eq!(camera.goodbyes(), 1);
}

#[tokio::test]
async fn pictures_arrive_as_they_were_sent() {
    let camera = Camera::start(Behaviour::default()).await;
    let mut probe = Probe::connect(&camera.settings()).await.unwrap();

    let keyframe = probe.next_keyframe().await.unwrap();

    assert_eq!(keyframe.annex_b(), picture(0));
    probe.close().await;
}

#[tokio::test]
async fn a_keyframe_request_reaches_the_camera() {
    let mut camera = Camera::start(Behaviour::default()).await;
    let mut probe = Probe::connect(&camera.settings()).await.unwrap();
    probe.next_keyframe().await.unwrap();

    probe.request_keyframe().await.unwrap();

    camera.keyframe_request().await;
    probe.close().await;
}

#[tokio::test]
async fn a_camera_that_sends_nothing_is_a_shortfall_and_not_an_error() {
    let camera = Camera::start(Behaviour { silent: true, ..Behaviour::default() }).await;
    let mut probe = Probe::connect(&camera.settings()).await.unwrap();
    assert!(matches!(probe.next().await, Event::Connected));

    let report = probe.close().await;

    assert_eq!(report.shortfall(), Some(Shortfall::NoPackets));
    assert_eq!(camera.goodbyes(), 1);
}

#[tokio::test]
async fn a_camera_that_closes_its_end_ends_the_probe() {
    let camera = Camera::start(Behaviour::default()).await;
    let mut probe = Probe::connect(&camera.settings()).await.unwrap();
    probe.next_keyframe().await.unwrap();

    camera.hang_up();

    assert_eq!(probe.watch_for(Duration::from_secs(20)).await, Some(Ended::Closed));
    assert!(matches!(probe.next().await, Event::Ended(Ended::Closed)));
    probe.close().await;
}

#[tokio::test]
async fn stopping_ends_a_probe_early_with_a_goodbye() {
    let camera = Camera::start(Behaviour::default()).await;
    let stopping = CancellationToken::new();
    stopping.cancel();
    let settings = ProbeSettings { watch: Duration::from_secs(3600), ..camera.settings() };

    probe::run(settings, stopping).await.unwrap();

    assert_eq!(camera.goodbyes(), 1);
}

#[tokio::test]
async fn a_refusal_is_passed_on_in_the_cameras_words() {
    let camera = Camera::start(Behaviour { full: true, ..Behaviour::default() }).await;

    let error = Probe::connect(&camera.settings()).await.err().unwrap();

    let ProbeError::Whep(error @ WhepError::Refused { .. }) = error else { panic!("{error:?}") };
    let words = error.to_string();
    assert!(words.contains("503") && words.contains("try again in 7 s") && words.contains("all 8 places"), "{words}");
}

#[tokio::test]
async fn a_token_is_sent_and_a_missing_one_is_explained() {
    let camera = Camera::start(Behaviour { token: Some("sesame"), ..Behaviour::default() }).await;
    let mut settings = camera.settings();

    let error = Probe::connect(&settings).await.err().unwrap();
    let ProbeError::Whep(error) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("--token-file"), "{error}");

    settings.endpoint = settings.endpoint.with_token("sesame".to_owned());
    let probe = Probe::connect(&settings).await.unwrap();
    probe.close().await;
    assert_eq!(camera.goodbyes(), 1);
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    // A port that was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let settings = ProbeSettings::new(Endpoint::parse(&format!("http://{address}/front")).unwrap());

    let error = Probe::connect(&settings).await.err().unwrap();

    let ProbeError::Whep(error @ WhepError::Unreachable { .. }) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[derive(Clone, Copy, Default)]
struct Behaviour {
    silent: bool,
    full: bool,
    token: Option<&'static str>,
}

/// A WHEP endpoint that sends made-up pictures to everybody who asks.
struct Camera {
    address: SocketAddr,
    shared: Arc<Shared>,
    keyframe_requests: mpsc::Receiver<()>,
    hang_up: watch::Sender<bool>,
}

struct Shared {
    behaviour: Behaviour,
    goodbyes: AtomicU64,
    keyframe_requested: mpsc::Sender<()>,
    hung_up: watch::Receiver<bool>,
    tasks: TaskTracker,
}

impl Camera {
    async fn start(behaviour: Behaviour) -> Self {
        let (keyframe_requested, keyframe_requests) = mpsc::channel(8);
        let (hang_up, hung_up) = watch::channel(false);
        let tasks = TaskTracker::new();
        let goodbyes = AtomicU64::new(0);
        let shared = Arc::new(Shared { behaviour, goodbyes, keyframe_requested, hung_up, tasks: tasks.clone() });
        let router = Router::new()
            .route("/whep/front", post(offer))
            .route("/whep/front/session", delete(goodbye))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move { axum::serve(listener, router).await });
        Self { address, shared, keyframe_requests, hang_up }
    }

    fn settings(&self) -> ProbeSettings {
        ProbeSettings::new(Endpoint::parse(&format!("http://{}/front", self.address)).unwrap())
    }

    fn goodbyes(&self) -> u64 {
        self.shared.goodbyes.load(Ordering::Relaxed)
    }

    async fn keyframe_request(&mut self) {
        tokio::time::timeout(Duration::from_secs(20), self.keyframe_requests.recv()).await.unwrap().unwrap();
    }

    fn hang_up(&self) {
        self.hang_up.send_replace(true);
    }
}

async fn goodbye(State(camera): State<Arc<Shared>>, headers: HeaderMap) -> StatusCode {
    if !may_enter(&camera, &headers) {
        return StatusCode::UNAUTHORIZED;
    }
    camera.goodbyes.fetch_add(1, Ordering::Relaxed);
    StatusCode::OK
}

fn may_enter(camera: &Shared, headers: &HeaderMap) -> bool {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    camera.behaviour.token.is_none_or(|token| bearer == Some(&format!("Bearer {token}")))
}

async fn offer(State(camera): State<Arc<Shared>>, headers: HeaderMap, sdp: String) -> axum::response::Response {
    assert_eq!(headers[header::CONTENT_TYPE], "application/sdp");
    assert!(sdp.contains("a=recvonly") && sdp.contains("a=candidate:") && sdp.contains("a=rtcp-mux"), "{sdp}");
    if camera.behaviour.full {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "7")], "all 8 places are taken")
            .into_response();
    }
    if !may_enter(&camera, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let answer = answer(&camera, sdp).await;
    let headers = [(header::CONTENT_TYPE, "application/sdp"), (header::LOCATION, "/whep/front/session")];
    (StatusCode::CREATED, headers, answer).into_response()
}

async fn answer(camera: &Arc<Shared>, offer: String) -> String {
    let rtp_codec = RTCRtpCodec {
        mime_type: MIME_TYPE_H264.to_owned(),
        clock_rate: 90_000,
        sdp_fmtp_line: "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f".to_owned(),
        ..Default::default()
    };
    let mut media = MediaEngine::default();
    let codec = RTCRtpCodecParameters { rtp_codec: rtp_codec.clone(), payload_type: 102 };
    media.register_codec(codec, RtpCodecKind::Video).unwrap();
    let listener = Listener {
        keyframe_requested: camera.keyframe_requested.clone(),
        inbound: VecDeque::new(),
        outbound: VecDeque::new(),
    };
    let interceptors = configure_rtcp_reports(configure_nack(Registry::new(), &mut media));
    let interceptors = interceptors.with(Slot::from(20_000), listener);
    let settings = SettingEngineBuilder::new()
        .with_ice_connection_attempts(Some(Duration::from_millis(20)), Some(100))
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .build();
    let (happens, mut happenings) = mpsc::channel(16);
    let peer: Arc<dyn PeerConnection> = Arc::new(
        PeerConnectionBuilder::new()
            .with_media_engine(media)
            .with_interceptor_registry(interceptors)
            .with_setting_engine(settings)
            .with_handler(Arc::new(Observer { happens }))
            .with_udp_addrs(vec!["127.0.0.1:0"])
            .build()
            .await
            .unwrap(),
    );
    let coding = RTCRtpCodingParameters { ssrc: Some(7), ..Default::default() };
    let encoding = RTCRtpEncodingParameters { rtp_coding_parameters: coding, codec: rtp_codec, ..Default::default() };
    let track = MediaStreamTrack::new("s".into(), "t".into(), "l".into(), RtpCodecKind::Video, vec![encoding]);
    let track = Arc::new(TrackLocalStaticRTP::new(track));
    peer.add_track(Arc::clone(&track) as Arc<dyn TrackLocal>).await.unwrap();
    peer.set_remote_description(RTCSessionDescription::offer(offer).unwrap()).await.unwrap();
    peer.set_local_description(peer.create_answer(None).await.unwrap()).await.unwrap();
    while !matches!(happenings.recv().await, Some(Happening::Gathered)) {}
    let answer = peer.local_description().await.unwrap().sdp;
    camera.tasks.spawn(send_pictures(Arc::clone(camera), peer, track, happenings));
    answer
}

async fn send_pictures(
    camera: Arc<Shared>,
    peer: Arc<dyn PeerConnection>,
    track: Arc<TrackLocalStaticRTP>,
    mut happenings: mpsc::Receiver<Happening>,
) {
    while !matches!(happenings.recv().await, Some(Happening::Connected)) {}
    let mut hung_up = camera.hung_up.clone();
    let mut frame = tokio::time::interval(Duration::from_millis(33));
    // What a busy machine held back is not sent all at once, which a socket might not hold.
    frame.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 65_500_u16;
    for number in 0_u32.. {
        tokio::select! {
            _ = frame.tick() => {}
            _ = hung_up.wait_for(|up| *up) => break,
        }
        if camera.behaviour.silent {
            continue;
        }
        let payloads = H264Payloader::default().payload(1188, &picture(number)).unwrap();
        let last = payloads.len() - 1;
        for (index, payload) in payloads.into_iter().enumerate() {
            let header = rtc::rtp::header::Header {
                version: 2,
                marker: index == last,
                payload_type: 102,
                sequence_number: sequence,
                timestamp: number * 3000,
                ssrc: 7,
                ..Default::default()
            };
            sequence = sequence.wrapping_add(1);
            if track.write_rtp(rtc::rtp::Packet { header, payload }).await.is_err() {
                return;
            }
        }
    }
    peer.close().await.unwrap();
}

/// Every tenth is a keyframe of several packets; the bytes are no video, only shaped like it.
fn picture(number: u32) -> Bytes {
    let mut bytes = Vec::new();
    let mut put = |nal: &[u8]| {
        bytes.extend_from_slice(&[0, 0, 0, 1]);
        bytes.extend_from_slice(nal);
    };
    if number.is_multiple_of(10) {
        put(&[0x67, 0x42, 0xe0, 0x1f, 1]);
        put(&[0x68, 0xce, 2]);
        put(&[&[0x65, 0x88], [0xab; 20_000].as_slice()].concat());
    } else {
        put(&[&[0x41, 0x9a], [0xcd; 3_000].as_slice()].concat());
    }
    bytes.into()
}

enum Happening {
    Gathered,
    Connected,
}

struct Observer {
    happens: mpsc::Sender<Happening>,
}

#[async_trait]
impl PeerConnectionEventHandler for Observer {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete {
            self.happens.try_send(Happening::Gathered).ok();
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        if state == RTCPeerConnectionState::Connected {
            self.happens.try_send(Happening::Connected).ok();
        }
    }
}

/// Hears keyframe requests, which the library keeps from the application, and lets everything pass.
struct Listener {
    keyframe_requested: mpsc::Sender<()>,
    inbound: VecDeque<TaggedPacket>,
    outbound: VecDeque<TaggedPacket>,
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for Listener {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = Error;
    type Time = Instant;

    fn handle_read(&mut self, packet: TaggedPacket) -> Result<(), Error> {
        if let Packet::Rtcp(parts) = &packet.message.packet
            && parts.iter().any(|part| part.as_any().is::<PictureLossIndication>())
        {
            self.keyframe_requested.try_send(()).ok();
        }
        self.inbound.push_back(packet);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<TaggedPacket> {
        self.inbound.pop_front()
    }

    fn handle_write(&mut self, packet: TaggedPacket) -> Result<(), Error> {
        self.outbound.push_back(packet);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<TaggedPacket> {
        self.outbound.pop_front()
    }
}

impl Interceptor for Listener {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}
