//! The servers that are measured: started on CPU 0, alone; whatever feeds and watches them is on CPU 1.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const SERVERS_CPU: &str = "0";
const VIEWERS_CPU: &str = "1";

const EDGECAM_PORT: u16 = 18080;
const JANUS_PORT: u16 = 18088;
const JANUS_RTP_PORT: u16 = 15004;
const AIORTC_PORT: u16 = 18089;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contestant {
    Edgecam,
    /// Another build of edgecam: `make bench BEFORE=…/edgecam`.
    Before,
    Janus,
    Aiortc,
}

impl Contestant {
    pub(crate) const ALL: [Self; 4] = [Self::Edgecam, Self::Before, Self::Janus, Self::Aiortc];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Edgecam => "edgecam",
            Self::Before => "edgecam before",
            Self::Janus => "Janus",
            Self::Aiortc => "aiortc",
        }
    }

    /// Whether it can run here; `benches/references/install.sh` brings what is missing.
    pub(crate) fn is_installed(self) -> bool {
        match self {
            Self::Edgecam => true,
            Self::Before => before().is_some(),
            Self::Janus => Path::new("/usr/bin/janus").exists(),
            Self::Aiortc => aiortc_python().exists(),
        }
    }

    pub(crate) fn is_edgecam(self) -> bool {
        matches!(self, Self::Edgecam | Self::Before)
    }

    fn door(self) -> (&'static str, String) {
        match self {
            Self::Edgecam | Self::Before => ("whep", format!("http://127.0.0.1:{EDGECAM_PORT}/whep/camera")),
            Self::Janus => ("janus", format!("http://127.0.0.1:{JANUS_PORT}/janus")),
            Self::Aiortc => ("whep", format!("http://127.0.0.1:{AIORTC_PORT}/whep/camera")),
        }
    }
}

/// What edgecam shows. The others always show the clip.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Show<'a> {
    /// An encoded clip: nothing is encoded, so all that is used is used for viewers.
    Clip(&'a Path),
    /// The test picture through the software encoder, which makes a keyframe when asked.
    TestPicture { width: u32, height: u32, linger_s: u32 },
}

/// A running server; stopped when dropped.
pub(crate) struct Server {
    process: Child,
    feeder: Option<Child>,
    contestant: Contestant,
}

impl Server {
    /// Starts it and waits until it answers.
    pub(crate) fn start(contestant: Contestant, clip: &Path, show: Show<'_>, work: &Path) -> Result<Self> {
        Self::start_with(contestant, clip, show, "", work)
    }

    /// The same with more sections in edgecam's configuration.
    pub(crate) fn start_with(
        contestant: Contestant,
        clip: &Path,
        show: Show<'_>,
        more: &str,
        work: &Path,
    ) -> Result<Self> {
        let log = |name: &str| File::create(work.join(format!("{name}.log")));
        let mut command = pinned(SERVERS_CPU);
        match contestant {
            Contestant::Edgecam | Contestant::Before => {
                let config = work.join("edgecam.toml");
                fs::write(&config, edgecam_config(show) + more)?;
                let before = before().filter(|_| contestant == Contestant::Before);
                command
                    .arg(before.unwrap_or_else(|| env!("CARGO_BIN_EXE_edgecam").into()))
                    .arg("run")
                    .arg("--config")
                    .arg(config);
            }
            Contestant::Janus => {
                command.arg("janus").arg("-F").arg(references().join("janus"));
            }
            Contestant::Aiortc => {
                let port = AIORTC_PORT.to_string();
                command.arg(aiortc_python()).arg(references().join("aiortc-camera.py")).arg(clip).arg(port);
            }
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(log(contestant.name())?)
            .stderr(log(contestant.name())?)
            .spawn()
            .with_context(|| format!("cannot start {}", contestant.name()))?;
        let mut server = Self { process, feeder: None, contestant };
        if contestant == Contestant::Janus {
            let feeder = pinned(VIEWERS_CPU)
                .arg(std::env::current_exe()?)
                .args(["feed".as_ref(), clip.as_os_str(), JANUS_RTP_PORT.to_string().as_ref()])
                .spawn();
            server.feeder = Some(feeder.context("cannot start the feeder")?);
        }
        server.wait_until_up()?;
        Ok(server)
    }

    /// Taskset replaces itself by the server, so this is the server's own.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn contestant(&self) -> Contestant {
        self.contestant
    }

