//! Where a STUN or TURN server is, and how one speaks with it (RFC 7064, RFC 7065).

use std::fmt;

/// What a URL like `turn:turn.example.org:3478?transport=tcp` says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    /// TURN; else STUN.
    pub is_turn: bool,
    /// A name or an address, the latter without brackets.
    pub host: String,
    pub port: u16,
    pub transport: ServerTransport,
}

/// What carries requests to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerTransport {
    Udp,
    Tcp,
    Tls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlError {
    /// It does not follow RFC 7064 and RFC 7065.
    Malformed,
    /// `turns:…?transport=udp`, which browsers do not use either.
    Dtls,
}

impl ServerUrl {
    /// # Errors
    /// It is no such URL, or names DTLS.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once(':').ok_or(UrlError::Malformed)?;
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (is_turn, is_secure) = match scheme {
            "stun" => (false, false),
            "stuns" => (false, true),
            "turn" => (true, false),
            "turns" => (true, true),
            _ => return Err(UrlError::Malformed),
        };
        let transport = match (query, is_secure) {
            ("transport=udp", true) => return Err(UrlError::Dtls),
            ("" | "transport=udp", false) => ServerTransport::Udp,
            ("transport=tcp", false) => ServerTransport::Tcp,
            ("" | "transport=tcp", true) => ServerTransport::Tls,
            _ => return Err(UrlError::Malformed),
        };
        // The colons of a bare IPv6 address are no port's.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().map_err(|_| UrlError::Malformed)?)
            }
            _ => (authority, if is_secure { 5349 } else { 3478 }),
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        if host.is_empty() { Err(UrlError::Malformed) } else { Ok(Self { is_turn, host, port, transport }) }
    }

    /// As in the URL.
    pub fn scheme(&self) -> &'static str {
        match (self.is_turn, self.transport) {
            (true, ServerTransport::Tls) => "turns",
            (true, _) => "turn",
            (false, ServerTransport::Tls) => "stuns",
            (false, _) => "stun",
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme())?;
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        write!(f, ":{}", self.port)?;
        if self.transport == ServerTransport::Tcp { f.write_str("?transport=tcp") } else { Ok(()) }
    }
}

impl ServerTransport {
    pub const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Tls];

    /// The label in metrics.
    pub fn slug(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

impl fmt::Display for ServerTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Tls => "TLS over TCP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_how() {
        for (url, expected) in [
            ("stun:stun.example.org", "stun.example.org 3478 UDP"),
            ("turn:192.0.2.1:80?transport=tcp", "192.0.2.1 80 TCP"),
            ("turns:turn.example.org?transport=tcp", "turn.example.org 5349 TLS over TCP"),
            ("turn:[2001:db8::1]:3479?transport=udp", "2001:db8::1 3479 UDP"),
            ("turn:[2001:db8::1]", "2001:db8::1 3478 UDP"),
        ] {
            let place = ServerUrl::parse(url).unwrap();
            assert_eq!(format!("{} {} {}", place.host, place.port, place.transport), expected, "{url}");
            assert_eq!(ServerUrl::parse(&place.to_string()), Ok(place), "what it writes it reads");
        }
        for url in ["turn:", "turn:host:port", "turn:host?transport=sctp", "http:host"] {
            assert_eq!(ServerUrl::parse(url), Err(UrlError::Malformed), "{url}");
        }
        assert_eq!(ServerUrl::parse("turns:host?transport=udp"), Err(UrlError::Dtls));
    }
}
