//! Coldplug: modules for the devices that are there, and for what every node needs.

use super::{
    console::say,
    missing,
    modules::{Index, Load},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

/// Rounds of looking for devices. A driver's device may be a bus with more devices: five hubs deep at most.
const ROUNDS_MAX: usize = 8;
/// Where devices are that are on no bus.
const ELSEWHERE: [&str; 2] = ["/sys/devices/system/cpu", "/sys/class/dmi/id"];
/// Most devices looked at in a round; further ones wait for a uevent.
const DEVICES_MAX: usize = 16_384;
/// `MODULE_INIT_COMPRESSED_FILE` of finit_module(2): the kernel decompresses.
const COMPRESSED_FILE: i32 = 4;

/// The modules of the running kernel, and which were loaded through here.
#[derive(Debug)]
pub struct Coldplug {
    dir: PathBuf,
    index: Index,
    loaded: BTreeSet<String>,
}

/// What coldplug did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Modules loaded.
    pub loaded: usize,
    /// Hard dependencies or drivers that would not load.
    pub failed: usize,
    /// Time it took.
    pub took_ms: u64,
}

impl Report {
    fn took(mut self, start: Instant) -> Self {
        self.took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Both together.
    pub(super) fn and(self, other: &Self) -> Self {
        Self {
            loaded: self.loaded + other.loaded,
            failed: self.failed + other.failed,
            took_ms: self.took_ms + other.took_ms,
        }
    }
}

impl Coldplug {
    /// Reads the index of the running kernel. A kernel without one has no modules: nothing will be loaded.
    #[must_use]
    pub fn open() -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let dir = Path::new("/lib/modules").join(release);
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let index =
            Index::parse(&read("modules.dep"), &read("modules.alias"), &read("modules.softdep"));
        Self { dir, index, loaded: BTreeSet::new() }
    }

    /// Loads the drivers of network devices, before anything else: an address can be asked for while the rest is loaded.
    pub(super) fn run_network(&mut self) -> Report {
        if self.index.is_empty() {
            say!("coldplug: {} has no modules.dep: nothing to load", self.dir.display());
        }
        let start = Instant::now();
        let mut report = Report::default();
        self.load_devices(|alias| missing::class(alias) == Some(missing::NETWORK), &mut report);
        report.took(start)
    }

    /// Loads what `/etc/modules-load.d` names, then the drivers of every device until no more devices appear.
    /// Says which devices will stay without a driver.
    pub fn run(&mut self) -> Report {
        let report = self.run_quietly();
        self.tell_missing(|_| true);
        report
    }

    /// As [`Coldplug::run`], without a word about what is missing.
    pub(super) fn run_quietly(&mut self) -> Report {
        let start = Instant::now();
        let mut report = Report::default();
        for name in wanted() {
            self.load(&name, &mut report);
        }
        self.load_devices(|_| true, &mut report);
        report.took(start)
    }

