//! A test's own MQTT clients, of both versions of the protocol.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a failed step is a failed test; here time begins")]

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as five;
use rumqttc::{NetworkOptions, TlsConfiguration, Transport, mqttbytes, v5};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A message that came.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    pub retained: bool,
    pub correlation: Option<Bytes>,
    pub expiry_s: Option<u32>,
}

/// What a message brings besides its payload. MQTT 5 only, but for `retain`.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    pub retain: bool,
    pub response_topic: Option<String>,
    pub correlation: Option<Bytes>,
    pub expiry_s: Option<u32>,
}

/// A connected client. What it has not been asked for yet waits.
pub struct Client {
    wire: Wire,
    heard: mpsc::Receiver<Heard>,
    messages: VecDeque<Message>,
    polling: JoinHandle<()>,
}

enum Wire {
    Five(v5::AsyncClient),
    Three(rumqttc::AsyncClient),
}

enum Heard {
    Message(Message),
    Connected,
    /// One for each filter: granted?
    Subscribed(Vec<bool>),
    /// Whether the broker took it, as far as the protocol tells.
    Published(bool),
    Ended(String),
}

impl Client {
    /// With MQTT 5, without a password.
    pub async fn comes(port: u16, name: &str) -> Self {
        Self::with(v5::MqttOptions::new(name, "127.0.0.1", port)).await.unwrap()
    }

    /// With MQTT 5 and a password; the client's name is the user's.
    pub async fn logs_in(port: u16, name: &str, password: &str) -> Result<Self, String> {
        let mut options = v5::MqttOptions::new(name, "127.0.0.1", port);
        options.set_credentials(name, password);
        Self::with(options).await
    }

