//! What is called durable, and when: after the disk has it, and not at all where something found no room.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::disk::crash::{DIR, cut_off, slow};

fn record(key: &str) -> Record {
    Record::new(key, 1, 1, "me".into(), 0, Some(Arc::from(&b"x"[..])))
}

/// What found no room in the queue is not on the disk, and a later sync must not be taken for its own.
#[test]
fn nothing_is_durable_behind_what_found_no_room() {
    let (files, gate) = slow();
    let (disk, ..) = Disk::open_on(Arc::new(files.clone()), Path::new(DIR), "me", 5).unwrap();
    let mut worker = Worker::spawn(disk).unwrap();
    // The thread stands in its first write until the gate opens.
    let held = gate.lock().unwrap();
    for _ in 0..=PENDING_MAX {
        worker.remember(Persist::Dropped { key: "k".into() });
    }
    assert!(!worker.ails(), "there was room for these");
    worker.remember(Persist::Record { record: record("lost"), local: true });
    let lost = worker.sync();
    assert!(worker.ails());
    drop(held);
    let since = Instant::now();
    while worker.shared.done_jobs.load(Ordering::Acquire) < PENDING_MAX {
        assert!(since.elapsed() < Duration::from_secs(60), "the thread goes on");
        std::thread::yield_now();
    }
    // There is room again.
    worker.remember(Persist::Record { record: record("later"), local: true });
    assert!(worker.sync() > lost);
    assert!(!worker.wants_snapshot(0), "a minute is given");
    assert!(worker.wants_snapshot(RETRY_US) && worker.durable() < lost);
    let records = ["lost", "later"].map(record).to_vec();
    worker.snapshot(9, records, Vec::new());
    assert!(!worker.ails());
    worker.finish().unwrap();
    assert!(worker.durable() > lost);
    let (_, restored, _) = Disk::open_on(Arc::new(files), Path::new(DIR), "me", 5).unwrap();
    let keys: Vec<&str> = restored.records.iter().map(|r| &*r.key).collect();
    assert_eq!(keys, ["later", "lost"]);
}

#[test]
fn what_is_called_durable_outlives_a_power_cut() {
    let (files, gate) = slow();
    let (disk, ..) = Disk::open_on(Arc::new(files.clone()), Path::new(DIR), "me", 5).unwrap();
    let mut worker = Worker::spawn(disk).unwrap();
    let held = gate.lock().unwrap();
    worker.remember(Persist::Record { record: record("kept"), local: true });
    let ticket = worker.sync();
    assert!(worker.durable() < ticket, "the disk has not had it yet");
    drop(held);
    let since = Instant::now();
    while worker.durable() < ticket {
        assert!(since.elapsed() < Duration::from_secs(60), "the thread goes on");
        std::thread::yield_now();
    }
    for files in cut_off(&files) {
        let (_, restored, _) = Disk::open_on(Arc::new(files), Path::new(DIR), "me", 6).unwrap();
        assert_eq!(restored.records.len(), 1);
    }
    worker.finish().unwrap();
}
