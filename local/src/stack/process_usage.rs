//! What this process takes of the machine, as Linux tells it.

use serde::Serialize;

/// Memory and processor time of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    /// Resident, in bytes.
    memory_bytes: u64,
    /// Of all threads, in user and kernel, since the start.
    cpu_ms: u64,
}

impl Usage {
    /// As it is now; `None` on other systems.
    pub(super) fn now() -> Option<Self> {
        Self::read(
            &std::fs::read_to_string("/proc/self/status").ok()?,
            &std::fs::read_to_string("/proc/self/stat").ok()?,
        )
    }

    fn read(status: &str, stat: &str) -> Option<Self> {
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = resident.split_whitespace().next()?.parse().ok()?;
        // The name, in parentheses, may hold anything. Of what follows, utime and stime are the 12th and
        // 13th, in hundredths of a second.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks: Vec<u64> =
            fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { memory_bytes: kilobytes * 1_024, cpu_ms: ticks.iter().sum::<u64>() * 10 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_processor_time_are_read_as_linux_writes_them() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 900 0 2 0 150 25 0 0 20 0 4 0 100 1 2";
        let usage = Usage::read("Name:\ta\nVmRSS:\t    2048 kB\n", stat);
        assert_eq!(usage, Some(Usage { memory_bytes: 2 << 20, cpu_ms: 1_750 }));
        assert_eq!(Usage::read("", stat), None);
    }
}
