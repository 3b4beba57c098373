//! Which kernel modules go into an image: everything a set names, all it depends on, and the index PID 1 reads.
//!
//! The index is what depmod(8) writes (`modules.dep`, `modules.alias`, `modules.softdep`, `modules.builtin`),
//! made here from `.modinfo`, so that no build machine needs depmod and the bytes are reproducible. Soft
//! dependencies that name a service (`crc32c`) are resolved to the modules that offer it.

use crate::{
    Error, Result,
    modinfo::{ModInfo, canonical},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// Deepest directory below `kernel/` that is searched. What lies deeper is not found.
const DEPTH_MAX: usize = 12;

/// Directories whose modules may answer a soft dependency on a service rather than on a module.
const SERVICE_DIRS: [&str; 3] = ["kernel/crypto/", "kernel/lib/", "kernel/arch/x86/crypto/"];

/// All modules of one kernel.
#[derive(Debug)]
pub struct Tree {
    dir: PathBuf,
    /// Canonical name → path relative to the module directory.
    files: BTreeMap<String, String>,
    builtin: BTreeSet<String>,
    /// Aliases of what is built in, such as `crc32c`.
    builtin_aliases: BTreeSet<String>,
}

/// What a set asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// One module by name. Missing and not built in is an error.
    Module(&'static str),
    /// Every module below a directory of `kernel/`. A directory that is not there adds nothing.
    Dir(&'static str),
}

/// One module of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Relative to the module directory, e.g. `kernel/drivers/net/tun.ko.xz`.
    pub path: String,
    /// From its `.modinfo`; soft dependencies resolved to names inside the closure.
    pub info: ModInfo,
}

/// The modules of an image, by canonical name; complete by construction and by [`Closure::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// Canonical name → module.
    pub modules: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
}

impl Tree {
    /// Reads the names of a module directory (`/lib/modules/<release>`).
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be listed.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        walk(dir, "kernel", 0, &mut files)?;
        let read = |name: &str| match std::fs::read(dir.join(name)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(Error::io("read", dir.join(name))),
        };
        let builtin = String::from_utf8_lossy(&read("modules.builtin")?)
            .lines()
            .filter_map(module_name)
            .collect();
        // `crc32c_generic.alias=crc32c`, NUL-separated.
        let builtin_aliases = read("modules.builtin.modinfo")?
            .split(|b| *b == 0)
            .filter_map(|s| std::str::from_utf8(s).ok()?.split_once(".alias="))
            .map(|(_, alias)| alias.to_owned())
            .collect();
        Ok(Self { dir: dir.into(), files, builtin, builtin_aliases })
    }

    /// The modules `wants` name, with everything they depend on, softly too.
    ///
    /// # Errors
    /// [`Error::NoModule`] for a name this kernel lacks, [`Error::BadModule`], [`Error::Io`].
    pub fn closure(&self, wants: &[Want]) -> Result<Closure> {
        let mut todo: Vec<(String, String)> = Vec::new();
        for want in wants {
            match want {
                Want::Module(name) => todo.push((canonical(name), "the set".into())),
                Want::Dir(dir) => {
                    let prefix = format!("kernel/{dir}/");
                    let inside = self.files.iter().filter(|(_, path)| path.starts_with(&prefix));
                    todo.extend(inside.map(|(name, _)| (name.clone(), "the set".into())));
                }
            }
        }
        let mut services = None;
        let mut modules = BTreeMap::new();
        while let Some((name, needed_by)) = todo.pop() {
            if modules.contains_key(&name) || self.builtin.contains(&name) {
                continue;
            }
            let Some(path) = self.files.get(&name) else {
                return Err(Error::NoModule { module: name, needed_by });
            };
            let mut info = ModInfo::of_file(&self.dir.join(path))?;
            for soft in [&mut info.soft_pre, &mut info.soft_post] {
                *soft = self.resolve(soft, &mut services)?;
            }
            let next = info.depends.iter().chain(&info.soft_pre).chain(&info.soft_post);
            todo.extend(next.map(|need| (need.clone(), name.clone())));
            modules.insert(name, Module { path: path.clone(), info });
        }
        let closure = Closure { modules, builtin: self.builtin.clone() };
        closure.verify()?;
        Ok(closure)
    }

    /// Soft dependencies as module names. What nobody offers is dropped, as modprobe(8) does.
    fn resolve(
        &self,
        soft: &[String],
        services: &mut Option<BTreeMap<String, Vec<String>>>,
    ) -> Result<Vec<String>> {
        let mut out = Vec::new();
        for name in soft {
            if self.files.contains_key(name) {
                out.push(name.clone());
            } else if !self.builtin.contains(name) && !self.builtin_aliases.contains(name) {
                let services = match services {
                    Some(known) => known,
                    None => services.insert(self.services()?),
                };
                out.extend(services.get(name).cloned().unwrap_or_default());
            }
        }
        Ok(out)
    }

    fn services(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut by_alias = BTreeMap::<String, Vec<String>>::new();
        for (name, path) in &self.files {
            if SERVICE_DIRS.iter().any(|dir| path.starts_with(dir)) {
                for alias in ModInfo::of_file(&self.dir.join(path))?.aliases {
                    by_alias.entry(canonical(&alias)).or_default().push(name.clone());
                }
            }
        }
        Ok(by_alias)
    }

    /// The file of a module.
    #[must_use]
    pub fn file(&self, module: &Module) -> PathBuf {
        self.dir.join(&module.path)
    }
}

