//! The whole camera, from demand to access units, on sources that need no hardware.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(unreachable_pub, dead_code, reason = "shared by several test programs")]
#[path = "support/camera.rs"]
mod support;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use edgecam::camera::{Source, still};
use edgecam::core::access_unit::AccessUnit;
use edgecam::core::annex_b::{Contents, Sps};
use edgecam::core::camera::{CameraState, LowState};
use tokio::sync::mpsc;
use tokio::time::timeout;

use support::{Camera, PATIENCE};

#[tokio::test]
async fn a_watched_camera_begins_with_a_keyframe_and_says_what_it_is() {
    let mut camera = Camera::start(Source::Test);
    assert_eq!(camera.status.borrow().state, CameraState::Idle);
    camera.want(true);
    let first = camera.next().await;
    assert!(first.is_keyframe);
    let sps = Sps::find(&first.data).unwrap();
    assert!(sps.is_constrained_baseline());
    assert_eq!((sps.width, sps.height), (640, 360));
    camera.reaches(|state| *state == CameraState::Running).await;
    let stream = camera.stream().unwrap();
    assert_eq!(stream.source, "test picture 640x360 at 30 fps");
    assert_eq!(stream.encoder, "x264enc");
    assert!(stream.encoder_reason.contains("v4l2h264enc is not there"), "{}", stream.encoder_reason);
    camera.stop().await;
}

#[tokio::test]
async fn the_camera_closes_after_the_linger_and_opens_again() {
    let mut camera = Camera::start(Source::Test);
    for opened in 1..=2 {
        camera.want(true);
        camera.reaches(|state| *state == CameraState::Running).await;
        assert_eq!(camera.counters.opened.get(), opened);
        camera.want(false);
        camera.reaches(|state| *state == CameraState::Idle).await;
        camera.drain();
    }
    assert!(camera.stream().is_some(), "what it was is still told");
    assert_eq!(camera.counters.failed.get(), 0);
    camera.stop().await;
}

#[tokio::test]
async fn a_wished_keyframe_comes_without_waiting_for_the_next_regular_one() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    for _ in 0..10 {
        camera.next().await;
    }
    camera.drain();
    camera.demand.send_modify(|demand| demand.keyframe += 1);
    let mut waited = 0;
    while !camera.next().await.is_keyframe {
        waited += 1;
        assert!(waited < 300, "no keyframe in 300 pictures, the regular one comes after 18000");
    }
    assert_eq!(camera.counters.keyframes_asked.get(), 1);
    camera.stop().await;
}

#[tokio::test]
async fn pictures_are_stamped_with_the_time_they_were_taken() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    let units = [camera.next().await, camera.next().await, camera.next().await];
    #[expect(clippy::disallowed_methods, reason = "what is tested is that the stamp lies on this clock")]
    let now = std::time::Instant::now();
    for unit in &units {
        assert!(unit.captured_at < now && now - unit.captured_at < PATIENCE);
    }
    let apart = units[2].captured_at - units[1].captured_at;
    assert!(apart >= Duration::from_millis(33), "{apart:?} between two pictures");
    camera.stop().await;
}

