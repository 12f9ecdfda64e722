//! What V4L2 says: the device nodes there are, their formats, sizes and rates, and their controls.
//!
//! Only asks and sets; pictures are fetched by GStreamer. The `v4l` crate unwraps what drivers report (names cut inside a
//! character, control types newer than the crate), so each question to it is a [`guarded`] one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use serde::Serialize;
use v4l::capability::Flags as Capability;
use v4l::control::{Control, Description, Flags as ControlFlags, MenuItem, Type as ControlType, Value};
use v4l::frameinterval::FrameIntervalEnum;
use v4l::framesize::FrameSizeEnum;
use v4l::video::Capture;

use super::SourceError;
use super::input::{Encoding, FourCc, Offer, Rate, Rates, Size};

/// One V4L2 device node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    pub path: PathBuf,
    /// Names that stay the same when devices are plugged in another order: links under `/dev/v4l`.
    pub links: Vec<PathBuf>,
    pub card: String,
    pub driver: String,
    pub bus: String,
    pub role: Role,
}

/// What a node is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Gives pictures.
    Camera,
    /// Encodes, decodes or converts: pictures in, pictures out.
    Codec,
    /// Neither, and why.
    Other(String),
}

/// One control, by the name it has in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlReport {
    pub name: String,
    pub kind: &'static str,
    pub min: i64,
    pub max: i64,
    pub step: u64,
    pub default: i64,
    /// `None` where the driver does not tell.
    pub value: Option<i64>,
    /// Of a menu: what its values mean.
    pub items: BTreeMap<u32, String>,
    /// Cannot be set at all, or not while another control has its present value.
    pub read_only: bool,
    pub inactive: bool,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Camera => f.write_str("is a camera"),
            Self::Codec => f.write_str("is a codec"),
            Self::Other(why) => write!(f, "is no camera ({why})"),
        }
    }
}

/// The V4L2 nodes of this machine by their numbers. Nodes that cannot be asked come with the reason.
pub fn nodes() -> Vec<Result<Node, SourceError>> {
    // Not `seen`, which asks for the nodes itself.
    let gone = || "it went away while it was looked at".to_owned();
    node_paths().into_iter().map(|path| Ok(Device::open_or_tell(&path, gone)?.node())).collect()
}

/// Where those nodes are. Opens none of them.
pub fn node_paths() -> Vec<PathBuf> {
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix("video")?.parse::<u32>().ok();
    let mut numbered: Vec<_> = paths_in(Path::new("/dev")).filter_map(|path| Some((number(&path)?, path))).collect();
    numbered.sort();
    numbered.into_iter().map(|(_, path)| path).collect()
}

/// An open node, to be asked and set; closed when dropped, so that GStreamer can have it.
pub struct Device {
    path: PathBuf,
    device: v4l::Device,
}

