//! The end of the world at every file operation: what was promised survives, and nothing is invented.
//!
//! The disk here is a model: what is written or renamed counts only once it was made durable, and a power cut leaves of the
//! rest as much or as little as a kernel may have written back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use super::*;

/// What a power cut leaves of what was not made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Nothing.
    Nothing,
    /// Everything: the process was killed, the kernel lives.
    Everything,
    /// Names, and so many bytes of each file's new content.
    Torn(usize),
    /// Names and lengths, but the new content is zeros.
    Zeros,
    /// Names and lengths, but of each file's new content the first so many bytes are zeros: later pages went first.
    Hole(usize),
    /// For each file another one of these, and of each rename the old name or the new one: nothing orders them.
    Mixed(u64),
}

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The process ends before it; of a write, so many bytes are done.
    Crash { written: usize },
    /// It fails with EIO, and a failed fsync has dropped what it should have written.
    Error,
    /// From here on there is no room: what needs some fails with ENOSPC, a write with half of it done.
    Full,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Up to here the kernel holds the pages clean: on the disk, or dropped by an fsync that failed, after which a later one
    /// says nothing.
    clean: usize,
}

impl Inode {
    /// The first bytes of the file were everything that is dirty written back.
    fn written(&self, len: usize) -> Vec<u8> {
        let held = |at: usize| self.durable.get(at).copied().unwrap_or(0);
        let byte = |at: usize| if at < self.clean { held(at) } else { self.content[at] };
        (0..len.min(self.content.len())).map(byte).collect()
    }

    /// What a power cut leaves.
    fn after(&self, cut: Cut, number: u64) -> Inode {
        let (all, old) = (self.content.len(), self.durable.len());
        let mut content = match cut {
            Cut::Everything => return self.clone(),
            Cut::Mixed(seed) => {
                let kinds =
                    [Cut::Nothing, Cut::Torn(all), Cut::Zeros, Cut::Torn(37), Cut::Hole(50)];
                return self.after(kinds[crate::wire::mix(seed, number) as usize % 5], number);
            }
            Cut::Nothing => self.durable.clone(),
            // What was cut off is still there.
            _ if all < old => self.durable.clone(),
            Cut::Torn(bytes) => self.written(old + bytes),
            Cut::Zeros | Cut::Hole(_) => self.written(all),
        };
        let zeros = match cut {
            Cut::Zeros => all,
            Cut::Hole(bytes) => old + bytes,
            _ => old,
        };
        let end = zeros.min(content.len());
        content[old.min(end)..end].fill(0);
        Inode { durable: content.clone(), clean: content.len(), content }
    }
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    has_dir: bool,
    durable_dir: bool,
    ops: usize,
    fault: Option<(usize, Fault)>,
    dead: bool,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Model(Arc<Mutex<State>>, Arc<Mutex<()>>);

#[derive(Debug)]
struct ModelFile {
    model: Model,
    inode: usize,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Model {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Counts an operation that changes something; the fault, if this is its turn.
    fn op(&self, needs_room: bool) -> Result<(), (io::Error, Fault)> {
        let mut state = self.state();
        let crash = Fault::Crash { written: 0 };
        if state.dead {
            return Err((eio(), crash));
        }
        state.ops += 1;
        match state.fault {
            Some((at, Fault::Full)) if at <= state.ops && needs_room => {
                Err((io::Error::from_raw_os_error(libc::ENOSPC), Fault::Full))
            }
            Some((at, fault)) if at == state.ops && fault != Fault::Full => {
                state.dead = fault != Fault::Error;
                Err((eio(), fault))
            }
            _ => Ok(()),
        }
    }

    fn plain(&self, needs_room: bool) -> io::Result<()> {
        self.op(needs_room).map_err(|(e, _)| e)
    }

    fn ops(&self) -> usize {
        self.state().ops
    }

    /// The machine after a power cut, with the next fault.
    fn reboot(&self, cut: Cut, fault: Option<(usize, Fault)>) -> Model {
        let old = self.state();
        let new_names = |stem: &str| match cut {
            Cut::Nothing => false,
            Cut::Mixed(seed) => crate::wire::mix(seed, stem.len() as u64) & 1 == 1,
            _ => true,
        };
        let mut names = BTreeMap::new();
        for stem in ["log", "generation"] {
            let known = if new_names(stem) { &old.names } else { &old.durable_names };
            let same = |path: &PathBuf| path.file_stem().is_some_and(|s| s == stem);
            names.extend(known.iter().filter(|(path, _)| same(path)).map(|(p, i)| (p.clone(), *i)));
        }
        let dir = old.durable_dir || (new_names("") && old.has_dir);
        if !dir {
            names.clear();
        }
        let inodes = old.inodes.iter().zip(0..).map(|(inode, n)| inode.after(cut, n)).collect();
        let state = State {
            inodes,
            durable_names: names.clone(),
            names,
            has_dir: dir,
            durable_dir: dir,
            ops: 0,
            fault,
            dead: false,
        };
        Model(Arc::new(Mutex::new(state)), Arc::default())
    }
}

impl Files for Model {
    fn make_dir(&self, _: &Path) -> io::Result<bool> {
        self.plain(true)?;
        let mut state = self.state();
        Ok(!std::mem::replace(&mut state.has_dir, true))
    }

