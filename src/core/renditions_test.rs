use proptest::prelude::*;

use super::*;
use crate::core::sessions::SessionId;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
const SETTINGS: RenditionsSettings = RenditionsSettings {
    high: Range { least: kbps(150), most: kbps(2500) },
    low: Some(Range { least: kbps(100), most: kbps(500) }),
};

const fn kbps(kbps: u32) -> Bitrate {
    Bitrate::from_kbps(kbps)
}

fn id(number: u64) -> SessionId {
    SessionId::numbered(number)
}

/// A camera's renditions in virtual time, looked after every tenth of a second.
struct Rig {
    renditions: Renditions,
    now: Instant,
    moves: Vec<(Instant, SessionId, Rendition)>,
    decision: Decision,
}

impl Rig {
    fn new(settings: RenditionsSettings) -> Self {
        let decision = Decision { high: settings.high.most, low: None, moves: vec![] };
        Self { renditions: Renditions::new(settings), now: Instant::now(), moves: vec![], decision }
    }

    fn with(viewers: &[(u64, u32)]) -> Self {
        let mut rig = Self::new(SETTINGS);
        for &(viewer, estimate) in viewers {
            rig.renditions.join(id(viewer), Quality::Auto, rig.now);
            rig.estimate(viewer, estimate);
        }
        rig
    }

    fn estimate(&mut self, viewer: u64, estimate: u32) {
        self.renditions.hear(id(viewer), Network::Carries { estimate: kbps(estimate), is_untried: false });
    }

    /// Of a viewer that cannot be probed, and carries all it is sent.
    fn untried(&mut self, viewer: u64, estimate: u32) {
        self.renditions.hear(id(viewer), Network::Carries { estimate: kbps(estimate), is_untried: true });
    }

    fn fall_silent(&mut self, viewer: u64) {
        self.renditions.hear(id(viewer), Network::Silent);
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += 100 * MS;
            self.decision = self.renditions.decide(self.now);
            self.moves.extend(self.decision.moves.iter().map(|&(viewer, to)| (self.now, viewer, to)));
        }
    }

    fn rendition(&self, viewer: u64) -> Rendition {
        self.renditions.rendition(id(viewer)).unwrap()
    }

    fn high(&self) -> u32 {
        self.decision.high.kbps()
    }

    fn low(&self) -> Option<u32> {
        self.decision.low.map(Bitrate::kbps)
    }
}

#[test]
fn a_rate_that_has_to_rest_is_raised_when_it_has_though_no_estimate_changes() {
    let mut rig = Rig::with(&[(1, 1000)]);
    rig.decision = rig.renditions.decide(rig.now);
    rig.estimate(1, 1500);
    rig.renditions.decide(rig.now);
    rig.estimate(1, 2900);
    let mut last = rig.renditions.decide(rig.now);
    while let Some(at) = rig.renditions.poll_timeout() {
        last = rig.renditions.decide(at);
    }
    assert_eq!(last.high, kbps(2500), "and then there is nothing to wait for");
}

#[test]
fn the_high_rendition_follows_the_slowest_healthy_viewer_in_whole_steps() {
    let mut rig = Rig::with(&[(1, 5000), (2, 2000)]);
    rig.run_for(S);
    assert_eq!((rig.high(), rig.low()), (1800, None));
    rig.estimate(2, 1600);
    rig.run_for(100 * MS);
    assert_eq!(rig.high(), 1425);
}

#[test]
fn ample_networks_get_all_the_owner_allows() {
    let mut rig = Rig::with(&[(1, 5000), (2, 3000)]);
    rig.run_for(S);
    assert_eq!((rig.high(), rig.low()), (2500, None));
}

#[test]
fn a_viewer_of_whom_nothing_is_known_changes_nothing() {
    let mut rig = Rig::with(&[(1, 2000)]);
    rig.renditions.join(id(2), Quality::Auto, rig.now);
    rig.run_for(10 * S);
    assert_eq!((rig.high(), rig.rendition(2)), (1800, Rendition::High));
}

