//! MQTT: the same envelope, triggers and presence through a broker, for cameras that nobody can reach directly.
//!
//! | File | Task |
//! |---|---|
//! | `broker` | the connection, kept up for ever; alone names the MQTT library |
//! | `tls` | whom we trust, and how we prove ourselves |
//! | `topics` | builds and reads topics |
//! | `viewers` | the envelope on `rpc/<client>`: clients, their tokens and their rates |
//! | `trigger` | what machines ask of a camera |
//! | `presence` | `info`, `state` and `event`, and when they are due |
//! | `retained` | what the broker keeps, sent anew on every connection |
//! | `home_assistant` | discovery |
//! | `forget` | takes back what the broker keeps |
//!
//! Two tasks: the connection's only polls and hands on; the link's, in this file, decides. Neither ever waits for the other or for
//! the broker: what does not fit is dropped and counted, and what is retained is sent later.

mod broker;
mod forget;
mod home_assistant;
mod presence;
mod retained;
mod tls;
mod topics;
mod trigger;
mod viewers;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt, StreamMap};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use self::broker::{Ends, Incoming, Line, Outgoing, Plan, REQUESTS, Unsent};
pub use self::forget::{ForgetError, forget};
use self::presence::Schedule;
use self::retained::Retained;
pub use self::tls::{ClientPem, Tls, TlsError, is_host};
pub use self::topics::{MAX_PREFIX_LEVELS, is_prefix};
use self::topics::{Purpose, Topics};
use self::trigger::{Ask, Paces, Refusal, What};
use self::viewers::{ReplyTo, Verdict, Viewers};
use super::{Inbound, Links, Outbox, clock, wall_clock};
use crate::core::access_unit::AccessUnit;
use crate::core::counters::MqttDrop;
use crate::core::pace::{Pace, Rate};
use crate::core::signal::{CameraId, Correlation, RejectReason, Reply, Request, Response};
use crate::core::trigger::{Event, Trigger};

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
/// Triggers and switches of all cameras together: a flood of them must not reach the engine.
const TRIGGERS: Rate = Rate::new(Duration::from_millis(10), 200);
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
    /// First levels of every topic: [`is_prefix`].
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
    let ends = Ends { lines: line, incoming, counters: Arc::clone(&links.counters), cut: cut.clone() };
    let mut connection = links.tasks.spawn(broker::keep_connected(plan, ends));

    let (outbox, mut responses) = mpsc::channel(OUTBOX);
    let (outcomes, mut decided) = mpsc::channel(OUTCOMES);
    let mut events = links.events.subscribe();
    let mut changes = changes(&links);
    let stopping = links.stopping.clone();
    let mut link = Link::new(links, topics, settings, outbox, outcomes);
    loop {
        tokio::select! {
            () = stopping.cancelled() => break,
            Ok(()) = lines.changed() => link.handle_line(lines.borrow_and_update().clone()),
            Some(message) = inbox.recv() => link.handle_message(message),
            Some(response) = responses.recv() => link.handle_response(&response),
            Some(outcome) = decided.recv() => link.handle_outcome(outcome),
            event = events.recv() => link.handle_event(event),
            Some((camera, ())) = changes.next() => link.handle_change(camera),
            () = link.has_room() => {}
            () = sleep_until(link.schedule.poll_timeout().into()) => link.handle_timeout(),
        }
        link.send_retained();
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
    triggers_total: Pace,
    schedule: Schedule,
    retained: Retained,
    outbox: Outbox,
    outcomes: mpsc::Sender<Outcome>,
}

/// What became of a trigger or a switch, once the engine has decided.
struct Outcome {
    camera: CameraId,
    id: Correlation,
    /// `wake`, `still`, `sleep`, `switch`.
    what: &'static str,
    to: Option<ReplyTo>,
    outcome: Result<Option<Bytes>, Refusal>,
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
            triggers_total: Pace::new(now),
            schedule: Schedule::new(links.cameras.len(), now),
            retained: Retained::default(),
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

