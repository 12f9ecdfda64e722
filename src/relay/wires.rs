//! What the loop must not wait for: looking names up, and connections to TURN servers over TCP, TLS, or a UDP socket of their own.
//! Each is a task between two bounded queues.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::sync::{OnceCell, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::gathering::{How, Reached, Ticket};
use super::message::frame_length;
use super::queue::Waiting;
use crate::core::server_url::{ServerTransport, ServerUrl};

/// For a name, and for each address and step of a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what is left to say when a connection is not needed any more.
const FAREWELL: Duration = Duration::from_millis(500);
/// Beyond what it is sending, the kernel takes no more than this from us: what waits there can neither be dropped nor
/// overtaken (tcp(7)).
const LEAST_UNSENT: u32 = 16 << 10;
/// Written at once, in bytes.
const WRITE: usize = 16 << 10;
const READ: usize = 64 << 10;

/// A name to look up, or a connection to make.
pub(super) struct Order {
    pub(super) ticket: Ticket,
    pub(super) url: ServerUrl,
    pub(super) how: How,
    /// What is to be written; the connection ends with it.
    pub(super) waiting: Waiting,
}

/// What becomes of orders.
#[derive(Debug)]
pub(super) enum Report {
    Reached(Ticket, Reached),
    /// A datagram, or one frame of a stream.
    Frame(Ticket, Bytes),
    Closed(Ticket, String),
}

/// Carries out orders until there can be no more, or `stopping`.
pub(super) async fn run(
    mut orders: mpsc::Receiver<Order>,
    reports: mpsc::Sender<Report>,
    tasks: TaskTracker,
    stopping: CancellationToken,
) {
    let tls = Arc::new(OnceCell::new());
    loop {
        let order = tokio::select! {
            () = stopping.cancelled() => return,
            order = orders.recv() => order,
        };
        let Some(order) = order else { return };
        let (reports, tls, stopping) = (reports.clone(), Arc::clone(&tls), stopping.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = carry_out(order, &reports, &tls) => {}
            }
        });
    }
}

type Tls = OnceCell<Arc<ClientConfig>>;

async fn carry_out(order: Order, reports: &mpsc::Sender<Report>, tls: &Tls) {
    let Order { ticket, url, how, waiting } = order;
    let outcome = match how {
        How::Resolve => resolve(&url).await.map(Reached::Addresses),
        How::Connect => match connect(&url, tls).await {
            Ok(wire) => {
                // Nobody listens any more when the house goes down.
                let _ = reports.send(Report::Reached(ticket, Reached::Connected)).await;
                let why = match wire.carry(ticket, &waiting, reports).await {
                    Ok(()) => "the server ended the connection".to_owned(),
                    Err(error) => error.to_string(),
                };
                debug!(server = %url, why, "connection closed");
                let _ = reports.send(Report::Closed(ticket, why)).await;
                return;
            }
            Err(why) => Err(why),
        },
    };
    let reached = outcome.unwrap_or_else(Reached::Failed);
    let _ = reports.send(Report::Reached(ticket, reached)).await;
}

/// The addresses behind a name, IPv4 first: its relayed addresses are those that any viewer can reach.
async fn resolve(url: &ServerUrl) -> Result<Vec<SocketAddr>, String> {
    let unknown = |cause: &dyn std::fmt::Display| {
        format!("{} is not known ({cause}); check the name, and this device's DNS", url.host)
    };
    let found = timeout(PATIENCE, lookup_host((url.host.as_str(), url.port))).await;
    let mut addresses: Vec<_> = found.map_err(|_| unknown(&"no answer"))?.map_err(|error| unknown(&error))?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.dedup();
    if addresses.is_empty() { Err(unknown(&"it has no address")) } else { Ok(addresses) }
}

enum Wire {
    Datagrams(UdpSocket),
    Stream(Box<dyn Stream>),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(url: &ServerUrl, tls: &Tls) -> Result<Wire, String> {
    let mut last = String::new();
    for address in resolve(url).await? {
        match timeout(PATIENCE, connect_to(url, address, tls)).await {
            Ok(Ok(wire)) => return Ok(wire),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "no answer".to_owned(),
        }
    }
    Err(last)
}

async fn connect_to(url: &ServerUrl, address: SocketAddr, tls: &Tls) -> io::Result<Wire> {
    if url.transport == ServerTransport::Udp {
        let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(address).await?;
        return Ok(Wire::Datagrams(socket));
    }
    let stream = connect_tcp(address).await?;
    if url.transport == ServerTransport::Tcp {
        return Ok(Wire::Stream(Box::new(stream)));
    }
    let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
    let config = tls.get_or_try_init(trusting).await?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map_err(untrusted)?;
    Ok(Wire::Stream(Box::new(stream)))
}

async fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_notsent_lowat(LEAST_UNSENT)?;
    Ok(stream)
}

