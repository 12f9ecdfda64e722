//! How a viewer gets its session, per server. Everything here blocks; it runs on threads of its own.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use ureq::Agent;

use crate::viewer::{Stamp, stamp};

/// How to ask.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// The WHEP endpoint.
    Whep(String),
    /// Janus' HTTP interface; its streaming plugin's first mountpoint is watched.
    Janus(String),
}

impl Door {
    pub(crate) fn parse(kind: &str, url: &str) -> Result<Self> {
        match kind {
            "whep" => Ok(Self::Whep(url.to_owned())),
            "janus" => Ok(Self::Janus(url.to_owned())),
            other => bail!("{other} is no way in"),
        }
    }
}

pub(crate) fn agent() -> Agent {
    Agent::config_builder().timeout_global(Some(Duration::from_secs(20))).build().new_agent()
}

/// Where to go to end a session: a WHEP session's URL, or a Janus session's and handle's.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    url: String,
}

/// A first step: what was asked, when, and the SDP that came back.
pub(crate) struct Asked {
    pub(crate) at: Stamp,
    pub(crate) sdp: String,
    pub(crate) session: Session,
}

pub(crate) fn whep_offer(agent: &Agent, url: &str, offer: &str) -> Result<Asked> {
    let at = stamp();
    let mut response = agent.post(url).content_type("application/sdp").send(offer).context("POST")?;
    let sdp = response.body_mut().read_to_string()?;
    let location = response.headers().get("location").context("no Location")?.to_str()?;
    let url = if location.starts_with('/') {
        let origin = url.match_indices('/').nth(2).map_or(url, |(end, _)| &url[..end]);
        format!("{origin}{location}")
    } else {
        location.to_owned()
    };
    Ok(Asked { at, sdp, session: Session { url } })
}

pub(crate) fn janus_watch(agent: &Agent, root: &str) -> Result<Asked> {
    let session = id(&janus(agent, root, json!({"janus": "create"}))?)?;
    let session_url = format!("{root}/{session}");
    let attach = json!({"janus": "attach", "plugin": "janus.plugin.streaming"});
    let handle = id(&janus(agent, &session_url, attach)?)?;
    let session = Session { url: format!("{session_url}/{handle}") };
    // A page opens session and handle while it loads; the viewer waits from here on.
    let at = stamp();
    janus(agent, &session.url, json!({"janus": "message", "body": {"request": "watch", "id": 1}}))?;
    loop {
        let event = agent.get(format!("{session_url}?maxev=1")).call()?.body_mut().read_to_string()?;
        let event: Value = serde_json::from_str(&event)?;
        if let Some(sdp) = event["jsep"]["sdp"].as_str() {
            return Ok(Asked { at, sdp: sdp.to_owned(), session });
        }
        if event["plugindata"]["data"]["error"].is_string() {
            bail!("Janus: {event}");
        }
    }
}

pub(crate) fn janus_start(agent: &Agent, session: &Session, answer: &str) -> Result<()> {
    let jsep = json!({"type": "answer", "sdp": answer});
    let start = json!({"janus": "message", "body": {"request": "start"}, "jsep": jsep});
    janus(agent, &session.url, start).map(drop)
}

pub(crate) fn leave(agent: &Agent, door: &Door, session: &Session) -> Result<()> {
    match door {
        Door::Whep(_) => agent.delete(&session.url).call().map(drop).context("DELETE"),
        Door::Janus(_) => {
            let session_url = session.url.rsplit_once('/').map_or("", |(session, _)| session);
            janus(agent, session_url, json!({"janus": "destroy"})).map(drop)
        }
    }
}

fn janus(agent: &Agent, url: &str, mut request: Value) -> Result<Value> {
    request["transaction"] = json!("viewer");
    let reply = agent.post(url).send(request.to_string())?.body_mut().read_to_string()?;
    let reply: Value = serde_json::from_str(&reply)?;
    match reply["janus"].as_str() {
        Some("success" | "ack") => Ok(reply),
        _ => bail!("Janus: {reply}"),
    }
}

fn id(reply: &Value) -> Result<u64> {
    reply["data"]["id"].as_u64().ok_or_else(|| anyhow!("Janus gave no id: {reply}"))
}
