//! Secrets stand in files of their own, never in the configuration, a variable or a flag.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::Wrong;

/// The package's folder for them, next to the configuration; and the name under which its unit hands them over, which systemd
/// puts before each file's own: `LoadCredential=secrets:/etc/edgecam/secrets` gives `secrets_token-key`.
const FOLDER: &str = "secrets";

/// Where secret files are looked for.
pub(super) struct Secrets<'a> {
    /// What systemd put there for this service (systemd.exec(5), "LoadCredential=").
    credentials: Option<&'a str>,
    folder: PathBuf,
    /// Files that this user may not read; `None`: that is an error.
    unread: Option<RefCell<Vec<PathBuf>>>,
}

impl<'a> Secrets<'a> {
    pub(super) fn new(environment: &'a BTreeMap<String, String>, folder: PathBuf) -> Self {
        Self { credentials: environment.get("CREDENTIALS_DIRECTORY").map(String::as_str), folder, unread: None }
    }

    /// In place of a secret that this user may not read, one that nobody knows.
    pub(super) fn where_readable(self) -> Self {
        Self { unread: Some(RefCell::default()), ..self }
    }

    pub(super) fn unread(self) -> Vec<PathBuf> {
        self.unread.map(RefCell::into_inner).unwrap_or_default()
    }

    /// The text in the file that `key` names, without white space around it. A relative name is looked for among systemd's
    /// credentials, then next to the configuration, then in `secrets` there.
    ///
    /// # Errors
    /// Names the file that could not be read, or that it is empty.
    pub(super) fn read(&self, key: &str, name: &str, warnings: &mut Vec<String>) -> Result<String, Wrong> {
        let path = self.find(name);
        if let Some(unread) = &self.unread
            && File::open(&path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            unread.borrow_mut().push(path);
            return Ok(format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>()));
        }
        let text = read(key, &path, "secret")?;
        if open_to_others(&path) {
            warnings.push(format!("{0} can be read by other users; run: chmod go= {0}", path.display()));
        }
        Ok(text)
    }

    /// The same for a certificate, which everybody may know.
    ///
    /// # Errors
    /// Names the file that could not be read, or that it is empty.
    pub(super) fn read_certificate(&self, key: &str, name: &str) -> Result<String, Wrong> {
        read(key, &self.find(name), "certificate")
    }

    fn find(&self, name: &str) -> PathBuf {
        // An absolute name replaces the folder it is joined to.
        let credentials = self.credentials.map(Path::new);
        let given = credentials.map(|folder| [folder.join(name), folder.join(format!("{FOLDER}_{name}"))]);
        let beside = self.folder.join(name);
        let places = given.into_iter().flatten().chain([beside.clone(), self.folder.join(FOLDER).join(name)]);
        // One that may not be looked at is there.
        places.into_iter().find(|path| path.try_exists().unwrap_or(true)).unwrap_or(beside)
    }
}

fn read(key: &str, path: &Path, kind: &str) -> Result<String, Wrong> {
    let wrong = |what: String| Wrong::new(key, what);
    let text = fs::read_to_string(path)
        .map_err(|error| wrong(format!("the {kind} in {} cannot be read: {error}", path.display())))?;
    match text.trim() {
        "" => Err(wrong(format!("{} is empty", path.display()))),
        text => Ok(text.to_owned()),
    }
}

fn open_to_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}
