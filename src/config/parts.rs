//! Settings of parts that are not here yet; each moves to its part as it comes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::core::access_unit::Bitrate;
use crate::core::signal::CameraId;

#[derive(Clone, Debug, PartialEq)]
pub struct CameraSettings {
    pub id: CameraId,
    pub source: Source,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub linger: Duration,
    pub encoder: EncoderSettings,
    pub controls: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Auto,
    Test,
    V4l2(PathBuf),
    Clip(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderSettings {
    pub prefer: Prefer,
    pub max: Bitrate,
    pub min: Bitrate,
    pub keyframe_interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    Auto,
    Hardware,
    Software,
    Passthrough,
}

/// The HTTP listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// Port 0: any.
    pub listen: SocketAddr,
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    /// How long a client may take for a request's head, and for its body.
    pub header_timeout: Duration,
    pub body_timeout: Duration,
}

/// Our own addresses in ICE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IceSettings {
    /// 0: any.
    pub udp_port: u16,
    /// Names; empty: all.
    pub interfaces: Vec<String>,
    /// Put into candidates in place of the interfaces' own; port 0: the one that was bound.
    pub advertise: Vec<SocketAddr>,
}

/// One server of `[ice] servers`.
#[derive(Clone, Debug)]
pub struct IceServer {
    pub urls: Vec<String>,
    pub credentials: Credentials,
}

#[derive(Clone)]
pub enum Credentials {
    None,
    Fixed { username: String, password: String },
    Shared { secret: Vec<u8> },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

#[derive(Clone, Debug)]
pub struct AccessSettings {
    pub rule: Rule,
    pub device: String,
    pub origins: Vec<String>,
}

#[derive(Clone, Debug)]
pub enum Rule {
    Open,
    Key(TokenKey),
}

#[derive(Clone)]
#[expect(dead_code, reason = "read once signaling is here")]
pub struct TokenKey(Vec<u8>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the token key has {0} bytes, too few to be safe; make one of 32 or more: openssl rand -base64 32")]
pub struct KeyTooShort(usize);

impl TokenKey {
    /// # Errors
    /// Fewer than 32 bytes (RFC 7518, section 3.2).
    pub fn new(contents: &[u8]) -> Result<Self, KeyTooShort> {
        if contents.len() < 32 { Err(KeyTooShort(contents.len())) } else { Ok(Self(contents.to_vec())) }
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSettings {
    pub max_candidates: usize,
    pub idle_timeout: Duration,
    pub messages_per_s: u32,
    pub max_whep_sessions: usize,
}
