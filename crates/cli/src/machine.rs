//! The machine: its instructions, threads and memory.

use safelight_kernels::{Level, detect};

use crate::error::Failure;

/// What is assumed where the system does not say how much memory there is.
const MEMORY_BYTES_UNKNOWN: u64 = 64_000_000_000;

/// Makes the pool of threads that all arithmetic uses, and sees that `SAFELIGHT_CPU` can be had.
pub(crate) fn prepare(threads: Option<u16>) -> Result<Level, Failure> {
    let level = detect().map_err(|error| Failure::Usage(error.to_string()))?;
    if let Some(threads) = threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global()
            .map_err(|error| Failure::Machine(format!("can't start {threads} threads: {error}")))?;
    }
    Ok(level)
}

/// How much memory may be used, and a few words on whose it is.
///
/// On Linux what is available now, swap included, but no more than the container may have, or than is left of the
/// process's own limit (`ulimit -v`); elsewhere a guess.
pub(crate) fn memory_bytes() -> (u64, &'static str) {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let Some(available) = read("/proc/meminfo").and_then(|text| available(&text)) else {
        return (MEMORY_BYTES_UNKNOWN, "taken to be available are");
    };
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limit = limits
        .iter()
        .find_map(|path| read(path)?.trim().parse::<u64>().ok())
        .unwrap_or(u64::MAX);
    let own = read("/proc/self/limits")
        .zip(read("/proc/self/status"))
        .and_then(|(limits, status)| own_limit(&limits, &status))
        .unwrap_or(u64::MAX);
    (available.min(limit).min(own), "available are")
}

/// The most memory that this process has had at once, where Linux tells.
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// What may be used of the process's limit of address space, from `/proc/self/limits` and `/proc/self/status`, in bytes;
/// `None` if it has no limit.
///
/// Half of what is left: allocators reserve more than they fill, some tens of megabytes for each thread, and what was
/// given back in pieces does not serve for a large tensor.
fn own_limit(limits: &str, status: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let used = kilobytes(status, "VmSize")?;
    Some(limit.saturating_sub(used) / 2)
}

/// `MemAvailable` and `SwapFree` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let swap = kilobytes(meminfo, "SwapFree").unwrap_or(0);
    Some(kilobytes(meminfo, "MemAvailable")?.saturating_add(swap))
}

/// The field `name: N kB` of a file in `/proc`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       100 kB\nMemAvailable:    40 kB\nSwapFree:         2 kB\n";
        assert_eq!(available(text), Some(42 * 1024));
        assert_eq!(available("MemTotal: 3 kB"), None);
    }

    #[test]
    fn the_processs_own_limit_is_read() {
        let status = "Name:\tsafelight\nVmSize:\t      10 kB\n";
        let limits = |value: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max address space         {value:20} unlimited            bytes     \n"
            )
        };
        assert_eq!(own_limit(&limits("20480"), status), Some(5_120));
        assert_eq!(own_limit(&limits("1024"), status), Some(0));
        assert_eq!(own_limit(&limits("unlimited"), status), None);
    }
}
