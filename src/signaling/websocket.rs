//! `GET /ws`: the envelope over a WebSocket (RFC 6455). One socket is one client, with any number of sessions.

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::get;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::access::Denied;
use super::problem::Problem;
use super::resume::{Client, Entry, Resumable, Successor};
use super::token::Grant;
use super::wire::{self, Fault, Incoming, Outgoing, Resume, Said, Token, Welcome};
use super::{Inbound, LinkSettings, Links, clock, rim, unguessable_name};
use crate::core::pace::{Pace, Rate};
use crate::core::places::{PlaceLimits, Places};
use crate::core::signal::{
    Address, CameraId, ClientId, Correlation, LinkId, RejectReason, Reply, Request, Response, Signal,
};

/// The subprotocol that is agreed when a client offers one.
const PROTOCOL: &str = "edgecam";

/// A client that cannot wait with its first message may offer its token as a second subprotocol with this prefix.
const TOKEN_PROTOCOL: &str = "bearer.";

/// A client that leaves so many responses untaken loses its sessions.
const OUTBOX: usize = 64;

/// For the engine's last words when the device stops.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The other side's word for: this socket is of no use any more, and I will be back with another.
const BACK_SOON: u16 = 4000;

pub(super) fn router(links: Arc<Links>) -> Router {
    let limits = PlaceLimits {
        all: links.settings.max_lost_sockets,
        per_address: links.settings.max_lost_per_address,
        counts_loopback: false, // a proxy on this machine speaks for everybody
    };
    let lost = Places::new(limits, Arc::new(|_| {}));
    let sockets = Sockets { links, resumable: Resumable::default(), lost };
    Router::new().route("/ws", get(open)).with_state(Arc::new(sockets))
}

/// What all sockets share.
struct Sockets {
    links: Arc<Links>,
    resumable: Resumable,
    /// Places for those that wait for the next socket.
    lost: Places,
}

