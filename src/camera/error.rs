//! Why a camera cannot be used, in words that tell its owner what to do.

use std::error::Error;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::device;
use super::encoder::EncoderError;
use super::input::ChoiceError;

/// Why a source could not be opened or stopped giving pictures.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("no camera at {}; plug it in or correct `source`; {seen}", path.display())]
    Missing { path: PathBuf, seen: String },
    #[error("no camera that can be used; plug one in or set `source`; {seen}")]
    NoneUsable { seen: String },
    #[error("no permission to open {}; add edgecam's user to the group that owns it (usually `video`)", path.display())]
    NoPermission { path: PathBuf },
    #[error("{} is in use{}; stop the other program or choose another camera", path.display(), held_by(holders))]
    Busy { path: PathBuf, holders: Vec<String> },
    #[error("{} is still held by an attempt of edgecam's own that failed; restart edgecam", path.display())]
    Stuck { path: PathBuf },
    #[error("{} is no camera: {why}; `edgecam devices` lists what can be used", path.display())]
    NoCamera { path: PathBuf, why: String },
    #[error("{} cannot be read", path.display())]
    Device { path: PathBuf, source: io::Error },
    #[error("{} cannot be used", path.display())]
    Choice { path: PathBuf, source: ChoiceError },
    #[error("no encoder")]
    Encoder(#[from] EncoderError),
    #[error("GStreamer's element {name} is missing; install {package}")]
    NoElement { name: &'static str, package: &'static str },
    #[error("GStreamer cannot start; reinstall its packages")]
    NoGstreamer(#[source] Box<dyn Error + Send + Sync>),
    #[error("the pipeline cannot be built: {0}; please report this with the output of `edgecam devices`")]
    Graph(String),
    /// What a running pipeline reported: which element, and its own words.
    #[error("{element} failed: {message} ({detail}); the camera is tried again")]
    Pipeline { element: String, message: String, detail: String },
    #[error("no first picture within {} s; unplug the camera and plug it in again if this stays", within.as_secs())]
    NoPicture { within: Duration },
    /// Never reaches the owner: the pictures are copied then.
    #[error("the camera's pictures are scattered in memory, where no encoder can read them")]
    Scattered,
    /// Raw pictures came in, none came out.
    #[error("the encoder gave no picture within {} s; another one is tried", within.as_secs())]
    EncoderSilent { within: Duration },
    #[error("{} cannot be read; `source = \"clip:…\"` needs a file with an H.264 byte stream", path.display())]
    ClipUnreadable { path: PathBuf, source: io::Error },
    #[error(
        "{} is no clip: {why}; make one with `ffmpeg -i video -an -c:v libx264 -bf 0 -bsf:v h264_mp4toannexb clip.h264`",
        path.display()
    )]
    BadClip { path: PathBuf, why: &'static str },
    #[error("opening was cut short, since nobody may want it any more; it will be tried again")]
    Cancelled,
    #[error("opening the camera ended in a defect of edgecam: {0}; please report it")]
    Defect(String),
}

impl SourceError {
    /// What an error of the operating system at a device node means.
    pub(super) fn from_io(path: &Path, error: io::Error, seen: fn() -> String) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { path, seen: seen() },
            io::ErrorKind::PermissionDenied => Self::NoPermission { path },
            io::ErrorKind::ResourceBusy => Self::busy(path),
            // ENODEV, ENXIO: the node stands, the device behind it is gone.
            _ if matches!(error.raw_os_error(), Some(19 | 6)) => Self::Missing { path, seen: seen() },
            _ => Self::Device { path, source: error },
        }
    }

    /// Somebody has the device; who, is looked up.
    pub(super) fn busy(path: PathBuf) -> Self {
        let holders = device::holders(&path);
        // An attempt that has just failed may not have let go yet: others count first.
        if holders.is_empty() && device::is_held_by_us(&path) {
            return Self::Stuck { path };
        }
        Self::Busy { holders, path }
    }

    /// The whole chain of causes in one line, for people.
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        text
    }
}

fn held_by(holders: &[String]) -> String {
    if holders.is_empty() { String::new() } else { format!(" by {}", holders.join(", ")) }
}
