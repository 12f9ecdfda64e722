//! The connection to the broker, kept up for ever. The only place that names the MQTT library.
//!
//! One task does nothing but [`EventLoop::poll`] and hand on what comes with `try_send`; it never publishes, so it cannot wait for
//! itself. Every attempt gets an event loop of its own: nothing of a dead connection (packet ids, half-sent messages, topic
//! aliases) reaches the next one. Writers use [`Line::try_publish`], which never waits.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill, Packet, PubAck, PubAckReason, Publish,
    PublishProperties, RetainForwardRule, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError, TlsError};
use rumqttc::{NetworkOptions, Outgoing as Sent, TlsConfiguration, Transport};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::super::clock;
use super::super::wire;
use super::MqttSettings;
use super::tls::{self, Complaint};
use crate::core::backoff::Backoff;
use crate::core::counters::{LinkCounters, MqttDrop};

/// A message of ours with the topic and properties around it. Brokers drop larger ones for us (MQTT 5, section 3.1.2.11.4).
const MAX_INCOMING: u32 = wire::MAX_MESSAGE as u32 + 4096;
/// What we send at most, pictures apart; beyond a topic, properties and a packet's head.
const MAX_OUTGOING: usize = wire::MAX_MESSAGE + 4096;
/// A still may be larger than a message.
const MAX_STILL: usize = 1024 * 1024;
/// What a packet has besides topic, payload and correlation: its head, lengths, expiry.
const OVERHEAD: usize = 64;

/// A dead connection is seen after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// From the first packet of ours to the broker's permission to listen.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(10);
/// DNS, TCP, TLS and the broker's welcome together.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// A connection that lived so long was a good one: the next failure is new.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// While the broker is away so shortly, it is tried at least this often.
const SHORT_OUTAGE: Duration = Duration::from_secs(120);
const LONGEST_AT_FIRST: Duration = Duration::from_secs(5);
const LEAST_PAUSE: Duration = Duration::from_millis(250);

/// Requests that may wait for the event loop.
pub(super) const REQUESTS: usize = 64;
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

/// What we publish.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    /// After which the broker forgets it.
    pub(super) expiry: Option<Duration>,
    pub(super) correlation: Option<Bytes>,
    /// A picture, which may be larger.
    pub(super) is_still: bool,
}

/// Why something was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsent {
    #[error("the broker does not take messages as fast as they come")]
    Full,
    #[error("{size} bytes are more than the {limit} that the broker takes")]
    TooLarge { size: usize, limit: usize },
}

impl From<Unsent> for MqttDrop {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Full => Self::Full,
            Unsent::TooLarge { .. } => Self::TooLarge,
        }
    }
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

/// A connection that is up and subscribed.
#[derive(Clone)]
pub(super) struct Line {
    client: AsyncClient,
    limits: Limits,
    flow: Arc<Flow>,
    counters: Arc<LinkCounters>,
}

/// What this broker takes (MQTT 5, section 3.2.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    max_packet: Option<usize>,
    qos: QoS,
    retain: bool,
}

/// What is on its way to the broker.
#[derive(Default)]
struct Flow {
    queued: AtomicUsize,
    unacked: AtomicUsize,
    moved: Notify,
    /// The topics of what is queued, in order, so that a refusal can be told by its topic.
    topics: Mutex<VecDeque<String>>,
}

impl Line {
    /// Hands a message to the connection; never waits.
    ///
    /// # Errors
    /// It is full, or the message too large for this broker.
    pub(super) fn try_publish(&self, message: &Outgoing) -> Result<(), Unsent> {
        let Outgoing { topic, payload, retain, expiry, correlation, is_still } = message;
        let ours = if *is_still { MAX_STILL } else { MAX_OUTGOING };
        let limit = self.limits.max_packet.map_or(ours, |theirs| theirs.min(ours));
        let size = topic.len() + payload.len() + correlation.as_ref().map_or(0, Bytes::len) + OVERHEAD;
        if size > limit {
            return Err(Unsent::TooLarge { size, limit });
        }
        let properties = PublishProperties {
            message_expiry_interval: expiry.map(|expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)),
            correlation_data: correlation.clone(),
            ..PublishProperties::default()
        };
        let retain = *retain && self.limits.retain;
        self.flow.add(topic, self.limits.qos);
        let outcome = self.client.try_publish_with_properties(
            topic.as_str(),
            self.limits.qos,
            retain,
            payload.clone(),
            properties,
        );
        if outcome.is_err() {
            self.flow.take_back(self.limits.qos);
            return Err(Unsent::Full);
        }
        self.counters.mqtt.messages_sent.add(1);
        Ok(())
    }

    /// Messages that can be handed over at once.
    pub(super) fn room(&self) -> usize {
        REQUESTS.saturating_sub(self.flow.queued.load(Ordering::Acquire))
    }

    /// Until something has left the queue.
    pub(super) async fn moved(&self) {
        self.flow.moved.notified().await;
    }

    /// Until the broker has acknowledged everything.
    pub(super) async fn settled(&self) {
        while self.flow.queued.load(Ordering::Acquire) + self.flow.unacked.load(Ordering::Acquire) > 0 {
            self.moved().await;
        }
    }

    /// Says goodbye to the broker, so that it keeps the will to itself.
    pub(super) fn hang_up(&self) {
        // A full queue means a broker that takes nothing: the connection is cut instead.
        let _ = self.client.try_disconnect();
    }
}

