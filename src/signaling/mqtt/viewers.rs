//! Viewers behind the broker: who they are, what they may, how often, and what they asked last.
//!
//! A client is a level of a topic and nothing more: whether `rpc/kitchen` is the kitchen's alone, the broker's access rules decide.
//! There is no connection whose end would be noticed, so everything remembered is bounded in number and time.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::access::Denied;
use super::super::token::Grant;
use super::super::wire::{self, Fault, Incoming as Message, Outgoing as Reply, Said, Token};
use super::super::{Links, rim};
use super::broker::Incoming;
use super::topics::Topics;
use crate::core::counters::MqttDrop;
use crate::core::pace::{Pace, Rate};
use crate::core::signal::{
    Address, CameraId, ClientId, Correlation, LinkId, Reply as CameraReply, Request, Response, SessionName, Signal,
};

/// Clients remembered; the one that rested longest makes room for a new one.
const MAX_CLIENTS: usize = 1024;
/// A client that says nothing for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// All clients together: 500 messages a second, and 1000 at once.
const TOTAL: Rate = Rate::new(Duration::from_millis(2), 1000);
/// How often a client is told that it says too much.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Offers of one client remembered, and for how long one that comes again counts as a repetition.
const MAX_ASKED: usize = 8;
const REPEATED_WITHIN: Duration = Duration::from_secs(30);
/// Longer correlation data is not given back (MQTT 5, section 3.3.2.3.6, has no limit of its own).
pub(super) const MAX_CORRELATION: usize = 256;

/// Behind a broker is everybody, as behind a proxy on this machine: one who brings bad tokens must not shut out all. How often
/// anybody may try is bounded by the rates here.
const CALLER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where an answer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReplyTo {
    pub(super) topic: String,
    pub(super) correlation: Option<Bytes>,
}

/// What a viewer's message leads to.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The link itself has the answer.
    Say {
        to: ReplyTo,
        text: String,
        dropped: Option<MqttDrop>,
    },
    /// The engine is asked.
    Ask(Request),
    Drop(MqttDrop),
}

/// All clients of late.
pub(super) struct Viewers {
    clients: HashMap<Arc<str>, Client>,
    total: Pace,
    each: Rate,
    hashes: RandomState,
}

struct Client {
    name: Arc<str>,
    pace: Pace,
    used_at: Instant,
    told_at: Option<Instant>,
    /// Checked anew with each offer, so that it ends when it ends.
    token: Option<Token>,
    /// The camera named in `hello`.
    camera: Option<CameraId>,
    asked: VecDeque<Asked>,
}

/// An offer or restart that the engine has been given.
struct Asked {
    /// `None`: it was rejected, and the same again is a new try.
    hash: Option<u64>,
    at: Instant,
    session: SessionName,
    id: Correlation,
    to: ReplyTo,
}

impl Viewers {
    /// `each`: what one client may say.
    pub(super) fn new(each: Rate, now: Instant) -> Self {
        Self { clients: HashMap::new(), total: Pace::new(now), each, hashes: RandomState::new() }
    }

    /// One message on `rpc/<name>`.
    pub(super) fn handle(
        &mut self,
        name: &str,
        message: &Incoming,
        topics: &Topics,
        links: &Links,
        now: Instant,
    ) -> Verdict {
        if message.retained {
            return Verdict::Drop(MqttDrop::Retained);
        }
        let to = reply_to(name, message, topics);
        let hash = self.hashes.hash_one(&message.payload);
        let client = match self.admit(name, now) {
            Admission::Admitted(client) => client,
            Admission::TooMuch { tell: false } => return Verdict::Drop(MqttDrop::RateLimited),
            Admission::TooMuch { tell: true } => {
                let fault = Fault {
                    id: None,
                    session: None,
                    code: "rate-limited",
                    message: "too many messages; wait a moment".into(),
                    retry_after_ms: Some(TELL_EVERY.as_millis()),
                };
                let text = wire::encode(&Reply::Error(fault));
                return Verdict::Say { to, text, dropped: Some(MqttDrop::RateLimited) };
            }
        };
        match wire::decode(&message.payload) {
            Ok(heard) => client.answer(heard, to, hash, links, now),
            Err(unreadable) => refuse(unreadable.into(), to),
        }
    }