/// What it takes is the same for viewers, so it is worth saying.
fn untrusted(error: io::Error) -> io::Error {
    let remedy = "it needs a certificate for its name, from an authority that browsers and this machine trust";
    io::Error::new(error.kind(), format!("TLS fails ({error}); {remedy}"))
}

/// Trusts whom this machine trusts. Reads files, so elsewhere.
async fn trusting() -> io::Result<Arc<ClientConfig>> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await.map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(found.certs).0 == 0 {
        return Err(io::Error::other("this machine has no root certificates; install the package ca-certificates"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(Arc::new(builder.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth()))
}

impl Wire {
    /// Until either end has had enough.
    async fn carry(self, ticket: Ticket, waiting: &Waiting, reports: &mpsc::Sender<Report>) -> io::Result<()> {
        match self {
            Self::Datagrams(socket) => carry_datagrams(&socket, ticket, waiting, reports).await,
            Self::Stream(stream) => {
                let (reader, mut writer) = tokio::io::split(stream);
                tokio::select! {
                    outcome = read_frames(reader, ticket, reports) => outcome,
                    outcome = write_on(&mut writer, waiting) => {
                        outcome?;
                        let _ = timeout(FAREWELL, writer.shutdown()).await;
                        Ok(())
                    }
                }
            }
        }
    }
}

async fn carry_datagrams(
    socket: &UdpSocket,
    ticket: Ticket,
    waiting: &Waiting,
    reports: &mpsc::Sender<Report>,
) -> io::Result<()> {
    let mut buffer = vec![0; READ];
    loop {
        tokio::select! {
            next = waiting.next(WRITE) => {
                if next.is_empty() {
                    return Ok(());
                }
                for packet in next {
                    socket.send(&packet).await?;
                }
            }
            received = socket.recv(&mut buffer) => {
                let frame = Bytes::copy_from_slice(&buffer[..received?]);
                if reports.send(Report::Frame(ticket, frame)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// A queue that is full makes the server wait, which then drops.
async fn read_frames(
    mut reader: impl AsyncRead + Unpin,
    ticket: Ticket,
    reports: &mpsc::Sender<Report>,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ);
    while reader.read_buf(&mut buffer).await? > 0 {
        loop {
            let no_frame = |_| io::Error::new(io::ErrorKind::InvalidData, "what it sends is not TURN; check the port");
            let Some(length) = frame_length(&buffer).map_err(no_frame)? else { break };
            if buffer.len() < length {
                buffer.reserve(length - buffer.len());
                break;
            }
            let frame = buffer.split_to(length).freeze();
            if reports.send(Report::Frame(ticket, frame)).await.is_err() {
                return Ok(());
            }
        }
        buffer.reserve(READ / 4);
    }
    Ok(())
}

/// Until there will be no more.
async fn write_on(writer: &mut (impl AsyncWrite + Unpin), waiting: &Waiting) -> io::Result<()> {
    loop {
        let next = waiting.next(WRITE).await.concat();
        if next.is_empty() {
            return Ok(());
        }
        writer.write_all(&next).await?;
        writer.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::message::channel_data;

    /// However a stream is cut, its frames come out whole.
    #[tokio::test]
    async fn frames_are_found_again_in_a_stream() {
        let (mut server, client) = tokio::io::duplex(64);
        let (reports, mut heard) = mpsc::channel(64);
        let sent: Vec<_> =
            (0..20).map(|n| channel_data(0x4000, &vec![n; usize::from(n) * 7], true).unwrap().freeze()).collect();
        let writing = async {
            for chunk in sent.concat().chunks(5) {
                server.write_all(chunk).await.unwrap();
            }
            drop(server);
        };
        let (outcome, ()) = tokio::join!(read_frames(client, 7, &reports), writing);
        outcome.unwrap();
        for frame in sent {
            assert!(matches!(heard.recv().await, Some(Report::Frame(7, got)) if got == frame));
        }
    }

    #[tokio::test]
    async fn a_server_that_speaks_something_else_is_left() {
        let (reports, _heard) = mpsc::channel(4);
        let error = read_frames(&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], 1, &reports).await.unwrap_err();
        assert!(error.to_string().contains("not TURN"), "{error}");
    }
}
