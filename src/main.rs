//! The commands, and what they end with: 0 done, 64 usage, 78 configuration, 1 gave up.

mod cli;

use std::env;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{self, ExitCode};
use std::time::SystemTime;

use anyhow::Context;
use clap::Parser;
use edgecam::config::{Config, ConfigError, Sources};
use edgecam::{camera, telemetry};
use tokio::runtime::{Builder, Runtime};

use self::cli::{Cli, Command, ConfigCommand, MqttCommand};

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(usage) => return usage_exit(&usage),
    };
    let outcome = match command {
        Command::Run(args) => run(&args.sources()),
        Command::Check(args) => cli::check(args),
        Command::Devices(args) => cli::devices(&args),
        Command::Doctor(args) => asked(|| cli::doctor(args, wall_clock())),
        Command::Setup(args) => asked(|| cli::setup(args, wall_clock())),
        Command::Token(args) => cli::token(args, wall_clock()),
        Command::Probe(args) => runtime().and_then(|runtime| runtime.block_on(cli::probe(args))),
        Command::Mqtt(MqttCommand::Forget(args)) => mqtt_forget(&args.sources()),
        Command::Page(args) => cli::page(args),
        Command::Config(ConfigCommand::Show(args)) => cli::show_config(args),
        Command::Completions { shell } => cli::completions(shell),
        Command::Man => cli::manual(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(io::stderr(), "edgecam: {error:#}");
            ExitCode::from(if error.is::<ConfigError>() { EX_CONFIG } else { GAVE_UP })
        }
    }
}

/// The daemon: settings are complete before a port or a camera is touched.
fn run(sources: &Sources) -> anyhow::Result<()> {
    start_over_with(&camera::ENVIRONMENT)?;
    let config = Config::load(sources)?;
    telemetry::init(&config.log, sources.environment.get("JOURNAL_STREAM").map(String::as_str))?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = runtime()?;
    let outcome = runtime.block_on(edgecam::app::run(config));
    // A camera's driver that hangs in a thread must not keep us.
    runtime.shutdown_background();
    outcome
}

/// Logs, so that a broker that cannot be reached is explained.
fn mqtt_forget(sources: &Sources) -> anyhow::Result<()> {
    let config = Config::load(sources)?;
    telemetry::init(&config.log, None)?;
    runtime()?.block_on(cli::mqtt_forget(config))
}

/// A command that opens cameras as the daemon does.
fn asked<F: Future<Output = anyhow::Result<()>>>(command: impl FnOnce() -> F) -> anyhow::Result<()> {
    start_over_with(&camera::ENVIRONMENT)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(command());
    // What hangs in a thread must not keep us.
    runtime.shutdown_background();
    outcome
}

/// Makes sure that these variables stand in the environment. A process cannot safely set them while it runs, so it starts over;
/// it stays the same process to whoever started it.
fn start_over_with(variables: &[(&str, &str)]) -> anyhow::Result<()> {
    if variables.iter().all(|(name, _)| env::var_os(name).is_some()) {
        return Ok(());
    }
    let program = env::current_exe().context("edgecam cannot find its own program")?;
    let error = process::Command::new(program).args(env::args_os().skip(1)).envs(variables.iter().copied()).exec();
    Err(error).context("edgecam cannot start over")
}

/// One thread is enough: what takes long has threads of its own.
fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("the event loop cannot start")
}

/// `--help` and `--version` are answers; everything else clap reports is a mistake.
fn usage_exit(usage: &clap::Error) -> ExitCode {
    let _ = usage.print();
    if usage.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS }
}

#[expect(clippy::disallowed_methods, reason = "the edge: a token's times are wall-clock times")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// sysexits.h
const EX_USAGE: u8 = 64;
const EX_CONFIG: u8 = 78;
const GAVE_UP: u8 = 1;
