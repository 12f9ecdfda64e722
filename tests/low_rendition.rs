//! The second rendition of a camera comes and goes without a trace. Alone in its program, since it counts what that holds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(unreachable_pub, dead_code, reason = "shared by several test programs")]
#[path = "support/camera.rs"]
mod support;

use std::fs;
use std::time::Duration;

use edgecam::camera::Source;
use tokio::time::timeout;

use support::{Camera, PATIENCE};

const TIMES: u64 = 20;

#[tokio::test]
async fn the_first_rendition_does_not_notice_the_second_come_and_go() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    // What the first openings leave in caches is no leak.
    for _ in 0..5 {
        camera.low_comes_and_goes().await;
    }
    settles("the thread of the last one", || names_of_threads().all(|name| name != "camera-low")).await;
    let (threads, files, memory) = (threads(), open_files(), resident_kb());
    camera.drain();
    let first = camera.next().await;
    let mut high = vec![(first.captured_at, first.is_keyframe)];
    for _ in 0..TIMES {
        camera.low_comes_and_goes().await;
        while let Ok(unit) = camera.units.try_recv() {
            high.push((unit.captured_at, unit.is_keyframe));
        }
    }
    assert!(high.len() > 8 * TIMES as usize);
    assert!(!high.iter().any(|(_, is_keyframe)| *is_keyframe), "a keyframe nobody asked for");
    let gaps = high.windows(2).filter(|pair| pair[1].0 - pair[0].0 > Duration::from_millis(50)).count() as u64;
    // There is none where the machine is not busy with something else, and one each time where the second costs the first a picture.
    assert!(gaps < TIMES / 2, "pictures went missing {gaps} times of {TIMES}");
    assert_eq!((camera.counters.low.opened.get(), camera.counters.opened.get()), (5 + TIMES, 1));
    settles("the threads", || self::threads() <= threads).await;
    settles("the files", || open_files() <= files).await;
    let grown = resident_kb().saturating_sub(memory);
    // One graph forgotten each time would be some megabytes each.
    assert!(grown < 10 * 1024, "{grown} kB more after {TIMES} times");
    camera.stop().await;
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn names_of_threads() -> impl Iterator<Item = String> {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    // One that ends meanwhile has no name any more.
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok()).map(|name| name.trim().to_owned())
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Waits for what takes a moment to be so.
async fn settles(what: &str, is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, looking).await.is_ok(), "waited in vain for {what}");
}
