use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::core::access_unit::Bitrate;
use crate::core::camera::Rendition;
use crate::core::candidate::CandidateKind;
use crate::core::figures::Path;
use crate::core::signal::{Address, ClientId, CloseReason, LinkId, RejectReason};
use crate::core::transmit::Transport;

fn session(name: &str) -> SessionName {
    SessionName::new(name).unwrap()
}

fn candidate(name: &str, line: &str) -> Said {
    Said::Signal { session: session(name), signal: Signal::Candidate { line: line.into() } }
}

fn said(message: &str) -> Said {
    decode(message.as_bytes()).unwrap().said
}

fn response(reply: Reply) -> Response {
    let client = ClientId { link: LinkId::WebSocket, name: "c".into() };
    Response { to: Address { client, session: session("s") }, id: Some("7".into()), reply }
}

fn encoded(reply: Reply) -> Value {
    encoded_in("s", reply)
}

fn encoded_in(name: &str, reply: Reply) -> Value {
    let mut response = response(reply);
    response.to.session = session(name);
    serde_json::from_str(&encode(&Outgoing::Response(&response))).unwrap()
}

fn figures() -> Figures {
    Figures {
        rendition: Some(Rendition::Low),
        is_thinned: true,
        estimate: Some(Bitrate::from_kbps(380)),
        sent: Bitrate::from_kbps(310),
        loss: 0.012_345,
        round_trip: Some(Duration::from_micros(52_345)),
        path: Some(Path {
            transport: Transport::Tcp,
            local: ([192, 0, 2, 1], 8189).into(),
            local_kind: CandidateKind::Host,
            remote: "[2001:db8::7]:50000".parse().unwrap(),
            is_remote_relayed: true,
        }),
        ..Figures::unknown(Quality::Auto)
    }
}

#[test]
fn an_offer_carries_the_browsers_own_object() {
    let message =
        r#"{"v":1,"id":"a","type":"offer","session":"s","camera":"front","description":{"type":"offer","sdp":"v=0"}}"#;
    let incoming = decode(message.as_bytes()).unwrap();
    assert_eq!(incoming.id, Some(Arc::from("a")));
    let camera = Some(CameraId::new("front").unwrap());
    assert_eq!(
        incoming.said,
        Said::Offer { session: session("s"), camera, sdp: "v=0".into(), quality: Quality::Auto, token: None }
    );
}

