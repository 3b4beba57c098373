//! What a kernel left behind when it died: taken out of the firmware's store, kept with the state.
//!
//! The store is small and some firmware dies of a full one, so records go out of it whether there is a disk or not.

use super::console::say;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Where the kernel shows them (Documentation/admin-guide/pstore-blk.rst).
const STORE: &str = "/sys/fs/pstore";
/// Most records taken in one boot.
const RECORDS_MAX: usize = 64;
/// Most of one record.
const RECORD_BYTES_MAX: u64 = 256 << 10;
/// Boots whose records are kept.
const BOOTS_MAX: usize = 16;
/// All that is kept.
const KEPT_BYTES_MAX: u64 = 8 << 20;

/// Moves what there is to `state/pstore/<now_s>/`, and says so.
pub(super) fn harvest(state: &Path, now_s: u64) {
    let kept = state.join("pstore");
    match take(Path::new(STORE), &kept, now_s) {
        Ok(0) => {}
        Ok(n) => say!("pstore: {n} records of a kernel that died, in {}/{now_s}", kept.display()),
        Err(e) => say!("pstore: {e}"),
    }
}

fn take(store: &Path, kept: &Path, now_s: u64) -> io::Result<usize> {
    let mut names: Vec<PathBuf> = match fs::read_dir(store) {
        Ok(entries) => entries.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect(),
        // No such file system.
        Err(_) => return Ok(0),
    };
    if names.is_empty() {
        return Ok(0);
    }
    names.sort();
    names.truncate(RECORDS_MAX);
    let into = kept.join(now_s.to_string());
    fs::create_dir_all(&into)?;
    let mut taken = 0;
    for path in &names {
        let Some(name) = path.file_name() else { continue };
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
        let file = fs::File::create(into.join(name))?;
        io::Write::write_all(&mut &file, &bytes)?;
        // Kept first, then let go.
        file.sync_all()?;
        fs::remove_file(path)?;
        taken += 1;
    }
    forget(kept)?;
    Ok(taken)
}

/// Drops the oldest boots until what is kept fits. The last one stays.
fn forget(kept: &Path) -> io::Result<()> {
    let mut boots: Vec<(u64, PathBuf, u64)> = fs::read_dir(kept)?
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path(), bytes(&e.path()))))
        .collect();
    boots.sort();
    let mut all: u64 = boots.iter().map(|b| b.2).sum();
    let mut count = boots.len();
    for (_, path, bytes) in boots {
        if count <= 1 || count <= BOOTS_MAX && all <= KEPT_BYTES_MAX {
            break;
        }
        fs::remove_dir_all(path)?;
        all -= bytes;
        count -= 1;
    }
    Ok(())
}

fn bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_kept_then_let_go_and_the_oldest_forgotten() {
        let dir = std::env::temp_dir().join(format!("quelea-pstore-{}", std::process::id()));
        let (store, kept) = (dir.join("store"), dir.join("kept"));
        fs::create_dir_all(&store).expect("store");
        assert_eq!(take(&store, &kept, 1).expect("nothing"), 0);
        assert!(!kept.exists());
        assert_eq!(take(&dir.join("none"), &kept, 1).expect("no file system"), 0);
        for boot in 1..=BOOTS_MAX as u64 + 3 {
            fs::write(store.join("dmesg-efi-1"), format!("Oops {boot}")).expect("record");
            fs::write(store.join("dmesg-efi-2"), "x").expect("record");
            assert_eq!(take(&store, &kept, boot).expect("take"), 2);
        }
        assert_eq!(fs::read_dir(&store).expect("store").count(), 0);
        assert_eq!(fs::read_dir(&kept).expect("kept").count(), BOOTS_MAX);
        assert!(!kept.join("3").exists() && kept.join("4").exists());
        assert_eq!(fs::read(kept.join("19/dmesg-efi-1")).expect("record"), b"Oops 19");
        // A size that does not fit.
        fs::write(kept.join("18/big"), vec![0; KEPT_BYTES_MAX as usize]).expect("big");
        fs::write(store.join("dmesg-efi-1"), "last").expect("record");
        take(&store, &kept, 20).expect("take");
        let mut left: Vec<_> =
            fs::read_dir(&kept).expect("kept").flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["19", "20"]);
        fs::remove_dir_all(&dir).expect("remove");
    }
}