    /// What the engine says, as it goes to the broker.
    pub(super) fn reply(&mut self, response: &Response, topics: &Topics) -> (ReplyTo, String) {
        let Response { to: Address { client, session }, id, reply } = response;
        let known = self.clients.get_mut(&client.name);
        let asked = known.and_then(|client| match reply {
            CameraReply::Answer { .. } => client.asked_for(session, id),
            CameraReply::Rejected(_) => {
                client.may_ask_again(session, id);
                client.asked_for(session, id)
            }
            CameraReply::Notice(_) | CameraReply::Stats(_) | CameraReply::Bye(_) => None,
        });
        let to = asked.unwrap_or_else(|| ReplyTo { topic: topics.rsp(&client.name), correlation: None });
        (to, wire::encode(&Reply::Response(response)))
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.clients.len()
    }

    /// A client that knows its place is checked before all together are: one that floods uses up its own share only.
    fn admit(&mut self, name: &str, now: Instant) -> Admission<'_> {
        let Self { clients, total, each, .. } = self;
        if let Some(client) = clients.get_mut(name) {
            if !client.pace.wait(*each, now).is_zero() {
                return Admission::TooMuch { tell: client.may_be_told(now) };
            }
            client.pace.count(*each, now);
        }
        if !total.wait(TOTAL, now).is_zero() {
            return Admission::TooMuch { tell: false };
        }
        total.count(TOTAL, now);
        if !clients.contains_key(name) {
            make_room(clients, now);
            let name: Arc<str> = name.into();
            let mut client = Client::new(Arc::clone(&name), now);
            client.pace.count(*each, now);
            clients.insert(name, client);
        }
        match clients.get_mut(name) {
            Some(client) => {
                if client.is_forgotten(now) {
                    client.forget();
                }
                client.used_at = now;
                Admission::Admitted(client)
            }
            None => Admission::TooMuch { tell: false },
        }
    }
}

enum Admission<'a> {
    Admitted(&'a mut Client),
    TooMuch { tell: bool },
}

/// Those who brought no token go first: nobody with one is thrown out by names that somebody makes up.
fn make_room(clients: &mut HashMap<Arc<str>, Client>, now: Instant) {
    if clients.len() < MAX_CLIENTS {
        return;
    }
    clients.retain(|_, client| !client.is_forgotten(now));
    if clients.len() >= MAX_CLIENTS
        && let Some(oldest) = clients.values().min_by_key(|client| (client.token.is_some(), client.used_at))
    {
        let oldest = Arc::clone(&oldest.name);
        clients.remove(&oldest);
    }
}

