//! The listener against clients that are slow, greedy or many.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain has failed")]

#[path = "support/door.rs"]
mod door;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use door::{Answer, Door, Plan};
use edgecam::core::counters::LinkCounters;
use edgecam::http::{self, HttpSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[tokio::test(start_paused = true)]
async fn a_header_that_never_ends_is_cut_off() {
    let device = Door::open().await;
    let mut stream = TcpStream::connect(device.address).await.unwrap();
    stream.write_all(b"GET /api/cameras HTTP/1.1\r\nHost: loc").await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(!String::from_utf8(rest).unwrap().contains("200 OK"));
    assert_eq!(device.counters.connections_cut.get(), 1);
    assert_eq!(device.counters.connections.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_nothing_more_to_ask_is_closed() {
    let device = Door::open().await;
    let mut stream = TcpStream::connect(device.address).await.unwrap();
    stream.write_all(b"GET /api/cameras HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let answer = Answer::read(&mut stream).await;
    assert_eq!(answer.status, 200);
    assert_eq!(device.counters.connections.get(), 0);
}

#[tokio::test]
async fn who_comes_when_all_places_are_taken_is_told_so_at_once() {
    let http = HttpSettings { max_connections: 2, ..HttpSettings::default() };
    let device = Door::with(Plan { http, ..Plan::default() }).await;
    let _first = TcpStream::connect(device.address).await.unwrap();
    let _second = TcpStream::connect(device.address).await.unwrap();
    let mut third = TcpStream::connect(device.address).await.unwrap();
    let answer = Answer::read(&mut third).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    assert_eq!((device.counters.connections.get(), device.counters.connections_refused.get()), (2, 1));
}

#[tokio::test]
async fn a_place_is_free_again_when_its_connection_ends() {
    let http = HttpSettings { max_connections: 1, ..HttpSettings::default() };
    let device = Door::with(Plan { http, ..Plan::default() }).await;
    for _ in 0..20 {
        assert_eq!(device.call("GET", "/api/cameras", &[], "").await.status, 200);
        while device.counters.connections.get() > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(device.counters.connections_refused.get(), 0);
}

#[tokio::test]
async fn a_websocket_keeps_its_place() {
    let http = HttpSettings { max_connections: 1, ..HttpSettings::default() };
    let device = Door::with(Plan { http, ..Plan::default() }).await;
    let socket = tokio_tungstenite::connect_async(format!("ws://{}/ws", device.address)).await.unwrap();
    assert_eq!(device.counters.connections.get(), 1);
    let mut second = TcpStream::connect(device.address).await.unwrap();
    assert_eq!(Answer::read(&mut second).await.status, 503);
    drop(socket);
    while device.counters.connections.get() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(device.call("GET", "/api/cameras", &[], "").await.status, 200);
}

#[tokio::test]
async fn a_header_without_end_is_refused() {
    let device = Door::open().await;
    let endless = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert_eq!(device.request(&endless).await.status, 431);
    let many: String = (0..100).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(device.request(&format!("GET / HTTP/1.1\r\n{many}\r\n")).await.status, 431);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_of_its_answer_is_cut_off() {
    // More than the kernel's buffers hold.
    let big = Router::new().route("/", get(|| async { vec![b'x'; 64 << 20] }));
    let listener = http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (counters, tasks, stopping) = (Arc::<LinkCounters>::default(), TaskTracker::new(), CancellationToken::new());
    let serving =
        http::serve(listener, big, HttpSettings::default(), counters.clone(), tasks.clone(), stopping.clone());
    tasks.spawn(serving);
    let mut greedy = TcpStream::connect(address).await.unwrap();
    greedy.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    greedy.readable().await.unwrap();
    stopping.cancel();
    tasks.close();
    tasks.wait().await;
    assert_eq!((counters.connections_cut.get(), counters.connections.get()), (1, 0));
}

#[tokio::test]
async fn stopping_lets_the_answer_at_hand_be_given_and_takes_no_more() {
    let device = Door::open().await;
    let mut idle = TcpStream::connect(device.address).await.unwrap();
    idle.write_all(b"GET /api/cameras HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    device.stopping.cancel();
    assert!(Answer::read(&mut idle).await.body.contains("frontdoor"), "the rest of the answer, then the end");
    device.tasks.close();
    device.tasks.wait().await;
    assert!(TcpStream::connect(device.address).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_noticed_at_once_and_in_words() {
    let first = http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let error = http::bind(first.local_addr().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
}
