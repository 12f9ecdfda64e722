//! JSON on the wire ↔ what is said. The only place that knows JSON; `docs/signaling.md` shows every message.
//!
//! The envelope is `{"v":1,"id":…,"type":…,"session":…,…}` with the browser's own objects inside, untouched. A client without
//! any library may leave the envelope away: its bare `RTCSessionDescription` and `RTCIceCandidate` objects are understood too.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::figures::FiguresJson;
use super::ice_servers::OfferedServer;
use crate::core::figures::{Figures, Quality};
use crate::core::signal::{BadName, CameraId, Correlation, Notice, Reply, Response, SessionName, Signal};

/// The version of the envelope that this program speaks.
pub const VERSION: u64 = 1;

/// No message is longer, in bytes; a browser's largest offer has about 25,000.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// The session of a client that speaks without an envelope: it has just one, and what is said in it has no envelope either.
pub const BARE_SESSION: &str = "bare";

const MAX_ID: usize = 128;
const MAX_CANDIDATE: usize = 512;

/// One message of a viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    pub id: Correlation,
    pub said: Said,
}

/// A viewer's token, or the name its sessions are resumed by, which no debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Hello {
        token: Option<Token>,
        camera: Option<CameraId>,
        /// What an earlier `welcome` gave for this.
        resume: Option<Token>,
    },
    /// Without a camera: the one named in `hello`, or the device's first.
    Offer {
        session: SessionName,
        camera: Option<CameraId>,
        sdp: String,
        quality: Quality,
        /// In place of a `hello` before it, so that one message is enough.
        token: Option<Token>,
    },
    /// About a session that the viewer has opened.
    Signal {
        session: SessionName,
        signal: Signal,
    },
    Ping,
}

/// What the camera's side of a link says.
#[derive(Debug)]
pub enum Outgoing<'a> {
    Welcome { id: Correlation, welcome: &'a Welcome },
    Pong { id: Correlation },
    Response(&'a Response),
    Error(Fault),
}

/// What a viewer is told first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub device: String,
    pub cameras: Vec<CameraId>,
    pub ice_servers: Vec<OfferedServer>,
    pub max_candidates: usize,
    /// A client that is silent for so long is gone; `None`: it may be silent for ever.
    pub idle_ms: Option<u128>,
    /// `None`: sessions do not end with a connection, so there is nothing to resume.
    pub resume: Option<Resume>,
}

/// How the sessions of a socket are taken over by the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    pub name: Token,
    /// Those of the one before were.
    pub resumed: bool,
}

/// An `error` message: a stable word, a sentence, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub id: Correlation,
    pub session: Option<SessionName>,
    pub code: &'static str,
    pub message: String,
    pub retry_after_ms: Option<u128>,
}

/// Why a message could not be understood, and, as far as that could be read, which one it was.
#[derive(Debug)]
pub struct Unreadable {
    pub id: Correlation,
    pub session: Option<SessionName>,
    pub error: WireError,
}

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the message has {0} bytes, more than the {MAX_MESSAGE} allowed")]
    TooLong(usize),
    #[error("the message is not a JSON object: {0}")]
    NotJson(serde_json::Error),
    #[error(r#"this device speaks version {VERSION} of the protocol; send "v":{VERSION}"#)]
    UnknownVersion,
    #[error("there is no message type {0:?}")]
    UnknownType(String),
    #[error("{field}: {problem}")]
    Field { field: &'static str, problem: String },
}

impl WireError {
    /// The stable word for programs.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "too-long",
            Self::NotJson(_) => "not-json",
            Self::UnknownVersion => "unknown-version",
            Self::UnknownType(_) => "unknown-type",
            Self::Field { .. } => "bad-field",
        }
    }
}

impl From<Unreadable> for Fault {
    fn from(Unreadable { id, session, error }: Unreadable) -> Self {
        Self { id, session, code: error.slug(), message: error.to_string(), retry_after_ms: None }
    }
}

/// What a viewer said. The size is checked before anything is parsed.
///
/// # Errors
/// [`Unreadable`], which makes an `error` message.
pub fn decode(message: &[u8]) -> Result<Incoming, Unreadable> {
    let unreadable = |error| Unreadable { id: None, session: None, error };
    if message.len() > MAX_MESSAGE {
        return Err(unreadable(WireError::TooLong(message.len())));
    }
    let envelope: Envelope = serde_json::from_slice(message).map_err(|error| unreadable(WireError::NotJson(error)))?;
    let id = envelope.id();
    let session = envelope.session.as_ref().and_then(Value::as_str).and_then(|name| SessionName::new(name).ok());
    let said = if envelope.is_bare() { envelope.said_bare() } else { envelope.said() };
    match said {
        Ok(said) => Ok(Incoming { id, said }),
        Err(error) => Err(Unreadable { id, session, error }),
    }
}

