//! Stills, who watches, and the privacy switch over HTTP.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain has failed")]

#[path = "support/door.rs"]
mod door;

use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use door::{Answer, Door, Heard, Plan, key, token, token_to};
use edgecam::core::camera::Switch;
use edgecam::core::signal::CameraId;
use edgecam::core::trigger::{Event, Happening};
use edgecam::signaling::MakeJpeg;
use edgecam::signaling::access::Rule;
use edgecam::signaling::token::Permission;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn front() -> CameraId {
    CameraId::new("front").unwrap()
}

#[tokio::test]
async fn a_still_is_a_jpeg_of_the_next_keyframe_that_nobody_keeps() {
    let mut device = Door::open().await;
    let mut events = device.events.subscribe();
    let still = device.call("GET", "/api/cameras/front/still.jpg", &[], "").await;
    assert_eq!((still.status, still.body.as_str()), (200, "a jpeg of a keyframe"));
    assert_eq!(still.header("content-type"), Some("image/jpeg"));
    assert_eq!(still.header("cache-control"), Some("no-store"));
    assert!(matches!(device.hears().await, Heard::Still(camera) if camera == front()));
    let taken = Event { camera: front(), trigger: None, happening: Happening::StillTaken };
    assert_eq!(events.try_recv(), Ok(taken));
}

#[tokio::test]
async fn who_watches_and_how_it_fares_is_told_to_those_who_may_control() {
    let device = Door::open().await;
    let told = device.call("GET", "/api/cameras/front/sessions", &[], "").await;
    assert_eq!((told.status, told.header("cache-control")), (200, Some("no-store")));
    let session = &told.json()["sessions"][0];
    assert_eq!(
        (&session["session"], &session["link"], &session["rendition"]),
        (&7.into(), &"websocket".into(), &"low".into())
    );
    assert_eq!(session["path"]["remote"], "198.51.100.7:50000");
    assert_eq!(device.call("GET", "/api/cameras/attic/sessions", &[], "").await.status, 404);

    let closed = Door::with(Plan { rule: Rule::Key(key()), ..Plan::default() }).await;
    for (permission, status) in [(Permission::View, 403), (Permission::Control, 200)] {
        let bearer = format!("Bearer {}", token_to(permission, Some("front")));
        let told = closed.call("GET", "/api/cameras/front/sessions", &[("Authorization", &bearer)], "").await;
        assert_eq!(told.status, status, "{permission:?}");
    }
}

#[tokio::test]
async fn who_gets_no_still_is_told_why() {
    let broken = Plan { make_jpeg: Arc::new(|_| Err("no H.264 decoder".into())), ..Plan::default() };
    let device = Door::with(broken).await;
    let mut events = device.events.subscribe();
    let refused = device.call("GET", "/api/cameras/full/still.jpg", &[], "").await;
    assert_eq!((refused.status, refused.code().as_str(), refused.header("retry-after")), (503, "busy", Some("1")));
    let absent = device.call("GET", "/api/cameras/attic/still.jpg", &[], "").await;
    assert_eq!((absent.status, absent.code().as_str()), (404, "no-such-camera"));
    let failed = device.call("GET", "/api/cameras/front/still.jpg", &[], "").await;
    assert_eq!((failed.status, failed.code().as_str()), (500, "no-still"));
    assert_eq!(failed.json()["detail"], "no H.264 decoder");
    assert!(events.try_recv().is_err(), "no still was taken");
}

/// A decoder that takes as long as a test wants it to.
#[derive(Default)]
struct Decoder {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    begun: usize,
    running: usize,
    most_at_once: usize,
    may_end: bool,
}

impl Decoder {
    fn make_jpeg(self: &Arc<Self>) -> MakeJpeg {
        let decoder = Arc::clone(self);
        Arc::new(move |_| {
            let mut work = decoder.work.lock().unwrap();
            work.begun += 1;
            work.running += 1;
            work.most_at_once = work.most_at_once.max(work.running);
            decoder.changed.notify_all();
            let mut work = decoder.changed.wait_while(work, |work| !work.may_end).unwrap();
            work.running -= 1;
            Ok(Bytes::from_static(b"a jpeg"))
        })
    }

    fn may_end(&self) {
        self.work.lock().unwrap().may_end = true;
        self.changed.notify_all();
    }

    /// Stills that were begun, and how many at most at one time.
    fn figures(&self) -> (usize, usize) {
        let work = self.work.lock().unwrap();
        (work.begun, work.most_at_once)
    }
}

/// Asks for a still, and does not wait for it.
async fn ask_still(device: &mut Door) -> TcpStream {
    let mut client = TcpStream::connect(device.address).await.unwrap();
    let host = device.address;
    let request = format!("GET /api/cameras/front/still.jpg HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    assert!(matches!(device.hears().await, Heard::Still(_)));
    client
}

#[tokio::test]
async fn stills_are_made_one_at_a_time_and_those_who_hang_up_make_room() {
    let decoder = Arc::new(Decoder::default());
    let mut device = Door::with(Plan { make_jpeg: decoder.make_jpeg(), ..Plan::default() }).await;
    let at_rest = device.tasks.len();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(ask_still(&mut device).await);
    }
    for _ in 0..20 {
        let refused = Answer::read(&mut ask_still(&mut device).await).await;
        assert_eq!((refused.status, refused.code().as_str(), refused.header("retry-after")), (503, "busy", Some("1")));
    }
    drop(waiting);
    // The picture that is being made is made; nothing else is left of those who hung up.
    while device.tasks.len() > at_rest + 1 {
        tokio::task::yield_now().await;
    }
    let mut client = ask_still(&mut device).await;
    decoder.may_end();
    assert_eq!(Answer::read(&mut client).await.body, "a jpeg");
    assert_eq!(decoder.figures(), (2, 1));
}

