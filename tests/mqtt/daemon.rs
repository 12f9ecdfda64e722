//! The real program, with a small test picture for a camera and a broker to speak to.

use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::broker::{Broker, PATIENCE, pause, signal};

/// Small enough for a busy machine to encode.
pub const FRONT: &str = r#"
[[camera]]
id = "front"
source = "test"
width = 160
height = 96
fps = 15
linger_s = 1
"#;

/// A device that runs until it is dropped. Its log is shown when the test fails.
pub struct Daemon {
    pub device: String,
    folder: TempDir,
    toml: String,
    child: Option<Child>,
    /// Host and port of its page.
    page: String,
    log_level: &'static str,
}

/// What a test wants its device to be.
pub struct DaemonPlan {
    pub device: String,
    /// The lines of `[mqtt]`.
    pub mqtt: String,
    /// The lines of `[auth]`.
    pub auth: String,
    /// Whole sections: cameras and what else there is.
    pub rest: String,
    /// Files beside the configuration, by name.
    pub files: Vec<(&'static str, String)>,
    pub log_level: &'static str,
    /// Where it keeps its state, if not in its own folder.
    pub state_dir: Option<String>,
}

impl DaemonPlan {
    /// `frontdoor` with one camera, which everybody may watch.
    pub fn new(url: &str) -> Self {
        Self {
            device: "frontdoor".to_owned(),
            mqtt: format!("url = \"{url}\"\n"),
            auth: "anyone_may_watch = true\n".to_owned(),
            rest: FRONT.to_owned(),
            files: Vec::new(),
            log_level: "debug",
            state_dir: None,
        }
    }
}

impl Daemon {
    /// Returns when the broker has it.
    pub async fn at(broker: &Broker) -> Self {
        let daemon = Self::with(DaemonPlan::new(&broker.url())).await;
        daemon.is_linked().await;
        daemon
    }

    /// Returns when its page answers; the broker may be anywhere.
    pub async fn with(plan: DaemonPlan) -> Self {
        let folder = TempDir::with_prefix("edgecam-daemon-").unwrap();
        for (name, text) in &plan.files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let DaemonPlan { device, auth, rest, .. } = &plan;
        let mqtt = if plan.mqtt.is_empty() { String::new() } else { format!("[mqtt]\n{}", plan.mqtt) };
        let state_dir = plan.state_dir.clone().unwrap_or_else(|| format!("{}/state", folder.path().display()));
        let toml = format!(
            "[device]\nid = \"{device}\"\nstate_dir = \"{state_dir}\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [ice]\nudp_port = 0\nadvertise = [\"127.0.0.1\"]\n[auth]\n{auth}{mqtt}{rest}"
        );
        fs::create_dir(folder.path().join("state")).unwrap();
        let mut daemon = Self {
            device: plan.device.clone(),
            folder,
            toml,
            child: None,
            page: String::new(),
            log_level: plan.log_level,
        };
        daemon.start().await;
        daemon
    }

    /// Again, as a service manager starts it: what it keeps, it finds.
    pub async fn start(&mut self) {
        let said = self.folder.path().join("said");
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let config = self.config();
        fs::write(&config, &self.toml).unwrap();
        // Nothing of the machine the test runs on, but for where programs are.
        let child = Command::new(env!("CARGO_BIN_EXE_edgecam"))
            .args(["run", "--config", &config])
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("EDGECAM__LOG__LEVEL", self.log_level)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(File::create(&said).unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        // The first thing it says is where its page is.
        loop {
            let text = fs::read_to_string(&said).unwrap();
            if let Some(rest) = text.split("http://").nth(1)
                && let Some((page, _)) = rest.split_once('/')
            {
                page.clone_into(&mut self.page);
                return;
            }
            assert!(self.is_running(), "the device does not start:\n{}", self.log());
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
    pub async fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the device runs");
        signal("TERM", child.id());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the device does not stop:\n{}", self.log());
            pause().await;
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the device runs").id()
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn config(&self) -> String {
        self.folder.path().join("edgecam.toml").to_str().unwrap().to_owned()
    }

    /// Everything it logged, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Below `<prefix>/<device>`: `rpc/anna`.
    pub fn topic(&self, rest: &str) -> String {
        format!("edgecam/{}/{rest}", self.device)
    }

    /// `http://…/front`, for a probe.
    pub fn url(&self, camera: &str) -> String {
        format!("http://{}/{camera}", self.page)
    }

    pub async fn get(&self, path: &str) -> String {
        self.ask(path, "").await
    }

    pub async fn get_with_token(&self, path: &str, token: &str) -> String {
        self.ask(path, &format!("Authorization: Bearer {token}\r\n")).await
    }

    async fn ask(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(&self.page).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n", self.page);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// `edgecam token`, with this device's key.
    pub fn token(&self, arguments: &[&str]) -> String {
        let config = self.config();
        let output = edgecam(&[&["token", "--config", &config], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// What its API says of a camera.
    pub async fn camera(&self, id: &str) -> Value {
        let list: Value = serde_json::from_str(&self.get("/api/cameras").await).unwrap();
        let cameras = list["cameras"].as_array().unwrap();
        cameras.iter().find(|camera| camera["id"] == id).unwrap().clone()
    }

    /// The sum of a metric's samples that have these labels: `reason="retained"`.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.get("/metrics").await;
        let samples = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{') && rest.contains(labels))
        });
        let values: Vec<f64> = samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no {name} with {labels:?} in\n{text}");
        values.iter().sum()
    }

    pub async fn is_linked(&self) {
        self.reaches("edgecam_mqtt_connected", "", 1.0, PATIENCE).await;
    }

    pub async fn is_not_linked(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.metric("edgecam_mqtt_connected", "").await > 0.0 {
            assert!(Instant::now() < deadline, "the device still believes in its broker");
            pause().await;
        }
    }

    /// Waits until a metric is at least so much.
    pub async fn reaches(&self, name: &str, labels: &str, least: f64, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.metric(name, labels).await < least {
            assert!(Instant::now() < deadline, "{name}{{{labels}}} does not reach {least}");
            pause().await;
        }
    }

    fn log_file(&self) -> std::path::PathBuf {
        self.folder.path().join("log")
    }
}

/// Another command of the program.
pub fn edgecam(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgecam")).args(arguments).env_clear().output().unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(200).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("--- the log of {}\n{}\n---", self.device, tail.join("\n"));
        }
    }
}
