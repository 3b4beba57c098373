//! Another kernel, loaded beside this one: what was staged is checked and given to `kexec_file_load(2)`.
//!
//! A process of its own does it: the kernel reads and hashes tens of megabytes, and PID 1 must not wait for that.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use super::{monotonic_ms, sys};

/// The name the loading process goes by.
pub(super) const LOADER: &str = "quelea-kexec";
/// Longest command line an x86 kernel takes, its end included (`COMMAND_LINE_SIZE`).
const CMDLINE_BYTES_MAX: usize = 2047;
/// Longest a load may take; the machine goes on with the kernel it has.
pub(super) const LOAD_MS_MAX: u64 = 120_000;
/// Longest reason taken from the loader.
const REASON_BYTES_MAX: u64 = 512;

/// What is to be started.
#[derive(Debug)]
struct Staged {
    kernel: File,
    initrd: File,
    cmdline: String,
}

/// A load that is under way.
#[derive(Debug)]
pub(super) struct Loading {
    pub(super) pid: u32,
    pub(super) until_ms: u64,
    says: ChildStdout,
}

impl Loading {
    /// Starts the loader.
    pub(super) fn start(dir: &Path) -> Result<Self, String> {
        let mut child = Command::new("/proc/self/exe")
            .arg0(LOADER)
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("start {LOADER}: {e}"))?;
        let says = child.stdout.take().ok_or("no pipe")?;
        Ok(Self { pid: child.id(), until_ms: monotonic_ms() + LOAD_MS_MAX, says })
    }

    /// What has come of it, once its process has been reaped with this status.
    pub(super) fn result(self, status: i32) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut reason = String::new();
        // The writer is gone, so this ends.
        let _ = self.says.take(REASON_BYTES_MAX).read_to_string(&mut reason);
        Err(if reason.is_empty() { format!("{LOADER} fell: {status:#x}") } else { reason })
    }
}

/// The loader's role: 0 when the kernel is loaded, else 1 and a line that says why not.
pub(super) fn main(dir: Option<&Path>) -> i32 {
    let loaded = dir.ok_or_else(|| "no directory".to_owned()).and_then(load);
    match loaded {
        Ok(()) => 0,
        Err(why) => {
            print!("{why}");
            1
        }
    }
}

fn load(dir: &Path) -> Result<(), String> {
    let staged = check(dir)?;
    sys::kexec_file_load(&staged.kernel, &staged.initrd, &staged.cmdline).map_err(|e| {
        let hint = match e {
            rustix::io::Errno::NOEXEC => " (no kernel for this machine)",
            rustix::io::Errno::PERM => " (forbidden by lockdown or kexec_load_disabled)",
            rustix::io::Errno::NOSYS => " (this kernel has no kexec)",
            _ => "",
        };
        format!("kexec_file_load {}: {e}{hint}", dir.display())
    })
}

fn check(dir: &Path) -> Result<Staged, String> {
    let open = |name: &str| -> Result<(File, PathBuf), String> {
        let path = dir.join(name);
        let say = |e: std::io::Error| format!("open {}: {e}", path.display());
        let file = File::open(&path).map_err(say)?;
        let meta = file.metadata().map_err(say)?;
        if !meta.is_file() || meta.len() == 0 {
            return Err(format!("{} is empty or no file", path.display()));
        }
        Ok((file, path))
    };
    let (kernel, _) = open("kernel")?;
    let (initrd, _) = open("initrd")?;
    let (file, path) = open("cmdline")?;
    let mut cmdline = String::new();
    let limit = CMDLINE_BYTES_MAX as u64 + 2;
    file.take(limit)
        .read_to_string(&mut cmdline)
        .map_err(|e| format!("read {}: {e}", path.display()))?;
    let line = cmdline.trim();
    if line.len() > CMDLINE_BYTES_MAX {
        return Err(format!("{} is longer than {CMDLINE_BYTES_MAX} bytes", path.display()));
    }
    if line.chars().any(char::is_control) {
        return Err(format!("{} has more than one line", path.display()));
    }
    Ok(Staged { kernel, initrd, cmdline: line.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_staged_is_whole_or_refused() {
        let dir = std::env::temp_dir().join(format!("quelea-kexec-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("dir");
        let put = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("write");
        let why = || check(&dir).map(|_| ()).expect_err("refused");
        assert!(why().contains("/kernel: No such file"), "{}", why());
        put("kernel", "MZ");
        put("initrd", "");
        assert!(why().ends_with("/initrd is empty or no file"), "{}", why());
        put("initrd", "0707");
        put("cmdline", &"a".repeat(CMDLINE_BYTES_MAX + 1));
        assert!(why().ends_with("longer than 2047 bytes"), "{}", why());
        put("cmdline", "quiet\npanic=0");
        assert!(why().ends_with("more than one line"), "{}", why());
        put("cmdline", "quiet panic=10\n");
        assert_eq!(check(&dir).expect("whole").cmdline, "quiet panic=10");
        std::fs::remove_dir_all(&dir).expect("remove");
    }
}
