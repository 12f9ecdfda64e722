//! Floor 1. Which cameras their owner has switched off, kept over a restart in a file of one camera's id a line.
//!
//! A privacy switch must not turn itself on: what cannot be read counts as everything switched off, and what cannot be written
//! is said and tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::core::camera::Switch;
use crate::core::pace::{Pace, Rate};
use crate::core::signal::CameraId;

/// Longer is no file of ours: room for a thousand cameras.
const LONGEST: u64 = 128 * 1024;
const HEADER: &str = "# Cameras that are switched off, one a line. Written by edgecam, read at its start.\n";
/// Between two tries to write.
const RETRY: Duration = Duration::from_secs(10);
const WARNINGS: Rate = Rate::new(Duration::from_secs(60), 1);
const REMEDY: &str = "make its folder writable, or name another in [device] state_dir";

/// The file in the state directory.
#[derive(Clone, Debug)]
pub struct SwitchFile {
    folder: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is empty or longer than {LONGEST} bytes")]
    WrongSize,
    #[error("line {0} is no camera's id")]
    BadLine(usize),
}

impl SwitchFile {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.join("switched-off")
    }

    /// The cameras that are to be off. When the file is there and cannot be read, `all` are: the owner may have meant any of them.
    pub fn load(&self, all: impl IntoIterator<Item = CameraId>) -> BTreeSet<CameraId> {
        match read(&self.path()) {
            Ok(off) => {
                for camera in &off {
                    info!(%camera, "is switched off");
                }
                off
            }
            Err(error) => {
                let path = self.path();
                warn!(
                    path = %path.display(), %error,
                    "cannot tell which cameras are switched off, so all are; switch on those you want, or remove the file"
                );
                all.into_iter().collect()
            }
        }
    }

    /// When this returns, the next start knows of it, whatever happens to the power in between. Blocks.
    fn save(&self, off: &BTreeSet<CameraId>) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let new = self.folder.join("switched-off.new");
        let mut file = File::create(&new)?;
        file.write_all(HEADER.as_bytes())?;
        for camera in off {
            writeln!(file, "{camera}")?;
        }
        // In this order: the whole file is on the disk before it has the name, and the name before we say so.
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        File::open(&self.folder)?.sync_all()
    }
}

/// Writes down what is `switched_off`, and shows it on each camera's board: once it is kept, or with the reason why it is not.
/// `kept` is what was loaded. Ends when nobody can switch any more.
pub async fn keep(
    file: SwitchFile,
    mut kept: BTreeSet<CameraId>,
    mut switched_off: watch::Receiver<BTreeSet<CameraId>>,
    boards: BTreeMap<CameraId, watch::Sender<Switch>>,
) {
    let mut failing = false;
    let mut warnings = Pace::new(now());
    loop {
        tokio::select! {
            changed = switched_off.changed() => if changed.is_err() { return },
            () = sleep(RETRY), if failing => {}
        }
        let off = switched_off.borrow_and_update().clone();
        let why_not = match file.clone().save_elsewhere(off.clone()).await {
            Ok(()) => {
                kept.clone_from(&off);
                None
            }
            Err(error) => Some(format!("{} cannot be written ({error}); {REMEDY}", file.path().display())),
        };
        failing = why_not.is_some();
        if let Some(why) = &why_not
            && warnings.wait(WARNINGS, now()).is_zero()
        {
            warnings.count(WARNINGS, now());
            warn!("the next start will not know what was switched: {why}");
        }
        for (camera, board) in &boards {
            let is_kept = off.contains(camera) == kept.contains(camera);
            let unkept = why_not.clone().filter(|_| !is_kept);
            show(board, Switch { on: !off.contains(camera), unkept });
        }
    }
}

impl SwitchFile {
    async fn save_elsewhere(self, off: BTreeSet<CameraId>) -> io::Result<()> {
        spawn_blocking(move || self.save(&off)).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }
}

fn show(board: &watch::Sender<Switch>, new: Switch) {
    board.send_if_modified(|switch| {
        let changed = *switch != new;
        *switch = new;
        changed
    });
}

fn read(path: &Path) -> Result<BTreeSet<CameraId>, Unreadable> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        file => file?,
    };
    let mut text = String::new();
    let length = file.take(LONGEST + 1).read_to_string(&mut text)?;
    if length == 0 || length as u64 > LONGEST {
        return Err(Unreadable::WrongSize);
    }
    let is_entry = |line: &str| !line.is_empty() && !line.starts_with('#');
    let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| is_entry(line));
    lines.map(|(number, line)| CameraId::new(line).map_err(|_| Unreadable::BadLine(number))).collect()
}

