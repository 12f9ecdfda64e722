//! A device without cameras or WebRTC: the real router and listener, with an engine that says what a test wants it to say.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain has failed")]

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request as HttpRequest};
use axum::middleware::map_request;
use bytes::Bytes;
use edgecam::core::access_unit::{AccessUnit, Bitrate};
use edgecam::core::camera::{CameraState, CameraStatus, LowState, Rendition, Stream, Switch};
use edgecam::core::candidate::CandidateKind;
use edgecam::core::counters::LinkCounters;
use edgecam::core::figures::{Figures, Path, Quality, Seen};
use edgecam::core::signal::{Address, CameraId, CloseReason, LinkId, RejectReason, Reply, Request, Response, Signal};
use edgecam::core::transmit::Transport;
use edgecam::core::trigger::Event;
use edgecam::http::{self, HttpSettings};
use edgecam::signaling::access::{Access, AccessSettings, Rule};
use edgecam::signaling::ice_servers::{Credentials, IceServer};
use edgecam::signaling::token::{Grant, Permission, TokenKey, mint};
use edgecam::signaling::{CameraBoard, Inbound, LinkSettings, Links, MakeJpeg, Outbox, Stills, router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const UFRAG: &str = "abcd";
pub const PWD: &str = "0123456789012345678901";

/// A browser's offer, as far as a link looks at it.
pub fn offer() -> String {
    format!(
        "v=0\r\no=- 4611 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n\
         a=ice-ufrag:{UFRAG}\r\na=ice-pwd:{PWD}\r\na=mid:0\r\na=recvonly\r\na=rtpmap:96 H264/90000\r\n"
    )
}

/// What the engine answers; restarts get other credentials.
pub fn answer(ufrag: &str) -> String {
    format!(
        "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:{ufrag}\r\n\
         a=ice-pwd:{PWD}\r\na=mid:0\r\na=sendonly\r\na=candidate:1 1 udp 2130706431 127.0.0.1 8189 typ host\r\n\
         a=end-of-candidates\r\n"
    )
}

pub fn key() -> TokenKey {
    TokenKey::new(b"a key of thirty-two bytes or more").unwrap()
}

/// A token for this device, good for an hour.
pub fn token(camera: Option<&str>) -> String {
    token_to(Permission::View, camera)
}

#[expect(clippy::disallowed_methods, reason = "the listener under test reads the same clock")]
pub fn token_to(permission: Permission, camera: Option<&str>) -> String {
    let camera = camera.map(|name| CameraId::new(name).unwrap());
    let grant = Grant { camera, permissions: vec![permission], subject: Some("a test".into()) };
    mint(&key(), "frontdoor", &grant, Some(Duration::from_secs(3600)), std::time::SystemTime::now())
}

/// A header that no true listener knows.
pub const COMES_FROM: &str = "x-test-comes-from";

/// What the engine replies to a request; nothing where the true one would say nothing.
pub type Script = fn(&Signal) -> Option<Reply>;

pub fn agreeable(signal: &Signal) -> Option<Reply> {
    match signal {
        Signal::Offer { camera, .. } if camera.as_str() == "full" => {
            Some(Reply::Rejected(RejectReason::Full { limit: 8, retry_after: Duration::from_millis(9_500) }))
        }
        Signal::Offer { sdp, .. } if !sdp.contains("H264") => Some(Reply::Rejected(RejectReason::NoCommonCodec)),
        Signal::Offer { .. } => Some(Reply::Answer { sdp: answer("srvA") }),
        Signal::Restart { .. } => Some(Reply::Answer { sdp: answer("srvB") }),
        Signal::Candidate { .. } | Signal::Prefer { .. } => None,
        Signal::Stats => Some(Reply::Stats(figures())),
        Signal::Bye => Some(Reply::Bye(CloseReason::ViewerLeft)),
    }
}

/// Of a viewer at the end of a slow network, through a relay.
pub fn figures() -> Figures {
    Figures {
        rendition: Some(Rendition::Low),
        is_thinned: true,
        estimate: Some(Bitrate::from_kbps(380)),
        sent: Bitrate::from_kbps(310),
        loss: 0.0123,
        round_trip: Some(Duration::from_micros(52_300)),
        units_sent: 1800,
        units_skipped: 12,
        path: Some(Path {
            transport: Transport::Tcp,
            local: ([192, 0, 2, 1], 8189).into(),
            local_kind: CandidateKind::Host,
            remote: ([198, 51, 100, 7], 50000).into(),
            is_remote_relayed: true,
        }),
        ..Figures::unknown(Quality::Auto)
    }
}

pub fn silent(_: &Signal) -> Option<Reply> {
    None
}

pub struct Door {
    pub address: SocketAddr,
    pub counters: Arc<LinkCounters>,
    pub stopping: CancellationToken,
    pub tasks: TaskTracker,
    pub events: broadcast::Sender<Event>,
    pub cameras: Vec<watch::Sender<CameraStatus>>,
    pub switches: Vec<watch::Sender<Switch>>,
    /// Everything the engine got, in order.
    heard: mpsc::Receiver<Heard>,
    outboxes: Arc<Mutex<HashMap<Address, Outbox>>>,
}

#[derive(Debug)]
pub enum Heard {
    Request(Request),
    Left,
    Still(CameraId),
    Switch(CameraId, bool),
}

pub struct Plan {
    pub rule: Rule,
    pub origins: Vec<String>,
    pub script: Script,
    pub links: LinkSettings,
    pub http: HttpSettings,
    pub make_jpeg: MakeJpeg,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rule: Rule::Open,
            origins: vec!["https://panel.example.org".into()],
            script: agreeable,
            links: LinkSettings::default(),
            http: HttpSettings::default(),
            make_jpeg: Arc::new(|keyframe| Ok([b"a jpeg of ", &keyframe.data[..]].concat().into())),
        }
    }
}

