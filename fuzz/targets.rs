//! What must hold for any bytes a stranger sends. The fuzzer calls these, and `tests/fuzz_corpora.rs` with the committed corpora.
#![allow(dead_code, unreachable_pub, reason = "each fuzz target uses one of them")]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use edgecam::core::access_unit::{AccessUnit, Bitrate};
use edgecam::core::annex_b::{Contents, Sps, access_units, nal_units};
use edgecam::core::congestion::CongestionSettings;
use edgecam::core::signal::RejectReason;
use edgecam::core::trigger::Action;
use edgecam::net::framing::{Frames, LARGEST_FRAME, put};
use edgecam::peer::{Identity, Peer, PeerSettings, Picture, read_arrivals};
use edgecam::signaling::is_type;
use edgecam::signaling::mqtt::topics::{Purpose, Topics};
use edgecam::signaling::mqtt::trigger::{self, Ask, What};
use edgecam::signaling::sdpfrag::{Fragment, IceCredentials, restarted};
use edgecam::signaling::token::{TokenKey, check};
use edgecam::signaling::whep::matches_tag;
use edgecam::signaling::wire::{Fault, MAX_MESSAGE, Outgoing, decode, encode};
use ring::hmac;

/// A message is either understood or answered with one error of modest size.
pub fn wire(bytes: &[u8]) {
    match decode(bytes) {
        Ok(incoming) => {
            assert!(bytes.len() <= MAX_MESSAGE);
            assert!(incoming.id.is_none_or(|id| id.len() <= 128));
        }
        Err(unreadable) => {
            let error = encode(&Outgoing::Error(Fault::from(unreadable)));
            assert!(error.starts_with('{') && error.len() < 4096, "{error}");
        }
    }
}

/// A datagram from a STUN or TURN server, or the bytes of its stream.
pub fn turn_server(bytes: &[u8]) {
    edgecam::relay::survive(bytes);
}

/// A PATCH body, an offer, an answer, and the headers around them: the same bytes as each.
pub fn whep_body(bytes: &[u8]) {
    matches_tag(bytes, "\"1\"");
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        is_type(Some(&value), "application/sdp");
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(fragment) = Fragment::parse(text) {
        for line in &fragment.candidates {
            assert!(line.starts_with("candidate:") && line.len() <= 512 && !line.contains('\n'));
        }
        if let Some(credentials) = &fragment.credentials {
            assert!(credentials.ufrag.len() >= 4 && credentials.pwd.len() >= 22);
        }
    }
    let new = IceCredentials { ufrag: "newU".into(), pwd: "0123456789012345678901".into() };
    let offer = restarted(text, &new);
    assert!(!offer.contains("\na=candidate:"));
    if let Ok(Some(found)) = IceCredentials::find(&offer) {
        assert_eq!(found, new, "nothing of the old credentials is left");
    }
    let answer = Fragment::of_answer(text);
    assert!(answer.is_empty() || answer.ends_with("\r\n"));
}

/// No bytes open the door; and signed ones, as a careless minter might make them, break nothing.
pub fn token(bytes: &[u8]) {
    const SECRET: &[u8] = b"a key of thirty-two bytes or more";
    let Ok(key) = TokenKey::new(SECRET) else { return };
    let text = String::from_utf8_lossy(bytes);
    let now: SystemTime = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    assert!(check(&key, "frontdoor", &text, now).is_err(), "a token nobody signed");

    let claims = URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("eyJhbGciOiJIUzI1NiJ9.{claims}");
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    for time in [UNIX_EPOCH, now] {
        if check(&key, "frontdoor", &token, time).is_ok() {
            assert!(text.contains("frontdoor") || text.contains("\\u"), "it names this device");
        }
    }
}

/// A message from the broker: topic, Response Topic and payload, each on a line, the payload to the end. It is for one purpose or
/// none; its answer goes below `rsp/` or nowhere; and whatever it asks for is bounded or refused with words.
pub fn mqtt_message(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let (topic, response_topic, payload) = (next(), next(), next());
    let topics = Topics::new("edgecam", "frontdoor");
    if let Ok(response_topic) = str::from_utf8(response_topic) {
        let is_response_topic = topics.is_response_topic(response_topic);
        let odd = |level: &str| level.is_empty() || level.contains(['#', '+', '$', '.', '\0', ' ']);
        if is_response_topic {
            assert!(response_topic.starts_with("edgecam/frontdoor/rsp/"), "{response_topic}");
            assert!(!response_topic.split('/').any(odd), "{response_topic}");
        }
        if topics.is_response_topic_of("anna", response_topic) {
            assert!(is_response_topic && format!("{response_topic}/").starts_with("edgecam/frontdoor/rsp/anna/"));
        }
    }
    let Ok(topic) = str::from_utf8(topic) else { return };
    match topics.parse(topic) {
        Some(Purpose::Rpc(client)) => {
            assert!(topics.is_response_topic_of(client, &topics.rsp(client)), "{client} can be answered");
            wire(payload);
        }
        Some(Purpose::Trigger(_)) => mqtt_trigger(payload),
        Some(Purpose::EnabledSet(_)) => {
            let is_word = payload == b"ON" || payload == b"OFF";
            assert_eq!(trigger::parse_switch(payload).is_ok(), is_word);
        }
        None => {}
    }
}

