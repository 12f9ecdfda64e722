//! Viewers who count what they see.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use edgecam::probe::{Connection, Ended, Endpoint, Event, Probe, ProbeSettings, Report};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::broker::{PATIENCE, pause};
use super::client::Client;
use super::daemon::Daemon;

/// A viewer who keeps watching in the background.
pub struct Watching {
    pictures: Arc<AtomicU64>,
    leaves: watch::Sender<bool>,
    task: JoinHandle<(Report, Option<Ended>)>,
}

impl Watching {
    /// Through the device's own web server, which no broker can disturb. Returns with the first picture.
    pub async fn by_whep(daemon: &Daemon) -> Self {
        let settings = ProbeSettings::new(Endpoint::parse(&daemon.url("front")).unwrap());
        let probe = Probe::connect(&settings).await.unwrap();
        let watching = Self::start(probe, |probe| async { drop(probe.close().await) });
        watching.sees(1).await;
        watching
    }

    /// Signalled through the broker alone. Returns with the first picture.
    pub async fn by_mqtt(client: &mut Client, daemon: &Daemon, name: &str) -> Self {
        let (mut connection, offer) = Connection::offer(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]).await.unwrap();
        client.subscribes(&daemon.topic(&format!("rsp/{name}"))).await;
        client.publishes(&daemon.topic(&format!("rpc/{name}")), said(&offer_message("1", "s", &offer))).await;
        let answer = client.hears_json(&daemon.topic(&format!("rsp/{name}"))).await;
        connection.accept(answered(&answer)).await.unwrap();
        Self::of(connection).await
    }

    /// With a connection whose answer was accepted.
    pub async fn of(connection: Connection) -> Self {
        let watching = Self::start(Box::new(connection), |connection| connection.close());
        watching.sees(1).await;
        watching
    }

    fn start<V, F, G>(mut viewer: V, close: F) -> Self
    where
        V: DerefMut<Target = Connection> + Send + 'static,
        F: FnOnce(V) -> G + Send + 'static,
        G: Future<Output = ()> + Send,
    {
        let pictures = Arc::new(AtomicU64::new(0));
        let (leaves, mut left) = watch::channel(false);
        let counted = Arc::clone(&pictures);
        let task = tokio::spawn(async move {
            let mut ended = None;
            while ended.is_none() {
                tokio::select! {
                    event = viewer.next() => match event {
                        Event::Picture(_) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                        Event::Connected => {}
                        Event::Ended(how) => ended = Some(how),
                    },
                    _ = left.changed() => break,
                }
            }
            let report = viewer.report();
            close(viewer).await;
            (report, ended)
        });
        Self { pictures, leaves, task }
    }

    pub fn pictures(&self) -> u64 {
        self.pictures.load(Ordering::Relaxed)
    }

    /// Waits for so many more pictures.
    pub async fn sees(&self, more: u64) {
        let (wanted, deadline) = (self.pictures() + more, Instant::now() + PATIENCE);
        while self.pictures() < wanted {
            assert!(!self.task.is_finished(), "the session ended");
            assert!(Instant::now() < deadline, "no pictures come: {} of {wanted}", self.pictures());
            pause().await;
        }
    }

    /// Leaves, and has lost nothing of what was sent since it came, and never waited for long.
    pub async fn has_lost_nothing(self) {
        self.leaves.send_replace(true);
        let (report, ended) = self.task.await.unwrap();
        assert_eq!(ended, None, "{report}");
        assert_eq!(report.counts.lost, 0, "{report}");
        // A picture that was never encoded is no lost packet. A camera that stalled shows here: that takes two seconds to be noticed, and
        // one at least until it is opened anew.
        assert!(report.longest_gap.as_secs_f64() < 3.0, "{report}");
    }

    /// The device ends the session.
    pub async fn sees_the_end(self) -> Ended {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the session lives").unwrap().1.unwrap()
    }
}

/// An `offer` of the envelope for camera `front`.
pub fn offer_message(id: &str, session: &str, sdp: &str) -> Value {
    let description = json!({ "type": "offer", "sdp": sdp });
    json!({ "v": 1, "id": id, "type": "offer", "session": session, "camera": "front", "description": description })
}

pub fn answered(answer: &Value) -> String {
    assert_eq!(answer["type"], "answer", "{answer}");
    assert_eq!(answer["description"]["type"], "answer", "{answer}");
    answer["description"]["sdp"].as_str().unwrap().to_owned()
}

pub fn said(message: &Value) -> String {
    message.to_string()
}
