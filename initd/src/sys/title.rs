//! What others see of this process's command line.

/// Where this process's arguments are, as others see them in `/proc/PID/cmdline`.
pub(crate) struct Title {
    start: *mut u8,
    bytes: usize,
}

impl Title {
    /// Asks the kernel (proc_pid_stat(5): fields 48 and 49).
    pub(crate) fn find() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is in brackets and may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(45);
        let start: usize = fields.next()?.parse().ok()?;
        let end: usize = fields.next()?.parse().ok()?;
        Some(Self { start: start as *mut u8, bytes: end.checked_sub(start).filter(|n| *n > 0)? })
    }

    /// Puts these words there, cut to the room that there is.
    pub(crate) fn set<const N: usize>(&self, words: [&str; N]) {
        // SAFETY: the kernel put this process's argument strings there when it was executed. They are ours to write, and
        // nothing in this process refers to them: it has one thread, and does not ask for its arguments any more.
        let room = unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) };
        let text = words.iter().flat_map(|w| w.bytes().chain([0])).chain(std::iter::repeat(0));
        room.iter_mut().zip(text).for_each(|(to, byte)| *to = byte);
        if let Some(last) = room.last_mut() {
            *last = 0;
        }
    }
}
