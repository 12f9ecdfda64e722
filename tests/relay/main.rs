//! The camera's own use of STUN and TURN servers: the real program, a real coturn, and viewers who have no other way.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a failed step is a failed test; here time begins")]
#![allow(dead_code, unreachable_pub, reason = "one program, whose modules use what they need of each other")]

#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/viewer.rs"]
mod support;

mod coturn;
mod device;
mod viewer;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use edgecam::core::access_unit::Bitrate;
use edgecam::core::counters::RelayCounters;
use edgecam::core::server_url::ServerUrl;
use edgecam::relay::{Credentials, Relay, RelayServer};
use edgecam::signaling::ice_servers::Credentials::Shared as SharedSecret;
use edgecam::signaling::ice_servers::IceServer;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::coturn::{Coturn, HOST, SECRET};
use self::device::Device;
use self::viewer::RelayedViewer;

/// Between two looks at something that gives no event.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[tokio::test]
async fn a_viewer_who_can_reach_only_the_relay_sees_the_camera() {
    let coturn = Coturn::start().await;
    let device = Device::over_udp(&coturn).await;
    let mut viewer = RelayedViewer::watching(&device).await;
    viewer.sees(30).await;
    assert!(device.metric("edgecam_relay_sent_bytes_total").await > 10_000);
    assert!(device.metric("edgecam_relay_received_bytes_total").await > 0);
    assert_eq!(device.metric("edgecam_stun_servers_answering").await, 1);
    assert!(coturn.log().contains("ChannelBind") || coturn.log().contains("CHANNEL_BIND"), "no channel was bound");
}

#[tokio::test]
async fn a_relay_is_reached_by_tcp_where_udp_is_blocked() {
    let coturn = Coturn::start().await;
    // Nobody answers at the first.
    let urls = ["turn:127.0.0.1:9".to_owned(), format!("turn:127.0.0.1:{}?transport=tcp", coturn.port)];
    let device = Device::start(&urls, SECRET, None).await;
    device.is_relayed("tcp").await;
    RelayedViewer::watching(&device).await.sees(30).await;
}