#[expect(clippy::disallowed_methods, reason = "an edge: warnings are counted when they are due")]
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn id(name: &str) -> CameraId {
        CameraId::new(name).unwrap()
    }

    fn ids<const N: usize>(names: [&str; N]) -> BTreeSet<CameraId> {
        names.map(id).into()
    }

    fn file_in(folder: &TempDir) -> SwitchFile {
        SwitchFile::new(folder.path().join("state"))
    }

    #[test]
    fn what_was_switched_off_is_off_after_a_restart() {
        let folder = TempDir::new().unwrap();
        for off in [ids(["front", "gone-for-now"]), ids(["back"]), ids([])] {
            file_in(&folder).save(&off).unwrap();
            assert_eq!(file_in(&folder).load(ids(["front", "back"])), off);
        }
    }

    #[test]
    fn a_device_that_never_switched_has_everything_on() {
        let folder = TempDir::new().unwrap();
        assert_eq!(file_in(&folder).load(ids(["front"])), ids([]));
    }

    #[test]
    fn a_file_that_cannot_be_understood_counts_as_everything_off() {
        let folder = TempDir::new().unwrap();
        let file = file_in(&folder);
        file.save(&ids(["front"])).unwrap();
        let too_long = "front\n".repeat(30_000);
        for contents in [&b""[..], b"fro\0nt\n", b"{\"front\":false}", b"\xFF\xFE", too_long.as_bytes()] {
            fs::write(file.path(), contents).unwrap();
            assert_eq!(file.load(ids(["front", "back"])), ids(["front", "back"]));
        }
        fs::remove_file(file.path()).unwrap();
        fs::create_dir(file.path()).unwrap();
        assert_eq!(file.load(ids(["front"])), ids(["front"]));
    }

    #[test]
    fn a_line_may_be_written_by_hand() {
        let folder = TempDir::new().unwrap();
        let file = file_in(&folder);
        file.save(&ids([])).unwrap();
        fs::write(file.path(), "# at night\n\n  front \nback").unwrap();
        assert_eq!(file.load([]), ids(["front", "back"]));
    }

    #[test]
    fn being_killed_while_writing_leaves_the_old_file() {
        let folder = TempDir::new().unwrap();
        let file = file_in(&folder);
        file.save(&ids(["front"])).unwrap();
        // All that is ever written in pieces has another name.
        fs::write(file.folder.join("switched-off.new"), "# Camer").unwrap();
        assert_eq!(file.load(ids(["front", "back"])), ids(["front"]));
        file.save(&ids(["back"])).unwrap();
        assert_eq!(file.load(ids(["front", "back"])), ids(["back"]));
        assert_eq!(fs::read_dir(&file.folder).unwrap().count(), 1, "nothing is left lying about");
    }

    #[tokio::test(start_paused = true)]
    async fn a_board_says_off_only_once_it_is_kept_and_says_when_it_cannot_be() {
        let folder = TempDir::new().unwrap();
        // A file where the folder should be: nobody can write there, root neither.
        fs::write(folder.path().join("state"), "").unwrap();
        let (switching, switched_off) = watch::channel(ids([]));
        let boards: BTreeMap<_, _> =
            ids(["front", "back"]).into_iter().map(|id| (id, watch::Sender::default())).collect();
        let mut front = boards[&id("front")].subscribe();
        let back = boards[&id("back")].subscribe();
        let task = keep(file_in(&folder), ids([]), switched_off, boards);
        let test = async {
            switching.send_replace(ids(["front"]));
            let Switch { on, unkept } = front.wait_for(|switch| !switch.on).await.unwrap().clone();
            let why = unkept.unwrap();
            assert!(!on && why.contains("state/switched-off") && why.contains("state_dir"), "{why}");
            assert_eq!(*back.borrow(), Switch::default(), "nothing was asked of the other");

            fs::remove_file(folder.path().join("state")).unwrap();
            front.wait_for(|switch| !switch.on && switch.unkept.is_none()).await.unwrap();
            assert_eq!(file_in(&folder).load([]), ids(["front"]));

            switching.send_replace(ids([]));
            drop(switching);
        };
        tokio::join!(task, test);
        assert_eq!(file_in(&folder).load([]), ids([]), "the last word is kept, too");
    }
}
