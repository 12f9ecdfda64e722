//! `edgecam page`: the page of a fleet, printed.

use std::io::{self, Write};

use clap::Args;
use edgecam::web::page::{self, BrokerUrl, PageSettings, Prefix};

#[derive(Debug, Args)]
pub(crate) struct PageArgs {
    /// The broker's WebSocket listener
    #[arg(long, value_name = "WSS-URL")]
    mqtt: BrokerUrl,
    /// The devices' mqtt.prefix
    #[arg(long, default_value = "edgecam")]
    prefix: Prefix,
    /// What the page is called
    #[arg(long, default_value = "Cameras")]
    title: String,
}

/// Prints the page.
///
/// # Errors
/// A closed stdout.
pub(crate) fn page(args: PageArgs) -> anyhow::Result<()> {
    let PageArgs { mqtt: broker, prefix, title } = args;
    io::stdout().write_all(page::print(&PageSettings { broker, prefix, title }).as_bytes())?;
    Ok(())
}