impl Closure {
    /// Checks that every dependency of every module is inside or built in.
    ///
    /// # Errors
    /// [`Error::Incomplete`] with the first that is not.
    pub fn verify(&self) -> Result<()> {
        for (name, module) in &self.modules {
            for need in &module.info.depends {
                if !self.modules.contains_key(need) && !self.builtin.contains(need) {
                    return Err(Error::Incomplete { module: name.clone(), needs: need.clone() });
                }
            }
        }
        Ok(())
    }

    /// Whether a machine with these modules has this one, built into the kernel or not.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.builtin.contains(name)
    }

    /// `modules.dep`: path, colon, everything it needs, what must be loaded first standing last.
    #[must_use]
    pub fn modules_dep(&self) -> String {
        let mut out = String::new();
        for (name, module) in &self.modules {
            let mut order = Vec::new();
            self.post_order(name, &mut BTreeSet::new(), &mut order);
            order.pop();
            let _ = write!(out, "{}:", module.path);
            for need in order.iter().rev() {
                let _ = write!(out, " {need}");
            }
            out.push('\n');
        }
        out
    }

    fn post_order<'a>(
        &'a self,
        name: &'a str,
        seen: &mut BTreeSet<&'a str>,
        out: &mut Vec<&'a str>,
    ) {
        let Some(module) = self.modules.get(name).filter(|_| seen.insert(name)) else { return };
        for need in &module.info.depends {
            self.post_order(need, seen, out);
        }
        out.push(&module.path);
    }

    /// `modules.alias`: `alias <pattern> <module>`.
    #[must_use]
    pub fn modules_alias(&self) -> String {
        let mut out = String::new();
        for (name, module) in &self.modules {
            for alias in &module.info.aliases {
                let _ = writeln!(out, "alias {alias} {name}");
            }
        }
        out
    }

    /// `modules.softdep`: `softdep <module> pre: … post: …`.
    #[must_use]
    pub fn modules_softdep(&self) -> String {
        let mut out = String::new();
        for (name, module) in &self.modules {
            let (pre, post) = (&module.info.soft_pre, &module.info.soft_post);
            if pre.is_empty() && post.is_empty() {
                continue;
            }
            let _ = write!(out, "softdep {name}");
            for (word, list) in [("pre:", pre), ("post:", post)] {
                if !list.is_empty() {
                    let _ = write!(out, " {word} {}", list.join(" "));
                }
            }
            out.push('\n');
        }
        out
    }
}

fn walk(root: &Path, dir: &str, depth: usize, out: &mut BTreeMap<String, String>) -> Result<()> {
    let here = root.join(dir);
    if depth > DEPTH_MAX {
        return Ok(());
    }
    for entry in std::fs::read_dir(&here).map_err(Error::io("list", &here))? {
        let entry = entry.map_err(Error::io("list", &here))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{dir}/{name}");
        if entry.file_type().map_err(Error::io("stat", entry.path()))?.is_dir() {
            walk(root, &path, depth + 1, out)?;
        } else if let Some(module) = module_name(&path).filter(|_| name.ends_with(".ko.xz")) {
            out.insert(module, path);
        }
    }
    Ok(())
}

/// `kernel/drivers/net/virtio-net.ko.xz` → `virtio_net`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    Some(canonical(file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closure(modules: &[(&str, &[&str])]) -> Closure {
        let modules = modules
            .iter()
            .map(|(name, needs)| {
                let depends = needs.iter().map(|s| (*s).to_owned()).collect();
                let info = ModInfo { depends, ..ModInfo::default() };
                ((*name).to_owned(), Module { path: format!("kernel/{name}.ko.xz"), info })
            })
            .collect();
        Closure { modules, builtin: BTreeSet::from(["inside".to_owned()]) }
    }

    #[test]
    fn dep_lists_what_loads_first_last() {
        let c = closure(&[("a", &["b", "c"]), ("b", &["c", "inside"]), ("c", &[])]);
        let dep = c.modules_dep();
        assert_eq!(
            dep.lines().next(),
            Some("kernel/a.ko.xz: kernel/b.ko.xz kernel/c.ko.xz"),
            "{dep}"
        );
        assert!(c.verify().is_ok());
    }

    #[test]
    fn a_missing_dependency_is_found_and_a_cycle_ends() {
        let c = closure(&[("a", &["gone"])]);
        assert!(matches!(c.verify(), Err(Error::Incomplete { needs, .. }) if needs == "gone"));
        let c = closure(&[("a", &["b"]), ("b", &["a"])]);
        assert_eq!(c.modules_dep().lines().count(), 2);
    }

    #[test]
    fn names_are_canonical() {
        assert_eq!(module_name("kernel/x/virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("kernel/x/zbud.ko").as_deref(), Some("zbud"));
        assert_eq!(module_name("modules.dep"), None);
    }
}
