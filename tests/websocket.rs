//! The WebSocket as the page speaks it, and as those who mean harm would.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain has failed")]

#[path = "support/door.rs"]
mod door;

use std::time::Duration;

use door::{COMES_FROM, Door, Heard, Plan, answer, key, offer, silent, token};
use edgecam::core::signal::{CloseReason, Notice, Reply, Signal};
use edgecam::signaling::LinkSettings;
use edgecam::signaling::access::Rule;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

struct Viewer(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Viewer {
    async fn comes(device: &Door) -> Self {
        Self::comes_with(device, &[]).await.unwrap()
    }

    async fn comes_with(device: &Door, headers: &[(&'static str, &str)]) -> Result<Self, Error> {
        let mut request = format!("ws://{}/ws", device.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        connect_async(request).await.map(|(socket, _)| Self(socket))
    }

    async fn says(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn hears(&mut self) -> Value {
        loop {
            match self.0.next().await.expect("the socket is open").unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The close code, after everything else was read.
    async fn is_closed_with(&mut self) -> Option<(u16, String)> {
        while let Some(Ok(message)) = self.0.next().await {
            if let Message::Close(frame) = message {
                return frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
            }
        }
        None
    }

    async fn introduces_itself(&mut self, resume: Option<&str>) -> Value {
        self.says(json!({ "v": 1, "type": "hello", "resume": resume })).await;
        self.hears().await
    }

    async fn closes_with(&mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        self.0.close(Some(frame)).await.unwrap();
    }

    /// The connection ends without a word.
    fn loses_its_network(self) {
        drop(self);
    }

    async fn offers(&mut self, session: &str) -> Value {
        let description = json!({ "type": "offer", "sdp": offer() });
        self.says(json!({ "v": 1, "id": "o", "type": "offer", "session": session, "camera": "front", "description": description }))
            .await;
        self.hears().await
    }
}

#[tokio::test]
async fn hello_is_answered_with_all_a_viewer_needs() {
    let device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.says(json!({ "v": 1, "id": "h", "type": "hello" })).await;
    let welcome = viewer.hears().await;
    assert_eq!((&welcome["type"], &welcome["id"], &welcome["v"]), (&json!("welcome"), &json!("h"), &json!(1)));
    assert_eq!((&welcome["device"], &welcome["cameras"]), (&json!("frontdoor"), &json!(["front", "full"])));
    assert_eq!(welcome["limits"], json!({ "message_bytes": 65536, "candidates": 64, "idle_ms": 45000 }));
    let servers = json!([
        { "urls": ["stun:stun.example.org"] },
        { "urls": ["turn:turn.example.org:3478"], "username": "u", "credential": "p" },
    ]);
    assert_eq!(welcome["ice_servers"], servers);
}

#[tokio::test]
async fn a_lost_socket_is_taken_over_by_the_next_with_its_sessions_and_all_that_was_not_said_yet() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    let first = viewer.introduces_itself(None).await;
    assert_eq!(first["resumed"], false);
    viewer.offers("tile-1").await;
    let from = device.hears_request().await.from;
    viewer.loses_its_network();
    while device.counters.sockets_closed.get() == 0 {
        tokio::task::yield_now().await;
    }
    // The engine goes on speaking to whoever will be there.
    device.say(&from, Reply::Notice(Notice::CameraBack)).unwrap();

    let mut again = Viewer::comes(&device).await;
    let second = again.introduces_itself(first["resume"].as_str()).await;
    assert_eq!(second["resumed"], true);
    assert_eq!(again.hears().await["state"], "camera-back");
    let description = json!({ "type": "offer", "sdp": offer() });
    again.says(json!({ "v": 1, "id": "r", "type": "restart", "session": "tile-1", "description": description })).await;
    let answered = again.hears().await;
    assert_eq!((&answered["id"], &answered["description"]["sdp"]), (&json!("r"), &json!(answer("srvB"))));
    let request = device.hears_request().await;
    assert_eq!(request.from, from, "to the engine it is the same client");

    again.0.close(None).await.unwrap();
    assert!(matches!(device.hears().await, Heard::Left), "who closes leaves at once");
}

#[tokio::test]
async fn a_socket_that_seems_alive_is_taken_over_too() {
    let mut device = Door::open().await;
    let mut old = Viewer::comes(&device).await;
    let secret = old.introduces_itself(None).await["resume"].clone();
    old.offers("tile-1").await;
    let from = device.hears_request().await.from;
    let mut new = Viewer::comes(&device).await;
    let welcome = new.introduces_itself(secret.as_str()).await;
    assert_eq!(welcome["resumed"], true);
    assert_eq!(old.is_closed_with().await, Some((1000, "resumed".into())));
    device.say(&from, Reply::Notice(Notice::CameraBack)).unwrap();
    assert_eq!(new.hears().await["state"], "camera-back");
    assert!(device.has_heard_nothing(), "nobody has left");

    // A page that gave its socket up says so, and comes back, too.
    new.closes_with(4000).await;
    let mut third = Viewer::comes(&device).await;
    assert_eq!(third.introduces_itself(welcome["resume"].as_str()).await["resumed"], true);
}

#[tokio::test]
async fn each_welcome_brings_another_secret_and_the_one_before_opens_nothing() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    let first = viewer.introduces_itself(None).await["resume"].clone();
    viewer.offers("tile-1").await;
    device.hears_request().await;
    let second = viewer.introduces_itself(None).await["resume"].clone();
    let mut again = Viewer::comes(&device).await;
    assert_eq!(again.introduces_itself(first.as_str()).await["resumed"], false, "a later hello made another");
    let welcome = again.introduces_itself(second.as_str()).await;
    assert_eq!(welcome["resumed"], true);
    let mut thief = Viewer::comes(&device).await;
    for old in [&first, &second] {
        assert_eq!(thief.introduces_itself(old.as_str()).await["resumed"], false);
    }
    again.says(json!({ "v": 1, "type": "ping" })).await;
    assert_eq!(again.hears().await["type"], "pong", "nothing was taken from it");
}

#[tokio::test]
async fn sessions_are_taken_over_by_those_only_who_were_told_how_and_may() {
    let mut device = Door::with(Plan { rule: Rule::Key(key()), ..Plan::default() }).await;
    let mut owner = Viewer::comes(&device).await;
    owner.says(json!({ "v": 1, "type": "hello", "token": token(None) })).await;
    let name = owner.hears().await["resume"].clone();
    owner.offers("tile-1").await;
    device.hears_request().await;

    let mut thief = Viewer::comes(&device).await;
    thief.says(json!({ "v": 1, "type": "hello", "resume": name })).await;
    assert_eq!(thief.hears().await["code"], "token-needed");
    let mut guesser = Viewer::comes(&device).await;
    guesser.says(json!({ "v": 1, "type": "hello", "token": token(None), "resume": "0".repeat(32) })).await;
    let welcome = guesser.hears().await;
    assert_eq!(welcome["resumed"], false);
    // Who has sessions of its own stays who it is.
    guesser.offers("tile-1").await;
    guesser.says(json!({ "v": 1, "type": "hello", "resume": name })).await;
    let again = guesser.hears().await;
    assert_eq!(again["resumed"], false);
    owner.says(json!({ "v": 1, "type": "ping" })).await;
    assert_eq!(owner.hears().await["type"], "pong", "nothing was taken from it");
}

#[tokio::test]
async fn sessions_of_a_camera_are_taken_over_with_a_token_for_that_camera_only() {
    for is_lost in [false, true] {
        let mut device = Door::with(Plan { rule: Rule::Key(key()), ..Plan::default() }).await;
        let mut owner = Viewer::comes(&device).await;
        owner.says(json!({ "v": 1, "type": "hello", "token": token(None) })).await;
        let secret = owner.hears().await["resume"].clone();
        owner.offers("tile-1").await;
        device.hears_request().await;
        let mut owner = Some(owner);
        if is_lost {
            owner.take().unwrap().loses_its_network();
            while device.counters.sockets_closed.get() == 0 {
                tokio::task::yield_now().await;
            }
        }
        let mut viewers = Vec::new();
        for (camera, may) in [("full", false), ("front", true)] {
            let mut viewer = Viewer::comes(&device).await;
            viewer.says(json!({ "v": 1, "type": "hello", "token": token(Some(camera)), "resume": secret })).await;
            assert_eq!(viewer.hears().await["resumed"], may, "{camera}");
            viewers.push(viewer);
            if let Some(owner) = owner.as_mut().filter(|_| !may) {
                owner.says(json!({ "v": 1, "type": "ping" })).await;
                assert_eq!(owner.hears().await["type"], "pong", "nothing was taken from it");
            }
        }
        assert!(device.has_heard_nothing(), "the sessions were kept for who may have them");
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_that_nobody_takes_over_end_after_ten_seconds() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    let name = viewer.introduces_itself(None).await["resume"].clone();
    viewer.offers("tile-1").await;
    device.hears_request().await;
    viewer.loses_its_network();
    let before = std_now();
    assert!(matches!(device.hears().await, Heard::Left));
    let waited = std_now() - before;
    assert!((Duration::from_secs(9)..Duration::from_secs(11)).contains(&waited), "{waited:?}");
    let mut late = Viewer::comes(&device).await;
    assert_eq!(late.introduces_itself(name.as_str()).await["resumed"], false);
}

#[tokio::test]
async fn only_so_many_lost_sockets_are_waited_for() {
    let links = LinkSettings { max_lost_sockets: 1, ..LinkSettings::default() };
    let mut device = Door::with(Plan { links, ..Plan::default() }).await;
    for at_once in [false, true, true] {
        let mut viewer = Viewer::comes(&device).await;
        viewer.introduces_itself(None).await;
        viewer.offers("tile-1").await;
        device.hears_request().await;
        viewer.loses_its_network();
        if at_once {
            assert!(matches!(device.hears().await, Heard::Left));
        } else {
            while device.counters.sockets_closed.get() == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    // Those who never said hello, or have no session, could not come back anyway.
    let mut stranger = Viewer::comes(&device).await;
    stranger.introduces_itself(None).await;
    stranger.loses_its_network();
    assert!(matches!(device.hears().await, Heard::Left));
}

#[tokio::test(start_paused = true)]
async fn who_was_only_refused_is_not_waited_for() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.introduces_itself(None).await;
    let description = json!({ "type": "offer", "sdp": offer() });
    viewer.says(json!({ "v": 1, "type": "offer", "session": "s", "camera": "full", "description": description })).await;
    assert_eq!(viewer.hears().await["code"], "full");
    device.hears_request().await;
    let before = std_now();
    viewer.loses_its_network();
    assert!(matches!(device.hears().await, Heard::Left));
    assert!(std_now() - before < LinkSettings::default().resume_within);
}

#[tokio::test]
async fn one_household_has_a_share_of_those_that_are_waited_for() {
    let mut device = Door::open().await;
    let mut lost = 0;
    let (one, other) = (("192.0.2.1", true), ("192.0.2.2", true));
    let callers = [one; 8].into_iter().chain([("192.0.2.1", false), other, other]);
    for (from, is_waited_for) in callers {
        let mut viewer = Viewer::comes_with(&device, &[(COMES_FROM, from)]).await.unwrap();
        viewer.introduces_itself(None).await;
        viewer.offers("tile-1").await;
        device.hears_request().await; // and not that the one before has left
        viewer.loses_its_network();
        lost += 1;
        while device.counters.sockets_closed.get() < lost {
            tokio::task::yield_now().await;
        }
        if !is_waited_for {
            assert!(matches!(device.hears().await, Heard::Left));
        }
    }
}

#[tokio::test]
async fn a_session_lives_from_offer_to_bye() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    let answered = viewer.offers("tile-1").await;
    let wanted = json!({
        "v": 1, "id": "o", "type": "answer", "session": "tile-1",
        "description": { "type": "answer", "sdp": answer("srvA") },
    });
    assert_eq!(answered, wanted);
    let request = device.hears_request().await;
    assert!(matches!(&request.signal, Signal::Offer { camera, .. } if camera.as_str() == "front"));

    let line = "candidate:1 1 udp 1 f3a1b2.local 50000 typ host";
    let candidate = json!({ "candidate": line, "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "abcd" });
    viewer.says(json!({ "v": 1, "type": "candidate", "session": "tile-1", "candidate": candidate })).await;
    let heard = device.hears_request().await;
    assert_eq!((&heard.from, &heard.signal), (&request.from, &Signal::Candidate { line: line.into() }));

    let restart = json!({ "type": "offer", "sdp": "v=0\r\n" });
    viewer.says(json!({ "v": 1, "id": "r", "type": "restart", "session": "tile-1", "description": restart })).await;
    assert_eq!(viewer.hears().await["description"]["sdp"], answer("srvB"));
    assert!(matches!(device.hears_request().await.signal, Signal::Restart { .. }));

    device.say(&request.from, Reply::Notice(Notice::CameraLost { reason: "unplugged".into() })).unwrap();
    assert_eq!(viewer.hears().await["state"], "camera-lost");
    viewer.says(json!({ "v": 1, "type": "bye", "session": "tile-1" })).await;
    assert_eq!(viewer.hears().await["reason"], "viewer-left");
}

#[tokio::test]
async fn sessions_of_one_socket_are_told_apart_and_end_with_it() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.offers("tile-1").await;
    viewer.offers("tile-2").await;
    let (one, two) = (device.hears_request().await.from, device.hears_request().await.from);
    assert_eq!(one.client, two.client);
    assert_eq!((one.session.as_str(), two.session.as_str()), ("tile-1", "tile-2"));

    drop(viewer);
    assert!(matches!(device.hears().await, Heard::Left));
    assert!(device.sessions().is_empty());
}

#[tokio::test]
async fn a_page_of_ten_lines_needs_no_envelope() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.says(json!({ "type": "offer", "sdp": offer() })).await;
    let answered = viewer.hears().await;
    assert_eq!((&answered["type"], &answered["sdp"]), (&json!("answer"), &json!(answer("srvA"))));
    let request = device.hears_request().await;
    assert!(matches!(&request.signal, Signal::Offer { camera, .. } if camera.as_str() == "front"), "the first camera");

    viewer.says(json!({ "candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0 })).await;
    let heard = device.hears_request().await;
    assert_eq!((heard.from, heard.signal), (request.from, Signal::Candidate { line: "candidate:1".into() }));

    // Whoever spoke so once may still speak otherwise, and is answered as it spoke.
    let answered = viewer.offers("whole").await;
    assert_eq!(answered["description"]["sdp"], answer("srvA"), "{answered}");
}

#[tokio::test]
async fn the_camera_named_in_hello_is_the_one_that_is_meant() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.says(json!({ "v": 1, "type": "hello", "camera": "full" })).await;
    viewer.hears().await;
    viewer.says(json!({ "type": "offer", "sdp": offer() })).await;
    let refused = viewer.hears().await;
    assert_eq!((&refused["code"], &refused["retry_after_ms"]), (&json!("full"), &json!(9500)));
    assert!(matches!(device.hears_request().await.signal, Signal::Offer { camera, .. } if camera.as_str() == "full"));
}

#[tokio::test]
async fn bad_messages_get_their_clear_error_and_disturb_nothing() {
    let device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.offers("tile-1").await;
    let long = format!(r#"{{"v":1,"type":"ping","x":"{}"}}"#, "x".repeat(70_000));
    let table = [
        (Message::text("{"), "not-json"),
        (Message::binary(vec![0, 159, 146, 150]), "not-json"),
        (Message::text(long), "too-long"),
        (Message::text(r#"{"v":9,"type":"ping"}"#), "unknown-version"),
        (Message::text(r#"{"v":1,"type":"dance"}"#), "unknown-type"),
        (Message::text(r#"{"v":1,"type":"bye","session":5}"#), "bad-field"),
    ];
    let count = table.len() as u64;
    for (message, code) in table {
        viewer.0.send(message).await.unwrap();
        let error = viewer.hears().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)));
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(device.counters.messages_refused.get(), count);
    viewer.says(json!({ "v": 1, "id": "p", "type": "ping" })).await;
    assert_eq!(viewer.hears().await, json!({ "v": 1, "id": "p", "type": "pong" }));
    assert_eq!(device.sessions().len(), 1);
}

#[tokio::test]
async fn a_message_of_a_megabyte_ends_the_conversation() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    let _ = viewer.0.send(Message::text("x".repeat(1 << 20))).await;
    assert!(matches!(device.hears().await, Heard::Left));
    while viewer.0.next().await.is_some_and(|message| message.is_ok()) {}
}

#[tokio::test]
async fn who_sends_too_fast_is_told_and_shown_out() {
    let links = LinkSettings { message_burst: 5, messages_per_s: 1, ..LinkSettings::default() };
    let device = Door::with(Plan { links, ..Plan::default() }).await;
    let mut viewer = Viewer::comes(&device).await;
    for _ in 0..20 {
        viewer.says(json!({ "v": 1, "type": "ping" })).await;
    }
    let mut pongs = 0;
    let last = loop {
        let message = viewer.hears().await;
        if message["type"] != "pong" {
            break message;
        }
        pongs += 1;
    };
    // And one more for each second that a busy machine takes.
    assert!((5..20).contains(&pongs), "{pongs} pongs");
    assert_eq!(last["code"], "rate-limited");
    assert_eq!(viewer.is_closed_with().await, Some((1008, "rate-limited".into())));
}

#[tokio::test]
async fn where_a_token_is_needed_nothing_is_said_before_it() {
    let mut device = Door::locked().await;
    for early in [
        json!({ "v": 1, "id": "x", "type": "hello" }),
        json!({ "v": 1, "id": "x", "type": "ping" }),
        json!({ "v": 1, "id": "x", "type": "bye", "session": "s" }),
        json!({ "type": "offer", "sdp": offer(), "id": "x" }),
    ] {
        let mut viewer = Viewer::comes(&device).await;
        viewer.says(early).await;
        let error = viewer.hears().await;
        assert_eq!((&error["code"], &error["id"]), (&json!("token-needed"), &json!("x")));
        assert!(!error.to_string().contains("front"), "no camera's name before the token");
        assert_eq!(viewer.is_closed_with().await, Some((1008, "token-needed".into())));
        assert!(matches!(device.hears().await, Heard::Left));
    }
}

#[tokio::test]
async fn a_token_opens_its_camera_and_no_other() {
    let mut device = Door::locked().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.says(json!({ "v": 1, "type": "hello", "token": token(Some("front")) })).await;
    assert_eq!(viewer.hears().await["cameras"], json!(["front"]));
    let description = json!({ "type": "offer", "sdp": offer() });
    viewer.says(json!({ "v": 1, "type": "offer", "session": "s", "camera": "full", "description": description })).await;
    let error = viewer.hears().await;
    assert_eq!((&error["code"], &error["session"]), (&json!("not-allowed"), &json!("s")));
    assert!(device.has_heard_nothing());
    assert_eq!(viewer.offers("s").await["type"], "answer");
}

#[tokio::test]
async fn a_bad_token_is_told_and_shown_out() {
    let device = Door::locked().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.says(json!({ "v": 1, "id": "h", "type": "hello", "token": "abc" })).await;
    let error = viewer.hears().await;
    assert_eq!((&error["code"], &error["id"]), (&json!("token-invalid"), &json!("h")));
    assert_eq!(viewer.is_closed_with().await, Some((1008, "token-invalid".into())));
    assert_eq!(device.counters.denied.get(), 1);
}

#[tokio::test]
async fn a_token_may_come_as_a_subprotocol() {
    let device = Door::locked().await;
    let protocols = format!("edgecam, bearer.{}", token(None));
    let mut viewer = Viewer::comes_with(&device, &[("Sec-WebSocket-Protocol", &protocols)]).await.unwrap();
    viewer.says(json!({ "type": "offer", "sdp": offer() })).await;
    assert_eq!(viewer.hears().await["type"], "answer");

    let mut stranger =
        Viewer::comes_with(&device, &[("Sec-WebSocket-Protocol", "edgecam, bearer.a.b.c")]).await.unwrap();
    assert_eq!(stranger.hears().await["code"], "token-invalid");
}

#[tokio::test(start_paused = true)]
async fn who_brings_no_token_in_time_is_shown_out() {
    let device = Door::with(Plan { rule: Rule::Key(key()), ..Plan::default() }).await;
    let mut viewer = Viewer::comes(&device).await;
    let before = tokio::time::Instant::from_std(std_now());
    assert_eq!(viewer.hears().await["code"], "token-needed");
    assert!(tokio::time::Instant::from_std(std_now()) - before >= Duration::from_secs(5));
}

#[expect(clippy::disallowed_methods, reason = "the runtime's clock, which these tests turn")]
fn std_now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// A client that is there but answers no ping: its reads are never polled.
#[tokio::test(start_paused = true)]
async fn a_socket_that_fell_silent_is_closed_and_its_sessions_end() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.offers("tile-1").await;
    device.hears_request().await;
    let before = std_now();
    assert!(matches!(device.hears().await, Heard::Left));
    assert!(std_now() - before >= Duration::from_secs(40));
    assert_eq!(viewer.is_closed_with().await, Some((1001, "idle".into())));
}

#[tokio::test]
async fn a_viewer_who_leaves_its_messages_unread_is_found_out_by_a_full_outbox() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.offers("tile-1").await;
    let from = device.hears_request().await.from;
    // Without a turn of the runtime in between, nothing is taken out: 64 fit, one more does not.
    let notice = || Reply::Notice(Notice::CameraBack);
    let fitted = (0..100).take_while(|_| device.say(&from, notice()).is_ok()).count();
    assert_eq!(fitted, 64);
}

#[tokio::test]
async fn a_foreign_page_may_not_call_where_no_token_is_needed() {
    let device = Door::open().await;
    let own = format!("http://{}", device.address);
    for (origin, may) in [
        (own.as_str(), true),
        ("https://panel.example.org", true),
        ("https://evil.example", false),
        ("http://127.0.0.1:1", false),
        ("null", false),
    ] {
        let outcome = Viewer::comes_with(&device, &[("Origin", origin)]).await;
        match outcome {
            Ok(_) => assert!(may, "{origin}"),
            Err(Error::Http(response)) => {
                assert!(!may, "{origin}");
                assert_eq!(response.status(), 403);
            }
            Err(error) => panic!("{error}"),
        }
    }
    let rebound = Viewer::comes_with(&device, &[("Host", "evil.example"), ("Origin", "http://evil.example")]).await;
    assert!(matches!(rebound, Err(Error::Http(response)) if response.status() == 403));
}

#[tokio::test]
async fn when_the_device_stops_every_session_hears_it_before_the_socket_closes() {
    let mut device = Door::open().await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.offers("tile-1").await;
    device.hears_request().await;
    device.stopping.cancel();
    device.say_bye_to_all();
    let bye = viewer.hears().await;
    assert_eq!((&bye["type"], &bye["reason"]), (&json!("bye"), &json!(CloseReason::Shutdown.slug())));
    assert_eq!(viewer.is_closed_with().await, Some((1001, "shutting-down".into())));
    drop(viewer);
    device.tasks.close();
    device.tasks.wait().await;
    assert_eq!(device.counters.connections.get(), 0);
}

#[tokio::test]
async fn an_engine_that_does_not_answer_leaves_the_socket_alive() {
    let device = Door::with(Plan { script: silent, ..Plan::default() }).await;
    let mut viewer = Viewer::comes(&device).await;
    viewer.says(json!({ "v": 1, "type": "bye", "session": "s" })).await;
    viewer.says(json!({ "v": 1, "type": "ping" })).await;
    assert_eq!(viewer.hears().await["type"], "pong");
}
