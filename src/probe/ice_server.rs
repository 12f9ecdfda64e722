//! Whether a STUN or TURN server does for a viewer what it is there for: asked as a browser would ask it.
//!
//! STUN: a Binding (RFC 8489). TURN: an Allocate with the credentials a viewer would get, given back at once (RFC 8656).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rtc::crypto::{RTCCryptoProvider, default_provider};
use rtc_stun::attributes::{
    ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM, ATTR_REQUESTED_TRANSPORT, ATTR_USERNAME, ATTR_XOR_RELAYED_ADDRESS,
    ATTR_XORMAPPED_ADDRESS, AttrType,
};
use rtc_stun::error_code::ErrorCodeAttribute;
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    BINDING_REQUEST, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, Getter, METHOD_ALLOCATE, METHOD_REFRESH, Message,
    MessageType, Setter, TransactionId,
};
use rtc_stun::textattrs::TextAttribute;
use rtc_stun::xoraddr::XorMappedAddress;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::core::server_url::{ServerTransport, ServerUrl, UrlError};

/// What a viewer is told of one server.
#[derive(Clone)]
pub struct AskedServer {
    /// RFC 7064, RFC 7065: `turn:turn.example.org:3478?transport=tcp`.
    pub url: String,
    pub username: String,
    pub credential: String,
}

impl fmt::Debug for AskedServer {
    /// Without the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskedServer").field("url", &self.url).finish_non_exhaustive()
    }
}

/// What a server that works says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// STUN: where it sees us.
    Seen(SocketAddr),
    /// TURN: the address it would relay a viewer's packets from.
    Relays(SocketAddr),
}

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(
        "{0} cannot be asked; write it like turn:turn.example.org:3478 or turns:turn.example.org:5349?transport=tcp"
    )]
    Url(String),
    #[error("DTLS to a server is not tried here; browsers do not use it either: write ?transport=tcp")]
    Dtls,
    #[error("{host} is not known ({cause}); check the name, and this device's DNS")]
    Unknown { host: String, cause: io::Error },
    #[error("{address} does not answer ({cause}); see that it runs, and that firewalls let {transport} to its port")]
    Silent { address: SocketAddr, transport: ServerTransport, cause: io::Error },
    #[error(
        "TLS fails ({0}); it needs a certificate for its name, from an authority that browsers and this machine trust"
    )]
    Tls(io::Error),
    #[error(
        "it refuses the credentials; its static-auth-secret or user has to be the one in the file that [ice] names, and both clocks right"
    )]
    Credentials,
    #[error("it refuses ({code} {reason}); its log says why")]
    Refused { code: u16, reason: String },
    #[error("what answers there is no STUN or TURN server ({0}); check address and port")]
    Nonsense(String),
}

/// Asks a server what a viewer would ask it. Blocks for up to some seconds.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn ask(server: &AskedServer) -> Result<Answer, AskError> {
    let place = ServerUrl::parse(&server.url).map_err(|error| match error {
        UrlError::Malformed => AskError::Url(server.url.clone()),
        UrlError::Dtls => AskError::Dtls,
    })?;
    let (address, wire) = connect(&place)?;
    let silent = |cause| AskError::Silent { address, transport: place.transport, cause };
    let mut conversation = Conversation { server, wire, silent: &silent };
    if place.is_turn { conversation.allocate() } else { conversation.binding() }
}

/// To the first of the host's addresses that takes it.
fn connect(place: &ServerUrl) -> Result<(SocketAddr, Wire), AskError> {
    let unknown = |cause| AskError::Unknown { host: place.host.clone(), cause };
    let mut addresses: Vec<SocketAddr> =
        (place.host.as_str(), place.port).to_socket_addrs().map_err(unknown)?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let mut last = unknown(io::ErrorKind::NotFound.into());
    for address in addresses {
        match connect_to(place, address) {
            Ok(wire) => return Ok((address, wire)),
            Err(cause) => last = AskError::Silent { address, transport: place.transport, cause },
        }
    }
    Err(last)
}

