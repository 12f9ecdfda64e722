//! Whether packets wait longer and longer on their way: the network's queue grows, long before it is full.
//!
//! After the trendline filter of Google Congestion Control (draft-ietf-rmcat-gcc-02, section 5, and libwebrtc's successor to
//! its Kalman filter), with three changes, told in decision 0201: a burst counts by its quickest packet, the window is one
//! of time, and a rise has to stand out of the noise it is seen in.

use std::collections::VecDeque;
use std::time::Duration;

/// Packets that left within this belong together (draft-ietf-rmcat-gcc-02, section 5.2).
const BURST: f64 = 5.0;
/// A blackout of the radio holds packets back and lets them go at once; no longer than this are they one burst.
const LONGEST_BURST: f64 = 100.0;
const WINDOW: f64 = 400.0;
const MOST_SAMPLES: usize = 64;
const LEAST_SAMPLES: usize = 4;
/// Over the window. Two packets of 1,200 bytes last so long at 1.5 Mbit/s: less is the grain of the network.
const RISE: f64 = 12.0;
/// The rise in multiples of its standard error; jitter alone seldom reaches it.
const CERTAIN: f64 = 2.5;
/// As long as packets wait no longer than this, nobody is harmed, and the reason may be one burst of the pacer's.
const HARMLESS: f64 = 35.0;
/// The shortest way there was is remembered for one to two of these: longer, and the clocks' drift would show.
const EPOCH: f64 = 10_000.0;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Usage {
    /// The queue drains.
    Under,
    #[default]
    Normal,
    /// The queue grows.
    Over,
}

/// All in milliseconds: the viewer's clock may run anywhere, only differences count.
#[derive(Debug, Default)]
pub(super) struct Trend {
    group: Option<Group>,
    samples: VecDeque<Sample>,
    base: Option<Base>,
    usage: Usage,
    /// Of the newest burst, above the shortest there was.
    queue: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    first_sent: f64,
    last_sent: f64,
    first_arrival: f64,
    last_arrival: f64,
    delay: f64,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    arrival: f64,
    delay: f64,
}

/// The shortest delay of this epoch and of the last.
#[derive(Clone, Copy, Debug)]
struct Base {
    since: f64,
    this: f64,
    last: f64,
}

impl Trend {
    /// A packet arrived; in the order of leaving.
    pub(super) fn add(&mut self, sent: Duration, arrival: Duration) {
        let (sent, arrival) = (ms(sent), ms(arrival));
        let delay = arrival - sent;
        let Some(group) = &mut self.group else {
            self.group = Some(Group::of(sent, arrival));
            return;
        };
        if sent < group.last_sent {
            return;
        }
        let is_blackout_over = arrival - group.last_arrival < BURST
            && delay < group.delay
            && arrival - group.first_arrival < LONGEST_BURST;
        if sent - group.first_sent <= BURST || is_blackout_over {
            group.last_sent = sent;
            group.last_arrival = group.last_arrival.max(arrival);
            group.delay = group.delay.min(delay);
            return;
        }
        self.close_group();
        self.group = Some(Group::of(sent, arrival));
    }

