//! What can be known to be wrong with a pod without starting anything.

use super::{
    CONTAINERS_MAX, Check, ContainerSpec, Kind, MOUNTS_MAX, PodSpec, Probe, Resources, Root,
    STRINGS_MAX, Seccomp, VOLUMES_MAX, is_name,
};
use crate::error::{Error, Result};
use crate::seccomp;

/// A field and what is wrong with it.
type Wrong = (&'static str, &'static str);

impl PodSpec {
    /// Everything that can be known to be wrong without starting anything.
    ///
    /// # Errors
    /// [`Error::Spec`] with the first field that cannot be run.
    pub fn check(&self) -> Result<()> {
        let bad = |field: String, why| Err(Error::Spec { field, why });
        if !is_name(&self.id) {
            return bad("id".into(), "must be [A-Za-z0-9._-]{1,128} and not start with a dot");
        }
        if !self.dir.is_absolute() {
            return bad("dir".into(), "must be an absolute path");
        }
        if self.hostname.is_empty() || self.hostname.len() > 64 || self.hostname.contains('\0') {
            return bad("hostname".into(), "must have 1 to 64 bytes");
        }
        if self.containers.is_empty() || self.containers.len() > CONTAINERS_MAX {
            return bad("containers".into(), "a pod has 1 to 16 containers");
        }
        if !self.containers.iter().any(|c| c.kind == Kind::Main) {
            return bad("containers".into(), "none of them is a main container");
        }
        if let Err((field, why)) = self.resources.check() {
            return bad(field.into(), why);
        }
        if self.volumes.len() > VOLUMES_MAX {
            return bad("volumes".into(), "more than 16");
        }
        for (i, v) in self.volumes.iter().enumerate() {
            if !is_name(&v.name) || self.volumes.iter().take(i).any(|o| o.name == v.name) {
                return bad(format!("volumes[{}]", v.name), "not a name, or one that is taken");
            }
            if v.size_bytes == 0 {
                return bad(format!("volumes[{}].size_bytes", v.name), "must be at least 1");
            }
        }
        for (i, c) in self.containers.iter().enumerate() {
            if self.containers.iter().take(i).any(|o| o.name == c.name) {
                return bad(format!("containers[{}]", c.name), "the name is taken");
            }
            let known = |name: &str| self.volumes.iter().any(|v| v.name == name);
            if let Err((field, why)) = c.check(&known) {
                return bad(format!("containers[{}].{field}", c.name), why);
            }
        }
        Ok(())
    }
}

impl ContainerSpec {
    fn check(&self, is_volume: &dyn Fn(&str) -> bool) -> Result<(), Wrong> {
        let nul = |s: &str| s.contains('\0');
        if !is_name(&self.name) {
            return Err(("name", "must be [A-Za-z0-9._-]{1,128} and not start with a dot"));
        }
        match &self.root {
            Root::Mounted { path, .. } if !path.is_absolute() => {
                return Err(("root.path", "must be an absolute path"));
            }
            Root::Fresh { size_bytes: 0 } => {
                return Err(("root.size_bytes", "must be at least 1"));
            }
            _ => {}
        }
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(("argv", "no program"));
        }
        if self.argv.len() > STRINGS_MAX || self.env.len() > STRINGS_MAX {
            return Err(("argv/env", "more than 4096 strings"));
        }
        if self.argv.iter().any(|a| nul(a)) {
            return Err(("argv", "a NUL byte"));
        }
        if self.env.iter().any(|(k, v)| k.is_empty() || k.contains('=') || nul(k) || nul(v)) {
            return Err(("env", "an empty name, a name with '=', or a NUL byte"));
        }
        if !(self.workdir.is_empty() || self.workdir.starts_with('/')) || nul(&self.workdir) {
            return Err(("workdir", "must be an absolute path"));
        }
        self.check_mounts(is_volume)?;
        if !(1..=64).contains(&self.stop.signal) {
            return Err(("stop.signal", "must be 1 to 64"));
        }
        if self.log.files == 0 || self.log.file_bytes < 4096 {
            return Err(("log", "at least one file of at least 4096 bytes"));
        }
        if let Seccomp::Own { program, .. } = &self.seccomp
            && let Err(why) = seccomp::verify(program)
        {
            return Err(("seccomp", why));
        }
        self.resources.check()?;
        self.ready.iter().chain(&self.live).chain(&self.start).try_for_each(Probe::check)
    }

    fn check_mounts(&self, is_volume: &dyn Fn(&str) -> bool) -> Result<(), Wrong> {
        let nul = |s: &str| s.contains('\0');
        if self.binds.len().max(self.tmpfs.len()).max(self.volumes.len()) > MOUNTS_MAX {
            return Err(("binds/tmpfs/volumes", "more than 64"));
        }
        let targets = self.binds.iter().map(|b| &b.target);
        let targets = targets.chain(self.tmpfs.iter().map(|t| &t.target));
        let targets = targets.chain(self.volumes.iter().map(|v| &v.target));
        for t in targets {
            let dots = t.split('/').any(|c| c == ".." || c == ".");
            if !t.starts_with('/') || t.trim_matches('/').is_empty() || nul(t) || dots {
                return Err((
                    "binds/tmpfs/volumes.target",
                    "must be an absolute path below /, without dots",
                ));
            }
            if matches!(t.split('/').find(|c| !c.is_empty()), Some("proc" | "sys")) {
                return Err(("binds/tmpfs/volumes.target", "nothing is mounted on /proc and /sys"));
            }
        }
        if self.volumes.iter().any(|v| !is_volume(&v.volume)) {
            return Err(("volumes.volume", "the pod has no volume of this name"));
        }
        if self.binds.iter().any(|b| !b.source.is_absolute()) {
            return Err(("binds.source", "must be an absolute path"));
        }
        let odd = |name: &str| name.split('/').any(|c| matches!(c, "" | "." | "..")) || nul(name);
        if self.devices.len() > MOUNTS_MAX || self.devices.iter().any(|d| odd(&d.name)) {
            return Err(("devices", "a path below /dev without dots; at most 64"));
        }
        if self.devices.iter().any(|d| !d.source.is_absolute()) {
            return Err(("devices.source", "must be an absolute path"));
        }
        Ok(())
    }
}

