//! What is counted, as plain atomics that any thread may add to; `telemetry` turns them into metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only goes up, or (through [`Count::set`]) a level.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One camera's figures.
#[derive(Debug, Default)]
pub struct CameraCounters {
    /// Access units that came out of the encoder, and their bytes.
    pub units_captured: Count,
    pub bytes_captured: Count,
    pub keyframes_captured: Count,
    /// Keyframes asked of the encoder, after merging.
    pub keyframes_asked: Count,
    /// Times the camera was opened, and times it failed or stalled.
    pub opened: Count,
    pub failed: Count,
    /// Level: sessions that hold a place.
    pub viewers: Count,
    /// Level: the bitrate asked of the encoder; zero before it ran.
    pub bitrate_kbps: Count,
}

/// The whole daemon's figures about viewers.
#[derive(Debug, Default)]
pub struct ViewerCounters {
    pub sessions_opened: Count,
    /// In the order of `CloseReason::ALL`.
    pub sessions_closed: [Count; 6],
    /// Access units handed to viewers, and those a slow viewer missed.
    pub units_sent: Count,
    pub units_skipped: Count,
    pub packets_sent: Count,
    pub bytes_sent: Count,
    /// Datagrams the kernel did not take.
    pub packets_dropped: Count,
    pub packets_retransmitted: Count,
    /// Retransmissions refused by the budget.
    pub retransmissions_refused: Count,
    pub nacks_received: Count,
    /// PLI and FIR received, before merging.
    pub keyframe_requests: Count,
}

/// What the ways in are used for, and what they turn away.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// Level: TCP connections that hold a place, WebSockets among them.
    pub connections: Count,
    /// Connections turned away because all places, or all of one address, were taken.
    pub connections_refused: Count,
    /// Connections cut off because the other end sent its request, or took its answer, too slowly.
    pub connections_cut: Count,
    pub sockets_opened: Count,
    pub sockets_closed: Count,
    /// Level: WHEP sessions that have a URL.
    pub whep_sessions: Count,
    /// WebSocket messages, and those answered with an error by the link itself.
    pub messages: Count,
    pub messages_refused: Count,
    /// Requests without a sufficient token, or from a foreign page.
    pub denied: Count,
}