#[test]
fn a_slow_viewer_is_moved_down_and_costs_the_others_nothing() {
    let mut rig = Rig::with(&[(1, 5000), (2, 5000), (3, 5000), (4, 5000)]);
    rig.run_for(S);
    rig.estimate(4, 400);
    for _ in 0..100 {
        rig.run_for(100 * MS);
        assert_eq!(rig.high(), 2500);
    }
    assert_eq!((rig.rendition(4), rig.low()), (Rendition::Low, Some(350)));
    assert_eq!(rig.moves.len(), 1);
}

#[test]
fn a_moment_of_slowness_moves_nobody() {
    let mut rig = Rig::with(&[(1, 5000), (2, 5000)]);
    rig.estimate(2, 400);
    rig.run_for(600 * MS);
    rig.estimate(2, 5000);
    rig.run_for(60 * S);
    assert!(rig.moves.is_empty());
}

#[test]
fn a_viewer_alone_is_followed_down_as_long_as_the_large_picture_is_worth_its_bits() {
    let mut rig = Rig::with(&[(1, 2500)]);
    rig.run_for(S);
    rig.estimate(1, 700);
    rig.run_for(10 * S);
    assert_eq!((rig.rendition(1), rig.high()), (Rendition::High, 625));
    rig.estimate(1, 400);
    rig.run_for(2 * S);
    assert_eq!((rig.rendition(1), rig.high()), (Rendition::High, 350), "it may be better than thought");
    rig.run_for(2 * S);
    assert_eq!((rig.rendition(1), rig.low()), (Rendition::Low, Some(350)));
}

#[test]
fn a_viewer_whose_network_heals_comes_back_up_by_itself_and_the_low_encoder_goes() {
    let mut rig = Rig::with(&[(1, 5000), (2, 400)]);
    rig.run_for(30 * S);
    assert_eq!(rig.rendition(2), Rendition::Low);
    rig.estimate(2, 4000);
    rig.run_for(UP_AFTER + LOW_LINGER + S);
    assert_eq!((rig.rendition(2), rig.high(), rig.low()), (Rendition::High, 2500, None));
}

#[test]
fn who_falls_silent_keeps_its_place_and_changes_nothing() {
    for silent in [1, 2, 3] {
        let mut rig = Rig::with(&[(1, 5000), (2, 5000), (3, 400)]);
        rig.run_for(20 * S);
        let before = (rig.rendition(silent), rig.high(), rig.low());
        rig.fall_silent(silent);
        rig.run_for(60 * S);
        assert_eq!((rig.rendition(silent), rig.high(), rig.low()), before, "viewer {silent}");
    }
}

#[test]
fn who_falls_silent_is_not_waited_for_by_the_others() {
    let mut rig = Rig::with(&[(1, 5000), (2, 2000)]);
    rig.run_for(5 * S);
    assert_eq!(rig.high(), 1800);
    rig.fall_silent(2);
    rig.run_for(5 * S);
    assert_eq!(rig.high(), 2500);
    rig.estimate(2, 2000);
    rig.run_for(100 * MS);
    assert_eq!((rig.rendition(2), rig.high()), (Rendition::High, 1800));
}

#[test]
fn while_all_are_silent_what_they_got_is_kept_for_them() {
    let mut rig = Rig::with(&[(1, 1000)]);
    rig.run_for(5 * S);
    rig.fall_silent(1);
    rig.run_for(30 * S);
    assert_eq!((rig.high(), rig.low()), (900, None));
    rig.renditions.leave(id(1));
    rig.run_for(S);
    assert_eq!(rig.high(), 2500);
}

