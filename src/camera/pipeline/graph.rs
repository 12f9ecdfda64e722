//! The elements of the graphs, how each is set up, and how they are put together.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_allocators as gst_allocators;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use gstreamer_video::prelude::*;
use tracing::debug;

use super::low::{HELD_BY_TAP, Tap};
use super::{CapturePlan, FIRST_PICTURE, Plan, SCATTERED, Zero, init};
use crate::camera::encoder::{Encoder, Kind, Picture};
use crate::camera::input::{Choice, Encoding, FourCc, Rate};
use crate::camera::test_source::Canvas;
use crate::camera::{SourceError, now};
use crate::core::annex_b::Contents;

/// Puts the elements together; the encoder among them is what can be steered later, the tap where a second one gets its pictures.
pub(super) fn build(
    pipeline: &gst::Pipeline,
    plan: &Plan,
    sink: &gst_app::AppSink,
) -> Result<(Option<Encoder>, Option<Tap>), SourceError> {
    let encoder = plan.encoder.as_ref().map(|(kind, settings)| Encoder::new(*kind, settings)).transpose()?;
    let mut chain = match &plan.capture {
        CapturePlan::Test(picture) => test_source(picture)?,
        CapturePlan::Device { path, choice, dmabuf } => device_source(path, choice, *dmabuf)?,
    };
    if let (true, Some(last), Some(bus)) = (plan.is_dmabuf(), chain.last(), pipeline.bus()) {
        keep_scattered_from_encoder(last, bus)?;
        if plan.low.is_some() {
            reserve_for_tap(last)?;
        }
    }
    let mut tap = None;
    if let Some(encoder) = &encoder {
        let queue = leaky_queue()?;
        let mut raw = pad(&queue, "sink")?;
        chain.push(queue);
        match &plan.capture {
            CapturePlan::Test(_) => chain.extend(conversion(Some("I420"), encoder, false)?),
            CapturePlan::Device { choice, dmabuf, .. } => {
                if choice.encoding == Encoding::Mjpeg {
                    let decoder = element("jpegdec")?;
                    raw = pad(&decoder, "src")?;
                    chain.push(decoder);
                }
                chain.extend(conversion(raw_name(choice.format), encoder, *dmabuf)?);
                if *dmabuf {
                    encoder.import_dmabuf();
                }
            }
        }
        chain.extend(encoder.elements());
        tap = plan.low.map(|_| Tap::at(raw));
    }
    chain.extend(parser()?);
    add_and_link(pipeline, chain, sink.upcast_ref())?;
    Ok((encoder, tap))
}

fn pad(element: &gst::Element, name: &str) -> Result<gst::Pad, SourceError> {
    element.static_pad(name).ok_or_else(|| SourceError::Graph(format!("an element without a pad {name}")))
}

fn test_source(picture: &Picture) -> Result<Vec<gst::Element>, SourceError> {
    let source = element("videotestsrc")?;
    source.set_property("is-live", true);
    source.set_property_from_str("pattern", "smpte");
    let caps = element("capsfilter")?;
    caps.set_property("caps", raw_caps("I420", picture));
    let pad = pad(&caps, "src")?;
    let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, picture.width, picture.height).build();
    let info = info.map_err(|_| SourceError::Graph(format!("no picture is {}x{}", picture.width, picture.height)))?;
    let number = AtomicU16::new(0);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, probe| {
        if let Some(buffer) = probe.buffer_mut() {
            draw(buffer, &info, number.fetch_add(1, Ordering::Relaxed));
        }
        gst::PadProbeReturn::Ok
    });
    Ok(vec![source, caps])
}

fn draw(buffer: &mut gst::Buffer, info: &gst_video::VideoInfo, number: u16) {
    let Ok(mut frame) = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), info) else { return };
    let [luma_stride, chroma_stride] = [0, 1].map(|plane| frame.plane_stride()[plane] as usize);
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let [luma, u, v, _] = frame.planes_data_mut();
    let mut canvas = Canvas { luma, chroma: [u, v], luma_stride, chroma_stride, width, height };
    canvas.draw(wall_ms(), number);
}

