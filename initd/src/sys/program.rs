//! The memory of this program.

use std::ffi::c_void;

/// Lets go of this process's own pages of read-only file mappings, its program, and of free memory. What runs again is
/// mapped again, from the page cache. Returns how many bytes of address space that was.
///
/// A mapping with private pages (`Anonymous` in smaps, such as relocations that were made read-only) is left alone.
pub(crate) fn let_program_go() -> usize {
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return 0 };
    let mut all = 0;
    for (start, end) in clean_mappings(&smaps) {
        // SAFETY: the mapping is of a file and has never been written, so its bytes come back as they were; a program's
        // file cannot be written while it runs (ETXTBSY), and this one is in memory only.
        if unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) } == 0 {
            all += end - start;
        }
    }
    drop(smaps);
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number; what is in use stays.
    unsafe {
        libc::malloc_trim(0);
    }
    all
}

/// Address ranges of read-only mappings of files without a private page, from `/proc/self/smaps` (proc(5)).
fn clean_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16).ok();
            // perms offset dev inode path
            let inode = words.nth(2).unwrap_or("0");
            let is_file = inode != "0" && second.starts_with('r') && !second.contains('w');
            current = number(start).zip(number(end)).filter(|_| is_file);
        } else if first == "Anonymous:" && second == "0" {
            found.extend(current.take());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_let_go_and_goes_on() {
        let rss = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("status");
            let line = status.lines().find(|l| l.starts_with("RssFile")).expect("RssFile");
            line.split_ascii_whitespace()
                .nth(1)
                .and_then(|kib| kib.parse::<u64>().ok())
                .expect("KiB")
        };
        let before = rss();
        assert!(let_program_go() > 0);
        let after = rss();
        assert!(after < before, "{before} -> {after} KiB");
        // Everything is still there.
        assert_eq!(clean_mappings(""), []);
    }

    #[test]
    fn what_has_been_written_is_left_alone() {
        let smaps = "\
00400000-00500000 r-xp 00000000 00:02 17 /usr/bin/quelead
Rss:                 512 kB
Anonymous:             0 kB
00500000-00510000 r--p 00100000 00:02 17 /usr/bin/quelead
Anonymous:             4 kB
00510000-00520000 rw-p 00110000 00:02 17 /usr/bin/quelead
Anonymous:             0 kB
00520000-00530000 r--p 00000000 00:00 0
Anonymous:             0 kB
00530000-00531000 r--p 00000000 00:02 18 /usr/lib/x y
Anonymous:             0 kB
";
        assert_eq!(clean_mappings(smaps), [(0x0040_0000, 0x0050_0000), (0x0053_0000, 0x0053_1000)]);
    }
}
