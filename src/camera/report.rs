//! What `edgecam devices` prints: everything found, what edgecam would use of it, and why.

use std::fmt;

use serde::Serialize;

use super::SourceError;
use super::device::{self, ControlReport, Device, Node, Role};
use super::encoder::{self, EncoderReport};
use super::input::{self, Choice, Encoding, Offer, Rates, Size, Wanted};

/// The cameras and encoders of this machine, as far as they can be asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceReport {
    pub cameras: Vec<CameraReport>,
    /// Nodes that are no cameras: codecs, metadata, outputs.
    pub others: Vec<Node>,
    /// Nodes that could not be asked, each with what to do about it.
    pub problems: Vec<String>,
    pub encoders: Vec<EncoderReport>,
    /// What `source = "auto"` would use: the place in `cameras`.
    pub auto: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CameraReport {
    #[serde(flatten)]
    pub node: Node,
    pub offers: Vec<Offer>,
    pub controls: Vec<ControlReport>,
    /// What edgecam would use for the wanted picture.
    pub choice: Option<Choice>,
    /// Why there is no choice; empty when there is one.
    pub problem: String,
}

/// Looks at everything. Opens each video device, tries each encoder, blocks for up to some seconds.
pub fn report(wanted: &Wanted) -> DeviceReport {
    let (mut cameras, mut others, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for node in device::nodes() {
        match node {
            Ok(node) if node.role == Role::Camera => match camera(node, wanted) {
                Ok(camera) => cameras.push(camera),
                Err(error) => problems.push(error.in_full()),
            },
            Ok(node) => others.push(node),
            Err(error) => problems.push(error.in_full()),
        }
    }
    let encoders = encoder::survey().unwrap_or_else(|error| {
        problems.push(error.in_full());
        Vec::new()
    });
    let auto = cameras.iter().position(|camera| camera.choice.is_some());
    DeviceReport { cameras, others, problems, encoders, auto }
}

fn camera(node: Node, wanted: &Wanted) -> Result<CameraReport, SourceError> {
    let device = Device::open(&node.path)?;
    let offers = device.offers((wanted.width, wanted.height));
    let controls = device.controls().unwrap_or_default();
    let (choice, problem) = match input::choose(&offers, wanted) {
        Ok(choice) => (Some(choice), String::new()),
        Err(error) => (None, error.to_string()),
    };
    Ok(CameraReport { node, offers, controls, choice, problem })
}

/// For people.
impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Cameras")?;
        if self.cameras.is_empty() {
            writeln!(f, "  none found; plug in a USB camera, or try edgecam with `source = \"test\"`")?;
        }
        for (place, camera) in self.cameras.iter().enumerate() {
            let auto = if self.auto == Some(place) { "  <- source = \"auto\"" } else { "" };
            writeln!(
                f,
                "  {}  {} ({}, {}){auto}",
                camera.node.path.display(),
                camera.node.card,
                camera.node.driver,
                camera.node.bus
            )?;
            camera.fmt(f)?;
        }
        if !self.others.is_empty() {
            writeln!(f, "\nOther video devices")?;
            for node in &self.others {
                writeln!(f, "  {}  {} {}", node.path.display(), node.card, node.role)?;
            }
        }
        writeln!(f, "\nEncoders, the best first")?;
        for encoder in &self.encoders {
            let device = encoder.device.iter().map(|path| format!(" ({})", path.display())).collect::<String>();
            let state = if encoder.works { "works" } else { &encoder.problem };
            writeln!(f, "  {}{device}  {state}", encoder.name)?;
        }
        if !self.problems.is_empty() {
            writeln!(f, "\nProblems")?;
            for problem in &self.problems {
                writeln!(f, "  {problem}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for CameraReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for link in &self.node.links {
            writeln!(f, "    also {}", link.display())?;
        }
        match &self.choice {
            Some(choice) => writeln!(f, "    would use {choice}: {}", choice.reason)?,
            None => writeln!(f, "    cannot be used: {}", self.problem)?,
        }
        let (usable, unusable): (Vec<_>, Vec<_>) =
            self.offers.iter().partition(|offer| Encoding::of(offer.format).is_some());
        for offer in usable {
            let sizes: Vec<String> = offer.sizes.iter().map(size).collect();
            writeln!(f, "    {:4}  {}  {}", offer.format.to_string(), offer.description, sizes.join(", "))?;
        }
        if !unusable.is_empty() {
            let formats: Vec<String> = unusable.iter().map(|offer| offer.format.to_string()).collect();
            writeln!(f, "    not used: {}", formats.join(", "))?;
        }
        for control in &self.controls {
            control.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for ControlReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "    {} = ", self.name)?;
        match self.value {
            Some(value) => write!(f, "{value}")?,
            None => f.write_str("?")?,
        }
        write!(f, "  ({} {} to {}", self.kind, self.min, self.max)?;
        if self.step > 1 {
            write!(f, " by {}", self.step)?;
        }
        write!(f, ", default {}", self.default)?;
        if !self.items.is_empty() {
            let items: Vec<String> = self.items.iter().map(|(value, item)| format!("{value} {item}")).collect();
            write!(f, ": {}", items.join(", "))?;
        }
        f.write_str(if self.read_only { ", read-only" } else { "" })?;
        f.write_str(if self.inactive { ", inactive" } else { "" })?;
        writeln!(f, ")")
    }
}

fn size(size: &Size) -> String {
    let dimensions = if size.min == size.max {
        format!("{}x{}", size.min.0, size.min.1)
    } else {
        format!("{}x{} to {}x{}", size.min.0, size.min.1, size.max.0, size.max.1)
    };
    match &size.rates {
        Rates::Unknown => dimensions,
        Rates::Between { slowest, fastest } => format!("{dimensions} ({slowest} to {fastest} fps)"),
        Rates::Listed(rates) => {
            let rates: Vec<String> = rates.iter().map(ToString::to_string).collect();
            format!("{dimensions} ({} fps)", rates.join("/"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Prefer;
    use super::super::input::{FourCc, Rate};
    use super::*;

    #[test]
    fn a_machine_without_cameras_gets_a_helpful_answer() {
        let report = DeviceReport {
            cameras: vec![],
            others: vec![],
            problems: vec![],
            encoders: vec![EncoderReport {
                name: "x264enc",
                works: false,
                device: None,
                problem: "is not there".into(),
            }],
            auto: None,
        };
        let expected = "Cameras\n  none found; plug in a USB camera, or try edgecam with `source = \"test\"`\n\
                        \nEncoders, the best first\n  x264enc  is not there\n";
        assert_eq!(report.to_string(), expected);
    }

    #[test]
    fn a_camera_is_shown_with_its_choice_formats_and_controls() {
        let rates = Rates::Listed(vec![Rate::per_second(30), Rate { numerator: 25, denominator: 2 }]);
        let offer = |format, description: &str| Offer {
            format,
            description: description.into(),
            sizes: vec![Size::discrete(640, 480, rates.clone())],
        };
        let offers = vec![offer(FourCc::YUYV, "YUYV 4:2:2"), offer(FourCc(*b"Y16 "), "16-bit Greyscale")];
        let wanted = Wanted { width: 640, height: 480, fps: 30, prefer: Prefer::Auto };
        let camera = CameraReport {
            node: Node {
                path: "/dev/video0".into(),
                links: vec!["/dev/v4l/by-id/usb-cam".into()],
                card: "Cam".into(),
                driver: "uvcvideo".into(),
                bus: "usb-1".into(),
                role: Role::Camera,
            },
            choice: input::choose(&offers, &wanted).ok(),
            offers,
            controls: vec![ControlReport {
                name: "power_line_frequency".into(),
                kind: "menu",
                min: 0,
                max: 2,
                step: 1,
                default: 1,
                value: Some(2),
                items: [(1, "50 Hz".into()), (2, "60 Hz".into())].into(),
                read_only: false,
                inactive: false,
            }],
            problem: String::new(),
        };
        let expected = "    also /dev/v4l/by-id/usb-cam\n    \
            would use YUYV 640x480 at 30 fps: raw pictures need no decoding; the camera offers no H.264 at this size\n    \
            YUYV  YUYV 4:2:2  640x480 (30/12.5 fps)\n    \
            not used: Y16\n    \
            power_line_frequency = 2  (menu 0 to 2, default 1: 1 50 Hz, 2 60 Hz)\n";
        assert_eq!(camera.to_string(), expected);
    }

    #[test]
    fn the_report_of_this_machine_has_each_encoder() {
        let wanted = Wanted { width: 1280, height: 720, fps: 30, prefer: Prefer::Auto };
        let names: Vec<_> = report(&wanted).encoders.iter().map(|encoder| encoder.name).collect();
        assert_eq!(names, ["v4l2h264enc", "x264enc", "openh264enc"]);
    }
}
