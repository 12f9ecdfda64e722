//! MQTT: the same envelope, triggers and presence through a broker, for cameras that nobody can reach directly.
//!
//! | File | Task |
//! |---|---|
//! | `broker` | the connection, kept up for ever; alone names the MQTT library |
//! | `tls` | whom we trust, and how we prove ourselves |
//! | `topics` | builds and reads topics |
//! | `viewers` | the envelope on `rpc/<client>`: clients, their tokens and their rates |
//! | `machines` | triggers and stills, from message to answer |
//! | `switch` | the privacy switch, whose `OFF` is never lost |
//! | `trigger` | how a trigger is written, how often it may come, what it is answered |
//! | `presence` | `info`, `state` and `event`, and when they are due |
//! | `post` | what waits for room on the connection |
//! | `retained` | what the broker keeps, sent anew on every connection |
//! | `home_assistant` | discovery |
//! | `forget` | takes back what the broker keeps |
//! | `visit` | whether the link would come up |
//!
//! Two tasks: the connection's only polls and hands on; the link's, in this file, decides. Neither ever waits for the other or for
//! the broker: what does not fit is dropped and counted, an `OFF` apart, and what is retained is sent later.

mod broker;
mod forget;
mod home_assistant;
mod machines;
mod post;
mod presence;
mod retained;
mod switch;
mod tls;
pub mod topics;
pub mod trigger;
mod viewers;
mod visit;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, iter};

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt, StreamMap};
use tokio_util::sync::CancellationToken;
use tracing::{trace, warn};

use self::broker::{Ends, Incoming, Line, Outgoing, Plan, REQUESTS, Unsent};
pub use self::forget::{ForgetError, forget};
use self::machines::{Outcome, Still};
use self::post::Post;
use self::presence::Schedule;
use self::retained::Retained;
use self::switch::Offs;
pub use self::tls::{ClientPem, Tls, TlsError, is_host};
use self::topics::{Purpose, Topics};
use self::trigger::Paces;
use self::viewers::{ReplyTo, Verdict, Viewers};
pub use self::visit::visit;
use super::{Inbound, Links, Outbox, clock, wall_clock};
use crate::core::counters::MqttDrop;
use crate::core::pace::Rate;
use crate::core::signal::{CameraId, RejectReason, Reply, Request, Response};
use crate::core::trigger::Event;

/// Responses to all clients of the broker that may wait for the link.
const OUTBOX: usize = 256;
/// Messages that may wait for the link.
const INBOX: usize = 256;
/// Answers of the engine and of the picture maker that may wait for the link.
const OUTCOMES: usize = 32;
/// What viewers are told is of no use later.
const EXPIRY: Duration = Duration::from_secs(30);
/// Part of the queue to the broker that retained topics leave to what cannot wait.
const RESERVED: usize = REQUESTS / 2;
/// When the device stops: for the broker to take our last words, then for the connection to close.
const LAST_WORDS: Duration = Duration::from_secs(1);
const GOODBYE: Duration = Duration::from_millis(500);
/// How soon a busy engine is to be asked again.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Where the broker is, and what we are to it.
#[derive(Clone)]
pub struct MqttSettings {
    /// A name or an address without brackets.
    pub host: String,
    pub port: u16,
    /// `None`: in clear text.
    pub tls: Option<Tls>,
    /// Empty: none.
    pub username: String,
    pub password: String,
    /// First levels of every topic: [`is_prefix`](crate::core::signal::is_prefix).
    pub prefix: String,
    /// Home Assistant's discovery prefix, where discovery is wanted.
    pub home_assistant: Option<String>,
    /// Where viewers find this device's page.
    pub page_url: Option<String>,
}

impl fmt::Debug for MqttSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, tls, username, password: _, prefix, home_assistant, page_url } = self;
        f.debug_struct("MqttSettings")
            .field("host", host)
            .field("port", port)
            .field("tls", tls)
            .field("username", username)
            .field("prefix", prefix)
            .field("home_assistant", home_assistant)
            .field("page_url", page_url)
            .finish_non_exhaustive()
    }
}

