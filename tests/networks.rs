//! The estimator and the pacer on simulated networks, in virtual time: thousands of seeded runs.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test is where time begins, and may fail loudly")]

#[allow(unreachable_pub, dead_code, reason = "shared by several test programs")]
mod support;

use std::time::{Duration, Instant};

use edgecam::core::access_unit::Bitrate;
use edgecam::core::congestion::pacer::Pacer;
use edgecam::core::congestion::{Arrival, Congestion, CongestionSettings};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::model::{Model, ModelSettings, percentile};
use support::network::{Bursts, Link, LinkSettings, Profile, Queue, Step};

/// Figures of each run, with `--nocapture` and `NETWORK_FIGURES=1`.
macro_rules! say {
    ($($arg:tt)*) => {
        if std::env::var_os("NETWORK_FIGURES").is_some() {
            eprintln!($($arg)*);
        }
    };
}

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const US: Duration = Duration::from_micros(1);

fn at_rate(kbps: f64) -> LinkSettings {
    LinkSettings {
        delay: 25 * MS,
        rate: Some(kbps * 1000.0),
        queue: Queue::Time(Duration::from_secs(1)),
        in_order: true,
        ..LinkSettings::default()
    }
}

fn model(steps: &[Step], seed: u64) -> Model {
    let now = Instant::now();
    let mut link = Link::new(steps[0].settings, seed);
    link.follow(steps, now);
    Model::new(ModelSettings::default(), link, now, seed)
}

/// A link that is `before` for about twenty seconds and then `after`; and when it changed.
fn step(before: LinkSettings, after: LinkSettings, seed: u64) -> (Model, Instant) {
    // Not always at the same place between two keyframes.
    let change = 20 * S + 100 * MS * (seed % 20) as u32;
    let mut model =
        model(&[Step { after: Duration::ZERO, settings: before }, Step { after: change, settings: after }], seed);
    model.run_for(change);
    let now = model.now;
    (model, now)
}

fn steady(settings: LinkSettings, seed: u64) -> Model {
    model(&[Step { after: Duration::ZERO, settings }], seed)
}

#[test]
fn a_link_that_falls_from_10_to_1_mbit_has_moving_pictures_again_within_two_seconds() {
    for seed in seeds(15) {
        let (mut model, change) = step(at_rate(10_000.0), at_rate(1000.0), seed);
        model.run_for(20 * S);
        let fps = model.fps(change + 2 * S, change + 7 * S);
        let freeze = model.longest_freeze(change - S);
        let wait = model.queue_delays(change + 3 * S).last().copied().unwrap();
        say!("down {seed}: {fps} fps, freeze {freeze:?}, then waits {wait:?}");
        assert!(fps >= 24.0, "seed {seed}: {fps} pictures a second");
        assert!(freeze <= S, "seed {seed}: nothing moved for {freeze:?}");
        assert!(wait < 150 * MS, "seed {seed}: packets wait {wait:?}");
    }
}

#[test]
fn a_link_that_grows_from_1_to_10_mbit_is_used_within_ten_seconds() {
    for seed in seeds(15) {
        let (mut model, change) = step(at_rate(1000.0), at_rate(10_000.0), seed);
        while model.target_kbps() < 2250 {
            model.run_for(100 * MS);
            assert!(model.now - change < 10 * S, "seed {seed}: {} kbit/s", model.target_kbps());
        }
        say!("up {seed}: {:?}", model.now - change);
    }
}

#[test]
fn a_steady_link_of_1500_kbit_is_used_without_a_queue() {
    for seed in seeds(8) {
        let mut model = steady(at_rate(1500.0), seed);
        model.run_for(60 * S);
        let from = model.started + 5 * S;
        let carried = model.carried_kbps(from, model.now);
        let fps = model.fps(from, model.now);
        let wait = percentile(&model.queue_delays(from), 0.95);
        say!("steady {seed}: {carried:.0} kbit/s, {fps:.1} fps, waits {wait:?}, skipped {}", model.skipped);
        assert!(carried >= 0.85 * 1500.0, "seed {seed}: {carried} kbit/s");
        assert!(fps >= 29.0, "seed {seed}: {fps} pictures a second");
        assert!(wait < 100 * MS, "seed {seed}: packets wait {wait:?}");
    }
}

