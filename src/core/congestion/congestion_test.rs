use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
const SETTINGS: CongestionSettings = CongestionSettings {
    start: Bitrate::from_kbps(1000),
    least: Bitrate::from_kbps(150),
    most: Bitrate::from_kbps(5000),
};

/// A viewer who gets packets every 10 ms over a perfect link of any rate, and tells of them every 50 ms.
struct Session {
    congestion: Congestion,
    now: Instant,
    number: u64,
    told: Vec<Arrival>,
    /// Packets get there, and feedback comes back.
    is_up: bool,
}

impl Session {
    fn new() -> Self {
        let now = Instant::now();
        Self { congestion: Congestion::new(SETTINGS, now), now, number: 0, told: Vec::new(), is_up: true }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += 10 * MS;
            if self.congestion.poll_timeout().is_some_and(|at| at <= self.now) {
                self.congestion.handle_timeout(self.now);
            }
            let probe = self.congestion.poll_probe(self.now);
            for _ in 0..probe.map_or(1, |probe| probe.bytes.div_ceil(1200)) {
                self.send(probe.map(|probe| probe.id));
            }
            if self.number.is_multiple_of(5) && self.is_up {
                let told = std::mem::take(&mut self.told);
                self.congestion.handle_feedback(&told, self.now);
            }
        }
    }

    fn send(&mut self, probe: Option<u32>) {
        self.congestion.handle_sent(self.number, 1200, probe, self.now);
        if self.is_up {
            let at = Some(self.now - self.congestion.started + 20 * MS);
            self.told.push(Arrival { number: self.number, at });
        }
        self.number += 1;
    }

    fn kbps(&self) -> u32 {
        self.congestion.estimate().kbps()
    }
}

#[test]
fn before_anything_is_told_it_is_a_guess() {
    let congestion = Congestion::new(SETTINGS, Instant::now());
    assert_eq!((congestion.basis(), congestion.estimate()), (Basis::Nothing, SETTINGS.start));
    assert_eq!((congestion.round_trip(), congestion.queue_delay(), congestion.loss()), (None, None, 0.0));
}

#[test]
fn a_viewer_who_never_tells_anything_is_probed_once_at_most_and_not_backed_off() {
    let mut session = Session::new();
    session.is_up = false;
    let mut probes = 0;
    for _ in 0..600 {
        session.run_for(10 * MS);
        probes += u32::from(session.congestion.poll_probe(session.now).is_some());
    }
    assert!(probes <= 1);
    assert_eq!(session.kbps(), 1000);
    assert_eq!(session.congestion.poll_timeout(), None);
}

#[test]
fn silence_while_packets_are_sent_lowers_the_estimate_and_an_answer_brings_it_back() {
    let mut session = Session::new();
    session.run_for(5 * S);
    let before = session.kbps();
    assert!(before > 2000, "{before}");
    session.is_up = false;
    session.run_for(400 * MS);
    assert_eq!((session.kbps(), session.congestion.is_silent()), (before, false));
    session.run_for(3 * S);
    assert!(session.kbps() < before / 2, "{}", session.kbps());
    assert!(session.congestion.is_silent());
    session.is_up = true;
    session.run_for(S);
    assert!(!session.congestion.is_silent());
    assert!(session.kbps() >= before * 9 / 10, "{} of {before}", session.kbps());
}

#[test]
fn silence_while_nothing_is_sent_means_nothing() {
    let mut session = Session::new();
    session.run_for(2 * S);
    let before = session.kbps();
    session.now += 60 * S;
    session.congestion.handle_timeout(session.now);
    assert_eq!(session.kbps(), before);
}

#[test]
fn what_the_viewer_estimates_counts_until_it_tells_more() {
    let mut session = Session::new();
    session.congestion.handle_remb(Bitrate::from_kbps(700), session.now);
    assert_eq!((session.congestion.basis(), session.kbps()), (Basis::Remb, 700));
    session.congestion.handle_remb(Bitrate::from_kbps(u32::MAX), session.now);
    assert_eq!(session.kbps(), 5000);
    session.run_for(S);
    session.congestion.handle_remb(Bitrate::from_kbps(200), session.now);
    assert_eq!(session.congestion.basis(), Basis::Feedback);
    assert!(session.kbps() > 200);
}

#[test]
fn with_reports_alone_heavy_loss_lowers_it_and_good_ones_raise_it_to_what_is_sent() {
    let mut session = Session::new();
    session.is_up = false;
    for (loss, expected) in [(0.5, 150..500), (0.0, 900..1300)] {
        for _ in 0..60 {
            session.run_for(S);
            session.congestion.handle_report(loss, Some(50 * MS), session.now);
        }
        assert!(expected.contains(&session.kbps()), "{} after {loss}", session.kbps());
    }
    session.congestion.handle_report(f32::NAN, None, session.now);
    assert_eq!(session.congestion.loss(), 0.0);
}

