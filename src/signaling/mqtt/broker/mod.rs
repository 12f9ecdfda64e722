//! The connection to the broker, kept up for ever. The only place that names the MQTT library.
//!
//! One task does nothing but [`EventLoop::poll`] and hand on what comes with `try_send`; it never publishes, so it cannot wait for
//! itself. Every attempt gets an event loop of its own: nothing of a dead connection (packet ids, half-sent messages, topic
//! aliases) reaches the next one. Writers use [`Line::try_publish`], which never waits.

mod complaint;
mod footing;
mod line;
mod outage;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Filter, LastWill, Packet, PubAck, PubAckReason, Publish, RetainForwardRule, SubAck,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use rumqttc::{NetworkOptions, Outgoing as Sent, TlsConfiguration, Transport};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(super) use self::complaint::Complaint;
use self::complaint::explain;
#[cfg(test)]
pub(super) use self::line::unplugged::Unplugged;
use self::line::{Limits, Underway};
pub(super) use self::line::{Line, Outgoing, REQUESTS, Unsent};
use self::outage::{Outage, Verdict};
use super::super::{clock, wire};
use super::switch::Offs;
use super::{MqttSettings, client_id};
use crate::core::counters::{LinkCounters, MqttDrop};

/// A message of ours with the topic and properties around it. Brokers drop larger ones for us (MQTT 5, section 3.1.2.11.4).
const MAX_INCOMING: u32 = wire::MAX_MESSAGE as u32 + 4096;

/// A dead connection is seen after two of these: within half a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(14);
/// From the first packet of ours to the broker's permission to listen.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(10);
/// DNS, TCP, TLS and the broker's welcome together.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);

/// Publications the broker has not acknowledged yet. The library keeps a slot for each.
const IN_FLIGHT: u16 = 64;
/// Events handled before others get their turn.
const BATCH: u32 = 32;
/// Refused topics that are told of one by one.
const MAX_TOLD: usize = 16;

/// What somebody published on a topic of ours.
#[derive(Clone, Debug)]
pub(super) struct Incoming {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    pub(super) retained: bool,
    pub(super) response_topic: Option<String>,
    pub(super) correlation: Option<Bytes>,
}

/// What to say and hear on every connection.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) settings: MqttSettings,
    pub(super) client_id: String,
    /// Topic and payload that the broker publishes, retained, when we are gone without a word.
    pub(super) will: Option<(String, &'static str)>,
    pub(super) filters: Vec<String>,
    /// Messages kept by the broker are wanted too.
    pub(super) wants_retained: bool,
}

impl Plan {
    /// For a word with the broker beside the daemon, which keeps its connection: with a client id of its own, and no will.
    pub(super) fn beside(settings: MqttSettings, device: &str, errand: &str, filters: Vec<String>) -> Self {
        let client_id = format!("{}-{errand}", client_id(device));
        Self { settings, client_id, will: None, filters, wants_retained: false }
    }
}

/// The ends of the connection's task.
pub(super) struct Ends {
    /// `None` while there is no connection.
    pub(super) lines: watch::Sender<Option<Line>>,
    pub(super) incoming: mpsc::Sender<Incoming>,
    /// What of it is kept when there is no room.
    pub(super) offs: Arc<Offs>,
    pub(super) counters: Arc<LinkCounters>,
    /// Ends the task, whatever it does.
    pub(super) cut: CancellationToken,
}

/// Connects, for ever, until told to hang up or cut.
pub(super) async fn keep_connected(plan: Plan, ends: Ends) {
    let cut = ends.cut.clone();
    let mut dialer = Dialer { plan, ends, terms: WillTerms::default(), told: Told::default() };
    tokio::select! {
        () = cut.cancelled() => {}
        () = dialer.dial() => {}
    }
    dialer.ends.lines.send_replace(None);
    dialer.ends.counters.mqtt.connected.set(0);
}