    pub async fn with(mut options: v5::MqttOptions) -> Result<Self, String> {
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network).set_max_packet_size(Some(1 << 20));
        let (client, mut events) = v5::AsyncClient::new(options, 64);
        let (hear, heard) = mpsc::channel(1024);
        let polling = tokio::spawn(async move {
            loop {
                let heard = match events.poll().await {
                    Ok(v5::Event::Incoming(five::Packet::ConnAck(_))) => Heard::Connected,
                    Ok(v5::Event::Incoming(five::Packet::Publish(publish))) => Heard::Message(publish.into()),
                    Ok(v5::Event::Incoming(five::Packet::SubAck(ack))) => {
                        let granted = |code| matches!(code, five::SubscribeReasonCode::Success(_));
                        Heard::Subscribed(ack.return_codes.into_iter().map(granted).collect())
                    }
                    Ok(v5::Event::Incoming(five::Packet::PubAck(ack))) => Heard::Published(matches!(
                        ack.reason,
                        five::PubAckReason::Success | five::PubAckReason::NoMatchingSubscribers
                    )),
                    Ok(_) => continue,
                    Err(error) => {
                        let _ = hear.send(Heard::Ended(error.to_string())).await;
                        return;
                    }
                };
                if hear.send(heard).await.is_err() {
                    return;
                }
            }
        });
        Self { wire: Wire::Five(client), heard, messages: VecDeque::new(), polling }.connected().await
    }

    /// With MQTT 3.1.1.
    pub async fn comes_with_3_1_1(port: u16, name: &str) -> Self {
        let mut options = rumqttc::MqttOptions::new(name, "127.0.0.1", port);
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut events) = rumqttc::AsyncClient::new(options, 64);
        let (hear, heard) = mpsc::channel(1024);
        let polling = tokio::spawn(async move {
            loop {
                let heard = match events.poll().await {
                    Ok(rumqttc::Event::Incoming(rumqttc::Packet::ConnAck(_))) => Heard::Connected,
                    Ok(rumqttc::Event::Incoming(rumqttc::Packet::Publish(publish))) => Heard::Message(publish.into()),
                    Ok(rumqttc::Event::Incoming(rumqttc::Packet::SubAck(ack))) => {
                        let granted = |code| matches!(code, mqttbytes::v4::SubscribeReasonCode::Success(_));
                        Heard::Subscribed(ack.return_codes.into_iter().map(granted).collect())
                    }
                    Ok(rumqttc::Event::Incoming(rumqttc::Packet::PubAck(_))) => Heard::Published(true),
                    Ok(_) => continue,
                    Err(error) => {
                        let _ = hear.send(Heard::Ended(error.to_string())).await;
                        return;
                    }
                };
                if hear.send(heard).await.is_err() {
                    return;
                }
            }
        });
        let client = Self { wire: Wire::Three(client), heard, messages: VecDeque::new(), polling };
        client.connected().await.unwrap()
    }

    async fn connected(mut self) -> Result<Self, String> {
        loop {
            match self.next().await {
                Heard::Connected => return Ok(self),
                Heard::Ended(why) => return Err(why),
                _ => {}
            }
        }
    }

    /// Returns when the broker has answered: whether it granted the subscription. Mosquitto grants what its ACL forbids
    /// and then delivers nothing.
    pub async fn subscribes(&mut self, filter: &str) -> bool {
        match &self.wire {
            Wire::Five(client) => client.subscribe(filter, v5::mqttbytes::QoS::AtLeastOnce).await.unwrap(),
            Wire::Three(client) => client.subscribe(filter, rumqttc::QoS::AtLeastOnce).await.unwrap(),
        }
        loop {
            match self.next().await {
                Heard::Subscribed(granted) => return granted == [true],
                other => self.keep(other),
            }
        }
    }

    /// To several at once, with QoS 0: nothing is sent again, and nothing waits for its turn.
    pub async fn subscribes_lightly(&mut self, filters: &[&str]) {
        match &self.wire {
            Wire::Five(client) => {
                let light = |filter: &&str| five::Filter::new(*filter, v5::mqttbytes::QoS::AtMostOnce);
                client.subscribe_many(filters.iter().map(light)).await.unwrap();
            }
            Wire::Three(client) => {
                let light =
                    |filter: &&str| rumqttc::SubscribeFilter::new((*filter).to_owned(), rumqttc::QoS::AtMostOnce);
                client.subscribe_many(filters.iter().map(light)).await.unwrap();
            }
        }
    }

    /// With QoS 1; returns when the broker has it: whether it was allowed, which MQTT 3.1.1 does not tell.
    pub async fn publishes(&mut self, topic: &str, payload: impl Into<Bytes>) -> bool {
        self.publishes_with(topic, payload, Extras::default()).await
    }

    pub async fn publishes_with(&mut self, topic: &str, payload: impl Into<Bytes>, extras: Extras) -> bool {
        let payload = payload.into();
        match &self.wire {
            Wire::Five(client) => {
                let properties = five::PublishProperties {
                    response_topic: extras.response_topic,
                    correlation_data: extras.correlation,
                    message_expiry_interval: extras.expiry_s,
                    ..five::PublishProperties::default()
                };
                let at_least_once = v5::mqttbytes::QoS::AtLeastOnce;
                client.publish_with_properties(topic, at_least_once, extras.retain, payload, properties).await.unwrap();
            }
            Wire::Three(client) => {
                client.publish(topic, rumqttc::QoS::AtLeastOnce, extras.retain, payload).await.unwrap();
            }
        }
        loop {
            match self.next().await {
                Heard::Published(taken) => return taken,
                other => self.keep(other),
            }
        }
    }

    /// With QoS 0: nobody tells whether it came.
    pub async fn publishes_lightly(&mut self, topic: &str, payload: impl Into<Bytes>) {
        let payload = payload.into();
        match &self.wire {
            Wire::Five(client) => {
                client.publish(topic, v5::mqttbytes::QoS::AtMostOnce, false, payload).await.unwrap();
            }
            Wire::Three(client) => client.publish(topic, rumqttc::QoS::AtMostOnce, false, payload).await.unwrap(),
        }
    }

    /// The next message of a topic. What comes before on other topics stays, to be asked for later.
    pub async fn hears(&mut self, topic: &str) -> Message {
        self.hears_that(topic, |_| true).await
    }

    pub async fn hears_json(&mut self, topic: &str) -> Value {
        self.hears(topic).await.json()
    }

    /// The next message of a topic that is meant; others of this topic before it are let go.
    pub async fn hears_that(&mut self, topic: &str, is_meant: impl Fn(&Message) -> bool) -> Message {
        loop {
            while let Some(at) = self.messages.iter().position(|message| message.topic == topic) {
                let message = self.messages.remove(at).unwrap();
                if is_meant(&message) {
                    return message;
                }
            }
            match timeout(PATIENCE, self.heard.recv()).await {
                Ok(Some(Heard::Ended(why))) => panic!("the connection ended while waiting for {topic}: {why}"),
                Ok(Some(heard)) => self.keep(heard),
                Ok(None) => panic!("the connection is gone"),
                Err(_) => panic!("nothing that is meant came on {topic}; what came on others: {:?}", self.messages),
            }
        }
    }

    /// Whether such a message comes in that time.
    pub async fn hears_within(&mut self, topic: &str, is_meant: impl Fn(&Message) -> bool, time: Duration) -> bool {
        timeout(time, self.hears_that(topic, is_meant)).await.is_ok()
    }

    /// The next message, whatever its topic.
    pub async fn hears_anything(&mut self) -> Message {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return message;
            }
            let heard = self.next().await;
            self.keep(heard);
        }
    }

    /// Everything that has come by now. To have all that was sent before something: hear that first.
    pub fn has_heard(&mut self) -> Vec<Message> {
        while let Ok(heard) = self.heard.try_recv() {
            self.keep(heard);
        }
        self.messages.drain(..).collect()
    }

    /// Everything the broker had for this client before now: what it sends is in order, so an own message comes last.
    pub async fn has_heard_by_now(&mut self, own_topic: &str) -> Vec<Message> {
        let mark = format!("mark {:032x}", rand::random::<u128>());
        self.publishes(own_topic, mark.clone()).await;
        loop {
            if let Some(at) = self.messages.iter().position(|message| message.payload == mark) {
                self.messages.remove(at);
                return self.messages.drain(..at).collect();
            }
            match timeout(PATIENCE, self.next()).await {
                Ok(heard) => self.keep(heard),
                Err(_) => panic!("the own message on {own_topic} does not come back"),
            }
        }
    }

    /// Waits until the broker or the network has cut the connection; says how.
    pub async fn is_cut_off(&mut self) -> String {
        loop {
            match timeout(PATIENCE, self.next()).await.expect("the connection lives") {
                Heard::Ended(why) => return why,
                other => self.keep(other),
            }
        }
    }

    async fn next(&mut self) -> Heard {
        timeout(PATIENCE, self.heard.recv()).await.expect("the broker does not answer").expect("the client has ended")
    }

    fn keep(&mut self, heard: Heard) {
        match heard {
            Heard::Message(message) => self.messages.push_back(message),
            Heard::Ended(why) => panic!("the connection ended: {why}"),
            Heard::Connected | Heard::Subscribed(_) | Heard::Published(_) => {}
        }
    }
}