impl Client {
    fn new(name: Arc<str>, now: Instant) -> Self {
        Self {
            name,
            pace: Pace::new(now),
            used_at: now,
            told_at: None,
            token: None,
            camera: None,
            asked: VecDeque::new(),
        }
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used_at) >= FORGOTTEN_AFTER
    }

    /// Whoever has the name now has to say anew who it is.
    fn forget(&mut self) {
        self.token = None;
        self.camera = None;
        self.asked.clear();
    }

    fn may_be_told(&mut self, now: Instant) -> bool {
        let may = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY);
        if may {
            self.told_at = Some(now);
        }
        may
    }

    fn answer(&mut self, heard: Message, to: ReplyTo, hash: u64, links: &Links, now: Instant) -> Verdict {
        let Message { id, said } = heard;
        let signal = match said {
            Said::Ping => return say(to, &Reply::Pong { id }),
            Said::Hello { token, camera, resume: _ } => {
                let grant = match self.introduce(token, links) {
                    Ok(grant) => grant,
                    Err(denied) => return refuse(Fault { id, ..(&denied).into() }, to),
                };
                self.camera = camera.or(self.camera.take());
                let welcome = links.welcome(Some(&grant));
                return say(to, &Reply::Welcome { id, welcome: &welcome });
            }
            Said::Offer { session, camera, sdp, quality, token } => {
                let camera = camera.or_else(|| self.camera.clone());
                let camera = self.introduce(token, links).and_then(|grant| links.camera_for(camera, &grant));
                match camera {
                    Ok(camera) => (session, Signal::Offer { camera, sdp, quality }),
                    Err(denied) => {
                        return refuse(Fault { id, session: Some(session), ..(&denied).into() }, to);
                    }
                }
            }
            Said::Signal { session, signal: signal @ Signal::Restart { .. } } => match self.introduce(None, links) {
                Ok(_) => (session, signal),
                Err(denied) => return refuse(Fault { id, session: Some(session), ..(&denied).into() }, to),
            },
            // About a session of this very client, which only an offer can have opened.
            Said::Signal { session, signal } => (session, signal),
        };
        let (session, signal) = signal;
        if matches!(signal, Signal::Offer { .. } | Signal::Restart { .. })
            && !self.is_first(hash, &session, &id, to, now)
        {
            return Verdict::Drop(MqttDrop::Repeated);
        }
        let client = ClientId { link: LinkId::Mqtt, name: Arc::clone(&self.name) };
        Verdict::Ask(Request { from: Address { client, session }, id, signal })
    }

    /// What this client may do. A good token is remembered.
    fn introduce(&mut self, token: Option<Token>, links: &Links) -> Result<Grant, Denied> {
        let known = token.as_ref().or(self.token.as_ref());
        let grant = rim::admit(links, known.map(|token| token.0.as_str()), Some(CALLER))?;
        if links.access.needs_token() && token.is_some() {
            self.token = token;
        }
        Ok(grant)
    }

    /// Remembers an offer; `false`: it was here before. A broker may deliver twice what it was given once (QoS 1).
    fn is_first(&mut self, hash: u64, session: &SessionName, id: &Correlation, to: ReplyTo, now: Instant) -> bool {
        self.asked.retain(|asked| now.saturating_duration_since(asked.at) < REPEATED_WITHIN);
        if self.asked.iter().any(|asked| asked.hash == Some(hash)) {
            return false;
        }
        self.asked.truncate(MAX_ASKED - 1);
        self.asked.push_front(Asked { hash: Some(hash), at: now, session: session.clone(), id: id.clone(), to });
        true
    }

    /// It was told why not, and may know that this has changed.
    fn may_ask_again(&mut self, session: &SessionName, id: &Correlation) {
        let of_this = |asked: &&mut Asked| asked.session == *session && asked.id == *id;
        self.asked.iter_mut().filter(of_this).for_each(|asked| asked.hash = None);
    }

    fn asked_for(&self, session: &SessionName, id: &Correlation) -> Option<ReplyTo> {
        self.asked.iter().find(|asked| asked.session == *session && asked.id == *id).map(|asked| asked.to.clone())
    }
}

fn refuse(fault: Fault, to: ReplyTo) -> Verdict {
    Verdict::Say { to, text: wire::encode(&Reply::Error(fault)), dropped: Some(MqttDrop::Refused) }
}

fn say(to: ReplyTo, reply: &Reply<'_>) -> Verdict {
    Verdict::Say { to, text: wire::encode(reply), dropped: None }
}

/// The Response Topic if it is the sender's own, else the fixed one, which clients of MQTT 3.1.1 know.
fn reply_to(name: &str, message: &Incoming, topics: &Topics) -> ReplyTo {
    let own = message.response_topic.clone().filter(|topic| topics.is_response_topic_of(name, topic));
    let correlation = message.correlation.clone().filter(|data| data.len() <= MAX_CORRELATION);
    ReplyTo { topic: own.unwrap_or_else(|| topics.rsp(name)), correlation }
}