#[test]
fn links_of_any_rate_are_used_without_a_queue() {
    for (kbps, least) in [(300.0, 0.7), (600.0, 0.8), (1000.0, 0.85), (2000.0, 0.85)] {
        for seed in seeds(2) {
            let mut model = steady(at_rate(kbps), seed);
            model.run_for(60 * S);
            let from = model.started + 10 * S;
            let used = model.carried_kbps(from, model.now) / kbps;
            let fps = model.fps(from, model.now);
            let wait = percentile(&model.queue_delays(from), 0.95);
            say!("{kbps} {seed}: {used:.2} used, {fps:.1} fps, waits {wait:?}, skipped {}", model.skipped);
            assert!(used >= least, "{kbps} kbit/s, seed {seed}: {used} used");
            assert!(fps >= 27.0, "{kbps} kbit/s, seed {seed}: {fps} pictures a second");
            assert!(wait < 120 * MS, "{kbps} kbit/s, seed {seed}: packets wait {wait:?}");
        }
    }
}

#[test]
fn a_shaper_that_lets_bursts_pass_does_not_fool_the_probes() {
    for (kbps, bucket) in [(1000.0, 5_000), (1000.0, 16_000), (1000.0, 32_000), (1500.0, 64_000)] {
        for seed in seeds(2) {
            let mut model = steady(LinkSettings { bucket, ..at_rate(kbps) }, seed);
            model.run_for(60 * S);
            let from = model.started + 10 * S;
            let above = longest_above(&model, 1.2);
            let used = model.carried_kbps(from, model.now) / kbps;
            let fps = model.fps(from, model.now);
            let waits = model.queue_delays(from);
            let wait = percentile(&waits, 0.95);
            say!(
                "bucket {bucket} {seed}: {used:.2} used, {fps:.1} fps, above for {above:?}, waits {wait:?} {:?}, probed {}",
                waits.last(),
                model.bytes_probed
            );
            assert!(used >= 0.8, "{bucket}, seed {seed}: {used} used");
            assert!(fps >= 27.0, "{bucket}, seed {seed}: {fps} pictures a second");
            assert!(wait < 250 * MS, "{bucket}, seed {seed}: packets wait {wait:?}");
        }
    }
}

#[test]
fn loss_by_chance_does_not_lower_the_rate() {
    let random = LinkSettings { loss: 0.05, ..at_rate(10_000.0) };
    let bursty = LinkSettings { bursts: Some(Bursts { mean: 0.02, length: 8.0 }), ..at_rate(10_000.0) };
    for (name, settings) in [("random", random), ("bursty", bursty)] {
        for seed in seeds(6) {
            let mut model = steady(settings, seed);
            model.run_for(60 * S);
            let from = model.started + 5 * S;
            let mean = model.mean_estimate(from, model.now);
            let fps = model.fps(from, model.now);
            let freezes = model.freezes(from, S);
            say!("{name} {seed}: {mean:.0} kbit/s, {fps:.1} fps, longest {:?}", model.longest_freeze(from));
            assert!(mean >= 0.95 * 2500.0, "{name}, seed {seed}: {mean} kbit/s");
            assert!(fps >= 29.0, "{name}, seed {seed}: {fps} pictures a second");
            assert!(freezes <= 1, "{name}, seed {seed}: {freezes} freezes");
        }
    }
}

#[test]
fn loss_by_a_policer_that_has_no_queue_does_lower_it() {
    for seed in seeds(8) {
        let policer = LinkSettings { queue: Queue::Bytes(2500), ..at_rate(1000.0) };
        let (mut model, change) = step(at_rate(10_000.0), policer, seed);
        model.run_for(30 * S);
        let estimate = model.mean_estimate(change + 5 * S, model.now);
        let fps = model.fps(change + 5 * S, model.now);
        say!("policer {seed}: {estimate:.0} kbit/s, {fps:.1} fps, loss {}", model.congestion.loss());
        assert!((600.0..1200.0).contains(&estimate), "seed {seed}: {estimate} kbit/s");
        assert!(fps >= 20.0, "seed {seed}: {fps} pictures a second");
    }
}

