//! A real mosquitto of a test's own: a child process with its own folder and ports, gone when the test is.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a failed step is a failed test; here time begins")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::ports::free_port;

/// How long anything that happens at once on a quiet machine may take on a busy one.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a test wants its broker to be. The default: everybody may do everything, on one plain port.
#[derive(Clone, Debug, Default)]
pub struct BrokerPlan {
    /// Names and passwords. With any, nobody else comes in.
    pub users: Vec<(String, String)>,
    /// The lines of an ACL file. Without: everybody may do everything.
    pub acl: Option<String>,
    pub tls: Option<BrokerTls>,
    pub websockets: bool,
    /// More lines for the configuration, before the listeners: `max_packet_size 1000`.
    pub lines: String,
    /// And for the plain listener: `max_qos 0`.
    pub listener_lines: String,
}

/// PEM texts, as `certificates::Authority` makes them.
#[derive(Clone, Debug)]
pub struct BrokerTls {
    pub ca: String,
    pub certificate: String,
    pub key: String,
    /// Only clients with a certificate of this CA come in.
    pub asks_for_certificates: bool,
}

/// A broker that runs until it is dropped. Its log is shown when the test fails.
pub struct Broker {
    folder: TempDir,
    config: PathBuf,
    ports: Ports,
    child: Option<Child>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    plain: u16,
    tls: u16,
    websockets: u16,
}

impl Ports {
    fn free() -> Self {
        Self { plain: free_port(), tls: free_port(), websockets: free_port() }
    }
}

impl Broker {
    pub async fn open() -> Self {
        Self::with(BrokerPlan::default()).await
    }

    pub async fn with(plan: BrokerPlan) -> Self {
        let folder = TempDir::with_prefix("edgecam-broker-").unwrap();
        write_secrets(folder.path(), &plan);
        Self::start_new(folder, |folder, ports| configuration(&plan, folder, ports)).await
    }

    /// On a port of the test's choosing.
    pub async fn at_port(port: u16) -> Self {
        let folder = TempDir::with_prefix("edgecam-broker-").unwrap();
        let config = folder.path().join("mosquitto.conf");
        let ports = Ports { plain: port, ..Ports::free() };
        fs::write(&config, configuration(&BrokerPlan::default(), folder.path(), ports)).unwrap();
        let mut broker = Self { folder, config, ports, child: None };
        broker.start().await;
        broker
    }

    /// With a configuration of the test's own, which `text` makes for the folder, the plain and the WebSocket port.
    /// Files may be put into the folder there.
    pub async fn of_configuration(text: impl Fn(&Path, u16, u16) -> String) -> Self {
        let folder = TempDir::with_prefix("edgecam-broker-").unwrap();
        Self::start_new(folder, |folder, ports| text(folder, ports.plain, ports.websockets)).await
    }

    async fn start_new(folder: TempDir, text: impl Fn(&Path, Ports) -> String) -> Self {
        let config = folder.path().join("mosquitto.conf");
        let mut broker = Self { folder, config, ports: Ports::free(), child: None };
        // Another test may take a port between our look and the broker's.
        for _ in 0..5 {
            fs::write(&broker.config, text(broker.folder.path(), broker.ports)).unwrap();
            if broker.try_start().await {
                return broker;
            }
            assert!(broker.log().contains("Address already in use"), "mosquitto does not start:\n{}", broker.log());
            broker.ports = Ports::free();
        }
        panic!("no free port in five tries");
    }

    pub fn port(&self) -> u16 {
        self.ports.plain
    }

    pub fn tls_port(&self) -> u16 {
        self.ports.tls
    }

    pub fn websocket_port(&self) -> u16 {
        self.ports.websockets
    }

