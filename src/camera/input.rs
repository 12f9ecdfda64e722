//! What a capture device offers, as plain data, and which of it is best for a wanted picture, with the reason.

use std::cmp::Reverse;
use std::fmt;

use serde::{Serialize, Serializer};

use super::Prefer;

/// A pixel format's four characters, as in `videodev2.h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FourCc(pub [u8; 4]);

impl FourCc {
    pub const H264: Self = Self(*b"H264");
    pub const MJPG: Self = Self(*b"MJPG");
    pub const JPEG: Self = Self(*b"JPEG");
    pub const NV12: Self = Self(*b"NV12");
    pub const YU12: Self = Self(*b"YU12");
    pub const YUYV: Self = Self(*b"YUYV");
}

impl fmt::Display for FourCc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Codes shorter than four are filled with blanks ("Y16 "); bigendian variants have the highest bit set.
        self.0.escape_ascii().to_string().trim_end().fmt(f)
    }
}

impl fmt::Debug for FourCc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for FourCc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Raw formats that can be encoded, the cheapest to feed to an encoder first.
///
/// 4:2:0 needs no conversion, 4:2:2 loses half its colour lines on the way, RGB is computed anew.
pub const RAW_FORMATS: [FourCc; 14] = [
    FourCc::NV12,
    FourCc::YU12,
    FourCc(*b"YV12"),
    FourCc(*b"NV21"),
    FourCc::YUYV,
    FourCc(*b"UYVY"),
    FourCc(*b"YVYU"),
    FourCc(*b"VYUY"),
    FourCc(*b"422P"),
    FourCc(*b"NV16"),
    FourCc(*b"RGB3"),
    FourCc(*b"BGR3"),
    FourCc(*b"RGBP"),
    FourCc(*b"GREY"),
];

/// What a picture looks like on the wire from the camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    H264,
    Mjpeg,
    Raw,
}

impl Encoding {
    /// `None`: edgecam cannot use the format.
    pub fn of(format: FourCc) -> Option<Self> {
        match format {
            FourCc::H264 => Some(Self::H264),
            FourCc::MJPG | FourCc::JPEG => Some(Self::Mjpeg),
            raw if RAW_FORMATS.contains(&raw) => Some(Self::Raw),
            _ => None,
        }
    }
}

/// Pictures per second, as a fraction: 25/2 are 12.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub numerator: u32,
    pub denominator: u32,
}

impl Rate {
    pub const fn per_second(pictures: u32) -> Self {
        Self { numerator: pictures, denominator: 1 }
    }

    /// From the time between two pictures in seconds, as V4L2 says it; `None` for nonsense.
    pub fn from_interval(numerator: u32, denominator: u32) -> Option<Self> {
        (numerator > 0 && denominator > 0).then_some(Self { numerator: denominator, denominator: numerator })
    }

    pub fn as_f64(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }

    /// In whole pictures per second, at least one.
    pub fn rounded(self) -> u32 {
        (self.as_f64().round() as u32).max(1)
    }

    /// How many times faster or slower than `wanted`.
    fn distance(self, wanted: f64) -> f64 {
        let ratio = self.as_f64() / wanted;
        ratio.max(1.0 / ratio)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounded = (self.as_f64() * 100.0).round() / 100.0;
        write!(f, "{rounded}")
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.as_f64())
    }
}

/// One format of a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Offer {
    pub format: FourCc,
    /// The driver's words.
    pub description: String,
    pub sizes: Vec<Size>,
}

/// One size of a format, or a range of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Size {
    pub min: (u32, u32),
    /// Equal to `min` when there is but one size.
    pub max: (u32, u32),
    pub step: (u32, u32),
    pub rates: Rates,
}

/// At which rates a size can be had. For a range of sizes they hold for the size nearest to the wanted one.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rates {
    /// The driver does not say; it runs at a rate of its own.
    Unknown,
    Listed(Vec<Rate>),
    Between {
        slowest: Rate,
        fastest: Rate,
    },
}