#[tokio::test]
async fn a_stopped_camera_gives_no_more_pictures() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    camera.next().await;
    camera.stopping.cancel();
    timeout(PATIENCE, &mut camera.task).await.expect("it stops").unwrap();
    assert_eq!(camera.status.borrow().state, CameraState::Idle);
    // The pipeline held the sink; that it is gone shows in the channel's end.
    camera.drain();
    assert!(matches!(camera.units.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
}

#[tokio::test]
async fn a_camera_that_is_not_there_is_told_with_its_remedy_and_left_alone_when_nobody_watches() {
    let mut camera = Camera::start(Source::V4l2("/dev/nonexistent".into()));
    camera.want(true);
    let error = camera.failure().await;
    assert!(error.contains("/dev/nonexistent") && error.contains("plug it in"), "{error}");
    assert!(camera.counters.failed.get() >= 1);
    camera.want(false);
    camera.reaches(|state| *state == CameraState::Idle).await;
    camera.stop().await;
}

#[tokio::test]
async fn a_node_that_is_no_video_device_is_refused() {
    let mut camera = Camera::start(Source::V4l2("/dev/null".into()));
    camera.want(true);
    let error = camera.failure().await;
    assert!(error.contains("/dev/null is no camera"), "{error}");
    camera.stop().await;
}

#[tokio::test]
async fn auto_without_any_camera_says_what_was_seen() {
    if Path::new("/dev/video0").exists() {
        return;
    }
    let mut camera = Camera::start(Source::Auto);
    camera.want(true);
    let error = camera.failure().await;
    assert!(error.contains("there is no video device at all"), "{error}");
    camera.stop().await;
}

#[tokio::test]
async fn a_clip_plays_in_a_loop_as_a_camera() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let recorded = record(40).await;
    for unit in &recorded {
        file.write_all(&unit.data).unwrap();
    }
    let mut camera = Camera::start(Source::Clip(file.path().into()));
    camera.want(true);
    let mut played = Vec::new();
    for _ in 0..2 * recorded.len() {
        played.push(camera.next().await);
    }
    for (n, unit) in played.iter().enumerate() {
        assert_eq!(unit.data, recorded[n % recorded.len()].data, "picture {n}");
        assert_eq!(unit.is_keyframe, n % recorded.len() == 0);
    }
    assert!(played.is_sorted_by(|a, b| a.captured_at < b.captured_at));
    let stream = camera.stream().unwrap();
    assert_eq!((stream.width, stream.height, stream.encoder.as_str()), (640, 360, "passthrough"));
    camera.stop().await;
}

#[tokio::test]
async fn a_still_can_be_made_of_what_any_source_gives() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for unit in record(5).await {
        file.write_all(&unit.data).unwrap();
    }
    for source in [Source::Test, Source::Clip(file.path().into())] {
        let mut camera = Camera::start(source);
        camera.want(true);
        let jpeg = still::jpeg(&camera.next().await).unwrap();
        assert!(jpeg.starts_with(&[0xFF, 0xD8]) && jpeg.ends_with(&[0xFF, 0xD9]));
        // Height and width in the frame header (ITU-T T.81, B.2.2), behind its length and precision.
        let size = [360u16.to_be_bytes(), 640u16.to_be_bytes()].concat();
        let header = jpeg.windows(9).find(|bytes| bytes[..2] == [0xFF, 0xC0]).unwrap();
        assert_eq!(header[5..], size);
        camera.stop().await;
    }
}

#[tokio::test]
async fn a_clip_goes_on_with_a_keyframe_when_one_is_wished() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for unit in record(40).await {
        file.write_all(&unit.data).unwrap();
    }
    let mut camera = Camera::start(Source::Clip(file.path().into()));
    camera.want(true);
    for _ in 0..5 {
        camera.next().await;
    }
    camera.demand.send_modify(|demand| demand.keyframe += 1);
    // Where the machine was busy, the wish is heard after some more pictures.
    let mut since = 5;
    for _ in 0..200 {
        let next = camera.next().await;
        assert_eq!(next.is_keyframe, Contents::of(&next.data).is_keyframe());
        if next.is_keyframe && since < 40 {
            return camera.stop().await;
        }
        since = if next.is_keyframe { 1 } else { since + 1 };
    }
    panic!("only the clip's own keyframes came, each 40 pictures after the one before");
}

#[tokio::test]
async fn a_file_that_is_no_clip_is_told() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"no H.264 in here").unwrap();
    let mut camera = Camera::start(Source::Clip(file.path().into()));
    camera.want(true);
    let error = camera.failure().await;
    assert!(error.contains("is no clip") && error.contains("ffmpeg"), "{error}");
    camera.stop().await;
}

