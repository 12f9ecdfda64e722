//! What a process uses, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub(crate) struct Usage {
    at: Instant,
    /// Thread id → its name, its time on a CPU, and how often it gave the CPU up by itself.
    threads: BTreeMap<u32, Thread>,
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: usize,
}

struct Thread {
    name: String,
    cpu: Duration,
    sleeps: u64,
}

/// What was used between two moments.
pub(crate) struct Used {
    /// Percent of one core, by name of thread.
    pub(crate) by_thread: BTreeMap<String, f64>,
    pub(crate) wakes_per_second: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let at = Instant::now();
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(process.join("task")).context("the server is gone")? {
            let task = task?;
            // A thread may end while we look.
            if let (Ok(id), Ok(thread)) = (task.file_name().to_string_lossy().parse(), Thread::read(&task.path())) {
                threads.insert(id, thread);
            }
        }
        let rss_kib = number_after(&fs::read_to_string(process.join("status"))?, "VmRSS:").unwrap_or(0);
        let descriptors = fs::read_dir(process.join("fd"))?.count();
        Ok(Self { at, threads, rss_kib, descriptors })
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    pub(crate) fn since(&self, before: &Self) -> Used {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        let (mut by_thread, mut sleeps) = (BTreeMap::new(), 0);
        for (id, thread) in &self.threads {
            let (cpu, slept) = before.threads.get(id).map_or((Duration::ZERO, 0), |then| (then.cpu, then.sleeps));
            let used = thread.cpu.saturating_sub(cpu).as_secs_f64() * 100.0 / seconds;
            *by_thread.entry(thread.name.clone()).or_default() += used;
            sleeps += thread.sleeps - slept;
        }
        Used { by_thread, wakes_per_second: sleeps as f64 / seconds }
    }
}

impl Used {
    /// Percent of one core, all threads.
    pub(crate) fn cpu(&self) -> f64 {
        self.by_thread.values().sum()
    }
}

impl Thread {
    fn read(task: &Path) -> Result<Self> {
        let name = fs::read_to_string(task.join("comm"))?.trim().to_owned();
        // Nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst); utime and stime of `stat` only count in 10 ms.
        let nanoseconds = fs::read_to_string(task.join("schedstat"))?.split(' ').next().and_then(|n| n.parse().ok());
        let cpu = Duration::from_nanos(nanoseconds.context("schedstat")?);
        let sleeps = number_after(&fs::read_to_string(task.join("status"))?, "voluntary_ctxt_switches:").unwrap_or(0);
        Ok(Self { name, cpu, sleeps })
    }
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line[key.len()..].split_whitespace().next()?.parse().ok()
}
