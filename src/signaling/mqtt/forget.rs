//! `edgecam mqtt forget`: takes back everything that this device has left with the broker.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::broker::{self, Ends, Incoming, Line, Outgoing, Plan, Unsent};
use super::topics::Topics;
use super::{INBOX, MqttSettings, home_assistant};
use crate::core::counters::LinkCounters;
use crate::core::signal::CameraId;

/// For the broker to be reached, and to acknowledge.
const PATIENCE: Duration = Duration::from_secs(15);
/// After the last retained message the broker is done telling.
const QUIET: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    #[error("the broker at {0} port {1} cannot be reached; the log says why")]
    Unreachable(String, u16),
    #[error("the broker did not acknowledge everything in {} s; try again", PATIENCE.as_secs())]
    Unacknowledged,
    #[error("a topic cannot be cleared: {0}")]
    Unsent(String),
}

/// Removes `status`, `info`, every camera's state and the announcement to Home Assistant; of cameras, too, that are not
/// configured any more. Returns the topics. The daemon must not run, or it puts them back.
///
/// # Errors
/// The broker cannot be reached, or does not acknowledge.
pub async fn forget(settings: MqttSettings, device: &str, cameras: &[CameraId]) -> Result<Vec<String>, ForgetError> {
    let topics = Topics::new(&settings.prefix, device);
    let (host, port) = (settings.host.clone(), settings.port);
    let mut known: BTreeSet<String> = [topics.status(), topics.info()].into();
    known.extend(cameras.iter().flat_map(|camera| [topics.state(camera), topics.enabled_state(camera)]));
    let discovery = settings.home_assistant.clone().unwrap_or_else(|| "homeassistant".into());
    known.insert(home_assistant::config_topic(&discovery, device));

    let plan = Plan::beside(settings, device, "forget", topics.retained_filters());
    let plan = Plan { wants_retained: true, ..plan };
    let (line, mut lines) = watch::channel(None);
    let (incoming, mut inbox) = mpsc::channel(INBOX);
    let cut = CancellationToken::new();
    let tasks = TaskTracker::new();
    let ends = Ends {
        lines: line,
        incoming,
        offs: Arc::default(),
        counters: Arc::<LinkCounters>::default(),
        cut: cut.clone(),
    };
    let connection = tasks.spawn(broker::keep_connected(plan, ends));
    let clear = async {
        // The connection's task ends only when it is told to.
        let Some(line) = lines.wait_for(Option::is_some).await.ok().and_then(|line| line.clone()) else {
            return Err(ForgetError::Unacknowledged);
        };
        while let Ok(Some(Incoming { topic, .. })) = timeout(QUIET, inbox.recv()).await {
            known.extend(String::from_utf8(topic.into()));
        }
        for topic in &known {
            clear(&line, topic).await?;
        }
        line.settled().await;
        line.hang_up();
        let _closed = connection.await;
        Ok(known.into_iter().collect())
    };
    let cleared = timeout(PATIENCE, clear).await;
    let is_connected = lines.borrow().is_some();
    cut.cancel();
    let late = if is_connected { ForgetError::Unacknowledged } else { ForgetError::Unreachable(host, port) };
    cleared.unwrap_or(Err(late))
}

/// An empty retained payload removes what was retained (MQTT 5, section 3.3.1.3).
async fn clear(line: &Line, topic: &str) -> Result<(), ForgetError> {
    loop {
        let message = Outgoing { topic: topic.to_owned(), retain: true, ..Outgoing::default() };
        match line.try_publish(&message) {
            Ok(()) => return Ok(()),
            Err(Unsent::Full) => line.moved().await,
            Err(unsent @ Unsent::TooLarge { .. }) => return Err(ForgetError::Unsent(unsent.to_string())),
        }
    }
}
