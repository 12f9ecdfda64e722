//! Viewers whose network drops UDP, against the real program: all they do goes through one TCP connection to the media port.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test is where time begins, and may fail loudly")]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/ports.rs"]
mod ports;
#[path = "support/viewer.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared by several test programs")]
mod viewer;

use std::future::pending;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use edgecam::net::framing::{Frames, put};
use edgecam::probe::daemon;
use futures_util::{SinkExt, StreamExt};
use machine::{Daemon, Machine};
use ports::free_port;
use rtc::shared::TransportProtocol;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use viewer::{Tells, Viewer};

/// Long enough for a busy machine; reached only when something is broken.
const PATIENCE: Duration = Duration::from_secs(40);
/// Pictures that may be captured, and not seen yet, while the device is asked for its figures.
const ON_THE_WAY: usize = 15;

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_without_udp_watches_by_tcp() {
    let device = Device::start();
    let mut ann = Ann::comes(&device).await;
    ann.sees(60).await;
    assert_eq!(device.figure("edgecam_media_connections"), 1);
    ann.leaves().await;
    device.comes_to("edgecam_camera_viewers{camera=\"front\"}", 0).await;
    drop(ann);
    device.comes_to("edgecam_media_connections", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_reads_nothing_costs_the_others_no_picture() {
    let device = Device::start();
    let mut ann = Ann::comes(&device).await;
    let mut bob = Ann::comes(&device).await;
    bob.sees(30).await;
    ann.sees(30).await;
    // From here on ann's connection stands, and nobody reads it.
    let dropped = || device.figure("edgecam_media_connections_dropped_bytes_total");
    let before = (device.captured(), bob.pictures());
    let give_up_at = Instant::now() + PATIENCE;
    while dropped() == 0 || bob.pictures() < before.1 + 90 {
        assert!(Instant::now() < give_up_at, "{} pictures, {} bytes dropped", bob.pictures() - before.1, dropped());
        bob.sees(30).await;
    }
    bob.sees_all(&device, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_whose_connection_breaks_opens_another_and_the_pictures_go_on() {
    let device = Device::start();
    let mut ann = Ann::comes(&device).await;
    ann.sees(30).await;
    for _ in 0..2 {
        ann.reconnects(&device).await;
        ann.sees(30).await;
    }
    assert_eq!(device.figure("edgecam_sessions_opened_total"), 1);
    assert_eq!(device.figure("edgecam_media_connections"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_whose_connection_is_gone_comes_back_by_an_ice_restart_in_the_same_session() {
    let device = Device::start();
    let mut ann = Ann::comes(&device).await;
    ann.sees(30).await;
    ann.connection = None;
    sleep(Duration::from_secs(1)).await;
    ann.restarts(&device).await;
    ann.sees(30).await;
    assert_eq!(device.figure("edgecam_sessions_opened_total"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_silent_connections_cost_their_places_and_no_viewer_anything() {
    let device = Device::start();
    let mut ann = Ann::comes(&device).await;
    ann.sees(30).await;
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(TcpStream::connect((Ipv4Addr::LOCALHOST, device.media_port)).await.unwrap());
    }
    let before = (device.captured(), ann.pictures());
    ann.sees(90).await;
    ann.sees_all(&device, before).await;
    // 32 places for each address; ann has one of them, and who comes late may find another's given up.
    let unknown = || device.figure("edgecam_media_connections_unknown_total");
    let give_up_at = Instant::now() + PATIENCE;
    while unknown() + device.figure("edgecam_media_connections_refused_total") < 500 {
        assert!(Instant::now() < give_up_at, "{} had a place and are shown out", unknown());
        sleep(Duration::from_millis(100)).await;
    }
    assert!((31..100).contains(&unknown()), "{} had a place", unknown());
    assert_eq!(device.figure("edgecam_media_connections"), 1);
}

/// The real program with a test camera.
struct Device {
    page: SocketAddr,
    media_port: u16,
    _daemon: Daemon,
    _machine: Machine,
}

impl Device {
    fn start() -> Self {
        let (page, media_port) = (free_port(), free_port());
        let machine = Machine::new(&format!(
            "[http]\nlisten = \"127.0.0.1:{page}\"\n[ice]\nudp_port = {media_port}\nadvertise = [\"127.0.0.1\"]\n\
             [[camera]]\nid = \"front\"\nsource = \"test\"\nwidth = 640\nheight = 360\n"
        ));
        let daemon = machine.start();
        Self { page: SocketAddr::from((Ipv4Addr::LOCALHOST, page)), media_port, _daemon: daemon, _machine: machine }
    }

    /// What `/metrics` says of one name, with its labels.
    fn figure(&self, name: &str) -> usize {
        let give_up_at = Instant::now() + PATIENCE;
        let (_, figures) = loop {
            match daemon::get(self.page, "/metrics", None) {
                Ok(answer) => break answer,
                // It has three seconds; a busy machine may need more.
                Err(error) => assert!(Instant::now() < give_up_at, "{error}"),
            }
        };
        let value = figures.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in\n{figures}")).parse().unwrap()
    }

    fn captured(&self) -> usize {
        self.figure("edgecam_camera_pictures_captured_total{camera=\"front\"}")
    }

    async fn comes_to(&self, name: &str, value: usize) {
        let give_up_at = Instant::now() + PATIENCE;
        while self.figure(name) != value {
            assert!(Instant::now() < give_up_at, "{name} stays at {}", self.figure(name));
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A viewer who has nothing but TCP.
struct Ann {
    viewer: Viewer,
    signaling: WebSocketStream<MaybeTlsStream<TcpStream>>,
    connection: Option<TcpStream>,
    frames: Frames,
    unsent: Vec<u8>,
}

impl Ann {
    async fn comes(device: &Device) -> Self {
        let mut viewer = Viewer::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)), Tells::Arrivals, Instant::now());
        viewer.transport = TransportProtocol::TCP;
        let sdp = viewer.offer(false, Instant::now());
        let (signaling, _) = connect_async(format!("ws://{}/ws", device.page)).await.unwrap();
        let mut ann = Self { viewer, signaling, connection: None, frames: Frames::default(), unsent: Vec::new() };
        ann.say(json!({ "type": "offer", "camera": "front", "description": { "type": "offer", "sdp": sdp } })).await;
        ann.hears_answer(device).await;
        ann
    }

    /// A new ICE user name, a new connection, the same session.
    async fn restarts(&mut self, device: &Device) {
        let sdp = self.viewer.offer(true, Instant::now());
        self.say(json!({ "type": "restart", "description": { "type": "offer", "sdp": sdp } })).await;
        self.hears_answer(device).await;
    }

    /// As browsers do when their connection breaks, without a word to anybody.
    async fn reconnects(&mut self, device: &Device) {
        self.connection = None;
        self.connect(device).await;
    }

    async fn leaves(&mut self) {
        self.say(json!({ "type": "bye" })).await;
    }

    async fn say(&mut self, mut message: Value) {
        message["v"] = 1.into();
        message["id"] = "1".into();
        message["session"] = "tile-1".into();
        self.signaling.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn hears_answer(&mut self, device: &Device) {
        let sdp = loop {
            let Message::Text(text) = timeout(PATIENCE, self.signaling.next()).await.unwrap().unwrap().unwrap() else {
                continue;
            };
            let message: Value = serde_json::from_str(&text).unwrap();
            match message["type"].as_str() {
                Some("answer") => break message["description"]["sdp"].as_str().unwrap().to_owned(),
                Some("welcome") => {}
                _ => panic!("{message}"),
            }
        };
        let passive = format!(" 127.0.0.1 {} typ host tcptype passive", device.media_port);
        assert!(sdp.lines().any(|line| line.contains(" tcp ") && line.ends_with(&passive)), "{sdp}");
        let without_udp: String =
            sdp.lines().filter(|line| !line.contains(" udp ")).map(|line| format!("{line}\r\n")).collect();
        self.viewer.answer(&without_udp, Instant::now());
        self.connect(device).await;
    }

    async fn connect(&mut self, device: &Device) {
        let socket = TcpSocket::new_v4().unwrap();
        // So that what is not read stays with the sender.
        socket.set_recv_buffer_size(32 << 10).unwrap();
        self.connection = Some(socket.connect((Ipv4Addr::LOCALHOST, device.media_port).into()).await.unwrap());
        (self.frames, self.unsent) = (Frames::default(), Vec::new());
    }

    fn pictures(&self) -> usize {
        self.viewer.received.pictures_of_a_real_camera()
    }

    /// So many pictures more.
    async fn sees(&mut self, pictures: usize) {
        let enough = self.pictures() + pictures;
        let watch = async {
            while self.pictures() < enough {
                self.step().await;
            }
        };
        if timeout(PATIENCE, watch).await.is_err() {
            panic!("{} of {enough} pictures", self.pictures());
        }
    }

    /// All pictures since there were so many captured and so many seen; those that are late come in their time.
    async fn sees_all(&mut self, device: &Device, (captured, seen): (usize, usize)) {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            let (captured, seen) = (device.captured() - captured, self.pictures() - seen);
            if seen + ON_THE_WAY >= captured {
                return;
            }
            assert!(Instant::now() < give_up_at, "{seen} of {captured}");
            self.sees(1).await;
        }
    }

    /// Until something happened.
    async fn step(&mut self) {
        let now = Instant::now();
        while let Some((_, datagram)) = self.viewer.poll_transmit() {
            put(&datagram, &mut self.unsent);
        }
        let wake_at = self.viewer.poll_timeout(now).unwrap_or(now + Duration::from_secs(1));
        let connection = self.connection.as_ref();
        let mut bytes = [0; 16 << 10];
        tokio::select! {
            () = sleep_until(wake_at.into()) => self.viewer.handle_timeout(Instant::now()),
            count = write(connection, &self.unsent) => drop(self.unsent.drain(..count)),
            count = read(connection, &mut bytes) => self.frames.push(&bytes[..count]),
        }
        let device = SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            self.connection.as_ref().map_or(0, |c| c.peer_addr().unwrap().port()),
        ));
        while let Some(datagram) = self.frames.next_datagram().unwrap() {
            self.viewer.handle_datagram(device, datagram, Instant::now());
        }
    }
}

/// Never, where there is nothing to write or nowhere to write to.
async fn write(connection: Option<&TcpStream>, bytes: &[u8]) -> usize {
    let Some(connection) = connection.filter(|_| !bytes.is_empty()) else { return pending().await };
    loop {
        connection.writable().await.unwrap();
        match connection.try_write(bytes) {
            Ok(count) => return count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn read(connection: Option<&TcpStream>, bytes: &mut [u8]) -> usize {
    let Some(connection) = connection else { return pending().await };
    loop {
        connection.readable().await.unwrap();
        match connection.try_read(bytes) {
            Ok(0) => panic!("the device closed the connection"),
            Ok(count) => return count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}
