//! The command line: what can be said to edgecam, and the answers of the commands that only print.

mod devices;
mod doctor;
mod link;
mod page;
mod setup;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use edgecam::config::{Config, Flag, Sources};
use edgecam::core::signal::CameraId;
use edgecam::probe::{self, Endpoint, ProbeSettings};
use edgecam::signaling::mqtt;
use edgecam::signaling::token::{Grant, Permission};
use tokio_util::sync::CancellationToken;

pub(crate) use self::devices::{DevicesArgs, devices};
pub(crate) use self::doctor::{DoctorArgs, doctor};
pub(crate) use self::page::{PageArgs, page};
pub(crate) use self::setup::{SetupArgs, setup};

/// A camera in a browser, from a small Linux board.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon; without a configuration, a test camera for this machine only
    Run(RunArgs),
    /// Check the configuration and touch nothing else; exit with 0, or 78 and say what is wrong
    Check(ConfigArgs),
    /// List cameras, formats, controls and encoders, and what edgecam would take
    Devices(DevicesArgs),
    /// Look at everything a picture needs: permissions, camera, encoder, ports, servers, clock; exit with 1 when something fails
    Doctor(DoctorArgs),
    /// Make the key and the settings a fresh installation lacks, and print the viewer's link
    Setup(SetupArgs),
    /// Make a token that lets its bearer in, and print it
    Token(TokenArgs),
    /// Watch a camera for five seconds without a screen, and say what came; exit with 1 when no picture does
    Probe(ProbeArgs),
    /// Deal with the MQTT broker
    #[command(subcommand)]
    Mqtt(MqttCommand),
    /// Print a page, one file for any web server, that shows every camera of the devices behind an MQTT broker
    Page(PageArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell, for a file that it reads at its start
    Completions { shell: Shell },
    /// Print the manual page, for the package
    #[command(hide = true)]
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file, in place of /etc/edgecam/edgecam.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Set http.listen
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Set log.level
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Set log.format
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// For this camera only; left out: for all of them
    #[arg(long, value_name = "ID")]
    camera: Option<String>,
    /// What the bearer may do
    #[arg(long, value_delimiter = ',', value_name = "WHAT", default_value = "view")]
    allow: Vec<Allow>,
    /// How long it holds: 90s, 15m, 1h, 30d; never: until the key is changed
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = ttl)]
    ttl: Ttl,
    /// Print the viewer's link that holds the token, and its QR code
    #[arg(long)]
    link: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Allow {
    View,
    Control,
}

/// `None`: never ends. A name of its own, as clap takes a plain `Option` for "may be left out".
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ttl(Option<Duration>);

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// A camera's page or WHEP endpoint: http://192.168.1.5:8080/front, with #token=… where one is needed
    url: String,
    /// Take the token from this file in place of the URL
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to watch, from the first picture on
    #[arg(long, value_name = "N", default_value_t = 5)]
    seconds: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MqttCommand {
    /// Take back everything the broker keeps of this device, Home Assistant's announcement too; stop the daemon first
    Forget(ConfigArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print what holds now, and where each value was set
    Show(ConfigArgs),
}

impl RunArgs {
    pub(crate) fn sources(self) -> Sources {
        let flag = |name, key, value: Option<String>| value.map(|value| Flag { name, key, value });
        let flags = [
            flag("--listen", "http.listen", self.listen),
            flag("--log-level", "log.level", self.log_level),
            flag("--log-format", "log.format", self.log_format),
        ];
        Sources::of_this_process(self.config.config, flags.into_iter().flatten().collect())
    }
}

impl ConfigArgs {
    pub(crate) fn sources(self) -> Sources {
        Sources::of_this_process(self.config, Vec::new())
    }
}

/// Prints that the configuration is good, and what it leads to.
///
/// # Errors
/// What is wrong with the configuration; a closed stdout.
pub(crate) fn check(args: ConfigArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.sources())?;
    for warning in &config.warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    let cameras: Vec<&str> = config.cameras.iter().map(|camera| camera.id.as_str()).collect();
    let Config { device, listen, .. } = &config;
    writeln!(io::stdout(), "good: device {device}, cameras {}, page on http://{listen}/", cameras.join(", "))?;
    Ok(())
}

/// # Errors
/// Keys and types that are wrong; a closed stdout.
pub(crate) fn show_config(args: ConfigArgs) -> anyhow::Result<()> {
    io::stdout().write_all(Config::show(&args.sources())?.as_bytes())?;
    Ok(())
}

/// # Errors
/// A closed stdout.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "edgecam", &mut text);
    Ok(io::stdout().write_all(&text)?)
}