impl Probe {
    fn check(&self) -> Result<(), Wrong> {
        if self.every_ms == 0 || self.timeout_ms == 0 || self.failures == 0 || self.successes == 0 {
            return Err(("ready/live", "every, timeout, failures and successes are at least 1"));
        }
        match &self.check {
            Check::Exec { argv }
                if argv.first().is_none_or(String::is_empty)
                    || argv.iter().any(|a| a.contains('\0')) =>
            {
                Err(("ready/live.exec", "no program, or a NUL byte"))
            }
            Check::Grpc { service, .. } if service.len() > 256 => {
                Err(("ready/live.grpc.service", "longer than 256 bytes"))
            }
            Check::Http { path, .. }
                if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f) =>
            {
                Err(("ready/live.http.path", "must start with / and hold no blanks"))
            }
            _ => Ok(()),
        }
    }
}

impl Resources {
    fn check(&self) -> Result<(), Wrong> {
        let weights =
            [("resources.cpu_weight", self.cpu_weight), ("resources.io_weight", self.io_weight)];
        for (field, weight) in weights {
            if weight.is_some_and(|w| !(1..=10_000).contains(&w)) {
                return Err((field, "must be 1 to 10000"));
            }
        }
        let lists =
            [("resources.cpus", &self.cpus), ("resources.memory_nodes", &self.memory_nodes)];
        for (field, list) in lists {
            if list.as_deref().is_some_and(|l| !is_cpu_list(l)) {
                return Err((field, "must be a list like 0-3,8 of numbers below 8192"));
            }
        }
        if self.io.len() > super::resources::IO_LIMITS_MAX {
            return Err(("resources.io", "more than 16 devices"));
        }
        if self.io.iter().any(|l| !l.device.is_absolute() || l.values().all(|(_, v)| v.is_none())) {
            return Err(("resources.io", "an absolute path and at least one limit each"));
        }
        if self.huge_pages.len() > super::resources::HUGE_PAGES_MAX
            || self
                .huge_pages
                .iter()
                .any(|h| !h.page_bytes.is_power_of_two() || h.page_bytes < 1 << 16)
        {
            return Err((
                "resources.huge_pages",
                "at most 8 sizes, each a power of two from 64 KiB",
            ));
        }
        Ok(())
    }
}

/// `0-3,8`: what the kernel's `cpulist_parse` takes, and no more.
fn is_cpu_list(list: &str) -> bool {
    const NUMBER_MAX: u32 = 8191;
    let number = |s: &str| {
        let plain = !s.is_empty() && s.len() <= 4 && s.bytes().all(|b| b.is_ascii_digit());
        s.parse::<u32>().ok().filter(|n| plain && *n <= NUMBER_MAX)
    };
    list.len() <= 1024
        && list.split(',').all(|part| match part.split_once('-') {
            Some((from, to)) => number(from).zip(number(to)).is_some_and(|(a, b)| a <= b),
            None => number(part).is_some(),
        })
}
