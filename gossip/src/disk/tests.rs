use std::fs::{self, File};

use super::*;
use crate::member::State;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("quelea-gossip-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Dir(dir)
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn record(key: &str, rev: u64, body: &[u8]) -> Record {
    Record::new(key, rev, 1000 + rev, "w".into(), 0, Some(body.into()))
}

fn persist(key: &str, rev: u64, body: &[u8]) -> Persist {
    Persist::Record { record: record(key, rev, body), local: true }
}

fn member(name: &str) -> MemberInfo {
    let addr = "127.0.0.1:1".parse().unwrap();
    MemberInfo { name: name.into(), addr, generation: 3, incarnation: 1, state: State::Alive }
}

/// Three synced batches.
fn filled(dir: &Dir) {
    let (mut disk, restored, generation) = Disk::open(&dir.0, "me", 5).unwrap();
    assert_eq!((restored.records.len(), generation), (0, 1));
    for rev in 1..=3 {
        disk.append(&persist("a", rev, &[rev as u8; 50])).unwrap();
        disk.append(&persist(&format!("b{rev}"), 1, b"x")).unwrap();
        disk.sync().unwrap();
    }
    disk.append(&Persist::Member(member("peer"))).unwrap();
    disk.append(&Persist::Member(member("gone"))).unwrap();
    disk.append(&Persist::Forgotten { name: "gone".into() }).unwrap();
    disk.append(&Persist::Dropped { key: "b2".into() }).unwrap();
    disk.sync().unwrap();
}

#[test]
fn everything_comes_back_and_the_generation_counts() {
    let dir = Dir::new("back");
    filled(&dir);
    let (mut disk, restored, generation) = Disk::open(&dir.0, "me", 5).unwrap();
    assert_eq!(generation, 2);
    let keys: Vec<(&str, u64)> = restored.records.iter().map(|r| (&*r.key, r.rev)).collect();
    assert_eq!(keys, [("a", 3), ("b1", 1), ("b3", 1)]);
    assert_eq!(restored.roster, [member("peer")]);
    disk.append(&Persist::Generation(77)).unwrap();
    disk.snapshot(9, restored.records.iter(), &restored.roster).unwrap();
    disk.append(&persist("later", 1, b"y")).unwrap();
    disk.sync().unwrap();
    drop(disk);
    let (_, again, generation) = Disk::open(&dir.0, "me", 5).unwrap();
    assert_eq!((generation, again.records.len()), (78, 4));
    assert!(matches!(Disk::open(&dir.0, "other", 5), Err(Error::Corrupt { .. })));
}

#[test]
fn a_torn_end_is_cut_at_every_length_and_what_was_synced_stays() {
    let dir = Dir::new("torn");
    filled(&dir);
    let whole = fs::read(dir.log()).unwrap();
    let (mut disk, ..) = Disk::open(&dir.0, "me", 5).unwrap();
    disk.append(&persist("tail", 1, b"not synced")).unwrap();
    disk.write().unwrap();
    let longer = fs::read(dir.log()).unwrap();
    drop(disk);
    for len in whole.len()..longer.len() {
        fs::write(dir.log(), &longer[..len]).unwrap();
        let (_, restored, _) = Disk::open(&dir.0, "me", 5).unwrap();
        assert_eq!(restored.records.len(), 3, "cut at {len}");
        // Lost pages in the middle of what nobody was promised.
        let mut holes = longer.clone();
        holes[whole.len() + 2..len.max(whole.len() + 3)].fill(0);
        fs::write(dir.log(), &holes).unwrap();
        let (_, restored, _) = Disk::open(&dir.0, "me", 5).unwrap();
        assert_eq!(restored.records.len(), 3, "zeros up to {len}");
    }
}

#[test]
fn damage_in_front_of_a_mark_is_refused_and_left_alone() {
    let dir = Dir::new("damage");
    filled(&dir);
    let (mut disk, ..) = Disk::open(&dir.0, "me", 5).unwrap();
    disk.append(&persist("last", 1, b"z")).unwrap();
    disk.sync().unwrap();
    drop(disk);
    let whole = fs::read(dir.log()).unwrap();
    let marked = whole.len() - 80;
    for place in (0..marked).step_by(3) {
        let mut bad = whole.clone();
        bad[place] ^= 0x40;
        fs::write(dir.log(), &bad).unwrap();
        let result = Disk::open(&dir.0, "me", 5);
        assert!(matches!(result, Err(Error::Corrupt { .. })), "byte {place}");
        assert_eq!(fs::read(dir.log()).unwrap(), bad, "left for inspection");
    }
}

#[test]
fn what_a_crash_between_write_and_rename_leaves_is_ignored() {
    let dir = Dir::new("leftover");
    filled(&dir);
    for junk in ["log.new", "generation.new"] {
        fs::write(dir.0.join(junk), b"half a snapsh").unwrap();
    }
    let (mut disk, restored, generation) = Disk::open(&dir.0, "me", 5).unwrap();
    assert_eq!((restored.records.len(), generation), (3, 2));
    disk.snapshot(9, restored.records.iter(), &[]).unwrap();
    drop(disk);
    let (_, restored, generation) = Disk::open(&dir.0, "me", 5).unwrap();
    assert_eq!((restored.records.len(), generation), (3, 3));
    fs::write(dir.0.join("generation"), b"????????????").unwrap();
    assert!(matches!(Disk::open(&dir.0, "me", 5), Err(Error::Corrupt { .. })));
}

#[test]
fn a_disk_that_fails_is_given_up_and_says_so_once() {
    let dir = Dir::new("fails");
    filled(&dir);
    let (mut disk, ..) = Disk::open(&dir.0, "me", 5).unwrap();
    // A descriptor that cannot be written stands for a disk that cannot.
    disk.log = Box::new(File::open(dir.log()).unwrap());
    disk.append(&persist("x", 1, b"y")).unwrap();
    assert!(matches!(disk.sync(), Err(Error::File { operation: "write", errno: 9, .. })));
    assert!(!disk.is_sound());
    disk.append(&persist("x", 2, b"y")).unwrap();
    assert_eq!((disk.sync(), disk.is_long()), (Ok(()), false));
}

#[test]
fn one_process_at_a_time_has_the_directory() {
    let dir = Dir::new("lock");
    filled(&dir);
    let (mut disk, restored, _) = Disk::open(&dir.0, "me", 5).unwrap();
    // Also behind a snapshot, which is another file.
    disk.snapshot(9, restored.records.iter(), &[]).unwrap();
    let error = Disk::open(&dir.0, "me", 5).expect_err("somebody has it");
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains("is in use by another process: end that one first"));
    drop(disk);
    assert_eq!(Disk::open(&dir.0, "me", 5).unwrap().2, 3, "the refused one has counted nothing");
}

#[test]
fn a_log_of_another_version_is_refused_by_name() {
    let dir = Dir::new("version");
    fs::create_dir_all(&dir.0).unwrap();
    let header = [&[0, 2, 2][..], b"me", &[5]].concat();
    for (content, reason) in
        [(&header[..], "written by another version"), (&[9], "written by a later version")]
    {
        let bytes = log::log_of("me", std::iter::once(content));
        // Without the header that is put in front, for the first.
        let from = if content == header { bytes.len() - 10 - content.len() } else { 0 };
        fs::write(dir.log(), &bytes[from..]).unwrap();
        let error = Disk::open(&dir.0, "me", 5).expect_err("not ours").to_string();
        assert!(error.contains(reason) && error.contains("move it away"), "{error}");
        assert_eq!(fs::read(dir.log()).unwrap(), bytes[from..], "left alone");
    }
}

#[test]
fn crc_is_the_usual_one() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}
