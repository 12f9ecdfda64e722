//! Sends a clip as RTP, in a loop and at its own speed: the camera in front of Janus.

use std::net::UdpSocket;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rtc::rtp;
use rtc::rtp::codec::h264::H264Payloader;
use rtc::rtp::packetizer::Payloader;
use rtc::shared::marshal::Marshal;

const FPS: u32 = 30;

/// What edgecam puts into a packet, so that both send the same number of them.
const PAYLOAD_SIZE: usize = 1180;

/// Runs until it is killed.
pub(crate) fn run(clip: &Path, port: u16) -> Result<()> {
    let clip = Bytes::from(std::fs::read(clip).context("no clip")?);
    let units = access_units(&clip);
    ensure!(units.len() > 1, "the clip has no access unit delimiters");
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    let (start, mut sequence_number) = (Instant::now(), 0_u16);
    for (number, unit) in (0_u32..).zip(units.iter().cycle()) {
        let due = start + Duration::from_secs(1) * number / FPS;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let payloads = H264Payloader::default().payload(PAYLOAD_SIZE, unit)?;
        let last = payloads.len().saturating_sub(1);
        for (index, payload) in payloads.into_iter().enumerate() {
            let header = rtp::Header {
                version: 2,
                marker: index == last,
                payload_type: 96,
                sequence_number,
                timestamp: number.wrapping_mul(90_000 / FPS),
                ssrc: 1,
                ..Default::default()
            };
            sequence_number = sequence_number.wrapping_add(1);
            // Nobody listening is Janus' affair.
            let _ = socket.send(&rtp::Packet { header, payload }.marshal()?);
        }
    }
    Ok(())
}

/// Cuts a stream before each access unit delimiter (ITU-T H.264, section 7.4.1.2.3).
fn access_units(stream: &Bytes) -> Vec<Bytes> {
    const DELIMITER: [u8; 5] = [0, 0, 0, 1, 9];
    let starts: Vec<usize> = stream
        .windows(DELIMITER.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == DELIMITER)
        .map(|(at, _)| at)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([stream.len()]);
    starts.iter().zip(ends).map(|(&start, end)| stream.slice(start..end)).collect()
}
