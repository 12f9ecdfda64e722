//! What the broker, the network and others may do to a device, while somebody watches. The slow ones: `make faults`.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use edgecam::probe::Connection;
use serde_json::json;
use tokio::time::sleep;

use super::broker::{Broker, BrokerPlan, BrokerTls, PATIENCE};
use super::certificates::{Authority, Identity};
use super::client::{Client, Extras, Message};
use super::daemon::{Daemon, DaemonPlan};
use super::ports::free_port;
use super::proxy::Proxy;
use super::viewing::{Watching, answered, offer_message, said};

/// Half a minute until a dead connection is noticed, and one second to look at it.
const NOTICED_WITHIN: Duration = Duration::from_secs(30 + 1);

#[tokio::test]
async fn a_broker_that_goes_away_and_comes_back_costs_a_viewer_nothing() {
    let mut broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    let by_mqtt = Watching::by_mqtt(&mut anna, &daemon, "anna").await;
    let by_whep = Watching::by_whep(&daemon).await;
    broker.stop().await;
    daemon.is_not_linked(PATIENCE).await;
    by_mqtt.sees(30).await;
    broker.start().await;
    daemon.is_linked().await;
    is_online_at(&broker).await;
    by_mqtt.sees(15).await;
    by_mqtt.has_lost_nothing().await;
    by_whep.has_lost_nothing().await;
}

/// F05 of the fault table.
#[tokio::test]
#[ignore = "takes a minute: make faults"]
async fn after_half_a_minute_without_a_broker_the_device_is_back_within_five_seconds() {
    let mut broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let watching = Watching::by_whep(&daemon).await;
    broker.stop().await;
    sleep(Duration::from_secs(30)).await;
    broker.start().await;
    let back = Instant::now();
    is_online_at(&broker).await;
    eprintln!("online {:.1} s after the broker", back.elapsed().as_secs_f64());
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn a_device_without_a_broker_serves_its_own_network_and_finds_the_broker_later() {
    let port = free_port();
    let daemon = Daemon::with(DaemonPlan::new(&format!("mqtt://127.0.0.1:{port}"))).await;
    let watching = Watching::by_whep(&daemon).await;
    daemon.reaches("edgecam_mqtt_failures_total", "", 2.0, PATIENCE).await;
    let broker = Broker::at_port(port).await;
    daemon.is_linked().await;
    is_online_at(&broker).await;
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn a_broker_that_stops_for_a_moment_is_not_given_up() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let watching = Watching::by_whep(&daemon).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    broker.freeze();
    watching.sees(45).await;
    broker.thaw();
    ping(&mut anna, &daemon, "anna").await;
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 1.0);
    watching.has_lost_nothing().await;
}

/// F06 of the fault table.
#[tokio::test]
#[ignore = "takes two minutes: make faults"]
async fn a_broker_frozen_for_a_minute_is_noticed_and_found_again() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let watching = Watching::by_whep(&daemon).await;
    broker.freeze();
    let frozen = Instant::now();
    daemon.is_not_linked(NOTICED_WITHIN).await;
    eprintln!("noticed after {:.1} s", frozen.elapsed().as_secs_f64());
    let before = rss_kib(&daemon);
    while frozen.elapsed() < Duration::from_secs(60) {
        watching.sees(15).await;
    }
    let grown = rss_kib(&daemon).saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB grew while nothing could be sent");
    broker.thaw();
    let back = Instant::now();
    is_online_at(&broker).await;
    // The wait between two tries, and the five seconds that one takes in vain.
    assert!(back.elapsed() < Duration::from_secs(35), "{:?}", back.elapsed());
    eprintln!("online {:.1} s after the broker", back.elapsed().as_secs_f64());
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn a_port_that_swallows_everything_is_tried_until_it_answers() {
    let broker = Broker::open().await;
    let proxy = Proxy::before(broker.port()).await;
    proxy.swallows(true);
    let daemon = Daemon::with(DaemonPlan::new(&proxy.url())).await;
    let watching = Watching::by_whep(&daemon).await;
    daemon.reaches("edgecam_mqtt_failures_total", "", 1.0, PATIENCE).await;
    proxy.swallows(false);
    daemon.is_linked().await;
    is_online_at(&broker).await;
    watching.has_lost_nothing().await;
}

#[tokio::test]
#[ignore = "takes a minute: make faults"]
async fn a_connection_that_turns_into_a_black_hole_is_noticed_and_made_anew() {
    let broker = Broker::open().await;
    let proxy = Proxy::before(broker.port()).await;
    let daemon = Daemon::with(DaemonPlan::new(&proxy.url())).await;
    daemon.is_linked().await;
    let watching = Watching::by_whep(&daemon).await;
    proxy.swallows(true);
    let swallowed = Instant::now();
    daemon.is_not_linked(NOTICED_WITHIN).await;
    eprintln!("noticed after {:.1} s", swallowed.elapsed().as_secs_f64());
    proxy.swallows(false);
    daemon.reaches("edgecam_mqtt_connected", "", 1.0, Duration::from_secs(35)).await;
    is_online_at(&broker).await;
    watching.has_lost_nothing().await;
}

