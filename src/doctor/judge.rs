//! What the facts mean, and what to do about it. Knows nothing but them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::facts::{
    BoardFacts, BrokerFacts, CameraFacts, ClockFacts, Facts, NetworkFacts, NodeFacts, PictureFacts, PortFacts, Settled,
};
use super::service::{Identity, Unit};
use super::{Line, Scope, Verdict};
use crate::camera::encoder::EncoderReport;
use crate::camera::pipeline::Installed;
use crate::config::ConfigError;
use crate::probe::ice_server::Answer;

pub(super) fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = Vec::new();
    if facts.scope == Scope::Everything {
        lines.extend(configuration(&facts.configuration));
        lines.extend(facts.unit.iter().map(service));
        lines.extend(permissions(&facts.identity, &facts.nodes));
    }
    lines.extend(gstreamer(facts.gstreamer.as_ref()));
    lines.extend(encoder(facts));
    lines.extend(facts.cameras.iter().flat_map(camera));
    lines.extend(facts.broker.iter().map(broker));
    if facts.scope == Scope::Everything {
        if let (Ok(settled), Some(network)) = (&facts.configuration, &facts.network) {
            lines.extend(ports(settled, network, &facts.identity));
        }
        lines.extend(facts.ice_servers.iter().map(|(url, answer)| ice_server(url, answer)));
        lines.push(clock(&facts.clock));
        lines.extend(board(&facts.board));
    }
    lines
}

impl Line {
    fn ok(check: impl Into<String>, words: impl Into<String>) -> Self {
        Self { check: check.into(), verdict: Verdict::Ok, words: words.into(), remedy: None }
    }

    fn warn(check: impl Into<String>, words: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.into(), verdict: Verdict::Warn, words: words.into(), remedy: Some(remedy.into()) }
    }

    fn fail(check: impl Into<String>, words: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(check, words, remedy) }
    }

    /// Of an error that says "what is wrong; what to do".
    fn of_error(check: impl Into<String>, error: &str, else_do: &str) -> Self {
        let (words, remedy) = error.split_once("; ").unwrap_or((error, else_do));
        Self::fail(check, words, remedy)
    }
}

fn configuration(configuration: &Result<Settled, ConfigError>) -> Vec<Line> {
    let check = "configuration";
    let remedy = "put it right; `edgecam check` says when it is";
    match configuration {
        Ok(settled) => {
            let warnings = settled.warnings.iter().map(|warning| {
                let (words, remedy) = warning.split_once("; ").unwrap_or((warning, "see docs/configuration.md"));
                Line::warn(check, words, remedy)
            });
            let page = if settled.needs_token { "with a token" } else { "without a token" };
            let good = format!("good: device {}, page on http://{}/ {page}", settled.device, settled.listen);
            let mut lines = vec![Line::ok(check, good)];
            lines.extend(warnings);
            if !settled.unread.is_empty() {
                let unread: Vec<String> = settled.unread.iter().map(|path| path.display().to_string()).collect();
                let words =
                    format!("this user may not read {}, so nobody was asked who wants these", unread.join(", "));
                lines.push(Line::warn(check, words, "look as root: sudo edgecam doctor"));
            }
            if settled.listen.ip().to_canonical().is_loopback() {
                let words = "the page is for this machine only";
                let remedy =
                    "for viewers elsewhere: sudo edgecam setup; with a proxy on this machine it is as it should be";
                lines.push(Line::warn("page", words, remedy));
            }
            lines
        }
        Err(ConfigError::Invalid(problems)) => {
            problems.iter().map(|problem| Line::fail(check, problem.to_string(), remedy)).collect()
        }
        Err(error) => vec![Line::of_error(check, &in_full(error), remedy)],
    }
}

fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn service(unit: &Unit) -> Line {
    let Unit { state, exit_status } = unit;
    match state.as_str() {
        "active" => Line::ok("service", "runs"),
        "activating" if exit_status == "0" => Line::ok("service", "starts"),
        "failed" if exit_status == "78" => Line::fail(
            "service",
            "does not start with this configuration",
            "edgecam check; then: sudo systemctl restart edgecam",
        ),
        "failed" | "activating" => Line::fail(
            "service",
            format!("does not stay up (exit code {exit_status})"),
            "its last words: journalctl -u edgecam -n 30; then: sudo systemctl restart edgecam",
        ),
        state => Line::warn("service", format!("does not run ({state})"), "sudo systemctl enable --now edgecam"),
    }
}