/// Milliseconds since 1970.
fn wall_ms() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the test picture shows the wall clock")]
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_millis() as u64)
}

fn device_source(path: &Path, choice: &Choice, dmabuf: bool) -> Result<Vec<gst::Element>, SourceError> {
    let source = element("v4l2src")?;
    source.set_property("device", path.display().to_string());
    source.set_property_from_str("io-mode", if dmabuf { "dmabuf" } else { "mmap" });
    let media = match choice.encoding {
        Encoding::H264 => gst::Caps::builder("video/x-h264"),
        Encoding::Mjpeg => gst::Caps::builder("image/jpeg"),
        Encoding::Raw => gst::Caps::builder("video/x-raw").field_if_some("format", raw_name(choice.format)),
    };
    // The rate is named always: left alone, some drivers keep a slow one (vivid 5 fps).
    let rate = choice.rate.and_then(fraction);
    let caps = media
        .field("width", choice.width.cast_signed())
        .field("height", choice.height.cast_signed())
        .field_if_some("framerate", rate)
        .build();
    let filter = element("capsfilter")?;
    filter.set_property("caps", caps);
    Ok(vec![source, filter])
}

/// Looks at the memory of each picture before an encoder is to read it in place, and stops and tells when it is scattered.
///
/// An encoder could refuse it for itself. But GStreamer (1.22 at least) then never lets go of the picture, nor of the camera it
/// came from, which stays busy until the process ends.
fn keep_scattered_from_encoder(source: &gst::Element, bus: gst::Bus) -> Result<(), SourceError> {
    let pad = pad(source, "src")?;
    let told = AtomicBool::new(false);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, probe| {
        if !probe.buffer().is_some_and(|picture| is_scattered(picture)) {
            return gst::PadProbeReturn::Ok;
        }
        if !told.swap(true, Ordering::Relaxed) {
            let message = gst::message::Application::new(gst::Structure::new_empty(SCATTERED));
            if let Err(error) = bus.post(message) {
                debug!(%error, "the bus is closed");
            }
        }
        gst::PadProbeReturn::Drop
    });
    Ok(())
}

