//! An encoder in a pipeline: how each is set up, steered, and what it must not be asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;
use tracing::debug;

use super::{Kind, Picture};
use crate::camera::{SourceError, pipeline};
use crate::core::access_unit::Bitrate;

/// What an encoder is started with.
#[derive(Clone, Copy, Debug)]
pub(in crate::camera) struct EncodeSettings {
    pub(in crate::camera) picture: Picture,
    pub(in crate::camera) bitrate: Bitrate,
    pub(in crate::camera) keyframe_interval: Duration,
}

impl EncodeSettings {
    /// The keyframe interval in pictures.
    fn pictures_per_keyframe(&self) -> u32 {
        let pictures = self.keyframe_interval.as_secs_f64() * self.picture.rate.as_f64();
        // With an interval of 1 the Pi's encoder hangs: <https://github.com/raspberrypi/linux/issues/4740>
        (pictures.round() as u32).max(2)
    }
}

/// An encoder in a pipeline.
#[derive(Clone, Debug)]
pub(in crate::camera) struct Encoder {
    kind: Kind,
    /// Stands before a hardware encoder.
    input: Option<gst::Element>,
    element: gst::Element,
    output: gst::Element,
    fed: Arc<AtomicBool>,
}

impl Encoder {
    pub(in crate::camera) fn new(kind: Kind, settings: &EncodeSettings) -> Result<Self, SourceError> {
        let missing = |_| SourceError::NoElement { name: kind.name(), package: kind.package() };
        let element = gst::ElementFactory::make(kind.name()).build().map_err(missing)?;
        let output = pipeline::element("capsfilter")?;
        let input = (kind == Kind::V4l2).then(|| pipeline::element("identity")).transpose()?;
        let encoder = Self { kind, input, element, output, fed: Arc::default() };
        encoder.watch_input();
        match kind {
            Kind::V4l2 => encoder.set_up_v4l2(settings),
            Kind::X264 => encoder.set_up_x264(settings),
            Kind::OpenH264 => encoder.set_up_openh264(settings),
        }
        Ok(encoder)
    }

    /// What is linked into the pipeline, in this order.
    pub(in crate::camera) fn elements(&self) -> Vec<gst::Element> {
        self.input.iter().chain([&self.element, &self.output]).cloned().collect()
    }

    pub(in crate::camera) fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes pictures as DMABUFs, so that none is copied. Only hardware can.
    pub(in crate::camera) fn import_dmabuf(&self) {
        self.element.set_property_from_str("output-io-mode", "dmabuf-import");
        if let Some(input) = &self.input {
            input.set_property("drop-allocation", false);
        }
    }

    /// Whether a raw picture has come as far as to it.
    pub(in crate::camera) fn was_fed(&self) -> bool {
        self.fed.load(Ordering::Relaxed)
    }

    fn watch_input(&self) {
        let fed = Arc::clone(&self.fed);
        let note = move |_: &gst::Pad, _: &mut gst::PadProbeInfo| {
            fed.store(true, Ordering::Relaxed);
            gst::PadProbeReturn::Remove
        };
        if let Some(pad) = self.element.static_pad("sink") {
            pad.add_probe(gst::PadProbeType::BUFFER, note);
        }
    }

    /// Raw formats it takes, in GStreamer's words.
    pub(in crate::camera) fn takes(&self, format: &str) -> bool {
        let Some(pad) = self.element.static_pad("sink") else { return false };
        let wanted = gst::Caps::builder("video/x-raw").field("format", format).build();
        pad.pad_template_caps().can_intersect(&wanted)
    }

