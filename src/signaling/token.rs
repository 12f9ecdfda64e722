//! Viewer tokens: JSON Web Tokens (RFC 7519) signed with HMAC-SHA-256, and nothing else.
//!
//! One algorithm needs no algorithm negotiation: the header is compared, not obeyed, so `none` and key confusion have no way in.
//! `docs/decisions/` says why this is written on `ring` and not taken from a JWT crate.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::wire;
use crate::core::signal::CameraId;

/// Longer is not one of ours; a generous token has 400 bytes.
const MAX_TOKEN: usize = 2048;

/// How far the clocks of minting and checking may be apart.
const LEEWAY: Duration = Duration::from_secs(60);

/// No true clock shows less: 2026-11-01, before the first release of this program.
const RELEASED: Duration = Duration::from_secs(1_793_491_200);

/// The secret that signs and checks tokens.
#[derive(Clone)]
pub struct TokenKey(hmac::Key);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the token key has {0} bytes, too few to be safe; make one of 32 or more: openssl rand -base64 32")]
pub struct KeyTooShort(usize);

impl TokenKey {
    /// The contents of a key file; white space around them does not count.
    ///
    /// # Errors
    /// Fewer than 32 bytes (RFC 7518, section 3.2).
    pub fn new(contents: &[u8]) -> Result<Self, KeyTooShort> {
        let secret = contents.trim_ascii();
        if secret.len() < 32 {
            return Err(KeyTooShort(secret.len()));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }
}

/// What goes into a new key file: 32 random bytes as text.
pub fn new_key() -> String {
    STANDARD.encode(rand::random::<[u8; 32]>())
}

/// Whether this can be the time now. A board without a battery for its clock starts below, until the network has told it.
pub fn is_clock_set(now: SystemTime) -> bool {
    since_epoch(now) >= RELEASED
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

/// What the bearer of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    View,
    Control,
}

/// What somebody may do, and with which camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// `None`: every camera.
    pub camera: Option<CameraId>,
    pub permissions: Vec<Permission>,
    /// Who it is, in the words of whoever minted the token; for the log.
    pub subject: Option<String>,
}

impl Grant {
    /// Everything, for everybody: where no token is needed.
    pub fn everything() -> Self {
        Self { camera: None, permissions: vec![Permission::View, Permission::Control], subject: None }
    }

    pub fn covers(&self, camera: &CameraId) -> bool {
        self.camera.as_ref().is_none_or(|only| only == camera)
    }

    pub fn allows(&self, permission: Permission, camera: &CameraId) -> bool {
        self.covers(camera) && self.permissions.contains(&permission)
    }
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Says no more on purpose: whoever sends a forged token learns nothing about how it is checked.
    #[error("the token is not valid for this device; ask its owner for a new one")]
    Invalid,
    #[error("the token has expired; ask the device's owner for a new one")]
    Expired,
    #[error("the token is not valid yet; check the clocks of this device and of the one that made it")]
    NotYet,
    #[error(
        "this device's clock is not set, so it cannot tell whether the token has expired; try again once it has the time"
    )]
    ClockNotSet,
}

/// Makes a token for `device`. Without `ttl` it holds until the key is changed.
pub fn mint(key: &TokenKey, device: &str, grant: &Grant, ttl: Option<Duration>, now: SystemTime) -> String {
    let now = since_epoch(now);
    let claims = Claims {
        aud: device.to_owned(),
        sub: grant.subject.clone(),
        cam: grant.camera.as_ref().map(|camera| camera.as_str().to_owned()),
        perm: grant.permissions.clone(),
        nbf: ttl.map(|_| now.as_secs()),
        exp: ttl.map(|ttl| (now + ttl).as_secs()),
    };
    let header = URL_SAFE_NO_PAD.encode(wire::write(&Header { alg: "HS256".into(), typ: Some("JWT".into()) }));
    let claims = URL_SAFE_NO_PAD.encode(wire::write(&claims));
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key.0, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// What this token grants on `device` at this time. The signature is compared in constant time, before anything else is read.
///
/// # Errors
/// [`TokenError`]; what is wrong inside is told only to those who hold a token that this key signed.
pub fn check(key: &TokenKey, device: &str, token: &str, now: SystemTime) -> Result<Grant, TokenError> {
    let claims = signed_claims(key, token).ok_or(TokenError::Invalid)?;
    if claims.aud != device {
        return Err(TokenError::Invalid);
    }
    check_time(&claims, since_epoch(now))?;
    let camera = claims.cam.map(|name| CameraId::new(&name)).transpose().map_err(|_| TokenError::Invalid)?;
    Ok(Grant { camera, permissions: claims.perm, subject: claims.sub })
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cam: Option<String>,
    perm: Vec<Permission>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

fn signed_claims(key: &TokenKey, token: &str) -> Option<Claims> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let (signed, signature) = token.rsplit_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    hmac::verify(&key.0, signed.as_bytes(), &signature).ok()?;
    let (header, claims) = signed.split_once('.')?;
    let header: Header = wire::read(&URL_SAFE_NO_PAD.decode(header).ok()?)?;
    if header.alg != "HS256" || header.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
        return None;
    }
    wire::read(&URL_SAFE_NO_PAD.decode(claims).ok()?)
}

fn check_time(claims: &Claims, now: Duration) -> Result<(), TokenError> {
    if claims.exp.is_none() && claims.nbf.is_none() {
        return Ok(());
    }
    if now < RELEASED {
        return Err(TokenError::ClockNotSet);
    }
    if claims.exp.is_some_and(|exp| now.as_secs() >= exp.saturating_add(LEEWAY.as_secs())) {
        return Err(TokenError::Expired);
    }
    if claims.nbf.is_some_and(|nbf| now.as_secs() < nbf.saturating_sub(LEEWAY.as_secs())) {
        return Err(TokenError::NotYet);
    }
    Ok(())
}

/// A clock before 1970 counts as one that is not set.
fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