/// One connection, ended when it stands and the broker has acknowledged `message`. Says which topics it does not let us have, to
/// listen to or to write.
///
/// # Errors
/// Why there is no connection, and the remedy.
pub(super) async fn visit(plan: Plan, message: Outgoing) -> Result<Vec<String>, String> {
    let (lines, mut standing) = watch::channel(None);
    let (incoming, _inbox) = mpsc::channel(1);
    let ends = Ends { lines, incoming, offs: Arc::default(), counters: Arc::default(), cut: CancellationToken::new() };
    let mut dialer = Dialer { plan, ends, terms: WillTerms::default(), told: Told::default() };
    let speak = async {
        let line: Option<Line> = standing.wait_for(Option::is_some).await.ok().and_then(|line| line.clone());
        if let Some(line) = line {
            // The queue is empty, and what is said is short.
            let _ = line.try_publish(&message);
            line.settled().await;
            line.hang_up();
        }
        std::future::pending().await
    };
    let (_, end) = tokio::select! {
        ended = dialer.hold_one() => ended,
        never = speak => never,
    };
    match end {
        End::HungUp => Ok(dialer.told.filters.into_iter().chain(dialer.told.topics).collect()),
        End::Silent(words) => Err(words.into()),
        End::Moved => Err(MOVED.into()),
        End::Failed(error) => Err(explain(&error, false, &dialer.plan.settings).words),
    }
}

struct Dialer {
    plan: Plan,
    ends: Ends,
    terms: WillTerms,
    told: Told,
}

/// What the broker lets a will be; found out by being refused.
#[derive(Clone, Copy)]
struct WillTerms {
    retain: bool,
    qos: QoS,
}

impl Default for WillTerms {
    fn default() -> Self {
        Self { retain: true, qos: QoS::AtLeastOnce }
    }
}

/// What was said already, so that it is not said again.
#[derive(Default)]
struct Told {
    complaint: Option<&'static str>,
    is_connected: bool,
    filters: Vec<String>,
    topics: BTreeSet<String>,
}

const MOVED: &str = "this device's address changed; connecting from the new one";

/// How a connection ended.
enum End {
    HungUp,
    Failed(ConnectionError),
    Silent(&'static str),
    /// The address it left from is not ours any more.
    Moved,
}

impl Dialer {
    async fn dial(&mut self) {
        let mut outage = Outage::new(clock());
        loop {
            let (connected_at, end) = self.hold_one().await;
            self.ends.lines.send_replace(None);
            self.ends.counters.mqtt.connected.set(0);
            let complaint = match end {
                End::HungUp => return,
                End::Silent(words) => Complaint { slug: "silent", words: words.into() },
                End::Moved => Complaint { slug: "moved", words: MOVED.into() },
                End::Failed(error) => {
                    self.adapt(&error);
                    explain(&error, connected_at.is_some(), &self.plan.settings)
                }
            };
            let Verdict { complaint, pause, was_healthy } =
                outage.judge(complaint, connected_at, clock(), rand::random());
            if was_healthy {
                self.told.complaint = None;
            }
            self.ends.counters.mqtt.failures.add(1);
            self.tell(&complaint, pause);
            sleep(pause).await;
        }
    }

