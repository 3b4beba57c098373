//! What takes memory, pages, disk and processors, for tests of limits.
#![allow(unsafe_code)] // pages of a size, and reads past the page cache, have no wrapper here

use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

/// Takes so many MiB and keeps them.
pub(crate) fn hold(mib: &str) -> i32 {
    let mut kept = Vec::new();
    for _ in 0..mib.parse().unwrap_or(0) {
        kept.push(vec![1u8; 1 << 20]);
    }
    println!("holds {}", kept.len());
    std::thread::sleep(Duration::from_secs(600));
    drop(kept);
    0
}

/// Writes to one 2 MiB page after the other, and says so after each. A page too many is a SIGBUS.
pub(crate) fn huge_pages(count: &str) -> i32 {
    const PAGE: usize = 2 << 20;
    for n in 1..=count.parse().unwrap_or(0) {
        let flags =
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_NORESERVE;
        // SAFETY: a mapping of its own; the page is written to only where there is one.
        let page = unsafe {
            libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if page == libc::MAP_FAILED {
            println!("no page {n}: {}", std::io::Error::last_os_error());
            return 1;
        }
        // SAFETY: mapped above, for writing.
        unsafe { page.cast::<u8>().write_volatile(1) };
        println!("page {n}");
        let _ = std::io::stdout().flush();
    }
    0
}

/// Reads or writes so many KiB of a device past the page cache, in pieces of 64; says how long that took.
pub(crate) fn direct(how: &str, path: &str, kib: &str) -> i32 {
    const PIECE: usize = 64 << 10;
    let write = how == "write";
    let mut options = std::fs::OpenOptions::new();
    let opened = options.read(!write).write(write).custom_flags(libc::O_DIRECT).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) => {
            println!("{path}: {e}");
            return 1;
        }
    };
    let mut bytes = vec![0x5au8; PIECE + 4096];
    // The kernel wants whole pages at page boundaries.
    let skip = bytes.as_ptr().align_offset(4096);
    let piece = &mut bytes[skip..skip + PIECE];
    let begun = Instant::now();
    for _ in 0..kib.parse::<usize>().unwrap_or(0) / 64 {
        let done = if write { file.write_all(piece) } else { file.read_exact(piece) };
        if let Err(e) = done {
            println!("{path} at {:?}: {e}", file.stream_position());
            return 1;
        }
    }
    println!("{how} {kib} KiB in {} ms", begun.elapsed().as_millis());
    0
}

/// Uses a processor for so many milliseconds of time; says how much of them it got.
pub(crate) fn spin(ms: &str) -> i32 {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(ms.parse().unwrap_or(0)) {
        std::hint::black_box(begun);
    }
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    println!("used {} ms", used.tv_sec * 1000 + used.tv_nsec / 1_000_000);
    0
}

/// Makes user namespaces until it is killed.
pub(crate) fn user_namespaces() -> i32 {
    println!("begins");
    let _ = std::io::stdout().flush();
    let Some(map) = initd::userns::IdMap::slot(1) else { return 2 };
    while initd::userns::create(map).is_ok() {}
    1
}

/// Makes a namespace by this flag and ends: 0, or the errno.
pub(crate) fn unshare(flag: &str) -> i32 {
    // SAFETY: this process has one thread and does nothing more.
    match unsafe { libc::unshare(flag.parse().unwrap_or(0)) } {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(255),
    }
}
