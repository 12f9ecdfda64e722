//! A live connection as writers see it: handing over never waits, and what is on its way can be counted.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use tokio::sync::Notify;

use super::super::super::wire;
use crate::core::counters::{LinkCounters, MqttDrop};

/// Requests that may wait for the event loop.
pub(in super::super) const REQUESTS: usize = 64;
/// What we send at most, pictures apart: a message with its topic and properties.
const MAX_OUTGOING: usize = wire::MAX_MESSAGE + 4096;
/// A still may be larger than a message.
const MAX_STILL: usize = 1024 * 1024;
/// What a packet has besides topic, payload and correlation: its head, lengths, expiry.
const OVERHEAD: usize = 64;

/// What we publish.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Outgoing {
    pub(in super::super) topic: String,
    pub(in super::super) payload: Bytes,
    pub(in super::super) retain: bool,
    /// After which the broker forgets it.
    pub(in super::super) expiry: Option<Duration>,
    pub(in super::super) correlation: Option<Bytes>,
    /// A picture, which may be larger: one at a time is handed over, and only when nothing waits before it.
    pub(in super::super) is_still: bool,
}

/// Why something was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum Unsent {
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

/// A connection that is up and subscribed.
#[derive(Clone)]
pub(in super::super) struct Line {
    client: AsyncClient,
    limits: Limits,
    flow: Arc<Flow>,
    counters: Arc<LinkCounters>,
}

/// What this broker takes (MQTT 5, section 3.2.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) max_packet: Option<usize>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

/// What is on its way to the broker.
#[derive(Default)]
struct Flow {
    queued: AtomicUsize,
    unacked: AtomicUsize,
    /// A picture is among them.
    has_still: AtomicBool,
    moved: Notify,
    /// What is queued, in order: the broker answers by numbers, which are given when it leaves the queue.
    publications: Mutex<VecDeque<Publication>>,
}

#[derive(Debug)]
struct Publication {
    topic: String,
    is_still: bool,
}

impl Line {
    pub(super) fn new(client: AsyncClient, limits: Limits, underway: &Underway, counters: Arc<LinkCounters>) -> Self {
        Self { client, limits, flow: Arc::clone(&underway.flow), counters }
    }

    /// Whether this broker takes a message of this size.
    ///
    /// # Errors
    /// [`Unsent::TooLarge`].
    pub(in super::super) fn fits(&self, message: &Outgoing) -> Result<(), Unsent> {
        let Outgoing { topic, payload, correlation, is_still, .. } = message;
        let ours = if *is_still { MAX_STILL } else { MAX_OUTGOING };
        let limit = self.limits.max_packet.map_or(ours, |theirs| theirs.min(ours));
        let size = topic.len() + payload.len() + correlation.as_ref().map_or(0, Bytes::len) + OVERHEAD;
        if size > limit { Err(Unsent::TooLarge { size, limit }) } else { Ok(()) }
    }

    /// Hands a message to the connection; never waits.
    ///
    /// # Errors
    /// It is full (for a picture: anything is queued, or another picture on its way), or the message too large for this broker.
    pub(in super::super) fn try_publish(&self, message: &Outgoing) -> Result<(), Unsent> {
        self.fits(message)?;
        if message.is_still && !self.flow.has_room_for_still() {
            return Err(Unsent::Full);
        }
        let Outgoing { topic, payload, retain, expiry, correlation, is_still } = message;
        let properties = PublishProperties {
            message_expiry_interval: expiry.map(|expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)),
            correlation_data: correlation.clone(),
            ..PublishProperties::default()
        };
        let retain = *retain && self.limits.retain;
        self.flow.add(Publication { topic: topic.clone(), is_still: *is_still });
        let outcome = self.client.try_publish_with_properties(
            topic.as_str(),
            self.limits.qos,
            retain,
            payload.clone(),
            properties,
        );
        if outcome.is_err() {
            self.flow.take_back();
            return Err(Unsent::Full);
        }
        self.counters.mqtt.messages_sent.add(1);
        Ok(())
    }

    /// Messages that can be handed over at once.
    pub(in super::super) fn room(&self) -> usize {
        REQUESTS.saturating_sub(self.flow.queued.load(Ordering::Acquire))
    }

    /// Until something has left the queue.
    pub(in super::super) async fn moved(&self) {
        self.flow.moved.notified().await;
    }

    /// Until the broker has acknowledged everything.
    pub(in super::super) async fn settled(&self) {
        while self.flow.queued.load(Ordering::Acquire) + self.flow.unacked.load(Ordering::Acquire) > 0 {
            self.moved().await;
        }
    }

    /// Says goodbye to the broker, so that it keeps the will to itself.
    pub(in super::super) fn hang_up(&self) {
        // A full queue means a broker that takes nothing: the connection is cut instead.
        let _ = self.client.try_disconnect();
    }
}