#[test]
fn who_cannot_be_probed_is_moved_up_on_trial_and_stays_if_its_network_carries_it() {
    let mut rig = Rig::with(&[(1, 5000), (2, 400)]);
    rig.run_for(5 * S);
    rig.untried(2, 700);
    rig.run_for(FIRST_STAY + S);
    assert_eq!((rig.rendition(2), rig.high()), (Rendition::High, 2500), "the others are not asked to pay for it");
    assert_eq!(rig.renditions.wanted(id(2)).on_trial, Some(kbps(2500)));
    for estimate in [900, 1300, 1800, 2500] {
        rig.untried(2, estimate);
        rig.run_for(3 * S);
        assert_eq!((rig.rendition(2), rig.high()), (Rendition::High, 2500));
    }
    rig.estimate(2, 3000);
    rig.run_for(60 * S);
    assert_eq!((rig.rendition(2), rig.high(), rig.low()), (Rendition::High, 2500, None));
    assert_eq!(rig.renditions.wanted(id(2)).on_trial, None);
}

#[test]
fn a_trial_ends_soon_when_the_network_has_too_much_and_at_last_when_nothing_shows() {
    for (says_so, within) in [(true, 2 * S), (false, TRIAL + 2 * S)] {
        let mut rig = Rig::with(&[(1, 5000), (2, 400)]);
        rig.run_for(5 * S);
        rig.untried(2, 700);
        while rig.rendition(2) == Rendition::Low {
            rig.run_for(100 * MS);
        }
        if says_so {
            rig.estimate(2, 700);
        }
        rig.run_for(within);
        assert_eq!(rig.rendition(2), Rendition::Low);
        rig.untried(2, 700);
        rig.run_for(FIRST_STAY * 2 - 3 * S);
        assert_eq!(rig.rendition(2), Rendition::Low, "the next one waits longer");
    }
}

#[test]
fn a_network_is_probed_for_what_it_takes_to_be_moved_up() {
    for (high, low) in [(500, 500), (520, 500), (600, 500), (401, 400), (2500, 500), (8000, 1000)] {
        let range = |most| Range { least: kbps(100), most: kbps(most) };
        let mut rig = Rig::new(RenditionsSettings { high: range(high), low: Some(range(low)) });
        rig.renditions.join(id(1), Quality::Auto, rig.now);
        rig.renditions.join(id(2), Quality::Auto, rig.now);
        rig.estimate(1, 4 * high);
        rig.estimate(2, 120);
        rig.run_for(5 * S);
        assert_eq!(rig.rendition(2), Rendition::Low);
        // Probing ends a little below what is wanted.
        let wanted = rig.renditions.wanted(id(2)).most;
        rig.estimate(2, wanted.kbps() * 98 / 100);
        rig.run_for(FIRST_STAY + S);
        assert_eq!(rig.rendition(2), Rendition::High, "{high} and {low} kbit/s");
    }
}

#[test]
fn without_a_low_rendition_nobody_is_moved_and_the_healthy_are_not_dragged_down() {
    let mut rig = Rig::new(RenditionsSettings { low: None, ..SETTINGS });
    for (viewer, estimate) in [(1, 5000), (2, 300)] {
        rig.renditions.join(id(viewer), Quality::Auto, rig.now);
        rig.estimate(viewer, estimate);
    }
    rig.run_for(10 * S);
    assert_eq!((rig.high(), rig.low(), rig.moves.len()), (2500, None, 0));
}

#[test]
fn when_the_board_has_no_room_for_the_low_rendition_its_viewers_go_back_up_at_once() {
    let mut rig = Rig::with(&[(1, 5000), (2, 400)]);
    rig.run_for(2 * S);
    rig.renditions.set_low_possible(false);
    rig.run_for(100 * MS);
    assert_eq!((rig.rendition(2), rig.low(), rig.high()), (Rendition::High, None, 2500));
    rig.renditions.set_low_possible(true);
    rig.run_for(2 * S);
    assert_eq!(rig.rendition(2), Rendition::Low);
}

#[test]
fn a_move_up_because_there_is_no_low_rendition_any_more_is_nobodys_mistake() {
    let mut rig = Rig::with(&[(1, 5000), (2, 400)]);
    for _ in 0..3 {
        rig.run_for(2 * S);
        assert_eq!(rig.rendition(2), Rendition::Low);
        rig.renditions.set_low_possible(false);
        rig.run_for(2 * S);
        rig.renditions.set_low_possible(true);
    }
    rig.run_for(2 * S);
    rig.estimate(2, 5000);
    rig.run_for(FIRST_STAY);
    assert_eq!(rig.rendition(2), Rendition::High);
}

