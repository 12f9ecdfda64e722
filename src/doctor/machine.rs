//! What the kernel and the board say.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::facts::{BoardFacts, NodeFacts, limited};
use super::service;

pub(super) fn kernel() -> String {
    read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "of an unknown version".into())
}

/// "Raspberry Pi 4 Model B Rev 1.4"; `None` on machines without a device tree.
pub(super) fn board() -> Option<String> {
    read("/proc/device-tree/model")
}

/// The device files of cameras, encoders and their memory.
pub(super) fn nodes() -> Vec<NodeFacts> {
    let groups = service::group_names();
    let is_ours = |path: &PathBuf| {
        let path = path.to_string_lossy();
        ["/dev/video", "/dev/media", "/dev/dma_heap/"].iter().any(|start| path.starts_with(start))
    };
    let entries = ["/dev", "/dev/dma_heap"].into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_ours).collect();
    paths.sort();
    let node = |path: PathBuf| {
        let metadata = fs::metadata(&path).ok().filter(|metadata| !metadata.is_dir())?;
        let (owner, group, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o777);
        let group_name = groups.get(&group).cloned().unwrap_or_else(|| group.to_string());
        Some(NodeFacts { path, owner, group, group_name, mode })
    };
    paths.into_iter().filter_map(node).collect()
}

pub(super) async fn is_clock_synchronised() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    match run("timedatectl", &["show", "-p", "NTPSynchronized", "--value"]).await?.trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

pub(super) async fn board_facts(state_dir: Option<PathBuf>) -> BoardFacts {
    let memory = read("/proc/meminfo").unwrap_or_default();
    let mib = |name| mib_of(&memory, name);
    let cma_mib = mib("CmaTotal").zip(mib("CmaFree")).filter(|(total, _)| *total > 0);
    BoardFacts {
        memory_available_mib: mib("MemAvailable"),
        cma_mib,
        throttled: throttled().await,
        state: room(state_dir).await,
    }
}

/// `MemAvailable:  1024 kB` in `/proc/meminfo`, in MiB.
fn mib_of(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

async fn throttled() -> Option<u32> {
    let told = match read("/sys/devices/platform/soc/soc:firmware/get_throttled") {
        Some(told) => told,
        None => run("vcgencmd", &["get_throttled"]).await?,
    };
    bits(&told)
}

/// `50005` from the kernel, `throttled=0x50005` from the firmware's tool; both in base 16.
fn bits(told: &str) -> Option<u32> {
    let digits = told.trim().trim_start_matches("throttled=").trim_start_matches("0x");
    u32::from_str_radix(digits, 16).ok()
}

/// A folder and the room there in MiB.
async fn room(folder: Option<PathBuf>) -> Option<(PathBuf, u64)> {
    let folder = folder?;
    let table = run("df", &["-Pk", folder.to_str()?]).await?;
    Some((folder, room_mib(&table)?))
}

/// Of `df -Pk`: the fourth column of the second line.
fn room_mib(table: &str) -> Option<u64> {
    Some(table.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok()? / 1024)
}

/// What a program prints; `None`: it is not there, does not like to, or takes too long.
async fn run(program: &'static str, arguments: &[&str]) -> Option<String> {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    limited(PATIENCE, move || output(program, &arguments)).await?
}

/// The same, for threads that may wait.
pub(super) fn output(program: &str, arguments: &[String]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

const PATIENCE: Duration = Duration::from_secs(3);

/// Without white space and zero bytes around it; `None`: not there, or empty.
fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_whole_mebibytes() {
        let meminfo = "MemTotal:        3884396 kB\nCmaTotal:         524288 kB\nCmaFree:            2048 kB\n";
        assert_eq!(mib_of(meminfo, "CmaTotal"), Some(512));
        assert_eq!(mib_of(meminfo, "CmaFree"), Some(2));
        assert_eq!(mib_of(meminfo, "Cma"), None);
    }

    #[test]
    fn the_firmwares_bits_are_read_as_kernel_and_tool_print_them() {
        assert_eq!(bits("50005\n"), Some(0x50005));
        assert_eq!(bits("throttled=0x50005\n"), Some(0x50005));
        assert_eq!(bits("throttled=0x0"), Some(0));
        assert_eq!(bits("VCHI initialization failed"), None);
    }

    #[test]
    fn the_room_of_a_folder_is_what_df_calls_available() {
        let table = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/root 30000000 1000 204800 1% /\n";
        assert_eq!(room_mib(table), Some(200));
        assert_eq!(room_mib("df: /nowhere: No such file"), None);
    }
}
