//! Floor 4. `edgecam doctor`: is everything there that a camera in a browser needs, and if not, what to do?
//!
//! What can be found out is gathered first ([`facts`], with [`camera`], [`machine`], [`network`] and [`service`]), each part within
//! its own time; what it means is decided afterwards ([`judge`]), from these facts alone.

mod camera;
mod facts;
mod judge;
#[cfg(test)]
mod judge_test;
mod machine;
mod network;
mod service;

use std::time::SystemTime;

use serde::Serialize;

use crate::config::Sources;

/// What was found, the machine first.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// "edgecam 0.1.0, GStreamer 1.22.0, Linux 6.1.0, Raspberry Pi 4 Model B".
    pub about: String,
    pub lines: Vec<Line>,
}

/// What one look told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What was looked at: `camera front`.
    pub check: String,
    pub verdict: Verdict,
    pub words: String,
    /// What the owner can do; only where something is to be done.
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, but not as well as it could, or not for long.
    Warn,
    /// Somebody will see no picture because of this.
    Fail,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    /// Camera, encoder, broker: what a first start needs to know.
    Picture,
}

impl Report {
    pub fn failures(&self) -> usize {
        self.lines.iter().filter(|line| line.verdict == Verdict::Fail).count()
    }
}

/// Looks at the configuration and at everything it leads to. Opens cameras for a moment, unless a daemon has them; asks the
/// servers that viewers are told of. Takes some seconds, up to two minutes where drivers hang.
pub async fn examine(sources: &Sources, scope: Scope, now: SystemTime) -> Report {
    let facts = facts::gather(sources, scope, now).await;
    Report { about: facts.about.to_string(), lines: judge::judge(&facts) }
}
