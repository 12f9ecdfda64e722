//! Ports, and the edgecam that may hold them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::facts::{DaemonFacts, NetworkFacts, PortFacts, limited};
use crate::config::Config;
use crate::probe::daemon;
use crate::signaling::wire;

const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn look(config: &Config) -> NetworkFacts {
    let (listen, udp_port, wants_tcp) = (config.listen, config.media.udp_port, config.media.tcp.is_some());
    let look = move || {
        let daemon = ask_health(listen);
        let listen = if daemon.is_some() { PortFacts::Ours } else { tcp_port(listen) };
        let media = udp_port_facts(udp_port, daemon.is_some());
        let media_tcp = wants_tcp.then(|| tcp_port_facts(udp_port, daemon.is_some()));
        NetworkFacts { daemon, listen, media, media_tcp }
    };
    let unknown = || PortFacts::Refused("this machine does not tell in time".into());
    limited(PATIENCE, look).await.unwrap_or_else(|| NetworkFacts {
        daemon: None,
        listen: unknown(),
        media: unknown(),
        media_tcp: None,
    })
}

/// Where a daemon that listens there can be reached from here.
pub(super) fn here(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[derive(Deserialize)]
struct Unwell {
    status: String,
    reasons: Vec<String>,
}

/// `None`: nothing answers, or not as edgecam would.
fn ask_health(listen: SocketAddr) -> Option<DaemonFacts> {
    match daemon::get(here(listen), "/healthz", None).ok()? {
        (200, body) if body == "ok\n" => Some(DaemonFacts { reasons: Vec::new() }),
        (503, body) => {
            let Unwell { status, reasons } = wire::read(body.as_bytes())?;
            (status == "unwell").then_some(DaemonFacts { reasons })
        }
        _ => None,
    }
}

fn tcp_port(address: SocketAddr) -> PortFacts {
    port(TcpListener::bind(address).map(drop), "tcp", address.port())
}

/// Tried as the media socket is bound: for both IP versions, or for IPv4 alone.
fn udp_port_facts(number: u16, daemon_runs: bool) -> PortFacts {
    let both = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, number));
    let bound = both.or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, number)));
    ours_if(daemon_runs, port(bound.map(drop), "udp", number))
}

/// The same for TCP.
fn tcp_port_facts(number: u16, daemon_runs: bool) -> PortFacts {
    let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, number));
    let bound = both.or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)));
    ours_if(daemon_runs, port(bound.map(drop), "tcp", number))
}

fn ours_if(daemon_runs: bool, facts: PortFacts) -> PortFacts {
    match facts {
        // Whoever is not root does not see whose it is; a daemon that runs has it.
        PortFacts::Taken { by } if daemon_runs && by.as_deref().is_none_or(is_edgecam) => PortFacts::Ours,
        facts => facts,
    }
}

fn is_edgecam(holder: &str) -> bool {
    holder.starts_with("edgecam (")
}

fn port(bound: io::Result<()>, protocol: &str, number: u16) -> PortFacts {
    match bound {
        Ok(()) => PortFacts::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => PortFacts::Taken { by: holder(protocol, number) },
        Err(error) => PortFacts::Refused(error.to_string()),
    }
}

/// Which program has a port, as "name (pid 123)". Only root sees those of others.
fn holder(protocol: &str, number: u16) -> Option<String> {
    let tables = [format!("/proc/net/{protocol}"), format!("/proc/net/{protocol}6")];
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| sockets_on(&table, number))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    // "self" is no number.
    let is_process =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok());
    let mut processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path()).filter(is_process);
    let process = processes.find(|process| has_one_of(process, &sockets))?;
    let name = fs::read_to_string(process.join("comm")).ok()?;
    Some(format!("{} (pid {})", name.trim(), process.file_name()?.to_string_lossy()))
}

fn has_one_of(process: &Path, sockets: &[String]) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    let mut targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

/// The inodes of the sockets bound to a port and not connected (proc_pid_net(5)).
fn sockets_on(table: &str, number: u16) -> Vec<String> {
    let wanted = format!(":{number:04X}");
    let of_port = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (local, remote, inode) = (columns.get(1)?, columns.get(2)?, columns.get(9)?);
        (local.ends_with(&wanted) && remote.ends_with(":0000")).then(|| (*inode).to_owned())
    };
    table.lines().skip(1).filter_map(of_port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_on_a_port_is_told_from_its_connections() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n   \
             1: 0100007F:1F90 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n   \
             2: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0\n";
        assert_eq!(sockets_on(table, 8080), ["4711"]);
    }

    #[test]
    fn a_taken_port_is_told_with_who_has_it() {
        let held = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let number = held.local_addr().unwrap().port();
        let PortFacts::Taken { by } = udp_port_facts(number, false) else { panic!("the port is not seen as taken") };
        let myself = format!("(pid {})", std::process::id());
        assert!(by.is_some_and(|by| by.ends_with(&myself)));
        assert!(matches!(udp_port_facts(number, true), PortFacts::Taken { .. }), "a stranger is no edgecam");
        drop(held);
        assert!(matches!(udp_port_facts(number, false), PortFacts::Free));
    }

    #[test]
    fn a_daemon_that_listens_everywhere_is_asked_on_loopback() {
        let here = |address: &str| here(address.parse().unwrap()).to_string();
        assert_eq!(here("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(here("[::]:8080"), "[::1]:8080");
        assert_eq!(here("192.0.2.7:80"), "192.0.2.7:80");
    }
}
