//! For `edgecam doctor`: would this device's link come up?

use std::time::Duration;

use tokio::time::timeout;

use super::MqttSettings;
use super::broker::{self, Outgoing, Plan};
use super::topics::Topics;

const PATIENCE: Duration = Duration::from_secs(5);
/// A viewer that nobody is.
const NOBODY: &str = "edgecam-doctor";

/// Connects as the device does, subscribes to its topics, writes to one that viewers get answers on, and hangs up; with a client id
/// of its own, so that a daemon that runs keeps its connection. Returns the topics that the broker refuses. Some brokers refuse no
/// subscription, and then deliver nothing (mosquitto): that is not seen here.
///
/// # Errors
/// Why there is no connection, and the remedy.
pub async fn visit(settings: MqttSettings, device: &str) -> Result<Vec<String>, String> {
    let topics = Topics::new(&settings.prefix, device);
    let plan = Plan::beside(settings, device, "doctor", topics.filters());
    let message = Outgoing { topic: topics.rsp(NOBODY), ..Outgoing::default() };
    let late = || Err(format!("it does not answer within {} s; see its log", PATIENCE.as_secs()));
    timeout(PATIENCE, broker::visit(plan, message)).await.unwrap_or_else(|_| late())
}
