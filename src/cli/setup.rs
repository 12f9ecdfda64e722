//! `edgecam setup`: from a fresh installation to a link that shows a picture.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;
use edgecam::config::{Config, Sources};
use edgecam::doctor::{self, Scope};
use edgecam::setup::{self, Plan};
use edgecam::signaling::token::{self, Grant, Permission};

use super::{ConfigArgs, Ttl, link, ttl};

#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How long the link holds: 90s, 15m, 1h, 30d; never: until the key is changed
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = ttl)]
    ttl: Ttl,
    /// Restart the service when all is written
    #[arg(long)]
    yes: bool,
}

/// Writes what is missing, looks whether pictures come, and prints the viewer's link. A second time writes nothing and makes a
/// fresh link.
///
/// # Errors
/// What is wrong with the configuration; what cannot be written; a service that does not start; a closed stdout.
pub(crate) async fn setup(args: SetupArgs, now: SystemTime) -> anyhow::Result<()> {
    let SetupArgs { config, ttl, yes } = args;
    let sources = config.sources();
    let plan = Plan::new(&setup::look(&sources)?);
    plan.carry_out(&token::new_key())?;
    print_what_was_done(&plan)?;
    let config = Config::load(&sources)?;
    for warning in &config.warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }

    let report = doctor::examine(&sources, Scope::Picture, now).await;
    writeln!(io::stdout(), "\n{}", super::doctor::text(&report, io::stdout().is_terminal()))?;

    restart(&sources, yes)?;
    print_link(&config, ttl, now)
}

fn print_what_was_done(plan: &Plan) -> io::Result<()> {
    let mut stdout = io::stdout();
    if let Some(path) = plan.new_key() {
        writeln!(stdout, "made   {}, the key that signs tokens", path.display())?;
    }
    if let (Some(path), Some(text)) = (plan.new_drop_in(), &plan.drop_in) {
        writeln!(stdout, "wrote  {}:", path.display())?;
        let settings = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        settings.into_iter().try_for_each(|line| writeln!(stdout, "         {line}"))?;
    }
    plan.kept.iter().try_for_each(|kept| writeln!(stdout, "kept   {kept}"))
}

/// The service takes up what was written when it starts again.
fn restart(sources: &Sources, yes: bool) -> anyhow::Result<()> {
    if !sources.is_the_services() || !is_service_known() {
        return Ok(());
    }
    if !yes {
        writeln!(io::stdout(), "Next: sudo systemctl restart edgecam")?;
        return Ok(());
    }
    let status = Command::new("systemctl").args(["restart", "edgecam"]).status().context("systemctl cannot be run")?;
    if !status.success() {
        bail!("the service does not start; its last words: journalctl -u edgecam -n 30");
    }
    writeln!(io::stdout(), "The service runs with it now.")?;
    Ok(())
}

fn is_service_known() -> bool {
    let show = ["show", "edgecam", "-p", "LoadState", "--value"];
    let runs = Path::new("/run/systemd/system").exists();
    let output = runs.then(|| Command::new("systemctl").args(show).stderr(Stdio::null()).output());
    matches!(output, Some(Ok(output)) if output.stdout.trim_ascii() == b"loaded")
}

fn print_link(config: &Config, ttl: Ttl, now: SystemTime) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    let grant = Grant { camera: None, permissions: vec![Permission::View], subject: None };
    if ttl.0.is_some() && !token::is_clock_set(now) {
        bail!("this machine's clock is not set, so a link would be void at once; run edgecam setup again when it is");
    }
    let token = link::token(config, &grant, ttl.0, now);
    match (&token, ttl.0) {
        _ if config.listen.ip().is_loopback() => {
            writeln!(stdout, "The page is for this machine only, as [http] listen says:")?;
        }
        (None, _) => writeln!(stdout, "Anyone who reaches this machine may watch:")?,
        (Some(_), None) => writeln!(stdout, "Who has this link may watch, until the key is changed:")?,
        (Some(_), Some(time)) => {
            writeln!(stdout, "Who has this link may watch, for {}:", in_words(time.as_secs()))?;
        }
    }
    link::print(&link::links(config, None, token.as_deref()))?;
    Ok(())
}

/// In the largest unit that says it whole.
fn in_words(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")];
    let unit = UNITS.iter().find(|(size, _)| seconds.is_multiple_of(*size));
    unit.map_or_else(String::new, |(size, name)| format!("{} {name}", seconds / size))
}
