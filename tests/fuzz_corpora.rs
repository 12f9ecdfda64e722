//! The fuzzer's corpora, through the same functions, in the time of an ordinary test. A crash that was found is added to them.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain has failed")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/targets.rs"]
mod targets;

#[test]
fn wire_survives_its_corpus() {
    replay("wire", targets::wire);
}

#[test]
fn messages_from_a_broker_survive_their_corpus() {
    replay("mqtt_message", targets::mqtt_message);
}

#[test]
fn whep_bodies_survive_their_corpus() {
    replay("whep_body", targets::whep_body);
}

#[test]
fn tokens_survive_their_corpus() {
    replay("token", targets::token);
}

#[test]
fn byte_streams_survive_their_corpus() {
    replay("annex_b", targets::annex_b);
}

#[test]
fn streams_of_frames_survive_their_corpus() {
    replay("frames", targets::frames);
}

#[test]
fn offers_survive_their_corpus() {
    replay("offer", targets::offer);
}

#[test]
fn what_a_turn_server_sends_survives_its_corpus() {
    replay("turn_server", targets::turn_server);
}

#[test]
fn feedback_survives_its_corpus() {
    replay("feedback", targets::feedback);
}

/// Each seed whole, cut off at every length, and with each of its first bytes changed.
fn replay(target: &str, survive: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let seeds: Vec<_> = fs::read_dir(&corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(seeds.len() >= 10, "only {} seeds in {}", seeds.len(), corpus.display());
    for seed in seeds {
        survive(&seed);
        for length in 0..seed.len().min(600) {
            survive(&seed[..length]);
            let mut changed = seed.clone();
            changed[length] ^= 0x15;
            survive(&changed);
        }
    }
}
