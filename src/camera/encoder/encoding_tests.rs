//! What every encoder must do, tried on the real ones this machine has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use tokio_util::sync::CancellationToken;

use super::{EncodeSettings, Kind, Picture, survey};
use crate::camera::input::Rate;
use crate::camera::pipeline::{CapturePlan, Pipeline, Plan};
use crate::camera::test_source::Mark;
use crate::camera::{Feed, LowFeed, VideoSource};
use crate::core::access_unit::{AccessUnit, Bitrate};
use crate::core::annex_b::{Contents, Sps};
use crate::core::camera::Rendition;

/// Long enough for a busy machine; reached only when something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

const PICTURE: Picture = Picture { width: 640, height: 360, rate: Rate::per_second(60) };

#[test]
fn the_software_encoders_of_this_machine_work() {
    let reports = survey().unwrap();
    let works = |name| reports.iter().any(|report| report.name == name && report.works);
    assert!(works("x264enc") && works("openh264enc"), "{reports:#?}");
}

#[test]
fn each_keyframe_carries_parameter_sets_of_constrained_baseline() {
    for kind in SOFTWARE {
        let mut camera = Camera::open(kind, Bitrate::from_kbps(1000), Duration::from_millis(250));
        for unit in camera.next(60) {
            let contents = Contents::of(&unit.data);
            assert_eq!(unit.is_keyframe, contents.idr, "{kind:?}: a keyframe without parameter sets");
            if contents.idr {
                let sps = Sps::find(&unit.data).unwrap();
                assert!(sps.is_constrained_baseline(), "{kind:?}: {sps:?}");
                assert_eq!((sps.width, sps.height), (PICTURE.width, PICTURE.height));
            }
        }
        camera.stop();
    }
}

#[test]
fn keyframes_come_as_often_as_set() {
    for kind in SOFTWARE {
        let mut camera = Camera::open(kind, Bitrate::from_kbps(1000), Duration::from_millis(250));
        let keyframes: Vec<usize> =
            camera.next(61).iter().enumerate().filter(|(_, unit)| unit.is_keyframe).map(|(n, _)| n).collect();
        assert_eq!(keyframes, [0, 15, 30, 45, 60], "{kind:?}");
        camera.stop();
    }
}

#[test]
fn pictures_come_in_the_order_they_are_shown() {
    for kind in SOFTWARE {
        let mut camera = Camera::open(kind, Bitrate::from_kbps(1000), Duration::from_secs(2));
        let units = camera.next(60);
        assert!(units.is_sorted_by(|a, b| a.captured_at < b.captured_at), "{kind:?}");
        camera.stop();
    }
}

#[test]
fn a_keyframe_that_is_asked_for_comes_soon() {
    for kind in SOFTWARE {
        let mut camera = Camera::open(kind, Bitrate::from_kbps(1000), Duration::from_secs(600));
        camera.next(20);
        camera.source.request_keyframe(Rendition::High);
        // Those under way when the wish was heard, and those a busy machine lets pass before.
        let comes = (0..300).any(|_| camera.next(1)[0].is_keyframe);
        assert!(comes, "{kind:?}: none in 300 pictures, the regular one comes after 36000");
        assert!(!camera.next(30).iter().any(|unit| unit.is_keyframe), "{kind:?}: more than the one asked for");
        camera.stop();
    }
}

#[test]
fn the_bitrate_follows_down_and_up_while_running() {
    for kind in SOFTWARE {
        let mut camera = Camera::open(kind, Bitrate::from_kbps(1600), Duration::from_secs(600));
        let mut measured = Vec::new();
        for kbps in [1600, 400, 1600] {
            camera.source.set_bitrate(Rendition::High, Bitrate::from_kbps(kbps));
            camera.next(25);
            let units = camera.next(50);
            let bytes: usize = units.iter().map(|unit| unit.data.len()).sum();
            // What a busy machine left out altogether is nobody's rate.
            let gaps = units.windows(2).map(|pair| pair[1].captured_at - pair[0].captured_at);
            let time: Duration = gaps.map(|gap| gap.min(Duration::from_millis(100))).sum();
            measured.push((bytes * 8) as f64 / time.as_secs_f64() / 1000.0);
        }
        // Skipped pictures make the rate uneven; what is asked is that it follows, not that it is exact.
        assert!(measured[1] < 600.0, "{kind:?}: {measured:?} kbit/s");
        assert!(measured[0] > 1000.0 && measured[2] > 1000.0, "{kind:?}: {measured:?} kbit/s");
        assert!(measured[0] < 2200.0 && measured[2] < 2200.0, "{kind:?}: {measured:?} kbit/s");
        camera.stop();
    }
}

#[test]
fn the_mark_in_the_picture_survives_encoding_and_counts_up() {
    for kind in SOFTWARE {
        let mut camera = Camera::open(kind, Bitrate::from_kbps(1000), Duration::from_secs(2));
        let units = camera.next(40);
        camera.stop();
        let marks = decoded_marks(&units, PICTURE);
        assert_eq!(marks.len(), units.len());
        let marks: Vec<Mark> = marks.into_iter().flatten().collect();
        assert!(marks.len() >= units.len() - 1, "{kind:?}: only {} marks could be read", marks.len());
        assert!(marks.is_sorted_by(|a, b| a.number < b.number), "{kind:?}: {marks:?}");
        assert!(marks.is_sorted_by_key(|mark| mark.wall_ms), "{kind:?}: {marks:?}");
        // A picture that a busy machine drew late has its mark late: most have not.
        let mut apart: Vec<Duration> = (marks.iter().zip(&units))
            .map(|(mark, unit)| {
                let shown = Duration::from_millis((mark.wall_ms - marks[0].wall_ms).into());
                shown.abs_diff(unit.captured_at - units[0].captured_at)
            })
            .collect();
        apart.sort();
        assert!(apart[apart.len() / 2] < Duration::from_millis(500), "{kind:?}: marks and stamps differ by {apart:?}");
    }
}

