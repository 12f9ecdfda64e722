//! Through a broker: how long an offer takes, what a flood costs, and how fast a thousand devices' presence is there.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgecam::probe::Connection;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::broker::{Broker, BrokerPlan};
use crate::client::{Client, Extras};
use crate::contestant::{Contestant, Server, Show};
use crate::measures::Plan;
use crate::usage::Usage;

/// What the device does in each camera's name is left out: a picture so small that its encoder costs next to nothing.
const SMALL: Show<'_> = Show::TestPicture { width: 160, height: 96, linger_s: 60 };

/// As `docs/examples/mqtt` has it: mosquitto otherwise waits with an answer until the client's system has confirmed what came
/// before it.
const DOCUMENTED: &str = "set_tcp_nodelay true";

/// Milliseconds from the offer to the answer, by both ways in turn, with the same offer.
pub(crate) struct Answers {
    pub(crate) broker: &'static str,
    pub(crate) mqtt: Vec<f64>,
    pub(crate) websocket: Vec<f64>,
}

/// While one client sends as much as it may: what the device uses, and how another is answered.
pub(crate) struct Flooded {
    pub(crate) sent_per_second: f64,
    pub(crate) received_per_second: f64,
    pub(crate) cpu: f64,
    pub(crate) rss_kib: f64,
    pub(crate) answers: Vec<f64>,
    pub(crate) reconnects: f64,
}

/// How long a fresh subscriber waits for what so many devices have left with the broker.
pub(crate) struct Presence {
    pub(crate) devices: usize,
    pub(crate) messages: usize,
    pub(crate) times: Vec<f64>,
}

pub(crate) fn answers(plan: &Plan<'_>) -> Result<[Answers; 2]> {
    Ok([answers_of(plan, "mosquitto as installed", "")?, answers_of(plan, "mosquitto as documented", DOCUMENTED)?])
}

fn answers_of(plan: &Plan<'_>, name: &'static str, lines: &str) -> Result<Answers> {
    eprintln!("mqtt: offers and answers, {name}");
    runtime()?.block_on(async {
        let broker = pinned_broker(lines).await?;
        let server = linked(plan, &broker)?;
        let offer = an_offer().await?;
        let mut by_mqtt = Viewer::comes(&broker, "viewer").await?;
        let (mut by_websocket, _) = tokio_tungstenite::connect_async(server.websocket()).await?;
        let mut answers = Answers { broker: name, mqtt: Vec::new(), websocket: Vec::new() };
        // The first of each opens the camera and fills caches.
        for number in 0..=plan.offers {
            let name = format!("m{number}");
            answers.mqtt.push(by_mqtt.is_answered(&name, &offer).await?);
            by_mqtt.leaves(&name).await;
            pace().await;

            let name = format!("w{number}");
            let sent = Instant::now();
            by_websocket.send(Frame::text(offer_message(&name, &offer).to_string())).await?;
            loop {
                let frame = by_websocket.next().await.context("the WebSocket ended")??;
                let Frame::Text(text) = frame else { continue };
                let answer: Value = serde_json::from_str(&text)?;
                if answer["session"] == name.as_str() && answer["type"] != "bye" {
                    ensure!(answer["type"] == "answer", "{answer}");
                    break;
                }
            }
            answers.websocket.push(ms(sent.elapsed()));
            by_websocket.send(Frame::text(json!({ "v": 1, "type": "bye", "session": name }).to_string())).await?;
            pace().await;
        }
        answers.mqtt.remove(0);
        answers.websocket.remove(0);
        Ok(answers)
    })
}