fn mqtt_trigger(payload: &[u8]) {
    match trigger::parse(payload, UNIX_EPOCH + Duration::from_secs(1_795_230_000)) {
        Ok(Ask { id, what, reason }) => {
            assert_eq!(id, trigger::id(payload));
            assert!(id.is_none_or(|id| id.len() <= 128) && reason.is_none_or(|reason| reason.chars().count() <= 200));
            if let What::Camera(Action::Wake { ttl }) = what {
                assert!(!ttl.is_zero() && ttl <= Duration::from_secs(3600), "{ttl:?}");
            }
        }
        Err((id, refusal)) => {
            let error = trigger::error(&id, &refusal);
            assert!(error.starts_with('{') && error.len() < 4096, "{error}");
        }
    }
}

/// A byte stream from a camera or a file: taken apart without loss, and cut into packets of bounded size.
pub fn annex_b(bytes: &[u8]) {
    let stream = Bytes::copy_from_slice(bytes);
    assert!(nal_units(bytes).all(|nal| nal.len() <= bytes.len()));
    Sps::find(bytes);
    let units = access_units(&stream);
    assert!(units.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
    for data in units {
        let is_keyframe = Contents::of(&data).is_keyframe();
        let picture = Picture::cut(&AccessUnit { captured_at: *START, is_keyframe, data: data.clone() });
        // Each fragment of a NAL unit adds two bytes to it, each parameter set in a STAP-A two and a header.
        assert!(picture.bytes() <= data.len() * 2 + 64);
    }
}

/// What comes by TCP: the first byte says how the stream is cut. The same datagrams come out as if it were not cut at all.
pub fn frames(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    let whole = datagrams(&[stream]);
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(cut).max(1)).collect();
    assert_eq!(datagrams(&pieces), whole);
    let mut again = Vec::new();
    for datagram in &whole {
        assert!((1..=LARGEST_FRAME).contains(&datagram.len()));
        put(datagram, &mut again);
    }
    assert_eq!(datagrams(&[&again]), whole);
}

fn datagrams(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let (mut frames, mut found) = (Frames::default(), Vec::new());
    for piece in pieces {
        frames.push(piece);
        loop {
            match frames.next_datagram() {
                Ok(Some(datagram)) => found.push(datagram.to_vec()),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

/// An offer is answered, or refused with words a person can read.
pub fn offer(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match Peer::answer(&text, &PEERS, CONGESTION, Arc::default(), *START) {
        Ok((mut peer, answer)) => {
            assert!(answer.sdp.contains("a=candidate:1 1 udp"), "{}", answer.sdp);
            peer.close();
        }
        Err(RejectReason::BadOffer(why)) => assert!(!why.is_empty()),
        Err(_) => {}
    }
}

/// What a viewer says of the packets it was sent: nothing about others, and not more than a few bytes may ask for.
pub fn feedback(bytes: &[u8]) {
    for sent in [0, 100, 70_000] {
        let arrivals = read_arrivals(bytes, sent);
        assert!(arrivals.len() <= bytes.len() * 128, "{} of {} bytes", arrivals.len(), bytes.len());
        assert!(arrivals.iter().all(|arrival| arrival.number < sent), "{arrivals:?}");
    }
}

#[allow(clippy::disallowed_methods, reason = "a fuzzer's only moment")]
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

const CONGESTION: CongestionSettings = CongestionSettings {
    start: Bitrate::from_kbps(1000),
    least: Bitrate::from_kbps(50),
    most: Bitrate::from_kbps(4000),
};

static PEERS: LazyLock<PeerSettings> = LazyLock::new(|| PeerSettings {
    candidates: vec![edgecam::core::candidate::Candidate::host(([192, 0, 2, 1], 8189).into())],
    epoch: *START,
    lost_after: Duration::from_secs(30),
    #[allow(clippy::unwrap_used, reason = "without a certificate there is nothing to fuzz")]
    identity: Identity::generate().unwrap(),
});