impl Device {
    /// # Errors
    /// When there is no such node, or it may not be opened.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        Self::open_or_tell(path, seen)
    }

    /// Opens a node; when it is missing, the error says with `seen` what else there is.
    fn open_or_tell(path: &Path, seen: fn() -> String) -> Result<Self, SourceError> {
        let device = v4l::Device::with_path(path).map_err(|error| SourceError::from_io(path, error, seen))?;
        Ok(Self { path: path.to_owned(), device })
    }

    pub fn node(&self) -> Node {
        let caps = guarded(|| self.device.query_caps());
        let (card, driver, bus, role) = match caps {
            Ok(caps) => (caps.card, caps.driver.clone(), caps.bus, role(&caps.driver, caps.capabilities)),
            // What the card's name hides, the list of formats tells: only a camera has one of this kind.
            Err(error) if !self.formats().is_empty() => {
                (self.name_in_sysfs(), String::new(), format!("not told ({error})"), Role::Camera)
            }
            Err(error) => {
                (self.name_in_sysfs(), String::new(), String::new(), Role::Other(format!("cannot be asked: {error}")))
            }
        };
        Node { path: self.path.clone(), links: links_to(&self.path), card, driver, bus, role }
    }

    /// Every format with its sizes and rates. For sizes given as a range, the rates are those of the size nearest to `wanted`.
    pub fn offers(&self, wanted: (u32, u32)) -> Vec<Offer> {
        let offer = |(format, description)| Offer { sizes: self.sizes(format, wanted), format, description };
        self.formats().into_iter().map(offer).collect()
    }

    /// What edgecam could use of it: much less to ask for where a device has eighty formats.
    pub fn usable_offers(&self, wanted: (u32, u32)) -> Vec<Offer> {
        let offer = |(format, description)| {
            let sizes = if Encoding::of(format).is_some() { self.sizes(format, wanted) } else { Vec::new() };
            Offer { format, description, sizes }
        };
        self.formats().into_iter().map(offer).collect()
    }

    /// The controls that have a number as their value.
    ///
    /// # Errors
    /// When the driver has none, or some that cannot be read.
    pub fn controls(&self) -> io::Result<Vec<ControlReport>> {
        let described = guarded(|| self.device.query_controls())?;
        Ok(described.iter().filter_map(|description| self.control(description)).collect())
    }

    /// Sets controls by name. What cannot be set is left as it is and reported.
    pub fn set_controls(&self, wanted: &BTreeMap<String, i64>) -> Vec<ControlProblem> {
        if wanted.is_empty() {
            return Vec::new();
        }
        let described = match guarded(|| self.device.query_controls()) {
            Ok(described) => described,
            Err(error) => return vec![ControlProblem::NotTold { path: self.path.clone(), error }],
        };
        let (problems, mut waiting): (Vec<_>, Vec<_>) = partition(wanted.iter().map(|(name, value)| {
            let description = described.iter().find(|control| config_name(&control.name) == *name);
            let description = description.ok_or_else(|| unknown(name, &described))?;
            checked(description, name, *value).map(|value| (name, description.id, value))
        }));
        let mut problems = problems;
        // Some controls can be set only after another one has been (exposure after its automatic is off). A second round, in
        // which that one stands, settles it whatever their order.
        for last_round in [false, true] {
            waiting.retain(|(name, id, value)| {
                let control = Control { id: *id, value: clone(value) };
                match guarded(|| self.device.set_control(control)) {
                    Ok(()) => false,
                    Err(error) => {
                        if last_round {
                            problems.push(ControlProblem::Refused { name: (*name).clone(), error });
                        }
                        true
                    }
                }
            });
        }
        problems
    }

    fn formats(&self) -> Vec<(FourCc, String)> {
        let formats = guarded(|| self.device.enum_formats()).unwrap_or_default();
        formats.into_iter().map(|format| (FourCc(format.fourcc.repr), format.description)).collect()
    }

    fn sizes(&self, format: FourCc, wanted: (u32, u32)) -> Vec<Size> {
        let sizes = guarded(|| self.device.enum_framesizes(v4l::FourCC::new(&format.0))).unwrap_or_default();
        let size = |size| match size {
            FrameSizeEnum::Discrete(size) => Size::discrete(size.width, size.height, Rates::Unknown),
            FrameSizeEnum::Stepwise(range) => Size {
                min: (range.min_width, range.min_height),
                max: (range.max_width, range.max_height),
                step: (range.step_width, range.step_height),
                rates: Rates::Unknown,
            },
        };
        let mut sizes: Vec<Size> = sizes.into_iter().map(|found| size(found.size)).collect();
        if sizes.is_empty() {
            // A driver that does not list its sizes has at least the one it is set to.
            let set = guarded(|| self.device.format()).ok();
            sizes.extend(set.map(|set| Size::discrete(set.width, set.height, Rates::Unknown)));
        }
        for size in &mut sizes {
            size.rates = self.rates(format, size.nearest(wanted.0, wanted.1));
        }
        sizes
    }

    fn rates(&self, format: FourCc, (width, height): (u32, u32)) -> Rates {
        let fourcc = v4l::FourCC::new(&format.0);
        let intervals = guarded(|| self.device.enum_frameintervals(fourcc, width, height)).unwrap_or_default();
        let mut listed = Vec::new();
        for interval in intervals {
            match interval.interval {
                FrameIntervalEnum::Discrete(time) => {
                    listed.extend(Rate::from_interval(time.numerator, time.denominator));
                }
                FrameIntervalEnum::Stepwise(range) => {
                    let slowest = Rate::from_interval(range.max.numerator, range.max.denominator);
                    let fastest = Rate::from_interval(range.min.numerator, range.min.denominator);
                    if let (Some(slowest), Some(fastest)) = (slowest, fastest) {
                        return Rates::Between { slowest, fastest };
                    }
                }
            }
        }
        if listed.is_empty() { Rates::Unknown } else { Rates::Listed(listed) }
    }

    fn control(&self, description: &Description) -> Option<ControlReport> {
        let value = match guarded(|| self.device.control(description.id)) {
            Ok(Control { value: Value::Integer(value), .. }) => Some(value),
            Ok(Control { value: Value::Boolean(value), .. }) => Some(value.into()),
            _ => None,
        };
        let items = description.items.iter().flatten();
        Some(ControlReport {
            name: config_name(&description.name),
            kind: kind(description.typ)?,
            min: description.minimum,
            max: description.maximum,
            step: description.step,
            default: description.default,
            value,
            items: items.map(|(value, item)| (*value, menu_text(item))).collect(),
            read_only: description.flags.contains(ControlFlags::READ_ONLY),
            inactive: description.flags.contains(ControlFlags::INACTIVE),
        })
    }

    fn name_in_sysfs(&self) -> String {
        let node = fs::canonicalize(&self.path).unwrap_or_default();
        let name = Path::new("/sys/class/video4linux").join(node.file_name().unwrap_or_default()).join("name");
        fs::read(name).map(|name| String::from_utf8_lossy(&name).trim().to_owned()).unwrap_or_default()
    }
}

