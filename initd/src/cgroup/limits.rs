//! Limits, in the words of the files that set them.

use std::path::Path;

use rustix::fs::{Dev, FileType};
use rustix::io::Errno;

use super::write;
use crate::pod::{IoLimit, Resources};

/// Writes the limits; returns the files that could not be written, with their errno.
#[must_use]
pub fn limit(dir: &Path, limits: &Resources) -> Vec<(String, i32)> {
    let mut failed = Vec::new();
    let mut set = |file: String, text: Result<String, Errno>| {
        if let Err(e) = text.and_then(|t| write(&dir.join(&file), &t)) {
            failed.push((file, e.raw_os_error()));
        }
    };
    for (file, text) in settings(limits) {
        set(file, Ok(text));
    }
    for io in &limits.io {
        set("io.max".to_owned(), disk_of(&io.device).map(|disk| io_line(disk, io)));
    }
    failed
}

/// Period of `cpu.max`.
const CPU_PERIOD_US: u64 = 100_000;

fn settings(limits: &Resources) -> Vec<(String, String)> {
    let mut list = Vec::new();
    let mut add =
        |file: &str, text: Option<String>| list.extend(text.map(|t| (file.to_owned(), t)));
    add("cpu.weight", limits.cpu_weight.map(|w| w.to_string()));
    let quota = |milli: u32| (u64::from(milli) * CPU_PERIOD_US / 1000).max(1000);
    add("cpu.max", limits.cpu_max_milli.map(|m| format!("{} {CPU_PERIOD_US}", quota(m))));
    add("cpuset.cpus", limits.cpus.clone());
    add("cpuset.mems", limits.memory_nodes.clone());
    add("memory.high", limits.memory_high_bytes.map(|b| b.to_string()));
    add("memory.max", limits.memory_max_bytes.map(|b| b.to_string()));
    add("memory.oom.group", limits.memory_max_bytes.map(|_| "1".to_owned()));
    add("memory.swap.max", limits.swap_max_bytes.map(|b| b.to_string()));
    for pages in &limits.huge_pages {
        let file = format!("hugetlb.{}.max", page_name(pages.page_bytes));
        add(&file, Some(pages.max_bytes.to_string()));
    }
    add("pids.max", limits.pids_max.map(|p| p.to_string()));
    add("io.weight", limits.io_weight.map(|w| format!("default {w}")));
    list
}

/// As the kernel writes it into file names: 64KB, 2MB, 1GB.
fn page_name(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

fn io_line((major, minor): (u32, u32), io: &IoLimit) -> String {
    let mut line = format!("{major}:{minor}");
    for (key, value) in io.values() {
        if let Some(value) = value {
            line += &format!(" {key}={value}");
        }
    }
    line
}

/// Number of the whole disk that a path is or lies on. ENOTBLK: it lies on none.
fn disk_of(path: &Path) -> Result<(u32, u32), Errno> {
    let stat = rustix::fs::stat(path)?;
    let device: Dev = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => stat.st_rdev,
        _ => stat.st_dev,
    };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // Virtual file systems have major 0 (admin-guide/devices.txt).
    if major == 0 {
        return Err(Errno::NOTBLK);
    }
    // The directory of a partition lies in that of its disk.
    let sys = format!("/sys/dev/block/{major}:{minor}");
    if !Path::new(&sys).join("partition").exists() {
        return Ok((major, minor));
    }
    let text = std::fs::read_to_string(format!("{sys}/../dev")).map_err(|_| Errno::NODEV)?;
    let (major, minor) = text.trim().split_once(':').ok_or(Errno::NODEV)?;
    major.parse().ok().zip(minor.parse().ok()).ok_or(Errno::NODEV)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::HugePages;

    #[test]
    fn limits_in_the_kernels_words() {
        let limits = Resources {
            cpu_weight: Some(50),
            cpu_max_milli: Some(1500),
            cpus: Some("0-3,8".into()),
            memory_nodes: Some("0".into()),
            memory_max_bytes: Some(1 << 20),
            memory_high_bytes: Some(1 << 19),
            swap_max_bytes: Some(0),
            huge_pages: vec![
                HugePages { page_bytes: 2 << 20, max_bytes: 4 << 20 },
                HugePages { page_bytes: 1 << 30, max_bytes: 0 },
                HugePages { page_bytes: 64 << 10, max_bytes: 0 },
            ],
            pids_max: Some(7),
            io_weight: Some(200),
            io: vec![],
        };
        let want = [
            ("cpu.weight", "50"),
            ("cpu.max", "150000 100000"),
            ("cpuset.cpus", "0-3,8"),
            ("cpuset.mems", "0"),
            ("memory.high", "524288"),
            ("memory.max", "1048576"),
            ("memory.oom.group", "1"),
            ("memory.swap.max", "0"),
            ("hugetlb.2MB.max", "4194304"),
            ("hugetlb.1GB.max", "0"),
            ("hugetlb.64KB.max", "0"),
            ("pids.max", "7"),
            ("io.weight", "default 200"),
        ];
        let got = settings(&limits);
        assert!(got.iter().map(|(f, t)| (f.as_str(), t.as_str())).eq(want), "{got:?}");
        let io = IoLimit {
            device: "/x".into(),
            read_bytes_per_s: Some(1 << 20),
            write_bytes_per_s: None,
            read_ops_per_s: None,
            write_ops_per_s: Some(9),
        };
        assert_eq!(io_line((254, 16), &io), "254:16 rbps=1048576 wiops=9");
    }

    #[test]
    fn a_path_on_no_disk_is_refused_and_a_limit_that_is_not_there_named() {
        assert_eq!(disk_of(Path::new("/proc")), Err(Errno::NOTBLK));
        assert_eq!(disk_of(Path::new("/no/such/path")), Err(Errno::NOENT));
        let limits = Resources {
            pids_max: Some(1),
            io: vec![IoLimit {
                device: "/proc".into(),
                read_bytes_per_s: Some(1),
                write_bytes_per_s: None,
                read_ops_per_s: None,
                write_ops_per_s: None,
            }],
            ..Resources::default()
        };
        let failed = limit(Path::new("/no/such/cgroup"), &limits);
        assert_eq!(failed, [("pids.max".into(), libc::ENOENT), ("io.max".into(), libc::ENOTBLK)]);
    }
}