/// Has the camera's driver make a few buffers more than the encoder asks for: those that a second one may hold, so that the first
/// never waits for them.
fn reserve_for_tap(source: &gst::Element) -> Result<(), SourceError> {
    let answered = gst::PadProbeType::QUERY_DOWNSTREAM | gst::PadProbeType::PULL;
    pad(source, "src")?.add_probe(answered, |_, probe| {
        if let Some(gst::QueryViewMut::Allocation(query)) = probe.query_mut().map(gst::QueryRef::view_mut)
            && let Some((pool, size, min, max)) = query.allocation_pools().next()
        {
            let max = if max == 0 { 0 } else { max + HELD_BY_TAP };
            query.set_nth_allocation_pool(0, pool.as_ref(), size, min + HELD_BY_TAP, max);
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

/// Whether a picture lies in pages here and there, which only a processor reads as one: the kernel names who made the memory.
/// The encoders of small boards have no memory management of their own to do so.
fn is_scattered(buffer: &gst::BufferRef) -> bool {
    buffer.iter_memories().any(|memory| {
        let Some(memory) = memory.downcast_memory_ref::<gst_allocators::DmaBufMemory>() else { return false };
        // Documentation/filesystems/proc.rst, "DMA Buffer files"
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", memory.fd())).unwrap_or_default();
        let maker = about.lines().find_map(|line| line.strip_prefix("exp_name:"));
        matches!(maker.map(str::trim), Some("videobuf2_vmalloc" | "videobuf2_dma_sg"))
    })
}

/// What turns raw pictures into such as the encoder takes; `format` is `None` where only the decoder knows it.
fn conversion(format: Option<&str>, encoder: &Encoder, dmabuf: bool) -> Result<Vec<gst::Element>, SourceError> {
    if format.is_some_and(|format| encoder.takes(format)) {
        return Ok(Vec::new());
    }
    let caps = element("capsfilter")?;
    caps.set_property("caps", gst::Caps::builder("video/x-raw").field("format", encoder.preferred_format()).build());
    // The Pi's picture processor converts without the processor's help.
    let hardware =
        (encoder.kind() == Kind::V4l2).then(|| gst::ElementFactory::make("v4l2convert").build().ok()).flatten();
    if let Some(convert) = hardware {
        if dmabuf {
            convert.set_property_from_str("output-io-mode", "dmabuf-import");
            convert.set_property_from_str("capture-io-mode", "dmabuf");
        }
        return Ok(vec![convert, caps]);
    }
    Ok(vec![element("videoconvert")?, caps])
}

/// Holds two raw pictures; when a third comes before the encoder is ready, the oldest goes.
fn leaky_queue() -> Result<gst::Element, SourceError> {
    let queue = element("queue")?;
    queue.set_property_from_str("leaky", "downstream");
    queue.set_property("max-size-buffers", 2u32);
    queue.set_property("max-size-bytes", 0u32);
    queue.set_property("max-size-time", 0u64);
    Ok(queue)
}

/// Makes whole access units in Annex B form of whatever H.264 comes, with parameter sets before each keyframe.
pub(in crate::camera) fn parser() -> Result<Vec<gst::Element>, SourceError> {
    let parse = element("h264parse")?;
    parse.set_property("config-interval", -1i32);
    let caps = element("capsfilter")?;
    let byte_stream = gst::Caps::builder("video/x-h264").field("stream-format", "byte-stream").field("alignment", "au");
    caps.set_property("caps", byte_stream.build());
    Ok(vec![parse, caps])
}

/// Hands each access unit on, from the thread that made it.
pub(super) fn output(
    zero: Zero,
    bus: gst::Bus,
    mut deliver: impl FnMut(Instant, bool, Bytes) + Send + 'static,
) -> gst_app::AppSink {
    let mut seen_keyframe = false;
    let new_sample = move |sink: &gst_app::AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let buffer = sample.buffer().ok_or(gst::FlowError::Error)?;
        // The one copy: a driver's buffer must go back to its driver soon, and the ring keeps pictures for seconds.
        let data = Bytes::copy_from_slice(&buffer.map_readable().map_err(|_| gst::FlowError::Error)?);
        let is_keyframe = Contents::of(&data).is_keyframe();
        if !seen_keyframe && !is_keyframe {
            // A camera's own H.264 may begin anywhere; nobody can decode it from there.
            return Ok(gst::FlowSuccess::Ok);
        }
        let zero = *zero.get_or_init(|| zero_of_running_time(sink));
        let running_time = sample
            .segment()
            .and_then(|segment| segment.downcast_ref::<gst::ClockTime>()?.to_running_time(buffer.pts()?));
        let captured_at = running_time.map_or_else(now, |time| zero + Duration::from(time));
        deliver(captured_at, is_keyframe, data);
        if !seen_keyframe {
            seen_keyframe = true;
            let message = gst::message::Application::new(gst::Structure::new_empty(FIRST_PICTURE));
            bus.post(message).map_err(|_| gst::FlowError::Flushing)?;
        }
        Ok(gst::FlowSuccess::Ok)
    };
    let callbacks = gst_app::AppSinkCallbacks::builder().new_sample(new_sample).build();
    gst_app::AppSink::builder().sync(false).max_buffers(1).callbacks(callbacks).build()
}

/// The instant at which the pipeline's running time was zero.
fn zero_of_running_time(sink: &gst_app::AppSink) -> Instant {
    let (Some(clock), Some(base_time)) = (sink.clock(), sink.base_time()) else { return now() };
    // Two clocks cannot be read at once; of some readings, the one taken quickest is the truest.
    let readings = (0..5).map(|_| {
        let (before, time, after) = (now(), clock.time(), now());
        (after - before, before, time)
    });
    let Some((_, at, time)) = readings.min_by_key(|(took, ..)| *took) else { return now() };
    let running = Duration::from(time.saturating_sub(base_time));
    at.checked_sub(running).unwrap_or(at)
}

/// Adds the elements to the pipeline and links them in a row that ends in the sink.
pub(in crate::camera) fn add_and_link(
    pipeline: &gst::Pipeline,
    mut chain: Vec<gst::Element>,
    sink: &gst::Element,
) -> Result<(), SourceError> {
    chain.push(sink.clone());
    let graph_error = |error: gst::glib::BoolError| SourceError::Graph(error.to_string());
    pipeline.add_many(&chain).map_err(graph_error)?;
    gst::Element::link_many(&chain).map_err(graph_error)
}

/// The elements that live in packages of their own, with the package of each; encoders not among them.
const PACKAGES: [(&str, &str); 7] = [
    ("v4l2src", "gstreamer1.0-plugins-good"),
    ("jpegdec", "gstreamer1.0-plugins-good"),
    ("jpegenc", "gstreamer1.0-plugins-good"),
    ("h264parse", "gstreamer1.0-plugins-bad"),
    ("videotestsrc", "gstreamer1.0-plugins-base"),
    ("videoconvert", "gstreamer1.0-plugins-base"),
    ("videoscale", "gstreamer1.0-plugins-base"),
];

pub(in crate::camera) fn element(name: &'static str) -> Result<gst::Element, SourceError> {
    let package = PACKAGES.iter().find(|(known, _)| *known == name).map_or("libgstreamer1.0-0", |(_, package)| package);
    gst::ElementFactory::make(name).build().map_err(|_| SourceError::NoElement { name, package })
}

/// What is installed of GStreamer.
#[derive(Clone, Debug)]
pub struct Installed {
    pub version: String,
    /// Elements that are not there, with the Debian package that brings each.
    pub missing: Vec<(&'static str, &'static str)>,
}

/// # Errors
/// When GStreamer does not start.
pub fn installed() -> Result<Installed, SourceError> {
    init()?;
    let (major, minor, micro, _) = gst::version();
    let is_missing = |(name, _): &(&'static str, &'static str)| gst::ElementFactory::find(name).is_none();
    let missing = PACKAGES.into_iter().filter(is_missing).collect();
    Ok(Installed { version: format!("{major}.{minor}.{micro}"), missing })
}

pub(in crate::camera) fn raw_caps(format: &str, picture: &Picture) -> gst::Caps {
    gst::Caps::builder("video/x-raw")
        .field("format", format)
        .field("width", picture.width.cast_signed())
        .field("height", picture.height.cast_signed())
        .field_if_some("framerate", fraction(picture.rate))
        .build()
}

fn fraction(rate: Rate) -> Option<gst::Fraction> {
    let parts = (i32::try_from(rate.numerator).ok()?, i32::try_from(rate.denominator).ok()?);
    Some(gst::Fraction::new(parts.0, parts.1))
}

/// GStreamer's name of a V4L2 raw format (gstv4l2object.c).
fn raw_name(format: FourCc) -> Option<&'static str> {
    Some(match &format.0 {
        b"NV12" => "NV12",
        b"NV21" => "NV21",
        b"YU12" => "I420",
        b"YV12" => "YV12",
        b"YUYV" => "YUY2",
        b"UYVY" => "UYVY",
        b"YVYU" => "YVYU",
        b"VYUY" => "VYUY",
        b"422P" => "Y42B",
        b"NV16" => "NV16",
        b"RGB3" => "RGB",
        b"BGR3" => "BGR",
        b"RGBP" => "RGB16",
        b"GREY" => "GRAY8",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::input::RAW_FORMATS;

    #[test]
    fn every_raw_format_we_choose_has_a_name_in_gstreamer() {
        init().unwrap();
        for format in RAW_FORMATS {
            let name = raw_name(format).unwrap();
            assert!(gst_video::VideoFormat::from_string(name) != gst_video::VideoFormat::Unknown, "{name}");
        }
    }

    #[test]
    fn the_names_of_raw_formats_differ() {
        let names: std::collections::BTreeSet<_> = RAW_FORMATS.into_iter().filter_map(raw_name).collect();
        assert_eq!(names.len(), RAW_FORMATS.len());
    }
}