fn connect_to(place: &ServerUrl, address: SocketAddr) -> io::Result<Wire> {
    if place.transport == ServerTransport::Udp {
        let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(address)?;
        return Ok(Wire::Udp(socket));
    }
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if place.transport == ServerTransport::Tcp {
        return Ok(Wire::Stream(Box::new(stream)));
    }
    let name = ServerName::try_from(place.host.clone()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(tls()?), name).map_err(io::Error::other)?;
    Ok(Wire::Stream(Box::new(StreamOwned::new(connection, stream))))
}

/// Trusts whom this machine trusts.
fn tls() -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth())
}

/// For a TCP connection, and for each answer on it.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long is waited after each sending of a request over UDP, in milliseconds (RFC 8489, section 6.2.1, cut short).
const WAITS_MS: [u64; 4] = [250, 500, 1000, 1500];
/// Datagrams that are not the answer, before we stop listening.
const STRAYS: usize = 16;

enum Wire {
    Udp(UdpSocket),
    Stream(Box<dyn ReadWrite>),
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl Wire {
    /// The answer to this request.
    fn exchange(&mut self, request: &Message) -> io::Result<Message> {
        match self {
            Self::Udp(socket) => exchange_datagrams(socket, request),
            Self::Stream(stream) => {
                stream.write_all(&request.raw)?;
                stream.flush()?;
                let mut raw = vec![0; 20];
                stream.read_exact(&mut raw)?;
                raw.resize(20 + usize::from(u16::from_be_bytes([raw[2], raw[3]])), 0);
                stream.read_exact(&mut raw[20..])?;
                decoded(raw, request).ok_or_else(no_stun)
            }
        }
    }
}

fn exchange_datagrams(socket: &UdpSocket, request: &Message) -> io::Result<Message> {
    let mut failure = io::ErrorKind::TimedOut.into();
    for wait in WAITS_MS {
        socket.send(&request.raw)?;
        socket.set_read_timeout(Some(Duration::from_millis(wait)))?;
        for _ in 0..STRAYS {
            let mut raw = vec![0; 2048];
            match socket.recv(&mut raw) {
                Ok(length) => {
                    raw.truncate(length);
                    match decoded(raw, request) {
                        Some(answer) => return Ok(answer),
                        None => failure = no_stun(),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(error),
                Err(_) => break,
            }
        }
    }
    Err(failure)
}

fn no_stun() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what came is no answer to STUN")
}

fn decoded(raw: Vec<u8>, request: &Message) -> Option<Message> {
    let mut answer = Message { raw, ..Message::default() };
    answer.decode().ok()?;
    (answer.transaction_id == request.transaction_id).then_some(answer)
}

struct Conversation<'a> {
    server: &'a AskedServer,
    wire: Wire,
    silent: &'a dyn Fn(io::Error) -> AskError,
}

/// What a TURN server asks a user to sign with.
struct Challenge {
    realm: String,
    nonce: String,
}

impl Conversation<'_> {
    fn binding(&mut self) -> Result<Answer, AskError> {
        let answer = self.exchange(&request(BINDING_REQUEST, &[], None)?)?;
        refusal(&answer)?;
        address(&answer, ATTR_XORMAPPED_ADDRESS).map(Answer::Seen)
    }

