//! WHEP as real players speak it, and as those who mean harm would.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain has failed")]

#[path = "support/door.rs"]
mod door;

use std::time::Duration;

use door::{Answer, Door, PWD, Plan, UFRAG, offer, silent, stream, token};
use edgecam::core::camera::{CameraState, CameraStatus, LowState};
use edgecam::core::figures::Quality;
use edgecam::core::signal::{CloseReason, Reply, Signal};
use edgecam::signaling::LinkSettings;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const SDP: (&str, &str) = ("Content-Type", "application/sdp");
const FRAGMENT: (&str, &str) = ("Content-Type", "application/trickle-ice-sdpfrag");
const CANDIDATE: &str = "candidate:1 1 udp 2113937151 192.0.2.7 50000 typ host";

async fn post(device: &Door) -> Answer {
    device.call("POST", "/whep/front", &[SDP], &offer()).await
}

/// Opens a session and gives its URL.
async fn opened(device: &mut Door) -> String {
    let answer = post(device).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    device.hears_request().await;
    answer.header("location").unwrap().to_owned()
}

fn fragment(ufrag: &str, candidates: &[&str]) -> String {
    let candidates: String = candidates.iter().map(|line| format!("a={line}\r\n")).collect();
    format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:{PWD}\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:0\r\n{candidates}")
}

#[tokio::test]
async fn an_offer_is_answered_with_all_that_the_draft_asks_for() {
    let device = Door::open().await;
    let answer = post(&device).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("content-type"), Some("application/sdp"));
    assert_eq!(answer.header("etag"), Some("\"1\""));
    assert_eq!(answer.header("accept-patch"), Some("application/trickle-ice-sdpfrag"));
    assert!(answer.body.contains("a=sendonly"));
    let location = answer.header("location").unwrap();
    let name = location.strip_prefix("/whep/front/").unwrap();
    assert_eq!(name.len(), 32, "128 bits: {name}");
    let links = answer.all("link");
    assert_eq!(
        links,
        [
            r#"<stun:stun.example.org>; rel="ice-server""#,
            r#"<turn:turn.example.org:3478>; rel="ice-server"; username="u"; credential="p"; credential-type="password""#,
        ]
    );
}

#[tokio::test]
async fn two_sessions_never_have_the_same_url() {
    let mut device = Door::open().await;
    assert_ne!(opened(&mut device).await, opened(&mut device).await);
}

