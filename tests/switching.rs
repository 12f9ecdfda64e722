//! The privacy switch of the real program, over a pulled plug.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test is where time begins, and may fail loudly")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use edgecam::probe::{Ended, Endpoint, Probe, ProbeError, ProbeSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for a busy machine; reached only when something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_camera_switched_off_is_closed_to_everybody_at_once_and_after_a_restart() {
    let mut device = Device::start();
    let mut viewer = Probe::connect(&device.viewer()).await.unwrap();
    viewer.next_keyframe().await.unwrap();
    let still = device.call("GET", "/api/cameras/front/still.jpg", "");
    assert_eq!((still.status, size_of_jpeg(&still.body)), (200, Some((320, 240))));

    let answer = device.call("PUT", "/api/cameras/front/enabled", "false");
    assert_eq!((answer.status, answer.json()), (200, json!({ "enabled": false, "unkept": null })));
    assert!(device.switch_file().lines().any(|line| line == "front"), "it is kept before it is said");
    assert_eq!(viewer.watch_for(PATIENCE).await, Some(Ended::Closed));
    viewer.close().await;
    // Its linger is an hour.
    device.comes_to(r#"edgecam_camera_state{camera="front",state="idle"} 1"#);
    device.comes_to(r#"edgecam_sessions_closed_total{reason="disabled"} 1"#);
    device.shows_nothing().await;

    device.kill();
    let device = device.restart();
    device.shows_nothing().await;
    device.comes_to(r#"edgecam_camera_opened_total{camera="front"} 0"#);
    device.comes_to(r#"edgecam_camera_switched_off{camera="front"} 1"#);
    assert_eq!(device.call("PUT", "/api/cameras/front/enabled", "true").json()["enabled"], true);
    let mut viewer = Probe::connect(&device.viewer()).await.unwrap();
    viewer.next_keyframe().await.unwrap();
    viewer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_switch_file_is_damaged_shows_nothing_until_its_owner_says_so() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("state/switched-off"), [0xFF; 40]).unwrap();
    let device = Device::start_in(folder);
    device.shows_nothing().await;
    assert_eq!(device.call("PUT", "/api/cameras/front/enabled", "true").json()["unkept"], Value::Null);
    assert_eq!(device.call("GET", "/api/cameras/front/still.jpg", "").status, 200);
}

/// The program itself, until it is dropped.
struct Device {
    folder: TempDir,
    child: Child,
    /// Host and port.
    page: String,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Device {
    fn start() -> Self {
        Self::start_in(TempDir::new().unwrap())
    }

    fn start_in(folder: TempDir) -> Self {
        let (config, state) = (folder.path().join("edgecam.toml"), folder.path().join("state"));
        let camera = "[[camera]]\nid = \"front\"\nsource = \"test\"\nwidth = 320\nheight = 240\nlinger_s = 3600\n";
        let toml =
            format!("[device]\nstate_dir = {state:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[ice]\nudp_port = 0\n{camera}");
        fs::write(&config, toml).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgecam"))
            .args(["run", "--config", config.to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let page = said.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default().to_owned();
        assert!(!page.is_empty(), "it does not start: {said:?}");
        Self { folder, child, page }
    }

    /// Without a goodbye, as by a pulled plug.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(mut self) -> Self {
        let folder = std::mem::replace(&mut self.folder, TempDir::new().unwrap());
        Self::start_in(folder)
    }

    fn viewer(&self) -> ProbeSettings {
        ProbeSettings::new(Endpoint::parse(&format!("http://{}/whep/front", self.page)).unwrap())
    }

    fn switch_file(&self) -> String {
        fs::read_to_string(self.folder.path().join("state/switched-off")).unwrap()
    }

    /// Neither live nor as a still.
    async fn shows_nothing(&self) {
        let Err(ProbeError::Whep(refused)) = Probe::connect(&self.viewer()).await else { panic!("it shows something") };
        assert!(refused.to_string().contains("switched off"), "{refused}");
        let still = self.call("GET", "/api/cameras/front/still.jpg", "");
        assert_eq!((still.status, &still.json()["code"]), (403, &json!("disabled")));
        assert_eq!(self.call("GET", "/api/cameras", "").json()["cameras"][0]["enabled"], false);
    }

    /// Waits until its figures have this line.
    fn comes_to(&self, line: &str) {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            let figures = String::from_utf8(self.call("GET", "/metrics", "").body).unwrap();
            if figures.lines().any(|found| found == line) {
                return;
            }
            assert!(Instant::now() < give_up_at, "{line} did not come in\n{figures}");
        }
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.page).unwrap();
        let (page, length) = (&self.page, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {page}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
        let status = String::from_utf8_lossy(&bytes[..head]).split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, body: bytes.split_off(head + 4) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Width and height, by the frame header (ITU-T T.81, B.2.2); `None`: no whole JPEG.
fn size_of_jpeg(jpeg: &[u8]) -> Option<(u16, u16)> {
    let [0xFF, 0xD8, .., 0xFF, 0xD9] = jpeg else { return None };
    let mut segments = &jpeg[2..];
    loop {
        let [0xFF, marker, high, low, rest @ ..] = segments else { return None };
        if let (0xC0..=0xC2, [_, a, b, c, d, ..]) = (marker, rest) {
            return Some((u16::from_be_bytes([*c, *d]), u16::from_be_bytes([*a, *b])));
        }
        segments = rest.get(usize::from(u16::from_be_bytes([*high, *low])) - 2..)?;
    }
}
