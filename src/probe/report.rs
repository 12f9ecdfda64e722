//! What a viewer saw, in figures and in words.

use std::fmt;
use std::time::Duration;

use super::pictures::Counts;

/// What one probe saw. Times count from the moment the offer was sent.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub answer_after: Duration,
    /// ICE and DTLS are up.
    pub connected_after: Option<Duration>,
    pub first_packet_after: Option<Duration>,
    /// The last packet of the first whole keyframe arrived.
    pub first_keyframe_after: Option<Duration>,
    pub counts: Counts,
    /// From the first keyframe to the newest picture: how long, how many pictures came after the first, and their bytes.
    pub watched: Duration,
    pub pictures_watched: u64,
    pub bytes_watched: u64,
    /// The longest wait between two whole pictures.
    pub longest_gap: Duration,
    /// The candidate pair in use, once connected: addresses of both ends.
    pub candidate_pair: Option<String>,
}

/// Why a probe without a keyframe saw none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortfall {
    #[error(
        "answered, but no connection came up: the camera's UDP port is not reachable from here (firewall, NAT without TURN?)"
    )]
    NotConnected,
    #[error("connected, but no video came: see the camera's state at /api/cameras of the device")]
    NoPackets,
    #[error("video came, but no whole keyframe: packets are lost on the way, or the encoder makes no keyframes")]
    NoKeyframe,
}

impl Report {
    /// What kept the first picture away; `None`: it came.
    pub fn shortfall(&self) -> Option<Shortfall> {
        match (self.connected_after, self.first_packet_after, self.first_keyframe_after) {
            (_, _, Some(_)) => None,
            (_, Some(_), _) => Some(Shortfall::NoKeyframe),
            (Some(_), ..) => Some(Shortfall::NoPackets),
            _ => Some(Shortfall::NotConnected),
        }
    }

    /// Whole pictures in a second.
    pub fn fps(&self) -> f64 {
        per_second(self.pictures_watched as f64, self.watched)
    }

    /// Of the RTP payload.
    pub fn kbps(&self) -> f64 {
        per_second(self.bytes_watched as f64 * 8.0 / 1000.0, self.watched)
    }

    /// Share of the packets that never came, retransmission included: 0 to 1.
    pub fn loss(&self) -> f64 {
        let expected = self.counts.packets + self.counts.lost;
        if expected == 0 { 0.0 } else { self.counts.lost as f64 / expected as f64 }
    }
}

fn per_second(amount: f64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { amount / time.as_secs_f64() }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Option<Duration>| match time {
            Some(time) => format!("{:.0} ms", time.as_secs_f64() * 1000.0),
            None => "never".to_owned(),
        };
        let Counts { packets, late, lost, pictures, keyframes, .. } = self.counts;
        writeln!(f, "answer          {}", ms(Some(self.answer_after)))?;
        writeln!(f, "connected       {}", ms(self.connected_after))?;
        writeln!(f, "first packet    {}", ms(self.first_packet_after))?;
        writeln!(f, "first picture   {}", ms(self.first_keyframe_after))?;
        writeln!(f, "pictures        {pictures}, of them {keyframes} keyframes")?;
        writeln!(f, "rate            {:.1} fps, {:.0} kbit/s", self.fps(), self.kbps())?;
        writeln!(f, "longest gap     {}", ms(Some(self.longest_gap)))?;
        writeln!(
            f,
            "loss            {:.2} % ({lost} of {} packets; {late} came late)",
            self.loss() * 100.0,
            packets + lost
        )?;
        write!(f, "candidate pair  {}", self.candidate_pair.as_deref().unwrap_or("none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_shortfall_is_the_first_step_that_did_not_happen() {
        let mut report = Report::default();
        assert_eq!(report.shortfall(), Some(Shortfall::NotConnected));
        report.connected_after = Some(MS);
        assert_eq!(report.shortfall(), Some(Shortfall::NoPackets));
        report.first_packet_after = Some(MS);
        assert_eq!(report.shortfall(), Some(Shortfall::NoKeyframe));
        report.first_keyframe_after = Some(MS);
        assert_eq!(report.shortfall(), None);
    }

    #[test]
    fn rates_are_of_the_time_watched() {
        let report = Report {
            watched: 2000 * MS,
            pictures_watched: 60,
            bytes_watched: 500_000,
            counts: Counts { packets: 98, lost: 2, ..Counts::default() },
            ..Report::default()
        };
        assert_eq!((report.fps(), report.kbps(), report.loss()), (30.0, 2000.0, 0.02));
        assert_eq!(Report::default().fps(), 0.0);
    }
}
