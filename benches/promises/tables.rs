//! The figures as Markdown, with what was promised beside them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use crate::contestant::Contestant;
use crate::measures::{Held, Idle, Load};
use crate::mqtt::{Answers, Flooded, Presence};

pub(crate) fn heading(parts: &[&str], is_short: bool) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let profile = if cfg!(debug_assertions) { " Built without optimisation: the figures mean nothing." } else { "" };
    let short = if is_short { " A short run: the figures mean little." } else { "" };
    let command = ["make bench", &parts.join(" ")].join(" ");
    format!("Made by `{}` on {cores} cores of {cpu}, Linux {}.{profile}{short}\n", command.trim_end(), kernel.trim(),)
}

pub(crate) fn first_pictures(open: &[(Contestant, Vec<f64>)], closed: &[f64]) -> String {
    let mut out = "## First picture\n\nFrom the offer to the last packet of the first keyframe, in ms.\n\n\
                   | server, camera | joins | p50 | p99 | promised |\n|---|---|---|---|---|\n"
        .to_owned();
    for (contestant, times) in open {
        let promised = if *contestant == Contestant::Edgecam { verdict(median(times), 80.0) } else { String::new() };
        row(&mut out, &format!("{}, open", contestant.name()), times, &promised);
    }
    row(&mut out, "edgecam, closed, test picture", closed, &verdict(median(closed), 600.0));
    out
}

fn row(out: &mut String, name: &str, times: &[f64], promised: &str) {
    let (p50, p99) = (median(times), quantile(times, 0.99));
    let digits = if p50 < 10.0 { 2 } else { 0 };
    line(out, &[name, &times.len().to_string(), &format!("{p50:.digits$}"), &format!("{p99:.digits$}"), promised]);
}

pub(crate) fn loads(all: &BTreeMap<Contestant, Vec<Vec<Load>>>) -> String {
    let mut out = "## Load\n\nA pre-encoded clip for all, so nothing is encoded; medians of the turns. CPU in % of a core \
                   for each viewer; spread: from a picture's first packet to anybody to its last packet to each viewer; \
                   added: from the encoder's output to the last packet in the kernel's hands, by edgecam itself.\n\n\
                   | server | viewers | CPU/viewer | promised | RSS MiB | pictures/s | packets/s | lost | spread ms p50, p99 \
                   | added ms p50, p99 | promised |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (contestant, by_number) in all {
        for turns in by_number {
            let of = |figure: fn(&Load) -> f64| median(&turns.iter().map(figure).collect::<Vec<_>>());
            let viewers = turns.first().map_or(0, |load| load.viewers);
            let cpu = of(|load| load.cpu / load.viewers as f64);
            let added = |at: usize| {
                let delays: Vec<f64> = turns.iter().filter_map(|load| Some(load.delay_ms?[at])).collect();
                (!delays.is_empty()).then(|| median(&delays))
            };
            let edgecam = *contestant == Contestant::Edgecam;
            let promised_cpu = match viewers {
                10 if edgecam => verdict(cpu, 0.15),
                50 if edgecam => verdict(cpu, 0.11),
                _ => String::new(),
            };
            let promised_delay = match (viewers, added(0), added(1)) {
                (10, Some(p50), Some(p99)) => format!("{}, {}", verdict(p50, 0.5), verdict(p99, 3.0)),
                (50, _, Some(p99)) => verdict(p99, 10.0),
                _ => String::new(),
            };
            let pair = |a: Option<f64>, b: Option<f64>| match (a, b) {
                (Some(a), Some(b)) => format!("{a:.2}, {b:.2}"),
                _ => String::new(),
            };
            line(
                &mut out,
                &[
                    contestant.name(),
                    &viewers.to_string(),
                    &format!("{cpu:.3}"),
                    &promised_cpu,
                    &format!("{:.1}", of(|load| load.rss_kib) / 1024.0),
                    &format!("{:.1}", of(|load| load.pictures_per_second)),
                    &format!("{:.0}", of(|load| load.packets_per_second)),
                    &format!("{:.0}", of(|load| load.lost)),
                    &pair(Some(of(|load| load.spread_ms[0])), Some(of(|load| load.spread_ms[1]))),
                    &pair(added(0), added(1)),
                    &promised_delay,
                ],
            );
        }
    }
    out.push_str(&memory_per_viewer(all));
    out.push_str(&against_janus(all));
    out
}

fn memory_per_viewer(all: &BTreeMap<Contestant, Vec<Vec<Load>>>) -> String {
    let mut out = String::new();
    for (contestant, by_number) in all {
        let point = |turns: &Vec<Load>| {
            let rss: Vec<f64> = turns.iter().map(|load| load.rss_kib / 1024.0).collect();
            Some((turns.first()?.viewers as f64, median(&rss)))
        };
        let (Some((few, low)), Some((many, high))) =
            (by_number.first().and_then(point), by_number.last().and_then(point))
        else {
            continue;
        };
        let each = (high - low) / (many - few);
        let promised = if *contestant == Contestant::Edgecam { verdict(each, 0.8) } else { String::new() };
        let _ = writeln!(out, "\n{}: {each:.2} MiB for each further viewer. {promised}", contestant.name());
    }
    out
}