    fn allocate(&mut self) -> Result<Answer, AskError> {
        let allocate = MessageType::new(METHOD_ALLOCATE, CLASS_REQUEST);
        let udp: [(AttrType, &[u8]); 1] = [(ATTR_REQUESTED_TRANSPORT, &[17, 0, 0, 0])];
        let mut answer = self.exchange(&request(allocate, &udp, None)?)?;
        let mut signed = None;
        // The first is answered with what to sign; the second may come too late for its nonce (RFC 8489, section 9.2.5).
        for expected in [401, 438] {
            let Some(challenge) = challenge(&answer, expected) else { break };
            answer = self.exchange(&request(allocate, &udp, Some((self.server, &challenge)))?)?;
            signed = Some(challenge);
        }
        match refusal(&answer) {
            Err(AskError::Refused { code: 401 | 441, .. }) => return Err(AskError::Credentials),
            other => other?,
        }
        let relayed = address(&answer, ATTR_XOR_RELAYED_ADDRESS)?;
        let give_back = MessageType::new(METHOD_REFRESH, CLASS_REQUEST);
        let signed = signed.as_ref().map(|challenge| (self.server, challenge));
        // A server that does not hear it forgets the allocation after ten minutes.
        if let Ok(refresh) = request(give_back, &[(ATTR_LIFETIME, &[0; 4])], signed) {
            let _ = self.exchange(&refresh);
        }
        Ok(Answer::Relays(relayed))
    }

    fn exchange(&mut self, request: &Message) -> Result<Message, AskError> {
        let is_tls = |error: &io::Error| error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>());
        self.wire.exchange(request).map_err(|error| match error.kind() {
            _ if is_tls(&error) => AskError::Tls(error),
            io::ErrorKind::InvalidData => AskError::Nonsense(error.to_string()),
            _ => (self.silent)(error),
        })
    }
}

fn request(
    kind: MessageType,
    attributes: &[(AttrType, &[u8])],
    signed: Option<(&AskedServer, &Challenge)>,
) -> Result<Message, AskError> {
    let crypto = default_provider().map_err(|error| AskError::Nonsense(error.to_string()))?;
    build(kind, attributes, signed, crypto.as_ref()).map_err(|error| AskError::Nonsense(error.to_string()))
}

fn build(
    kind: MessageType,
    attributes: &[(AttrType, &[u8])],
    signed: Option<(&AskedServer, &Challenge)>,
    crypto: &dyn RTCCryptoProvider,
) -> Result<Message, rtc::shared::error::Error> {
    let mut message = Message::new();
    message.build(&[Box::new(kind), Box::new(TransactionId::new())])?;
    for (attribute, value) in attributes {
        message.add(*attribute, value);
    }
    if let Some((AskedServer { username, credential, .. }, Challenge { realm, nonce })) = signed {
        for (attribute, text) in [(ATTR_USERNAME, username), (ATTR_REALM, realm), (ATTR_NONCE, nonce)] {
            TextAttribute::new(attribute, text.clone()).add_to(&mut message)?;
        }
        let (username, realm, credential) = (username.clone(), realm.clone(), credential.clone());
        MessageIntegrity::new_long_term_integrity_with_provider(username, realm, credential, crypto.crypto())?
            .add_to(&mut message)?;
    }
    Ok(message)
}

/// `None` unless the server refuses with this code and says what it wants signed.
fn challenge(answer: &Message, expected: u16) -> Option<Challenge> {
    match refusal(answer) {
        Err(AskError::Refused { code, .. }) if code == expected => {}
        _ => return None,
    }
    let text = |attribute| TextAttribute::get_from_as(answer, attribute).ok().map(|text| text.text);
    Some(Challenge { realm: text(ATTR_REALM)?, nonce: text(ATTR_NONCE)? })
}

fn refusal(answer: &Message) -> Result<(), AskError> {
    if answer.typ.class == CLASS_SUCCESS_RESPONSE {
        return Ok(());
    }
    let mut error = ErrorCodeAttribute::default();
    error.get_from(answer).map_err(|error| AskError::Nonsense(error.to_string()))?;
    Err(AskError::Refused { code: error.code.0, reason: String::from_utf8_lossy(&error.reason).into_owned() })
}

fn address(answer: &Message, attribute: AttrType) -> Result<SocketAddr, AskError> {
    let mut address = XorMappedAddress::default();
    address.get_from_as(answer, attribute).map_err(|error| AskError::Nonsense(error.to_string()))?;
    Ok(SocketAddr::new(address.ip, address.port))
}

#[cfg(test)]
#[path = "ice_server_test.rs"]
mod tests;