    fn lock(&self, _: &Path) -> io::Result<Option<File>> {
        self.plain(false).map(|()| None)
    }

    fn len(&self, path: &Path) -> io::Result<Option<u64>> {
        Ok(self.read(path, u64::MAX)?.map(|bytes| bytes.len() as u64))
    }

    fn read(&self, path: &Path, _: u64) -> io::Result<Option<Vec<u8>>> {
        let state = self.state();
        if state.dead {
            return Err(eio());
        }
        Ok(state.names.get(path).map(|inode| state.inodes[*inode].content.clone()))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.plain(true)?;
        let mut state = self.state();
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.names.insert(path.to_owned(), inode);
        Ok(Box::new(ModelFile { model: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.plain(false)?;
        let inode = self.state().names.get(path).copied();
        let inode = inode.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(Box::new(ModelFile { model: self.clone(), inode }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.plain(false)?;
        self.state().names.remove(path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plain(true)?;
        let mut state = self.state();
        let inode = state.names.remove(from).expect("it was just created");
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.plain(false)?;
        let mut state = self.state();
        if dir == Path::new(DIR) {
            state.durable_names = state.names.clone();
        } else {
            state.durable_dir = state.has_dir;
        }
        Ok(())
    }
}

impl LogFile for ModelFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        drop(self.model.1.lock().unwrap());
        let result = self.model.op(true);
        let mut state = self.model.state();
        let content = &mut state.inodes[self.inode].content;
        match result {
            Ok(()) => content.extend_from_slice(bytes),
            Err((error, fault)) => {
                let done = match fault {
                    Fault::Crash { written } => written.min(bytes.len()),
                    Fault::Error | Fault::Full => bytes.len() / 2,
                };
                content.extend_from_slice(&bytes[..done]);
                return Err(error);
            }
        }
        Ok(())
    }

    fn rewrite(&mut self, from: u64, bytes: &[u8]) -> io::Result<()> {
        // It stands there already, so that half of it is all of it.
        let result = self.model.plain(false);
        let mut state = self.model.state();
        let (inode, from) = (&mut state.inodes[self.inode], from as usize);
        assert_eq!(inode.content.get(from..from + bytes.len()), Some(bytes));
        result?;
        inode.content.truncate(from + bytes.len());
        inode.clean = inode.clean.min(from);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let result = self.model.op(false);
        let mut state = self.model.state();
        let inode = &mut state.inodes[self.inode];
        match result {
            Ok(()) => inode.durable = inode.written(usize::MAX),
            Err((error, fault)) => {
                if fault == Fault::Error {
                    inode.clean = inode.content.len();
                }
                return Err(error);
            }
        }
        inode.clean = inode.content.len();
        Ok(())
    }
}

pub(super) const DIR: &str = "/state/gossip";

/// What a node was promised by its disk, and what it said to it at all.
#[derive(Debug, Default, Clone)]
struct Told {
    /// Highest revision of each key that was durable when the disk said so.
    promised: BTreeMap<String, u64>,
    said: BTreeSet<(String, u64)>,
    /// Highest generation that a boot has used or persisted.
    generation: u64,
    boots: usize,
}

fn record(key: &str, rev: u64) -> Record {
    let body = vec![rev as u8; 40 + (rev as usize * 13) % 60];
    Record::new(key, rev, 1000 + rev, "w".into(), 0, Some(body.into()))
}

/// A boot on this disk: checks what came back, then writes, syncs, snapshots and writes again.
fn boot(model: &Model, told: &mut Told) -> Result<(), Error> {
    let (mut disk, restored, generation) =
        Disk::open_on(Arc::new(model.clone()), Path::new(DIR), "me", 5)?;
    assert!(generation > told.generation, "generation {generation} was used before");
    told.generation = generation;
    told.boots += 1;
    let held: BTreeMap<&str, u64> = restored.records.iter().map(|r| (&*r.key, r.rev)).collect();
    for (key, rev) in &told.promised {
        let found = held.get(key.as_str());
        assert!(found.is_some_and(|f| f >= rev), "{key} {rev} was promised, {found:?} came back");
    }
    for r in &restored.records {
        assert_eq!(*r, record(&r.key, r.rev), "altered");
        assert!(told.said.contains(&(r.key.to_string(), r.rev)), "{} invented", r.key);
    }
    let mut now: BTreeMap<String, u64> =
        restored.records.iter().map(|r| (r.key.to_string(), r.rev)).collect();
    let base = now.values().copied().max().unwrap_or(0);
    for round in 1..=3 {
        for key in ["a".to_owned(), format!("b{round}")] {
            let rev = base + round;
            told.said.insert((key.clone(), rev));
            now.insert(key.clone(), rev);
            disk.append(&Persist::Record { record: record(&key, rev), local: true })?;
        }
        if round == 2 {
            disk.write()?;
            let records: Vec<Record> = now.iter().map(|(key, rev)| record(key, *rev)).collect();
            disk.snapshot(9, records.iter(), &[])?;
        } else {
            disk.sync()?;
        }
        if disk.is_sound() {
            told.promised = now.clone();
        }
    }
    let outbid = told.generation + 5;
    disk.append(&Persist::Generation(outbid))?;
    told.generation = outbid;
    disk.touch();
    disk.sync()
}

const CUTS: [Cut; 13] = [
    Cut::Nothing,
    Cut::Everything,
    Cut::Zeros,
    Cut::Torn(1),
    Cut::Torn(11),
    Cut::Torn(60),
    Cut::Torn(200),
    Cut::Hole(1),
    Cut::Hole(60),
    Cut::Mixed(1),
    Cut::Mixed(2),
    Cut::Mixed(3),
    Cut::Mixed(4),
];

fn model(fault: Option<(usize, Fault)>) -> Model {
    let model = Model::default();
    model.state().fault = fault;
    model
}

/// What each kind of power cut leaves now.
pub(super) fn cut_off(disk: &Model) -> [Model; CUTS.len()] {
    CUTS.map(|cut| disk.reboot(cut, None))
}

/// A disk whose writes wait while the gate is held.
pub(super) fn slow() -> (Model, Arc<Mutex<()>>) {
    let model = model(None);
    let gate = model.1.clone();
    (model, gate)
}

/// Operations of a first boot.
fn ops() -> usize {
    let model = model(None);
    boot(&model, &mut Told::default()).unwrap();
    model.ops()
}

#[test]
fn a_power_cut_at_every_operation_keeps_what_was_promised() {
    let all = ops();
    assert!(all > 25, "{all} operations are enumerated");
    let mut cases = 0;
    for first in 1..=all {
        for cut in CUTS {
            let mut told = Told::default();
            let broken = model(Some((first, Fault::Crash { written: 20 })));
            let end = boot(&broken, &mut told);
            assert!(matches!(end, Err(Error::File { .. })), "it ends at {first}: {end:?}");
            // And again while it recovers, at every operation of that.
            for second in 1..=all + 1 {
                let mut told = told.clone();
                let fault = (second <= all).then_some((second, Fault::Crash { written: 20 }));
                let again = broken.reboot(cut, fault);
                let ended = boot(&again, &mut told);
                assert!(matches!(ended, Ok(()) | Err(Error::File { .. })), "{ended:?}");
                let last = again.reboot(cut, None);
                boot(&last, &mut told).unwrap_or_else(|e| panic!("{first} {cut:?} {second}: {e}"));
                cases += 1;
            }
        }
    }
    assert!(cases > 5_000, "{cases} cases");
}

#[test]
fn a_write_torn_at_every_byte_is_cut_off() {
    let all = ops();
    for point in 1..=all {
        for written in 0..300 {
            let mut told = Told::default();
            let broken = model(Some((point, Fault::Crash { written })));
            let _ = boot(&broken, &mut told);
            boot(&broken.reboot(Cut::Everything, None), &mut told)
                .unwrap_or_else(|e| panic!("{point} at {written} bytes: {e}"));
        }
    }
}

/// A disk that fails once: what is promised afterwards is true, also after a second fsync that says nothing, for the next
/// process on this kernel, and after a power cut under that one.
#[test]
fn an_error_at_every_operation_is_never_papered_over() {
    for (point, end) in (1..=ops()).flat_map(|point| (1..=LAST).map(move |end| (point, end))) {
        for cut in CUTS {
            let mut told = Told::default();
            let broken = model(Some((point, Fault::Error)));
            let _ = lives_on(&broken, &mut told, end);
            let place = format!("{point}, {end}, {cut:?}");
            if cut != Cut::Everything {
                // Another process, before the kernel goes down.
                let mut told = told.clone();
                let next = broken.reboot(Cut::Everything, None);
                let sound = lives_on(&next, &mut told, 2).map_err(|e| format!("{place}: {e}"));
                assert_eq!(sound, Ok(true));
                let last = next.reboot(cut, None);
                boot(&last, &mut told).unwrap_or_else(|e| panic!("{place}, later: {e}"));
            }
            let next = broken.reboot(cut, None);
            boot(&next, &mut told).unwrap_or_else(|e| panic!("{place}: {e}"));
        }
    }
}

/// No room from every operation on, and some again later.
#[test]
fn a_full_disk_is_said_to_be_and_written_to_once_it_is_not() {
    let mut refused = 0;
    for point in 1..=ops() {
        for cut in CUTS {
            let mut told = Told::default();
            let full = model(Some((point, Fault::Full)));
            match lives_on(&full, &mut told, LAST) {
                Ok(sound) => assert!(sound, "{point}: there is room again"),
                Err(Error::File { errno, .. }) => {
                    assert_eq!(errno, libc::ENOSPC);
                    refused += 1;
                }
                Err(other) => panic!("{point}: {other}"),
            }
            let next = full.reboot(cut, None);
            boot(&next, &mut told).unwrap_or_else(|e| panic!("{point} {cut:?}: {e}"));
        }
    }
    assert!(refused > 0, "without a boot counter no node starts");
}

/// Writes of [`lives_on`].
const LAST: u64 = 9;

/// As [`boot`], but errors are what a node in service makes of them: said, and on it goes, with a new log later. Whether
/// that one is sound.
fn lives_on(model: &Model, told: &mut Told, end: u64) -> Result<bool, Error> {
    let (mut disk, restored, generation) =
        Disk::open_on(Arc::new(model.clone()), Path::new(DIR), "me", 5)?;
    told.generation = generation;
    let mut now = BTreeMap::new();
    let base = restored.records.first().map_or(0, |r| r.rev);
    for (write, rev) in (1..=end).map(|write| (write, base + write)) {
        told.said.insert(("a".into(), rev));
        now.insert("a".to_owned(), rev);
        let _ = disk.append(&Persist::Record { record: record("a", rev), local: true });
        if write == 7 && matches!(model.state().fault, Some((_, Fault::Full))) {
            model.state().fault = None;
        }
        let anew = write == 3 || (write > 5 && !disk.is_sound());
        let done =
            if anew { disk.snapshot(9, [record("a", rev)].iter(), &[]) } else { disk.sync() };
        if done.is_ok() && disk.is_sound() {
            told.promised = now.clone();
        }
    }
    let promised = told.promised.get("a") == Some(&(base + end));
    assert_eq!(promised, disk.is_sound(), "what is not durable is not said to be");
    Ok(disk.is_sound())
}
