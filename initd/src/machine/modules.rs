//! Which module files to load, in which order: the index that depmod(8) writes, and modalias matching. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Most modules in an index; a line beyond it is ignored. Debian's whole tree has 4,230.
pub const MODULES_MAX: usize = 8192;
/// Most aliases in an index; a line beyond it is ignored. Debian's whole tree has about 35,000.
pub const ALIASES_MAX: usize = 65_536;
/// Longest chain of soft dependencies that is followed.
const SOFT_DEPTH_MAX: usize = 8;

/// `modules.dep`, `modules.alias` and `modules.softdep`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// Name → its file and the files it needs, first to load last.
    modules: BTreeMap<String, Files>,
    aliases: Vec<(String, String)>,
    soft: BTreeMap<String, (Vec<String>, Vec<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Files {
    path: String,
    needs: Vec<String>,
}

/// One file to load.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Canonical module name.
    pub name: String,
    /// Relative to the module directory.
    pub path: String,
    /// A soft dependency: failure is no fault (`crc32c_intel` on a CPU that lacks the instruction).
    pub soft: bool,
}

impl Index {
    /// Reads the three texts. Lines that are not of their form are skipped.
    #[must_use]
    pub fn parse(dep: &str, alias: &str, softdep: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines().take(MODULES_MAX) {
            let Some((path, needs)) = line.split_once(':') else { continue };
            let needs = needs.split_ascii_whitespace().map(str::to_owned).collect();
            index.modules.insert(module_name(path), Files { path: path.to_owned(), needs });
        }
        for line in alias.lines().take(ALIASES_MAX) {
            // A pattern may hold spaces (DMI strings); the module is the last word.
            let Some((pattern, module)) =
                line.strip_prefix("alias ").and_then(|rest| rest.rsplit_once(' '))
            else {
                continue;
            };
            index.aliases.push((pattern.to_owned(), canonical(module)));
        }
        for line in softdep.lines().take(MODULES_MAX) {
            let Some(rest) = line.strip_prefix("softdep ") else { continue };
            let mut words = rest.split_ascii_whitespace();
            let Some(name) = words.next() else { continue };
            let (pre, post) = index.soft.entry(canonical(name)).or_default();
            let mut into_post = false;
            for word in words {
                match word {
                    "pre:" => into_post = false,
                    "post:" => into_post = true,
                    _ if into_post => post.push(canonical(word)),
                    _ => pre.push(canonical(word)),
                }
            }
        }
        index
    }

    /// Number of modules known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether there are none: a kernel without modules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Modules that serve a device or a service: by their own name or by alias, in index order.
    #[must_use]
    pub fn matching(&self, alias: &str) -> Vec<&str> {
        let own = self.modules.get_key_value(&canonical(alias)).map(|(name, _)| name.as_str());
        let by_alias = self
            .aliases
            .iter()
            .filter(|(pattern, _)| matches(pattern, alias))
            .map(|(_, module)| module.as_str());
        let mut seen = BTreeSet::new();
        own.into_iter().chain(by_alias).filter(|name| seen.insert(*name)).collect()
    }

    /// Files to load for `name`, in order, without those in `loaded`; the names are added to it. Empty
    /// when there is nothing to do or no such module.
    pub fn plan(&self, name: &str, loaded: &mut BTreeSet<String>) -> Vec<Load> {
        let mut out = Vec::new();
        self.plan_into(&canonical(name), false, 0, loaded, &mut out);
        out
    }

    fn plan_into(
        &self,
        name: &str,
        soft: bool,
        depth: usize,
        loaded: &mut BTreeSet<String>,
        out: &mut Vec<Load>,
    ) {
        let Some(files) = self.modules.get(name) else { return };
        if loaded.contains(name) || depth > SOFT_DEPTH_MAX {
            return;
        }
        let hard = files.needs.iter().rev().chain([&files.path]);
        for path in hard {
            let own = module_name(path);
            if !loaded.insert(own.clone()) {
                continue;
            }
            let (pre, _) = self.soft_of(&own);
            for need in pre {
                self.plan_into(need, true, depth + 1, loaded, out);
            }
            out.push(Load { name: own, path: path.clone(), soft });
        }
        let (_, post) = self.soft_of(name);
        for need in post {
            self.plan_into(need, true, depth + 1, loaded, out);
        }
    }

    fn soft_of(&self, name: &str) -> (&[String], &[String]) {
        self.soft.get(name).map_or((&[], &[]), |(pre, post)| (pre, post))
    }
}

