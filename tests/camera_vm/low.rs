//! The second rendition beside the first on the board's devices. Runs itself once more in the guest, where the devices are.

use std::fs;
use std::time::Duration;

use edgecam::camera::Source;
use edgecam::core::camera::{CameraState, LowState};

use crate::camera::Camera;
use crate::guest::{ENCODER, Guest, WEBCAM};

/// Set where this runs in the guest.
const IN_GUEST: &str = "EDGECAM_IN_GUEST";

#[tokio::test]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn the_second_rendition_is_encoded_in_hardware_beside_the_first_which_stays_uncopied() {
    if std::env::var_os(IN_GUEST).is_none() {
        return again_in_guest("the_second_rendition_is_encoded_in_hardware_beside_the_first_which_stays_uncopied");
    }
    let mut camera = opened().await;
    let files = open_devices();
    // What the first opening leaves with the driver and in caches is no leak.
    camera.low_comes_and_goes().await;
    let before = figure("n_dmabuf");
    camera.drain();
    let mut high = vec![camera.next().await];
    for _ in 0..5 {
        camera.low_comes_and_goes().await;
        while let Ok(unit) = camera.units.try_recv() {
            high.push(unit);
        }
    }
    let uncopied = figure("n_dmabuf") - before;
    // Some were on their way when the figure was read.
    assert!(high.len() > 40 && uncopied + 5 >= high.len() as u64, "only {uncopied} of {} came uncopied", high.len());
    assert!(!high.iter().any(|unit| unit.is_keyframe), "a keyframe nobody asked for");
    camera.want_low(Some(300));
    let low = camera.low_reaches(|low| matches!(low, LowState::Open { .. })).await;
    assert_eq!(low, LowState::Open { width: 160, height: 90, encoder: "v4l2h264enc".into() });
    assert!(open_devices() > files, "a second encoder is open");
    camera.want_low(None);
    camera.low_reaches(|low| *low == LowState::Closed).await;
    settles("the second encoder's device to be closed", || open_devices() == files).await;
    assert_eq!((camera.counters.opened.get(), camera.counters.failed.get()), (1, 0));
    camera.stop().await;
    assert_eq!(open_devices(), 0);
}

#[tokio::test]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn where_the_hardware_refuses_a_second_rendition_software_makes_it_and_the_first_goes_on() {
    if std::env::var_os(IN_GUEST).is_none() {
        return again_in_guest("where_the_hardware_refuses_a_second_rendition_software_makes_it_and_the_first_goes_on");
    }
    let mut camera = opened().await;
    fs::write("/sys/module/vh264/parameters/fail_streamon", "1").expect("the encoder can be told to fail");
    camera.want_low(Some(300));
    let low = camera.low_reaches(|low| matches!(low, LowState::Open { .. })).await;
    assert_eq!(low, LowState::Open { width: 160, height: 90, encoder: "x264enc".into() });
    for _ in 0..10 {
        camera.next_low().await;
    }
    let uncopied = figure("n_dmabuf");
    // Those on their way were counted before.
    for _ in 0..100 {
        camera.next().await;
        if figure("n_dmabuf") >= uncopied + 9 {
            break;
        }
    }
    assert!(figure("n_dmabuf") >= uncopied + 9, "the first is still encoded in hardware, uncopied");
    assert_eq!((camera.counters.opened.get(), camera.counters.failed.get()), (1, 0));
    camera.stop().await;
}

#[tokio::test]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn a_webcam_that_sends_jpeg_has_a_second_rendition() {
    if std::env::var_os(IN_GUEST).is_none() {
        let mut guest = Guest::boot(&[ENCODER]);
        guest.start_webcam("MJPG", "jpegenc");
        return run_again(&mut guest, "a_webcam_that_sends_jpeg_has_a_second_rendition");
    }
    let mut camera = Camera::sized(Source::V4l2("/dev/video20".into()), 320, 180, 1000);
    camera.want(true);
    camera.want_low(Some(300));
    let low = camera.low_reaches(|low| matches!(low, LowState::Open { .. })).await;
    assert_eq!(low, LowState::Open { width: 160, height: 90, encoder: "v4l2h264enc".into() });
    for _ in 0..10 {
        camera.next_low().await;
        camera.next().await;
    }
    camera.stop().await;
}

#[tokio::test]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn a_webcam_that_sends_h264_has_no_second_rendition_and_says_what_would_change_that() {
    if std::env::var_os(IN_GUEST).is_none() {
        let mut guest = Guest::boot(&[ENCODER]);
        let encode = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 \
                      ! video/x-h264,stream-format=byte-stream,alignment=au,profile=constrained-baseline";
        guest.start_webcam("H264", encode);
        return run_again(
            &mut guest,
            "a_webcam_that_sends_h264_has_no_second_rendition_and_says_what_would_change_that",
        );
    }
    let mut camera = Camera::sized(Source::V4l2("/dev/video20".into()), 320, 180, 1000);
    camera.want(true);
    camera.want_low(Some(300));
    camera.next().await;
    let low = camera.low_reaches(|low| matches!(low, LowState::Unavailable { .. })).await;
    assert!(matches!(&low, LowState::Unavailable { reason } if reason.contains("encoder.prefer")), "{low:?}");
    camera.stop().await;
}

fn again_in_guest(test: &str) {
    run_again(&mut Guest::boot(&[WEBCAM, ENCODER]), test);
}

fn run_again(guest: &mut Guest, test: &str) {
    let program = std::env::current_exe().expect("this program has a path");
    let program = program.file_name().and_then(|name| name.to_str()).expect("its name is text");
    let said = guest.run(&format!(
        "{IN_GUEST}=1 GST_V4L2_FORCE_DRAIN=1 /edgecam/deps/{program} --ignored --exact low::{test} --nocapture"
    ));
    assert!(said.contains("1 passed"), "{said}");
}

async fn opened() -> Camera {
    let mut camera = Camera::sized(Source::V4l2("/dev/video0".into()), 320, 180, 1000);
    camera.want(true);
    camera.next().await;
    camera.reaches(|state| *state == CameraState::Running).await;
    let stream = camera.stream().expect("it runs");
    assert_eq!(stream.encoder, "v4l2h264enc", "{}", stream.encoder_reason);
    camera
}

/// One of the figures the encoder's driver keeps.
fn figure(name: &str) -> u64 {
    let text = fs::read_to_string(format!("/sys/module/vh264/parameters/{name}")).expect("the driver is there");
    text.trim().parse().expect("a number")
}

fn open_devices() -> usize {
    let links = fs::read_dir("/proc/self/fd").expect("this process").flatten().map(|file| fs::read_link(file.path()));
    links.flatten().filter(|path| path.starts_with("/dev") && path.to_string_lossy().contains("video")).count()
}

async fn settles(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited in vain for {what}");
}
