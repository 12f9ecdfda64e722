//! `edgecam doctor`: what was found, a line each.

use std::io::{self, IsTerminal, Write};
use std::time::SystemTime;

use anyhow::bail;
use clap::Args;
use edgecam::doctor::{self, Line, Report, Scope, Verdict};

use super::ConfigArgs;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Prints what was found, and what to do about it.
///
/// # Errors
/// Something fails; a closed stdout.
pub(crate) async fn doctor(args: DoctorArgs, now: SystemTime) -> anyhow::Result<()> {
    let report = doctor::examine(&args.config.sources(), Scope::Everything, now).await;
    if args.json {
        serde_json::to_writer_pretty(io::stdout(), &report)?;
        writeln!(io::stdout())?;
    } else {
        writeln!(io::stdout(), "{}\n", report.about)?;
        io::stdout().write_all(text(&report, io::stdout().is_terminal()).as_bytes())?;
    }
    match report.failures() {
        0 => Ok(()),
        1 => bail!("one check failed"),
        failures => bail!("{failures} checks failed"),
    }
}

/// A line for each look, and below it what to do.
pub(super) fn text(report: &Report, is_coloured: bool) -> String {
    let width = report.lines.iter().map(|line| line.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Line { check, verdict, words, remedy } in &report.lines {
        let (word, colour) = match verdict {
            Verdict::Ok => ("ok  ", "32"),
            Verdict::Warn => ("warn", "33"),
            Verdict::Fail => ("fail", "31"),
        };
        let word = if is_coloured { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
        text.push_str(&format!("{word}  {check:width$}  {words}\n"));
        if let Some(remedy) = remedy {
            text.push_str(&format!("      {:width$}  → {remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_stands_below_what_is_wrong() {
        let line = |check: &str, verdict, words: &str, remedy: Option<&str>| Line {
            check: check.into(),
            verdict,
            words: words.into(),
            remedy: remedy.map(str::to_owned),
        };
        let lines = vec![
            line("clock", Verdict::Ok, "is set", None),
            line("camera front", Verdict::Fail, "no camera at /dev/video0", Some("plug it in")),
        ];
        let report = Report { about: String::new(), lines };
        assert_eq!(
            text(&report, false),
            "ok    clock         is set\n\
             fail  camera front  no camera at /dev/video0\n      \
                                 → plug it in\n"
                .replace("      →", "                    →")
        );
        assert!(text(&report, true).contains("\x1b[31mfail\x1b[0m"));
    }
}