/// A message of the camera's side; in [`BARE_SESSION`] without the envelope's `description`, which that client cannot look into.
pub fn encode(outgoing: &Outgoing<'_>) -> String {
    let mut message = match outgoing {
        Outgoing::Welcome { id, welcome } => with_id(welcome_json(welcome), id),
        Outgoing::Pong { id } => with_id(json!({ "type": "pong" }), id),
        Outgoing::Response(response) => response_json(response),
        Outgoing::Error(fault) => fault_json(fault),
    };
    message["v"] = VERSION.into();
    message.to_string()
}

/// JSON of our own types for others who know none: tokens, and what another edgecam answered.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// The same, outward. Only for plain structs of strings and numbers: those always have a JSON form.
pub(super) fn write(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Every field is taken as it comes, so that one of a wrong kind is named in the error instead of spoiling the whole.
#[derive(Deserialize)]
struct Envelope {
    v: Option<Value>,
    id: Option<Value>,
    r#type: Option<Value>,
    session: Option<Value>,
    camera: Option<Value>,
    token: Option<Value>,
    description: Option<Value>,
    /// An `RTCIceCandidate` object, `null`, or in a bare one its text.
    #[serde(default, deserialize_with = "present")]
    candidate: Option<Value>,
    sdp: Option<Value>,
    quality: Option<Value>,
    resume: Option<Value>,
}

/// Tells a `null` from a field that is not there.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Envelope {
    fn id(&self) -> Correlation {
        self.id.as_ref().and_then(Value::as_str).filter(|id| id.len() <= MAX_ID).map(Into::into)
    }

    fn is_bare(&self) -> bool {
        self.v.is_none() && (self.sdp.is_some() || (self.r#type.is_none() && self.candidate.is_some()))
    }

    fn said_bare(self) -> Result<Said, WireError> {
        let session = SessionName::new(BARE_SESSION).map_err(|error| bad_name("session", &error))?;
        let said = match &self.sdp {
            Some(sdp) => {
                let sdp = sdp_of(self.r#type.as_ref(), Some(sdp))?;
                let quality = self.quality()?.unwrap_or_default();
                Said::Offer { session, camera: None, sdp, quality, token: None }
            }
            None => Said::Signal { session, signal: self.candidate()? },
        };
        Ok(said)
    }

    fn said(self) -> Result<Said, WireError> {
        if self.v.as_ref().and_then(Value::as_u64) != Some(VERSION) {
            return Err(WireError::UnknownVersion);
        }
        if self.id.is_some() && self.id().is_none() {
            return Err(field("id", "is a string of at most 128 bytes"));
        }
        let kind = text("type", self.r#type.as_ref())?.ok_or_else(|| field("type", "is missing"))?;
        let said = match kind {
            "hello" => Said::Hello {
                token: self.token()?,
                camera: self.camera()?,
                resume: secret("resume", self.resume.as_ref())?,
            },
            "offer" => Said::Offer {
                session: self.session()?,
                camera: self.camera()?,
                sdp: self.sdp()?,
                quality: self.quality()?.unwrap_or_default(),
                token: self.token()?,
            },
            "candidate" => Said::Signal { session: self.session()?, signal: self.candidate()? },
            "restart" => Said::Signal { session: self.session()?, signal: Signal::Restart { sdp: self.sdp()? } },
            "quality" => {
                let quality = self.quality()?.ok_or_else(|| field("quality", "is missing"))?;
                Said::Signal { session: self.session()?, signal: Signal::Prefer { quality } }
            }
            "stats" => Said::Signal { session: self.session()?, signal: Signal::Stats },
            "bye" => Said::Signal { session: self.session()?, signal: Signal::Bye },
            "ping" => Said::Ping,
            other => return Err(WireError::UnknownType(other.chars().take(40).collect())),
        };
        Ok(said)
    }

    fn session(&self) -> Result<SessionName, WireError> {
        let name = text("session", self.session.as_ref())?.ok_or_else(|| field("session", "is missing"))?;
        SessionName::new(name).map_err(|error| bad_name("session", &error))
    }

    fn camera(&self) -> Result<Option<CameraId>, WireError> {
        let name = text("camera", self.camera.as_ref())?;
        name.map(CameraId::new).transpose().map_err(|error| bad_name("camera", &error))
    }

    fn token(&self) -> Result<Option<Token>, WireError> {
        secret("token", self.token.as_ref())
    }

    fn quality(&self) -> Result<Option<Quality>, WireError> {
        let named = |slug| Quality::named(slug).ok_or_else(|| field("quality", "is auto, high or low"));
        text("quality", self.quality.as_ref())?.map(named).transpose()
    }

    fn candidate(&self) -> Result<Signal, WireError> {
        Ok(Signal::Candidate { line: candidate_of(self.candidate.as_ref())? })
    }

    fn sdp(&self) -> Result<String, WireError> {
        let description = self.description.as_ref().and_then(Value::as_object);
        let description =
            description.ok_or_else(|| field("description", r#"is an object: {"type":"offer","sdp":…}"#))?;
        sdp_of(description.get("type"), description.get("sdp"))
    }
}

fn sdp_of(kind: Option<&Value>, sdp: Option<&Value>) -> Result<String, WireError> {
    if kind.and_then(Value::as_str) != Some("offer") {
        return Err(field("description.type", "is \"offer\": the viewer always offers"));
    }
    text("description.sdp", sdp)?.map(str::to_owned).ok_or_else(|| field("description.sdp", "is missing"))
}

/// The line in an `RTCIceCandidate`; its `sdpMid` and the like are not needed, since all media share one transport.
fn candidate_of(candidate: Option<&Value>) -> Result<String, WireError> {
    let line = match candidate {
        None | Some(Value::Null) => "",
        Some(Value::Object(object)) => text("candidate.candidate", object.get("candidate"))?.unwrap_or_default(),
        Some(Value::String(line)) => line,
        Some(_) => return Err(field("candidate", "is an RTCIceCandidate object or null")),
    };
    if line.len() > MAX_CANDIDATE {
        return Err(field("candidate.candidate", "is longer than 512 bytes"));
    }
    if !line.is_empty() && !line.starts_with("candidate:") {
        return Err(field("candidate.candidate", "does not begin with \"candidate:\""));
    }
    Ok(line.to_owned())
}

fn text<'v>(name: &'static str, value: Option<&'v Value>) -> Result<Option<&'v str>, WireError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(field(name, "is a string")),
    }
}

fn secret(name: &'static str, value: Option<&Value>) -> Result<Option<Token>, WireError> {
    Ok(text(name, value)?.map(|secret| Token(secret.to_owned())))
}

fn field(field: &'static str, problem: &str) -> WireError {
    WireError::Field { field, problem: problem.to_owned() }
}

fn bad_name(name: &'static str, error: &BadName) -> WireError {
    field(name, &error.to_string())
}

fn welcome_json(welcome: &Welcome) -> Value {
    let Welcome { device, cameras, ice_servers, max_candidates, idle_ms, resume } = welcome;
    let cameras: Vec<_> = cameras.iter().map(CameraId::as_str).collect();
    let ice_servers: Vec<_> = ice_servers.iter().map(server_json).collect();
    let mut json = json!({
        "type": "welcome",
        "versions": [VERSION],
        "device": device,
        "cameras": cameras,
        "ice_servers": ice_servers,
        "limits": { "message_bytes": MAX_MESSAGE, "candidates": max_candidates },
    });
    if let Some(idle_ms) = idle_ms {
        json["limits"]["idle_ms"] = millis(*idle_ms).into();
    }
    if let Some(Resume { name, resumed }) = resume {
        json["resume"] = name.0.as_str().into();
        json["resumed"] = (*resumed).into();
    }
    json
}

/// An `RTCIceServer` (W3C webrtc-pc): absent members are left out, for `null` is not allowed there.
fn server_json(server: &OfferedServer) -> Value {
    let mut json = json!({ "urls": server.urls });
    for (name, value) in [("username", &server.username), ("credential", &server.credential)] {
        if let Some(value) = value {
            json[name] = value.as_str().into();
        }
    }
    json
}

fn response_json(Response { to, id, reply }: &Response) -> Value {
    let mut json = match reply {
        Reply::Answer { sdp } if to.session.as_str() == BARE_SESSION => json!({ "type": "answer", "sdp": sdp }),
        Reply::Answer { sdp } => json!({ "type": "answer", "description": { "type": "answer", "sdp": sdp } }),
        Reply::Notice(Notice::CameraLost { reason }) => {
            json!({ "type": "state", "state": "camera-lost", "message": reason })
        }
        Reply::Notice(Notice::CameraBack) => json!({ "type": "state", "state": "camera-back" }),
        Reply::Notice(Notice::AddressChanged) => json!({ "type": "state", "state": "address-changed" }),
        // Plain numbers and texts always have a JSON form.
        Reply::Stats(figures) => serde_json::to_value(StatsJson::from(figures)).unwrap_or_default(),
        Reply::Bye(reason) => json!({ "type": "bye", "reason": reason.slug() }),
        Reply::Rejected(reason) => {
            return fault_json(&Fault {
                id: id.clone(),
                session: Some(to.session.clone()),
                code: reason.slug(),
                message: reason.to_string(),
                retry_after_ms: reason.retry_after().map(|wait| wait.as_millis()),
            });
        }
    };
    json["session"] = to.session.as_str().into();
    with_id(json, id)
}

#[derive(Serialize)]
struct StatsJson {
    r#type: &'static str,
    #[serde(flatten)]
    figures: FiguresJson,
}

impl From<&Figures> for StatsJson {
    fn from(figures: &Figures) -> Self {
        Self { r#type: "stats", figures: figures.into() }
    }
}

fn fault_json(fault: &Fault) -> Value {
    let mut json = json!({ "type": "error", "code": fault.code, "message": fault.message });
    if let Some(session) = &fault.session {
        json["session"] = session.as_str().into();
    }
    if let Some(wait) = fault.retry_after_ms {
        json["retry_after_ms"] = millis(wait).into();
    }
    with_id(json, &fault.id)
}

fn with_id(mut json: Value, id: &Correlation) -> Value {
    if let Some(id) = id {
        json["id"] = Value::from(&**id);
    }
    json
}

/// JSON numbers are exact up to 2^53; no time here comes near.
fn millis(millis: u128) -> u64 {
    u64::try_from(millis).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