/// Cameras and encoders have to be open to the daemon. The parts of a camera chip (`/dev/media`) and memory shared with it
/// (`/dev/dma_heap`) are told of where they are; nothing of this version needs them.
fn permissions(identity: &Identity, nodes: &[NodeFacts]) -> Vec<Line> {
    let check = "permissions";
    let user = &identity.user;
    let (open, shut): (Vec<&NodeFacts>, Vec<&NodeFacts>) = nodes.iter().partition(|node| identity.may_use(node));
    let mut by_group: BTreeMap<(&str, u32), Vec<&NodeFacts>> = BTreeMap::new();
    for node in shut.into_iter().filter(|node| node.path.to_string_lossy().starts_with("/dev/video")) {
        by_group.entry((&node.group_name, node.mode)).or_default().push(node);
    }
    if by_group.is_empty() {
        let words = match &open[..] {
            [] => "no camera and no encoder has a device file here".into(),
            open => format!("{user} (in {}) may use {}", identity.groups.join(", "), paths(open)),
        };
        return vec![Line::ok(check, words)];
    }
    let line = |((group, mode), nodes): ((&str, u32), Vec<&NodeFacts>)| {
        let words = format!("{user} may not use {} (group {group}, mode {mode:04o})", paths(&nodes));
        Line::fail(check, words, allow(user, group, mode, &nodes))
    };
    by_group.into_iter().map(line).collect()
}

fn allow(user: &str, group: &str, mode: u32, nodes: &[&NodeFacts]) -> String {
    const GROUP_READS_AND_WRITES: u32 = 0o060;
    if group == "root" || mode & GROUP_READS_AND_WRITES != GROUP_READS_AND_WRITES {
        let nodes = paths(nodes).replace(',', "");
        return format!(
            "give it to the group video by a udev rule; until the next start: chgrp video {nodes} && chmod g+rw {nodes}"
        );
    }
    format!("sudo usermod -aG {group} {user} && sudo systemctl restart edgecam")
}