#[test]
fn the_more_time_has_passed_without_a_queue_the_faster_a_keyframe_leaves() {
    let mut session = Session::new();
    session.run_for(5 * S);
    let estimate = session.congestion.estimate();
    assert!(session.congestion.pacing_rate() > estimate);
}

#[derive(Clone, Debug)]
enum Op {
    Wait(u64),
    Send { skip: u64, bytes: usize, in_probe: bool },
    Feedback(Vec<(u64, Option<u64>)>),
    Remb(u32),
    Report(f32, Option<u64>),
    Wanted(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let arrival = (0_u64..200, prop::option::weighted(0.8, prop_oneof![9 => 0_u64..10_000_000, 1 => any::<u64>()]));
    prop_oneof![
        4 => (0_u64..3000).prop_map(Op::Wait),
        8 => (prop_oneof![9 => 0_u64..3, 1 => any::<u64>()], prop_oneof![9 => 0_usize..1500, 1 => any::<usize>()], any::<bool>())
            .prop_map(|(skip, bytes, in_probe)| Op::Send { skip, bytes, in_probe }),
        8 => vec(arrival, 0..60).prop_map(Op::Feedback),
        1 => any::<u32>().prop_map(Op::Remb),
        1 => (any::<f32>(), prop::option::of(any::<u64>())).prop_map(|(loss, trip)| Op::Report(loss, trip)),
        1 => any::<u32>().prop_map(Op::Wanted),
    ]
}

proptest! {
    /// Whatever is told, in whatever order, repeated, leaping and contradicting itself.
    #[test]
    fn it_stays_within_its_limits_and_on_its_feet(ops in vec(op(), 0..200)) {
        let mut now = Instant::now();
        let mut congestion = Congestion::new(SETTINGS, now);
        let (mut number, mut probe) = (0_u64, None);
        for op in ops {
            match op {
                Op::Wait(time) => now += MS * u32::try_from(time).unwrap(),
                Op::Send { skip, bytes, in_probe } => {
                    number = number.saturating_add(skip);
                    congestion.handle_sent(number, bytes, probe.filter(|_| in_probe), now);
                }
                Op::Feedback(arrivals) => {
                    let arrivals: Vec<_> = arrivals
                        .into_iter()
                        .map(|(back, at)| Arrival { number: number.saturating_sub(back), at: at.map(Duration::from_micros) })
                        .collect();
                    congestion.handle_feedback(&arrivals, now);
                    // Once more, as a network does.
                    congestion.handle_feedback(&arrivals, now);
                }
                Op::Remb(kbps) => congestion.handle_remb(Bitrate::from_kbps(kbps), now),
                Op::Report(loss, trip) => congestion.handle_report(loss, trip.map(Duration::from_micros), now),
                Op::Wanted(kbps) => congestion.set_wanted(Bitrate::from_kbps(kbps)),
            }
            if congestion.poll_timeout().is_some_and(|at| at <= now) {
                congestion.handle_timeout(now);
            }
            let begun = congestion.poll_probe(now);
            if let Some(begun) = begun {
                prop_assert!(begun.rate <= SETTINGS.most && begun.bytes <= 150_000, "{begun:?}");
                probe = Some(begun.id);
            }
            prop_assert!((SETTINGS.least..=SETTINGS.most).contains(&congestion.estimate()), "{}", congestion.estimate());
            prop_assert!(congestion.pacing_rate() >= SETTINGS.least, "{}", congestion.pacing_rate());
            prop_assert!((0.0..=1.0).contains(&congestion.loss()), "{}", congestion.loss());
        }
    }

    /// What is lost is told once, what arrives is counted once, in whatever order the feedback comes.
    #[test]
    fn a_clean_network_is_never_taken_for_a_bad_one(seed in any::<u64>()) {
        let mut session = Session::new();
        let mut random = seed;
        let mut least = u32::MAX;
        for _ in 0..60 {
            session.run_for(50 * MS);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Some feedback is lost, some comes twice.
            match random >> 61 {
                0 => session.told.clear(),
                1 => {
                    let told = session.told.clone();
                    session.congestion.handle_feedback(&told, session.now);
                }
                _ => {}
            }
            least = least.min(session.kbps());
        }
        prop_assert!(least >= 1000, "{least}");
        prop_assert_eq!(session.congestion.loss(), 0.0);
    }
}