impl Door {
    pub async fn open() -> Self {
        Self::with(Plan::default()).await
    }

    pub async fn locked() -> Self {
        Self::with(Plan { rule: Rule::Key(key()), ..Plan::default() }).await
    }

    pub async fn with(plan: Plan) -> Self {
        let listener = http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counters, stopping, tasks) =
            (Arc::<LinkCounters>::default(), CancellationToken::new(), TaskTracker::new());
        let (engine, inbox) = mpsc::channel(64);
        let switched_off = watch::Sender::default();
        let events = broadcast::Sender::new(16);
        let (cameras, (switches, boards)): (_, (Vec<_>, _)) = ["front", "full"].into_iter().map(board).unzip();
        let settings = AccessSettings { rule: plan.rule, device: "frontdoor".into(), origins: plan.origins };
        let links = Links {
            device: "frontdoor".into(),
            cameras: boards,
            engine,
            events: events.clone(),
            stills: Stills::new(plan.make_jpeg, switched_off.subscribe()),
            access: Access::new(settings),
            ice_servers: vec![
                IceServer { urls: vec!["stun:stun.example.org".into()], credentials: Credentials::None },
                IceServer {
                    urls: vec!["turn:turn.example.org:3478".into()],
                    credentials: Credentials::Fixed { username: "u".into(), password: "p".into() },
                },
            ],
            settings: plan.links,
            counters: counters.clone(),
            tasks: tasks.clone(),
            stopping: stopping.clone(),
        };
        let outboxes = Arc::default();
        let (telling, heard) = mpsc::channel(1024);
        tasks.spawn(run_engine(inbox, plan.script, switched_off, Arc::clone(&outboxes), telling));
        tasks.spawn(http::serve(
            listener,
            router(Arc::new(links)).layer(map_request(come_from)),
            plan.http,
            counters.clone(),
            tasks.clone(),
            stopping.clone(),
        ));
        Self { address, counters, stopping, tasks, events, cameras, switches, heard, outboxes }
    }

    /// The next thing the engine hears.
    pub async fn hears(&mut self) -> Heard {
        self.heard.recv().await.expect("the engine runs")
    }

    pub async fn hears_request(&mut self) -> Request {
        match self.hears().await {
            Heard::Request(request) => request,
            other => panic!("{other:?}"),
        }
    }

    pub fn has_heard_nothing(&mut self) -> bool {
        self.heard.try_recv().is_err()
    }

    /// The engine speaks first. As the true one, it forgets a session with its bye.
    pub fn say(&self, to: &Address, reply: Reply) -> Result<(), mpsc::error::TrySendError<()>> {
        let mut outboxes = self.outboxes.lock().unwrap();
        let outbox = outboxes.get(to).expect("a session").clone();
        if matches!(reply, Reply::Bye(_)) {
            outboxes.remove(to);
        }
        let place = outbox.try_reserve()?;
        place.send(Response { to: to.clone(), id: None, reply });
        Ok(())
    }

    pub fn sessions(&self) -> Vec<Address> {
        self.outboxes.lock().unwrap().keys().cloned().collect()
    }

    /// As the engine does when the device stops.
    pub fn say_bye_to_all(&self) {
        for address in self.sessions() {
            let _ = self.say(&address, Reply::Bye(CloseReason::Shutdown));
        }
    }

    pub async fn request(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Answer::read(&mut stream).await
    }

    /// `method path`, headers without the ones every request has, and a body.
    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let host = if headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            String::new()
        } else {
            format!("Host: {}\r\n", self.address)
        };
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        self.request(&format!(
            "{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
        .await
    }
}