    /// Loads drivers until no more devices appear, for those that are `meant` by their alias.
    fn load_devices(&mut self, meant: impl Fn(&str) -> bool, report: &mut Report) {
        let mut seen = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            let before = report.loaded;
            for alias in aliases(Path::new("/sys/bus"), &ELSEWHERE) {
                if !meant(&alias) || seen.contains(&alias) {
                    continue;
                }
                let names: Vec<String> =
                    self.index.matching(&alias).into_iter().map(str::to_owned).collect();
                for name in names {
                    self.load(&name, report);
                }
                seen.insert(alias);
            }
            if report.loaded == before {
                break;
            }
        }
    }

    /// Loads one module, by name or alias, with what it needs: what modprobe(8) does.
    pub fn modprobe(&mut self, alias: &str) -> Report {
        let mut report = Report::default();
        let names: Vec<String> =
            self.index.matching(alias).into_iter().map(str::to_owned).collect();
        for name in names {
            self.load(&name, &mut report);
        }
        report
    }

    /// One line for each device that matters, has no driver and no module here, as far as `concerns` it by its alias.
    pub(super) fn tell_missing(&self, concerns: impl Fn(&str) -> bool) {
        let missing: Vec<_> =
            missing::find(&self.index).into_iter().filter(|one| concerns(&one.alias)).collect();
        for one in missing.iter().take(missing::LINES_MAX) {
            say!("coldplug: no driver in this image for {one}");
        }
        let more = missing.len().saturating_sub(missing::LINES_MAX);
        if more > 0 {
            say!("coldplug: no driver in this image for {more} more devices");
        }
    }

    /// Network devices without a driver, for somebody who finds no network.
    pub(super) fn missing_network(&self) -> Vec<String> {
        let missing = missing::find(&self.index).into_iter();
        missing.filter(|one| one.class == missing::NETWORK).map(|one| one.to_string()).collect()
    }

    fn load(&mut self, name: &str, report: &mut Report) {
        for load in self.index.plan(name, &mut self.loaded) {
            match self.insert(&load) {
                Ok(()) => report.loaded += 1,
                // Somebody else was first; or the hardware it is for is not there.
                Err(Errno::EXIST) => {}
                Err(_) if load.soft => {}
                Err(Errno::NODEV) => {}
                Err(e) => {
                    report.failed += 1;
                    say!("coldplug: {}: {e}", load.path);
                }
            }
        }
    }

    fn insert(&self, load: &Load) -> Result<(), Errno> {
        // The kernel would read and decompress the file before it sees that it has it.
        if Path::new("/sys/module").join(&load.name).exists() {
            return Err(Errno::EXIST);
        }
        let path = self.dir.join(&load.path);
        let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = if load.path.ends_with(".ko") { 0 } else { COMPRESSED_FILE };
        rustix::system::finit_module(fd, c"", flags)
    }
}

/// Names in `/etc/modules-load.d/*.conf`, in file and line order (modules-load.d(5)).
fn wanted() -> Vec<String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir("/etc/modules-load.d")
        .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
        .unwrap_or_default();
    files.sort();
    let texts = files.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts
        .flat_map(|text| text.lines().map(str::trim).map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        .collect()
}

/// What the devices of every bus say they are, and those `elsewhere`. The buses name all that modules are for; the tree below
/// `/sys/devices` has ten times as many directories, and the kernel makes each one when it is looked into.
fn aliases(buses: &Path, elsewhere: &[&str]) -> BTreeSet<String> {
    let entries = |dir: PathBuf| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let on_buses =
        entries(buses.to_path_buf()).into_iter().flat_map(|bus| entries(bus.join("devices")));
    on_buses
        .take(DEVICES_MAX)
        .chain(elsewhere.iter().map(PathBuf::from))
        .filter_map(|device| std::fs::read_to_string(device.join("modalias")).ok())
        .map(|alias| alias.trim().to_owned())
        .filter(|alias| !alias.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_all_buses_are_named_once() {
        let dir = std::env::temp_dir().join(format!("quelea-aliases-{}", std::process::id()));
        let device = |path: &str, alias: Option<&str>| {
            let path = dir.join(path);
            std::fs::create_dir_all(&path).expect("device");
            if let Some(alias) = alias {
                std::fs::write(path.join("modalias"), alias).expect("modalias");
            }
        };
        device("bus/pci/devices/0000:00:01.0", Some("pci:v1\n"));
        device("bus/pci/devices/0000:00:02.0", Some("pci:v1\n"));
        device("bus/virtio/devices/virtio0", Some("virtio:d1\n"));
        device("bus/memory/devices/memory0", None);
        device("bus/cpu/devices/cpu0", Some("\n"));
        device("dmi", Some("dmi:x y\n"));
        let dmi = dir.join("dmi");
        let found = aliases(&dir.join("bus"), &[dmi.to_str().expect("path"), "/nonexistent"]);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["dmi:x y", "pci:v1", "virtio:d1"]);
        std::fs::remove_dir_all(&dir).expect("remove");
    }
}