async fn open(
    State(sockets): State<Arc<Sockets>>,
    ConnectInfo(caller): ConnectInfo<IpAddr>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> HttpResponse {
    let links = Arc::clone(&sockets.links);
    if let Err(denied) = rim::admit_page(&links, &headers) {
        return Problem::from(denied).into_response();
    }
    if links.stopping.is_cancelled() {
        return Problem::from(RejectReason::ShuttingDown).into_response();
    }
    let offered = upgrade.requested_protocols().filter_map(|protocol| protocol.to_str().ok());
    let token = offered.filter_map(|protocol| protocol.strip_prefix(TOKEN_PROTOCOL)).next().map(str::to_owned);
    // axum's own task carries the socket; the token makes stopping wait for it all the same.
    let running = links.tasks.token();
    upgrade
        .protocols([PROTOCOL])
        // Up to twice the limit, a message is answered with words; beyond, the connection ends in the middle of it.
        .max_message_size(2 * wire::MAX_MESSAGE)
        .max_frame_size(2 * wire::MAX_MESSAGE)
        .read_buffer_size(8 * 1024)
        .on_upgrade(move |socket| async move {
            links.counters.sockets_opened.add(1);
            let lost = Conversation::new(sockets, caller).run(socket, token).await;
            links.counters.sockets_closed.add(1);
            if let Some(lost) = lost {
                lost.wait_for_successor().await;
            }
            drop(running);
        })
}

/// One client from its first word to its last.
struct Conversation {
    sockets: Arc<Sockets>,
    links: Arc<Links>,
    caller: IpAddr,
    client: Client,
    /// Calls when another socket wants to take over. Only who said hello was told how.
    entry: Option<Entry>,
    grant: Option<Grant>,
    /// The camera named in `hello`.
    camera: Option<CameraId>,
    pace: Pace,
}

/// Why a conversation is over.
enum End {
    /// The other side closed it; there is nobody to tell.
    Left,
    /// It broke, or its other side will come back with another.
    Lost,
    /// Another has taken over.
    Resumed,
    Closed {
        code: u16,
        reason: &'static str,
    },
    /// Said in an `error` first.
    Fault(Fault),
}

impl Conversation {
    fn new(sockets: Arc<Sockets>, caller: IpAddr) -> Self {
        let links = Arc::clone(&sockets.links);
        let id = ClientId { link: LinkId::WebSocket, name: unguessable_name().into() };
        let grant = (!links.access.needs_token()).then(Grant::everything);
        Self {
            sockets,
            links,
            caller,
            client: Client::new(id, OUTBOX),
            entry: None,
            grant,
            camera: None,
            pace: Pace::new(clock()),
        }
    }

    /// Returns what is left when the socket is lost.
    async fn run(mut self, mut socket: WebSocket, token: Option<String>) -> Option<Self> {
        let Err(end) = self.talk(&mut socket, token).await;
        // The sessions come first: their places are free, or theirs again, while the socket says goodbye.
        match end {
            End::Lost => return Some(self),
            End::Resumed => close(socket, close_code::NORMAL, "resumed").await,
            End::Left => self.leave().await,
            End::Closed { code, reason } => {
                self.leave().await;
                close(socket, code, reason).await;
            }
            End::Fault(fault) => {
                self.leave().await;
                let code = fault.code;
                if send(&mut socket, &Outgoing::Error(fault)).await.is_ok() {
                    close(socket, close_code::POLICY, code).await;
                }
            }
        }
        None
    }

    /// A viewer who changes networks needs a moment: its sessions go on, for the next socket to take them over.
    async fn wait_for_successor(mut self) {
        if self.client.is_answered
            && self.entry.is_some()
            && let Some(_place) = self.sockets.lost.take(self.caller)
        {
            let long_enough = sleep(self.links.settings.resume_within);
            tokio::pin!(long_enough);
            loop {
                tokio::select! {
                    successor = called(&mut self.entry) => {
                        if let Err(End::Resumed) = self.hand_over(successor) {
                            return;
                        }
                    }
                    () = &mut long_enough => break,
                    () = self.links.stopping.cancelled() => break,
                }
            }
        }
        self.leave().await;
    }

    /// Goes on where the other may not, or does not any more, take over.
    fn hand_over(&mut self, successor: Successor) -> Result<(), End> {
        let nobody = Client::new(self.client.id.clone(), 1);
        match successor.take(std::mem::replace(&mut self.client, nobody)) {
            Ok(()) => {
                self.entry = None;
                Err(End::Resumed)
            }
            Err(client) => {
                self.client = client;
                Ok(())
            }
        }
    }

    /// The wait is for room in the channel.
    async fn leave(self) {
        let _gone = self.links.engine.send(Inbound::Left { client: self.client.id }).await;
    }

    async fn talk(&mut self, socket: &mut WebSocket, token: Option<String>) -> Result<Infallible, End> {
        if let Some(token) = token {
            self.introduce(Some(&token), &None)?;
        }
        let mut timers = Timers::start(&self.links.settings);
        loop {
            tokio::select! {
                biased;
                () = self.links.stopping.cancelled() => return Err(self.last_words(socket).await),
                successor = called(&mut self.entry) => self.hand_over(successor)?,
                Some(response) = self.client.responses.recv() => {
                    self.client.is_answered |= matches!(response.reply, Reply::Answer { .. });
                    send(socket, &Outgoing::Response(&response)).await?;
                }
                received = socket.recv() => {
                    timers.heard(&self.links.settings);
                    self.handle(received, socket).await?;
                }
                () = sleep_until(timers.next(self.grant.is_some())) => {
                    timers.ring(self.grant.is_some(), &self.links.settings)?;
                    socket.send(Message::Ping("".into())).await.map_err(|_| End::Lost)?;
                }
            }
        }
    }

    async fn handle(
        &mut self,
        received: Option<Result<Message, axum::Error>>,
        socket: &mut WebSocket,
    ) -> Result<(), End> {
        let text = match received {
            Some(Ok(Message::Close(frame))) => {
                return Err(if frame.is_some_and(|frame| frame.code == BACK_SOON) { End::Lost } else { End::Left });
            }
            None => return Err(End::Lost),
            Some(Err(error)) => {
                // A connection that broke takes no words any more; one with an unreadable message on it does.
                let message = format!("the message cannot be read: {error}");
                send(socket, &Outgoing::Error(Fault { code: "unreadable", message, ..no_fault() })).await?;
                return Err(End::Closed { code: close_code::POLICY, reason: "unreadable" });
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return self.keep_pace(),
            Some(Ok(Message::Binary(_))) => {
                self.keep_pace()?;
                let message = "messages are JSON in text frames, not binary ones".to_owned();
                return self.refuse(socket, Fault { code: "not-json", message, ..no_fault() }).await;
            }
            Some(Ok(Message::Text(text))) => text,
        };
        self.keep_pace()?;
        self.links.counters.messages.add(1);
        match wire::decode(text.as_bytes()) {
            Ok(incoming) => self.answer(incoming, socket).await,
            Err(unreadable) => self.refuse(socket, unreadable.into()).await,
        }
    }

    async fn answer(&mut self, Incoming { id, said }: Incoming, socket: &mut WebSocket) -> Result<(), End> {
        if let Said::Offer { token: Some(token), .. } = &said {
            self.introduce(Some(&token.0), &id)?;
        }
        let (session, signal) = match (said, &self.grant) {
            (Said::Hello { token, camera, resume }, _) => return self.greet(id, token, camera, resume, socket).await,
            (_, None) => return Err(denied(&id, &Denied::TokenNeeded)),
            (Said::Ping, Some(_)) => return send(socket, &Outgoing::Pong { id }).await,
            (Said::Signal { session, signal }, Some(_)) => (session, signal),
            (Said::Offer { session, camera, sdp, quality, token: _ }, Some(grant)) => {
                match self.camera_for(camera, grant) {
                    Ok(camera) => {
                        if self.links.camera(&camera).is_some() {
                            self.client.cameras.insert(camera.clone());
                        }
                        (session, Signal::Offer { camera, sdp, quality })
                    }
                    Err(denied) => {
                        self.links.counters.denied.add(1);
                        return self.refuse(socket, Fault { session: Some(session), ..fault_of(&id, &denied) }).await;
                    }
                }
            }
        };
        let from = Address { client: self.client.id.clone(), session };
        self.submit(Request { from, id, signal }, socket).await
    }

    async fn greet(
        &mut self,
        id: Correlation,
        token: Option<Token>,
        camera: Option<CameraId>,
        resume: Option<Token>,
        socket: &mut WebSocket,
    ) -> Result<(), End> {
        self.introduce(token.as_ref().map(|token| token.0.as_str()), &id)?;
        self.camera = camera.or(self.camera.take());
        let resumed = match resume {
            Some(Token(secret)) => self.resume(&secret).await,
            None => false,
        };
        let entry = self.entry.insert(self.sockets.resumable.enter());
        let resume = Some(Resume { name: Token(entry.secret.to_string()), resumed });
        send(socket, &Outgoing::Welcome { id, welcome: &self.welcome(resume) }).await
    }

    /// Becomes the client with this secret. Who may have sessions already stays who it is.
    async fn resume(&mut self, secret: &str) -> bool {
        self.entry = None;
        let Some(grant) = self.grant.clone().filter(|_| self.client.cameras.is_empty()) else { return false };
        let Some(client) = self.sockets.resumable.take_over(secret, grant).await else { return false };
        self.client = client;
        true
    }

    fn camera_for(&self, named: Option<CameraId>, grant: &Grant) -> Result<CameraId, Denied> {
        self.links.camera_for(named.or_else(|| self.camera.clone()), grant)
    }

    async fn submit(&self, request: Request, socket: &mut WebSocket) -> Result<(), End> {
        let (to, id) = (request.from.clone(), request.id.clone());
        match self.links.submit(request, self.client.outbox.clone()).await {
            Ok(()) => Ok(()),
            Err(reason) => {
                let response = Response { to, id, reply: Reply::Rejected(reason) };
                send(socket, &Outgoing::Response(&response)).await
            }
        }
    }

    /// Checks a token. One that is no good ends the conversation; none at all keeps what was granted before.
    fn introduce(&mut self, token: Option<&str>, id: &Correlation) -> Result<(), End> {
        if token.is_none() && self.grant.is_some() {
            return Ok(());
        }
        let admitted = rim::admit(&self.links, token, Some(self.caller));
        self.grant = Some(admitted.map_err(|reason| denied(id, &reason))?);
        Ok(())
    }

    fn welcome(&self, resume: Option<Resume>) -> Welcome {
        let idle_ms = Some(self.links.settings.idle_timeout.as_millis());
        Welcome { idle_ms, resume, ..self.links.welcome(self.grant.as_ref()) }
    }

    fn keep_pace(&mut self) -> Result<(), End> {
        let LinkSettings { messages_per_s, message_burst, .. } = self.links.settings;
        let rate = Rate::new(Duration::from_secs(1) / messages_per_s.max(1), message_burst);
        let now = clock();
        if !self.pace.wait(rate, now).is_zero() {
            return Err(fault(&None, "rate-limited", format!("more than {messages_per_s} messages a second")));
        }
        self.pace.count(rate, now);
        Ok(())
    }

    async fn refuse(&self, socket: &mut WebSocket, fault: Fault) -> Result<(), End> {
        self.links.counters.messages_refused.add(1);
        send(socket, &Outgoing::Error(fault)).await
    }

    /// The engine says bye to every session and lets go of the outbox; that is passed on before the socket closes.
    async fn last_words(&mut self, socket: &mut WebSocket) -> End {
        let (unused, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.client.outbox, unused));
        let forward = async {
            while let Some(response) = self.client.responses.recv().await {
                send(socket, &Outgoing::Response(&response)).await?;
            }
            Ok::<_, End>(())
        };
        let _in_time = timeout(LAST_WORDS, forward).await;
        End::Closed { code: close_code::AWAY, reason: "shutting-down" }
    }
}

/// When a socket has to be looked at.
struct Timers {
    ping_at: Instant,
    idle_at: Instant,
    token_at: Instant,
}

impl Timers {
    fn start(settings: &LinkSettings) -> Self {
        let now = Instant::from_std(clock());
        Self {
            ping_at: now + settings.ping_interval,
            idle_at: now + settings.idle_timeout,
            token_at: now + settings.auth_timeout,
        }
    }

    fn next(&self, admitted: bool) -> Instant {
        let next = self.ping_at.min(self.idle_at);
        if admitted { next } else { next.min(self.token_at) }
    }

    /// Anything that comes, pongs included, is a sign of life.
    fn heard(&mut self, settings: &LinkSettings) {
        self.idle_at = Instant::from_std(clock()) + settings.idle_timeout;
    }

    fn ring(&mut self, admitted: bool, settings: &LinkSettings) -> Result<(), End> {
        let now = Instant::from_std(clock());
        if !admitted && now >= self.token_at {
            return Err(denied(&None, &Denied::TokenNeeded));
        }
        if now >= self.idle_at {
            return Err(End::Closed { code: close_code::AWAY, reason: "idle" });
        }
        self.ping_at = now + settings.ping_interval;
        Ok(())
    }
}

/// A write that never ends is cut off below, by the listener.
async fn send(socket: &mut WebSocket, outgoing: &Outgoing<'_>) -> Result<(), End> {
    socket.send(Message::Text(wire::encode(outgoing).into())).await.map_err(|_| End::Lost)
}

/// The next one who wants to take over, if ever.
async fn called(entry: &mut Option<Entry>) -> Successor {
    match entry {
        Some(entry) => entry.called().await,
        None => pending().await,
    }
}

async fn close(mut socket: WebSocket, code: u16, reason: &'static str) {
    let frame = CloseFrame { code, reason: reason.into() };
    if socket.send(Message::Close(Some(frame))).await.is_ok() {
        // Until the other side has read it: a connection closed with unread bytes in it takes our last words along.
        let drain = async { while let Some(Ok(_)) = socket.recv().await {} };
        let _in_time = timeout(LAST_WORDS, drain).await;
    }
}

fn fault(id: &Correlation, code: &'static str, message: String) -> End {
    End::Fault(Fault { id: id.clone(), code, message, ..no_fault() })
}

fn denied(id: &Correlation, denied: &Denied) -> End {
    End::Fault(fault_of(id, denied))
}

fn fault_of(id: &Correlation, denied: &Denied) -> Fault {
    Fault { id: id.clone(), ..denied.into() }
}

fn no_fault() -> Fault {
    Fault { id: None, session: None, code: "", message: String::new(), retry_after_ms: None }
}