/// What was wrong with one `[camera.controls]` entry.
#[derive(Debug, thiserror::Error)]
pub enum ControlProblem {
    #[error("this camera has no control {name:?}; it has {known}")]
    Unknown { name: String, known: String },
    #[error("control {name:?} cannot be set: it is read-only")]
    ReadOnly { name: String },
    #[error("control {name:?} cannot be {value}; it takes {takes}")]
    OutOfRange { name: String, value: i64, takes: String },
    #[error("control {name:?} was refused by the driver ({error}); another control may have to be changed first")]
    Refused { name: String, error: io::Error },
    #[error("the controls of {} cannot be read ({error}); none was set", path.display())]
    NotTold { path: PathBuf, error: io::Error },
}

/// Which other programs have a file open, as "name (pid 123)". Sees only what `/proc` shows to edgecam's user.
pub fn holders(path: &Path) -> Vec<String> {
    let myself = std::process::id().to_string();
    paths_in(Path::new("/proc"))
        .filter_map(|process| {
            let pid = process.file_name()?.to_str()?.to_owned();
            let is_other = pid.bytes().all(|byte| byte.is_ascii_digit()) && pid != myself;
            (is_other && holds(&process, path)).then(|| {
                let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                format!("{} (pid {pid})", name.trim())
            })
        })
        .collect()
}

/// Whether this process has a file open.
pub fn is_held_by_us(path: &Path) -> bool {
    holds(Path::new("/proc/self"), path)
}

fn holds(process: &Path, path: &Path) -> bool {
    let Ok(wanted) = fs::canonicalize(path) else { return false };
    paths_in(&process.join("fd")).any(|fd| fs::read_link(fd).is_ok_and(|target| target == wanted))
}

/// One line about what there is, for whoever did not find what he looked for.
pub fn seen() -> String {
    let described: Vec<String> = nodes()
        .into_iter()
        .map(|node| match node {
            Ok(Node { path, card, role, .. }) => format!("{} ({card}) {role}", path.display()),
            Err(error) => error.in_full(),
        })
        .collect();
    if described.is_empty() { "there is no video device at all".to_owned() } else { described.join(", ") }
}

/// Drivers whose capture nodes are the far ends of a chip's picture processor: they give nothing unless fed.
const PICTURE_PROCESSORS: [&str; 2] = ["bcm2835-isp", "pispbe"];

fn role(driver: &str, capabilities: Capability) -> Role {
    let has = |flag| capabilities.contains(flag);
    let both_ways = Capability::VIDEO_CAPTURE_MPLANE | Capability::VIDEO_OUTPUT_MPLANE;
    if has(Capability::VIDEO_M2M) || has(Capability::VIDEO_M2M_MPLANE) || has(both_ways) {
        Role::Codec
    } else if PICTURE_PROCESSORS.contains(&driver) {
        Role::Other("part of a picture processor that another program has to feed".into())
    } else if has(Capability::VIDEO_CAPTURE | Capability::STREAMING) {
        Role::Camera
    } else if has(Capability::VIDEO_CAPTURE_MPLANE) {
        Role::Other("multi-planar capture, which this version cannot read".into())
    } else if has(Capability::META_CAPTURE) {
        Role::Other("metadata of another node's pictures".into())
    } else if has(Capability::VIDEO_OUTPUT) || has(Capability::VIDEO_OUTPUT_MPLANE) {
        Role::Other("video output".into())
    } else {
        Role::Other("no video capture".into())
    }
}

