//! The log: to systemd's journal where there is one, else as text or JSON to stderr.

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::{fmt, fs};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// How much is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Directives for [`EnvFilter`], checked.
    directives: String,
    format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal when stderr is connected to it, else text.
    Auto,
    Text,
    /// One object a line.
    Json,
    Journald,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a log level; write error, warn, info, debug or trace, and after it single modules if need be: \
     info,edgecam::publisher=debug"
)]
pub struct BadLevel(String);

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the journal cannot be reached; set log.format to text")]
    Journal(#[source] io::Error),
    #[error("logging is running already")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LogSettings {
    /// `level`: one of the five levels, then, if wanted, `,module=level` any number of times.
    ///
    /// # Errors
    /// When `level` is not that.
    pub fn new(level: &str, format: LogFormat) -> Result<Self, BadLevel> {
        let bad = || BadLevel(level.to_owned());
        let mut parts = level.split(',').map(str::trim);
        let base = parts.next().and_then(|word| LEVELS.iter().position(|level| *level == word)).ok_or_else(bad)?;
        // Without this a mistyped level would be taken for a module's name.
        if !parts.all(|part| part.contains('=')) {
            return Err(bad());
        }
        let directives = format!("{},{level}", quiet(base));
        EnvFilter::try_new(&directives).map_err(|_| bad())?;
        Ok(Self { directives, format })
    }
}

/// Starts logging for the whole process. `journal_stream` is the variable systemd sets (`JOURNAL_STREAM`).
///
/// # Errors
/// When the journal is asked for and absent, or this is not the first call.
pub fn init(settings: &LogSettings, journal_stream: Option<&str>) -> Result<(), LogError> {
    let text = || {
        let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
        layer.boxed()
    };
    let journal = || tracing_journald::layer().map(Layer::boxed);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        LogFormat::Text => text(),
        LogFormat::Json => tracing_subscriber::fmt::layer().json().with_writer(io::stderr).boxed(),
        LogFormat::Journald => journal().map_err(LogError::Journal)?,
        LogFormat::Auto if journal_stream.is_some_and(is_stderr) => journal().unwrap_or_else(|_| text()),
        LogFormat::Auto => text(),
    };
    let filter = EnvFilter::new(&settings.directives);
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|error| LogError::Twice(error.into()))
}

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Crates that log at INFO what is DEBUG to us, or at WARN what a viewer can provoke at will.
const NOISY: [(&str, usize); 5] = [("webrtc", 1), ("rtc", 1), ("rtc_dtls", 0), ("rtc_ice", 0), ("rumqttc", 0)];

/// Directives that keep noisy crates down, but never make them louder than `base`.
fn quiet(base: usize) -> String {
    NOISY.map(|(module, most)| format!("{module}={}", LEVELS[most.min(base)])).join(",")
}

/// Whether stderr is the stream systemd speaks of ("device:inode"). A program started by a service inherits the variable,
/// but not always the stream (systemd.exec(5), "$JOURNAL_STREAM").
fn is_stderr(journal_stream: &str) -> bool {
    fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| journal_stream == StreamName(&stderr).to_string())
}

struct StreamName<'a>(&'a fs::Metadata);

impl fmt::Display for StreamName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.dev(), self.0.ino())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_level_may_be_followed_by_modules() {
        assert!(LogSettings::new("info", LogFormat::Auto).is_ok());
        assert!(LogSettings::new("warn,edgecam::peer=trace", LogFormat::Auto).is_ok());
    }

    #[test]
    fn a_mistyped_level_is_not_taken_for_a_module() {
        for level in ["inof", "", "INFO ", "5", "debug,edgecam", "info,edgecam=loud", "edgecam=debug"] {
            assert!(LogSettings::new(level, LogFormat::Auto).is_err(), "{level:?} was taken");
        }
    }

    #[test]
    fn noisy_crates_are_kept_down_unless_named() {
        let log = logged("info");
        assert!(log.contains("a viewer came"), "{log}");
        assert!(log.contains("dtls failed"), "{log}");
        assert!(!log.contains("binding request"), "{log}");
        assert!(logged("info,rtc_ice=warn").contains("binding request"));
    }

    #[test]
    fn a_quiet_log_stays_quiet() {
        assert_eq!(logged("error"), "");
    }

    #[test]
    fn a_stream_that_is_not_stderr_is_not_the_journal() {
        assert!(!is_stderr("0:0"));
        assert!(is_stderr(&StreamName(&fs::metadata("/proc/self/fd/2").unwrap()).to_string()));
    }

    fn logged(level: &str) -> String {
        let settings = LogSettings::new(level, LogFormat::Text).unwrap();
        let log = Log::default();
        let writer = log.clone();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(EnvFilter::new(&settings.directives)));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("a viewer came");
            tracing::warn!(target: "rtc::dtls", "dtls failed");
            tracing::warn!(target: "rtc_ice::agent", "binding request");
        });
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
