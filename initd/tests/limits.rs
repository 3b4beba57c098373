//! Limits that hold: on a kernel with the controllers, which a developer's machine may lack and the machine tests do not.
//!
//! `QUELEA_TEST_DISK` names a disk that may be overwritten, for the limits on disks.
#![allow(missing_docs)]

mod common;

use std::path::PathBuf;

use common::{Bed, LONG, eventually, finish, root_or_skip};
use initd::cgroup::{Cgroups, Usage, usage};
use initd::pod::{ContainerSpec, Device, HugePages, IoLimit, Kind, PodSpec, Resources};
use initd::shim::{Condition, Event};
use skip::Listed;

/// A bed, on a machine with these controllers; otherwise says what is missing.
fn bed(name: &str, controllers: &[&str]) -> Option<Bed> {
    if !root_or_skip(name) {
        return None;
    }
    let there = Cgroups::probe().map(|c| c.controllers).unwrap_or_default();
    let missing: Vec<_> = controllers.iter().filter(|c| !there.iter().any(|t| t == **c)).collect();
    let bed = Bed::new(name);
    if !missing.is_empty() {
        skip::listed(name, Listed::Controllers, format_args!("the machine lacks {missing:?}"));
        return None;
    }
    if bed.node.is_none() {
        skip::because(name, "no cgroup could be made");
        return None;
    }
    Some(bed)
}

fn limited(bed: &Bed, resources: Resources, words: &[&str]) -> ContainerSpec {
    ContainerSpec { resources, ..bed.container(words) }
}

fn usage_of(bed: &Bed, container: &str) -> Usage {
    let node = bed.node.as_ref().expect("cgroup");
    usage(&node.pod("pod-1").join(container))
}

fn clear_log(bed: &Bed) {
    std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
}

