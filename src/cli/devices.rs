//! `edgecam devices`: what there is to see with, what to encode with, and what edgecam would take.

use std::fmt::{self, Display};
use std::io::{self, Write};

use clap::Args;
use edgecam::camera::Prefer;
use edgecam::camera::device::{self, ControlReport, Device, Node, Role};
use edgecam::camera::encoder::{self, EncoderReport};
use edgecam::camera::input::{self, Choice, Offer, Rates, Size, Wanted};
use serde::Serialize;

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Asks every video device and tries every encoder; takes some seconds. A camera that is in use is asked, too.
///
/// # Errors
/// GStreamer does not start; a closed stdout.
pub(crate) fn devices(args: &DevicesArgs) -> anyhow::Result<()> {
    let report = Report::of_this_machine()?;
    if args.json {
        serde_json::to_writer_pretty(io::stdout(), &report)?;
        writeln!(io::stdout())?;
    } else {
        write!(io::stdout(), "{report}")?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Report {
    cameras: Vec<Camera>,
    /// Nodes that give no pictures of their own: encoders, metadata.
    others: Vec<Node>,
    /// Nodes that could not be asked, and why.
    unreadable: Vec<String>,
    /// From the best to the last resort.
    encoders: Vec<EncoderReport>,
    /// What `source = "auto"` takes.
    auto: Option<String>,
    /// The encoder that is taken for pictures that are not H.264 yet.
    encoder: Option<&'static str>,
}

#[derive(Serialize)]
struct Camera {
    #[serde(flatten)]
    node: Node,
    /// For the configuration: the name that stays the same.
    source: String,
    formats: Vec<Offer>,
    /// For the picture of the defaults, 1280x720 at 30 fps.
    choice: Option<Choice>,
    /// Why there is no choice.
    problem: Option<String>,
    controls: Vec<ControlReport>,
}

/// The picture of the defaults.
const WANTED: Wanted = Wanted { width: 1280, height: 720, fps: 30, prefer: Prefer::Auto };

impl Report {
    fn of_this_machine() -> anyhow::Result<Self> {
        let mut report = Self {
            cameras: Vec::new(),
            others: Vec::new(),
            unreadable: Vec::new(),
            encoders: encoder::survey()?,
            auto: None,
            encoder: None,
        };
        for node in device::nodes() {
            match node {
                Ok(node) if node.role == Role::Camera => match Device::open(&node.path) {
                    Ok(device) => report.cameras.push(Camera::new(node, &device)),
                    Err(error) => report.unreadable.push(error.in_full()),
                },
                Ok(node) => report.others.push(node),
                Err(error) => report.unreadable.push(error.in_full()),
            }
        }
        let usable = report.cameras.iter().find(|camera| camera.choice.is_some());
        report.auto = usable.map(|camera| camera.node.path.display().to_string());
        report.encoder = report.encoders.iter().find(|encoder| encoder.works).map(|encoder| encoder.name);
        Ok(report)
    }
}

impl Camera {
    fn new(node: Node, device: &Device) -> Self {
        let formats = device.offers((WANTED.width, WANTED.height));
        let (choice, problem) = match input::choose(&formats, &WANTED) {
            Ok(choice) => (Some(choice), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let source = format!("v4l2:{}", node.links.first().unwrap_or(&node.path).display());
        // Many a camera has none.
        let controls = device.controls().unwrap_or_default();
        Self { node, source, formats, choice, problem, controls }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cameras.is_empty() {
            writeln!(f, "No camera. {}", device::seen())?;
        }
        for camera in &self.cameras {
            let path = camera.node.path.display().to_string();
            let auto = if self.auto.as_deref() == Some(path.as_str()) { ", taken by source = \"auto\"" } else { "" };
            writeln!(f, "{path}: {} ({} on {}){auto}", camera.node.card, camera.node.driver, camera.node.bus)?;
            write!(f, "{camera}")?;
        }
        if !self.others.is_empty() {
            writeln!(f, "\nNo cameras:")?;
        }
        for Node { path, card, role, .. } in &self.others {
            writeln!(f, "  {}: {card} {role}", path.display())?;
        }
        for problem in &self.unreadable {
            writeln!(f, "  {problem}")?;
        }
        writeln!(f, "\nEncoders, the best first:")?;
        for EncoderReport { name, works, device, problem } in &self.encoders {
            let device = device.as_ref().map(|device| format!(" ({})", device.display())).unwrap_or_default();
            let state = match works {
                true if self.encoder == Some(name) => "works; this one is taken",
                true => "works",
                false => problem,
            };
            writeln!(f, "  {name}{device}: {state}")?;
        }
        Ok(())
    }
}

impl Display for Camera {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  source = \"{}\"", self.source)?;
        let Wanted { width, height, fps, .. } = WANTED;
        match (&self.choice, &self.problem) {
            (Some(choice), _) => {
                writeln!(f, "  for {width}x{height} at {fps} fps: {choice}; {}", choice.reason)?;
            }
            (None, problem) => writeln!(f, "  cannot be used: {}", problem.as_deref().unwrap_or_default())?,
        }
        writeln!(f, "  formats:")?;
        for Offer { format, description, sizes } in &self.formats {
            writeln!(f, "    {format} ({description})")?;
            for size in sizes {
                writeln!(f, "      {}", SizeText(size))?;
            }
        }
        if !self.controls.is_empty() {
            writeln!(f, "  controls:")?;
        }
        for control in &self.controls {
            writeln!(f, "    {}", ControlText(control))?;
        }
        Ok(())
    }
}

struct SizeText<'a>(&'a Size);

impl Display for SizeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size { min, max, step, rates } = self.0;
        write!(f, "{}x{}", min.0, min.1)?;
        if min != max {
            write!(f, " to {}x{} in steps of {}x{}", max.0, max.1, step.0, step.1)?;
        }
        match rates {
            Rates::Unknown => f.write_str(" at a rate of its own"),
            Rates::Listed(rates) => {
                let rates: Vec<String> = rates.iter().map(ToString::to_string).collect();
                write!(f, " at {} fps", rates.join(", "))
            }
            Rates::Between { slowest, fastest } => write!(f, " at {slowest} to {fastest} fps"),
        }
    }
}