#[test]
fn the_same_picture_has_the_same_mark_and_time_in_both_renditions() {
    let mut camera = Camera::open(Kind::X264, Bitrate::from_kbps(2000), Duration::from_secs(2));
    let (sender, low) = sync_channel(1000);
    let feed = LowFeed::to(Arc::new(move |_, unit| sender.try_send(unit).unwrap()));
    camera.source.open_low(Bitrate::from_kbps(150), feed);
    let low: Vec<AccessUnit> = (0..60).map(|_| low.recv_timeout(PATIENCE).unwrap()).collect();
    let mut high = camera.next(10);
    while high.last().unwrap().captured_at < low.last().unwrap().captured_at {
        high.extend(camera.next(1));
    }
    camera.stop();
    let sps = Sps::find(&low[0].data).unwrap();
    assert_eq!((sps.width, sps.height), (LOW_PICTURE.width, LOW_PICTURE.height));
    let [high, low] = [(high, PICTURE), (low, LOW_PICTURE)].map(|(units, picture)| {
        let times = units.iter().map(|unit| unit.captured_at).collect::<Vec<_>>();
        times.into_iter().zip(decoded_marks(&units, picture)).collect::<BTreeMap<_, _>>()
    });
    let both: Vec<_> = low.iter().filter_map(|(time, mark)| Some((*mark, *high.get(time)?))).collect();
    // A busy machine leaves out other pictures in each.
    assert!(both.len() >= 20, "only {} of {} pictures have a time that the other rendition has", both.len(), low.len());
    let near_miss = |time: &Instant| {
        let apart = high.keys().map(|high| high.max(time).duration_since(*high.min(time))).min();
        apart.is_some_and(|apart| !apart.is_zero() && apart < Duration::from_millis(8))
    };
    assert!(!low.keys().any(near_miss), "a picture has another time in each rendition");
    let read = both.iter().filter(|(low, _)| low.is_some()).count();
    assert!(read >= both.len() - 2, "only {read} of {} small marks could be read", both.len());
    assert!(both.iter().all(|(low, high)| low.is_none() || high.is_none() || low == high), "{both:?}");
}

const LOW_PICTURE: Picture = Picture { width: 320, height: 180, rate: Rate::per_second(60) };

const SOFTWARE: [Kind; 2] = [Kind::X264, Kind::OpenH264];

struct Camera {
    source: Box<dyn VideoSource>,
    units: Receiver<AccessUnit>,
}

impl Camera {
    fn open(kind: Kind, bitrate: Bitrate, keyframe_interval: Duration) -> Self {
        let (sender, units) = sync_channel(1000);
        let sink = Arc::new(move |_, unit| sender.try_send(unit).unwrap());
        let settings = EncodeSettings { picture: PICTURE, bitrate, keyframe_interval };
        let plan =
            Plan { capture: CapturePlan::Test(PICTURE), encoder: Some((kind, settings)), low: Some(LOW_PICTURE) };
        let pipeline = Pipeline::open(&plan, Feed::to(sink), &CancellationToken::new()).unwrap();
        Self { source: Box::new(pipeline), units }
    }

    fn next(&mut self, count: usize) -> Vec<AccessUnit> {
        (0..count).map(|_| self.units.recv_timeout(PATIENCE).unwrap()).collect()
    }

    fn stop(self) {
        self.source.stop();
    }
}

/// What another decoder sees: one entry for each decoded picture.
fn decoded_marks(units: &[AccessUnit], picture: Picture) -> Vec<Option<Mark>> {
    let launch = "appsrc name=src format=time caps=video/x-h264,stream-format=byte-stream,alignment=au \
                  ! h264parse ! openh264dec ! video/x-raw,format=I420 ! appsink name=sink sync=false";
    let pipeline = gst::parse::launch(launch).unwrap().downcast::<gst::Pipeline>().unwrap();
    let source = pipeline.by_name("src").unwrap().downcast::<gst_app::AppSrc>().unwrap();
    let sink = pipeline.by_name("sink").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    for (n, unit) in units.iter().enumerate() {
        let mut buffer = gst::Buffer::from_slice(unit.data.clone());
        buffer.get_mut().unwrap().set_pts(gst::ClockTime::from_mseconds(n as u64 * 33));
        source.push_buffer(buffer).unwrap();
    }
    source.end_of_stream().unwrap();
    let mut marks = Vec::new();
    while let Some(sample) = sink.try_pull_sample(gst::ClockTime::from_seconds(PATIENCE.as_secs())) {
        let map = sample.buffer().unwrap().map_readable().unwrap();
        marks.push(Mark::read(&map, picture.width as usize));
    }
    pipeline.set_state(gst::State::Null).unwrap();
    marks
}
