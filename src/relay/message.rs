//! What a STUN and TURN client says and hears (RFC 8489, RFC 8656): requests, responses, and peers' data in its two envelopes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rtc::crypto::{RTCCryptoProvider, default_provider};
use rtc::shared::error::Error;
use rtc_stun::attributes::{
    ATTR_CHANNEL_NUMBER, ATTR_DATA, ATTR_LIFETIME, ATTR_MESSAGE_INTEGRITY, ATTR_NONCE, ATTR_REALM,
    ATTR_REQUESTED_TRANSPORT, ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS,
};
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    CLASS_INDICATION, CLASS_REQUEST, METHOD_ALLOCATE, METHOD_BINDING, METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION,
    METHOD_REFRESH, METHOD_SEND, Message, MessageType, Setter, TransactionId,
};
use rtc_stun::textattrs::TextAttribute;
use rtc_stun::xoraddr::XorMappedAddress;

const HEADER: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
/// The numbers of channels (RFC 8656, section 12); they tell ChannelData from STUN by its first byte.
pub(super) const CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x4FFF;

/// What is asked of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Binding,
    Allocate,
    /// Zero gives the allocation back.
    Refresh {
        lifetime: Option<Duration>,
    },
    CreatePermission {
        peer: IpAddr,
    },
    ChannelBind {
        peer: SocketAddr,
        number: u16,
    },
}

/// The name a transaction goes by.
pub(super) type Id = [u8; 12];

/// Whom requests come from, by the long-term credential mechanism (RFC 8489, section 9.2).
pub(super) struct Signing {
    username: String,
    realm: String,
    pub(super) nonce: String,
    key: Vec<u8>,
    crypto: Arc<dyn RTCCryptoProvider>,
}

impl Signing {
    /// `None`: there is no crypto library, or one without MD5.
    pub(super) fn new(username: &str, password: &str, realm: String, nonce: String) -> Option<Self> {
        let crypto = default_provider().ok()?;
        let (user, password) = (username.to_owned(), password.to_owned());
        let key = MessageIntegrity::long_term_integrity_key(user, realm.clone(), password, crypto.crypto()).ok()?;
        Some(Self { username: username.to_owned(), realm, nonce, key, crypto })
    }
}

/// A request and its name; `None` when a user name or nonce is longer than STUN allows.
pub(super) fn request(ask: Ask, signing: Option<&Signing>) -> Option<(Id, Bytes)> {
    let id = TransactionId::new();
    build(ask, signing, id).ok().map(|message| (id.0, message.raw.into()))
}

fn build(ask: Ask, signing: Option<&Signing>, id: TransactionId) -> Result<Message, Error> {
    const UDP: [u8; 4] = [17, 0, 0, 0];
    let method = match ask {
        Ask::Binding => METHOD_BINDING,
        Ask::Allocate => METHOD_ALLOCATE,
        Ask::Refresh { .. } => METHOD_REFRESH,
        Ask::CreatePermission { .. } => METHOD_CREATE_PERMISSION,
        Ask::ChannelBind { .. } => METHOD_CHANNEL_BIND,
    };
    let mut message = Message::new();
    message.build(&[Box::new(MessageType::new(method, CLASS_REQUEST)), Box::new(id)])?;
    match ask {
        Ask::Binding | Ask::Refresh { lifetime: None } => {}
        Ask::Allocate => message.add(ATTR_REQUESTED_TRANSPORT, &UDP),
        Ask::Refresh { lifetime: Some(lifetime) } => {
            let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
            message.add(ATTR_LIFETIME, &seconds.to_be_bytes());
        }
        Ask::CreatePermission { peer: ip } => {
            XorMappedAddress { ip, port: 0 }.add_to_as(&mut message, ATTR_XOR_PEER_ADDRESS)?;
        }
        Ask::ChannelBind { peer, number } => {
            let [high, low] = number.to_be_bytes();
            message.add(ATTR_CHANNEL_NUMBER, &[high, low, 0, 0]);
            XorMappedAddress { ip: peer.ip(), port: peer.port() }.add_to_as(&mut message, ATTR_XOR_PEER_ADDRESS)?;
        }
    }
    if let Some(Signing { username, realm, nonce, key, crypto }) = signing {
        for (attribute, text) in [(ATTR_USERNAME, username), (ATTR_REALM, realm), (ATTR_NONCE, nonce)] {
            TextAttribute::new(attribute, text.clone()).add_to(&mut message)?;
        }
        MessageIntegrity::new_raw_integrity_with_provider(key.clone(), crypto.crypto()).add_to(&mut message)?;
    }
    Ok(message)
}