/// The client id that the broker knows this device by.
fn client_id(device: &str) -> String {
    format!("edgecam-{device}")
}

/// The link, until `links.stopping`; then it says `stopped` and hangs up.
pub async fn run(links: Arc<Links>, settings: MqttSettings) {
    let topics = Topics::new(&settings.prefix, &links.device);
    let mut filters = topics.filters();
    filters.extend(settings.home_assistant.as_deref().map(home_assistant::status_topic));
    let plan = Plan {
        client_id: client_id(&links.device),
        will: Some((topics.status(), presence::OFFLINE)),
        filters,
        wants_retained: false,
        settings: settings.clone(),
    };
    let (line, mut lines) = watch::channel(None);
    let (incoming, mut inbox) = mpsc::channel(INBOX);
    let cut = CancellationToken::new();
    let offs = Arc::new(Offs::new(&topics, links.cameras.iter().map(|board| &board.id)));
    let ends = Ends {
        lines: line,
        incoming,
        offs: Arc::clone(&offs),
        counters: Arc::clone(&links.counters),
        cut: cut.clone(),
    };
    let mut connection = links.tasks.spawn(broker::keep_connected(plan, ends));

    let (outbox, mut responses) = mpsc::channel(OUTBOX);
    let (outcomes, mut decided) = mpsc::channel(OUTCOMES);
    let mut events = links.events.subscribe();
    let mut changes = changes(&links);
    let mut switching = links.stills.switched_off();
    let stopping = links.stopping.clone();
    let mut link = Link::new(links, topics, settings, outbox, outcomes);
    loop {
        tokio::select! {
            () = stopping.cancelled() => break,
            Ok(()) = lines.changed() => link.handle_line(lines.borrow_and_update().clone()),
            Some(message) = inbox.recv() => link.handle_message(message),
            kept = offs.take() => {
                // An ON that was said before is among those.
                for message in iter::from_fn(|| inbox.try_recv().ok()).take(INBOX) {
                    link.handle_message(message);
                }
                for (camera, message) in kept {
                    link.handle_switch(camera, &message, clock());
                }
            }
            Some(response) = responses.recv() => link.handle_response(&response),
            Some(outcome) = decided.recv() => link.handle_outcome(outcome),
            // Pictures that wait are looked through below.
            Ok(()) = switching.changed() => {}
            event = events.recv() => link.handle_event(event),
            Some((camera, ())) = changes.next() => link.handle_change(camera),
            () = link.has_room() => {}
            () = sleep_until(link.schedule.poll_timeout().into()) => link.handle_timeout(),
        }
        link.send_waiting();
    }
    // The engine has ended before its links: its last words are all here.
    while let Ok(response) = responses.try_recv() {
        link.handle_response(&response);
    }
    link.say_stopped().await;
    let _in_time = timeout(GOODBYE, &mut connection).await;
    cut.cancel();
}

/// The index of a camera whenever its board says something new.
fn changes(links: &Links) -> StreamMap<usize, impl Stream<Item = ()> + Unpin + use<>> {
    let boards = links.cameras.iter().enumerate();
    let change = |(index, board): (usize, &super::CameraBoard)| {
        let statuses = WatchStream::from_changes(board.status.clone()).map(drop);
        let switches = WatchStream::from_changes(board.switch.clone()).map(drop);
        (index, statuses.merge(switches))
    };
    boards.map(change).collect()
}

/// The link's state. Everything here is told what happened and never waits.
struct Link {
    links: Arc<Links>,
    topics: Topics,
    settings: MqttSettings,
    line: Option<Line>,
    viewers: Viewers,
    triggers: Paces,
    /// For room at the engine.
    waiting_offs: BTreeMap<CameraId, JoinHandle<()>>,
    schedule: Schedule,
    retained: Retained,
    post: Post,
    /// Pictures that wait for room.
    stills: VecDeque<Still>,
    /// What the engine has switched off.
    switched_off: watch::Receiver<BTreeSet<CameraId>>,
    outbox: Outbox,
    outcomes: mpsc::Sender<Outcome>,
}