    /// Where edgecam's WebSocket is.
    pub(crate) fn websocket(&self) -> String {
        format!("ws://127.0.0.1:{EDGECAM_PORT}/ws")
    }

    /// A page of edgecam's web server.
    pub(crate) fn page(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{EDGECAM_PORT}{path}");
        Ok(ureq::get(url).call()?.body_mut().read_to_string()?)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let port = match self.contestant {
            Contestant::Edgecam | Contestant::Before => EDGECAM_PORT,
            Contestant::Janus => JANUS_PORT,
            Contestant::Aiortc => AIORTC_PORT,
        };
        let give_up = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let name = self.contestant.name();
            if let Some(status) = self.process.try_wait()? {
                bail!("{name} ended with {status}; see its log in the folder of the run");
            }
            ensure!(Instant::now() < give_up, "{name} does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        // Whatever it still does after it listens is not what we measure.
        thread::sleep(Duration::from_secs(1));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in [self.feeder.as_mut(), Some(&mut self.process)].into_iter().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn edgecam_config(show: Show<'_>) -> String {
    let (source, width, height, linger_s) = match show {
        Show::Clip(clip) => (format!("clip:{}", clip.display()), 1280, 720, 10),
        Show::TestPicture { width, height, linger_s } => ("test".to_owned(), width, height, linger_s),
    };
    format!(
        r#"
        [device]
        id = "bench"
        [http]
        listen = "127.0.0.1:{EDGECAM_PORT}"
        max_connections = 2000
        max_connections_per_address = 2000
        [ice]
        udp_port = 0
        advertise = ["127.0.0.1"]
        [limits]
        negotiations = 64
        whep_sessions = 2000
        [[camera]]
        id = "camera"
        source = "{source}"
        width = {width}
        height = {height}
        fps = 30
        linger_s = {linger_s}
        max_viewers = 1000
        [camera.encoder]
        max_kbps = 2000
        keyframe_interval_s = 2
        "#
    )
}

/// The process of viewers of one server; see `crowd.rs` for what it understands.
pub(crate) struct Viewers {
    process: Child,
    commands: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Viewers {
    pub(crate) fn of(server: &Server, thorough_every: usize) -> Result<Self> {
        let (kind, url) = server.contestant.door();
        // Janus has no candidate on loopback; packets between addresses of one machine take the same way anyway.
        let host = if server.contestant.is_edgecam() { Ipv4Addr::LOCALHOST.into() } else { own_address() };
        let mut process = pinned(VIEWERS_CPU)
            .arg(std::env::current_exe()?)
            .args(["viewers", kind, &url, &host.to_string(), &thorough_every.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the viewers")?;
        let (commands, replies) = (process.stdin.take(), process.stdout.take().context("no output")?);
        Ok(Self { process, commands, replies: BufReader::new(replies) })
    }

    pub(crate) fn tell(&mut self, command: &str) -> Result<Value> {
        let commands = self.commands.as_mut().context("the viewers were sent home")?;
        writeln!(commands, "{command}")?;
        let mut reply = String::new();
        self.replies.read_line(&mut reply)?;
        serde_json::from_str(&reply).with_context(|| format!("the viewers ended at {command:?}"))
    }
}

impl Drop for Viewers {
    fn drop(&mut self) {
        // At the end of their input they leave and end.
        self.commands = None;
        let _ = self.process.wait();
    }
}

fn pinned(cpu: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpu]);
    command
}

fn references() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/references")
}

fn before() -> Option<PathBuf> {
    std::env::var_os("BEFORE").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn aiortc_python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/references/aiortc/bin/python")
}

/// The address this machine would use towards the world; nothing is sent.
fn own_address() -> IpAddr {
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.254:9")?;
        socket.local_addr()
    };
    ask().map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}