#[test]
fn a_viewer_says_which_quality_it_wants_in_its_offer_and_later() {
    for (word, quality) in [("auto", Quality::Auto), ("high", Quality::High), ("low", Quality::Low)] {
        let message = format!(r#"{{"v":1,"type":"quality","session":"s","quality":"{word}"}}"#);
        assert_eq!(said(&message), Said::Signal { session: session("s"), signal: Signal::Prefer { quality } });
        let offer = format!(
            r#"{{"v":1,"type":"offer","session":"s","quality":"{word}","description":{{"type":"offer","sdp":"v=0"}}}}"#
        );
        assert!(matches!(said(&offer), Said::Offer { quality: asked, .. } if asked == quality), "{word}");
    }
    assert!(matches!(
        said(r#"{"type":"offer","sdp":"v=0","quality":"low"}"#),
        Said::Offer { quality: Quality::Low, .. }
    ));
    let stats = said(r#"{"v":1,"id":"9","type":"stats","session":"s"}"#);
    assert_eq!(stats, Said::Signal { session: session("s"), signal: Signal::Stats });
}

#[test]
fn figures_are_plain_numbers_and_what_is_not_known_is_null() {
    let known = encoded(Reply::Stats(figures()));
    assert_eq!((&known["type"], &known["id"], &known["session"]), (&json!("stats"), &json!("7"), &json!("s")));
    assert_eq!((&known["rendition"], &known["thinned"]), (&json!("low"), &json!(true)));
    assert_eq!((&known["estimate_kbps"], &known["sent_kbps"]), (&json!(380), &json!(310)));
    assert_eq!((&known["loss"], &known["round_trip_ms"]), (&json!(0.0123), &json!(52.3)));
    let path = json!({
        "transport": "tcp", "local": "192.0.2.1:8189", "local_type": "host",
        "remote": "[2001:db8::7]:50000", "remote_relayed": true
    });
    assert_eq!(known["path"], path);

    let unknown = encoded(Reply::Stats(Figures::unknown(Quality::High)));
    assert_eq!((&unknown["quality"], &unknown["sent_kbps"]), (&json!("high"), &json!(0)));
    for field in ["rendition", "estimate_kbps", "round_trip_ms", "path"] {
        assert!(unknown[field].is_null(), "{field}");
    }
}

#[test]
fn every_way_browsers_write_a_candidate_is_understood() {
    let line = "candidate:1 1 udp 2113937151 10.0.0.2 50000 typ host";
    let table = [
        (format!(r#"{{"candidate":"{line}","sdpMid":"0","sdpMLineIndex":0,"usernameFragment":"abcd"}}"#), line),
        (format!(r#"{{"candidate":"{line}","sdpMid":null,"sdpMLineIndex":null,"new-member":[1]}}"#), line),
        (r#"{"candidate":"","sdpMid":"0"}"#.into(), ""),
        (r#"{}"#.into(), ""),
        ("null".into(), ""),
    ];
    for (json, wanted) in table {
        let message = format!(r#"{{"v":1,"type":"candidate","session":"s","candidate":{json}}}"#);
        assert_eq!(said(&message), candidate("s", wanted), "{message}");
    }
}

#[test]
fn a_client_without_envelope_is_understood() {
    let offer = decode(br#"{"type":"offer","sdp":"v=0"}"#).unwrap();
    assert_eq!(
        offer.said,
        Said::Offer {
            session: session(BARE_SESSION),
            camera: None,
            sdp: "v=0".into(),
            quality: Quality::Auto,
            token: None
        }
    );

    for (message, line) in [
        (r#"{"candidate":"candidate:1","sdpMid":"0","sdpMLineIndex":0}"#, "candidate:1"),
        (r#"{"candidate":{"candidate":"candidate:1","sdpMid":"0"}}"#, "candidate:1"),
        (r#"{"candidate":null}"#, ""),
        (r#"{"candidate":"","sdpMid":"0"}"#, ""),
    ] {
        assert_eq!(said(message), candidate(BARE_SESSION, line), "{message}");
    }
}

#[test]
fn bad_messages_are_named_and_keep_their_id_and_session() {
    let long_id = format!(r#"{{"v":1,"type":"ping","id":"{}"}}"#, "i".repeat(129));
    let long_candidate = format!(
        r#"{{"v":1,"type":"candidate","session":"s","candidate":{{"candidate":"candidate:{}"}}}}"#,
        "x".repeat(512)
    );
    let huge = format!(r#"{{"v":1,"type":"offer","sdp":"{}"}}"#, "x".repeat(1 << 20));
    let deep = "[".repeat(10_000);
    let table = [
        ("", "not-json"),
        ("hello", "not-json"),
        ("[1,2]", "not-json"),
        ("null", "not-json"),
        ("\u{0}\u{1}", "not-json"),
        (deep.as_str(), "not-json"),
        (r#"{"v":1,"type":"ping","type":"ping"}"#, "not-json"),
        (huge.as_str(), "too-long"),
        ("{}", "unknown-version"),
        (r#"{"type":"ping"}"#, "unknown-version"),
        (r#"{"v":2,"type":"ping"}"#, "unknown-version"),
        (r#"{"v":"1","type":"ping"}"#, "unknown-version"),
        (r#"{"v":1}"#, "bad-field"),
        (r#"{"v":1,"type":7}"#, "bad-field"),
        (r#"{"v":1,"type":"dance"}"#, "unknown-type"),
        (r#"{"v":1,"type":"answer","session":"s"}"#, "unknown-type"),
        (r#"{"v":1,"type":"ping","id":7}"#, "bad-field"),
        (long_id.as_str(), "bad-field"),
        (r#"{"v":1,"type":"bye"}"#, "bad-field"),
        (r#"{"v":1,"type":"stats"}"#, "bad-field"),
        (r#"{"v":1,"type":"quality","session":"s"}"#, "bad-field"),
        (r#"{"v":1,"type":"quality","session":"s","quality":"best"}"#, "bad-field"),
        (r#"{"v":1,"type":"quality","session":"s","quality":1}"#, "bad-field"),
        (
            r#"{"v":1,"type":"offer","session":"s","quality":"LOW","description":{"type":"offer","sdp":"v=0"}}"#,
            "bad-field",
        ),
        (r#"{"v":1,"type":"bye","session":""}"#, "bad-field"),
        (r#"{"v":1,"type":"bye","session":"a b"}"#, "bad-field"),
        (r#"{"v":1,"type":"hello","token":5}"#, "bad-field"),
        (r#"{"v":1,"type":"hello","resume":true}"#, "bad-field"),
        (r#"{"v":1,"type":"hello","camera":"../etc"}"#, "bad-field"),
        (r#"{"v":1,"type":"offer","session":"s"}"#, "bad-field"),
        (r#"{"v":1,"type":"offer","session":"s","description":"v=0"}"#, "bad-field"),
        (r#"{"v":1,"type":"offer","session":"s","description":{"type":"answer","sdp":"v=0"}}"#, "bad-field"),
        (r#"{"v":1,"type":"offer","session":"s","description":{"type":"offer"}}"#, "bad-field"),
        (r#"{"v":1,"type":"offer","session":"s","description":{"type":"offer","sdp":[1]}}"#, "bad-field"),
        (r#"{"v":1,"type":"candidate","session":"s","candidate":7}"#, "bad-field"),
        (r#"{"v":1,"type":"candidate","session":"s","candidate":{"candidate":"a=b"}}"#, "bad-field"),
        (long_candidate.as_str(), "bad-field"),
        (r#"{"type":"answer","sdp":"v=0"}"#, "bad-field"),
    ];
    for (message, code) in table {
        let shown: String = message.chars().take(120).collect();
        let unreadable = decode(message.as_bytes()).expect_err(&shown);
        let fault = Fault::from(unreadable);
        assert_eq!(fault.code, code, "{shown}: {}", fault.message);
        assert!(fault.message.len() < 300, "{}", fault.message);
    }

    let unreadable = decode(br#"{"v":1,"id":"x","type":"dance","session":"s"}"#).unwrap_err();
    assert_eq!((unreadable.id.as_deref(), unreadable.session), (Some("x"), Some(session("s"))));
}

#[test]
fn a_message_that_is_too_long_is_not_even_looked_at() {
    let nonsense = vec![b'{'; MAX_MESSAGE + 1];
    assert!(matches!(decode(&nonsense).unwrap_err().error, WireError::TooLong(len) if len == MAX_MESSAGE + 1));
}

#[test]
fn an_answer_to_a_bare_client_is_what_a_browser_takes() {
    let answer = Reply::Answer { sdp: "v=0".into() };
    assert_eq!(encoded_in(BARE_SESSION, answer.clone())["sdp"], "v=0");
    let enveloped = encoded(answer);
    assert_eq!(enveloped["description"], json!({ "type": "answer", "sdp": "v=0" }));
    assert_eq!((&enveloped["session"], &enveloped["id"], &enveloped["v"]), (&json!("s"), &json!("7"), &json!(1)));
}

#[test]
fn a_rejection_says_when_to_try_again() {
    let full = encoded(Reply::Rejected(RejectReason::Full { limit: 8, retry_after: Duration::from_secs(10) }));
    assert_eq!((&full["type"], &full["code"]), (&json!("error"), &json!("full")));
    assert_eq!(full["retry_after_ms"], 10_000);
    let hopeless = encoded(Reply::Rejected(RejectReason::NoCommonCodec));
    assert!(hopeless.get("retry_after_ms").is_none());
}

#[test]
fn what_the_camera_says_by_itself_has_its_own_words() {
    let lost = encoded(Reply::Notice(Notice::CameraLost { reason: "unplugged".into() }));
    assert_eq!(
        (&lost["type"], &lost["state"], &lost["message"]),
        (&json!("state"), &json!("camera-lost"), &json!("unplugged"))
    );
    assert_eq!(encoded(Reply::Notice(Notice::CameraBack))["state"], "camera-back");
    assert_eq!(encoded(Reply::Notice(Notice::AddressChanged))["state"], "address-changed");
    assert_eq!(encoded(Reply::Bye(CloseReason::Lost))["reason"], "lost");
}

#[test]
fn a_token_does_not_show_in_debug_output() {
    let hello = decode(br#"{"v":1,"type":"hello","token":"secret-token","resume":"secret-name"}"#).unwrap();
    assert!(!format!("{hello:?}").contains("secret"));
}

/// Every example in the manual is read: the viewer's messages by the decoder, the camera's against the encoder.
#[test]
fn the_manual_shows_messages_as_they_are() {
    let manual = include_str!("../../docs/signaling.md");
    let (mut from_viewer, mut from_camera) = (Vec::new(), Vec::new());
    for example in manual.split("```json").skip(1) {
        let (header, rest) = example.split_once('\n').unwrap();
        let text = rest.split("```").next().unwrap();
        let json: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let kind = json["type"].as_str().unwrap_or("candidate").to_owned();
        match header.trim() {
            "viewer" => {
                decode(text.as_bytes()).unwrap_or_else(|error| panic!("{:?}: {text}", error.error));
                from_viewer.push(kind);
            }
            "camera" => {
                let ours = ours_like(&json);
                assert_eq!(keys(&json), keys(&ours), "the manual shows {text}, we send {ours}");
                from_camera.push(kind);
            }
            "api" => {}
            // Looked at where they are made.
            mqtt if mqtt.starts_with("mqtt ") => {}
            other => panic!("an example has no sender: {other:?}"),
        }
    }
    for kind in ["hello", "offer", "candidate", "restart", "quality", "stats", "bye", "ping"] {
        assert!(from_viewer.iter().any(|shown| shown == kind), "no example of {kind}");
    }
    for kind in ["welcome", "answer", "state", "stats", "bye", "pong", "error"] {
        assert!(from_camera.iter().any(|shown| shown == kind), "no example of {kind}");
    }
}

/// A message of ours with the type of `example`.
fn ours_like(example: &Value) -> Value {
    let name = if example.get("sdp").is_some() { BARE_SESSION } else { "s" };
    let text = match example["type"].as_str().unwrap() {
        "welcome" => {
            let server = OfferedServer {
                urls: vec!["turn:turn.example.org".into()],
                username: Some("u".into()),
                credential: Some("c".into()),
            };
            let welcome = Welcome {
                device: "d".into(),
                cameras: vec![],
                ice_servers: vec![server],
                max_candidates: 64,
                idle_ms: example["limits"].get("idle_ms").map(|_| 45_000),
                resume: example.get("resume").map(|_| Resume { name: Token("n".into()), resumed: false }),
            };
            encode(&Outgoing::Welcome { id: Some("1".into()), welcome: &welcome })
        }
        "pong" => encode(&Outgoing::Pong { id: Some("1".into()) }),
        "answer" => encoded_in(name, Reply::Answer { sdp: "v=0".into() }).to_string(),
        "state" if example["state"] == "camera-back" => {
            encode(&Outgoing::Response(&Response { id: None, ..response(Reply::Notice(Notice::CameraBack)) }))
        }
        "state" if example["state"] == "address-changed" => {
            encode(&Outgoing::Response(&Response { id: None, ..response(Reply::Notice(Notice::AddressChanged)) }))
        }
        "stats" => encode(&Outgoing::Response(&response(Reply::Stats(figures())))),
        "state" => {
            let lost = Notice::CameraLost { reason: "gone".into() };
            encode(&Outgoing::Response(&Response { id: None, ..response(Reply::Notice(lost)) }))
        }
        "bye" => {
            let bye = Reply::Bye(CloseReason::Shutdown);
            encode(&Outgoing::Response(&Response { id: None, ..response(bye) }))
        }
        "error" => {
            let full = RejectReason::Full { limit: 8, retry_after: Duration::from_secs(10) };
            encode(&Outgoing::Response(&response(Reply::Rejected(full))))
        }
        other => panic!("we send no {other}"),
    };
    let mut json: Value = serde_json::from_str(&text).unwrap();
    if name == BARE_SESSION && example.get("id").is_none() {
        json.as_object_mut().unwrap().remove("id");
    }
    json
}

fn keys(json: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
