//! edgecam on real V4L2 devices: the kernel's virtual webcam and a virtual encoder that looks like the Raspberry Pi's,
//! both in a small virtual machine (README.md in this folder), watched from outside.
//!
//! They take a boot each, so a plain `cargo test` leaves them out: `make camera-vm`.

#[allow(unreachable_pub, dead_code, clippy::unwrap_used, reason = "shared by several test programs")]
#[path = "../support/camera.rs"]
mod camera;
mod guest;
mod low;
#[path = "../support/ports.rs"]
mod ports;
mod viewer;

use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};

use guest::{ENCODER, Guest, SCATTERED_WEBCAM, WEBCAM};
use viewer::{PATIENCE, Viewer};

/// The guest's encoder knows no rates: its pictures are as large as they are. So they are small ones, the rate is ample, and there is
/// no second rendition that viewers could be moved to, lest what is told here is how a network copes with it.
const CAMERA: &str = r#"
    source = "v4l2:/dev/video0"
    width = 320
    height = 180
    fps = 30
    [camera.encoder]
    max_kbps = 10000
    [camera.low]
    enabled = false
"#;

/// What `Guest::start_webcam` makes.
const LOOPBACK_CAMERA: &str = r#"
    source = "v4l2:/dev/video20"
    width = 320
    height = 180
    fps = 30
"#;

#[test]
#[ignore = "boots a virtual machine: make camera-vm"]
fn the_program_finds_the_webcam_and_the_encoder() {
    let mut guest = Guest::boot(&[WEBCAM, ENCODER]);
    let text = guest.run("/edgecam/edgecam devices --json");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(found["cameras"][0]["path"], "/dev/video0", "{text}");
    assert!(text.contains("v4l2h264enc"), "{text}");
}

