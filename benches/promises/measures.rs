//! The measurements, each with what it gives.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::contestant::{Contestant, Server, Show, Viewers};
use crate::histogram::Histogram;
use crate::usage::Usage;

/// Where things are, and how long to look.
pub(crate) struct Plan<'a> {
    pub(crate) clip: &'a Path,
    /// For configurations and logs.
    pub(crate) work: &'a Path,
    pub(crate) contestants: Vec<Contestant>,
    /// Turns through all contestants; medians are of these.
    pub(crate) turns: usize,
    /// How long one figure is looked at.
    pub(crate) look: Duration,
    pub(crate) joins: usize,
    pub(crate) cold_joins: usize,
    pub(crate) sessions: usize,
    /// By each way, for the time to the answer.
    pub(crate) offers: usize,
    /// On one broker.
    pub(crate) devices: usize,
}

/// Viewers come so many at once where only their number matters.
const AT_ONCE: usize = 8;

/// After viewers came, before they are measured: longer than a keyframe interval.
const SETTLE: Duration = Duration::from_secs(3);

const HD: Show<'_> = Show::TestPicture { width: 1280, height: 720, linger_s: 10 };

/// One server with so many viewers, for a while.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) viewers: usize,
    /// Percent of one core, all threads of the server.
    pub(crate) cpu: f64,
    pub(crate) rss_kib: f64,
    pub(crate) packets_per_second: f64,
    /// Whole pictures, per viewer.
    pub(crate) pictures_per_second: f64,
    pub(crate) lost: f64,
    /// First packet of a picture to anybody → its last packet to each viewer, as the kernel saw them: p50 and p99.
    pub(crate) spread_ms: [f64; 2],
    /// What edgecam says of itself: out of the encoder → last packet handed to the kernel, for each viewer: p50 and p99.
    pub(crate) delay_ms: Option<[f64; 2]>,
}

/// CPU, memory and delay at several numbers of viewers, a pre-encoded clip for all.
pub(crate) fn loads(plan: &Plan<'_>, numbers: &[usize]) -> Result<BTreeMap<Contestant, Vec<Vec<Load>>>> {
    let mut all: BTreeMap<Contestant, Vec<Vec<Load>>> = BTreeMap::new();
    for turn in 1..=plan.turns {
        for &contestant in &plan.contestants {
            let server = Server::start(contestant, plan.clip, Show::Clip(plan.clip), plan.work)?;
            let mut viewers = Viewers::of(&server, 1)?;
            let mut there = 0;
            for (index, &number) in numbers.iter().enumerate() {
                eprintln!("load, turn {turn} of {}: {} with {number}", plan.turns, contestant.name());
                join(&mut viewers, number - there)?;
                there = number;
                let load = look(&server, &mut viewers, plan.look)?;
                let of_contestant = all.entry(contestant).or_insert_with(|| vec![Vec::new(); numbers.len()]);
                of_contestant[index].push(load);
            }
        }
    }
    Ok(all)
}

/// More and more viewers until pictures come late or not at all. Gives every step.
pub(crate) fn ladder(plan: &Plan<'_>, contestant: Contestant, step: usize, most: usize) -> Result<Vec<Load>> {
    // All viewers answer checks and receive everything; decrypting it all would be more than the receivers' CPU can do.
    const THOROUGH_EVERY: usize = 25;
    let server = Server::start(contestant, plan.clip, Show::Clip(plan.clip), plan.work)?;
    let mut viewers = Viewers::of(&server, THOROUGH_EVERY)?;
    let mut steps = Vec::new();
    for number in (step..=most).step_by(step) {
        eprintln!("ladder: {} with {number}", contestant.name());
        if join(&mut viewers, step).is_err() {
            break;
        }
        let load = look(&server, &mut viewers, plan.look)?;
        let too_late = load.delay_ms.unwrap_or(load.spread_ms)[1] > 33.0;
        let too_few = load.pictures_per_second < 29.0;
        steps.push(load);
        if too_late || too_few {
            break;
        }
    }
    Ok(steps)
}

/// Milliseconds from the offer (or the request to watch) to the first whole keyframe, while somebody else watches.
pub(crate) fn joins_to_an_open_camera(plan: &Plan<'_>, contestant: Contestant) -> Result<Vec<f64>> {
    eprintln!("first picture, camera open: {}", contestant.name());
    let server = Server::start(contestant, plan.clip, HD, plan.work)?;
    let mut viewers = Viewers::of(&server, 1)?;
    join(&mut viewers, 1)?;
    sleep(SETTLE);
    let mut times = Vec::new();
    for index in 0..plan.joins {
        times.extend(visit(&mut viewers, 1, 1)?);
        // Past the least gap between keyframes, and at no fixed place between two of them.
        sleep(Duration::from_millis(600 + (index as u64 * 379) % 700));
    }
    Ok(times)
}

/// The same with the camera closed before each.
pub(crate) fn joins_to_a_closed_camera(plan: &Plan<'_>) -> Result<Vec<f64>> {
    eprintln!("first picture, camera closed");
    let show = Show::TestPicture { width: 1280, height: 720, linger_s: 0 };
    let server = Server::start(Contestant::Edgecam, plan.clip, show, plan.work)?;
    let mut viewers = Viewers::of(&server, 1)?;
    let mut times = Vec::new();
    for _ in 0..plan.cold_joins {
        wait_until_idle(&server)?;
        sleep(Duration::from_millis(300));
        times.extend(visit(&mut viewers, 1, 1)?);
    }
    Ok(times)
}

/// The daemon with nobody watching.
pub(crate) struct Idle {
    pub(crate) cpu: f64,
    pub(crate) wakes_per_second: f64,
    pub(crate) rss_kib: f64,
}