/// The name of a control as in the configuration and in v4l2-ctl: "White Balance, Automatic" → `white_balance_automatic`.
fn config_name(label: &str) -> String {
    let words = label.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_").to_ascii_lowercase()
}

/// `None` for what is no number: headings, texts, arrays.
fn kind(control: ControlType) -> Option<&'static str> {
    match control {
        ControlType::Integer | ControlType::Integer64 => Some("integer"),
        ControlType::Boolean => Some("boolean"),
        ControlType::Menu | ControlType::IntegerMenu => Some("menu"),
        ControlType::Bitmask => Some("bitmask"),
        ControlType::Button => Some("button"),
        _ => None,
    }
}

fn menu_text(item: &MenuItem) -> String {
    match item {
        MenuItem::Name(name) => name.clone(),
        MenuItem::Value(value) => value.to_string(),
    }
}

fn unknown(name: &str, described: &[Description]) -> ControlProblem {
    let settable = described.iter().filter(|control| kind(control.typ).is_some());
    let known: Vec<String> = settable.map(|control| config_name(&control.name)).collect();
    ControlProblem::Unknown {
        name: name.to_owned(),
        known: if known.is_empty() { "none".into() } else { known.join(", ") },
    }
}

/// The value in V4L2's terms, if the control takes it.
fn checked(control: &Description, name: &str, value: i64) -> Result<Value, ControlProblem> {
    let name = name.to_owned();
    let Some(kind) = kind(control.typ) else {
        return Err(ControlProblem::OutOfRange { name, value, takes: "no number".into() });
    };
    if control.flags.contains(ControlFlags::READ_ONLY) {
        return Err(ControlProblem::ReadOnly { name });
    }
    let (min, max) = (control.minimum, control.maximum);
    let in_range = (min..=max).contains(&value);
    let on_step = i64::try_from(control.step).is_ok_and(|step| step <= 1 || value.wrapping_sub(min) % step == 0);
    match kind {
        "button" => Ok(Value::None),
        "boolean" if in_range => Ok(Value::Boolean(value != 0)),
        "menu" => {
            let items = control.items.as_deref().unwrap_or_default();
            if items.iter().any(|(index, _)| i64::from(*index) == value) {
                return Ok(Value::Integer(value));
            }
            let items: Vec<String> =
                items.iter().map(|(index, item)| format!("{index} ({})", menu_text(item))).collect();
            Err(ControlProblem::OutOfRange { name, value, takes: items.join(", ") })
        }
        "integer" if in_range && on_step => Ok(Value::Integer(value)),
        "bitmask" if value >= 0 && value & !max == 0 => Ok(Value::Integer(value)),
        _ if control.step > 1 => {
            let takes = format!("{min} to {max} in steps of {}", control.step);
            Err(ControlProblem::OutOfRange { name, value, takes })
        }
        _ => Err(ControlProblem::OutOfRange { name, value, takes: format!("{min} to {max}") }),
    }
}

/// The values made by [`checked`], again: the crate's type cannot be cloned.
fn clone(value: &Value) -> Value {
    match value {
        Value::Integer(value) => Value::Integer(*value),
        Value::Boolean(value) => Value::Boolean(*value),
        _ => Value::None,
    }
}

fn partition<T, E>(results: impl Iterator<Item = Result<T, E>>) -> (Vec<E>, Vec<T>) {
    let (mut errors, mut values) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) => errors.push(error),
        }
    }
    (errors, values)
}

/// Asks the `v4l` crate and turns a panic on what the driver answered into an error.
fn guarded<T>(ask: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the driver's answer is none that the v4l crate understands"))
    })
}

fn links_to(node: &Path) -> Vec<PathBuf> {
    let Ok(node) = fs::canonicalize(node) else { return Vec::new() };
    let folders = ["/dev/v4l/by-id", "/dev/v4l/by-path"].map(Path::new);
    let links = folders.into_iter().flat_map(paths_in);
    let mut links: Vec<PathBuf> = links.filter(|link| fs::canonicalize(link).is_ok_and(|to| to == node)).collect();
    links.sort();
    links
}