#[tokio::test]
async fn a_relay_is_reached_by_tls_if_its_certificate_is_trusted() {
    let coturn = Coturn::start().await;
    let urls = [format!("turns:{HOST}:{}", coturn.tls_port)];
    let device = Device::start(&urls, SECRET, Some(&coturn.authority_file())).await;
    device.is_relayed("tls").await;
    RelayedViewer::watching(&device).await.sees(30).await;

    let device = Device::start(&urls, SECRET, None).await;
    device.reaches("edgecam_relay_allocation_failures_total", 1, Duration::from_secs(20)).await;
    assert!(device.log().contains("it needs a certificate for its name"), "{}", device.log());
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_said_once() {
    let coturn = Coturn::start().await;
    let device = Device::start(&[format!("turn:127.0.0.1:{}", coturn.port)], "south of the river", None).await;
    device.reaches("edgecam_relay_allocation_failures_total", 2, Duration::from_secs(20)).await;
    let log = device.log();
    let said = log.lines().filter(|line| line.contains("WARN") && line.contains("refuses the credentials")).count();
    assert_eq!(said, 1, "{log}");
    assert!(!log.contains("south of the river") && !coturn.log().contains(SECRET));
}

/// The server dies (F14): who watches directly goes on, who is relayed is told, and the next one finds the relay back.
#[tokio::test]
async fn a_relay_that_dies_ends_the_sessions_that_need_it_and_no_others() {
    let mut coturn = Coturn::start().await;
    let device = Device::over_udp(&coturn).await;
    let mut relayed = RelayedViewer::watching(&device).await;
    relayed.sees(10).await;
    let mut direct = RelayedViewer::watching_directly(&device).await;
    direct.sees(10).await;
    coturn.kill();
    let died = Instant::now();
    let ended = device.reaches("edgecam_sessions_closed_total{reason=\"lost\"}", 1, Duration::from_secs(40));
    tokio::join!(ended, relayed.watches_for(Duration::from_secs(14)), direct.watches_for(Duration::from_secs(14)));
    let before = direct.pictures();
    direct.sees(10).await;
    assert!(before > 100, "{before} pictures in {:?}", died.elapsed());
    assert_eq!(device.metric("edgecam_sessions_closed_total{reason=\"lost\"}").await, 1);
    coturn.start_again().await;
    device.is_relayed("udp").await;
}

#[tokio::test]
async fn credentials_that_ended_or_were_tampered_with_are_refused() {
    let coturn = Coturn::start().await;
    let url = ServerUrl::parse(&format!("turn:127.0.0.1:{}", coturn.port)).unwrap();
    let now = SystemTime::now();
    let server =
        IceServer { urls: vec![url.to_string()], credentials: SharedSecret { secret: SECRET.as_bytes().to_vec() } };
    let good = credentials(&server, now);
    let ended = credentials(&server, now - Duration::from_secs(25 * 3600));
    // An hour more than was signed for.
    let later = Credentials { username: (good.username.parse::<u64>().unwrap() + 3600).to_string(), ..good.clone() };
    for (credentials, allocations) in [(ended, 0), (later, 0), (good, 1)] {
        assert_eq!(allocations_with(url.clone(), credentials).await, allocations);
    }
}

fn credentials(server: &IceServer, at: SystemTime) -> Credentials {
    let offered = server.offered(at);
    let (username, password) = (offered.username.unwrap(), offered.credential.unwrap());
    Credentials { username, password, hold_for: server.hold_for() }
}

/// How many allocations a camera with these credentials gets before it gives up for a moment.
async fn allocations_with(url: ServerUrl, credentials: Credentials) -> u64 {
    let mint = move || credentials.clone();
    let decided = |counters: &RelayCounters| counters.allocations.get() + counters.allocation_failures.get() > 0;
    relay_until(RelayServer { url, mint: Some(Arc::new(mint)) }, decided).await.allocations.get()
}

#[tokio::test]
async fn fresh_credentials_are_in_use_before_the_old_ones_end() {
    let coturn = Coturn::start().await;
    let url = ServerUrl::parse(&format!("turn:127.0.0.1:{}", coturn.port)).unwrap();
    let server =
        IceServer { urls: vec![url.to_string()], credentials: SharedSecret { secret: SECRET.as_bytes().to_vec() } };
    // Half of it is over at the first refresh.
    let mint =
        move || Credentials { hold_for: Some(Duration::from_secs(30)), ..credentials(&server, SystemTime::now()) };
    let server = RelayServer { url, mint: Some(Arc::new(mint)) };
    let counters = relay_until(server, |counters| counters.allocations.get() == 2).await;
    assert_eq!(counters.allocation_failures.get(), 0);
    let log = coturn.log();
    let users: BTreeSet<_> =
        log.split("new, realm=<example.org>, username=<").skip(1).map(|rest| &rest[..10]).collect();
    assert_eq!(users.len(), 2, "{users:?}");
}

/// A camera's use of this server, until its figures are as wanted.
async fn relay_until(server: RelayServer, is_enough: impl Fn(&RelayCounters) -> bool) -> Arc<RelayCounters> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let counters = Arc::<RelayCounters>::default();
    let (mut relay, mut newsroom, errands) =
        Relay::new(vec![server], Bitrate::from_kbps(2500), Arc::clone(&counters), Instant::now());
    let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(errands.run(tasks.clone(), stopping.clone()));
    let mut buffer = [0; 2048];
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_enough(&counters) {
        assert!(Instant::now() < deadline, "nothing comes of it: {counters:?}");
        while let Some(transmit) = relay.poll_transmit() {
            socket.send_to(&transmit.data, transmit.to).await.unwrap();
        }
        let wake_at = relay.poll_timeout().unwrap_or(deadline);
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let (length, from) = received.unwrap();
                relay.handle_datagram(from, socket.local_addr().unwrap(), &buffer[..length], Instant::now());
            }
            news = newsroom.next() => {
                relay.handle_news(&news.unwrap(), Instant::now());
            }
            () = tokio::time::sleep_until(wake_at.into()) => relay.handle_timeout(Instant::now()),
        }
    }
    stopping.cancel();
    counters
}

#[tokio::test]
async fn a_dead_server_leaves_the_answers_and_comes_back_into_them() {
    let mut coturn = Coturn::start().await;
    let device = Device::over_udp(&coturn).await;
    coturn.kill();
    let gone = "edgecam_relay_allocation_failures_total";
    device.reaches(gone, 1, Duration::from_secs(30)).await;
    assert_eq!(device.metric("edgecam_relay_allocated{transport=\"udp\"}").await, 0);
    coturn.start_again().await;
    device.reaches("edgecam_relay_allocated{transport=\"udp\"}", 1, Duration::from_secs(35)).await;
    RelayedViewer::watching(&device).await.sees(10).await;
}

#[tokio::test]
async fn a_device_that_was_cut_off_gets_an_allocation_beside_the_one_it_left_behind() {
    let coturn = Coturn::start().await;
    let mut device = Device::over_udp(&coturn).await;
    device.kill();
    device.start_again(None).await;
    device.is_relayed("udp").await;
    assert!(device.log().contains("another port is tried"), "{}", device.log());
    RelayedViewer::watching(&device).await.sees(10).await;
}

/// coturn 4.6 keeps what was given back for a while, and refuses its owner a new one from the same port.
#[tokio::test]
async fn a_device_that_stops_gives_its_allocation_back_and_gets_another() {
    let coturn = Coturn::start().await;
    let mut device = Device::over_udp(&coturn).await;
    device.stop().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !coturn.log().contains("lifetime=0") {
        assert!(Instant::now() < deadline, "{}", coturn.log());
        pause().await;
    }
    device.start_again(None).await;
    device.is_relayed("udp").await;
}

#[tokio::test]
async fn without_servers_nothing_is_asked_for() {
    let device = Device::start(&[], SECRET, None).await;
    for transport in ["udp", "tcp", "tls"] {
        assert_eq!(device.metric(&format!("edgecam_relay_allocated{{transport=\"{transport}\"}}")).await, 0);
    }
    assert!(!device.log().contains("edgecam::relay"), "{}", device.log());
}
