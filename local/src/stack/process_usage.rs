//! Memory and processor time of this process, read from `/proc`.

use serde::Serialize;

/// Memory and processor time of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ProcessUsage {
    /// Resident memory, in bytes.
    memory_bytes: u64,
    /// User and kernel time of all threads since the start.
    cpu_ms: u64,
}

impl ProcessUsage {
    /// The current values. `None` on systems other than Linux.
    pub(super) fn now() -> Option<Self> {
        Self::read(
            &std::fs::read_to_string("/proc/self/status").ok()?,
            &std::fs::read_to_string("/proc/self/stat").ok()?,
        )
    }

    fn read(status: &str, stat: &str) -> Option<Self> {
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = resident.split_whitespace().next()?.parse().ok()?;
        // The second field, the name in parentheses, may contain spaces and parentheses. After it, utime and
        // stime are the 12th and 13th field, in hundredths of a second.
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
    fn memory_and_processor_time_are_read_from_proc() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 900 0 2 0 150 25 0 0 20 0 4 0 100 1 2";
        let usage = ProcessUsage::read("Name:\ta\nVmRSS:\t    2048 kB\n", stat);
        assert_eq!(usage, Some(ProcessUsage { memory_bytes: 2 << 20, cpu_ms: 1_750 }));
        assert_eq!(ProcessUsage::read("", stat), None);
    }
}