/// Before the first viewer, and after the last one left.
pub(crate) fn idle(plan: &Plan<'_>) -> Result<[Idle; 2]> {
    let show = Show::TestPicture { width: 1280, height: 720, linger_s: 0 };
    let server = Server::start(Contestant::Edgecam, plan.clip, show, plan.work)?;
    let look = || {
        eprintln!("idle");
        let before = Usage::of(server.pid())?;
        sleep(plan.look * 3);
        let after = Usage::of(server.pid())?;
        let used = after.since(&before);
        let (cpu, wakes_per_second) = (used.cpu(), used.wakes_per_second);
        Ok::<_, anyhow::Error>(Idle { cpu, wakes_per_second, rss_kib: after.rss_kib as f64 })
    };
    let fresh = look()?;
    let mut viewers = Viewers::of(&server, 1)?;
    visit(&mut viewers, 1, 1)?;
    wait_until_idle(&server)?;
    Ok([fresh, look()?])
}

/// What the daemon holds after so many sessions have come and gone.
pub(crate) struct Held {
    pub(crate) sessions: usize,
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) tasks: usize,
}

/// Sessions that come, see a picture and leave, and what stays behind.
pub(crate) fn sessions(plan: &Plan<'_>) -> Result<Vec<Held>> {
    const LOTS: usize = 10;
    // Small pictures: the encoder is not what is looked at.
    let show = Show::TestPicture { width: 320, height: 240, linger_s: 60 };
    let server = Server::start(Contestant::Edgecam, plan.clip, show, plan.work)?;
    let mut viewers = Viewers::of(&server, 1)?;
    visit(&mut viewers, 32, 32)?;
    let mut held = Vec::new();
    let lot = plan.sessions / LOTS;
    for done in 0..=LOTS {
        wait_until_nobody_watches(&server)?;
        let usage = Usage::of(server.pid())?;
        eprintln!("sessions: {} of {}, {} KiB", done * lot, plan.sessions, usage.rss_kib);
        let (rss_kib, descriptors, threads) = (usage.rss_kib, usage.descriptors, usage.threads());
        let tasks = tasks(&server.page("/metrics")?)?;
        held.push(Held { sessions: done * lot, rss_kib, descriptors, threads, tasks });
        if done < LOTS {
            visit(&mut viewers, lot, 32)?;
        }
    }
    Ok(held)
}

/// The daemon's own count.
fn tasks(metrics: &str) -> Result<usize> {
    let line = metrics.lines().find_map(|line| line.strip_prefix("edgecam_tasks "));
    line.and_then(|number| number.trim().parse().ok()).context("/metrics has no edgecam_tasks")
}

fn look(server: &Server, viewers: &mut Viewers, time: Duration) -> Result<Load> {
    sleep(SETTLE);
    let own_delay = || match server.contestant() {
        contestant if contestant.is_edgecam() => {
            server.page("/metrics").map(|metrics| Histogram::read(&metrics, SEND_DELAY))
        }
        _ => Ok(None),
    };
    viewers.tell("mark")?;
    let (delays_before, before) = (own_delay()?, Usage::of(server.pid())?);
    sleep(time);
    let (after, delays_after) = (Usage::of(server.pid())?, own_delay()?);
    let report = viewers.tell("report")?;
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let delay_ms = match (delays_before, delays_after) {
        (Some(before), Some(after)) => {
            let delays = after.since(&before);
            Some([0.5, 0.99].map(|q| delays.quantile(q).unwrap_or(f64::NAN) * 1000.0))
        }
        _ => None,
    };
    Ok(Load {
        viewers: report["viewers"].as_u64().context("no number of viewers")? as usize,
        cpu: after.since(&before).cpu(),
        rss_kib: after.rss_kib as f64,
        packets_per_second: number(&report["packets_per_second"]),
        pictures_per_second: number(&report["pictures_per_second"]),
        lost: number(&report["lost"]),
        spread_ms: [number(&report["spread_ms"]["p50"]), number(&report["spread_ms"]["p99"])],
        delay_ms,
    })
}

/// The histogram of edgecam's `/metrics`: from the encoder's output to a picture's last packet in the kernel's hands.
const SEND_DELAY: &str = "edgecam_send_delay_seconds";

fn join(viewers: &mut Viewers, number: usize) -> Result<()> {
    let outcome = viewers.tell(&format!("join {number} {AT_ONCE}"))?;
    ensure!(times(&outcome).len() == number, "not every viewer got a picture: {}", outcome["failures"]);
    Ok(())
}

fn visit(viewers: &mut Viewers, number: usize, at_once: usize) -> Result<Vec<f64>> {
    let outcome = viewers.tell(&format!("visit {number} {at_once}"))?;
    let times = times(&outcome);
    ensure!(times.len() == number, "not every viewer got a picture: {}", outcome["failures"]);
    Ok(times)
}

fn times(outcome: &Value) -> Vec<f64> {
    outcome["first_picture_ms"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn wait_until_idle(server: &Server) -> Result<()> {
    wait_until(server, |camera| camera["state"] == "idle")
}

fn wait_until_nobody_watches(server: &Server) -> Result<()> {
    wait_until(server, |camera| camera["viewers"] == 0)
}

fn wait_until(server: &Server, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let cameras: Value = serde_json::from_str(&server.page("/api/cameras")?)?;
        if wanted(&cameras["cameras"][0]) {
            return Ok(());
        }
        ensure!(Instant::now() < give_up, "the camera is not let go: {cameras}");
        sleep(Duration::from_millis(20));
    }
}
