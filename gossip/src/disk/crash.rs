//! The end of the world at every file operation: what was promised survives, and nothing is invented.
//!
//! The disk here is a model: what is written or renamed counts only once it was made durable, and a power cut leaves of the
//! rest as much or as little as a kernel may have written back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

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
}

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The process ends before it; of a write, so many bytes are done.
    Crash { written: usize },
    /// It fails with EIO, and a failed fsync has dropped what it should have written.
    Error,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// An fsync failed: the kernel holds the pages clean, and a later fsync says nothing.
    lost: bool,
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
struct Model(Arc<Mutex<State>>);

#[derive(Debug)]
struct ModelFile {
    model: Model,
    inode: usize,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Model {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Counts an operation that changes something; the fault, if this is its turn.
    fn op(&self) -> Result<(), (io::Error, Fault)> {
        let mut state = self.state();
        let crash = Fault::Crash { written: 0 };
        if state.dead {
            return Err((eio(), crash));
        }
        state.ops += 1;
        match state.fault {
            Some((at, fault)) if at == state.ops => {
                state.dead = fault != Fault::Error;
                Err((eio(), fault))
            }
            _ => Ok(()),
        }
    }

    fn plain(&self) -> io::Result<()> {
        self.op().map_err(|(e, _)| e)
    }

    fn ops(&self) -> usize {
        self.state().ops
    }

    /// The machine after a power cut, with the next fault.
    fn reboot(&self, cut: Cut, fault: Option<(usize, Fault)>) -> Model {
        let old = self.state();
        let keep_names = cut != Cut::Nothing;
        let names = if keep_names { &old.names } else { &old.durable_names };
        let survives = |inode: &Inode| {
            let content = match cut {
                Cut::Nothing => inode.durable.clone(),
                Cut::Everything => inode.content.clone(),
                Cut::Torn(_) | Cut::Zeros if inode.content.len() < inode.durable.len() => {
                    inode.durable.clone()
                }
                Cut::Torn(bytes) => {
                    let end = (inode.durable.len() + bytes).min(inode.content.len());
                    inode.content[..end].to_vec()
                }
                Cut::Zeros => {
                    let mut content = inode.durable.clone();
                    content.resize(inode.content.len(), 0);
                    content
                }
            };
            Inode { durable: content.clone(), content, lost: false }
        };
        let dir = old.durable_dir || (keep_names && old.has_dir);
        let names = if dir { names.clone() } else { BTreeMap::new() };
        Model(Arc::new(Mutex::new(State {
            inodes: old.inodes.iter().map(survives).collect(),
            durable_names: names.clone(),
            names,
            has_dir: dir,
            durable_dir: dir,
            ops: 0,
            fault,
            dead: false,
        })))
    }
}

impl Files for Model {
    fn make_dir(&self, _: &Path) -> io::Result<bool> {
        self.plain()?;
        let mut state = self.state();
        Ok(!std::mem::replace(&mut state.has_dir, true))
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
        self.plain()?;
        let mut state = self.state();
        // Truncation of a file of that name is a change of it, here as in the kernel.
        let inode = match state.names.get(path) {
            Some(inode) => *inode,
            None => {
                state.inodes.push(Inode::default());
                state.inodes.len() - 1
            }
        };
        state.inodes[inode].content.clear();
        state.names.insert(path.to_owned(), inode);
        Ok(Box::new(ModelFile { model: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.plain()?;
        let inode = self.state().names.get(path).copied();
        let inode = inode.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(Box::new(ModelFile { model: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plain()?;
        let mut state = self.state();
        let inode = state.names.remove(from).expect("it was just created");
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.plain()?;
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
        let result = self.model.op();
        let mut state = self.model.state();
        let content = &mut state.inodes[self.inode].content;
        match result {
            Ok(()) => content.extend_from_slice(bytes),
            Err((error, Fault::Crash { written })) => {
                content.extend_from_slice(&bytes[..written.min(bytes.len())]);
                return Err(error);
            }
            Err((error, Fault::Error)) => {
                content.extend_from_slice(&bytes[..bytes.len() / 2]);
                return Err(error);
            }
        }
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.model.plain()?;
        self.model.state().inodes[self.inode].content.truncate(len as usize);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let result = self.model.op();
        let mut state = self.model.state();
        let inode = &mut state.inodes[self.inode];
        match result {
            Ok(()) if !inode.lost => inode.durable = inode.content.clone(),
            Ok(()) => {}
            Err((error, fault)) => {
                inode.lost |= fault == Fault::Error;
                return Err(error);
            }
        }
        Ok(())
    }
}

const DIR: &str = "/state/gossip";

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

const CUTS: [Cut; 7] = [
    Cut::Nothing,
    Cut::Everything,
    Cut::Zeros,
    Cut::Torn(1),
    Cut::Torn(11),
    Cut::Torn(60),
    Cut::Torn(200),
];

fn model(fault: Option<(usize, Fault)>) -> Model {
    let model = Model::default();
    model.state().fault = fault;
    model
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

/// A disk that fails once: nothing is promised afterwards, also not after a second fsync that says nothing.
#[test]
fn an_error_at_every_operation_is_never_papered_over() {
    for point in 1..=ops() {
        for cut in CUTS {
            let mut told = Told::default();
            let broken = model(Some((point, Fault::Error)));
            // What follows the error in one life: the log is given up, the rest of the boot goes on.
            let _ = lives_on(&broken, &mut told);
            let next = broken.reboot(cut, None);
            boot(&next, &mut told).unwrap_or_else(|e| panic!("{point} {cut:?}: {e}"));
        }
    }
}

/// As [`boot`], but errors are what a node in service makes of them: said once, and on it goes.
fn lives_on(model: &Model, told: &mut Told) -> Result<(), Error> {
    let (mut disk, _, generation) =
        Disk::open_on(Arc::new(model.clone()), Path::new(DIR), "me", 5)?;
    told.generation = generation;
    let mut now = BTreeMap::new();
    for rev in 1..=6 {
        told.said.insert(("a".into(), rev));
        now.insert("a".to_owned(), rev);
        let _ = disk.append(&Persist::Record { record: record("a", rev), local: true });
        let done =
            if rev == 3 { disk.snapshot(9, [record("a", rev)].iter(), &[]) } else { disk.sync() };
        if done.is_ok() && disk.is_sound() {
            told.promised = now.clone();
        }
    }
    Ok(())
}