    /// For `[mqtt] url`.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.ports.plain)
    }

    /// For `[mqtt] url`; by name, because certificates are made for names.
    pub fn tls_url(&self) -> String {
        format!("mqtts://localhost:{}", self.ports.tls)
    }

    pub fn websocket_url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.ports.websockets)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the broker is stopped").id()
    }

    /// Everything it logged, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// As a service manager stops it. What was retained is forgotten: it keeps nothing on disk.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal("TERM", child.id());
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "mosquitto does not stop");
            pause().await;
        }
    }

    /// Again, on the same ports.
    pub async fn start(&mut self) {
        assert!(self.try_start().await, "mosquitto does not start again:\n{}", self.log());
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    /// Its sockets stay open and nothing answers.
    pub fn freeze(&self) {
        signal("STOP", self.pid());
    }

    pub fn thaw(&self) {
        signal("CONT", self.pid());
    }

    /// `false`: it ended by itself.
    async fn try_start(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        // Debian has it in sbin, which is not in everybody's path.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut child = Command::new("mosquitto")
            .env("PATH", path)
            .arg("-c")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("mosquitto cannot be run: scripts/install-packages test");
        let deadline = Instant::now() + PATIENCE;
        // The plain listener is the last one of the configuration, so the others are there too.
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.plain)).is_err() {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "mosquitto does not answer:\n{}", self.log());
            pause().await;
        }
        // Somebody answers; only while it lives is it this one.
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        self.child = Some(child);
        true
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("mosquitto.log")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Works on a frozen one, too.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- mosquitto's log\n{}---", self.log());
        }
    }
}

/// Sends a process a signal by name: `STOP`.
pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(sent.success(), "kill -s {name} {pid}");
}

/// Between two looks at something that gives no event.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

fn write_secrets(folder: &Path, plan: &BrokerPlan) {
    if !plan.users.is_empty() {
        let users: Vec<(&str, &str)> = plan.users.iter().map(|(name, word)| (name.as_str(), word.as_str())).collect();
        write_passwords(&folder.join("passwords"), &users);
    }
    if let Some(acl) = &plan.acl {
        fs::write(folder.join("acl"), acl).unwrap();
    }
    if let Some(tls) = &plan.tls {
        fs::write(folder.join("ca.pem"), &tls.ca).unwrap();
        fs::write(folder.join("server.pem"), &tls.certificate).unwrap();
        fs::write(folder.join("server.key"), &tls.key).unwrap();
    }
}

/// A password file as mosquitto reads it.
pub fn write_passwords(file: &Path, users: &[(&str, &str)]) {
    File::create(file).unwrap();
    for (name, word) in users {
        let made = Command::new("mosquitto_passwd").arg("-b").arg(file).args([name, word]).output();
        let made = made.expect("mosquitto_passwd cannot be run: scripts/install-packages test");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

fn configuration(plan: &BrokerPlan, folder: &Path, ports: Ports) -> String {
    let folder = folder.display();
    // Started by root it would become a user who cannot read the folder; started by anybody else it ignores `user`.
    let mut text = "user root\npersistence false\nlog_dest stderr\nlog_type all\n".to_owned();
    writeln!(text, "allow_anonymous {}", plan.users.is_empty()).unwrap();
    if !plan.users.is_empty() {
        writeln!(text, "password_file {folder}/passwords").unwrap();
    }
    if plan.acl.is_some() {
        writeln!(text, "acl_file {folder}/acl").unwrap();
    }
    writeln!(text, "{}", plan.lines).unwrap();
    if let Some(tls) = &plan.tls {
        writeln!(text, "listener {} 127.0.0.1", ports.tls).unwrap();
        writeln!(text, "cafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key").unwrap();
        writeln!(text, "require_certificate {}", tls.asks_for_certificates).unwrap();
    }
    if plan.websockets {
        writeln!(text, "listener {} 127.0.0.1\nprotocol websockets", ports.websockets).unwrap();
    }
    writeln!(text, "listener {} 127.0.0.1\n{}", ports.plain, plan.listener_lines).unwrap();
    text
}