#[tokio::test]
async fn mediamtx_reader_plays() {
    let mut device = Door::open().await;
    // It asks for ICE servers first, and takes every link for one.
    let options = device.call("OPTIONS", "/whep/front", &[], "").await;
    assert_eq!(options.status, 200);
    assert_eq!(options.header("accept-post"), Some("application/sdp"));
    assert_eq!(options.all("link").len(), 2);
    assert!(options.all("link").iter().all(|link| link.contains(r#"rel="ice-server""#)));

    let url = opened(&mut device).await;
    // It sends `If-Match: *` with plain candidates, repeats the credentials of the offer, and takes nothing but 204.
    let headers = [FRAGMENT, ("If-Match", "*")];
    let patched = device.call("PATCH", &url, &headers, &fragment(UFRAG, &[CANDIDATE, CANDIDATE])).await;
    assert_eq!(patched.status, 204);
    assert_eq!(patched.header("etag"), None);
    for _ in 0..2 {
        assert_eq!(device.hears_request().await.signal, Signal::Candidate { line: CANDIDATE.into() });
    }

    assert_eq!(device.call("DELETE", &url, &[], "").await.status, 200);
    assert_eq!(device.hears_request().await.signal, Signal::Bye);
    assert_eq!(device.call("DELETE", &url, &[], "").await.status, 404);
}

#[tokio::test]
async fn eyevinn_adapter_plays() {
    let mut device = Door::open().await;
    // Its offer is complete; it joins the location to the host only when that begins with a slash.
    let url = opened(&mut device).await;
    assert!(url.starts_with('/'));
    // 400 would make it wait for an offer of ours, which then fails with an empty body.
    let bad = device.call("POST", "/whep/front", &[SDP], "m=video").await;
    assert_eq!((bad.status, bad.code().as_str()), (422, "bad-offer"));
    let empty = device.call("POST", "/whep/front", &[SDP], "").await;
    assert_eq!((empty.status, empty.code().as_str()), (422, "bad-offer"));
    // 406 makes it try again without audio; the body is no offer, so it must not look like one.
    let no_video = offer().replace("m=video", "m=audio");
    let refused = device.call("POST", "/whep/front", &[SDP], &no_video).await;
    assert_eq!((refused.status, refused.code().as_str()), (406, "no-common-codec"));
    assert_eq!(refused.header("location"), None);
    assert_eq!(device.call("DELETE", &url, &[], "").await.status, 200);
}

#[tokio::test]
async fn whep_js_of_medooze_plays_and_restarts() {
    let mut device = Door::locked().await;
    let bearer = format!("Bearer {}", token(None));
    let auth = ("Authorization", bearer.as_str());
    let answer = device.call("POST", "/whep/front", &[SDP, auth], &offer()).await;
    assert_eq!(answer.status, 201);
    let url = answer.header("location").unwrap();
    device.hears_request().await;

    // It sends no If-Match at all, a media line of its own making, and ends with end-of-candidates.
    let trickle = format!(
        "a=ice-ufrag:{UFRAG}\r\na=ice-pwd:{PWD}\r\nm=video RTP/AVP 0\r\na=mid:0\r\na={CANDIDATE}\r\na=end-of-candidates\r\n"
    );
    assert_eq!(device.call("PATCH", url, &[FRAGMENT, auth], &trickle).await.status, 204);
    assert_eq!(device.hears_request().await.signal, Signal::Candidate { line: CANDIDATE.into() });
    assert_eq!(device.hears_request().await.signal, Signal::Candidate { line: String::new() });

    // A restart has new credentials and nothing else; it takes ours out of the answer by a pattern that wants CRLF.
    let restart = format!("a=ice-ufrag:newU\r\na=ice-pwd:{PWD}\r\n");
    let restarted = device.call("PATCH", url, &[FRAGMENT, auth], &restart).await;
    assert_eq!(restarted.status, 200);
    assert_eq!(restarted.header("content-type"), Some("application/trickle-ice-sdpfrag"));
    assert_eq!(restarted.header("etag"), Some("\"2\""));
    assert!(
        restarted.body.starts_with(&format!("a=ice-ufrag:srvB\r\na=ice-pwd:{PWD}\r\nm=video ")),
        "{}",
        restarted.body
    );
    let Signal::Restart { sdp } = device.hears_request().await.signal else { panic!("not a restart") };
    assert_eq!(sdp, offer().replace(UFRAG, "newU").replace("4611 2", "4611 3"));

    let ended = device.call("DELETE", url, &[auth], "").await;
    assert_eq!(ended.status, 200);
}

#[tokio::test]
async fn whepclientsrc_of_gstreamer_plays() {
    let mut device = Door::open().await;
    // All candidates are in its offer; it wants Location, and sends DELETE without a body at the end.
    let complete = format!("{}a={CANDIDATE}\r\na=end-of-candidates\r\n", offer());
    let answer = device.call("POST", "/whep/front", &[SDP], &complete).await;
    assert_eq!(answer.status, 201);
    let Signal::Offer { sdp, camera, .. } = device.hears_request().await.signal else { panic!("not an offer") };
    assert_eq!((sdp, camera.as_str()), (complete, "front"));
    let url = answer.header("location").unwrap();
    let end = format!("DELETE {url} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", device.address);
    assert_eq!(device.request(&end).await.status, 200);
}

#[tokio::test]
async fn a_player_says_in_the_url_which_quality_it_wants() {
    let mut device = Door::open().await;
    for (query, wanted) in [
        ("", Quality::Auto),
        ("?quality=low", Quality::Low),
        ("?autoplay&quality=high&quality=low", Quality::High),
        ("?qualities=low", Quality::Auto),
    ] {
        let answer = device.call("POST", &format!("/whep/front{query}"), &[SDP], &offer()).await;
        assert_eq!(answer.status, 201, "{query}");
        let Signal::Offer { quality, .. } = device.hears_request().await.signal else { panic!("not an offer") };
        assert_eq!(quality, wanted, "{query}");
    }
    for query in ["?quality=best", "?quality=", "?quality=LOW", "?quality=%6cow"] {
        let refused = device.call("POST", &format!("/whep/front{query}"), &[SDP], &offer()).await;
        assert_eq!((refused.status, refused.code().as_str()), (422, "bad-field"), "{query}");
        assert!(refused.json()["detail"].as_str().unwrap().contains("auto, high or low"));
    }
}

#[tokio::test]
async fn the_tag_tells_who_has_missed_a_restart() {
    let mut device = Door::open().await;
    let url = opened(&mut device).await;
    let patch = async |tag: &str, ufrag: &str| {
        device.call("PATCH", &url, &[FRAGMENT, ("If-Match", tag)], &fragment(ufrag, &[CANDIDATE])).await.status
    };
    assert_eq!(patch("\"1\"", UFRAG).await, 204);
    assert_eq!(patch("\"2\"", UFRAG).await, 412);
    assert_eq!(patch("\"1\"", "newU").await, 200);
    assert_eq!(patch("\"1\"", UFRAG).await, 412, "a late candidate must not turn the restart back");
    assert_eq!(patch("\"2\"", "newU").await, 204);
    assert_eq!(device.call("GET", &url, &[], "").await.header("etag"), Some("\"2\""));
}

#[tokio::test]
async fn a_session_url_ends_with_its_session() {
    let mut device = Door::open().await;
    let url = opened(&mut device).await;
    assert_eq!(device.counters.whep_sessions.get(), 1);
    let address = device.sessions().pop().unwrap();
    device.say(&address, Reply::Bye(CloseReason::Lost)).unwrap();
    while device.counters.whep_sessions.get() > 0 {
        tokio::task::yield_now().await;
    }
    let patched = device.call("PATCH", &url, &[FRAGMENT], &fragment(UFRAG, &[CANDIDATE])).await;
    assert_eq!((patched.status, patched.code().as_str()), (404, "no-such-session"));
    assert_eq!(device.call("GET", &url, &[], "").await.status, 404);
}

#[tokio::test]
async fn no_more_sessions_have_a_url_than_there_is_room_for() {
    let links = LinkSettings { max_whep_sessions: 2, ..LinkSettings::default() };
    let mut device = Door::with(Plan { links, ..Plan::default() }).await;
    let url = opened(&mut device).await;
    opened(&mut device).await;
    let third = post(&device).await;
    assert_eq!((third.status, third.code().as_str(), third.header("retry-after")), (503, "full", Some("10")));
    assert_eq!(device.call("DELETE", &url, &[], "").await.status, 200);
    assert_eq!(post(&device).await.status, 201);
}

#[tokio::test]
async fn a_full_house_says_when_to_come_back() {
    let device = Door::open().await;
    let answer = device.call("POST", "/whep/full", &[SDP], &offer()).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "full"));
    assert_eq!(answer.header("retry-after"), Some("10"), "rounded up");
}

#[tokio::test]
async fn get_and_head_describe_without_a_body() {
    let mut device = Door::open().await;
    let url = opened(&mut device).await;
    for method in ["GET", "HEAD"] {
        let endpoint = device.call(method, "/whep/front", &[], "").await;
        assert_eq!((endpoint.status, endpoint.body.as_str()), (200, ""));
        assert_eq!(endpoint.header("content-type"), Some("application/sdp"));
        assert_eq!(endpoint.header("link"), Some(r#"</front>; rel="alternate"; type="text/html""#));
        let session = device.call(method, &url, &[], "").await;
        assert_eq!((session.status, session.body.as_str()), (200, ""));
        assert_eq!(session.header("accept-patch"), Some("application/trickle-ice-sdpfrag"));
    }
}

#[tokio::test]
async fn bad_requests_get_their_clear_error() {
    let mut device = Door::open().await;
    let url = opened(&mut device).await;
    let big = format!("v=0\r\n{}", "a=x\r\n".repeat(200_000));
    let crowd = fragment(UFRAG, &[CANDIDATE; 65]);
    let long = fragment(UFRAG, &[&"candidate:x".repeat(100)]);
    let other = url.replace("/front/", "/full/");
    let no_h264 = offer().replace("H264", "VP8");
    let no_ice = offer().replace("ice-ufrag", "ice-nothing");
    let json = ("Content-Type", "application/json");
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);
    let table: [Row<'_>; 20] = [
        ("POST", "/whep/back", &[SDP], &offer(), 404, "no-such-camera"),
        ("POST", "/whep/a%20b", &[SDP], &offer(), 404, "no-such-camera"),
        ("GET", "/whep/back", &[], "", 404, "no-such-camera"),
        ("OPTIONS", "/whep/back", &[], "", 404, "no-such-camera"),
        ("POST", "/whep/front", &[json], &offer(), 415, "wrong-type"),
        ("POST", "/whep/front", &[], &offer(), 415, "wrong-type"),
        ("POST", "/whep/front", &[("Content-Type", "application/sdpx")], &offer(), 415, "wrong-type"),
        ("POST", "/whep/front", &[SDP], &big, 413, "too-long"),
        ("POST", "/whep/front", &[SDP], "hello", 422, "bad-offer"),
        ("POST", "/whep/front", &[SDP], &no_ice, 422, "bad-offer"),
        ("POST", "/whep/front", &[SDP], &no_h264, 406, "no-common-codec"),
        ("PATCH", &url, &[SDP], &offer(), 415, "wrong-type"),
        ("PATCH", &url, &[FRAGMENT], "", 400, "bad-fragment"),
        ("PATCH", &url, &[FRAGMENT], "a=ice-ufrag:abcd\r\n", 400, "bad-fragment"),
        ("PATCH", &url, &[FRAGMENT], &long, 400, "bad-fragment"),
        ("PATCH", &url, &[FRAGMENT], &crowd, 429, "too-many-candidates"),
        ("PATCH", &url, &[FRAGMENT], &big, 413, "too-long"),
        ("PATCH", &other, &[FRAGMENT], &fragment(UFRAG, &[CANDIDATE]), 404, "no-such-session"),
        ("DELETE", &other, &[], "", 404, "no-such-session"),
        ("DELETE", "/whep/front/0123456789abcdef0123456789abcdef", &[], "", 404, "no-such-session"),
    ];
    for (method, path, headers, body, status, code) in table {
        let answer = device.call(method, path, headers, body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path} {headers:?}");
    }
    for (method, path) in [("PUT", "/whep/front"), ("DELETE", "/whep/front"), ("POST", url.as_str())] {
        assert_eq!(device.call(method, path, &[SDP], "").await.status, 405, "{method} {path}");
    }
    assert_eq!(device.call("GET", &url, &[], "").await.status, 200, "the session has taken no harm");
}

#[tokio::test]
async fn a_binary_offer_is_refused() {
    let device = Door::open().await;
    let mut stream = TcpStream::connect(device.address).await.unwrap();
    let head = "POST /whep/front HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/sdp\r\nContent-Length: 4\r\nConnection: close\r\n\r\n";
    stream.write_all(&[head.as_bytes(), &[0xff, 0x00, 0xfe, 0x80]].concat()).await.unwrap();
    let answer = Answer::read(&mut stream).await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "bad-offer"));
}