#[test]
fn what_a_viewer_chose_it_gets_at_once_whatever_its_network() {
    let mut rig = Rig::with(&[(1, 5000), (2, 300)]);
    rig.renditions.prefer(id(1), Quality::Low);
    rig.renditions.prefer(id(2), Quality::High);
    rig.run_for(10 * S);
    assert_eq!((rig.rendition(1), rig.rendition(2)), (Rendition::Low, Rendition::High));
    assert_eq!(rig.low(), Some(500));
    rig.renditions.prefer(id(1), Quality::Auto);
    rig.run_for(UP_AFTER + S);
    assert_eq!(rig.rendition(1), Rendition::High);
}

#[test]
fn a_viewer_who_asks_for_low_is_moved_at_once() {
    let mut rig = Rig::new(SETTINGS);
    rig.renditions.join(id(1), Quality::Low, rig.now);
    rig.run_for(100 * MS);
    assert_eq!((rig.rendition(1), rig.low(), rig.moves.len()), (Rendition::Low, Some(500), 1));
}

#[test]
fn rates_fall_at_once_and_rise_in_their_time() {
    let mut rig = Rig::with(&[(1, 2000)]);
    rig.run_for(S);
    rig.estimate(1, 1000);
    rig.run_for(100 * MS);
    assert_eq!(rig.high(), 900);
    let mut changes = 0;
    for step in 0..50 {
        let before = rig.high();
        rig.estimate(1, 1000 + step * 20);
        rig.run_for(100 * MS);
        changes += u32::from(rig.high() != before);
    }
    assert!((5..=10).contains(&changes), "{changes} changes in five seconds");
}

#[derive(Clone, Debug)]
enum Op {
    Join(u64, Quality),
    Leave(u64),
    Prefer(u64, Quality),
    Estimate(u64, u32),
    Untried(u64, u32),
    FallSilent(u64),
    LowPossible(bool),
    Wait(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let viewer = || 0..5u64;
    let quality = || prop_oneof![6 => Just(Quality::Auto), 1 => Just(Quality::High), 1 => Just(Quality::Low)];
    prop_oneof![
        2 => (viewer(), quality()).prop_map(|(viewer, quality)| Op::Join(viewer, quality)),
        1 => viewer().prop_map(Op::Leave),
        1 => (viewer(), quality()).prop_map(|(viewer, quality)| Op::Prefer(viewer, quality)),
        8 => (viewer(), 10u32..8000).prop_map(|(viewer, estimate)| Op::Estimate(viewer, estimate)),
        2 => (viewer(), 10u32..8000).prop_map(|(viewer, estimate)| Op::Untried(viewer, estimate)),
        1 => viewer().prop_map(Op::FallSilent),
        1 => any::<bool>().prop_map(Op::LowPossible),
        8 => (1u32..50).prop_map(Op::Wait),
    ]
}

/// What each viewer's network was last said to carry, and since when it is sent more than that though there is a better place for it.
#[derive(Default)]
struct Watch {
    estimates: BTreeMap<u64, u32>,
    above: BTreeMap<u64, Instant>,
}

impl Watch {
    /// What happened to this viewer explains why it is where it is.
    fn excuse(&mut self, viewer: u64) {
        self.above.remove(&viewer);
    }