#[test]
#[ignore = "boots a virtual machine: make camera-vm"]
fn the_doctor_tries_the_webcam_and_names_who_has_it_instead() {
    let mut guest = Guest::boot(&[WEBCAM, ENCODER]);
    guest.run(
        "printf '[[camera]]\\nid = \"cam\"\\nsource = \"auto\"\\nwidth = 640\\nheight = 360\\n' >/tmp/edgecam.toml",
    );
    let doctor = "/edgecam/edgecam doctor --config /tmp/edgecam.toml";
    let text = guest.run(doctor);
    for line in [
        "ok    encoder        v4l2h264enc works, in hardware (/dev/video11)",
        "ok    permissions    root (in root) may use /dev/media0, /dev/video0, /dev/video11",
        "ok    camera cam     gives pictures: NV12 640x360 at 30 fps from /dev/video0",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line:?} is missing in\n{text}");
    }
    guest.run(
        "v4l2-ctl -d /dev/video0 --stream-mmap --stream-count=100000 >/tmp/streaming 2>&1 & \
         until grep '<' /tmp/streaming; do sleep 0.2; done",
    );
    let text = guest.run(&format!("{doctor} || test $? = 1"));
    assert!(text.contains("fail  camera cam     /dev/video0 is in use by v4l2-ctl (pid "), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn the_webcam_streams_through_the_hardware_encoder_without_a_copy() {
    let mut guest = Guest::boot(&[WEBCAM, ENCODER]);
    guest.start_edgecam(CAMERA);
    let mut first = Viewer::join(&guest.whep_url()).await;
    first.sees_pictures(30).await;

    let camera = guest.camera();
    assert_eq!(camera["encoder"], "v4l2h264enc", "{camera}");
    assert_eq!(camera["state"], "running", "{camera}");
    // The driver takes steps of 25 kbit/s; congestion control may ask for less than the most allowed.
    let bitrate = guest.encoder_figure("last_bitrate");
    assert!((25_000..=10_000_000).contains(&bitrate), "{bitrate}");
    let (frames, in_place) = (guest.encoder_figure("n_frames"), guest.encoder_figure("n_dmabuf"));
    assert!(frames >= 30, "{frames}");
    assert!(in_place >= 30, "only {in_place} of {frames} frames were read in place");

    // A second viewer shares the encoder and is given a keyframe of its own at once.
    let forced = guest.encoder_figure("n_forced");
    let mut second = Viewer::join(&guest.whep_url()).await;
    second.sees_pictures(10).await;
    let forced_by_join = guest.encoder_figure("n_forced");
    assert!(forced_by_join > forced);
    assert_eq!(guest.encoder_figure("n_streamon"), 2, "one encoder, its two queues each started once");

    second.request_keyframe().await;
    eventually("a keyframe forced on request", || guest.encoder_figure("n_forced") > forced_by_join).await;
    first.sees_pictures(10).await;
    guest.stop_edgecam();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn a_webcam_with_scattered_buffers_streams_through_the_hardware_encoder_too() {
    let mut guest = Guest::boot(&[SCATTERED_WEBCAM, ENCODER]);
    guest.start_edgecam(CAMERA);
    Viewer::join(&guest.whep_url()).await.sees_pictures(30).await;
    assert_eq!(guest.camera()["encoder"], "v4l2h264enc");
    assert!(guest.encoder_figure("n_frames") >= 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn without_an_encoder_device_the_software_encoder_runs() {
    let mut guest = Guest::boot(&[WEBCAM]);
    guest.start_edgecam(CAMERA);
    Viewer::join(&guest.whep_url()).await.sees_pictures(30).await;
    let camera = guest.camera();
    assert_eq!(camera["encoder"], "x264enc", "{camera}");
    assert!(camera["encoder_reason"].as_str().is_some_and(|reason| reason.contains("v4l2h264enc")), "{camera}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn a_webcam_that_sends_h264_is_passed_through() {
    let mut guest = Guest::boot(&[ENCODER]);
    guest.start_webcam(
        "H264",
        "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 \
         ! video/x-h264,stream-format=byte-stream,alignment=au,profile=constrained-baseline",
    );
    guest.start_edgecam(LOOPBACK_CAMERA);
    Viewer::join(&guest.whep_url()).await.sees_pictures(30).await;
    let camera = guest.camera();
    assert_eq!(camera["encoder"], "passthrough", "{camera}");
    assert!(camera["source"].as_str().is_some_and(|source| source.starts_with("H264 320x180")), "{camera}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn a_webcam_that_sends_jpeg_is_decoded_for_the_hardware_encoder() {
    let mut guest = Guest::boot(&[ENCODER]);
    guest.start_webcam("MJPG", "jpegenc");
    guest.start_edgecam(LOOPBACK_CAMERA);
    Viewer::join(&guest.whep_url()).await.sees_pictures(30).await;
    let camera = guest.camera();
    assert_eq!(camera["encoder"], "v4l2h264enc", "{camera}");
    assert!(camera["source"].as_str().is_some_and(|source| source.starts_with("MJPG 320x180")), "{camera}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots a virtual machine: make camera-vm"]
async fn a_camera_that_goes_comes_back_to_the_same_session() {
    let faults = [
        Fault {
            name: "unplugged",
            strike: "echo vivid.0 >/sys/bus/platform/drivers/vivid/unbind",
            // The node gets its old name once nobody holds it any more.
            heal: "until ! ls -l /proc/$(cat /tmp/pid)/fd | grep /dev/video0; do sleep 0.1; done; \
                   echo vivid.0 >/sys/bus/platform/drivers/vivid/bind",
        },
        // Every call fails until the last user has let go of the device; then it is back by itself.
        Fault { name: "disconnected", strike: "v4l2-ctl -d /dev/video0 -c disconnect=1", heal: "true" },
        // No error anywhere, just no more pictures.
        Fault {
            name: "silent",
            strike: "v4l2-ctl -d /dev/video0 -c percentage_of_dropped_buffers=100",
            heal: "v4l2-ctl -d /dev/video0 -c percentage_of_dropped_buffers=0",
        },
        Fault {
            name: "encoder hangs",
            strike: "echo 1 >/sys/module/vh264/parameters/stall",
            heal: "echo 0 >/sys/module/vh264/parameters/stall",
        },
        Fault { name: "encoder dies", strike: "echo 1 >/sys/module/vh264/parameters/die_after", heal: "true" },
    ];
    let mut guest = Guest::boot(&[WEBCAM, ENCODER]);
    guest.start_edgecam(CAMERA);
    let mut by_whep = Viewer::join(&guest.whep_url()).await;
    let (mut by_websocket, mut notices) = Viewer::join_by_websocket(&guest.websocket_url(), "cam").await;
    by_websocket.sees_pictures(30).await;

    let open_devices = guest.open_devices();
    let mut told = Vec::new();
    for fault in faults {
        eprintln!("{}", fault.name);
        guest.run(fault.strike);
        told.push("camera-lost");
        notices.are(&told).await;
        guest.run(fault.heal);
        told.push("camera-back");
        notices.are(&told).await;
        by_websocket.sees_pictures(30).await;
        by_whep.sees_pictures(30).await;
        assert_eq!(guest.camera()["viewers"], 2, "{}", fault.name);
        assert_eq!(guest.open_devices(), open_devices, "{}", fault.name);
    }
    assert_eq!((by_whep.seen().ended, by_websocket.seen().ended), (None, None));
    guest.stop_edgecam();
}

struct Fault {
    name: &'static str,
    strike: &'static str,
    heal: &'static str,
}

/// Looks until it is so; fails after a while.
async fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let looking = async {
        while !reached() {
            sleep(Duration::from_millis(200)).await;
        }
    };
    assert!(timeout(PATIENCE, looking).await.is_ok(), "waited in vain for {what}");
}
