//! A viewer outside the guest, watching in a task of its own.

use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::Duration;

use edgecam::probe::{Connection, Ended, Endpoint, Event, Probe, ProbeSettings};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::stream::MaybeTlsStream;
use tokio_tungstenite::tungstenite::{Message, WebSocket, connect};

/// For anything to happen in an emulated guest on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Whole pictures, from the first keyframe on.
    pub(crate) pictures: u64,
    pub(crate) ended: Option<Ended>,
}

pub(crate) struct Viewer {
    seen: watch::Receiver<Seen>,
    keyframe_wanted: mpsc::Sender<()>,
    _task: JoinSet<()>,
}

impl Viewer {
    /// As any WHEP player does.
    pub(crate) async fn join(url: &str) -> Self {
        let settings = ProbeSettings::new(Endpoint::parse(url).expect("a URL"));
        let probe = timeout(PATIENCE, Probe::connect(&settings)).await.expect("an answer in time").expect("a session");
        Self::watching(|publish, wishes| async {
            let mut probe = probe;
            watch_on(&mut probe, publish, wishes).await;
            probe.close().await;
        })
    }

    /// As the page does: over a WebSocket, which then tells how the camera fares.
    pub(crate) async fn join_by_websocket(url: &str, camera: &str) -> (Self, Notices) {
        let (mut connection, offer) = Connection::offer(&[Ipv4Addr::LOCALHOST.into()]).await.expect("an offer");
        let (mut socket, _) = connect(url).expect("a WebSocket");
        let description = json!({"type": "offer", "sdp": offer});
        let offer = json!({"v": 1, "type": "offer", "session": "vm", "camera": camera, "description": description});
        socket.send(Message::text(offer.to_string())).expect("the offer can be sent");
        let answer = loop {
            let message = next_message(&mut socket).expect("an answer");
            if message["type"] == "answer" {
                break message["description"]["sdp"].as_str().expect("SDP").to_owned();
            }
            assert_ne!(message["type"], "error", "{message}");
        };
        connection.accept(answer).await.expect("an answer that can be used");
        let viewer = Self::watching(|publish, wishes| async {
            let mut connection = connection;
            watch_on(&mut connection, publish, wishes).await;
            connection.close().await;
        });
        (viewer, Notices::listen(socket))
    }

    fn watching<Task: Future<Output = ()> + Send + 'static>(
        task: impl FnOnce(watch::Sender<Seen>, mpsc::Receiver<()>) -> Task,
    ) -> Self {
        let (publish, seen) = watch::channel(Seen::default());
        let (keyframe_wanted, wishes) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(task(publish, wishes));
        Self { seen, keyframe_wanted, _task: tasks }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until so many more pictures have come.
    pub(crate) async fn sees_pictures(&mut self, more: u64) {
        let wanted = self.seen().pictures + more;
        let enough = self.seen.wait_for(|seen| seen.pictures >= wanted);
        let came = matches!(timeout(PATIENCE, enough).await, Ok(Ok(_)));
        assert!(came, "waited in vain for {wanted} pictures: {:?}", self.seen());
    }

    /// As a decoder does that lost a picture.
    pub(crate) async fn request_keyframe(&self) {
        self.keyframe_wanted.send(()).await.expect("the viewer is watching");
    }
}

async fn watch_on(connection: &mut Connection, publish: watch::Sender<Seen>, mut wishes: mpsc::Receiver<()>) {
    while !publish.is_closed() && publish.borrow().ended.is_none() {
        tokio::select! {
            Some(()) = wishes.recv() => connection.request_keyframe().await.expect("a request can be sent"),
            event = connection.next() => publish.send_modify(|seen| match event {
                Event::Picture(_) => seen.pictures += 1,
                Event::Ended(ended) => seen.ended = Some(ended),
                Event::Connected => {}
            }),
        }
    }
}

/// What the camera has told of itself over a WebSocket, first to last.
pub(crate) struct Notices(watch::Receiver<Vec<Value>>);

impl Notices {
    fn listen(mut socket: WebSocket<MaybeTlsStream<TcpStream>>) -> Self {
        let (publish, notices) = watch::channel(Vec::new());
        // Ends with the socket, which ends with the guest.
        thread::spawn(move || {
            while let Some(message) = next_message(&mut socket) {
                publish.send_modify(|notices| notices.push(message));
            }
        });
        Self(notices)
    }

    /// Waits until the camera has told these states in this order, and nothing else.
    pub(crate) async fn are(&mut self, wanted: &[&str]) {
        let enough = self.0.wait_for(|notices| notices.len() >= wanted.len());
        let came = matches!(timeout(PATIENCE, enough).await, Ok(Ok(_)));
        let told = self.0.borrow().clone();
        assert!(came, "waited in vain for {wanted:?}, was told {told:?}");
        let states: Vec<_> = told.iter().map(|notice| notice["state"].as_str().unwrap_or_default()).collect();
        assert_eq!(states, wanted, "{told:?}");
    }
}

/// The next message of the envelope; `None` when the socket is closed.
fn next_message(socket: &mut WebSocket<MaybeTlsStream<TcpStream>>) -> Option<Value> {
    loop {
        if let Message::Text(text) = socket.read().ok()? {
            return Some(serde_json::from_str(&text).expect("JSON"));
        }
    }
}