#[test]
fn a_quiet_scene_neither_raises_the_estimate_nor_lowers_it() {
    for seed in seeds(8) {
        let mut model = steady(at_rate(2000.0), seed);
        model.run_for(20 * S);
        let before = model.congestion.estimate().kbps();
        model.activity = 0.1;
        model.run_for(60 * S);
        let after = model.congestion.estimate().kbps();
        say!("quiet {seed}: {before} then {after}");
        assert!((0.8 * f64::from(before)..2300.0).contains(&f64::from(after)), "seed {seed}: {before} became {after}");
        model.activity = 1.0;
        let from = model.now;
        model.run_for(10 * S);
        let longest = model.queue_delays(from).last().copied().unwrap();
        assert!(longest < 300 * MS, "seed {seed}: a queue of {longest:?} when things move again");
    }
}

#[test]
fn on_a_radio_with_pauses_the_rate_stays_up() {
    for seed in seeds(4) {
        let mut model = model(&Profile::GoodWifi.steps(60 * S, seed), seed);
        model.run_for(60 * S);
        let from = model.started + 5 * S;
        let mean = model.mean_estimate(from, model.now);
        say!("wifi {seed}: {mean:.0} kbit/s, {:.1} fps", model.fps(from, model.now));
        assert!(mean >= 0.9 * 2500.0, "seed {seed}: {mean} kbit/s");
        assert!(model.fps(from, model.now) >= 29.0, "seed {seed}");
    }
}

#[test]
fn a_link_that_was_dead_for_a_while_is_used_again_soon() {
    for (dead, within) in [(600 * MS, S), (3 * S, 3 * S), (10 * S, 4 * S)] {
        for seed in seeds(4) {
            let good = at_rate(4000.0);
            let cut = LinkSettings { cut: true, ..good };
            let steps = [(Duration::ZERO, good), (15 * S, cut), (15 * S + dead, good)];
            let mut model = model(&steps.map(|(after, settings)| Step { after, settings }), seed);
            model.run_for(15 * S + dead);
            let estimate = model.congestion.estimate().kbps();
            let change = model.now;
            while model.target_kbps() < 2000 {
                model.run_for(100 * MS);
                assert!(model.now - change < within, "seed {seed}: {} kbit/s", model.target_kbps());
            }
            say!("dead {dead:?} {seed}: {estimate} and back after {:?}", model.now - change);
        }
    }
}

/// Whatever the network does: not above it for long, and back when it is good again.
#[test]
fn on_any_network_the_estimate_follows_it_and_comes_back() {
    for profile in Profile::ALL {
        for seed in seeds(8) {
            let length = 40 * S;
            let mut steps = profile.steps(length, seed);
            steps.push(Step { after: length, settings: at_rate(10_000.0) });
            let mut model = model(&steps, seed);
            model.run_for(length);
            let above = longest_above(&model, 1.2);
            let fps = model.fps(model.started + 5 * S, model.now);
            let longest = model.queue_delays(model.started).last().copied().unwrap();
            let carried = model.carried_kbps(model.started + 5 * S, model.now);
            let wait = percentile(&model.queue_delays(model.started), 0.95);
            while model.target_kbps() < 2250 {
                model.run_for(100 * MS);
                assert!(
                    model.now - model.started - length < 10 * S,
                    "{} {seed}: {} kbit/s",
                    profile.name(),
                    model.target_kbps()
                );
            }
            say!(
                "{} {seed}: {carried:.0} kbit/s of {:.0}, {fps:.1} fps, above for {above:?}, waits {wait:?} to {longest:?}, back after {:?}",
                profile.name(),
                mean_capacity(&model),
                model.now - model.started - length,
            );
            assert!(above < 3 * S, "{} {seed}: above it for {above:?}", profile.name());
        }
    }
}