fn against_janus(all: &BTreeMap<Contestant, Vec<Vec<Load>>>) -> String {
    let (Some(ours), Some(janus)) = (all.get(&Contestant::Edgecam), all.get(&Contestant::Janus)) else {
        return String::new();
    };
    let mut out = String::new();
    for (ours, janus) in ours.iter().zip(janus) {
        let cpu = |turns: &[Load]| median(&turns.iter().map(|load| load.cpu).collect::<Vec<_>>());
        let viewers = ours.first().map_or(0, |load| load.viewers);
        let part = cpu(ours) / cpu(janus);
        let _ = writeln!(out, "\nCPU at {viewers} viewers, part of Janus': {part:.2}. {}", verdict(part, 0.5));
    }
    out
}

pub(crate) fn ladder(steps: &[Load]) -> String {
    let mut out =
        "## Most viewers on one core\n\nOne in 25 viewers decrypts everything, the others read RTP headers once \
                   they have a picture; all answer checks. The last line is the first that fails.\n\n\
                   | viewers | CPU % | added ms p50, p99 | spread ms p50, p99 | pictures/s | promised |\n\
                   |---|---|---|---|---|---|\n"
            .to_owned();
    for load in steps {
        let [added_50, added_99] = load.delay_ms.unwrap_or([f64::NAN; 2]);
        let [spread_50, spread_99] = load.spread_ms;
        let promised = if load.viewers == 500 { verdict(added_99, 33.0) } else { String::new() };
        line(
            &mut out,
            &[
                &load.viewers.to_string(),
                &format!("{:.0}", load.cpu),
                &format!("{added_50:.1}, {added_99:.1}"),
                &format!("{spread_50:.1}, {spread_99:.1}"),
                &format!("{:.1}", load.pictures_per_second),
                &promised,
            ],
        );
    }
    out
}

pub(crate) fn sessions(held: &[Held]) -> String {
    let mut out = "## Sessions that come and go\n\nAfter so many, with nobody watching and the camera open.\n\n\
                   | sessions | RSS MiB | file descriptors | threads | tasks |\n|---|---|---|---|---|\n"
        .to_owned();
    for Held { sessions, rss_kib, descriptors, threads, tasks } in held {
        let rss = *rss_kib as f64 / 1024.0;
        let counts = [sessions, descriptors, threads, tasks].map(usize::to_string);
        line(&mut out, &[&counts[0], &format!("{rss:.1}"), &counts[1], &counts[2], &counts[3]]);
    }
    out
}

pub(crate) fn idle(idle: &[Idle; 2]) -> String {
    let mut out = "## Idle, camera closed\n\n| | CPU % of a core | promised | wake-ups/s | RSS MiB | promised |\n\
                   |---|---|---|---|---|---|\n"
        .to_owned();
    for (when, Idle { cpu, wakes_per_second, rss_kib }) in
        ["before the first viewer", "after one viewer"].iter().zip(idle)
    {
        let rss = rss_kib / 1024.0;
        line(
            &mut out,
            &[
                when,
                &format!("{cpu:.3}"),
                &verdict(*cpu, 0.2),
                &format!("{wakes_per_second:.1}"),
                &format!("{rss:.1}"),
                &verdict(rss, 25.0),
            ],
        );
    }
    out
}

pub(crate) fn mqtt(answers: &[Answers], flooded: &Flooded, presence: &Presence) -> String {
    let mut out =
        "## Through a broker\n\nFrom the offer to the answer, in ms; by both ways in turn, with the same offer.\n\n\
                   | way | offers | p50 | p99 | promised |\n|---|---|---|---|---|\n"
            .to_owned();
    for Answers { broker, mqtt, websocket } in answers {
        row(&mut out, broker, mqtt, "");
        row(&mut out, "WebSocket, in the same turns", websocket, "");
    }
    let promised = verdict(quantile(&flooded.answers, 0.99), 1000.0);
    row(&mut out, "mosquitto as documented, beside a flood", &flooded.answers, &promised);
    for Answers { broker, mqtt, websocket } in answers {
        let ratio = median(mqtt) / median(websocket);
        let _ = writeln!(out, "\n{broker}: {ratio:.1} times the WebSocket's p50.");
    }
    let Flooded { sent_per_second, received_per_second, cpu, rss_kib, reconnects, .. } = flooded;
    let _ = writeln!(
        out,
        "\nThe flood: one client sends {sent_per_second:.0} messages a second, {received_per_second:.0} reach the device, \
         which uses {cpu:.1} % of a core and {:.1} MiB and connects {reconnects:.0} times anew.",
        rss_kib / 1024.0
    );
    let Presence { devices, messages, times } = presence;
    let _ = writeln!(
        out,
        "\nWhat {devices} devices keep with the broker ({messages} messages) is with a fresh subscriber after {:.0} ms (p50), \
         {:.0} ms at most.",
        median(times),
        quantile(times, 1.0)
    );
    out
}

fn line(out: &mut String, cells: &[&str]) {
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn verdict(measured: f64, promised: f64) -> String {
    format!("≤ {promised}: {}", if measured <= promised { "kept" } else { "**missed**" })
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length => sorted[((length - 1) as f64 * q).round() as usize],
    }
}