    /// One connection from its first packet to its end; and since when it was up.
    async fn hold_one(&mut self) -> (Option<Instant>, End) {
        let (client, mut events) = AsyncClient::new(self.options(), REQUESTS);
        // Nothing is in the queue yet, so there is room.
        let _ = client.try_subscribe_many(self.filters());
        let mut underway = Underway::default();
        let mut limits = None;
        let mut connected_at = None;
        let mut handled = 0;
        let MqttSettings { host, port, .. } = &self.plan.settings;
        let (host, port) = (host.clone(), *port);
        let mut moved = pin!(footing::lost(&host, port));
        loop {
            let patience = if connected_at.is_some() {
                // The library looks for its pings' answers itself, but does not see a write that never ends. Of a good
                // connection something comes, a ping of ours at least, in half that time.
                2 * events.options.keep_alive()
            } else {
                SUBSCRIBED_WITHIN
            };
            let polled = tokio::select! {
                polled = timeout(patience, events.poll()) => polled,
                () = &mut moved => return (connected_at, End::Moved),
            };
            let event = match polled {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => return (connected_at, End::Failed(error)),
                Err(_) => return (connected_at, End::Silent("the broker says nothing any more")),
            };
            match event {
                Event::Incoming(Packet::Publish(publish)) => self.hand_on(publish),
                Event::Incoming(Packet::ConnAck(ack)) => limits = Some(self.welcomed(&ack, &mut events)),
                Event::Incoming(Packet::SubAck(ack)) => {
                    self.subscribed(&ack);
                    if let (Some(limits), None) = (limits, connected_at) {
                        connected_at = Some(clock());
                        let counters = Arc::clone(&self.ends.counters);
                        self.connected(limits, Line::new(client.clone(), limits, &underway, counters));
                    }
                }
                Event::Incoming(Packet::PubAck(ack)) => self.acknowledged(&ack, underway.acknowledged(ack.pkid)),
                Event::Outgoing(Sent::Publish(id)) => underway.sent(id, events.state.inflight()),
                Event::Outgoing(Sent::Disconnect) => return (connected_at, End::HungUp),
                Event::Incoming(_) | Event::Outgoing(_) => {}
            }
            underway.settle(events.state.inflight());
            handled += 1;
            if handled % BATCH == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn options(&self) -> MqttOptions {
        let Plan { settings, client_id, will, .. } = &self.plan;
        let mut options = MqttOptions::new(client_id, &settings.host, settings.port);
        if let Some(tls) = &settings.tls {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.config())));
        }
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options
            .set_network_options(network)
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_start(true)
            .set_connection_timeout(CONNECTED_WITHIN.as_secs())
            .set_max_packet_size(Some(MAX_INCOMING))
            .set_outgoing_inflight_upper_limit(IN_FLIGHT);
        if !settings.username.is_empty() {
            options.set_credentials(&settings.username, &settings.password);
        }
        if let Some((topic, payload)) = will {
            options.set_last_will(LastWill::new(topic, *payload, self.terms.qos, self.terms.retain, None));
        }
        options
    }

    fn filters(&self) -> Vec<Filter> {
        let filter = |path: &String| Filter {
            path: path.clone(),
            qos: QoS::AtLeastOnce,
            nolocal: true,
            // So that what was published to be kept can be told, and refused, whenever it comes.
            preserve_retain: true,
            retain_forward_rule: if self.plan.wants_retained {
                RetainForwardRule::OnEverySubscribe
            } else {
                RetainForwardRule::Never
            },
        };
        self.plan.filters.iter().map(filter).collect()
    }

    fn welcomed(&self, ack: &ConnAck, events: &mut EventLoop) -> Limits {
        if events.options.keep_alive().is_zero() {
            // "No keep-alive" from the broker would make the library ping without a pause.
            events.options.set_keep_alive(KEEP_ALIVE);
        }
        let properties = ack.properties.as_ref();
        let limits = Limits {
            max_packet: properties.and_then(|p| p.max_packet_size).map(|size| size as usize),
            qos: match properties.and_then(|p| p.max_qos) {
                Some(0) => QoS::AtMostOnce,
                _ => QoS::AtLeastOnce,
            },
            retain: properties.and_then(|p| p.retain_available) != Some(0),
        };
        debug!(?limits, "the MQTT broker welcomes us");
        limits
    }

    fn subscribed(&mut self, ack: &SubAck) {
        let granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
        let refused = self.plan.filters.iter().zip(&ack.return_codes).filter(|(_, code)| !granted(code));
        let refused: Vec<String> = refused.map(|(filter, _)| filter.clone()).collect();
        self.ends.counters.mqtt.topics_refused.add(refused.len() as u64);
        if !refused.is_empty() && refused != self.told.filters {
            warn!(
                filters = refused.join(", "),
                "the MQTT broker does not let this device listen to these topics; allow it in the broker's access rules"
            );
        }
        self.told.filters = refused;
    }