impl Link {
    fn new(
        links: Arc<Links>,
        topics: Topics,
        settings: MqttSettings,
        outbox: Outbox,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Self {
        let now = clock();
        let each =
            Rate::new(Duration::from_secs(1) / links.settings.messages_per_s.max(1), links.settings.message_burst);
        let mut link = Self {
            viewers: Viewers::new(each, now),
            triggers: Paces::new(links.cameras.iter().map(|board| board.id.clone()), now),
            waiting_offs: BTreeMap::new(),
            schedule: Schedule::new(links.cameras.len(), now),
            retained: Retained::default(),
            post: Post::default(),
            stills: VecDeque::new(),
            switched_off: links.stills.switched_off(),
            line: None,
            links,
            topics,
            settings,
            outbox,
            outcomes,
        };
        link.describe();
        link
    }

    /// A connection came up, or went.
    fn handle_line(&mut self, line: Option<Line>) {
        self.line = line;
        let lost = self.post.clear() + self.stills.drain(..).count();
        self.links.counters.mqtt.messages_dropped[MqttDrop::Away as usize].add(lost as u64);
        if self.line.is_some() {
            self.describe();
            self.retained.send_all_again(&self.topics.status());
        }
    }

    /// Puts together everything that the broker is to keep.
    fn describe(&mut self) {
        let Self { links, topics, settings, retained, .. } = self;
        let page_url = settings.page_url.as_deref();
        retained.put(topics.info(), presence::info(links, topics, page_url));
        for board in &links.cameras {
            retained.put(topics.state(&board.id), presence::state(board));
            retained.put(topics.enabled_state(&board.id), presence::on_off(board));
        }
        if let Some(prefix) = &settings.home_assistant {
            let cameras: Vec<_> = links.cameras.iter().map(|board| board.id.clone()).collect();
            let config = home_assistant::config(&links.device, &cameras, topics, page_url);
            retained.put(home_assistant::config_topic(prefix, &links.device), config);
        }
        retained.put(topics.status(), presence::ONLINE);
    }

    fn handle_message(&mut self, message: Incoming) {
        let now = clock();
        let Some(topic) = std::str::from_utf8(&message.topic).ok() else { return self.drop(MqttDrop::BadTopic) };
        match self.topics.parse(topic) {
            Some(Purpose::Rpc(client)) => {
                let verdict = self.viewers.handle(client, &message, &self.topics, &self.links, now);
                self.follow(verdict);
            }
            Some(Purpose::Trigger(camera)) => self.handle_trigger(camera, &message, now),
            Some(Purpose::EnabledSet(camera)) => self.handle_switch(camera, &message, now),
            None => match &self.settings.home_assistant {
                Some(prefix) if home_assistant::status_topic(prefix) == topic => {
                    if message.payload == home_assistant::BACK {
                        self.retained.send_again(&home_assistant::config_topic(prefix, &self.links.device));
                    }
                }
                _ => self.drop(MqttDrop::BadTopic),
            },
        }
    }

    fn follow(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Say { to, text, dropped } => {
                if let Some(reason) = dropped {
                    self.drop(reason);
                }
                self.say(to, text);
            }
            Verdict::Ask(request) => self.submit(request),
            Verdict::Drop(reason) => self.drop(reason),
        }
    }

    /// Hands a viewer's request to the engine, if it has room for it.
    fn submit(&mut self, request: Request) {
        let (to, id) = (request.from.clone(), request.id.clone());
        let inbound = Inbound::Request { request, outbox: self.outbox.clone() };
        if let Err(reason) = self.ask_engine(inbound) {
            self.handle_response(&Response { to, id, reply: Reply::Rejected(reason) });
        }
    }

