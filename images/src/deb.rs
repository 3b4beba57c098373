//! Debian packages as a source: taken by name with apt, unpacked with dpkg-deb into a cache, never installed.

use crate::{Error, Result};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The unpacked package `name`: from the cache when it holds it, otherwise by apt.
///
/// # Errors
/// [`Error::Tool`] when apt or dpkg-deb fail, [`Error::Io`].
pub fn unpacked(name: &str, cache: &Path) -> Result<PathBuf> {
    let place = cache.join(name);
    if place.is_dir() {
        return Ok(place);
    }
    std::fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
    // A directory of our own: what apt leaves there is what it downloaded.
    let staging = cache.join(format!(".{name}.{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&staging);
    std::fs::create_dir_all(&staging).map_err(Error::io("create", &staging))?;
    let made = download(name, &staging).and_then(|root| match std::fs::rename(&root, &place) {
        // Someone else was faster: theirs is as good.
        Err(_) if place.is_dir() => Ok(place),
        other => other.map(|()| place).map_err(Error::io("rename", &root)),
    });
    let _ = std::fs::remove_dir_all(&staging);
    made
}

fn download(name: &str, staging: &Path) -> Result<PathBuf> {
    run(Command::new("apt-get").args(["-q", "download", name]).current_dir(staging))?;
    let deb = std::fs::read_dir(staging)
        .map_err(Error::io("list", staging))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .ok_or_else(|| Error::BadKernel { path: staging.into(), what: "apt left no .deb" })?;
    let root = staging.join("root");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
    Ok(root)
}

/// A package file, unpacked into the cache anew.
///
/// # Errors
/// [`Error::Tool`] when dpkg-deb fails, [`Error::Io`].
pub fn unpack(deb: &Path, cache: &Path) -> Result<PathBuf> {
    let name = deb.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // No flavour's name starts so: what an operator brought is never taken for Debian's newest.
    let root = cache.join(format!("file-{name}"));
    match std::fs::remove_dir_all(&root) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &root)(e));
        }
        _ => {}
    }
    std::fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&root))?;
    Ok(root)
}

/// Runs a program and returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let fail = |status: String, stderr: &[u8]| Error::Tool {
        command: shown.clone(),
        status,
        stderr: String::from_utf8_lossy(stderr)
            .lines()
            .rev()
            .take(3)
            .collect::<Vec<_>>()
            .join("; "),
    };
    let out = command
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| fail(format!("did not start: {e}"), &[]))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(fail(out.status.to_string(), &out.stderr))
    }
}