pub(crate) fn flooded(plan: &Plan<'_>) -> Result<Flooded> {
    const PER_SECOND: usize = 10_000;
    eprintln!("mqtt: flood");
    runtime()?.block_on(async {
        let broker = pinned_broker(DOCUMENTED).await?;
        let server = linked(plan, &broker)?;
        let offer = an_offer().await?;
        let mut viewer = Viewer::comes(&broker, "viewer").await?;
        viewer.is_answered("first", &offer).await?;
        viewer.leaves("first").await;
        let figure = |name: &str| Ok::<_, anyhow::Error>(figure(&server.page("/metrics")?, name));
        let connects = figure("edgecam_mqtt_connects_total")?;

        let flood = Flood::starts(broker.port(), PER_SECOND)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (received, before, begun) =
            (figure("edgecam_mqtt_messages_received_total")?, Usage::of(server.pid())?, Instant::now());
        let mut answers = Vec::new();
        while begun.elapsed() < plan.look {
            let name = format!("f{}", answers.len());
            answers.push(viewer.is_answered(&name, &offer).await?);
            viewer.leaves(&name).await;
            pace().await;
        }
        let (seconds, after) = (begun.elapsed().as_secs_f64(), Usage::of(server.pid())?);
        let received = figure("edgecam_mqtt_messages_received_total")? - received;
        Ok(Flooded {
            sent_per_second: flood.stops()?,
            received_per_second: received / seconds,
            cpu: after.since(&before).cpu(),
            rss_kib: after.rss_kib as f64,
            answers,
            reconnects: figure("edgecam_mqtt_connects_total")? - connects,
        })
    })
}

pub(crate) fn presence(plan: &Plan<'_>) -> Result<Presence> {
    eprintln!("mqtt: presence of {} devices", plan.devices);
    let info = json!({
        "v": 1, "versions": [1], "device": "device-0000", "software": "edgecam 0.1.0", "cameras": [{ "id": "front" }],
        "codecs": ["H264"], "limits": { "message_bytes": 65536, "candidates": 64 },
        "topics": { "rpc": "edgecam/device-0000/rpc/<client>", "rsp": "edgecam/device-0000/rsp/<client>" }, "urls": [],
    });
    let state = json!({
        "v": 1, "enabled": true, "live": false, "state": "idle", "source": null, "viewers": 0, "max_viewers": 8,
        "encoder": null, "width": 1280, "height": 720, "fps": 30, "bitrate_kbps": null, "error": null,
    });
    runtime()?.block_on(async {
        let broker = pinned_broker(DOCUMENTED).await?;
        let mut devices = Client::comes(broker.port(), "devices").await;
        for number in 0..plan.devices {
            let kept = || Extras { retain: true, ..Extras::default() };
            let topic = |rest: &str| format!("edgecam/device-{number:04}/{rest}");
            devices.publishes_with(&topic("status"), "online", kept()).await;
            devices.publishes_with(&topic("info"), info.to_string(), kept()).await;
            devices.publishes_with(&topic("cam/front/state"), state.to_string(), kept()).await;
        }
        let messages = plan.devices * 3;
        let mut times = Vec::new();
        for turn in 0..10 {
            let begun = Instant::now();
            let mut page = Client::comes(broker.port(), &format!("page-{turn}")).await;
            // With QoS 1 mosquitto would drop all beyond max_queued_messages, 1000 if not said otherwise.
            page.subscribes_lightly(&["edgecam/+/status", "edgecam/+/info", "edgecam/+/cam/+/state"]).await;
            for _ in 0..messages {
                page.hears_anything().await;
            }
            times.push(ms(begun.elapsed()));
        }
        Ok(Presence { devices: plan.devices, messages, times })
    })
}

/// A viewer who offers and leaves, and never watches.
struct Viewer {
    client: Client,
    name: &'static str,
}

impl Viewer {
    async fn comes(broker: &Broker, name: &'static str) -> Result<Self> {
        let mut client = Client::comes(broker.port(), name).await;
        ensure!(client.subscribes(&format!("edgecam/bench/rsp/{name}")).await, "no subscription");
        Ok(Self { client, name })
    }