impl Size {
    pub fn discrete(width: u32, height: u32, rates: Rates) -> Self {
        Self { min: (width, height), max: (width, height), step: (1, 1), rates }
    }

    /// The nearest size to the wanted one that this is or holds.
    pub fn nearest(&self, width: u32, height: u32) -> (u32, u32) {
        let along = |wanted: u32, min: u32, max: u32, step: u32| {
            let clamped = wanted.clamp(min, max.max(min));
            clamped - (clamped - min) % step.max(1)
        };
        (along(width, self.min.0, self.max.0, self.step.0), along(height, self.min.1, self.max.1, self.step.1))
    }
}

impl Rates {
    /// The rate whose ratio to the wanted one is nearest to 1; of two equal ones the faster.
    fn nearest(&self, wanted: f64) -> Option<Rate> {
        match self {
            Self::Unknown => None,
            Self::Listed(rates) => rates.iter().copied().min_by(|a, b| {
                a.distance(wanted).total_cmp(&b.distance(wanted)).then(b.as_f64().total_cmp(&a.as_f64()))
            }),
            Self::Between { slowest, fastest } => Some(if wanted <= slowest.as_f64() {
                *slowest
            } else if wanted >= fastest.as_f64() {
                *fastest
            } else {
                Rate::per_second(wanted.round() as u32)
            }),
        }
    }
}

/// The picture an owner asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub prefer: Prefer,
}

/// How a device is to be used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    pub format: FourCc,
    pub encoding: Encoding,
    pub width: u32,
    pub height: u32,
    /// `None`: the driver does not say.
    pub rate: Option<Rate>,
    /// Why this, and why not something better.
    pub reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}x{}", self.format, self.width, self.height)?;
        match self.rate {
            Some(rate) => write!(f, " at {rate} fps"),
            None => write!(f, " at the device's own rate"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    #[error("it offers no format at all; it may be part of a device that has another node for pictures")]
    NoFormats,
    #[error(
        "it gives only a sensor's unprocessed pictures ({0}); a camera on the CSI connector needs libcamera, \
         which this version cannot use yet: use a USB camera"
    )]
    OnlyBayer(String),
    #[error("it offers no format that edgecam can use, only {0}; a camera with YUYV, NV12, MJPG or H264 is needed")]
    NoUsableFormat(String),
}

/// Picks what is best for the wanted picture: its size first, then its rate, then what is cheapest to encode.
///
/// # Errors
/// When nothing of what is offered can be used.
pub fn choose(offers: &[Offer], wanted: &Wanted) -> Result<Choice, ChoiceError> {
    let candidates = candidates(offers, wanted);
    let best = candidates.iter().min_by_key(|candidate| candidate.cost(wanted)).ok_or_else(|| unusable(offers))?;
    Ok(Choice {
        format: best.format,
        encoding: best.encoding,
        width: best.width,
        height: best.height,
        rate: best.rate,
        reason: reason(best, &candidates, wanted),
    })
}

struct Candidate {
    format: FourCc,
    encoding: Encoding,
    width: u32,
    height: u32,
    rate: Option<Rate>,
}

fn candidates(offers: &[Offer], wanted: &Wanted) -> Vec<Candidate> {
    let usable = offers.iter().filter_map(|offer| Some((offer, Encoding::of(offer.format)?)));
    let allowed = usable.filter(|(_, encoding)| {
        *encoding != Encoding::H264 || matches!(wanted.prefer, Prefer::Auto | Prefer::Passthrough)
    });
    allowed
        .flat_map(|(offer, encoding)| {
            offer.sizes.iter().map(move |size| {
                let (width, height) = size.nearest(wanted.width, wanted.height);
                let rate = size.rates.nearest(f64::from(wanted.fps));
                Candidate { format: offer.format, encoding, width, height, rate }
            })
        })
        .collect()
}

