//! A JPEG picture of a keyframe.
//!
//! ```text
//! appsrc ─ h264parse ─ decoder ─ videoconvert ─ jpegenc ─ appsink
//! ```
//!
//! A still is made of what viewers get, not of the raw picture beside it (docs/decisions/0105): so it works for every source, and
//! the graph that viewers watch is left alone.

use std::time::Duration;

use bytes::Bytes;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use tracing::debug;

use super::pipeline::{self, add_and_link, element, words};
use super::{SourceError, now};
use crate::core::access_unit::AccessUnit;

/// From the quickest that knows every profile to the one that needs hardware.
const DECODERS: [&str; 3] = ["avdec_h264", "openh264dec", "v4l2h264dec"];
/// For one decoder. A picture takes one some tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
const QUALITY: i32 = 85;

#[derive(Debug, thiserror::Error)]
pub enum StillError {
    #[error("a still is made of a keyframe, and this picture is none")]
    NoKeyframe,
    #[error("no H.264 decoder is there to make a still; install gstreamer1.0-plugins-bad or gstreamer1.0-libav")]
    NoDecoder,
    #[error("the keyframe cannot be decoded: {0}; gstreamer1.0-libav decodes what others do not")]
    NotDecoded(String),
    #[error(transparent)]
    Graph(#[from] SourceError),
}

/// Decodes a keyframe and makes a JPEG of it. Blocks for some tens of milliseconds; for seconds when a decoder is stuck. Takes a
/// whole core and a picture's memory, so the caller sees to it that few are made at a time.
///
/// # Errors
/// No decoder is there, or none can decode it.
pub fn jpeg(unit: &AccessUnit) -> Result<Bytes, StillError> {
    if !unit.is_keyframe {
        return Err(StillError::NoKeyframe);
    }
    pipeline::init()?;
    let mut why_not = Vec::new();
    for decoder in DECODERS {
        let Ok(element) = gst::ElementFactory::make(decoder).build() else { continue };
        let started = now();
        match decode(unit, element)? {
            Ok(jpeg) => {
                debug!(decoder, took = ?now() - started, bytes = jpeg.len(), "still made");
                return Ok(jpeg);
            }
            Err(why) => why_not.push(format!("{decoder} {why}")),
        }
    }
    if why_not.is_empty() { Err(StillError::NoDecoder) } else { Err(StillError::NotDecoded(why_not.join(", "))) }
}

/// The inner error says why this decoder did not do; another may.
fn decode(unit: &AccessUnit, decoder: gst::Element) -> Result<Result<Bytes, String>, StillError> {
    let caps = gst::Caps::builder("video/x-h264").field("stream-format", "byte-stream").field("alignment", "au");
    let source = gst_app::AppSrc::builder().caps(&caps.build()).format(gst::Format::Time).build();
    let encoder = element("jpegenc")?;
    encoder.set_property("quality", QUALITY);
    let sink = gst_app::AppSink::builder().sync(false).build();
    let pipeline = gst::Pipeline::new();
    let chain = vec![source.clone().upcast(), element("h264parse")?, decoder, element("videoconvert")?, encoder];
    add_and_link(&pipeline, chain, sink.upcast_ref())?;
    let outcome = run(&pipeline, &source, &sink, unit);
    if let Err(error) = pipeline.set_state(gst::State::Null) {
        debug!(%error, "the decoder does not stop");
    }
    Ok(outcome)
}

fn run(
    pipeline: &gst::Pipeline,
    source: &gst_app::AppSrc,
    sink: &gst_app::AppSink,
    unit: &AccessUnit,
) -> Result<Bytes, String> {
    let bus = pipeline.bus().ok_or("has no bus")?;
    // What is refused has its reason on the bus.
    let _ = pipeline.set_state(gst::State::Playing);
    // Twice: where a camera's own H.264 may reorder pictures, openh264dec gives out the first only when it has the next.
    for number in 0..2 {
        let mut buffer = gst::Buffer::from_slice(unit.data.clone());
        buffer.make_mut().set_pts(gst::ClockTime::from_seconds(number));
        let _ = source.push_buffer(buffer);
    }
    let _ = source.end_of_stream();
    let give_up_at = now() + PATIENCE;
    loop {
        if let Some(sample) = sink.try_pull_sample(gst::ClockTime::from_mseconds(10)) {
            let map = sample.buffer().and_then(|buffer| buffer.map_readable().ok());
            return Ok(Bytes::copy_from_slice(&map.ok_or("gave a picture nobody can read")?));
        }
        let message = bus.pop_filtered(&[gst::MessageType::Error]);
        if let Some(gst::MessageView::Error(error)) = message.as_ref().map(|message| message.view()) {
            return Err(format!("says: {}", words(error).join(", ")));
        }
        if sink.is_eos() || now() >= give_up_at {
            return Err(format!("gave no picture within {} s", PATIENCE.as_secs()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_still_shows_what_was_before_the_lens_whatever_encoded_it() {
        // A camera that encodes by itself may use any profile; ours make constrained baseline.
        for encoder in [
            "x264enc tune=zerolatency ! video/x-h264,profile=constrained-baseline",
            "x264enc bframes=2 ! video/x-h264,profile=main",
            "x264enc ! video/x-h264,profile=high",
            "openh264enc",
        ] {
            let jpeg = jpeg(&red_keyframe(encoder)).unwrap();
            assert_eq!((&jpeg[..2], &jpeg[jpeg.len() - 2..]), (&[0xFF, 0xD8][..], &[0xFF, 0xD9][..]), "{encoder}");
            let (caps, pixels) =
                pull(&format!("appsrc name=source ! jpegdec ! videoconvert ! {RGB} ! {SINK}"), Some(jpeg));
            assert!(caps.contains("width=(int)640") && caps.contains("height=(int)360"), "{caps}");
            let [red, green, blue] = pixels[pixels.len() / 2 / 3 * 3..][..3] else { panic!("no pixel") };
            assert!(red > 200 && green < 60 && blue < 60, "{encoder}: {red} {green} {blue}");
        }
    }

    #[test]
    fn only_a_keyframe_makes_a_still() {
        let unit = AccessUnit { captured_at: now(), is_keyframe: false, data: Bytes::from_static(&[0, 0, 0, 1, 0x41]) };
        assert!(matches!(jpeg(&unit), Err(StillError::NoKeyframe)));
    }

    #[test]
    fn what_is_no_picture_makes_no_still_and_the_error_names_decoder_and_remedy() {
        let mut data = vec![0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80, 0, 0, 0, 1, 0x65];
        data.resize(5000, 0xAA);
        let unit = AccessUnit { captured_at: now(), is_keyframe: true, data: data.into() };
        let error = jpeg(&unit).unwrap_err().to_string();
        let names_decoder = DECODERS.iter().any(|decoder| error.contains(decoder));
        assert!(names_decoder && error.contains("gstreamer1.0-libav"), "{error}");
    }

    const RGB: &str = "video/x-raw,format=RGB";
    const SINK: &str = "appsink name=sink sync=false";

    fn red_keyframe(encoder: &str) -> AccessUnit {
        let source = "videotestsrc num-buffers=5 pattern=red ! video/x-raw,format=I420,width=640,height=360";
        let parser = "h264parse config-interval=-1 ! video/x-h264,stream-format=byte-stream,alignment=au";
        let (_, data) = pull(&format!("{source} ! {encoder} ! {parser} ! {SINK}"), None);
        AccessUnit { captured_at: now(), is_keyframe: true, data }
    }

    /// The first thing that comes out of a graph, with what it is.
    fn pull(graph: &str, fed: Option<Bytes>) -> (String, Bytes) {
        pipeline::init().unwrap();
        let graph = gst::parse::launch(graph).unwrap().downcast::<gst::Pipeline>().unwrap();
        let sink = graph.by_name("sink").unwrap().downcast::<gst_app::AppSink>().unwrap();
        graph.set_state(gst::State::Playing).unwrap();
        if let Some(fed) = fed {
            let source = graph.by_name("source").unwrap().downcast::<gst_app::AppSrc>().unwrap();
            source.push_buffer(gst::Buffer::from_slice(fed)).unwrap();
            source.end_of_stream().unwrap();
        }
        let sample = sink.pull_sample().unwrap();
        let data = Bytes::copy_from_slice(&sample.buffer().unwrap().map_readable().unwrap());
        graph.set_state(gst::State::Null).unwrap();
        (sample.caps().unwrap().to_string(), data)
    }
}