    /// All of a feedback packet was added.
    pub(super) fn update(&mut self) {
        let Some(group) = self.group else { return };
        let newest = Sample { arrival: group.last_arrival, delay: group.delay };
        let base = self.base.map_or(newest.delay, |base| base.this.min(base.last).min(newest.delay));
        let queue = newest.delay - base;
        self.queue = Some(queue);
        self.usage = match self.rise(newest) {
            Some(rise) if rise > 0.0 && queue > HARMLESS => Usage::Over,
            Some(rise) if rise < 0.0 => Usage::Under,
            _ => Usage::Normal,
        };
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// What the newest burst waited.
    pub(super) fn queue(&self) -> Option<Duration> {
        self.queue.map(|queue| Duration::from_secs_f64(queue.clamp(0.0, 60_000.0) / 1000.0))
    }

    /// The way itself has become longer: what packets wait now is no queue.
    pub(super) fn accept_delay(&mut self) {
        self.base = None;
        self.samples.clear();
        self.usage = Usage::Normal;
        self.queue = Some(0.0);
    }

    /// What was seen lately says nothing of what is now.
    pub(super) fn forget_samples(&mut self) {
        (self.group, self.usage) = (None, Usage::Normal);
        self.samples.clear();
    }

    fn close_group(&mut self) {
        let Some(group) = self.group else { return };
        let sample = Sample { arrival: group.last_arrival, delay: group.delay };
        let base = self.base.get_or_insert(Base { since: sample.arrival, this: sample.delay, last: sample.delay });
        if sample.arrival - base.since > EPOCH {
            *base = Base { since: sample.arrival, this: sample.delay, last: base.this };
        }
        base.this = base.this.min(sample.delay);
        self.samples.push_back(sample);
        while self.samples.len() > MOST_SAMPLES || self.is_old(sample.arrival) {
            self.samples.pop_front();
        }
    }

    fn is_old(&self, arrival: f64) -> bool {
        self.samples.front().is_some_and(|oldest| arrival - oldest.arrival > WINDOW)
    }

    /// What delays grew over the window (least squares), in milliseconds; `None` where that is too little or too unsure.
    fn rise(&self, newest: Sample) -> Option<f64> {
        let samples = || self.samples.iter().copied().chain([newest]);
        let n = (self.samples.len() + 1) as f64;
        if self.samples.len() + 1 < LEAST_SAMPLES {
            return None;
        }
        let mean_arrival = samples().map(|sample| sample.arrival).sum::<f64>() / n;
        let mean_delay = samples().map(|sample| sample.delay).sum::<f64>() / n;
        let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
        for Sample { arrival, delay } in samples() {
            let (x, y) = (arrival - mean_arrival, delay - mean_delay);
            (xx, xy, yy) = (xx + x * x, xy + x * y, yy + y * y);
        }
        if xx <= 0.0 {
            return None;
        }
        let slope = xy / xx;
        let error = ((yy - slope * xy).max(0.0) / (n - 2.0) / xx).sqrt();
        let span = newest.arrival - self.samples.front()?.arrival;
        let is_certain = slope.abs() > CERTAIN * error;
        (is_certain && (slope * span).abs() > RISE).then_some(slope * span)
    }
}

impl Group {
    fn of(sent: f64, arrival: f64) -> Self {
        Self { first_sent: sent, last_sent: sent, first_arrival: arrival, last_arrival: arrival, delay: arrival - sent }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Packets every 10 ms for so long, each `delay` of its time, in milliseconds, on its way.
    fn seen(time: u32, delay: impl Fn(f64) -> f64) -> Trend {
        let mut trend = Trend::default();
        for at in (0..time).step_by(10) {
            let sent = MS * at;
            trend.add(sent, sent + Duration::from_secs_f64(delay(f64::from(at)) / 1000.0));
        }
        trend.update();
        trend
    }

    #[test]
    fn a_queue_that_grows_is_seen_within_a_tenth_of_a_second() {
        // Twice as much as the link carries.
        let trend = seen(2100, |at| 20.0 + (at - 2000.0).max(0.0));
        assert_eq!(trend.usage(), Usage::Over);
    }

    #[test]
    fn a_queue_that_drains_is_seen_too() {
        let trend = seen(2200, |at| 200.0 - (at - 2000.0).max(0.0) / 2.0);
        assert_eq!(trend.usage(), Usage::Under);
    }

    #[test]
    fn steady_delays_short_bumps_and_jitter_are_nothing() {
        assert_eq!(seen(2000, |_| 20.0).usage(), Usage::Normal);
        assert_eq!(seen(2000, |at| 20.0 + f64::from(u8::from(at > 1950.0)) * 30.0).usage(), Usage::Normal);
        for time in 1000..2000 {
            let jitter = |at: f64| 20.0 + (at * 7919.0 % 997.0) / 997.0 * 30.0;
            assert_ne!(seen(time, jitter).usage(), Usage::Over, "after {time} ms");
        }
    }

    #[test]
    fn the_clocks_drift_is_no_queue() {
        let trend = seen(120_000, |at| 20.0 + at * 0.0001);
        assert_eq!(trend.usage(), Usage::Normal);
        assert!(trend.queue().unwrap() < 3 * MS, "{:?}", trend.queue());
    }

    #[test]
    fn the_queue_is_what_is_above_the_shortest_way() {
        let trend = seen(2000, |at| if at < 1000.0 { 20.0 } else { 95.0 });
        assert_eq!(trend.queue(), Some(75 * MS));
    }

    #[test]
    fn packets_held_back_by_a_radio_and_let_go_at_once_are_one_burst() {
        let mut trend = Trend::default();
        for at in (0..2000).step_by(33) {
            // Nothing arrives between 1,900 and 1,980 ms.
            let arrival = if (1900..1980).contains(&at) { 1985 } else { at + 5 };
            trend.add(MS * at, MS * arrival);
        }
        trend.update();
        assert_eq!(trend.usage(), Usage::Normal);
    }
}