impl Candidate {
    /// Less is better; what stands first counts most.
    fn cost(&self, wanted: &Wanted) -> impl Ord + use<> {
        let not_as_preferred = wanted.prefer == Prefer::Passthrough && self.encoding != Encoding::H264;
        // Below the wanted rate, each picture a second counts; above it, none.
        let missed_rate = if self.reaches(wanted) { 0 } else { u32::MAX - (self.fps(wanted) * 100.0) as u32 };
        (not_as_preferred, self.size_error(wanted), missed_rate, self.rank())
    }

    fn size_error(&self, wanted: &Wanted) -> u32 {
        self.width.abs_diff(wanted.width) + self.height.abs_diff(wanted.height)
    }

    /// An unknown rate is taken at the driver's silent word.
    fn fps(&self, wanted: &Wanted) -> f64 {
        self.rate.map_or(f64::from(wanted.fps), Rate::as_f64)
    }

    fn reaches(&self, wanted: &Wanted) -> bool {
        // A tenth less is not worth decoding JPEG for.
        self.fps(wanted) >= f64::from(wanted.fps) * 0.9
    }

    fn rank(&self) -> usize {
        match self.encoding {
            Encoding::H264 => 0,
            Encoding::Raw => 1 + RAW_FORMATS.iter().position(|format| *format == self.format).unwrap_or_default(),
            Encoding::Mjpeg => usize::MAX,
        }
    }
}

fn reason(best: &Candidate, candidates: &[Candidate], wanted: &Wanted) -> String {
    let mut parts = Vec::new();
    let same_size = |candidate: &&Candidate| (candidate.width, candidate.height) == (best.width, best.height);
    let fastest = |encoding| {
        let of_encoding = candidates.iter().filter(same_size).filter(|candidate| candidate.encoding == encoding);
        of_encoding.min_by_key(|candidate| (Reverse((candidate.fps(wanted) * 100.0) as u32), candidate.rank()))
    };
    let slower = |encoding| {
        let rival = fastest(encoding)?;
        Some(format!("{} reaches only {} fps at this size", rival.format, rival.rate?))
    };
    match best.encoding {
        Encoding::H264 => parts.push("the camera encodes H.264 itself".to_owned()),
        Encoding::Raw => {
            parts.push("raw pictures need no decoding".to_owned());
            match fastest(Encoding::H264) {
                Some(_) => parts.extend(slower(Encoding::H264)),
                None if matches!(wanted.prefer, Prefer::Auto | Prefer::Passthrough) => {
                    parts.push("the camera offers no H.264 at this size".to_owned());
                }
                None => parts.push("the camera's own H.264 is not wanted".to_owned()),
            }
        }
        Encoding::Mjpeg => match slower(Encoding::Raw) {
            Some(slower) => parts.push(format!("JPEG has to be decoded, but {slower}")),
            None => parts.push("JPEG has to be decoded, but this size is not offered raw".to_owned()),
        },
    }
    if best.size_error(wanted) > 0 {
        parts.push(format!("{}x{} is not offered, this is nearest", wanted.width, wanted.height));
    }
    match best.rate {
        Some(rate) if !best.reaches(wanted) => parts.push(format!("no format gives more than {rate} fps at this size")),
        None => parts.push("the driver does not tell its rates".to_owned()),
        Some(_) => {}
    }
    parts.join("; ")
}