impl Flow {
    fn has_room_for_still(&self) -> bool {
        !self.has_still.load(Ordering::Acquire) && self.queued.load(Ordering::Acquire) == 0
    }

    fn add(&self, publication: Publication) {
        self.queued.fetch_add(1, Ordering::AcqRel);
        self.has_still.fetch_or(publication.is_still, Ordering::AcqRel);
        self.publications().push_back(publication);
    }

    fn take_back(&self) {
        self.queued.fetch_sub(1, Ordering::AcqRel);
        if let Some(publication) = self.publications().pop_back() {
            self.forget(&publication);
        }
    }

    /// It is not on its way any more.
    fn forget(&self, publication: &Publication) {
        self.has_still.fetch_and(!publication.is_still, Ordering::AcqRel);
    }

    fn publications(&self) -> MutexGuard<'_, VecDeque<Publication>> {
        self.publications.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one connection has sent and not been told of: the polling task's side of [`Line`].
#[derive(Default)]
pub(super) struct Underway {
    flow: Arc<Flow>,
    /// By packet id.
    unacked: HashMap<u16, Publication>,
}

impl Underway {
    /// A publication has left the queue. It is counted as unacknowledged before it counts as gone.
    pub(super) fn sent(&mut self, id: u16, unacked: u16) {
        if let Some(publication) = self.flow.publications().pop_front() {
            // Without a number it is not acknowledged.
            if id == 0 {
                self.flow.forget(&publication);
            } else {
                self.unacked.insert(id, publication);
            }
        }
        self.flow.unacked.store(unacked.into(), Ordering::Release);
        self.flow.queued.fetch_sub(1, Ordering::AcqRel);
        self.flow.moved.notify_one();
    }

    /// The topic of a publication that the broker has answered.
    pub(super) fn acknowledged(&mut self, id: u16) -> Option<String> {
        let publication = self.unacked.remove(&id)?;
        self.flow.forget(&publication);
        Some(publication.topic)
    }

    pub(super) fn settle(&self, unacked: u16) {
        if self.flow.unacked.swap(unacked.into(), Ordering::AcqRel) != usize::from(unacked) {
            self.flow.moved.notify_one();
        }
    }
}

#[cfg(test)]
pub(in super::super) mod unplugged {
    use rumqttc::v5::{EventLoop, MqttOptions};

    use super::*;

    /// A line to a broker that takes what a test says it takes.
    pub(in super::super::super) struct Unplugged {
        pub(in super::super::super) line: Line,
        underway: Underway,
        sent: u16,
        /// Holds the queue.
        _events: EventLoop,
    }

    impl Unplugged {
        pub(in super::super::super) fn new() -> Self {
            let (client, events) = AsyncClient::new(MqttOptions::new("edgecam", "localhost", 1883), REQUESTS);
            let limits = Limits { max_packet: None, qos: QoS::AtLeastOnce, retain: true };
            let underway = Underway::default();
            Self { line: Line::new(client, limits, &underway, Arc::default()), underway, sent: 0, _events: events }
        }

        /// What is queued, in order.
        pub(in super::super::super) fn queued(&self) -> Vec<String> {
            self.line.flow.publications().iter().map(|publication| publication.topic.clone()).collect()
        }

        /// All that is queued leaves.
        pub(in super::super::super) fn sends(&mut self) {
            for _ in self.queued() {
                self.sent += 1;
                self.underway.sent(self.sent, self.sent);
            }
        }

        /// The broker acknowledges all that has left.
        pub(in super::super::super) fn acknowledges(&mut self) {
            for id in 1..=self.sent {
                self.underway.acknowledged(id);
            }
            self.underway.settle(0);
        }
    }
}
