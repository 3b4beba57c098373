//! Mounting one layer: EROFS index and tar, from files where the kernel can, through loop devices where it cannot.

use std::fs::File;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::Backing;
use super::fs::Context;
use crate::error::{Error, Result};
use crate::store::LayerFiles;
use crate::sys::attach_loop;

/// Mounts a layer at `at`, read-only, and says how.
pub(super) fn mount(files: &LayerFiles, at: &Path) -> Result<Backing> {
    if direct_io_aligns(&files.tar) {
        match mount_files(files, at, true) {
            Ok(()) => return Ok(Backing::FileDirect),
            // Kernels before 6.12 do not know the option.
            Err(Error::Mount { errno: Errno::INVAL, .. }) => {}
            Err(Error::Mount { errno: Errno::NOTBLK, .. }) => return mount_loop(files, at),
            Err(e) => return Err(e),
        }
    }
    match mount_files(files, at, false) {
        Ok(()) => Ok(Backing::File),
        // Files on tmpfs cannot back EROFS (no read_folio); kernels before 6.12 cannot do it from any file.
        Err(Error::Mount { errno: Errno::NOTBLK, .. }) => mount_loop(files, at),
        Err(e) => Err(e),
    }
}

/// Whether direct reads of 512-byte granularity work on this file. With a coarser one EROFS mounts and then every read
/// is an EIO, so this is asked first.
fn direct_io_aligns(path: &Path) -> bool {
    let mask = StatxFlags::DIOALIGN;
    statx(CWD, path, AtFlags::empty(), mask).is_ok_and(|s| {
        StatxFlags::from_bits_retain(s.stx_mask).contains(mask)
            && (1..=512).contains(&s.stx_dio_offset_align)
    })
}

fn mount_files(files: &LayerFiles, at: &Path, direct: bool) -> Result<()> {
    let mut fs = Context::open("erofs", at)?;
    fs.path("source", &files.index)?;
    fs.path("device", &files.tar)?;
    if direct {
        fs.flag("directio")?;
    }
    finish(fs, at)
}

fn mount_loop(files: &LayerFiles, at: &Path) -> Result<Backing> {
    let attach = |path: &Path| {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        attach_loop(&file).map_err(|e| Error::io("attach loop device", path, e))
    };
    // The open devices keep themselves alive until the mount does.
    let (_index, index) = attach(&files.index)?;
    let (_tar, tar) = attach(&files.tar)?;
    let mut fs = Context::open("erofs", at)?;
    fs.path("source", &index)?;
    fs.path("device", &tar)?;
    finish(fs, at)?;
    Ok(Backing::Loop)
}

fn finish(fs: Context, at: &Path) -> Result<()> {
    fs.flag("ro")?;
    fs.create().map_err(|e| fs.error("create erofs", e))?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    fs.attach(flags, at)
}