fn unusable(offers: &[Offer]) -> ChoiceError {
    if offers.is_empty() {
        return ChoiceError::NoFormats;
    }
    let names: Vec<String> = offers.iter().map(|offer| offer.format.to_string()).collect();
    let names = names.join(", ");
    // The kernel describes all of them so: "10-bit Bayer BGBG/GRGR".
    if offers.iter().all(|offer| offer.description.contains("Bayer")) {
        ChoiceError::OnlyBayer(names)
    } else {
        ChoiceError::NoUsableFormat(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HD: Wanted = Wanted { width: 1280, height: 720, fps: 30, prefer: Prefer::Auto };

    #[test]
    fn a_camera_that_encodes_itself_is_passed_through() {
        let choice = choose(&c920(), &HD).unwrap();
        assert_eq!(choice.to_string(), "H264 1280x720 at 30 fps");
        assert_eq!(choice.reason, "the camera encodes H.264 itself");
    }

    #[test]
    fn an_owner_who_wants_an_encoder_gets_no_passthrough() {
        for prefer in [Prefer::Hardware, Prefer::Software] {
            let choice = choose(&c920(), &Wanted { prefer, ..HD }).unwrap();
            assert_eq!(choice.to_string(), "MJPG 1280x720 at 30 fps");
        }
    }

    #[test]
    fn raw_beats_jpeg_when_it_is_fast_enough() {
        let choice = choose(&plain_webcam(), &Wanted { width: 640, height: 480, ..HD }).unwrap();
        assert_eq!(choice.to_string(), "YUYV 640x480 at 30 fps");
        assert_eq!(choice.reason, "raw pictures need no decoding; the camera offers no H.264 at this size");
    }

    #[test]
    fn jpeg_beats_raw_when_raw_is_too_slow() {
        let choice = choose(&plain_webcam(), &HD).unwrap();
        assert_eq!(choice.to_string(), "MJPG 1280x720 at 30 fps");
        assert_eq!(choice.reason, "JPEG has to be decoded, but YUYV reaches only 10 fps at this size");
    }

    #[test]
    fn a_slow_wish_is_met_by_raw() {
        let choice = choose(&plain_webcam(), &Wanted { fps: 10, ..HD }).unwrap();
        assert_eq!(choice.to_string(), "YUYV 1280x720 at 10 fps");
    }

    #[test]
    fn a_tenth_of_the_rate_is_not_worth_decoding_jpeg() {
        let offers = [
            offer(b"YUYV", "YUYV 4:2:2", vec![Size::discrete(1280, 720, listed(&[(2, 55)]))]),
            offer(b"MJPG", "Motion-JPEG", vec![Size::discrete(1280, 720, listed(&[(1, 30)]))]),
        ];
        assert_eq!(choose(&offers, &HD).unwrap().to_string(), "YUYV 1280x720 at 27.5 fps");
    }

    #[test]
    fn the_size_counts_more_than_the_rate_and_the_shortfall_is_told() {
        let choice = choose(&vivid(), &HD).unwrap();
        assert_eq!(choice.to_string(), "NV12 1280x720 at 12.5 fps");
        assert!(choice.reason.ends_with("no format gives more than 12.5 fps at this size"), "{}", choice.reason);
    }

    #[test]
    fn of_the_raw_formats_the_one_encoders_take_is_chosen() {
        let choice = choose(&vivid(), &Wanted { width: 640, height: 360, ..HD }).unwrap();
        assert_eq!(choice.to_string(), "NV12 640x360 at 30 fps");
    }

    #[test]
    fn the_nearest_size_is_taken_and_told() {
        let choice = choose(&vivid(), &Wanted { width: 800, height: 448, fps: 15, ..HD }).unwrap();
        assert_eq!((choice.width, choice.height), (640, 480));
        assert!(choice.reason.contains("800x448 is not offered, this is nearest"), "{}", choice.reason);
    }

    #[test]
    fn a_range_of_sizes_holds_the_wanted_one() {
        let rates = Rates::Between { slowest: Rate::per_second(1), fastest: Rate::per_second(60) };
        let range = Size { min: (32, 32), max: (1920, 1080), step: (2, 2), rates };
        let choice = choose(&[offer(b"YU12", "Planar YUV 4:2:0", vec![range])], &HD).unwrap();
        assert_eq!(choice.to_string(), "YU12 1280x720 at 30 fps");
    }

    #[test]
    fn a_driver_that_does_not_tell_its_rates_is_trusted() {
        let offers = [offer(b"YUYV", "YUYV 4:2:2", vec![Size::discrete(1280, 720, Rates::Unknown)])];
        let choice = choose(&offers, &HD).unwrap();
        assert_eq!(choice.rate, None);
        assert!(choice.reason.contains("does not tell its rates"), "{}", choice.reason);
    }

    #[test]
    fn a_bare_sensor_is_refused_with_the_way_out() {
        let offers = [
            offer(b"pBAA", "10-bit Bayer BGBG/GRGR Packed", vec![Size::discrete(1640, 1232, Rates::Unknown)]),
            offer(b"BA81", "8-bit Bayer BGBG/GRGR", vec![Size::discrete(1640, 1232, Rates::Unknown)]),
        ];
        let error = choose(&offers, &HD).unwrap_err();
        assert_eq!(error, ChoiceError::OnlyBayer("pBAA, BA81".into()));
        assert!(error.to_string().contains("libcamera"));
    }

    #[test]
    fn a_device_without_a_usable_format_says_what_it_has() {
        let offers = [offer(b"Y16 ", "16-bit Greyscale", vec![Size::discrete(640, 480, Rates::Unknown)])];
        assert_eq!(choose(&offers, &HD), Err(ChoiceError::NoUsableFormat("Y16".into())));
        assert_eq!(choose(&[], &HD), Err(ChoiceError::NoFormats));
    }

    #[test]
    fn passthrough_is_preferred_even_when_it_is_slower_and_missed_when_it_is_not_there() {
        let offers = [
            offer(b"YUYV", "YUYV 4:2:2", vec![Size::discrete(1280, 720, listed(&[(1, 30)]))]),
            offer(b"H264", "H.264", vec![Size::discrete(1280, 720, listed(&[(1, 15)]))]),
        ];
        let preferred = Wanted { prefer: Prefer::Passthrough, ..HD };
        assert_eq!(choose(&offers, &preferred).unwrap().encoding, Encoding::H264);
        assert_eq!(choose(&offers, &HD).unwrap().encoding, Encoding::Raw);
        assert!(choose(&plain_webcam(), &preferred).is_ok());
    }

    /// Logitech C920, the first revision: H.264 and MJPEG to 1080p30, YUYV limited by USB 2.
    fn c920() -> Vec<Offer> {
        let fast = || {
            vec![Size::discrete(1280, 720, listed(&[(1, 30), (1, 15)])), Size::discrete(1920, 1080, listed(&[(1, 30)]))]
        };
        vec![
            offer(
                b"YUYV",
                "YUYV 4:2:2",
                vec![
                    Size::discrete(640, 480, listed(&[(1, 30), (1, 15)])),
                    Size::discrete(1280, 720, listed(&[(1, 10), (2, 15)])),
                ],
            ),
            offer(b"H264", "H.264", fast()),
            offer(b"MJPG", "Motion-JPEG", fast()),
        ]
    }

    fn plain_webcam() -> Vec<Offer> {
        let mut offers = c920();
        offers.remove(1);
        offers
    }

    /// The kernel's vivid driver as a webcam: many raw formats, each size with its own highest rate.
    fn vivid() -> Vec<Offer> {
        let sizes = || {
            vec![
                Size::discrete(320, 180, listed(&[(1, 60), (1, 30), (1, 5)])),
                Size::discrete(640, 360, listed(&[(1, 40), (1, 30), (1, 5)])),
                Size::discrete(640, 480, listed(&[(1, 25), (1, 5)])),
                Size::discrete(1280, 720, listed(&[(2, 25), (1, 5)])),
            ]
        };
        vec![
            offer(b"YUYV", "YUYV 4:2:2", sizes()),
            offer(b"NV12", "Y/UV 4:2:0", sizes()),
            offer(b"RGB3", "24-bit RGB 8-8-8", sizes()),
            offer(b"BA81", "8-bit Bayer BGBG/GRGR", sizes()),
        ]
    }

    fn offer(format: &[u8; 4], description: &str, sizes: Vec<Size>) -> Offer {
        Offer { format: FourCc(*format), description: description.into(), sizes }
    }

    /// From frame intervals in seconds.
    fn listed(intervals: &[(u32, u32)]) -> Rates {
        Rates::Listed(intervals.iter().filter_map(|(n, d)| Rate::from_interval(*n, *d)).collect())
    }
}