#[test]
fn on_any_steady_link_pictures_move() {
    for seed in seeds(25) {
        let mut random = SmallRng::seed_from_u64(seed);
        let kbps = 400.0 * 25_f64.powf(random.random_range(0.0..1.0));
        let settings = LinkSettings {
            delay: MS * random.random_range(1..200),
            jitter: MS * random.random_range(0..30),
            in_order: random.random_bool(0.5),
            loss: random.random_range(0.0..0.04),
            rate: Some(kbps * 1000.0),
            bucket: random.random_range(0..5000),
            queue: Queue::Time(MS * random.random_range(50..1000)),
            ..LinkSettings::default()
        };
        let mut model = steady(settings, seed);
        model.run_for(60 * S);
        let from = model.started + 10 * S;
        let fps = model.fps(from, model.now);
        let used = model.carried_kbps(from, model.now) / kbps.min(2500.0);
        let above = longest_above(&model, 1.2);
        let wait = percentile(&model.queue_delays(from), 0.95);
        say!(
            "any {seed}: {used:.2} used, {fps:.1} fps, above for {above:?}, waits {wait:?}, freezes {}; {settings:?}",
            model.freezes(from, S)
        );
        assert!(used >= 0.7, "seed {seed}: {used} used of {settings:?}");
        assert!(fps >= 26.0, "seed {seed}: {fps} pictures a second on {settings:?}");
        assert!(above < 2 * S, "seed {seed}: above for {above:?} on {settings:?}");
        assert!(wait < 200 * MS, "seed {seed}: packets wait {wait:?} on {settings:?}");
    }
}

#[test]
fn a_way_that_becomes_longer_is_not_taken_for_a_queue_for_long() {
    for seed in seeds(5) {
        let near = LinkSettings { jitter: 3 * MS, ..at_rate(4000.0) };
        let far = LinkSettings { delay: near.delay + 120 * MS, ..near };
        let (mut model, change) = step(near, far, seed);
        model.run_for(8 * S);
        let estimate = model.mean_estimate(change + 6 * S, model.now);
        say!("longer {seed}: {estimate:.0} kbit/s");
        assert!(estimate >= 2300.0, "seed {seed}: {estimate} kbit/s");
    }
}

fn mean_capacity(model: &Model) -> f64 {
    let capacities: Vec<f64> = model.moments.iter().filter_map(|moment| moment.capacity_kbps).collect();
    capacities.iter().map(|kbps| kbps.min(2777.0)).sum::<f64>() / capacities.len() as f64
}

/// For how long without a break the estimate was above this part of what the link carried.
fn longest_above(model: &Model, part: f64) -> Duration {
    let mut since = None;
    let mut longest = Duration::ZERO;
    for moment in &model.moments {
        let is_above = moment.capacity_kbps.is_some_and(|kbps| f64::from(moment.estimate_kbps) > kbps * part);
        let start = since.filter(|_| is_above).or(is_above.then_some(moment.at));
        longest = longest.max(start.map_or(Duration::ZERO, |start| moment.at - start));
        since = start;
    }
    longest
}

/// More with `NETWORK_SEEDS=100`: so many times as many.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("NETWORK_SEEDS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    0..count * times
}

/// What estimator and pacer cost: `cargo test --release --test networks cost -- --ignored --nocapture`.
#[test]
#[ignore = "measures; says something only in a release build on a quiet machine"]
fn what_a_packet_costs() {
    const VIEWERS: usize = 1000;
    const SECONDS: u32 = 20;
    let start = Instant::now();
    let settings = CongestionSettings {
        start: Bitrate::from_kbps(1000),
        least: Bitrate::from_kbps(150),
        most: Bitrate::from_kbps(5000),
    };
    let mut viewers: Vec<_> = (0..VIEWERS).map(|_| (Congestion::new(settings, start), Pacer::new(start))).collect();
    let mut told = Vec::new();
    let mut number = 0;
    // Thirty pictures a second of eight packets; feedback every other picture.
    for picture in 0..SECONDS * 30 {
        let now = start + Duration::from_nanos(33_333_333) * picture;
        for (congestion, pacer) in &mut viewers {
            for packet in number..number + 8 {
                std::hint::black_box(pacer.may_send(now));
                pacer.handle_sent(1200, now);
                congestion.handle_sent(packet, 1200, None, now);
            }
        }
        told.extend(
            (number..number + 8)
                .map(|number| Arrival { number, at: Some(now - start + 20 * MS + 300 * US * (number % 8) as u32) }),
        );
        number += 8;
        if picture % 2 == 1 {
            for (congestion, pacer) in &mut viewers {
                congestion.handle_feedback(&told, now + 30 * MS);
                pacer.set_rate(congestion.pacing_rate());
                std::hint::black_box(congestion.poll_timeout());
            }
            told.clear();
        }
    }
    let packets = VIEWERS as u64 * number;
    eprintln!("{:.1} ns a packet of {packets}", start.elapsed().as_nanos() as f64 / packets as f64);
}
