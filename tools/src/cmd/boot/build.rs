//! `quelea boot build`: kernel, initramfs and loaders in one directory.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use images::{Built, Set};

use super::{Build, SetName};
use crate::cli::Format;
use crate::output::{self, Column, column, wide};

/// One file of a boot directory.
#[derive(serde::Serialize)]
struct Row {
    name: String,
    bytes: u64,
    sha256: String,
}

const COLUMNS: &[Column<Row>] = &[
    column("FILE", |r| r.name.clone()),
    column("SIZE", |r| output::bytes(r.bytes)),
    column("BYTES", |r| r.bytes.to_string()),
    wide("SHA256", |r| r.sha256.clone()),
];

pub(super) fn build(args: &Build, format: Format) -> Result<()> {
    check_binary(&args.quelead)?;
    let cache = match &args.cache {
        Some(dir) => dir.clone(),
        None => cache_dir()?,
    };
    let built = images::Build {
        set: match args.set {
            SetName::Qemu => Set::Qemu,
            SetName::Rack => Set::Rack,
        },
        kernel: args.kernel.clone(),
        quelead: args.quelead.clone(),
        cache,
        cmdline: args.cmdline.clone(),
        extra: Vec::new(),
        out: args.out.clone(),
    }
    .run()
    .with_context(|| format!("cannot build {}", args.out.display()))?;
    print(&built, args, format)
}

fn print(built: &Built, args: &Build, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::json(built);
    }
    let rows: Vec<Row> = built
        .files
        .iter()
        .map(|(name, bytes)| Row {
            name: name.clone(),
            bytes: *bytes,
            sha256: built.sha256.get(name).cloned().unwrap_or_default(),
        })
        .collect();
    output::list(format, &rows, COLUMNS, |r| r.name.clone())?;
    if format != Format::Name {
        println!(
            "{} set, Linux {}: {} modules ({}), all they depend on inside; quelead {}",
            built.set,
            built.release,
            built.modules,
            output::bytes(built.modules_bytes),
            output::bytes(built.quelead_bytes)
        );
        println!("kernel arguments: {}", built.cmdline);
        println!("written to {}; next: quelea boot serve {0}", args.out.display());
    }
    Ok(())
}

/// A node has no dynamic loader: say so now and not on a rack's console.
fn check_binary(path: &std::path::Path) -> Result<()> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the node binary {}", path.display()))?;
    if bytes.get(..4) != Some(b"\x7fELF") {
        bail!("{} is no program (give quelead's own file by --quelead)", path.display());
    }
    if has_interpreter(&bytes).unwrap_or(false) {
        bail!("{} is dynamically linked; a machine boots only a static one", path.display());
    }
    Ok(())
}

/// Whether an ELF64 file names a dynamic loader (PT_INTERP).
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let table = usize::try_from(u64::from_le_bytes(elf.get(0x20..0x28)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(u16_at(0x36)?), usize::from(u16_at(0x38)?));
    (0..count)
        .map(|n| {
            let at = table.checked_add(n * size)?;
            Some(elf.get(at..at.checked_add(4)?)? == [3, 0, 0, 0])
        })
        .try_fold(false, |any, one| Some(any | one?))
}

fn cache_dir() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    Ok(dir.context("no $HOME to keep packages in; give --cache DIR")?.join("quelea"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_or_foreign_binary_is_refused() {
        let dynamic = std::path::Path::new("/bin/true");
        let error = check_binary(dynamic).unwrap_err().to_string();
        assert!(error.contains("dynamically linked"), "{error}");
        // Tests are static, as nodes are.
        check_binary(&std::env::current_exe().unwrap()).unwrap();
        let error = check_binary(std::path::Path::new("/etc/passwd")).unwrap_err().to_string();
        assert!(error.contains("is no program"), "{error}");
    }
}