/// Data for a peer without a channel (RFC 8656, section 11.1). `None`: longer than a STUN message can be.
pub(super) fn send_indication(peer: SocketAddr, data: &[u8]) -> Option<BytesMut> {
    const MOST: usize = 65_000;
    let build = || {
        let mut message = Message::new();
        let kind = MessageType::new(METHOD_SEND, CLASS_INDICATION);
        message.build(&[Box::new(kind), Box::new(TransactionId::new())])?;
        XorMappedAddress { ip: peer.ip(), port: peer.port() }.add_to_as(&mut message, ATTR_XOR_PEER_ADDRESS)?;
        message.add(ATTR_DATA, data);
        Ok::<_, Error>(message.raw)
    };
    let raw = (data.len() <= MOST).then(build)?.ok()?;
    Some(raw.as_slice().into())
}

/// Data for the peer of a channel (RFC 8656, section 12.4). Padded on streams; a datagram ends by itself.
pub(super) fn channel_data(number: u16, data: &[u8], is_stream: bool) -> Option<BytesMut> {
    let length = u16::try_from(data.len()).ok()?;
    let padding = if is_stream { data.len().next_multiple_of(4) - data.len() } else { 0 };
    let mut out = BytesMut::with_capacity(4 + data.len() + padding);
    out.put_u16(number);
    out.put_u16(length);
    out.put_slice(data);
    out.put_bytes(0, padding);
    Some(out)
}

/// What a server sends.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    Response(Response<'a>),
    /// A peer's datagram, in a Data indication.
    Data {
        peer: SocketAddr,
        data: &'a [u8],
    },
    /// One in ChannelData.
    Channel {
        number: u16,
        data: &'a [u8],
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Response<'a> {
    pub(super) id: Id,
    is_success: bool,
    raw: &'a [u8],
}

/// Why a server does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// RFC 8489, section 14.8; RFC 8656, section 19.
    pub(super) code: u16,
    pub(super) reason: String,
}

/// Understands a datagram from a server, or one frame of its stream; `None`: it is neither STUN nor ChannelData.
pub(super) fn read(data: &[u8]) -> Option<Heard<'_>> {
    const DATA_INDICATION: u16 = 0x0017;
    const CLASS: u16 = 0x0110;
    const SUCCESS: u16 = 0x0100;
    let kind = u16_at(data, 0)?;
    if CHANNELS.contains(&kind) {
        let length = usize::from(u16_at(data, 2)?);
        return Some(Heard::Channel { number: kind, data: data.get(4..4 + length)? });
    }
    let length = usize::from(u16_at(data, 2)?);
    let raw = data.get(..HEADER + length)?;
    if kind & 0xC000 != 0 || raw[4..8] != MAGIC_COOKIE {
        return None;
    }
    let id = raw[8..HEADER].try_into().ok()?;
    match kind & CLASS {
        CLASS | SUCCESS => Some(Heard::Response(Response { id, is_success: kind & CLASS == SUCCESS, raw })),
        _ if kind == DATA_INDICATION => {
            let peer = read_address(attribute(raw, ATTR_XOR_PEER_ADDRESS.value())?, &id)?;
            Some(Heard::Data { peer, data: attribute(raw, ATTR_DATA.value())? })
        }
        _ => None,
    }
}