    /// To be called after each decision.
    fn look(&mut self, rig: &Rig, is_low_possible: bool) -> Result<(), TestCaseError> {
        let least = SETTINGS.low.unwrap().least;
        for (&viewer, &estimate) in &self.estimates {
            let Some(seat) = rig.renditions.viewers.get(&id(viewer)) else { continue };
            let sent = match seat.rendition {
                Rendition::High => rig.decision.high,
                Rendition::Low => rig.decision.low.unwrap(),
            };
            let is_free = is_low_possible && seat.quality == Quality::Auto && !seat.is_silent();
            // Less than the low rendition's least is of no use to anybody.
            let has_better =
                is_free && sent.kbps() > estimate && sent > least && scaled(kbps(estimate), USABLE) >= least;
            if !has_better {
                self.above.remove(&viewer);
                continue;
            }
            let since = *self.above.entry(viewer).or_insert(rig.now);
            let is_untried = matches!(seat.network, Some(Network::Carries { is_untried: true, .. }));
            let bound = if is_untried { TRIAL + DOWN_AFTER_ALONE } else { DOWN_AFTER_ALONE } + 300 * MS;
            prop_assert!(
                rig.now - since <= bound,
                "viewer {viewer} with {estimate} kbit/s gets {sent} since {:?}",
                rig.now - since
            );
        }
        Ok(())
    }
}

proptest! {
    /// Whatever comes: rates are within their limits, a low encoder runs only where it can, and at no time does a viewer stay
    /// where its network cannot follow for longer than a moment, or a trial, while there is a better place for it.
    #[test]
    fn nobody_stays_above_what_its_network_carries(ops in proptest::collection::vec(op(), 1..120)) {
        let mut rig = Rig::new(SETTINGS);
        let mut watch = Watch::default();
        let mut possible = true;
        for op in ops.into_iter().chain([Op::Wait(600)]) {
            match op {
                Op::Join(viewer, quality) => {
                    rig.renditions.join(id(viewer), quality, rig.now);
                    watch.estimates.remove(&viewer);
                    watch.excuse(viewer);
                }
                Op::Leave(viewer) => {
                    rig.renditions.leave(id(viewer));
                    watch.excuse(viewer);
                }
                Op::Prefer(viewer, quality) => {
                    rig.renditions.prefer(id(viewer), quality);
                    watch.excuse(viewer);
                }
                Op::Estimate(viewer, estimate) => {
                    if rig.renditions.viewers.get(&id(viewer)).is_some_and(|seat| seat.trial_ends_at.is_some()) {
                        watch.excuse(viewer); // its trial ends with this
                    }
                    rig.estimate(viewer, estimate);
                    watch.estimates.insert(viewer, estimate);
                }
                Op::Untried(viewer, estimate) => {
                    rig.untried(viewer, estimate);
                    watch.estimates.insert(viewer, estimate);
                }
                Op::FallSilent(viewer) => rig.fall_silent(viewer),
                Op::LowPossible(is) => {
                    possible = is;
                    rig.renditions.set_low_possible(is);
                }
                Op::Wait(tenths) => {
                    for _ in 0..tenths {
                        rig.run_for(100 * MS);
                        watch.look(&rig, possible)?;
                    }
                }
            }
            rig.decision = rig.renditions.decide(rig.now);
            watch.look(&rig, possible)?;
            let Decision { high, low, .. } = rig.decision;
            prop_assert!((SETTINGS.high.least..=SETTINGS.high.most).contains(&high));
            if let (Some(low), Some(range)) = (low, SETTINGS.low) {
                prop_assert!((range.least..=range.most).contains(&low));
            }
            prop_assert!(low.is_none() || possible);
        }
    }

    /// However a network swings, a viewer is moved only so often; and when it heals for good, it comes back up.
    #[test]
    fn nobody_is_moved_up_and_down_for_ever(swings in proptest::collection::vec((50u32..6000, 1u32..40), 1..200)) {
        let mut rig = Rig::with(&[(1, 5000), (2, 5000)]);
        for (estimate, tenths) in swings {
            rig.estimate(2, estimate);
            rig.run_for(100 * MS * tenths);
        }
        for &(at, ..) in &rig.moves {
            let within = rig.moves.iter().filter(|(other, ..)| *other >= at && *other - at < 60 * S).count();
            prop_assert!(within <= 8, "{within} moves in a minute");
        }
        rig.estimate(2, 5000);
        rig.run_for(LONGEST_STAY + UP_AFTER + S);
        prop_assert_eq!(rig.rendition(2), Rendition::High);
        prop_assert_eq!(rig.decision.low, None);
    }
}
