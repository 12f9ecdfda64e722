//! Which addresses of ours a connection to the broker may leave from, and whether they still are. Nothing that comes for one that is
//! gone arrives any more, and TCP does not tell.

use std::future::pending;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::sleep;

const LOOKED_EVERY: Duration = Duration::from_secs(2);

/// Returns when an address that this machine speaks to this host from is not its own any more.
pub(super) async fn lost(host: &str, port: u16) {
    // The library tells neither which of the host's addresses it took nor which of ours.
    let Ok(there) = lookup_host((host, port)).await else { return pending().await };
    let mut ours: Vec<IpAddr> = there.filter_map(own_address_towards).collect();
    ours.dedup();
    gone(&ours).await;
}

async fn gone(ours: &[IpAddr]) {
    loop {
        sleep(LOOKED_EVERY).await;
        if !ours.iter().all(|ip| is_ours(*ip)) {
            return;
        }
    }
}

/// Connecting a UDP socket sends nothing.
fn own_address_towards(there: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(there).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn is_ours(ip: IpAddr) -> bool {
    !UdpSocket::bind((ip, 0)).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Longer than any connection is without a word.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_not_ours_any_more_is_seen_at_the_next_look() {
        let ours = [Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(203, 0, 113, 7).into()];
        timeout(LOOKED_EVERY + Duration::from_millis(1), gone(&ours)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stands_while_its_address_does() {
        let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = broker.local_addr().unwrap().port();
        assert!(timeout(LONG, lost("127.0.0.1", port)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_host_that_nobody_knows_nothing_is_said_here() {
        assert!(timeout(LONG, lost("no such name", 1883)).await.is_err());
    }
}