    async fn is_answered(&mut self, session: &str, offer: &str) -> Result<f64> {
        let (requests, responses) =
            (format!("edgecam/bench/rpc/{}", self.name), format!("edgecam/bench/rsp/{}", self.name));
        let sent = Instant::now();
        self.client.publishes(&requests, offer_message(session, offer).to_string()).await;
        let is_ours = |json: &Value| json["session"] == session && json["type"] != "bye";
        let answer = self.client.hears_that(&responses, |message| is_ours(&message.json())).await.json();
        let time = ms(sent.elapsed());
        ensure!(answer["type"] == "answer", "{answer}");
        Ok(time)
    }

    async fn leaves(&mut self, session: &str) {
        let bye = json!({ "v": 1, "type": "bye", "session": session });
        self.client.publishes(&format!("edgecam/bench/rpc/{}", self.name), bye.to_string()).await;
    }
}

/// One client that sends at a steady rate, as a process of its own.
struct Flood {
    stop: std::sync::mpsc::SyncSender<()>,
    thread: thread::JoinHandle<Result<f64>>,
}

impl Flood {
    fn starts(port: u16, per_second: usize) -> Result<Self> {
        let mut process = std::process::Command::new("mosquitto_pub")
            .args(["-p", &port.to_string(), "-i", "flood", "-t", "edgecam/bench/rpc/flood", "-l"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .context("mosquitto_pub cannot be run")?;
        let mut lines = process.stdin.take().context("no input")?;
        let (stop, stopped) = std::sync::mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            let turn = "{\"v\":1,\"id\":\"flood\",\"type\":\"ping\"}\n".repeat(per_second / 100);
            let (begun, mut turns) = (Instant::now(), 0);
            while stopped.try_recv().is_err() {
                std::io::Write::write_all(&mut lines, turn.as_bytes())?;
                turns += 1;
                thread::sleep((Duration::from_millis(10) * turns).saturating_sub(begun.elapsed()));
            }
            let sent = (per_second / 100) as f64 * f64::from(turns) / begun.elapsed().as_secs_f64();
            process.kill()?;
            process.wait()?;
            Ok(sent)
        });
        Ok(Self { stop, thread })
    }

    /// How many messages a second it sent.
    fn stops(self) -> Result<f64> {
        let _ = self.stop.send(());
        self.thread.join().ok().context("the flood panicked")?
    }
}

/// On the viewers' core: what it uses is not the device's.
async fn pinned_broker(lines: &str) -> Result<Broker> {
    let broker = Broker::with(BrokerPlan { lines: lines.to_owned(), ..BrokerPlan::default() }).await;
    let pinned = std::process::Command::new("taskset").args(["-cp", "1", &broker.pid().to_string()]).output()?;
    ensure!(pinned.status.success(), "the broker cannot be pinned");
    Ok(broker)
}

/// The device, once it speaks with the broker.
fn linked(plan: &Plan<'_>, broker: &Broker) -> Result<Server> {
    let more = format!("[auth]\nanyone_may_watch = true\n[mqtt]\nurl = \"{}\"\n", broker.url());
    let server = Server::start_with(Contestant::Edgecam, plan.clip, SMALL, &more, plan.work)?;
    let give_up = Instant::now() + Duration::from_secs(20);
    while figure(&server.page("/metrics")?, "edgecam_mqtt_connected") < 1.0 {
        ensure!(Instant::now() < give_up, "the device does not reach the broker");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(server)
}

async fn an_offer() -> Result<String> {
    let (connection, offer) = Connection::offer(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).await?;
    connection.close().await;
    Ok(offer)
}

fn offer_message(session: &str, offer: &str) -> Value {
    let description = json!({ "type": "offer", "sdp": offer });
    json!({ "v": 1, "id": session, "type": "offer", "session": session, "camera": "camera", "description": description })
}

/// The device's own count; 0 where it has none.
fn figure(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0.0)
}

/// Below the 20 messages a second that one client may send.
async fn pace() {
    tokio::time::sleep(Duration::from_millis(60)).await;
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