/// The entries of a folder; none when it cannot be read.
fn paths_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_capture_nodes_are_cameras() {
        let streaming = Capability::STREAMING;
        assert_eq!(role("uvcvideo", Capability::VIDEO_CAPTURE | streaming), Role::Camera);
        assert!(matches!(role("uvcvideo", Capability::META_CAPTURE | streaming), Role::Other(_)));
        assert_eq!(role("bcm2835-codec", Capability::VIDEO_M2M_MPLANE | streaming), Role::Codec);
        assert!(matches!(role("bcm2835-isp", Capability::VIDEO_CAPTURE | streaming), Role::Other(_)));
        assert!(matches!(role("vivid", Capability::VIDEO_OUTPUT | streaming), Role::Other(_)));
        assert!(matches!(role("vivid", Capability::RADIO), Role::Other(_)));
    }

    #[test]
    fn controls_have_the_names_v4l2_ctl_shows() {
        assert_eq!(config_name("White Balance, Automatic"), "white_balance_automatic");
        assert_eq!(config_name("Exposure Time, Absolute"), "exposure_time_absolute");
        assert_eq!(config_name("H264 I-Frame Period"), "h264_i_frame_period");
        assert_eq!(config_name("Focus (absolute)"), "focus_absolute");
    }

    #[test]
    fn a_value_the_control_does_not_take_is_refused_with_those_it_takes() {
        let brightness = control(ControlType::Integer, -64, 64, 1);
        assert_eq!(checked(&brightness, "brightness", -64).unwrap(), Value::Integer(-64));
        let problem = checked(&brightness, "brightness", 65).unwrap_err().to_string();
        assert_eq!(problem, "control \"brightness\" cannot be 65; it takes -64 to 64");

        let stepped = control(ControlType::Integer, 2000, 6500, 10);
        assert!(checked(&stepped, "temperature", 2010).is_ok());
        let problem = checked(&stepped, "temperature", 2011).unwrap_err().to_string();
        assert!(problem.ends_with("2000 to 6500 in steps of 10"), "{problem}");
    }

    #[test]
    fn a_menu_takes_only_the_items_it_has() {
        let mut menu = control(ControlType::Menu, 0, 3, 1);
        menu.items =
            Some(vec![(1, MenuItem::Name("Manual Mode".into())), (3, MenuItem::Name("Aperture Priority".into()))]);
        assert!(checked(&menu, "auto_exposure", 3).is_ok());
        let problem = checked(&menu, "auto_exposure", 2).unwrap_err().to_string();
        assert!(problem.ends_with("1 (Manual Mode), 3 (Aperture Priority)"), "{problem}");
    }

    #[test]
    fn an_unknown_control_is_answered_with_the_known_ones() {
        let problem = unknown("brightnes", &[control(ControlType::Integer, 0, 1, 1)]).to_string();
        assert_eq!(problem, "this camera has no control \"brightnes\"; it has brightness");
    }

    #[test]
    fn a_read_only_control_is_not_set() {
        let mut control = control(ControlType::Boolean, 0, 1, 1);
        control.flags = ControlFlags::READ_ONLY;
        assert!(matches!(checked(&control, "brightness", 1), Err(ControlProblem::ReadOnly { .. })));
    }

    #[test]
    fn an_answer_that_makes_the_crate_panic_becomes_an_error() {
        let error = guarded(|| -> io::Result<()> { panic!("as the crate does") }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_device_that_is_not_there_is_missing() {
        let error = Device::open(Path::new("/dev/nonexistent")).err().unwrap();
        assert!(matches!(error, SourceError::Missing { .. }), "{error:?}");
        assert!(error.to_string().contains("/dev/nonexistent"));
    }

    #[test]
    fn who_holds_a_file_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(holders(file.path()), Vec::<String>::new());
        assert!(is_held_by_us(file.path()));
        let mut tail = std::process::Command::new("tail").arg("-f").arg(file.path()).spawn().unwrap();
        let pid = format!("tail (pid {})", tail.id());
        while !holders(file.path()).contains(&pid) {
            assert!(tail.try_wait().unwrap().is_none(), "tail ended early");
            std::thread::yield_now();
        }
        tail.kill().unwrap();
        tail.wait().unwrap();
    }

    fn control(typ: ControlType, minimum: i64, maximum: i64, step: u64) -> Description {
        Description {
            id: 0x0098_0900,
            typ,
            name: "Brightness".into(),
            minimum,
            maximum,
            step,
            default: minimum,
            flags: ControlFlags::empty(),
            items: None,
        }
    }
}
