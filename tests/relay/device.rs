//! The real program, with a small test picture for a camera.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::coturn::{Coturn, SECRET};
use super::pause;
use super::ports::free_port;

/// A device that runs until it is dropped. Its log is shown when the test fails.
pub struct Device {
    folder: TempDir,
    child: Option<Child>,
    page: String,
}

impl Device {
    /// With these servers, all of them with this secret.
    pub async fn start(urls: &[String], secret: &str, authority: Option<&Path>) -> Self {
        let servers = match urls {
            [] => String::new(),
            _ => format!("servers = [{{ urls = {urls:?}, secret_file = \"secret\" }}]\n"),
        };
        let folder = TempDir::with_prefix("edgecam-relay-").unwrap();
        fs::write(folder.path().join("secret"), secret).unwrap();
        let toml = format!(
            "[device]\nid = \"porch\"\nstate_dir = \"{}\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [ice]\nudp_port = {}\ntcp = false\n{servers}\
             [[camera]]\nid = \"front\"\nsource = \"test\"\nwidth = 160\nheight = 96\nfps = 15\nlinger_s = 1\n\
             [limits]\nvanished_s = 10\n",
            folder.path().display(),
            free_port()
        );
        fs::write(folder.path().join("edgecam.toml"), toml).unwrap();
        let mut device = Self { folder, child: None, page: String::new() };
        device.start_again(authority).await;
        device
    }

    /// One that uses coturn over UDP, and has its allocation.
    pub async fn over_udp(coturn: &Coturn) -> Self {
        let device = Self::start(&[format!("turn:127.0.0.1:{}", coturn.port)], SECRET, None).await;
        device.is_relayed("udp").await;
        device
    }

    pub async fn start_again(&mut self, authority: Option<&Path>) {
        let said = self.file("said");
        let log = File::options().create(true).append(true).open(self.file("log")).unwrap();
        // Nothing of the machine the test runs on, but for where programs are.
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgecam"));
        command.args(["run", "--config"]).arg(self.file("edgecam.toml"));
        command.env_clear().env("PATH", std::env::var("PATH").unwrap_or_default()).env("HOME", self.folder.path());
        command.env("EDGECAM__LOG__LEVEL", "debug").env("RUST_BACKTRACE", "1");
        if let Some(file) = authority {
            command.env("SSL_CERT_FILE", file);
        }
        let child = command.stdin(Stdio::null()).stdout(File::create(&said).unwrap()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        // The first thing it says is where its page is.
        loop {
            let text = fs::read_to_string(&said).unwrap();
            if let Some((page, _)) = text.split("http://").nth(1).and_then(|rest| rest.split_once('/')) {
                page.clone_into(&mut self.page);
                return;
            }
            assert!(Instant::now() < deadline, "the device says nothing:\n{}", self.log());
            pause().await;
        }
    }

    /// Without a goodbye, as by a pulled plug.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// As a service manager stops it.
    pub async fn stop(&mut self) {
        let mut child = self.child.take().expect("the device runs");
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the device does not stop:\n{}", self.log());
            pause().await;
        }
    }

    /// Waits until an allocation stands that is reached so.
    pub async fn is_relayed(&self, transport: &str) {
        self.reaches(&format!("edgecam_relay_allocated{{transport=\"{transport}\"}}"), 1, Duration::from_secs(20))
            .await;
    }

    /// Waits until a metric's sample is at least so much.
    pub async fn reaches(&self, sample: &str, least: u64, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.metric(sample).await < least {
            assert!(Instant::now() < deadline, "{sample} does not reach {least}");
            pause().await;
        }
    }

    pub async fn metric(&self, sample: &str) -> u64 {
        let text = self.ask("GET", "/metrics", "").await;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {sample} in\n{text}")).parse().unwrap()
    }

    /// The answer to an offer.
    pub async fn offer(&self, sdp: &str) -> String {
        self.ask("POST", "/whep/front", sdp).await
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.page).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{body}",
            self.page,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{path}: {answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// Everything it logged, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.file("log")).unwrap_or_default()).into_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(150).collect();
            eprintln!("--- the device's log\n{}\n---", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}
