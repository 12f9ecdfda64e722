use std::time::Duration;

use rtc_stun::message::METHOD_REFRESH;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::gathering::tests::Server;
use super::message::frame_length;
use super::*;
use crate::core::server_url::ServerUrl;
use crate::core::transmit::Transport;

const PICTURE: [u8; 1200] = [0x80; 1200];
const VIEWER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7)), 50_000);

fn credentials() -> Credentials {
    Credentials { username: "north".to_owned(), password: "south".to_owned(), hold_for: None }
}

/// The camera's end and a server it reaches by TCP.
struct House {
    now: Instant,
    relay: Relay,
    newsroom: Newsroom,
    counters: Arc<RelayCounters>,
    server: Server,
    connection: TcpStream,
    unread: Vec<u8>,
}

impl House {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("turn:{}?transport=tcp", listener.local_addr().unwrap());
        let server = RelayServer { url: ServerUrl::parse(&url).unwrap(), mint: Some(Arc::new(credentials)) };
        let (counters, now) = (Arc::<RelayCounters>::default(), Instant::now());
        let (mut relay, newsroom, errands) =
            Relay::new(vec![server], Bitrate::from_kbps(2500), Arc::clone(&counters), now);
        let tasks = TaskTracker::new();
        tasks.spawn(errands.run(tasks.clone(), CancellationToken::new()));
        relay.handle_timeout(now);
        assert!(relay.poll_transmit().is_none());
        let (connection, _) = listener.accept().await.unwrap();
        let mut house = Self { now, relay, newsroom, counters, server: Server::new(), connection, unread: Vec::new() };
        while house.relayed().is_none() {
            house.exchange().await;
        }
        house
    }

    /// One thing happens at one of the two ends.
    async fn exchange(&mut self) {
        while self.relay.poll_transmit().is_some() {}
        tokio::select! {
            news = self.newsroom.next() => drop(self.relay.handle_news(&news.unwrap(), self.now)),
            read = self.connection.read_buf(&mut self.unread) => {
                assert!(read.unwrap() > 0, "the connection ended");
                self.serve().await;
            }
        }
    }

    /// Answers all that was read.
    async fn serve(&mut self) {
        while let Some(length) = frame_length(&self.unread).unwrap()
            && length <= self.unread.len()
        {
            let frame: Vec<u8> = self.unread.drain(..length).collect();
            if let Some(answer) = self.server.answer(1, &frame) {
                self.connection.write_all(&answer).await.unwrap();
            }
        }
    }

    fn relayed(&self) -> Option<SocketAddr> {
        self.relay.candidates(&[]).first().map(|candidate| candidate.address)
    }

    /// To the viewer; whether there was room.
    fn send(&mut self, data: &[u8]) -> bool {
        let from = self.relayed().unwrap();
        let dropped = self.counters.packets_dropped.get();
        let transmit = Transmit { from, to: VIEWER, transport: Transport::Udp, data: data.into() };
        assert!(self.relay.route(transmit, self.now).is_none());
        while self.relay.poll_transmit().is_some() {}
        self.counters.packets_dropped.get() == dropped
    }
}

/// The server takes nothing for a while, and so much waits for it that pictures are dropped.
#[tokio::test]
async fn an_allocation_outlives_its_own_pictures_on_a_connection_that_stands_still() {
    let mut house = House::open().await;
    let mut pictures = 0;
    while pictures == 0 {
        pictures += usize::from(house.send(&PICTURE));
        house.exchange().await;
    }
    // The connection's task must see its turn, and the kernel's buffers fill first.
    for _ in 0..20 {
        while house.send(&PICTURE) {
            pictures += 1;
        }
        sleep(Duration::from_millis(10)).await;
    }
    while house.send(&PICTURE) {
        pictures += 1;
    }
    assert!(house.send(&[0; 100]), "a check fits where no picture does");
    let refreshes = house.server.count(METHOD_REFRESH);
    house.now += Duration::from_secs(16);
    house.relay.handle_timeout(house.now);
    while house.server.count(METHOD_REFRESH) == refreshes {
        timeout(Duration::from_secs(10), house.exchange()).await.expect("a refresh comes");
    }
    let behind = pictures - house.server.data.len();
    assert!(behind > 80, "{behind} of {pictures} pictures were overtaken");
    // It had to wait for the server all the same.
    house.now += Duration::from_secs(6);
    house.relay.handle_timeout(house.now);
    assert!(house.relayed().is_some(), "one late answer is not the end");
}