struct ControlText<'a>(&'a ControlReport);

impl Display for ControlText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ControlReport { name, kind, min, max, step, default, value, items, read_only, inactive } = self.0;
        write!(f, "{name}: {kind}, {min} to {max}")?;
        if *step > 1 {
            write!(f, " in steps of {step}")?;
        }
        write!(f, ", default {default}")?;
        if let Some(value) = value {
            write!(f, ", now {value}")?;
        }
        if *read_only {
            f.write_str(", cannot be set")?;
        }
        if *inactive {
            f.write_str(", not in use as another control is set now")?;
        }
        for (value, meaning) in items {
            write!(f, "\n      {value}: {meaning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use edgecam::camera::input::{FourCc, Rate};

    use super::*;

    #[test]
    fn a_camera_is_described_with_what_to_write_and_what_would_be_used() {
        let text = report().to_string();
        for line in [
            "/dev/video0: Webcam (uvcvideo on usb-1), taken by source = \"auto\"",
            "  source = \"v4l2:/dev/v4l/by-id/usb-webcam\"",
            "    YUYV (YUYV 4:2:2)",
            "      1280x720 at 30, 10 fps",
            "    brightness: integer, 0 to 255, default 128, now 100",
            "  /dev/video1: Webcam is no camera (metadata of another node's pictures)",
            "  x264enc: works; this one is taken",
            "  v4l2h264enc: there is none",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
        }
        assert!(text.contains("  for 1280x720 at 30 fps: YUYV 1280x720 at 30 fps; "), "{text}");
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["auto"], "/dev/video0");
        assert_eq!(json["encoder"], "x264enc");
        assert_eq!(json["cameras"][0]["source"], "v4l2:/dev/v4l/by-id/usb-webcam");
        assert_eq!(json["cameras"][0]["choice"]["width"], 1280);
        assert_eq!(json["cameras"][0]["controls"][0]["name"], "brightness");
    }

    fn report() -> Report {
        let rates = Rates::Listed(vec![Rate::per_second(30), Rate::per_second(10)]);
        let sizes = vec![Size::discrete(1280, 720, rates)];
        let formats = vec![Offer { format: FourCc::YUYV, description: "YUYV 4:2:2".into(), sizes }];
        let node = |number: u8, role| Node {
            path: format!("/dev/video{number}").into(),
            links: vec!["/dev/v4l/by-id/usb-webcam".into()],
            card: "Webcam".into(),
            driver: "uvcvideo".into(),
            bus: "usb-1".into(),
            role,
        };
        let brightness = ControlReport {
            name: "brightness".into(),
            kind: "integer",
            min: 0,
            max: 255,
            step: 1,
            default: 128,
            value: Some(100),
            items: std::collections::BTreeMap::new(),
            read_only: false,
            inactive: false,
        };
        let encoder = |name, works, problem: &str| EncoderReport { name, works, device: None, problem: problem.into() };
        Report {
            cameras: vec![Camera {
                node: node(0, Role::Camera),
                source: "v4l2:/dev/v4l/by-id/usb-webcam".into(),
                choice: input::choose(&formats, &WANTED).ok(),
                formats,
                problem: None,
                controls: vec![brightness],
            }],
            others: vec![node(1, Role::Other("metadata of another node's pictures".into()))],
            unreadable: Vec::new(),
            encoders: vec![encoder("v4l2h264enc", false, "there is none"), encoder("x264enc", true, "")],
            auto: Some("/dev/video0".into()),
            encoder: Some("x264enc"),
        }
    }
}