impl Flow {
    fn add(&self, topic: &str, qos: QoS) {
        self.queued.fetch_add(1, Ordering::AcqRel);
        if qos != QoS::AtMostOnce {
            self.topics().push_back(topic.to_owned());
        }
    }

    fn take_back(&self, qos: QoS) {
        self.queued.fetch_sub(1, Ordering::AcqRel);
        if qos != QoS::AtMostOnce {
            self.topics().pop_back();
        }
    }

    fn topics(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ends of the connection's task.
pub(super) struct Ends {
    /// `None` while there is no connection.
    pub(super) lines: watch::Sender<Option<Line>>,
    pub(super) incoming: mpsc::Sender<Incoming>,
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

/// How a connection ended.
enum End {
    HungUp,
    Failed(ConnectionError),
    Silent(&'static str),
}

impl Dialer {
    async fn dial(&mut self) {
        let mut backoff = Backoff::default();
        let mut lost_at = clock();
        loop {
            let (connected_at, end) = self.hold_one().await;
            self.ends.lines.send_replace(None);
            self.ends.counters.mqtt.connected.set(0);
            let now = clock();
            if let Some(since) = connected_at {
                lost_at = now;
                if now - since >= HEALTHY_AFTER {
                    backoff.reset();
                    self.told.complaint = None;
                }
            }
            let complaint = match end {
                End::HungUp => return,
                End::Silent(words) => Complaint { slug: "silent", words: words.into() },
                End::Failed(error) => {
                    self.adapt(&error);
                    explain(&error, connected_at.is_some(), &self.plan.settings)
                }
            };
            self.ends.counters.mqtt.failures.add(1);
            let pause = pause(&complaint, &mut backoff, now - lost_at, rand::random());
            self.tell(&complaint, pause);
            sleep(pause).await;
        }
    }

    /// One connection from its first packet to its end; and since when it was up.
    async fn hold_one(&mut self) -> (Option<Instant>, End) {
        let (client, mut events) = AsyncClient::new(self.options(), REQUESTS);
        // Nothing is in the queue yet, so there is room.
        let _ = client.try_subscribe_many(self.filters());
        let flow = Arc::<Flow>::default();
        let mut talk = Talk { flow: Arc::clone(&flow), unacked: HashMap::new() };
        let mut limits = None;
        let mut connected_at = None;
        let mut handled = 0;
        loop {
            let patience = if connected_at.is_some() {
                // A ping and its answer; the library's own look at them does not see a write that never ends.
                2 * events.options.keep_alive() + KEEP_ALIVE / 3
            } else {
                SUBSCRIBED_WITHIN
            };
            let event = match timeout(patience, events.poll()).await {
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
                        let line = Line { client: client.clone(), limits, flow: Arc::clone(&flow), counters };
                        self.connected(line);
                    }
                }
                Event::Incoming(Packet::PubAck(ack)) => self.acknowledged(&ack, talk.acknowledged(ack.pkid)),
                Event::Outgoing(Sent::Publish(id)) => talk.sent(id, events.state.inflight()),
                Event::Outgoing(Sent::Disconnect) => return (connected_at, End::HungUp),
                Event::Incoming(_) | Event::Outgoing(_) => {}
            }
            talk.settle(events.state.inflight());
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

    fn connected(&mut self, line: Line) {
        let MqttSettings { host, port, .. } = &self.plan.settings;
        if !line.limits.retain {
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
        if self.ends.incoming.try_send(message).is_err() {
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

/// What one connection has sent and not been told of.
struct Talk {
    flow: Arc<Flow>,
    /// The topics of publications by packet id.
    unacked: HashMap<u16, String>,
}

impl Talk {
    /// A publication has left the queue. It is counted as unacknowledged before it counts as gone.
    fn sent(&mut self, id: u16, unacked: u16) {
        if id != 0
            && let Some(topic) = self.flow.topics().pop_front()
        {
            self.unacked.insert(id, topic);
        }
        self.flow.unacked.store(unacked.into(), Ordering::Release);
        self.flow.queued.fetch_sub(1, Ordering::AcqRel);
        self.flow.moved.notify_one();
    }

    fn acknowledged(&mut self, id: u16) -> Option<String> {
        self.unacked.remove(&id)
    }

    fn settle(&self, unacked: u16) {
        if self.flow.unacked.swap(unacked.into(), Ordering::AcqRel) != usize::from(unacked) {
            self.flow.moved.notify_one();
        }
    }
}

/// How long to wait: full jitter, so that a fleet does not come back in one stroke; soon while the broker is only restarted.
fn pause(complaint: &Complaint, backoff: &mut Backoff, away: Duration, random: f64) -> Duration {
    if complaint.slug == TAKEN_OVER {
        // The other device connects again at once; neither of us is to throw the other out every second.
        return Backoff::LONGEST.mul_f64(1.0 + random);
    }
    let longest = if away < SHORT_OUTAGE { LONGEST_AT_FIRST } else { Backoff::LONGEST };
    backoff.next(1.0).min(longest).mul_f64(random).max(LEAST_PAUSE)
}

const TAKEN_OVER: &str = "taken-over";

/// Why there is no connection, and the remedy.
fn explain(error: &ConnectionError, was_connected: bool, settings: &MqttSettings) -> Complaint {
    let MqttSettings { host, port, tls, .. } = settings;
    let complaint = |slug, words: String| Complaint { slug, words };
    match error {
        ConnectionError::Timeout(_) => complaint(
            "no-answer",
            format!("{host} port {port} does not answer; see that url is right and that no firewall is between"),
        ),
        ConnectionError::Io(error) | ConnectionError::Tls(TlsError::Io(error)) => {
            tls::explain(error).unwrap_or_else(|| explain_io(error, settings))
        }
        ConnectionError::MqttState(StateError::Io(error)) => {
            tls::explain(error).unwrap_or_else(|| explain_io(error, settings))
        }
        ConnectionError::ConnectionRefused(code) => explain_refusal(*code, settings),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            explain_disconnect(*reason_code, reason_string.as_deref())
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => {
            complaint("silent", "the broker answers no pings any more".into())
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) if was_connected => {
            complaint("closed", "the broker closed the connection".into())
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => complaint(
            "closed-at-once",
            if tls.is_some() {
                "the broker closes the connection at once; see its log, and that it takes this device's certificate"
                    .into()
            } else {
                format!(
                    "{host} port {port} closes the connection at once; if that is a TLS port, write mqtts:// in url"
                )
            },
        ),
        other => complaint("protocol", format!("the broker says what cannot be understood: {other}")),
    }
}

fn explain_io(error: &std::io::Error, MqttSettings { host, port, .. }: &MqttSettings) -> Complaint {
    use std::io::ErrorKind;
    let (slug, words) = match error.kind() {
        ErrorKind::ConnectionRefused => {
            ("refused", format!("nothing listens on {host} port {port}; see that the broker runs and url is right"))
        }
        ErrorKind::ConnectionReset
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionAborted => ("closed", format!("the connection to {host} port {port} was cut")),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            ("unreachable", format!("there is no way to {host}; see this device's network"))
        }
        _ if error.to_string().contains("lookup") => {
            ("no-such-name", format!("the name {host} cannot be found; see url and this device's DNS ({error})"))
        }
        _ => ("io", format!("{host} port {port} cannot be reached: {error}")),
    };
    Complaint { slug, words }
}

fn explain_refusal(code: ConnectReturnCode, settings: &MqttSettings) -> Complaint {
    use ConnectReturnCode as Code;
    let (slug, words) = match code {
        Code::BadUserNamePassword | Code::NotAuthorized if settings.username.is_empty() => {
            ("not-authorized", "the broker wants to know who we are; set username and password_file".into())
        }
        Code::BadUserNamePassword | Code::NotAuthorized => (
            "not-authorized",
            format!(
                "the broker does not take user {:?} with this password; see username and password_file",
                settings.username
            ),
        ),
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => {
            ("version", "the broker does not speak MQTT 5; use one that does, like mosquitto from 1.6 on".into())
        }
        Code::BadClientId | Code::ClientIdentifierNotValid => {
            ("client-id", "the broker does not take this device's client id, edgecam-<device>; allow it there".into())
        }
        Code::ServerBusy | Code::ServerUnavailable | Code::ServiceUnavailable | Code::ConnectionRateExceeded => {
            ("busy", "the broker is too busy for us".into())
        }
        Code::Banned => ("banned", "the broker has banned this device; ask whoever runs it".into()),
        Code::RetainNotSupported => ("no-retain", "the broker keeps no messages; going on without".into()),
        Code::QoSNotSupported => ("no-qos", "the broker acknowledges no messages; going on without".into()),
        other => ("refused-by-broker", format!("the broker does not let us in: {other:?}; see its log")),
    };
    Complaint { slug, words }
}

fn explain_disconnect(code: DisconnectReasonCode, words: Option<&str>) -> Complaint {
    use DisconnectReasonCode as Code;
    let (slug, words) = match code {
        Code::SessionTakenOver => (
            TAKEN_OVER,
            "another device with this device's name has connected to the broker; give each its own [device] id".into(),
        ),
        Code::ServerShuttingDown => ("shutting-down", "the broker shuts down".into()),
        Code::NotAuthorized => (
            "not-authorized",
            "the broker does not let this device listen to or write its topics; allow it in the broker's access rules"
                .into(),
        ),
        Code::AdministrativeAction => ("kicked", "whoever runs the broker closed the connection".into()),
        other => {
            let words = words.map(|words| format!(" ({words})")).unwrap_or_default();
            ("disconnected", format!("the broker ends the connection: {other:?}{words}; see its log"))
        }
    };
    Complaint { slug, words }
}
