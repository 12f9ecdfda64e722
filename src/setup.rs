//! Floor 4. `edgecam setup`: what a fresh installation lacks before anybody else can watch.
//!
//! What is there is looked at ([`look`]), what is missing is decided ([`Plan::new`]) and written ([`Plan::carry_out`]). What the
//! owner wrote stays as it is, whatever it is.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::{Chosen, Config, ConfigError, Sources};

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The configuration's folder.
    pub folder: PathBuf,
    pub chosen: Chosen,
    /// The file of tokens' key.
    pub has_key: bool,
    /// The file that [`Plan::carry_out`] writes settings to.
    pub has_drop_in: bool,
}

/// What to write; nothing of it is there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    folder: PathBuf,
    make_key: bool,
    /// The text of `conf.d/10-setup.toml`.
    pub drop_in: Option<String>,
    /// What will be as it was, and why, in words.
    pub kept: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write {}; run it as root: sudo edgecam setup", path.display())]
pub struct SetupError {
    path: PathBuf,
    source: io::Error,
}

const KEY: &str = "secrets/token-key";
const DROP_IN: &str = "conf.d/10-setup.toml";

/// # Errors
/// A configuration with keys or types that are wrong.
pub fn look(sources: &Sources) -> Result<Found, ConfigError> {
    let folder = sources.folder();
    let is_there = |name| fs::exists(folder.join(name)).unwrap_or(true);
    let (has_key, has_drop_in) = (is_there(KEY), is_there(DROP_IN));
    Ok(Found { chosen: Config::chosen(sources)?, has_key, has_drop_in, folder })
}

impl Plan {
    pub fn new(found: &Found) -> Self {
        let Found { folder, chosen, has_key, has_drop_in } = found;
        let mut kept = Vec::new();
        let mut settings = Vec::new();
        let mut settle = |what: &str, set: Option<&String>, text: &'static str| match set {
            Some(origin) => kept.push(format!("{what}, set {origin}")),
            None => settings.push(text),
        };
        settle("the page's address", chosen.listen.as_ref(), LISTEN);
        match &chosen.anyone_may_watch {
            Some(origin) => settle("that anyone may watch", Some(origin), AUTH),
            None => settle("the key that signs tokens", chosen.token_key_file.as_ref(), AUTH),
        }
        settle("the cameras", chosen.cameras.as_ref(), CAMERA);
        // A key that the owner named is the owner's affair; the one that we name has to be there.
        let names_key = match (&chosen.token_key_file, &chosen.anyone_may_watch) {
            (Some(origin), _) => origin.ends_with(DROP_IN),
            (None, anyone) => anyone.is_none() && !has_drop_in,
        };
        let drop_in =
            (!has_drop_in && !settings.is_empty()).then(|| [&[INTRODUCTION], &settings[..]].concat().join("\n"));
        Self { folder: folder.clone(), make_key: names_key && !has_key, drop_in, kept }
    }

    /// The file of the key that will be made.
    pub fn new_key(&self) -> Option<PathBuf> {
        self.make_key.then(|| self.folder.join(KEY))
    }

    /// The file of settings that will be written.
    pub fn new_drop_in(&self) -> Option<PathBuf> {
        self.drop_in.as_ref().map(|_| self.folder.join(DROP_IN))
    }

    /// Writes what is missing, the key first: a configuration never names one that is not there. `key` is used when one is wanted.
    ///
    /// # Errors
    /// What could not be written; what was written before stays, and the next time goes on from there.
    pub fn carry_out(&self, key: &str) -> Result<(), SetupError> {
        if let Some(path) = self.new_key() {
            write(&path, 0o700, 0o600, key)?;
        }
        if let (Some(path), Some(text)) = (self.new_drop_in(), &self.drop_in) {
            write(&path, 0o755, 0o644, text)?;
        }
        Ok(())
    }
}