/// # Errors
/// A closed stdout.
pub(crate) fn manual() -> anyhow::Result<()> {
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(Cli::command().disable_help_subcommand(true));
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_subcommands_section(&mut text)?;
    text.extend(MANUAL_END.as_bytes());
    Ok(io::stdout().write_all(&text)?)
}

/// What a manual page has beyond the commands; roff.
const MANUAL_END: &str = include_str!("manual_end.roff");

/// Prints a token for this device, signed with its key.
///
/// # Errors
/// There is no key or no such camera; what is wrong with the configuration; a closed stdout.
pub(crate) fn token(args: TokenArgs, now: SystemTime) -> anyhow::Result<()> {
    let TokenArgs { config, camera, allow, ttl, link } = args;
    let config = Config::load(&config.sources())?;
    let camera = camera.map(|id| known_camera(&id, &config)).transpose()?;
    let permissions = allow.into_iter().map(|allow| match allow {
        Allow::View => Permission::View,
        Allow::Control => Permission::Control,
    });
    let grant = Grant { camera, permissions: permissions.collect(), subject: None };
    let Some(token) = link::token(&config, &grant, ttl.0, now) else {
        bail!("this device asks for no tokens, so it can make none; set auth.token_key_file");
    };
    if link {
        link::print(&link::links(&config, grant.camera.as_ref(), Some(&token)))?;
    } else {
        writeln!(io::stdout(), "{token}")?;
    }
    Ok(())
}

/// Watches a camera and prints what came.
///
/// # Errors
/// The URL cannot be used, the camera cannot be reached or shows nothing; a closed stdout.
pub(crate) async fn probe(args: ProbeArgs) -> anyhow::Result<()> {
    let mut endpoint = Endpoint::parse(&args.url)?;
    if let Some(path) = args.token_file {
        let token = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        endpoint = endpoint.with_token(token.trim().to_owned());
    }
    let stopping = CancellationToken::new();
    let settings = ProbeSettings { watch: Duration::from_secs(args.seconds), ..ProbeSettings::new(endpoint) };
    let watching = probe::run(settings, stopping.clone());
    tokio::pin!(watching);
    let report = tokio::select! {
        report = &mut watching => report,
        _ = tokio::signal::ctrl_c() => {
            stopping.cancel();
            watching.await
        }
    }?;
    writeln!(io::stdout(), "{report}")?;
    match report.shortfall() {
        Some(shortfall) => Err(shortfall.into()),
        None => Ok(()),
    }
}

/// Clears the topics that the broker keeps of this device, and prints them.
///
/// # Errors
/// There is no broker, or it cannot be reached; what is wrong with the configuration; a closed stdout.
pub(crate) async fn mqtt_forget(config: Config) -> anyhow::Result<()> {
    let Some(settings) = config.mqtt else { bail!("no broker is configured; set mqtt.url") };
    let cameras: Vec<CameraId> = config.cameras.iter().map(|camera| camera.id.clone()).collect();
    for topic in mqtt::forget(settings, &config.device, &cameras).await? {
        writeln!(io::stdout(), "cleared: {topic}")?;
    }
    Ok(())
}

fn known_camera(id: &str, config: &Config) -> anyhow::Result<CameraId> {
    let ids: Vec<&str> = config.cameras.iter().map(|camera| camera.id.as_str()).collect();
    let camera = config.cameras.iter().find(|camera| camera.id.as_str() == id);
    camera
        .map(|camera| camera.id.clone())
        .ok_or_else(|| anyhow!("there is no camera {id}; there is {}", ids.join(", ")))
}

/// `90s`, `15m`, `1h`, `30d` or `never`.
fn ttl(text: &str) -> Result<Ttl, String> {
    if text == "never" {
        return Ok(Ttl(None));
    }
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => 0,
    };
    let time = number.parse::<u32>().ok().map(|number| u64::from(number) * seconds).filter(|time| *time > 0);
    time.map(|time| Ttl(Some(Duration::from_secs(time)))).ok_or_else(|| "write 90s, 15m, 1h, 30d or never".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_has_one_unit() {
        assert_eq!(ttl("90s"), Ok(Ttl(Some(Duration::from_secs(90)))));
        assert_eq!(ttl("30d"), Ok(Ttl(Some(Duration::from_secs(30 * 86_400)))));
        assert_eq!(ttl("never"), Ok(Ttl(None)));
        for bad in ["", "h", "1", "0m", "-1h", "1.5h", "1h30m", "99999999999s", "1ü"] {
            assert!(ttl(bad).is_err(), "{bad:?} was taken");
        }
    }
}