/// F07 of the fault table.
#[tokio::test]
async fn a_poisoned_topic_costs_no_connection() {
    let broker = Broker::open().await;
    let mut villain = Client::comes(broker.port(), "villain").await;
    let poison = vec![b'x'; 200_000];
    let kept = || Extras { retain: true, ..Extras::default() };
    for topic in ["rpc/villain", "rpc/anna", "cam/front/trigger", "cam/front/enabled/set"] {
        villain.publishes_with(&format!("edgecam/frontdoor/{topic}"), poison.clone(), kept()).await;
    }
    let daemon = Daemon::at(&broker).await;
    let watching = Watching::by_whep(&daemon).await;
    // And while it listens: just too long, and just not.
    for length in [200_000, 70_000, 65_000] {
        villain.publishes(&daemon.topic("rpc/villain"), vec![b'x'; length]).await;
    }
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    ping(&mut anna, &daemon, "anna").await;
    watching.sees(15).await;
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 1.0, "no connection was lost");
    assert_eq!(daemon.metric("edgecam_mqtt_failures_total", "").await, 0.0);
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn what_the_broker_kept_is_stale_and_not_obeyed() {
    let broker = Broker::open().await;
    let mut villain = Client::comes(broker.port(), "villain").await;
    let kept = || Extras { retain: true, ..Extras::default() };
    villain.publishes_with("edgecam/frontdoor/cam/front/enabled/set", "OFF", kept()).await;
    villain.publishes_with("edgecam/frontdoor/cam/front/trigger", r#"{"v":1,"id":"x","action":"wake"}"#, kept()).await;
    villain.publishes_with("edgecam/frontdoor/rpc/villain", r#"{"v":1,"id":"old","type":"ping"}"#, kept()).await;
    villain.subscribes("edgecam/frontdoor/rsp/villain").await;
    let daemon = Daemon::at(&broker).await;
    villain.publishes("edgecam/frontdoor/rpc/villain", r#"{"v":1,"id":"new","type":"ping"}"#).await;
    assert_eq!(villain.hears_json("edgecam/frontdoor/rsp/villain").await["id"], "new");
    villain.subscribes("edgecam/frontdoor/cam/front/enabled/state").await;
    assert_eq!(villain.hears("edgecam/frontdoor/cam/front/enabled/state").await.text(), "ON");
    assert_eq!(daemon.camera("front").await["state"], "idle");
}

#[tokio::test]
async fn one_clients_flood_is_dropped_and_counted_and_another_is_answered() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let watching = Watching::by_whep(&daemon).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    anna.subscribes(&daemon.topic("rsp/anna")).await;
    let flood = Flood::starts(&broker, &daemon, 2_000);
    for _ in 0..10 {
        ping(&mut anna, &daemon, "anna").await;
    }
    daemon.reaches("edgecam_mqtt_messages_dropped_total", "", 1_000.0, PATIENCE).await;
    flood.stops();
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 1.0);
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn in_a_flood_the_privacy_switch_still_shuts() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let watching = Watching::by_whep(&daemon).await;
    let mut house = Client::comes(broker.port(), "house").await;
    let state = daemon.topic("cam/front/enabled/state");
    house.subscribes(&state).await;
    let flood = Flood::starts(&broker, &daemon, 10_000);
    daemon.reaches("edgecam_mqtt_messages_dropped_total", "", 1_000.0, PATIENCE).await;
    house.publishes(&daemon.topic("cam/front/enabled/set"), "OFF").await;
    house.hears_that(&state, |state| state.text() == "OFF").await;
    watching.sees_the_end().await;
    flood.stops();
}

/// F08 of the fault table.
#[tokio::test]
#[ignore = "measures, so it wants the machine for itself: make faults"]
async fn while_ten_thousand_messages_a_second_come_another_clients_offers_are_answered_within_a_second() {
    let broker = Broker::open().await;
    let daemon = Daemon::at(&broker).await;
    let watching = Watching::by_whep(&daemon).await;
    let mut anna = Client::comes(broker.port(), "anna").await;
    let responses = daemon.topic("rsp/anna");
    anna.subscribes(&responses).await;
    let flood = Flood::starts(&broker, &daemon, 10_000);
    daemon.reaches("edgecam_mqtt_messages_dropped_total", "", 10_000.0, PATIENCE).await;
    let mut times = Vec::new();
    for number in 0..100 {
        let (mut connection, offer) = Connection::offer(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).await.unwrap();
        let (id, sent) = (number.to_string(), Instant::now());
        anna.publishes(&daemon.topic("rpc/anna"), said(&offer_message(&id, "s", &offer))).await;
        let answer = anna.hears_that(&responses, |answer| answer.json()["id"] == id.as_str()).await;
        times.push(sent.elapsed());
        connection.accept(answered(&answer.json())).await.unwrap();
        connection.close().await;
        anna.publishes(&daemon.topic("rpc/anna"), r#"{"v":1,"type":"bye","session":"s"}"#).await;
        // Below the rate of one client.
        sleep(Duration::from_millis(150)).await;
    }
    let sent = flood.stops();
    times.sort();
    eprintln!("answers: p50 {:?}, p99 {:?} with {sent:.0} messages a second beside them", times[50], times[98]);
    assert!(sent > 9_000.0, "the flood was no flood: {sent:.0} a second");
    assert!(times[98] < Duration::from_secs(1), "{:?}", times[98]);
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 1.0);
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn a_wrong_password_is_said_in_words_and_right_once_it_is_right() {
    let plan = BrokerPlan { users: vec![("frontdoor".into(), "right".into())], ..BrokerPlan::default() };
    let broker = Broker::with(plan).await;
    let mut plan = DaemonPlan::new(&broker.url());
    plan.mqtt += "username = \"frontdoor\"\npassword_file = \"password\"\n";
    plan.files.push(("password", "wrong-canary".to_owned()));
    let daemon = Daemon::with(plan).await;
    let watching = Watching::by_whep(&daemon).await;
    daemon.reaches("edgecam_mqtt_failures_total", "", 2.0, PATIENCE).await;
    let log = daemon.log();
    assert!(warns(&log, "password"), "no remedy is named:\n{log}");
    assert!(!log.contains("wrong-canary"), "the password is in the log");
    // The owner makes the broker know it.
    super::broker::write_passwords(&broker.folder().join("passwords"), &[("frontdoor", "wrong-canary")]);
    super::broker::signal("HUP", broker.pid());
    daemon.is_linked().await;
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn a_certificate_that_expired_or_is_for_somebody_else_is_not_believed() {
    let authority = Authority::new("house");
    let mut broker = Broker::with(tls(&authority, authority.expired_server("localhost"))).await;
    let mut plan = DaemonPlan::new(&broker.tls_url());
    plan.mqtt += "ca_file = \"ca.pem\"\n";
    plan.files.push(("ca.pem", authority.pem().to_owned()));
    let daemon = Daemon::with(plan).await;
    let watching = Watching::by_whep(&daemon).await;
    daemon.reaches("edgecam_mqtt_failures_total", "", 1.0, PATIENCE).await;
    assert!(warns(&daemon.log(), "expired"), "{}", daemon.log());

    broker.stop().await;
    shows(&broker, authority.server("somebody-else.example.org"));
    broker.start().await;
    reaches_more_failures(&daemon).await;
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 0.0);

    broker.stop().await;
    shows(&broker, Authority::new("somebody else").server("localhost"));
    broker.start().await;
    reaches_more_failures(&daemon).await;
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 0.0);

    broker.stop().await;
    shows(&broker, authority.server("localhost"));
    broker.start().await;
    daemon.is_linked().await;
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn a_broker_that_asks_for_certificates_gets_the_devices() {
    let authority = Authority::new("house");
    let mut plan = tls(&authority, authority.server("localhost"));
    plan.tls.as_mut().unwrap().asks_for_certificates = true;
    let broker = Broker::with(plan).await;
    let identity = authority.client("frontdoor");
    let mut plan = DaemonPlan::new(&broker.tls_url());
    plan.mqtt += "ca_file = \"ca.pem\"\nclient_cert_file = \"client.pem\"\nclient_key_file = \"client.key\"\n";
    plan.files.push(("ca.pem", authority.pem().to_owned()));
    plan.files.push(("client.pem", identity.certificate));
    plan.files.push(("client.key", identity.key));
    let daemon = Daemon::with(plan).await;
    daemon.is_linked().await;
    is_online_at(&broker).await;
}

#[tokio::test]
async fn a_topic_that_the_broker_forbids_is_named_and_the_others_work() {
    let broker = Broker::with(BrokerPlan {
        users: vec![("frontdoor".into(), "word".into()), ("anna".into(), "word".into())],
        // Everything but the camera's state.
        acl: Some(
            "user frontdoor\ntopic readwrite edgecam/frontdoor/+\ntopic readwrite edgecam/frontdoor/rpc/#\n\
             topic readwrite edgecam/frontdoor/rsp/#\nuser anna\ntopic readwrite #\n"
                .into(),
        ),
        ..BrokerPlan::default()
    })
    .await;
    let mut plan = DaemonPlan::new(&broker.url());
    plan.mqtt += "username = \"frontdoor\"\npassword_file = \"password\"\n";
    plan.files.push(("password", "word".to_owned()));
    let daemon = Daemon::with(plan).await;
    daemon.is_linked().await;
    daemon.reaches("edgecam_mqtt_topics_refused_total", "", 1.0, PATIENCE).await;
    assert!(warns(&daemon.log(), "cam/front/"), "{}", daemon.log());
    let mut anna = Client::logs_in(broker.port(), "anna", "word").await.unwrap();
    let watching = Watching::by_mqtt(&mut anna, &daemon, "anna").await;
    watching.sees(30).await;
    assert_eq!(daemon.metric("edgecam_mqtt_connects_total", "").await, 1.0, "a refusal is no reason to connect anew");
    watching.has_lost_nothing().await;
}

#[tokio::test]
async fn two_devices_of_one_name_say_so_and_do_not_wear_the_broker_out() {
    let broker = Broker::open().await;
    let first = Daemon::at(&broker).await;
    let by_first = Watching::by_whep(&first).await;
    let second = Daemon::with(DaemonPlan::new(&broker.url())).await;
    let by_second = Watching::by_whep(&second).await;
    let deadline = Instant::now() + 2 * PATIENCE;
    let mut both = first.log() + &second.log();
    while !warns(&both, "another device") {
        assert!(Instant::now() < deadline, "neither says that there is another:\n{both}");
        by_first.sees(5).await;
        both = first.log() + &second.log();
    }
    // From then on, they connect once or twice a minute: `broker/outage.rs`.
    let mut connects = 0.0;
    for daemon in [&first, &second] {
        connects += daemon.metric("edgecam_mqtt_connects_total", "").await;
    }
    assert!(connects <= 8.0, "{connects} connections");
    by_first.has_lost_nothing().await;
    by_second.has_lost_nothing().await;
}

/// Waits for the device's presence as somebody who just came sees it.
async fn is_online_at(broker: &Broker) {
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut late = Client::comes(broker.port(), "late").await;
    late.subscribes("edgecam/frontdoor/status").await;
    let online = |status: &Message| status.text() == "online";
    while Instant::now() < deadline {
        if late.hears_within("edgecam/frontdoor/status", online, Duration::from_secs(1)).await {
            return;
        }
    }
    panic!("the device is not online");
}

async fn ping(client: &mut Client, daemon: &Daemon, name: &str) {
    let id = format!("{:032x}", rand::random::<u128>());
    let message = said(&json!({ "v": 1, "id": id, "type": "ping" }));
    client.publishes(&daemon.topic(&format!("rpc/{name}")), message).await;
    client.hears_that(&daemon.topic(&format!("rsp/{name}")), |pong| pong.json()["id"] == id.as_str()).await;
}

async fn reaches_more_failures(daemon: &Daemon) {
    let before = daemon.metric("edgecam_mqtt_failures_total", "").await;
    daemon.reaches("edgecam_mqtt_failures_total", "", before + 2.0, Duration::from_secs(40)).await;
}

fn warns(log: &str, word: &str) -> bool {
    log.lines().any(|line| line.contains("WARN") && line.contains(word))
}

fn tls(authority: &Authority, server: Identity) -> BrokerPlan {
    let tls = BrokerTls {
        ca: authority.pem().to_owned(),
        certificate: server.certificate,
        key: server.key,
        asks_for_certificates: false,
    };
    BrokerPlan { tls: Some(tls), ..BrokerPlan::default() }
}

fn shows(broker: &Broker, server: Identity) {
    fs::write(broker.folder().join("server.pem"), server.certificate).unwrap();
    fs::write(broker.folder().join("server.key"), server.key).unwrap();
}

fn rss_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// One client that sends at a steady rate, as a process of its own.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<f64>,
}

impl Flood {
    fn starts(broker: &Broker, daemon: &Daemon, per_second: usize) -> Self {
        let mut child = Command::new("mosquitto_pub")
            .args(["-p", &broker.port().to_string(), "-i", "flood", "-t", &daemon.topic("rpc/flood"), "-l"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut to = child.stdin.take().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            const TURN: Duration = Duration::from_millis(10);
            let turn = "{\"v\":1,\"id\":\"flood\",\"type\":\"ping\"}\n".repeat(per_second / 100);
            let (begun, mut turns) = (Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) && to.write_all(turn.as_bytes()).is_ok() {
                turns += 1;
                std::thread::sleep((TURN * turns).saturating_sub(begun.elapsed()));
            }
            let sent = (per_second / 100) as f64 * f64::from(turns) / begun.elapsed().as_secs_f64();
            drop(to);
            child.kill().unwrap();
            child.wait().unwrap();
            sent
        });
        Self { stop, thread }
    }

    /// How many messages a second it sent.
    fn stops(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