    fn handle_trigger(&mut self, camera: CameraId, message: &Incoming, now: Instant) {
        let to = self.answer_to(message);
        let parsed = self.admit_trigger(&camera, message, now).map_err(|refusal| (None, refusal));
        let Ask { id, what, reason } = match parsed.and_then(|()| trigger::parse(&message.payload, wall_clock())) {
            Ok(ask) => ask,
            Err((id, refusal)) => return self.refuse(camera, id, to, &refusal),
        };
        info!(%camera, trigger = id.as_deref(), action = what.slug(), reason, "triggered");
        match what {
            What::Camera(action) => {
                let trigger = Trigger { camera: camera.clone(), id: id.clone(), action };
                let (reply, decided) = oneshot::channel();
                let asked = self.ask_engine(Inbound::Trigger { trigger, reply });
                self.await_engine(camera, id, what.slug(), to, asked, decided);
            }
            What::Still => {
                let (reply, unit) = oneshot::channel();
                match self.ask_engine(Inbound::Still { camera: camera.clone(), id: id.clone(), reply }) {
                    Ok(()) => self.await_still(camera, id, to, unit),
                    Err(reason) => self.refuse(camera, id, to, &reason.into()),
                }
            }
        }
    }

    fn handle_switch(&mut self, camera: CameraId, message: &Incoming, now: Instant) {
        let to = self.answer_to(message);
        let word = trigger::parse_switch(&message.payload);
        let admitted = match (message.retained, &word) {
            (true, _) => Err(Refusal::Retained),
            // Privacy is never told to wait.
            (false, Ok(false)) if self.links.camera(&camera).is_some() => Ok(()),
            (false, _) => self.admit_trigger(&camera, message, now),
        };
        let on = match admitted.and(word) {
            Ok(on) => on,
            Err(refusal) => return self.refuse(camera, None, to, &refusal),
        };
        let (reply, decided) = oneshot::channel();
        let asked = self.ask_engine(Inbound::Switch { camera: camera.clone(), on, id: None, reply });
        self.await_engine(camera, None, "switch", to, asked, decided);
    }

    fn admit_trigger(&mut self, camera: &CameraId, message: &Incoming, now: Instant) -> Result<(), Refusal> {
        if message.retained {
            return Err(Refusal::Retained);
        }
        let wait = self.triggers_total.wait(TRIGGERS, now);
        if !wait.is_zero() {
            return Err(Refusal::RateLimited(wait));
        }
        self.triggers_total.count(TRIGGERS, now);
        self.triggers.check(camera, now)
    }

    /// Where the sender wants its answer, if that is a place for answers.
    fn answer_to(&self, message: &Incoming) -> Option<ReplyTo> {
        let topic = message.response_topic.clone().filter(|topic| self.topics.is_response_topic(topic))?;
        Some(ReplyTo { topic, correlation: message.correlation.clone() })
    }

    fn await_engine(
        &mut self,
        camera: CameraId,
        id: Correlation,
        what: &'static str,
        to: Option<ReplyTo>,
        asked: Result<(), RejectReason>,
        decided: oneshot::Receiver<Result<(), RejectReason>>,
    ) {
        if let Err(reason) = asked {
            return self.refuse(camera, id, to, &reason.into());
        }
        let outcomes = self.outcomes.clone();
        self.links.tasks.spawn(async move {
            let outcome =
                decided.await.unwrap_or(Err(RejectReason::ShuttingDown)).map(|()| None).map_err(Refusal::from);
            let _stopped = outcomes.send(Outcome { camera, id, what, to, outcome }).await;
        });
    }

    fn await_still(
        &self,
        camera: CameraId,
        id: Correlation,
        to: Option<ReplyTo>,
        unit: oneshot::Receiver<Result<AccessUnit, RejectReason>>,
    ) {
        let outcomes = self.outcomes.clone();
        let links = Arc::clone(&self.links);
        self.links.tasks.spawn(async move {
            let outcome = match unit.await.unwrap_or(Err(RejectReason::ShuttingDown)) {
                Ok(unit) => {
                    let make_jpeg = Arc::clone(&links.make_jpeg);
                    let made = links.tasks.spawn_blocking(move || make_jpeg(unit)).await;
                    match made {
                        Ok(Ok(jpeg)) => Ok(Some(jpeg)),
                        Ok(Err(why)) => Err(Refusal::NoPicture(why)),
                        Err(_) => Err(Refusal::NoPicture("the decoder failed".into())),
                    }
                }
                Err(reason) => Err(reason.into()),
            };
            let _stopped = outcomes.send(Outcome { camera, id, what: What::Still.slug(), to, outcome }).await;
        });
    }

