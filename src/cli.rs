//! The command line: what can be said to edgecam, and the answers of the commands that only print.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use edgecam::config::{Config, Flag, Sources};

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
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
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
    let Config { device, http, .. } = &config;
    writeln!(io::stdout(), "good: device {device}, cameras {}, page on http://{}/", cameras.join(", "), http.listen)?;
    Ok(())
}

/// # Errors
/// Keys and types that are wrong; a closed stdout.
pub(crate) fn show_config(args: ConfigArgs) -> anyhow::Result<()> {
    io::stdout().write_all(Config::show(&args.sources())?.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
