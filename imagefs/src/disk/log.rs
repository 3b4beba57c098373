//! The log of disk operations of this thread, and what a disk may hold after losing power within it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Error, Result};

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    MakeDir(PathBuf),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Default)]
struct State {
    recording: bool,
    ops: Vec<Op>,
    fail_at: Option<usize>,
    count: usize,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

pub(super) fn op(make: impl FnOnce() -> Op) -> Result<()> {
    STATE.with_borrow_mut(|s| {
        s.count += 1;
        if s.fail_at.is_some_and(|n| s.count > n) {
            let path = match make() {
                Op::Create(p) | Op::Write(p, _) | Op::SyncFile(p) | Op::MakeDir(p) => p,
                Op::SyncDir(p) | Op::Rename(_, p) | Op::Remove(p) => p,
            };
            return Err(Error::io("injected", path, Errno::IO));
        }
        if s.recording {
            s.ops.push(make());
        }
        Ok(())
    })
}

/// Records what `work` does.
pub(crate) fn record(work: impl FnOnce()) -> Vec<Op> {
    STATE.with_borrow_mut(|s| *s = State { recording: true, ..State::default() });
    work();
    STATE.take().ops
}

/// Lets the first `n` operations of `work` through and fails every later one.
pub(crate) fn fail_after<T>(n: usize, work: impl FnOnce() -> T) -> T {
    STATE.with_borrow_mut(|s| *s = State { fail_at: Some(n), ..State::default() });
    let out = work();
    STATE.take();
    out
}

/// What of the unsynced survives a power cut. The kernel may write any part of it at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// Nothing: every change since the last fsync is gone.
    Lost,
    /// All names, none of the data: files are empty.
    NamesOnly,
    /// All names; data of unsynced files are garbage of the right length.
    Garbage,
    /// Everything (the process died, not the machine).
    Kept,
}

/// A directory entry of the model disk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

/// A disk in memory: what is in the cache, and what is durable.
#[derive(Debug, Default)]
struct Model {
    now: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// (bytes written, bytes durable)
    files: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn under(path: &Path, dir: &Path) -> bool {
    path == dir || path.starts_with(dir)
}

impl Model {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(p) => {
                self.files.push((Vec::new(), None));
                self.now.insert(p.clone(), Node::File(self.files.len() - 1));
            }
            Op::Write(p, bytes) => {
                if let Some(Node::File(i)) = self.now.get(p) {
                    self.files[*i].0.extend(bytes);
                }
            }
            Op::SyncFile(p) => {
                if let Some(Node::File(i)) = self.now.get(p) {
                    self.files[*i].1 = Some(self.files[*i].0.clone());
                }
            }
            Op::MakeDir(p) => {
                self.now.insert(p.clone(), Node::Dir);
            }
            Op::SyncDir(p) => self.sync_dir(p),
            Op::Rename(a, b) => {
                let moved: Vec<_> = self
                    .now
                    .iter()
                    .filter(|(k, _)| under(k, a))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                self.now.retain(|k, _| !under(k, a));
                for (k, v) in moved {
                    let rest = k.strip_prefix(a).unwrap();
                    let to = if rest.as_os_str().is_empty() { b.clone() } else { b.join(rest) };
                    self.now.insert(to, v);
                }
            }
            Op::Remove(p) => self.now.retain(|k, _| !under(k, p)),
        }
    }

    /// Makes the entries of `dir` durable: additions, removals; a directory moved in brings its durable entries.
    fn sync_dir(&mut self, dir: &Path) {
        let child = |k: &Path| k.parent() == Some(dir);
        let old: Vec<_> = self.durable.keys().filter(|k| child(k)).cloned().collect();
        let gone: Vec<_> =
            old.into_iter().filter(|k| self.now.get(k) != self.durable.get(k)).collect();
        for k in gone {
            self.durable.retain(|d, _| !under(d, &k));
        }
        let new: Vec<_> = self
            .now
            .iter()
            .filter(|(k, _)| child(k))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        for (k, v) in new {
            self.durable.insert(k, v);
        }
    }
}

/// Replays `ops` below `root` (they name paths below `recorded`), the disk having been synced at the start with what
/// `root` already holds nothing of, and cuts the power at the end.
pub(crate) fn power_cut(ops: &[Op], recorded: &Path, root: &Path, unsynced: Unsynced) {
    let mut m = Model::default();
    // Directories moved before their durable entries: remember entries by inode, i.e. sync by current path and carry
    // them along on rename.
    for op in ops {
        if let Op::Rename(a, b) = op {
            let carried: Vec<_> = m
                .durable
                .iter()
                .filter(|(k, _)| under(k, a) && *k != a)
                .map(|(k, v)| (b.join(k.strip_prefix(a).unwrap()), v.clone()))
                .collect();
            // They become reachable once b itself is durable; an entry without its parent is ignored below.
            m.durable.extend(carried);
        }
        m.apply(op);
    }
    let names = if unsynced == Unsynced::Lost { &m.durable } else { &m.now };
    std::fs::create_dir_all(root).unwrap();
    for (path, node) in names {
        let to = root.join(path.strip_prefix(recorded).unwrap());
        // BTreeMap order visits parents first.
        if !to.parent().unwrap().is_dir() {
            continue;
        }
        match node {
            Node::Dir => std::fs::create_dir_all(&to).unwrap(),
            Node::File(i) => {
                let (written, durable) = &m.files[*i];
                let bytes = match (durable, unsynced) {
                    (_, Unsynced::Kept) => written.clone(),
                    (Some(d), _) => d.clone(),
                    (None, Unsynced::Garbage) => vec![0xa5; written.len()],
                    (None, _) => Vec::new(),
                };
                std::fs::write(&to, bytes).unwrap();
            }
        }
    }
}