#[tokio::test]
async fn a_media_type_may_have_parameters_and_any_case() {
    let device = Door::open().await;
    let given = ("Content-Type", "Application/SDP; charset=utf-8");
    assert_eq!(device.call("POST", "/whep/front", &[given], &offer()).await.status, 201);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_in_is_cut_off() {
    let device = Door::open().await;
    let mut stream = TcpStream::connect(device.address).await.unwrap();
    let head = "POST /whep/front HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/sdp\r\nContent-Length: 900\r\n\r\nv=0";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = Answer::read(&mut stream).await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "too-slow"));
    assert_eq!(device.counters.connections_cut.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_says_nothing_is_not_waited_for_for_ever() {
    let device = Door::with(Plan { script: silent, ..Plan::default() }).await;
    let answer = post(&device).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "no-answer"));
    assert_eq!(device.counters.whep_sessions.get(), 0);
    let address = device.sessions().pop().unwrap();
    let nobody = device.say(&address, Reply::Bye(CloseReason::ConnectTimeout));
    assert!(nobody.is_err(), "the engine can tell that nobody waits any more");
}

#[tokio::test]
async fn cameras_are_listed_with_what_they_are_doing() {
    let device = Door::open().await;
    let idle = device.call("GET", "/api/cameras", &[], "").await.json();
    assert_eq!(idle["device"], "frontdoor");
    assert_eq!(idle["cameras"][0]["id"], "front");
    assert_eq!(idle["cameras"][0]["state"], "idle");
    assert!(idle["cameras"][0]["width"].is_null() && idle["cameras"][0]["error"].is_null());

    let state = CameraState::BackingOff { error: "unplugged".into(), retry_in: Duration::from_secs(4) };
    device.cameras[0].send(CameraStatus { state, stream: Some(stream()), low: LowState::Closed }).unwrap();
    let failed = &device.call("GET", "/api/cameras", &[], "").await.json()["cameras"][0];
    assert_eq!((&failed["state"], &failed["error"]), (&"failed".into(), &"unplugged".into()));
    assert_eq!((failed["retry_in_ms"].as_u64(), failed["width"].as_u64()), (Some(4000), Some(1280)));
    assert_eq!(failed["encoder_reason"], "no hardware encoder found");
}

/// The manual and the program agree on the fields of the list.
#[tokio::test]
async fn the_list_of_cameras_is_the_one_in_the_manual() {
    let device = Door::open().await;
    let manual = include_str!("../docs/signaling.md");
    let example = manual.split("```json api").nth(1).unwrap().split("```").next().unwrap();
    let example: serde_json::Value = serde_json::from_str(example).unwrap();
    let ours = device.call("GET", "/api/cameras", &[], "").await.json();
    let fields = |json: &serde_json::Value| json["cameras"][0].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&ours), fields(&example));
}