/// How to reach a broker on this machine over TLS, whose certificate this CA signed.
pub fn trusting(ca_pem: &str, port: u16) -> v5::MqttOptions {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut options = v5::MqttOptions::new("trusting", "localhost", port);
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config))));
    options
}

/// Goes without a goodbye.
impl Drop for Client {
    fn drop(&mut self) {
        self.polling.abort();
    }
}

impl Message {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_else(|error| panic!("{self:?} is not JSON: {error}"))
    }
}

impl From<five::Publish> for Message {
    fn from(publish: five::Publish) -> Self {
        let properties = publish.properties.unwrap_or_default();
        Self {
            topic: String::from_utf8(publish.topic.to_vec()).unwrap(),
            payload: publish.payload,
            retained: publish.retain,
            correlation: properties.correlation_data,
            expiry_s: properties.message_expiry_interval,
        }
    }
}

impl From<mqttbytes::v4::Publish> for Message {
    fn from(publish: mqttbytes::v4::Publish) -> Self {
        Self {
            topic: publish.topic,
            payload: publish.payload,
            retained: publish.retain,
            correlation: None,
            expiry_s: None,
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, payload, retained, correlation, expiry_s } = self;
        let shown = String::from_utf8_lossy(&payload[..payload.len().min(300)]);
        write!(f, "{topic} {shown:?} (retained {retained}, correlation {correlation:?}, expiry {expiry_s:?})")
    }
}