const INTRODUCTION: &str = "\
# Written by `edgecam setup`, once; change it as you like. Files in this folder lie over edgecam.toml, later names over earlier.
";
const LISTEN: &str = "\
# Reached from other machines, too.
[http]
listen = \"0.0.0.0:8080\"
";
const AUTH: &str = "\
# Who changes the key makes all tokens void.
[auth]
token_key_file = \"token-key\"
";
const CAMERA: &str = "\
# The first camera that can be used; `edgecam devices` lists them all.
[[camera]]
id = \"camera\"
source = \"auto\"
";

/// A new file, whole or not at all, never over another. The modes hold whatever the umask is.
fn write(path: &Path, folder_mode: u32, mode: u32, text: &str) -> Result<(), SetupError> {
    let failed = |source| SetupError { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    if !folder.is_dir() {
        DirBuilder::new().mode(folder_mode).create(folder).map_err(failed)?;
        fs::set_permissions(folder, Permissions::from_mode(folder_mode)).map_err(failed)?;
    }
    // Hidden files of this folder are not read.
    let draft = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    let written = write_new(&draft, mode, text).and_then(|()| fs::hard_link(&draft, path));
    let _ = fs::remove_file(&draft);
    written.and_then(|()| File::open(folder)?.sync_all()).map_err(failed)
}

fn write_new(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    // Left from a setup that was cut short.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        file.write_all(b"\n")?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(chosen: Chosen) -> Found {
        Found { folder: "/etc/edgecam".into(), chosen, has_key: false, has_drop_in: false }
    }

    fn set(file: &str) -> Option<String> {
        Some(format!("in /etc/edgecam/{file}"))
    }

    #[test]
    fn a_fresh_installation_gets_an_address_a_key_and_a_camera() {
        let plan = Plan::new(&found(Chosen::default()));
        let text = plan.drop_in.as_deref().unwrap();
        for line in ["listen = \"0.0.0.0:8080\"", "token_key_file = \"token-key\"", "source = \"auto\""] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert_eq!(plan.new_key(), Some("/etc/edgecam/secrets/token-key".into()));
        assert_eq!(plan.kept, Vec::<String>::new());
    }

    #[test]
    fn what_the_owner_wrote_is_kept_and_told() {
        let listen = Chosen { listen: set("edgecam.toml"), ..Chosen::default() };
        let plan = Plan::new(&found(listen));
        assert_eq!(plan.kept, ["the page's address, set in /etc/edgecam/edgecam.toml"]);
        assert!(!plan.drop_in.unwrap().contains("listen"));

        let all = Chosen {
            listen: set("edgecam.toml"),
            token_key_file: set("edgecam.toml"),
            anyone_may_watch: None,
            cameras: set("conf.d/cameras.toml"),
        };
        let plan = Plan::new(&found(all));
        assert_eq!((plan.new_key(), plan.new_drop_in(), plan.kept.len()), (None, None, 3));
    }

    #[test]
    fn no_key_is_made_where_anyone_may_watch() {
        let plan = Plan::new(&found(Chosen { anyone_may_watch: set("edgecam.toml"), ..Chosen::default() }));
        assert_eq!(plan.new_key(), None);
        assert!(!plan.drop_in.unwrap().contains("[auth]"));
        assert_eq!(plan.kept, ["that anyone may watch, set in /etc/edgecam/edgecam.toml"]);
    }

    #[test]
    fn a_second_time_writes_nothing_but_a_key_that_was_lost() {
        let ours = set("conf.d/10-setup.toml");
        let chosen =
            Chosen { listen: ours.clone(), token_key_file: ours.clone(), anyone_may_watch: None, cameras: ours };
        let again = Found { has_key: true, has_drop_in: true, ..found(chosen) };
        assert_eq!(Plan::new(&again).new_key(), None);
        assert_eq!(Plan::new(&again).new_drop_in(), None);
        assert!(Plan::new(&Found { has_key: false, ..again }).new_key().is_some());
    }

    #[test]
    fn a_file_of_ours_that_the_owner_changed_stays_as_it_is() {
        // The owner took the key out of it.
        let chosen = Chosen { listen: set("conf.d/10-setup.toml"), ..Chosen::default() };
        let plan = Plan::new(&Found { has_drop_in: true, ..found(chosen) });
        assert_eq!((plan.new_key(), plan.new_drop_in()), (None, None));
    }
}
