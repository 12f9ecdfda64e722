//! A real coturn, on this machine's own address.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::certificates::Authority;
use super::ports::free_port;

pub const SECRET: &str = "north of the river";
/// What coturn gives its certificate for.
pub const HOST: &str = "localhost";

/// A TURN server that runs until it is dropped. Its log is shown when the test fails.
pub struct Coturn {
    folder: TempDir,
    pub port: u16,
    pub tls_port: u16,
    authority: Authority,
    child: Option<Child>,
}

impl Coturn {
    pub async fn start() -> Self {
        let authority = Authority::new("a test's authority");
        let folder = TempDir::with_prefix("edgecam-coturn-").unwrap();
        let (port, tls_port) = (free_port(), free_port());
        let mut coturn = Self { folder, port, tls_port, authority, child: None };
        let identity = coturn.authority.server(HOST);
        fs::write(coturn.file("certificate"), identity.certificate).unwrap();
        fs::write(coturn.file("key"), identity.key).unwrap();
        fs::write(coturn.file("authority"), coturn.authority.pem()).unwrap();
        coturn.start_again().await;
        coturn
    }

    pub async fn start_again(&mut self) {
        let path = |name: &str| self.file(name).display().to_string();
        let configuration = format!(
            "listening-ip=127.0.0.1\nrelay-ip=127.0.0.1\nlistening-port={}\ntls-listening-port={}\nno-dtls\n\
             use-auth-secret\nstatic-auth-secret={SECRET}\nrealm=example.org\ncert={}\npkey={}\n\
             allow-loopback-peers\nno-cli\nlog-file=stdout\nverbose\npidfile={}\nuserdb={}\n",
            self.port,
            self.tls_port,
            path("certificate"),
            path("key"),
            path("pid"),
            path("db"),
        );
        fs::write(self.file("turnserver.conf"), configuration).unwrap();
        let log = File::options().create(true).append(true).open(self.file("log")).unwrap();
        let child = Command::new("turnserver")
            .args(["-c", &path("turnserver.conf")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("turnserver cannot be run: scripts/install-packages test");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        for port in [self.port, self.tls_port] {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                assert!(Instant::now() < deadline, "coturn does not answer:\n{}", self.log());
                super::pause().await;
            }
        }
    }

    /// Without a word, as by a pulled plug.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Its certificate's authority, for `SSL_CERT_FILE`.
    pub fn authority_file(&self) -> PathBuf {
        self.file("authority")
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.file("log")).unwrap_or_default()).into_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- coturn's log\n{}---", self.log());
        }
    }
}
