//! What can be wrong with a configuration, in words its owner can act on.

use std::error::Error;
use std::path::PathBuf;
use std::{fmt, io};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}; see that it exists and that edgecam may read it", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{} is not a TOML file", path.display())]
    Syntax {
        path: PathBuf,
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// Never empty.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

/// One thing to put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key as in the file, from the top: `camera[0].encoder.max_kbps`.
    pub key: String,
    /// What is wrong and what would be right.
    pub what: String,
    /// Where the value stands: a file, a variable, a flag.
    pub origin: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, what, origin } = self;
        write!(f, "{key}: {what} ({origin})")
    }
}

/// A value that its part cannot use; the key is still relative to its section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) key: String,
    pub(super) what: String,
}

impl Wrong {
    pub(super) fn new(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into() }
    }

    /// The same, seen from the table around it.
    pub(super) fn within(self, section: &str) -> Self {
        Self { key: format!("{section}.{}", self.key), what: self.what }
    }
}

fn list(problems: &[Problem]) -> String {
    match problems {
        [one] => one.to_string(),
        many => {
            let lines: Vec<String> = many.iter().map(|problem| format!("\n  {problem}")).collect();
            format!("{} settings are wrong:{}", many.len(), lines.concat())
        }
    }
}