#[tokio::test]
async fn a_still_that_is_being_made_when_the_switch_goes_off_does_not_leave() {
    let decoder = Arc::new(Decoder::default());
    let mut device = Door::with(Plan { make_jpeg: decoder.make_jpeg(), ..Plan::default() }).await;
    let mut clients = [ask_still(&mut device).await, ask_still(&mut device).await];
    while decoder.figures().0 == 0 {
        tokio::task::yield_now().await;
    }
    // Nothing has been written down yet, so the board says "on".
    let put = format!("PUT /api/cameras/front/enabled HTTP/1.1\r\nHost: {}\r\n", device.address);
    let put = format!("{put}Content-Type: application/json\r\nContent-Length: 5\r\n\r\nfalse");
    let mut owner = TcpStream::connect(device.address).await.unwrap();
    owner.write_all(put.as_bytes()).await.unwrap();
    assert!(matches!(device.hears().await, Heard::Switch(_, false)));
    assert!(device.switches[0].borrow().on);
    decoder.may_end();
    for client in &mut clients {
        let refused = Answer::read(client).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "disabled"));
    }
    assert_eq!(decoder.figures().0, 1, "who waits for the decoder does not wait any more");
}

/// Switches, and plays the part of whoever writes it down.
async fn put(device: &mut Door, body: &str, kept: Switch) -> Answer {
    let board = device.switches[0].clone();
    let (answer, ()) = tokio::join!(device.call("PUT", "/api/cameras/front/enabled", &[JSON], body), async {
        tokio::task::yield_now().await;
        board.send_replace(kept);
    });
    answer
}

#[tokio::test]
async fn the_switch_is_answered_with_whether_it_is_kept() {
    let mut device = Door::open().await;
    let off = put(&mut device, " false\n", Switch { on: false, unkept: None }).await;
    assert_eq!((off.status, &off.json()["enabled"], &off.json()["unkept"]), (200, &false.into(), &().into()));
    assert!(matches!(device.hears().await, Heard::Switch(camera, false) if camera == front()));
    let listed = device.call("GET", "/api/cameras", &[], "").await.json();
    assert_eq!((&listed["cameras"][0]["enabled"], &listed["cameras"][1]["enabled"]), (&false.into(), &true.into()));

    let on = put(&mut device, "true", Switch { on: true, unkept: Some("the disk is full".into()) }).await;
    assert_eq!((&on.json()["enabled"], &on.json()["unkept"]), (&true.into(), &"the disk is full".into()));
    let listed = device.call("GET", "/api/cameras", &[], "").await.json();
    assert_eq!(listed["cameras"][0]["unkept"], "the disk is full");
}

#[tokio::test]
async fn what_is_neither_true_nor_false_switches_nothing() {
    let mut device = Door::open().await;
    let put = async |headers, body: &str| {
        let answer = device.call("PUT", "/api/cameras/front/enabled", headers, body).await;
        (answer.status, answer.code())
    };
    for body in ["", "off", "\"false\"", "{\"enabled\":false}", "0"] {
        assert_eq!(put(&[JSON], body).await, (422, "bad-field".into()), "{body:?}");
    }
    assert_eq!(put(&[JSON], &"x".repeat(70_000)).await, (413, "too-long".into()));
    // A form of a foreign page could be sent without asking us first, if another type would do.
    assert_eq!(put(&[("Content-Type", "text/plain")], "false").await, (415, "wrong-type".into()));
    assert!(device.has_heard_nothing());
}

#[tokio::test]
async fn a_token_to_view_takes_stills_and_one_to_control_switches() {
    let mut device = Door::with(Plan { rule: Rule::Key(key()), ..Plan::default() }).await;
    let bearer = |token: String| format!("Bearer {token}");
    let view = bearer(token(Some("front")));
    let control = bearer(token_to(Permission::Control, Some("front")));
    let elsewhere = bearer(token_to(Permission::Control, Some("full")));
    let still = async |token: &str| {
        device.call("GET", "/api/cameras/front/still.jpg", &[("Authorization", token)], "").await.status
    };
    assert_eq!((still(&view).await, still(&control).await), (200, 403));
    let switch = async |token: &str| {
        let headers = [JSON, ("Authorization", token)];
        device.call("PUT", "/api/cameras/front/enabled", &headers, "true").await.status
    };
    assert_eq!((switch(&control).await, switch(&view).await, switch(&elsewhere).await), (200, 403, 403));
    assert!(matches!(device.hears().await, Heard::Still(_)));
    assert!(matches!(device.hears().await, Heard::Switch(_, true)));
    assert!(device.has_heard_nothing());
}
