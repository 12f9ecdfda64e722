//! The real program with a configuration folder of its own.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// A folder with an `edgecam.toml`.
pub struct Machine {
    folder: TempDir,
}

/// A daemon; it ends with its owner.
pub struct Daemon(Child);

/// What `edgecam doctor --json` printed.
#[derive(Debug)]
pub struct Report {
    /// Check, verdict, words.
    pub lines: Vec<(String, String, String)>,
    pub code: Option<i32>,
}

impl Machine {
    /// With a name; what is configured besides.
    pub fn new(configuration: &str) -> Self {
        Self::bare(&format!("[device]\nid = \"porch\"\n{configuration}"))
    }

    pub fn bare(configuration: &str) -> Self {
        let machine = Self { folder: TempDir::new().unwrap() };
        fs::write(machine.path("edgecam.toml"), configuration).unwrap();
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the page is, as configured.
    pub fn port(&self) -> u16 {
        let text = fs::read_to_string(self.path("edgecam.toml")).unwrap();
        let listen = text.lines().find_map(|line| line.strip_prefix("listen = ")).unwrap();
        listen.trim_matches('"').rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Every file with its text.
    pub fn files(&self) -> BTreeMap<PathBuf, String> {
        fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    collect(&path, files);
                } else {
                    files.insert(path.clone(), fs::read_to_string(&path).unwrap());
                }
            }
        }
        let mut files = BTreeMap::new();
        collect(self.folder.path(), &mut files);
        files
    }

    /// Runs a command on this configuration.
    pub fn edgecam(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn doctor(&self) -> Report {
        let output = self.edgecam(&["doctor", "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
        let lines = report["lines"].as_array().unwrap().iter();
        let lines = lines.map(|line| (text(line, "check"), text(line, "verdict"), text(line, "words"))).collect();
        Report { lines, code: output.status.code() }
    }

    /// The daemon, once it has said where its page is.
    pub fn start(&self) -> Daemon {
        let mut child = self.command(&["run"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        let daemon = Daemon(child);
        assert!(said.contains("edgecam: open http://"), "it did not start: {said:?}");
        daemon
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgecam"));
        // Nothing of the machine the test runs on but where programs are.
        command.args(arguments).arg("--config").arg(self.path("edgecam.toml")).env_clear();
        command.env("PATH", "/usr/bin:/bin");
        command
    }
}

impl Report {
    /// Verdict and words of the first line about this.
    pub fn line(&self, check: &str) -> (String, String) {
        let line = self.lines.iter().find(|(found, ..)| found == check);
        let (_, verdict, words) = line.unwrap_or_else(|| panic!("no line about {check}: {self:#?}"));
        (verdict.clone(), words.clone())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