/// `-` is `_` in the name of a module.
#[must_use]
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split_once(".ko").map_or(file, |(stem, _)| stem))
}

/// fnmatch(3) as modprobe uses it: `*`, `?`, `[a-z]`. Linear in practice: one backtrack point.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (p, t) = (pattern.as_bytes(), text.as_bytes());
    let (mut pi, mut ti) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match (p.get(pi), t.get(ti)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                star = Some((pi + 1, ti));
                pi += 1;
                continue;
            }
            (Some(b'['), Some(byte)) => class(&p[pi..], *byte),
            (Some(b'?'), Some(_)) => Some(1),
            (Some(want), Some(have)) if want == have => Some(1),
            _ => None,
        };
        match (step, star) {
            (Some(width), _) => {
                pi += width;
                ti += 1;
            }
            (None, Some((after, from))) if from < t.len() => {
                pi = after;
                ti = from + 1;
                star = Some((after, ti));
            }
            (None, _) => return false,
        }
    }
}

/// Width of the `[…]` at the start of `pattern` when `byte` is in it.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|b| *b == b']')?;
    let mut rest = &pattern[1..end];
    loop {
        match rest {
            [] => return None,
            [low, b'-', high, tail @ ..] => {
                if (*low..=*high).contains(&byte) {
                    return Some(end + 1);
                }
                rest = tail;
            }
            [one, tail @ ..] => {
                if *one == byte {
                    return Some(end + 1);
                }
                rest = tail;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/core/failover.ko.xz:\n\
        kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz\n\
        kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz\n\
        kernel/lib/libcrc32c.ko.xz:\n\
        kernel/crypto/crc32c_generic.ko.xz:\n\
        kernel/crypto/crc32c-intel.ko.xz:\n\
        kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\n";
    const ALIAS: &str = "alias virtio:d00000001v* virtio_net\nalias fs-erofs erofs\nbroken\n";
    const SOFT: &str =
        "softdep libcrc32c pre: crc32c_generic crc32c_intel\nsoftdep erofs post: libcrc32c\n";

    fn names(plan: &[Load]) -> Vec<&str> {
        plan.iter().map(|l| l.name.as_str()).collect()
    }

    #[test]
    fn dependencies_load_first_and_only_once() {
        let index = Index::parse(DEP, ALIAS, SOFT);
        let mut loaded = BTreeSet::new();
        let plan = index.plan("virtio-net", &mut loaded);
        assert_eq!(names(&plan), ["failover", "net_failover", "virtio_net"]);
        assert!(plan.iter().all(|l| !l.soft));
        assert_eq!(index.plan("virtio_net", &mut loaded), []);
        assert_eq!(index.plan("no_such", &mut loaded), []);
    }

    #[test]
    fn soft_dependencies_of_a_dependency_come_before_it() {
        let index = Index::parse(DEP, ALIAS, SOFT);
        let plan = index.plan("erofs", &mut BTreeSet::new());
        assert_eq!(names(&plan), ["crc32c_generic", "crc32c_intel", "libcrc32c", "erofs"]);
        assert_eq!(plan.iter().map(|l| l.soft).collect::<Vec<_>>(), [true, true, false, false]);
    }

    #[test]
    fn a_cycle_of_soft_dependencies_ends() {
        let index = Index::parse(
            "kernel/a.ko:\nkernel/b.ko:\n",
            "",
            "softdep a pre: b\nsoftdep b pre: a\n",
        );
        assert_eq!(names(&index.plan("a", &mut BTreeSet::new())), ["b", "a"]);
    }

    #[test]
    fn devices_match_by_pattern_and_modules_by_name() {
        let index = Index::parse(DEP, ALIAS, SOFT);
        assert_eq!(index.matching("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert_eq!(index.matching("fs-erofs"), ["erofs"]);
        assert_eq!(index.matching("crc32c-intel"), ["crc32c_intel"]);
        assert!(index.matching("virtio:d00000002v00001AF4").is_empty());
    }

    #[test]
    fn patterns() {
        for (pattern, text, want) in [
            ("pci:v00008086d*sv*sd*bc*sc*i*", "pci:v00008086d0000100Esv00sd01bc02sc00i00", true),
            ("pci:v00008086d*", "pci:v00008087d1", false),
            ("usb:v1d6b*ic09isc*ip0[0-2]in*", "usb:v1d6bxxic09isc00ip01in00", true),
            ("usb:*ip0[0-2]in*", "usb:ip03in", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("", "x", false),
            ("*a*b", "xaxxab", true),
            ("[", "[", false),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern} {text}");
        }
    }
}
