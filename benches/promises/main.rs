//! What the product promises, measured beside Janus and aiortc in the same run. `make bench`.
//!
//! Prints the tables of `docs/benchmarks.md` on its output and its progress on stderr. Arguments choose parts
//! (`first-picture`, `load`, `ladder`, `sessions`, `idle`, `mqtt`) and `short`, which only shows that everything works.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

#[path = "../../tests/support/broker.rs"]
mod broker;
#[path = "../../tests/support/mqtt_client.rs"]
mod client;
mod contestant;
mod crowd;
mod feed;
mod histogram;
mod measures;
mod mqtt;
#[path = "../../tests/support/ports.rs"]
mod ports;
mod signin;
mod spread;
mod tables;
mod usage;
mod viewer;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use contestant::Contestant;
use measures::Plan;

const PARTS: [&str; 6] = ["first-picture", "load", "ladder", "sessions", "idle", "mqtt"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        // The parts this program plays besides the director's, as processes of their own.
        ["viewers", kind, url, host, thorough_every] => crowd::run(
            signin::Door::parse(kind, url)?,
            host.parse().context("which address?")?,
            thorough_every.parse().context("every how many?")?,
        ),
        ["feed", clip, port] => feed::run(clip.as_ref(), port.parse().context("which port?")?),
        // `cargo bench` says so with this; anything else that runs all targets means no measurement.
        _ if arguments.contains(&"--bench") => measure(&arguments),
        _ => {
            eprintln!("nothing measured; use `make bench`");
            Ok(())
        }
    }
}

fn measure(arguments: &[&str]) -> Result<()> {
    let wanted: Vec<&str> = arguments.iter().copied().filter(|part| !part.starts_with("--")).collect();
    if let Some(unknown) = wanted.iter().find(|part| !PARTS.contains(part) && **part != "short") {
        bail!("there is no part {unknown:?}; there are {PARTS:?} and \"short\"");
    }
    let is_short = wanted.contains(&"short");
    let parts: Vec<&str> = PARTS.into_iter().filter(|part| wanted.contains(part)).collect();
    let wants = |part| parts.is_empty() || parts.contains(&part);
    let work = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/promises");
    std::fs::create_dir_all(&work)?;
    let clip = make_clip(&work)?;
    let contestants: Vec<Contestant> = Contestant::ALL.into_iter().filter(|it| it.is_installed()).collect();
    let plan = if is_short {
        Plan {
            turns: 1,
            look: Duration::from_secs(2),
            joins: 3,
            cold_joins: 2,
            sessions: 100,
            offers: 10,
            devices: 100,
            clip: &clip,
            work: &work,
            contestants,
        }
    } else {
        Plan {
            turns: 3,
            look: Duration::from_secs(10),
            joins: 100,
            cold_joins: 30,
            sessions: 10_000,
            offers: 200,
            devices: 1000,
            clip: &clip,
            work: &work,
            contestants,
        }
    };

    println!("{}", tables::heading(&parts, is_short));
    if wants("first-picture") {
        let mut open = Vec::new();
        for &contestant in &plan.contestants {
            open.push((contestant, measures::joins_to_an_open_camera(&plan, contestant)?));
        }
        println!("{}", tables::first_pictures(&open, &measures::joins_to_a_closed_camera(&plan)?));
    }
    if wants("load") {
        let numbers = if is_short { [1, 2, 4] } else { [1, 10, 50] };
        println!("{}", tables::loads(&measures::loads(&plan, &numbers)?));
    }
    if wants("ladder") {
        let (step, most) = if is_short { (10, 20) } else { (100, 1000) };
        println!("{}", tables::ladder(&measures::ladder(&plan, Contestant::Edgecam, step, most)?));
    }
    if wants("sessions") {
        println!("{}", tables::sessions(&measures::sessions(&plan)?));
    }
    if wants("idle") {
        println!("{}", tables::idle(&measures::idle(&plan)?));
    }
    if wants("mqtt") {
        println!("{}", tables::mqtt(&mqtt::answers(&plan)?, &mqtt::flooded(&plan)?, &mqtt::presence(&plan)?));
    }
    Ok(())
}

/// The stream everybody sends: 1280x720, 30 pictures and about 2 Mbit a second, a keyframe every 2 s; 20 s of it.
fn make_clip(work: &Path) -> Result<PathBuf> {
    let clip = work.join("clip.h264");
    if clip.exists() {
        return Ok(clip);
    }
    let unfinished = work.join("clip.h264.unfinished");
    let graph = format!(
        "videotestsrc num-buffers=600 pattern=zone-plate kx2=14 ky2=10 kt=2 kt2=1 \
         ! video/x-raw,format=I420,width=1280,height=720,framerate=30/1 \
         ! x264enc bitrate=2150 threads=1 tune=zerolatency speed-preset=superfast key-int-max=60 bframes=0 \
         ! video/x-h264,profile=constrained-baseline ! h264parse config-interval=-1 \
         ! video/x-h264,stream-format=byte-stream,alignment=au ! filesink location={}",
        unfinished.display()
    );
    let made = Command::new("gst-launch-1.0").arg("-q").args(graph.split_whitespace()).status();
    ensure!(made.context("gst-launch-1.0 is needed to make the clip")?.success(), "the clip could not be made");
    std::fs::rename(unfinished, &clip)?;
    Ok(clip)
}