/// Callers on this machine may say where else they are.
async fn come_from(mut request: HttpRequest) -> HttpRequest {
    if let Some(address) = request.headers().get(COMES_FROM) {
        let address: IpAddr = address.to_str().unwrap().parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(address));
    }
    request
}

async fn run_engine(
    mut inbox: mpsc::Receiver<Inbound>,
    script: Script,
    switched_off: watch::Sender<BTreeSet<CameraId>>,
    outboxes: Arc<Mutex<HashMap<Address, Outbox>>>,
    telling: mpsc::Sender<Heard>,
) {
    while let Some(inbound) = inbox.recv().await {
        let heard = match inbound {
            Inbound::Request { request, outbox } => {
                let reply = script(&request.signal);
                if reply.as_ref().is_none_or(|reply| matches!(reply, Reply::Answer { .. })) {
                    outboxes.lock().unwrap().insert(request.from.clone(), outbox.clone());
                }
                if let Some(reply) = reply {
                    if matches!(reply, Reply::Bye(_)) {
                        outboxes.lock().unwrap().remove(&request.from);
                    }
                    let _ = outbox.try_send(Response { to: request.from.clone(), id: request.id.clone(), reply });
                }
                Heard::Request(request)
            }
            Inbound::Still { camera, reply } => {
                let _ = reply.send(if camera.as_str() == "full" { Err(busy()) } else { Ok(keyframe()) });
                Heard::Still(camera)
            }
            Inbound::Switch { camera, on, reply, .. } => {
                switched_off.send_modify(|off| {
                    if on {
                        off.remove(&camera);
                    } else {
                        off.insert(camera.clone());
                    }
                });
                let _ = reply.send(Ok(()));
                Heard::Switch(camera, on)
            }
            Inbound::Trigger { .. } => continue,
            Inbound::Figures { reply, .. } => {
                let _ = reply.send(vec![Seen { number: 7, link: LinkId::WebSocket, figures: figures() }]);
                continue;
            }
            Inbound::Left { client } => {
                outboxes.lock().unwrap().retain(|address, _| address.client != client);
                Heard::Left
            }
        };
        let _ = telling.try_send(heard);
    }
}

fn busy() -> RejectReason {
    RejectReason::Busy { retry_after: Duration::from_secs(1) }
}

#[expect(clippy::disallowed_methods, reason = "any time will do")]
fn keyframe() -> AccessUnit {
    AccessUnit { captured_at: std::time::Instant::now(), is_keyframe: true, data: Bytes::from_static(b"a keyframe") }
}

type Board = (watch::Sender<CameraStatus>, (watch::Sender<Switch>, CameraBoard));

fn board(name: &str) -> Board {
    let (sender, status) =
        watch::channel(CameraStatus { state: CameraState::Idle, stream: None, low: LowState::Closed });
    let id = CameraId::new(name).unwrap();
    let (switching, switch) = watch::channel(Switch::default());
    (sender, (switching, CameraBoard { id, max_viewers: 8, status, switch, counters: Arc::default() }))
}

pub fn stream() -> Stream {
    Stream {
        source: "YUYV 1280x720 at 30 fps from /dev/video0".into(),
        width: 1280,
        height: 720,
        fps: 30,
        encoder: "x264enc".into(),
        encoder_reason: "no hardware encoder found".into(),
    }
}

/// One HTTP response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A server that cuts a client off may leave it with a reset; what came before it counts.
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|s| s.parse().ok()).unwrap_or(0);
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Self { status, headers, body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `code` of problem details.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(self.json()["status"], self.status);
        assert!(!self.json()["detail"].as_str().unwrap().is_empty());
        self.json()["code"].as_str().unwrap().to_owned()
    }
}
