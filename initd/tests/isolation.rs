//! The same tries to get out, in a container of ours, of crun and of runc: what a peer refuses, ours refuses.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use common::{Bed, root_or_skip};
use initd::pod::{Caps, ContainerSpec};
use initd::seccomp::{names, table};

type Found = BTreeMap<String, String>;

fn lines(text: &str) -> Found {
    text.lines().filter_map(|l| l.split_once(' ')).map(|(k, v)| (k.into(), v.into())).collect()
}

/// Refused: an errno. Everything else is what was got.
fn refused(value: &str) -> bool {
    value.parse::<u32>().is_ok_and(|errno| errno > 0) || value == "0 bytes" || value == "0 entries"
}

fn config(env: &[(String, String)]) -> String {
    let quoted =
        |words: Vec<String>| words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(",");
    let allowed = names::all()
        .filter(|(_, nr)| {
            let verdict = table::profile(false).get(*nr).copied();
            verdict == Some(table::Verdict::Allow)
        })
        .map(|(name, _)| name.to_owned())
        .chain(["socket", "ioctl", "personality"].map(str::to_owned));
    let allowed = quoted(allowed.collect());
    let caps = quoted(Caps::STRICT.names().map(|n| format!("CAP_{n}")).collect());
    let env = quoted(env.iter().map(|(k, v)| format!("{k}={v}")).collect());
    format!(
        r#"{{"ociVersion":"1.0.2","process":{{"user":{{"uid":0,"gid":0}},"args":["/bin/escape"],"env":[{env}],"cwd":"/","noNewPrivileges":true,
"capabilities":{{"bounding":[{caps}],"effective":[{caps}],"permitted":[{caps}]}}}},"root":{{"path":"root"}},"hostname":"x",
"mounts":[{{"destination":"/proc","type":"proc","source":"proc"}},{{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755","size=65536k"]}},
{{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620"]}},
{{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777"]}},
{{"destination":"/dev/mqueue","type":"mqueue","source":"mqueue"}},{{"destination":"/sys","type":"sysfs","source":"sysfs","options":["nosuid","noexec","nodev","ro"]}}],
"linux":{{"namespaces":[{{"type":"pid"}},{{"type":"ipc"}},{{"type":"uts"}},{{"type":"mount"}},{{"type":"network"}}],
"seccomp":{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{{"names":[{allowed}],"action":"SCMP_ACT_ALLOW"}},
{{"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":2114060288,"op":"SCMP_CMP_MASKED_EQ"}}]}},
{{"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}}]}},
"maskedPaths":["/proc/acpi","/proc/asound","/proc/interrupts","/proc/kcore","/proc/keys","/proc/latency_stats","/proc/sched_debug","/proc/scsi","/proc/timer_list","/proc/timer_stats","/sys/firmware","/sys/devices/virtual/powercap"],
"readonlyPaths":["/proc/bus","/proc/fs","/proc/irq","/proc/sys","/proc/sysrq-trigger"]}}}}"#
    )
}

/// In a mount namespace without the second cgroup tree of a hybrid machine, on which crun refuses to run.
fn peer(bed: &Bed, who: &str) -> Option<Found> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    if !dirs.any(|dir| dir.join(who).exists()) {
        skip::because(who, "not installed");
        return None;
    }
    let id = format!("quelea-isolation-{}", std::process::id());
    let script = format!(
        "umount -l /sys/fs/cgroup/unified 2>/dev/null; exec {who} --root {0}/{who} {1} run -b {0} {id}",
        bed.dir.display(),
        if who == "crun" { "--cgroup-manager=disabled" } else { "" }
    );
    let out = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    assert!(out.status.success(), "{who}: {} {}", out.status, String::from_utf8_lossy(&out.stderr));
    Some(lines(&String::from_utf8_lossy(&out.stdout)))
}

#[test]
fn what_crun_and_runc_refuse_is_refused_here() {
    if !root_or_skip("isolation") {
        return;
    }
    let mut bed = Bed::new("isolation");
    bed.netns = Some(common::netns());
    std::fs::copy(env!("CARGO_BIN_EXE_initd-escape"), bed.root().join("bin/escape")).expect("copy");
    for dir in ["proc", "sys", "dev"] {
        std::fs::create_dir_all(bed.root().join(dir)).expect("root");
    }
    std::fs::write(bed.root().join("dev-in-image"), "").expect("file");
    let env = vec![
        ("ABSTRACT".to_owned(), "nobody-listens".to_owned()),
        ("HOST_PID".to_owned(), std::process::id().to_string()),
    ];
    std::fs::write(bed.dir.join("config.json"), config(&env)).expect("config");
    let peers: Vec<(&str, Found)> =
        ["crun", "runc"].into_iter().filter_map(|who| Some((who, peer(&bed, who)?))).collect();
    let c = ContainerSpec { env, argv: vec!["/bin/escape".into()], ..bed.container(&[]) };
    let (_, log) = bed.run(c);
    let ours = lines(&log);
    assert!(ours.len() > 190, "{log}");
    println!("{:24} {:>12} {:>12} {:>12}", "try", "ours", "crun", "runc");
    let mut weaker = Vec::new();
    for (name, value) in &ours {
        let of = |who: &str| {
            let found = peers.iter().find(|(w, _)| *w == who).and_then(|(_, f)| f.get(name));
            found.map_or("-", String::as_str)
        };
        println!("{name:24} {value:>12} {:>12} {:>12}", of("crun"), of("runc"));
        if !refused(value) && (refused(of("crun")) || refused(of("runc"))) {
            weaker.push(format!("{name}: {value}, crun {}, runc {}", of("crun"), of("runc")));
        }
    }
    assert!(weaker.is_empty(), "a peer refuses what we do not:\n{}", weaker.join("\n"));
}
