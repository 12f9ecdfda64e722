//! STUN and TURN servers as viewers are told of them, with credentials made for one session.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// How long credentials hold. A TURN server checks them when an allocation is made or refreshed, so a day's watching needs a day.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// One server of `[ice] servers`.
#[derive(Clone, Debug)]
pub struct IceServer {
    /// `stun:`, `turn:` or `turns:` URLs (RFC 7064, RFC 7065).
    pub urls: Vec<String>,
    pub credentials: Credentials,
}

/// How viewers prove themselves to a TURN server.
#[derive(Clone)]
pub enum Credentials {
    None,
    /// The same for everybody.
    Fixed {
        username: String,
        password: String,
    },
    /// Made for each session from a secret shared with the server (coturn's `use-auth-secret`).
    Shared {
        secret: Vec<u8>,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Fixed { .. } => "Fixed(…)",
            Self::Shared { .. } => "Shared(…)",
        })
    }
}

/// One server as a viewer gets it.
#[derive(Clone, PartialEq, Eq)]
pub struct OfferedServer {
    pub urls: Vec<String>,
    pub username: Option<String>,
    pub credential: Option<String>,
}

impl fmt::Debug for OfferedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfferedServer").field("urls", &self.urls).finish_non_exhaustive()
    }
}

impl IceServer {
    /// With credentials for a viewer who comes now.
    pub fn offered(&self, now: SystemTime) -> OfferedServer {
        let (username, credential) = match &self.credentials {
            Credentials::None => (None, None),
            Credentials::Fixed { username, password } => (Some(username.clone()), Some(password.clone())),
            Credentials::Shared { secret } => {
                let (username, password) = time_limited(secret, now);
                (Some(username), Some(password))
            }
        };
        OfferedServer { urls: self.urls.clone(), username, credential }
    }
}

impl IceServer {
    /// How long credentials of now are good for; `None`: for ever.
    pub fn hold_for(&self) -> Option<Duration> {
        matches!(self.credentials, Credentials::Shared { .. }).then_some(LIFETIME)
    }
}

impl OfferedServer {
    /// One `Link` header value per URL (RFC 9725, section 4.6), its parts in the order that clients' patterns expect.
    pub fn links(&self) -> impl Iterator<Item = String> {
        let credentials = match (&self.username, &self.credential) {
            (Some(username), Some(credential)) => format!(
                r#"; username="{}"; credential="{}"; credential-type="password""#,
                quotable(username),
                quotable(credential)
            ),
            _ => String::new(),
        };
        self.urls.iter().map(move |url| format!(r#"<{url}>; rel="ice-server"{credentials}"#))
    }
}

/// A quoted string's inside (RFC 9110, section 5.6.4).
fn quotable(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// User name and password by draft-uberti-behave-turn-rest, as coturn checks them.
fn time_limited(secret: &[u8], now: SystemTime) -> (String, String) {
    let expires = now.duration_since(UNIX_EPOCH).unwrap_or_default() + LIFETIME;
    let username = expires.as_secs().to_string();
    // The draft fixes SHA-1; what is wrong with it does not touch HMAC.
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let password = STANDARD.encode(hmac::sign(&key, username.as_bytes()));
    (username, password)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(credentials: Credentials) -> IceServer {
        IceServer { urls: vec!["turn:turn.example.org:3478".into()], credentials }
    }

    #[test]
    fn a_shared_secret_gives_the_credentials_that_coturn_computes() {
        let server = turn(Credentials::Shared { secret: b"north".to_vec() });
        let offered = server.offered(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        assert_eq!(offered.username.as_deref(), Some("1800086400"));
        // printf 1800086400 | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(offered.credential.as_deref(), Some("/sfTIxP6tenIPleGUPBCfSCF4iI="));
    }

    #[test]
    fn a_link_names_its_parts_in_the_order_that_mediamtx_reader_expects() {
        let server = turn(Credentials::Fixed { username: "u".into(), password: r#"p"q"#.into() });
        let links: Vec<_> = server.offered(UNIX_EPOCH).links().collect();
        assert_eq!(
            links,
            [
                r#"<turn:turn.example.org:3478>; rel="ice-server"; username="u"; credential="p\"q"; credential-type="password""#
            ]
        );
    }

    #[test]
    fn a_server_without_credentials_is_just_a_url() {
        let links: Vec<_> = turn(Credentials::None).offered(UNIX_EPOCH).links().collect();
        assert_eq!(links, [r#"<turn:turn.example.org:3478>; rel="ice-server""#]);
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let server = turn(Credentials::Fixed { username: "north".into(), password: "south".into() });
        let shown =
            format!("{server:?} {:?} {:?}", server.offered(UNIX_EPOCH), Credentials::Shared { secret: b"s".to_vec() });
        assert!(!shown.contains("north") && !shown.contains("south") && !shown.contains("115"), "{shown}");
    }
}