/// `read N KiB in M ms`: M.
fn milliseconds(log: &str) -> u64 {
    let number = log.trim().strip_suffix(" ms").and_then(|l| l.rsplit(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{log}"))
}

#[test]
fn memory_and_pids_are_bounded_and_an_oom_is_told_apart() {
    let Some(bed) = bed("oom", &["memory", "pids"]) else { return };
    let memory = Resources {
        memory_max_bytes: Some(32 << 20),
        swap_max_bytes: Some(0),
        ..Resources::default()
    };
    let (exit, log) = bed.run(limited(&bed, memory.clone(), &["eat", "500"]));
    assert!(exit.oom && exit.signal == Some(libc::SIGKILL), "{exit:?} {log}");
    // A child that eats takes the whole container with it: nobody goes on half dead.
    let (exit, log) = bed.run(limited(&bed, memory.clone(), &["sh", "eat 500", "write /survived"]));
    assert!(exit.oom && !log.contains("survived"), "{exit:?} {log}");
    assert!(!bed.root().join("survived").exists());
    // The same end by other causes is not called that.
    for words in [["exit", "137"], ["raise", "9"]] {
        let (exit, _) = bed.run(limited(&bed, memory.clone(), &words));
        assert!(!exit.oom, "{words:?}: {exit:?}");
    }
    let pids = Resources { pids_max: Some(20), ..Resources::default() };
    let mut shim = bed.spawn(&bed.pod(vec![limited(&bed, pids, &["bomb"])]));
    eventually("the limit", || bed.log("main").contains("refused 11 after"));
    let usage = usage_of(&bed, "main");
    assert!(usage.pids.is_some_and(|n| n <= 20), "{usage:?}");
    assert!(usage.pids_max_events.is_some_and(|n| n > 0), "{usage:?}");
    shim.stop(Some(0)).expect("stop");
    shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
    finish(shim);
}

#[test]
fn a_pods_limit_is_one_for_all_its_containers() {
    let Some(bed) = bed("podpids", &["pids"]) else { return };
    let other =
        ContainerSpec { name: "other".into(), kind: Kind::Sidecar, ..bed.container(&["bomb"]) };
    let resources = Resources { pids_max: Some(24), ..Resources::default() };
    let spec = PodSpec { resources, ..bed.pod(vec![other, bed.container(&["bomb"])]) };
    let shim = bed.spawn(&spec);
    eventually("the limit", || {
        ["main", "other"].iter().all(|c| bed.log(c).contains("refused 11 after"))
    });
    let of = |container| usage_of(&bed, container).pids.expect("pids");
    let (main, other) = (of("main"), of("other"));
    assert!(main + other <= 24 && main > 0 && other > 0, "{main} and {other}");
    finish(shim);
}

#[test]
fn above_memory_high_a_container_is_slowed_and_lives_and_its_pressure_is_told() {
    let Some(bed) = bed("high", &["memory"]) else { return };
    let memory = Resources {
        memory_high_bytes: Some(8 << 20),
        memory_max_bytes: Some(64 << 20),
        swap_max_bytes: Some(0),
        ..Resources::default()
    };
    let mut shim = bed.spawn(&bed.pod(vec![limited(&bed, memory, &["hold", "10"])]));
    eventually("use above the limit", || {
        let now = usage_of(&bed, "main");
        now.memory_high_events.is_some_and(|n| n > 0)
            && now.memory_bytes.is_some_and(|b| b > 8 << 20)
    });
    eventually("pressure", || {
        usage_of(&bed, "main").memory_pressure.is_some_and(|p| p.some.total_us > 0)
    });
    let now = usage_of(&bed, "main");
    assert_eq!((now.oom_kills, now.memory_max_events), (Some(0), Some(0)), "{now:?}");
    shim.stop(Some(0)).expect("stop");
    let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
    assert!(
        !events.iter().any(|e| matches!(e, Event::Exited { exit, .. } if exit.oom)),
        "{events:?}"
    );
    finish(shim);
}

#[test]
fn a_processor_is_given_in_parts_and_only_where_it_may_be_used() {
    let Some(bed) = bed("cpu", &["cpu"]) else { return };
    let fifth = Resources { cpu_max_milli: Some(200), ..Resources::default() };
    let mut shim = bed.spawn(&bed.pod(vec![limited(&bed, fifth, &["spin", "600000"])]));
    shim.wait(LONG, |e| matches!(e, Event::Started { .. })).expect("start");
    eventually("being held back", || {
        let now = usage_of(&bed, "main");
        now.cpu_throttled.is_some_and(|n| n >= 5)
            && now.cpu_pressure.is_some_and(|p| p.some.total_us > 0)
    });
    let (before, begun) = (usage_of(&bed, "main"), std::time::Instant::now());
    eventually("ten more periods", || {
        usage_of(&bed, "main").cpu_throttled >= before.cpu_throttled.map(|n| n + 10)
    });
    let used = usage_of(&bed, "main").cpu_us.zip(before.cpu_us).map_or(0, |(a, b)| a - b);
    let share = used as f64 / begun.elapsed().as_micros() as f64;
    println!("a fifth of a processor: {share:.3}");
    assert!(share < 0.3, "{share}");
    finish(shim);
}

#[test]
fn a_cpuset_is_where_a_container_runs_whatever_it_asks_for() {
    let Some(bed) = bed("cpuset", &["cpuset"]) else { return };
    if std::thread::available_parallelism().is_ok_and(|n| n.get() < 2) {
        skip::because("cpuset", "one processor");
        return;
    }
    for cpu in ["0", "1"] {
        let one = Resources {
            cpus: Some(cpu.into()),
            memory_nodes: Some("0".into()),
            ..Resources::default()
        };
        let (_, log) = bed.run(limited(&bed, one, &["cat", "/proc/self/status"]));
        assert!(log.contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{log}");
        assert!(log.contains("Mems_allowed_list:\t0\n"), "{log}");
        clear_log(&bed);
    }
    // A processor that is not there is a condition of the machine, not a pod that runs anywhere.
    let none = Resources { cpus: Some("4000".into()), ..Resources::default() };
    let mut shim = bed.spawn(&bed.pod(vec![limited(&bed, none, &["true"])]));
    let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
    let told = |e: &Event| matches!(e, Event::Condition(Condition::NoLimit { file, .. }) if file == "cpuset.cpus");
    assert!(events.iter().any(told), "{events:?}");
    finish(shim);
}

#[test]
fn huge_pages_are_counted() {
    let Some(bed) = bed("huge", &["hugetlb"]) else { return };
    let pool = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if pool.ok().and_then(|n| n.trim().parse::<u32>().ok()).is_none_or(|n| n < 4) {
        skip::listed("huge", Listed::HugePages, "fewer than 4 free pages of 2 MiB");
        return;
    }
    let pages = |max_bytes| Resources {
        huge_pages: vec![HugePages { page_bytes: 2 << 20, max_bytes }],
        ..Resources::default()
    };
    let (exit, log) = bed.run(limited(&bed, pages(4 << 20), &["huge-pages", "4"]));
    assert_eq!((exit.signal, log.as_str()), (Some(libc::SIGBUS), "page 1\npage 2\n"));
    clear_log(&bed);
    let (exit, log) = bed.run(limited(&bed, pages(8 << 20), &["huge-pages", "4"]));
    assert_eq!((exit.code, log.lines().count()), (Some(0), 4), "{log}");
}

#[test]
fn a_disk_is_read_and_written_no_faster_than_allowed() {
    const LIMIT: u64 = 512 << 10;
    const KIB: u64 = 1024;
    let Some(bed) = bed("disk", &["io"]) else { return };
    let Some(disk) = std::env::var_os("QUELEA_TEST_DISK").map(PathBuf::from) else {
        skip::listed("disk", Listed::SpareDisk, "QUELEA_TEST_DISK names none");
        return;
    };
    let run = |words: &[&str], io: Vec<IoLimit>| {
        let device = Device { name: "disk".into(), source: disk.clone(), read_only: false };
        let c = ContainerSpec {
            devices: vec![device],
            // Stays a moment, so that its cgroup can be read.
            ..limited(&bed, Resources { io, ..Resources::default() }, words)
        };
        let (exit, log) = bed.run(c);
        assert_eq!(exit.code, Some(0), "{log}");
        clear_log(&bed);
        milliseconds(&log)
    };
    let kib = KIB.to_string();
    for how in ["read", "write"] {
        let limit = IoLimit {
            device: disk.clone(),
            read_bytes_per_s: (how == "read").then_some(LIMIT),
            write_bytes_per_s: (how == "write").then_some(LIMIT),
            read_ops_per_s: None,
            write_ops_per_s: None,
        };
        let words = ["direct", how, "/dev/disk", &kib];
        let (free, held) = (run(&words, vec![]), run(&words, vec![limit]));
        println!("{how} of {KIB} KiB: {free} ms, and {held} ms at {LIMIT} B/s");
        // The kernel lets through what a slice of time allows before it counts.
        let least = KIB * 1024 * 1000 / LIMIT * 3 / 4;
        assert!(held >= least, "{how}: {held} ms, at least {least}");
        assert!(free < held, "{how}: {free} ms without a limit");
    }
    let ops = IoLimit {
        device: disk.clone(),
        read_bytes_per_s: None,
        write_bytes_per_s: None,
        read_ops_per_s: Some(8),
        write_ops_per_s: None,
    };
    // 16 reads of 64 KiB.
    let held = run(&["direct", "read", "/dev/disk", &kib], vec![ops]);
    assert!(held >= 1400, "16 reads at 8 a second took {held} ms");
}

#[test]
fn what_a_container_reads_and_writes_is_counted() {
    let Some(bed) = bed("iostat", &["io"]) else { return };
    let Some(disk) = std::env::var_os("QUELEA_TEST_DISK").map(PathBuf::from) else {
        skip::listed("iostat", Listed::SpareDisk, "QUELEA_TEST_DISK names none");
        return;
    };
    let device = Device { name: "disk".into(), source: disk, read_only: false };
    let c = ContainerSpec {
        devices: vec![device],
        ..bed.container(&["sh", "direct-read /dev/disk", "sleep 600000"])
    };
    let shim = bed.spawn(&bed.pod(vec![c]));
    eventually("the read", || bed.log("main").contains(" ms"));
    let now = usage_of(&bed, "main");
    assert!(now.read_bytes.is_some_and(|b| b >= 256 << 10), "{now:?}");
    assert!(now.reads.is_some_and(|n| n >= 4), "{now:?}");
    assert!(now.io_pressure.is_some(), "{now:?}");
    finish(shim);
}
