//! Specs: round trips, and each mistake by its name.

use super::*;

fn spec() -> PodSpec {
    PodSpec {
        containers: vec![ContainerSpec::new("c", "/r", ["/bin/x"])],
        ..PodSpec::new("p", "/p")
    }
}

/// The spec with its first container changed.
fn with(change: impl FnOnce(&mut ContainerSpec)) -> PodSpec {
    let mut s = spec();
    change(&mut s.containers[0]);
    s
}

fn volume(name: &str) -> Volume {
    Volume { name: name.into(), size_bytes: 1, mode: 0o755 }
}

#[test]
fn cpu_lists_are_those_of_the_kernel() {
    let ok = |cpus: &str| with(|c| c.resources.cpus = Some(cpus.into())).check().is_ok();
    for list in ["0", "0-3", "0-3,8", "7,1"] {
        assert!(ok(list), "{list}");
    }
    for list in ["", "0-", "-1", "1-0", "0,,1", "0 1", "a", "9999", "0-3:1/2", "+1"] {
        assert!(!ok(list), "{list}");
    }
}

#[test]
fn nothing_is_mounted_where_the_kernel_speaks() {
    for target in ["/proc", "/proc/self", "//sys/fs", "/proc/"] {
        let t = Tmpfs { target: target.into(), size_bytes: 1, mode: 0o755 };
        assert!(with(|c| c.tmpfs.push(t)).check().is_err(), "{target}");
    }
    let t = Tmpfs { target: "/srv/proc".into(), size_bytes: 1, mode: 0o755 };
    assert_eq!(with(|c| c.tmpfs.push(t)).check(), Ok(()));
}

#[test]
fn process_limits_by_name() {
    assert_eq!(Rlimit::named("nofile", 1, 2), Some(Rlimit { resource: 7, soft: 1, hard: 2 }));
    assert_eq!(Rlimit::named("rttime", 1, 2).map(|r| r.resource), Some(15));
    assert_eq!(Rlimit::named("files", 1, 2), None);
}

#[test]
fn capabilities_by_name() {
    assert_eq!(Caps::named("CAP_CHOWN"), Some(Caps(1)));
    assert_eq!(Caps::named("CHECKPOINT_RESTORE"), Some(Caps(1 << 40)));
    assert_eq!(Caps::named("chown"), None);
    let strict: Vec<_> = Caps::STRICT.names().collect();
    let want = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "NET_BIND_SERVICE",
    ];
    assert_eq!(strict, want);
    let more: Vec<_> = Caps::COMPAT.without(Caps::STRICT).names().collect();
    assert_eq!(more, ["SETPCAP", "SYS_CHROOT", "SETFCAP"]);
}

#[test]
fn specs_come_back_and_other_versions_are_refused() {
    let mut bytes = spec().encode().expect("small");
    assert_eq!(PodSpec::decode(&bytes), Ok(spec()));
    for cut in 0..bytes.len() {
        assert!(PodSpec::decode(&bytes[..cut]).is_err(), "{cut}");
    }
    bytes[0] += 1;
    assert!(matches!(PodSpec::decode(&bytes), Err(Error::Format { .. })));
    let big = with(|c| c.env.push(("A".into(), "x".repeat(SPEC_BYTES_MAX))));
    assert!(big.encode().is_err());
}

#[test]
fn each_mistake_is_named() {
    let cases: [(&str, PodSpec); 24] = [
        ("volumes[a]", PodSpec { volumes: vec![volume("a"), volume("a")], ..spec() }),
        ("volumes[../a]", PodSpec { volumes: vec![volume("../a")], ..spec() }),
        (
            "resources.cpus",
            PodSpec {
                resources: Resources { cpus: Some("3-1".into()), ..Resources::default() },
                ..spec()
            },
        ),
        (
            "containers[c].volumes.volume",
            with(|c| {
                c.volumes.push(VolumeMount {
                    volume: "b".into(),
                    target: "/b".into(),
                    read_only: false,
                })
            }),
        ),
        ("containers[c].root.size_bytes", with(|c| c.root = Root::Fresh { size_bytes: 0 })),
        (
            "containers[c].seccomp",
            with(|c| c.seccomp = Seccomp::Own { name: "x".into(), program: vec![] }),
        ),
        ("containers[c].resources.io_weight", with(|c| c.resources.io_weight = Some(0))),
        (
            "containers[c].resources.io",
            with(|c| {
                c.resources.io.push(IoLimit {
                    device: "/dev/vda".into(),
                    read_bytes_per_s: None,
                    write_bytes_per_s: None,
                    read_ops_per_s: None,
                    write_ops_per_s: None,
                })
            }),
        ),
        (
            "containers[c].resources.huge_pages",
            with(|c| c.resources.huge_pages.push(HugePages { page_bytes: 3 << 20, max_bytes: 0 })),
        ),
        ("id", PodSpec { id: "../x".into(), ..spec() }),
        ("dir", PodSpec { dir: "p".into(), ..spec() }),
        ("hostname", PodSpec { hostname: String::new(), ..spec() }),
        ("containers", PodSpec { containers: vec![], ..spec() }),
        ("containers", with(|c| c.kind = Kind::Sidecar)),
        ("containers[a/b].name", with(|c| c.name = "a/b".into())),
        (
            "containers[c].root.path",
            with(|c| c.root = Root::Mounted { path: "r".into(), idmap: RootIdmap::Done }),
        ),
        ("containers[c].argv", with(|c| c.argv.clear())),
        ("containers[c].env", with(|c| c.env.push(("A=B".into(), String::new())))),
        ("containers[c].workdir", with(|c| c.workdir = "x".into())),
        (
            "containers[c].binds/tmpfs/volumes.target",
            with(|c| c.tmpfs.push(Tmpfs { target: "/a/../..".into(), size_bytes: 1, mode: 0 })),
        ),
        (
            "containers[c].devices",
            with(|c| {
                c.devices.push(Device {
                    name: "../x".into(),
                    source: "/dev/null".into(),
                    read_only: false,
                })
            }),
        ),
        ("containers[c].stop.signal", with(|c| c.stop.signal = 0)),
        ("containers[c].log", with(|c| c.log.files = 0)),
        (
            "containers[c].ready/live.http.path",
            with(|c| c.ready = Some(Probe::new(Check::Http { port: 1, path: "/ x".into() }))),
        ),
    ];
    for (want, spec) in cases {
        match spec.check() {
            Err(Error::Spec { field, .. }) => assert_eq!(field, want),
            other => panic!("{want}: {other:?}"),
        }
    }
    let mut twice = spec();
    twice.containers.push(ContainerSpec::new("c", "/r", ["x"]));
    assert!(twice.check().is_err());
}

proptest::proptest! {
    #[test]
    fn rubbish_is_refused_without_a_panic(bytes: Vec<u8>) {
        let _ = PodSpec::decode(&bytes);
        let mut versioned = vec![SPEC_VERSION];
        versioned.extend(bytes);
        let _ = PodSpec::decode(&versioned);
    }
}