    /// What is best made for it of other formats. GStreamer converts packed 4:2:2 to I420 ten times as quickly as to NV12.
    pub(in crate::camera) fn preferred_format(&self) -> &'static str {
        if self.takes("I420") { "I420" } else { "NV12" }
    }

    /// Takes effect with one of the next pictures. May wait for the driver.
    pub(in crate::camera) fn set_bitrate(&self, bitrate: Bitrate) {
        match self.kind {
            Kind::V4l2 => {
                // Set on an open device, these reach the driver at once; those not named keep their values.
                let controls =
                    gst::Structure::builder("controls").field("video_bitrate", v4l2_bitrate(bitrate)).build();
                self.element.set_property("extra-controls", controls);
            }
            Kind::X264 => self.element.set_property("bitrate", bitrate.kbps().max(1)),
            Kind::OpenH264 => {
                let bits = bits_per_second(bitrate);
                // The limit never lies below the target, not even between the two calls.
                if bits > self.element.property::<u32>("max-bitrate") {
                    self.element.set_property("max-bitrate", bits);
                    self.element.set_property("bitrate", bits);
                } else {
                    self.element.set_property("bitrate", bits);
                    self.element.set_property("max-bitrate", bits);
                }
            }
        }
    }

    /// Makes one of the next pictures a keyframe. May wait for the driver.
    pub(in crate::camera) fn request_keyframe(&self) {
        match self.kind {
            // gstv4l2videoenc.c never looks at a frame's force-keyframe flag: the event would be in vain.
            Kind::V4l2 => {
                let controls = gst::Structure::builder("controls").field("force_key_frame", 1i32).build();
                self.element.set_property("extra-controls", controls);
            }
            Kind::X264 | Kind::OpenH264 => {
                let event = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(true).build();
                let sent = self.element.static_pad("src").is_some_and(|pad| pad.send_event(event));
                if !sent {
                    debug!(encoder = self.kind.name(), "the encoder did not take the request for a keyframe");
                }
            }
        }
    }

    fn set_up_v4l2(&self, settings: &EncodeSettings) {
        // Its own buffers are not offered upstream: in GStreamer 1.22 to 1.24 an encoder whose buffers were filled by somebody
        // else is never freed, and keeps its device open (docs/decisions/0103).
        if let Some(input) = &self.input {
            input.set_property("drop-allocation", true);
        }
        let keyframes = i32::try_from(settings.pictures_per_keyframe()).unwrap_or(i32::MAX);
        // Names as GStreamer makes them of the driver's; those a driver does not have are only warned about.
        let controls = gst::Structure::builder("controls")
            .field("repeat_sequence_header", 1i32)
            .field("h264_i_frame_period", keyframes)
            .field("video_gop_size", keyframes)
            .field("video_bitrate", v4l2_bitrate(settings.bitrate))
            .build();
        self.element.set_property("extra-controls", controls);
        // Without a level the Pi's encoder does not start: <https://github.com/raspberrypi/linux/issues/3974>
        let level = level(&settings.picture);
        self.set_output_caps(gst::Caps::builder("video/x-h264").field("level", level));
    }

    fn set_up_x264(&self, settings: &EncodeSettings) {
        let Picture { width, height, rate } = settings.picture;
        let is_small = f64::from(width) * f64::from(height) * rate.as_f64() <= 1280.0 * 720.0 * 30.0;
        // Two slices up to 720p30: half the time of one, for 5 % more work. Above it, slices on all cores and the quickest preset
        // (docs/decisions/0102). Never frame threads, that is sliced-threads=false: they hold two pictures back.
        let (preset, threads) = if is_small { ("superfast", 2u32) } else { ("ultrafast", 0) };
        self.element.set_property_from_str("speed-preset", preset);
        self.element.set_property_from_str("tune", "zerolatency");
        self.element.set_property("threads", threads);
        self.element.set_property("bframes", 0u32);
        self.element.set_property("key-int-max", settings.pictures_per_keyframe());
        self.element.set_property("bitrate", settings.bitrate.kbps().max(1));
        self.element.set_property("aud", false);
        // A change of scene needs no keyframe where nobody seeks; noise made it see one several times a second.
        self.element.set_property("option-string", "scenecut=0");
        // So much of the rate's worth may a picture take at once: a keyframe stays below 250 ms of it (docs/decisions/0102).
        self.element.set_property("vbv-buf-capacity", 400u32);
        self.set_output_caps(gst::Caps::builder("video/x-h264"));
    }

    fn set_up_openh264(&self, settings: &EncodeSettings) {
        let bits = bits_per_second(settings.bitrate);
        // Its default rate control ignores the bitrate, and its scene detection makes keyframes twice a second.
        self.element.set_property_from_str("rate-control", "bitrate");
        self.element.set_property_from_str("complexity", "low");
        self.element.set_property("scene-change-detection", false);
        self.element.set_property("enable-frame-skip", true);
        self.element.set_property("gop-size", settings.pictures_per_keyframe());
        self.element.set_property("max-bitrate", bits);
        self.element.set_property("bitrate", bits);
        self.set_output_caps(gst::Caps::builder("video/x-h264"));
    }

    fn set_output_caps(&self, caps: gst::caps::Builder<gst::caps::NoFeature>) {
        let caps = caps
            .field("profile", "constrained-baseline")
            .field("stream-format", "byte-stream")
            .field("alignment", "au")
            .build();
        self.output.set_property("caps", caps);
    }
}

/// The driver's range and steps: 25 kbit/s to 25 Mbit/s by 25 kbit/s (bcm2835-v4l2-codec.c).
fn v4l2_bitrate(bitrate: Bitrate) -> i32 {
    let kbps = bitrate.kbps().clamp(25, 25_000);
    i32::try_from(kbps / 25 * 25_000).unwrap_or(25_000_000)
}

fn bits_per_second(bitrate: Bitrate) -> u32 {
    u32::try_from(bitrate.bits_per_second()).unwrap_or(u32::MAX)
}

/// The lowest level that fits (ITU-T H.264, table A-1), but not below 4: with a lower one the Pi's encoder was seen to
/// hang (<https://github.com/raspberrypi/linux/issues/4906>).
fn level(Picture { width, height, rate }: &Picture) -> &'static str {
    let macroblocks = width.div_ceil(16) * height.div_ceil(16);
    let per_second = f64::from(macroblocks) * rate.as_f64();
    match (macroblocks, per_second) {
        (..=8192, ..=245_760.0) => "4",
        (..=8704, ..=522_240.0) => "4.2",
        _ => "5.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::input::Rate;

    const QVGA: Picture = Picture { width: 320, height: 240, rate: Rate::per_second(30) };

    #[test]
    fn hardware_bitrates_keep_to_the_drivers_steps() {
        assert_eq!(v4l2_bitrate(Bitrate::from_kbps(1)), 25_000);
        assert_eq!(v4l2_bitrate(Bitrate::from_kbps(2049)), 2_025_000);
        assert_eq!(v4l2_bitrate(Bitrate::from_kbps(90_000)), 25_000_000);
    }

    #[test]
    fn the_level_fits_the_picture_and_is_never_below_4() {
        assert_eq!(level(&QVGA), "4");
        assert_eq!(level(&Picture { width: 1920, height: 1080, rate: Rate::per_second(30) }), "4");
        assert_eq!(level(&Picture { width: 1920, height: 1080, rate: Rate::per_second(60) }), "4.2");
        assert_eq!(level(&Picture { width: 1920, height: 1920, rate: Rate::per_second(30) }), "5.1");
    }

    #[test]
    fn a_keyframe_interval_is_never_one_picture() {
        let settings =
            EncodeSettings { picture: QVGA, bitrate: Bitrate::from_kbps(1000), keyframe_interval: Duration::ZERO };
        assert_eq!(settings.pictures_per_keyframe(), 2);
    }
}