    fn handle_outcome(&mut self, Outcome { camera, id, what, to, outcome }: Outcome) {
        let outcome = outcome.and_then(|jpeg| match jpeg {
            Some(jpeg) => self.publish_still(&camera, jpeg),
            None => Ok(()),
        });
        match outcome {
            Ok(()) => {
                if let Some(to) = to {
                    self.say(to, trigger::done(&id, &camera, what));
                }
            }
            Err(refusal) => self.refuse(camera, id, to, &refusal),
        }
    }

    fn publish_still(&mut self, camera: &CameraId, jpeg: Bytes) -> Result<(), Refusal> {
        let still = Outgoing { topic: self.topics.still(camera), payload: jpeg, is_still: true, ..Outgoing::default() };
        match self.publish(&still) {
            Ok(()) => Ok(()),
            Err(Some(unsent @ Unsent::TooLarge { .. })) => Err(Refusal::Unsent(unsent.to_string())),
            Err(_) => Err(Refusal::Busy(BUSY_FOR)),
        }
    }

    /// Says why a trigger is not followed: to the sender, and on `event` for those who can only listen there.
    fn refuse(&mut self, camera: CameraId, id: Correlation, to: Option<ReplyTo>, refusal: &Refusal) {
        self.drop(match refusal {
            Refusal::Retained => MqttDrop::Retained,
            Refusal::RateLimited(_) => MqttDrop::RateLimited,
            _ => MqttDrop::Refused,
        });
        debug!(%camera, trigger = id.as_deref(), code = refusal.slug(), "a trigger is not followed");
        if self.triggers.may_tell(&camera, clock()) {
            if let Some(to) = to {
                self.say(to, trigger::error(&id, refusal));
            }
            self.publish_event(&camera, presence::refused(&camera, &id, refusal, wall_clock()));
        }
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
        let _counted = self.publish(&event);
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
        let _counted =
            self.publish(&Outgoing { topic, payload, correlation, expiry: Some(EXPIRY), ..Outgoing::default() });
    }

    /// Hands over what cannot wait; `None` as the reason: there is no connection.
    fn publish(&self, message: &Outgoing) -> Result<(), Option<Unsent>> {
        let Some(line) = &self.line else {
            self.drop(MqttDrop::Away);
            return Err(None);
        };
        line.try_publish(message).map_err(|unsent| {
            debug!(topic = message.topic, "not published: {unsent}");
            self.drop(unsent.into());
            Some(unsent)
        })
    }

    /// Hands over as much of what is retained as there is room for.
    fn send_retained(&mut self) {
        let Some(line) = &self.line else { return };
        while line.room() > RESERVED
            && let Some((topic, payload)) = self.retained.next()
        {
            let message =
                Outgoing { topic: topic.to_owned(), payload: payload.clone(), retain: true, ..Outgoing::default() };
            match line.try_publish(&message) {
                Ok(()) => self.retained.done(),
                Err(Unsent::Full) => return,
                Err(unsent @ Unsent::TooLarge { .. }) => {
                    tracing::warn!(topic, "not published: {unsent}");
                    self.links.counters.mqtt.dropped(MqttDrop::TooLarge);
                    self.retained.done();
                }
            }
        }
    }

    /// Until more of what is retained can be handed over; for ever while nothing waits.
    async fn has_room(&self) {
        match &self.line {
            Some(line) if self.retained.has_pending() => line.moved().await,
            _ => std::future::pending().await,
        }
    }

    /// A clean exit: whoever listens is told, and the broker keeps the will to itself.
    async fn say_stopped(&mut self) {
        self.retained.put(self.topics.status(), presence::STOPPED);
        let Some(line) = self.line.clone() else { return };
        let last_words = async {
            self.send_retained();
            while self.retained.has_pending() {
                line.moved().await;
                self.send_retained();
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
