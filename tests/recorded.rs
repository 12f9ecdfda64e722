//! The estimator on what really went over the laboratory's link to a browser: recorded by `lab/record.py`, replayed in virtual time.
//!
//! A recording does not follow what the estimator says; so a test asks what the estimator makes of it, not what would come of that.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test is where time begins, and may fail loudly")]

use std::time::{Duration, Instant};

use edgecam::core::access_unit::Bitrate;
use edgecam::core::congestion::{Arrival, Congestion, CongestionSettings};

const FEEDBACK_EVERY: Duration = Duration::from_millis(50);
const WANTED: Bitrate = Bitrate::from_kbps(3472);

struct Packet {
    sent: Duration,
    bytes: usize,
    arrived: Option<Duration>,
}

fn packets(recording: &str) -> Vec<Packet> {
    let line = |line: &str| {
        let mut words = line.split(',');
        let sent = Duration::from_micros(words.next()?.parse().ok()?);
        let bytes = words.next()?.parse().ok()?;
        Some(Packet { sent, bytes, arrived: words.next()?.parse().ok().map(Duration::from_micros) })
    };
    let packets: Vec<_> = recording.lines().filter_map(line).collect();
    assert!(packets.len() > 1000, "the recording is there");
    packets
}

/// What the estimator says every 50 ms, in kbit/s, while a recording runs. Which packets were probes is not recorded; so it
/// begins with what the probes had shown.
fn replay(recording: &str, start_kbps: u32) -> Vec<(Duration, u32)> {
    let packets = packets(recording);
    let start = Instant::now();
    let settings = CongestionSettings {
        start: Bitrate::from_kbps(start_kbps),
        least: Bitrate::from_kbps(50),
        most: Bitrate::from_kbps(5000),
    };
    let mut congestion = Congestion::new(settings, start);
    congestion.set_wanted(WANTED);
    let (mut sent, mut told, mut said) = (0, 0, Vec::new());
    let mut at = FEEDBACK_EVERY;
    while told < packets.len() {
        while let Some(packet) = packets.get(sent).filter(|packet| packet.sent <= at) {
            congestion.handle_sent(sent as u64, packet.bytes, None, start + packet.sent);
            sent += 1;
        }
        // The browser speaks of all up to the newest that arrived; that takes as long as a packet there.
        let heard_at = at.saturating_sub(Duration::from_millis(25));
        let newest =
            (told..sent).rev().find(|&number| packets[number].arrived.is_some_and(|arrived| arrived <= heard_at));
        if let Some(newest) = newest {
            let arrivals: Vec<_> = (told..=newest)
                .map(|number| Arrival {
                    number: number as u64,
                    at: packets[number].arrived.filter(|arrived| *arrived <= heard_at),
                })
                .collect();
            congestion.handle_feedback(&arrivals, start + at);
            told = newest + 1;
        } else if sent == packets.len() {
            break;
        }
        congestion.handle_timeout(start + at);
        said.push((at, congestion.estimate().kbps()));
        at += FEEDBACK_EVERY;
    }
    said
}

#[test]
fn bursts_of_loss_that_the_network_makes_by_itself_do_not_lower_the_estimate() {
    let said = replay(include_str!("traces/burst-loss.csv"), 2800);
    let least = said.iter().map(|&(_, kbps)| kbps).min().unwrap();
    assert!(least >= 2700, "{least} kbit/s");
}

#[test]
fn a_steady_narrow_link_is_known_for_what_it_carries() {
    let said = replay(include_str!("traces/steady.csv"), 1400);
    let (least, most) = (said.iter().map(|said| said.1).min().unwrap(), said.iter().map(|said| said.1).max().unwrap());
    assert!(least >= 1250 && most <= 1650, "{least} to {most} kbit/s of a link that carries 1500");
}

#[test]
fn a_link_that_falls_to_a_tenth_is_noticed_before_its_queue_is_long() {
    let recording = include_str!("traces/step-down.csv");
    let said = replay(recording, 3400);
    let slow =
        |packet: &Packet| packet.arrived.is_some_and(|arrived| arrived - packet.sent > Duration::from_millis(75));
    let fell_at = packets(recording).into_iter().find(slow).unwrap().sent;
    let noticed_at = said.iter().find(|(_, kbps)| *kbps < 1000).unwrap().0;
    assert!(noticed_at - fell_at < Duration::from_millis(800), "it fell at {fell_at:?}, noticed at {noticed_at:?}");
    let settled = said.iter().filter(|(at, _)| *at > fell_at + Duration::from_secs(3)).map(|said| said.1);
    let (least, most) = settled.fold((u32::MAX, 0), |(least, most), kbps| (least.min(kbps), most.max(kbps)));
    assert!(least >= 850 && most <= 1050, "{least} to {most} kbit/s of a link that carries 1000");
}