fn paths(nodes: &[&NodeFacts]) -> String {
    nodes.iter().map(|node| node.path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn gstreamer(installed: Option<&Installed>) -> Vec<Line> {
    let check = "gstreamer";
    let Some(Installed { version, missing }) = installed else {
        let remedy = "reinstall it: sudo apt install --reinstall libgstreamer1.0-0";
        return vec![Line::fail(check, "does not start", remedy)];
    };
    if missing.is_empty() {
        return vec![Line::ok(check, format!("{version}, nothing is missing"))];
    }
    let line = |(element, package): &(&str, &str)| {
        Line::fail(check, format!("its element {element} is missing"), format!("sudo apt install {package}"))
    };
    missing.iter().map(line).collect()
}

fn encoder(facts: &Facts) -> Vec<Line> {
    let check = "encoder";
    let encoders = match &facts.encoders {
        Ok(encoders) => encoders,
        Err(error) => return vec![Line::of_error(check, error, "reinstall GStreamer's packages")],
    };
    let why_not = |encoder: &EncoderReport| format!("{} {}", encoder.name, encoder.problem);
    let better: Vec<String> = encoders.iter().take_while(|encoder| !encoder.works).map(why_not).collect();
    let Some(taken) = encoders.iter().find(|encoder| encoder.works) else {
        return vec![Line::fail(
            check,
            format!("none works: {}", better.join(", ")),
            "sudo apt install gstreamer1.0-plugins-ugly",
        )];
    };
    let since = if better.is_empty() { String::new() } else { format!(", since {}", better.join(" and ")) };
    let words = match &taken.device {
        Some(device) => format!("{} works, in hardware ({}){since}", taken.name, device.display()),
        None => format!("{} works, in software{since}", taken.name),
    };
    let wants_hardware = facts.configuration.as_ref().is_ok_and(|settled| settled.wants_hardware);
    if wants_hardware && taken.device.is_none() {
        return vec![Line::warn(
            check,
            format!("{words}, though a camera prefers hardware"),
            "see that the encoder's driver is loaded and its /dev/video node may be used (permissions); or set prefer = \"auto\"",
        )];
    }
    vec![Line::ok(check, words)]
}

/// More controls are no help in one line.
const MANY: usize = 12;

fn camera(camera: &CameraFacts) -> Vec<Line> {
    let check = format!("camera {}", camera.id);
    let retry = "`edgecam devices` lists what can be used; journalctl -u edgecam says more";
    let mut lines = vec![match &camera.picture {
        PictureFacts::SwitchedOff => {
            Line::ok(&check, "is switched off, so it was not opened; its switch is on the page and on MQTT")
        }
        PictureFacts::Came(stream) => {
            let words = format!("gives pictures: {}; {}", stream.source, stream.encoder_reason);
            Line::ok(&check, words)
        }
        PictureFacts::Streamed(Some(what)) => Line::ok(&check, format!("edgecam streams it now: {what}")),
        PictureFacts::Streamed(None) => Line::ok(&check, "edgecam streams it now"),
        PictureFacts::NotTold => {
            Line::ok(&check, "was left to the edgecam that runs; `sudo edgecam doctor` can ask how it fares")
        }
        PictureFacts::FailsThere(error) | PictureFacts::Failed(error) => Line::of_error(&check, error, retry),
        PictureFacts::Silent(waited) => Line::fail(
            &check,
            format!("{} gives neither picture nor error within {} s", camera.source, waited.as_secs()),
            "unplug the camera and plug it in again; if that does not help, restart the board",
        ),
    }];
    let Some(look) = &camera.look else { return lines };
    if !look.formats.is_empty() && lines[0].verdict == Verdict::Ok {
        lines[0].words.push_str(&format!("; it offers {}", look.formats.join(", ")));
    }
    if !look.unknown_controls.is_empty() {
        let known = match look.controls.len() {
            0 => "it has none".into(),
            1..=MANY => format!("it has {}", look.controls.join(", ")),
            many => format!("`edgecam devices` lists the {many} it has"),
        };
        let words = format!("it has no control {}", look.unknown_controls.join(", "));
        lines.push(Line::warn(&check, words, format!("correct [camera.controls]; {known}")));
    }
    lines
}

fn ports(settled: &Settled, network: &NetworkFacts, identity: &Identity) -> Vec<Line> {
    let mut lines = Vec::new();
    match &network.daemon {
        Some(daemon) if daemon.reasons.is_empty() => lines.push(Line::ok("daemon", "runs and is well")),
        Some(daemon) => lines.push(Line::warn(
            "daemon",
            format!("runs, but {}", daemon.reasons.join(", ")),
            "the other lines or its log say why: journalctl -u edgecam -n 30",
        )),
        None => {}
    }
    let listen = settled.listen;
    let page = format!("TCP {listen}, for the page,");
    lines.push(port(&page, &network.listen, "another address to [http] listen"));
    if listen.port() != 0 && listen.port() < 1024 && identity.uid != 0 {
        lines.push(Line::warn(
            "ports",
            format!("TCP {} is below 1024, which {} may not use by itself", listen.port(), identity.user),
            "take 8080; or allow it: systemctl edit edgecam, [Service] AmbientCapabilities=CAP_NET_BIND_SERVICE \
             CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        ));
    }
    let media = format!("UDP {}, for the media,", settled.udp_port);
    lines.push(port(&media, &network.media, "another number to [ice] udp_port"));
    if let Some(facts) = &network.media_tcp {
        let tcp = format!("TCP {}, for media where UDP is dropped,", settled.udp_port);
        let line = port(&tcp, facts, "another number to [ice] udp_port, or tcp = false");
        // It runs without, too.
        lines.push(if line.verdict == Verdict::Fail { Line { verdict: Verdict::Warn, ..line } } else { line });
    }
    lines
}

fn port(what: &str, facts: &PortFacts, instead: &str) -> Line {
    match facts {
        PortFacts::Free => Line::ok("ports", format!("{what} is free")),
        PortFacts::Ours => Line::ok("ports", format!("{what} is in use by edgecam itself")),
        PortFacts::Taken { by } => {
            let by = by.as_ref().map_or_else(|| "another program".into(), Clone::clone);
            Line::fail("ports", format!("{what} is taken by {by}"), format!("stop that program, or give {instead}"))
        }
        PortFacts::Refused(error) => {
            Line::fail("ports", format!("{what} cannot be used: {error}"), format!("give {instead}"))
        }
    }
}

fn broker(BrokerFacts { host, port, visit }: &BrokerFacts) -> Line {
    let check = "broker";
    match visit {
        Ok(refused) if refused.is_empty() => {
            Line::ok(check, format!("{host} port {port} lets this device in, and takes what it says"))
        }
        Ok(refused) => Line::fail(
            check,
            format!("{host} port {port} refuses this device its topics {}", refused.join(", ")),
            "allow them in the broker's access rules; docs/examples/mqtt/acl shows them",
        ),
        Err(error) => Line::of_error(check, error, "see the broker's log"),
    }
}

fn ice_server(url: &str, answer: &Result<Answer, String>) -> Line {
    let check = if url.starts_with("stun") { "stun" } else { "turn" };
    let is_nowhere = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    match answer {
        Ok(Answer::Seen(address)) => Line::ok(check, format!("{url} answers and sees us at {address}")),
        Ok(Answer::Relays(address)) if is_nowhere(address.ip()) => Line::warn(
            check,
            format!("{url} relays from {address}, which no viewer elsewhere reaches"),
            "tell the server its own address: external-ip and relay-ip in turnserver.conf",
        ),
        Ok(Answer::Relays(address)) => {
            Line::ok(check, format!("{url} takes the credentials viewers get, and relays from {address}"))
        }
        Err(error) => Line::of_error(check, &format!("{url}: {error}"), "see that it runs and can be reached"),
    }
}

fn clock(clock: &ClockFacts) -> Line {
    match clock {
        ClockFacts { is_set: false, .. } => Line::fail(
            "clock",
            "is not set: tokens with an end, TURN credentials and certificates are of no use until it is",
            "give this machine a time server it reaches: timedatectl set-ntp true; timedatectl timesync-status",
        ),
        ClockFacts { synchronised: Some(false), .. } => Line::warn(
            "clock",
            "is set, but no time server has confirmed it",
            "timedatectl set-ntp true; a minute off, and tokens made elsewhere are refused",
        ),
        ClockFacts { synchronised: Some(true), .. } => Line::ok("clock", "is set and synchronised"),
        ClockFacts { synchronised: None, .. } => Line::ok("clock", "is set"),
    }
}

/// Less is too little for a software encoder beside the rest.
const LEAST_MEMORY_MIB: u64 = 64;
/// A camera's and an encoder's buffers for 1080p.
const LEAST_CMA_MIB: u64 = 64;
const LEAST_CMA_FREE_MIB: u64 = 16;
/// For the switches alone a page would do, but a full disk stops more than those.
const LEAST_ROOM_MIB: u64 = 20;

fn board(board: &BoardFacts) -> Vec<Line> {
    let mut lines = Vec::new();
    match board.memory_available_mib {
        Some(mib) if mib < LEAST_MEMORY_MIB => lines.push(Line::warn(
            "memory",
            format!("only {mib} MiB are left"),
            "stop what else runs here, or ask the camera for smaller pictures",
        )),
        Some(mib) => lines.push(Line::ok("memory", format!("{mib} MiB are left"))),
        None => {}
    }
    lines.extend(board.cma_mib.map(|(total, free)| cma(total, free)));
    lines.extend(board.throttled.map(throttled));
    if let Some((folder, room)) = &board.state {
        let folder = folder.display();
        lines.push(if *room < LEAST_ROOM_MIB {
            let remedy = "make room there; a full disk forgets which cameras are switched off";
            Line::fail("disk", format!("only {room} MiB are left for {folder}"), remedy)
        } else {
            Line::ok("disk", format!("{room} MiB are left for {folder}"))
        });
    }
    lines
}

fn cma(total: u64, free: u64) -> Line {
    let words = format!("{free} of {total} MiB are left for camera and encoder (CMA)");
    if total < LEAST_CMA_MIB || free < LEAST_CMA_FREE_MIB {
        return Line::warn(
            "memory",
            words,
            "add cma=128M to the one line of /boot/firmware/cmdline.txt, and restart the board",
        );
    }
    Line::ok("memory", words)
}

/// The firmware's bits: documentation/asciidoc/computers/os/using_vcgencmd.adoc of the Raspberry Pi's documentation.
fn throttled(bits: u32) -> Line {
    const UNDER_VOLTAGE: u32 = 0x1;
    const TOO_HOT: u32 = 0x2 | 0x4 | 0x8;
    let ever = bits >> 16;
    let supply = "use the power supply made for this board, and a short cable";
    let cool = "give the board air or a heat sink, or ask the camera for fewer or smaller pictures";
    match bits {
        bits if bits & UNDER_VOLTAGE != 0 => Line::fail("power", "the board gets too little voltage now", supply),
        bits if bits & TOO_HOT != 0 => Line::warn("power", "the board is too hot now and slows down", cool),
        _ if ever & UNDER_VOLTAGE != 0 => {
            Line::warn("power", "the board got too little voltage since it started", supply)
        }
        _ if ever & TOO_HOT != 0 => {
            Line::warn("power", "the board was too hot since it started, and slowed down", cool)
        }
        _ => Line::ok("power", "voltage and temperature were good since the board started"),
    }
}