#[tokio::test]
async fn a_second_smaller_rendition_flows_beside_the_first_with_the_same_stamps() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    camera.next().await;
    camera.want_low(Some(300));
    let first = camera.next_low().await;
    assert!(first.is_keyframe);
    let sps = Sps::find(&first.data).unwrap();
    assert!(sps.is_constrained_baseline());
    assert_eq!((sps.width, sps.height), (320, 180));
    camera.low_reaches(|low| *low == LowState::Open { width: 320, height: 180, encoder: "x264enc".into() }).await;
    let mut high = Vec::new();
    let mut matched = 0;
    for _ in 0..60 {
        let low = camera.next_low().await.captured_at;
        while high.last().is_none_or(|last| *last < low) {
            high.push(camera.next().await.captured_at);
        }
        let apart = high.iter().map(|high| high.max(&low).duration_since(*high.min(&low))).min().unwrap();
        // A busy machine leaves out other pictures in each, but never gives one another time.
        assert!(apart.is_zero() || apart > Duration::from_millis(16), "a picture's times are {apart:?} apart");
        matched += usize::from(apart.is_zero());
    }
    assert!(matched >= 20, "only {matched} of 60 pictures have the same time in both");
    assert!(camera.counters.low.units_captured.get() > 60);
    camera.want_low(None);
    camera.low_reaches(|low| *low == LowState::Closed).await;
    camera.stop().await;
}

#[tokio::test]
async fn a_bitrate_and_keyframes_are_wished_of_each_rendition_alone() {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    camera.want_low(Some(500));
    camera.next_low().await;
    let mut measured = Vec::new();
    for kbps in [500, 100, 500] {
        camera.want_low(Some(kbps));
        camera.drain();
        for _ in 0..20 {
            camera.next_low().await;
        }
        let mut bytes = 0;
        for _ in 0..60 {
            bytes += camera.next_low().await.data.len();
        }
        measured.push(bytes * 8 * 30 / 60 / 1000);
    }
    assert!(measured[0] > 250 && measured[1] < 150 && measured[2] > 250, "{measured:?} kbit/s");
    camera.drain();
    camera.demand.send_modify(|demand| demand.low.as_mut().unwrap().keyframe += 1);
    let mut waited = 0;
    while !camera.next_low().await.is_keyframe {
        waited += 1;
        assert!(waited < 300, "no keyframe in 300 pictures, the regular one comes after 18000");
    }
    // Those taken meanwhile, and some more: the encoders do not keep in step.
    for _ in 0..waited + 5 {
        assert!(!camera.next().await.is_keyframe, "the other rendition's keyframe came too");
    }
    assert_eq!((camera.counters.keyframes_asked.get(), camera.counters.low.keyframes_asked.get()), (0, 1));
    camera.stop().await;
}

#[tokio::test]
async fn a_camera_that_closes_takes_both_renditions_with_it_and_both_come_back() {
    let mut camera = Camera::start(Source::Test);
    camera.want_low(Some(300));
    for _ in 0..3 {
        camera.want(true);
        camera.next_low().await;
        camera.next().await;
        camera.want(false);
        camera.reaches(|state| *state == CameraState::Idle).await;
        assert_eq!(camera.status.borrow().low, LowState::Closed);
        camera.drain();
    }
    camera.stop().await;
}

#[tokio::test]
async fn a_clip_has_no_second_rendition_and_says_why() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for unit in record(5).await {
        file.write_all(&unit.data).unwrap();
    }
    let mut camera = Camera::start(Source::Clip(file.path().into()));
    camera.want_low(Some(300));
    camera.want(true);
    camera.next().await;
    let low = camera.low_reaches(|low| matches!(low, LowState::Unavailable { .. })).await;
    assert!(matches!(&low, LowState::Unavailable { reason } if reason.contains("clip")), "{low:?}");
    camera.stop().await;
}

/// The test source's first pictures.
async fn record(count: usize) -> Vec<AccessUnit> {
    let mut camera = Camera::start(Source::Test);
    camera.want(true);
    let mut units = Vec::new();
    for _ in 0..count {
        units.push(camera.next().await);
    }
    camera.stop().await;
    units
}
