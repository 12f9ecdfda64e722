//! Who may come in: the device's rule, the pages that may call it, and those who try too often.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::token::{self, Grant, Permission, TokenError, TokenKey};
use crate::core::pace::{Pace, Rate};
use crate::core::signal::CameraId;

#[derive(Clone, Debug)]
pub struct AccessSettings {
    pub rule: Rule,
    /// The `aud` of tokens for this device.
    pub device: String,
    /// Pages of other hosts that may call this device where no token is needed: `https://panel.example.org`.
    pub origins: Vec<String>,
}

#[derive(Clone, Debug)]
pub enum Rule {
    /// No token is needed: the device listens on loopback only, or its owner wants it so.
    Open,
    /// Every request needs a token that this key signed.
    Key(TokenKey),
}

/// Why somebody may not come in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this device needs a token; its owner makes one with: edgecam token")]
    TokenNeeded,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token does not allow this")]
    NotAllowed,
    #[error("pages of other sites may not call this device; its owner can allow one in [http] allowed_origins")]
    ForeignPage,
    #[error("too many bad tokens from this address; try again in {} s", retry_after.as_secs().max(1))]
    TooManyTries { retry_after: Duration },
}

impl Denied {
    /// The stable word for programs.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::TokenNeeded => "token-needed",
            Self::Token(TokenError::Invalid) => "token-invalid",
            Self::Token(TokenError::Expired) => "token-expired",
            Self::Token(TokenError::NotYet) => "token-not-yet-valid",
            Self::Token(TokenError::ClockNotSet) => "clock-not-set",
            Self::NotAllowed => "not-allowed",
            Self::ForeignPage => "foreign-page",
            Self::TooManyTries { .. } => "too-many-tries",
        }
    }

    /// How long a well-behaved viewer waits before it asks again; `None`: asking again will not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyTries { retry_after } => Some(*retry_after),
            Self::Token(TokenError::ClockNotSet) => Some(Duration::from_secs(10)),
            _ => None,
        }
    }
}

/// The door: asked once by every request and every socket.
#[derive(Debug)]
pub struct Access {
    settings: AccessSettings,
    tries: Mutex<Tries>,
}

impl Access {
    pub fn new(mut settings: AccessSettings) -> Self {
        settings.origins.iter_mut().for_each(|origin| origin.make_ascii_lowercase());
        Self { settings, tries: Mutex::default() }
    }

    pub fn needs_token(&self) -> bool {
        matches!(self.settings.rule, Rule::Key(_))
    }

    /// What the bearer of this token may do here; `caller` is the address it came from.
    ///
    /// # Errors
    /// The token is missing or no good, or this address brought too many such.
    pub fn admit(&self, token: Option<&str>, caller: IpAddr, wall: SystemTime, now: Instant) -> Result<Grant, Denied> {
        let Rule::Key(key) = &self.settings.rule else { return Ok(Grant::everything()) };
        let token = token.ok_or(Denied::TokenNeeded)?;
        self.tries().check(caller, now)?;
        let outcome = token::check(key, &self.settings.device, token, wall);
        if outcome == Err(TokenError::Invalid) {
            self.tries().count(caller, now);
        }
        Ok(outcome?)
    }

    /// Whether a page may call, by the `Origin` and `Host` of its request.
    ///
    /// Where a token is needed, the token decides, wherever the page came from: no browser adds it by itself. Where none is
    /// needed, any page that the owner happens to open could look through the camera. So the page has to be this device's own
    /// or a listed one; and the device's name has to be one that no stranger's DNS can have given it (DNS rebinding).
    ///
    /// # Errors
    /// [`Denied::ForeignPage`].
    pub fn admit_page(&self, origin: Option<&str>, host: Option<&str>) -> Result<(), Denied> {
        if self.needs_token() {
            return Ok(());
        }
        let listed = |authority: &str| {
            self.settings.origins.iter().any(|origin| authority_of(origin).is_some_and(|a| a == authority))
        };
        let host = host.map(str::to_ascii_lowercase);
        let own = host.as_deref().is_none_or(|host| is_local_name(host) || listed(host));
        let page = origin.map(str::to_ascii_lowercase);
        let may_call = page.is_none_or(|page| {
            self.settings.origins.contains(&page) || (host.is_some() && authority_of(&page) == host.as_deref())
        });
        if own && may_call { Ok(()) } else { Err(Denied::ForeignPage) }
    }

    fn tries(&self) -> MutexGuard<'_, Tries> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// # Errors
/// [`Denied::NotAllowed`].
pub fn permit(grant: &Grant, permission: Permission, camera: &CameraId) -> Result<(), Denied> {
    if grant.allows(permission, camera) { Ok(()) } else { Err(Denied::NotAllowed) }
}

/// Bad tokens an address may bring: ten, then one every six seconds.
const TRIES: Rate = Rate::new(Duration::from_secs(6), 10);

/// Addresses remembered; the one that rested longest makes room for a new one.
const MAX_REMEMBERED: usize = 256;

/// Those who brought bad tokens of late.
#[derive(Debug, Default)]
struct Tries(HashMap<IpAddr, Pace>);

impl Tries {
    fn check(&self, caller: IpAddr, now: Instant) -> Result<(), Denied> {
        let retry_after = self.0.get(&caller).map_or(Duration::ZERO, |pace| pace.wait(TRIES, now));
        if retry_after.is_zero() { Ok(()) } else { Err(Denied::TooManyTries { retry_after }) }
    }

    fn count(&mut self, caller: IpAddr, now: Instant) {
        if caller.is_loopback() {
            return; // a proxy on this machine: behind it is everybody, and one must not shut out all
        }
        if self.0.len() >= MAX_REMEMBERED && !self.0.contains_key(&caller) {
            self.make_room(now);
        }
        self.0.entry(caller).or_insert_with(|| Pace::new(now)).count(TRIES, now);
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, pace| !pace.is_rested(now));
        if self.0.len() >= MAX_REMEMBERED
            && let Some(&mildest) = self.0.iter().min_by_key(|(_, pace)| pace.paid_at()).map(|(caller, _)| caller)
        {
            self.0.remove(&mildest);
        }
    }
}

/// `host:port` of an origin, `None` for opaque ones (`null`).
fn authority_of(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

/// Whether a `Host` is an address or a name that only this machine or this network can have given.
fn is_local_name(host: &str) -> bool {
    if host.starts_with('[') {
        return true; // an IPv6 address
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_end_matches('.');
    name.parse::<IpAddr>().is_ok() || !name.contains('.') || name.ends_with(".local") || name.ends_with(".localhost")
}