/// How long the first frame in a stream's bytes is, its padding included (RFC 8656, section 12.5). `Ok(None)`: that cannot be
/// said yet. `Err`: nothing that a TURN server sends begins so, and there is no way to find the next frame.
pub(super) fn frame_length(stream: &[u8]) -> Result<Option<usize>, NoFrame> {
    let (Some(kind), Some(length)) = (u16_at(stream, 0), u16_at(stream, 2)) else { return Ok(None) };
    let length = usize::from(length);
    match kind {
        _ if CHANNELS.contains(&kind) => Ok(Some(4 + length.next_multiple_of(4))),
        _ if kind & 0xC000 == 0 && length.is_multiple_of(4) => Ok(Some(HEADER + length)),
        _ => Err(NoFrame),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoFrame;

impl Response<'_> {
    /// Whether the server did it.
    pub(super) fn outcome(&self) -> Result<(), Refusal> {
        if self.is_success {
            return Ok(());
        }
        const ERROR_CODE: u16 = 0x0009;
        match attribute(self.raw, ERROR_CODE) {
            Some([_, _, class, number, reason @ ..]) => Err(Refusal {
                code: u16::from(class & 7) * 100 + u16::from(*number % 100),
                reason: String::from_utf8_lossy(reason).chars().filter(|c| !c.is_control()).take(100).collect(),
            }),
            _ => Err(Refusal { code: 0, reason: "no reason given".to_owned() }),
        }
    }

    /// An XOR-…-ADDRESS.
    pub(super) fn address(&self, attribute_type: rtc_stun::attributes::AttrType) -> Option<SocketAddr> {
        read_address(attribute(self.raw, attribute_type.value())?, &self.id)
    }

    pub(super) fn lifetime(&self) -> Option<Duration> {
        let seconds: [u8; 4] = attribute(self.raw, ATTR_LIFETIME.value())?.try_into().ok()?;
        Some(Duration::from_secs(u32::from_be_bytes(seconds).into()))
    }

    /// What the next request has to be signed for: realm and nonce.
    pub(super) fn challenge(&self) -> Option<(String, String)> {
        let text = |kind| String::from_utf8(attribute(self.raw, kind)?.to_vec()).ok();
        Some((text(ATTR_REALM.value())?, text(ATTR_NONCE.value())?))
    }

    /// Whether it comes from who knows our password.
    pub(super) fn is_signed(&self, signing: &Signing) -> bool {
        let mut message = Message { raw: self.raw.to_vec(), ..Message::default() };
        message.decode().is_ok() && MessageIntegrity::check(&mut message, &signing.key, signing.crypto.crypto()).is_ok()
    }
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

/// The first attribute of this kind in a whole message; what stands behind the signature is not signed (RFC 8489, section 14.5).
fn attribute(raw: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = raw.get(HEADER..)?;
    loop {
        let (kind, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let value = rest.get(4..4 + length)?;
        if kind == wanted {
            return Some(value);
        }
        if kind == ATTR_MESSAGE_INTEGRITY.value() {
            return None;
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
}

/// RFC 8489, section 14.2. `None` too for what cannot be anybody's address.
fn read_address(value: &[u8], id: &Id) -> Option<SocketAddr> {
    let port = u16_at(value, 2)? ^ u16::from_be_bytes([MAGIC_COOKIE[0], MAGIC_COOKIE[1]]);
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE);
    mask[4..].copy_from_slice(id);
    let ip: IpAddr = match (value.get(1)?, value.get(4..)?) {
        (1, bytes) => {
            let bytes: [u8; 4] = bytes.try_into().ok()?;
            Ipv4Addr::from(std::array::from_fn::<u8, 4, _>(|at| bytes[at] ^ mask[at])).into()
        }
        (2, bytes) => {
            let bytes: [u8; 16] = bytes.try_into().ok()?;
            Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|at| bytes[at] ^ mask[at])).to_canonical()
        }
        _ => return None,
    };
    let is_somebodys = port != 0 && !ip.is_unspecified() && !ip.is_multicast();
    is_somebodys.then_some(SocketAddr::new(ip, port))
}

/// What must hold for any bytes that come from a server; for the fuzzer.
#[doc(hidden)]
pub fn survive(bytes: &[u8]) {
    if let Ok(Some(length)) = frame_length(bytes) {
        assert!((4..=4 + 65_536 + HEADER).contains(&length));
        if let Some(frame) = bytes.get(..length) {
            let _ = read(frame);
        }
    }
    let Some(signing) = Signing::new("north", "south", "edge".to_owned(), "nonce".to_owned()) else { return };
    match read(bytes) {
        Some(Heard::Response(response)) => {
            if let Err(refusal) = response.outcome() {
                assert!(refusal.code < 800 && refusal.reason.chars().count() <= 100);
            }
            let _ = (response.address(ATTR_XOR_PEER_ADDRESS), response.lifetime(), response.challenge());
            response.is_signed(&signing);
        }
        Some(Heard::Data { data, .. } | Heard::Channel { data, .. }) => assert!(data.len() < bytes.len()),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 50_000);

    /// A Data indication made of a Send indication: only its type differs.
    fn as_data(mut sent: BytesMut) -> BytesMut {
        sent[1] = 0x17;
        sent
    }

    #[test]
    fn channel_data_is_padded_on_streams_only_and_the_padding_is_not_the_peers() {
        let padded = channel_data(0x4001, b"hello", true).unwrap();
        assert_eq!((padded.len(), frame_length(&padded)), (12, Ok(Some(12))));
        assert_eq!(channel_data(0x4001, b"hello", false).unwrap().len(), 9);
        assert!(matches!(read(&padded), Some(Heard::Channel { number: 0x4001, data: b"hello" })));
    }

    #[test]
    fn a_server_that_signs_with_another_password_is_not_believed() {
        let ours = Signing::new("u", "right", "r".to_owned(), "n".to_owned()).unwrap();
        let theirs = Signing::new("u", "wrong", "r".to_owned(), "n".to_owned()).unwrap();
        let mut message = Message::new();
        let kind = MessageType::new(METHOD_REFRESH, rtc_stun::message::CLASS_SUCCESS_RESPONSE);
        message.build(&[Box::new(kind), Box::new(TransactionId::new())]).unwrap();
        let integrity = MessageIntegrity::new_raw_integrity_with_provider(theirs.key.clone(), theirs.crypto.crypto());
        integrity.add_to(&mut message).unwrap();
        let Some(Heard::Response(response)) = read(&message.raw) else { panic!("not a response") };
        assert!(response.is_signed(&theirs) && !response.is_signed(&ours));
    }

    #[test]
    fn what_is_no_frame_is_told_from_half_a_frame() {
        assert_eq!(frame_length(b"SSH-2.0-x"), Err(NoFrame));
        assert_eq!(frame_length(&[0x40, 0x00, 0x00]), Ok(None));
        assert_eq!(frame_length(&[0x50, 0x00, 0x00, 0x00]), Err(NoFrame));
    }

    proptest! {
        #[test]
        fn what_a_peer_sent_comes_out_as_it_went_in(
            data in prop::collection::vec(any::<u8>(), 0..1500),
            v6 in any::<bool>(),
            port in 1u16..,
            number in CHANNELS,
        ) {
            let ip = if v6 { "2001:db8::7".parse().unwrap() } else { PEER.ip() };
            let sent = SocketAddr::new(ip, port);
            let indication = as_data(send_indication(sent, &data).unwrap());
            let Some(Heard::Data { peer, data: got }) = read(&indication) else { panic!("not read") };
            prop_assert_eq!((peer, got), (sent, data.as_slice()));
            prop_assert_eq!(frame_length(&indication), Ok(Some(indication.len())));
            let framed = channel_data(number, &data, true).unwrap();
            let Some(Heard::Channel { data: got, .. }) = read(&framed) else { panic!("not read") };
            prop_assert_eq!(got, data.as_slice());
            prop_assert_eq!(frame_length(&framed), Ok(Some(framed.len())));
        }

        #[test]
        fn no_bytes_hurt(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            survive(&bytes);
        }

        #[test]
        fn no_damage_to_a_message_hurts(at in 0usize..200, bit in 0u8..8, cut in 0usize..200) {
            let signing = Signing::new("u", "p", "r".to_owned(), "n".to_owned()).unwrap();
            let (_, raw) = request(Ask::ChannelBind { peer: PEER, number: 0x4000 }, Some(&signing)).unwrap();
            let mut raw = raw.to_vec();
            raw[0] |= 1;
            let at = at % raw.len();
            raw[at] ^= 1 << bit;
            survive(&raw);
            survive(&raw[..cut.min(raw.len())]);
        }
    }
}