    fn connected(&mut self, limits: Limits, line: Line) {
        let MqttSettings { host, port, .. } = &self.plan.settings;
        if !limits.retain {
            warn!("the MQTT broker keeps no messages: who connects later does not see that this device is online");
        }
        if !self.told.is_connected || self.told.complaint.is_some() {
            info!(%host, port, "connected to the MQTT broker");
        } else {
            debug!(%host, port, "connected to the MQTT broker");
        }
        self.told.is_connected = true;
        let mqtt = &self.ends.counters.mqtt;
        mqtt.connects.add(1);
        mqtt.connected.set(1);
        self.ends.lines.send_replace(Some(line));
    }

    /// Called for every message of a flood: it does as little as it can.
    fn hand_on(&self, publish: Publish) {
        let mqtt = &self.ends.counters.mqtt;
        mqtt.messages_received.add(1);
        let (response_topic, correlation) =
            publish.properties.map_or((None, None), |p| (p.response_topic, p.correlation_data));
        let Publish { topic, payload, retain, .. } = publish;
        let message = Incoming { topic, payload, retained: retain, response_topic, correlation };
        if let Err(unsent) = self.ends.incoming.try_send(message)
            && !self.ends.offs.keep(unsent.into_inner())
        {
            mqtt.dropped(MqttDrop::Flooded);
        }
    }

    fn acknowledged(&mut self, ack: &PubAck, topic: Option<String>) {
        if matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
            return;
        }
        self.ends.counters.mqtt.topics_refused.add(1);
        let Some(topic) = topic else { return };
        let reason = format!("{:?}", ack.reason);
        if self.told.topics.len() < MAX_TOLD && self.told.topics.insert(topic.clone()) {
            warn!(topic, reason, "the MQTT broker refuses a message; allow its topic in the broker's access rules");
        } else {
            debug!(topic, reason, "the MQTT broker refuses a message");
        }
    }

    /// Leaves out of the will what this broker does not know.
    fn adapt(&mut self, error: &ConnectionError) {
        match error {
            ConnectionError::ConnectionRefused(ConnectReturnCode::RetainNotSupported) => self.terms.retain = false,
            ConnectionError::ConnectionRefused(ConnectReturnCode::QoSNotSupported) => self.terms.qos = QoS::AtMostOnce,
            _ => {}
        }
    }

    fn tell(&mut self, Complaint { slug, words }: &Complaint, pause: Duration) {
        let retry_in_s = pause.as_secs_f32();
        if self.told.complaint.replace(slug) == Some(slug) {
            debug!(retry_in_s, "no MQTT broker: {words}");
        } else {
            warn!(retry_in_s, "no MQTT broker: {words}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::topics::Topics;
    use super::*;
    use crate::core::signal::CameraId;

    #[tokio::test]
    async fn an_off_finds_its_way_past_a_flood() {
        let front = CameraId::new("front").unwrap();
        let topics = Topics::new("edgecam", "frontdoor");
        let offs = Arc::new(Offs::new(&topics, [&front].into_iter()));
        let (incoming, _inbox) = mpsc::channel(1);
        let ends = Ends {
            lines: watch::channel(None).0,
            incoming,
            offs: Arc::clone(&offs),
            counters: Arc::default(),
            cut: CancellationToken::new(),
        };
        let settings = super::super::tests::settings();
        let plan = Plan::beside(settings, "frontdoor", "test", Vec::new());
        let dialer = Dialer { plan, ends, terms: WillTerms::default(), told: Told::default() };
        let publish = |topic: &str, payload: &str| Publish::new(topic, QoS::AtLeastOnce, payload.to_owned(), None);
        dialer.hand_on(publish("edgecam/frontdoor/rpc/flood", "takes the last room"));
        for _ in 0..1000 {
            dialer.hand_on(publish("edgecam/frontdoor/cam/front/enabled/set", "OFF"));
            dialer.hand_on(publish("edgecam/frontdoor/cam/front/enabled/set", "ON"));
            dialer.hand_on(publish("edgecam/frontdoor/cam/cellar/enabled/set", "OFF"));
        }
        assert_eq!(offs.take().await.into_keys().collect::<Vec<_>>(), [front]);
        assert_eq!(dialer.ends.counters.mqtt.messages_dropped[MqttDrop::Flooded as usize].get(), 2000);
    }
}