    fn ask_engine(&self, inbound: Inbound) -> Result<(), RejectReason> {
        self.links.engine.try_send(inbound).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => RejectReason::Busy { retry_after: BUSY_FOR },
            mpsc::error::TrySendError::Closed(_) => RejectReason::ShuttingDown,
        })
    }

    fn handle_response(&mut self, response: &Response) {
        let (to, text) = self.viewers.reply(response, &self.topics);
        self.say(to, text);
    }

    fn handle_event(&mut self, event: Result<Event, broadcast::error::RecvError>) {
        match event {
            Ok(event) => {
                if let Some(index) = self.links.cameras.iter().position(|board| board.id == event.camera) {
                    self.schedule.touch(index, clock());
                }
                self.publish_event(&event.camera, presence::event(&event, wall_clock()));
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                self.links.counters.mqtt.messages_dropped[MqttDrop::Full as usize].add(missed);
            }
            // The links hold a sender themselves.
            Err(broadcast::error::RecvError::Closed) => {}
        }
    }

    fn publish_event(&mut self, camera: &CameraId, text: String) {
        let event = Outgoing { topic: self.topics.event(camera), payload: text.into(), ..Outgoing::default() };
        let _counted = self.publish(event);
    }

    fn handle_change(&mut self, camera: usize) {
        self.schedule.touch(camera, clock());
        if let Some(board) = self.links.cameras.get(camera) {
            self.retained.put(self.topics.enabled_state(&board.id), presence::on_off(board));
        }
    }

    fn handle_timeout(&mut self) {
        for camera in self.schedule.take_due(clock()) {
            let board = &self.links.cameras[camera];
            self.retained.put(self.topics.state(&board.id), presence::state(board));
        }
    }

    fn say(&mut self, to: ReplyTo, text: String) {
        let ReplyTo { topic, correlation } = to;
        let payload = text.into();
        let message = Outgoing { topic, payload, correlation, expiry: Some(EXPIRY), ..Outgoing::default() };
        let _counted = self.publish(message);
    }

    /// Hands a message over, or lets it wait for room; `None` as the reason: there is no connection.
    fn publish(&mut self, message: Outgoing) -> Result<(), Option<Unsent>> {
        let Some(line) = &self.line else {
            self.drop(MqttDrop::Away);
            return Err(None);
        };
        let sent = self.post.send(message, line);
        sent.map_err(|unsent| {
            trace!(%unsent, "not published");
            self.drop(unsent.into());
            Some(unsent)
        })
    }

    /// Hands over what waits, then as much of what is retained as leaves room for what comes next, then a picture.
    fn send_waiting(&mut self) {
        let Some(line) = &self.line else { return };
        self.post.drain(line);
        while line.room() > RESERVED
            && let Some((topic, payload)) = self.retained.next()
        {
            let message =
                Outgoing { topic: topic.to_owned(), payload: payload.clone(), retain: true, ..Outgoing::default() };
            match line.try_publish(&message) {
                Ok(()) => self.retained.done(),
                Err(Unsent::Full) => break,
                Err(unsent @ Unsent::TooLarge { .. }) => {
                    warn!(topic, "not published: {unsent}");
                    self.links.counters.mqtt.dropped(MqttDrop::TooLarge);
                    self.retained.done();
                }
            }
        }
        self.send_stills();
    }

    fn has_waiting(&self) -> bool {
        self.retained.has_pending() || !self.post.is_empty() || !self.stills.is_empty()
    }

    /// Until more can be handed over; for ever while nothing waits.
    async fn has_room(&self) {
        match &self.line {
            Some(line) if self.has_waiting() => line.moved().await,
            _ => std::future::pending().await,
        }
    }

    /// A clean exit: whoever listens is told, and the broker keeps the will to itself.
    async fn say_stopped(&mut self) {
        // A picture would keep the last words waiting.
        self.refuse_stills(&RejectReason::ShuttingDown, |_| true);
        self.retained.put(self.topics.status(), presence::STOPPED);
        let Some(line) = self.line.clone() else { return };
        let last_words = async {
            self.send_waiting();
            while self.has_waiting() {
                line.moved().await;
                self.send_waiting();
            }
            line.settled().await;
        };
        let _in_time = timeout(LAST_WORDS, last_words).await;
        line.hang_up();
    }

    fn drop(&self, reason: MqttDrop) {
        self.links.counters.mqtt.dropped(reason);
    }
}

#[cfg(test)]
#[path = "mqtt_test.rs"]
mod tests;
