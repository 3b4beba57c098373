//! The app spec as an operator meets it.

use std::collections::BTreeMap;

use sched::Spec;
use sched::spec::{
    Amount, Backoff, Check, Demand, Io, Kind, Mount, Profile, Restart, Rlimit, Role, Tmpfs,
    VolumeKind,
};

const FULL: &str = r#"
app = "shop/web"
kind = "service"
replicas = 12
labels = { tier = "fe" }
[[container]]
name = "nginx"
image = "reg/shop/web@sha256:9f2c"
command = ["/nginx"]
args = ["-g", "daemon off;"]
cpu = 0.5
memory = "256Mi"
pids = 64
env = { POD_IP = "{{ pod.ip }}", N = 3 }
ports = { http = 80, metrics = 9100 }
ready = { http = ":80/healthz", every = "2s" }
stop = { signal = "SIGQUIT", grace = "20s" }
caps = ["cap_net_bind_service", "CHOWN"]
user = "1000:1000"
workdir = "/srv"
read_only = true
restart = "on-failure"
[[container]]
name = "side"
image = "side:1"
ready = { tcp = ":9000" }
[place]
require = ["arch == amd64"]
spread = [{ by = "row" }, { by = "rack", max_skew = 2, mode = "hard" }]
unique = "host"
[update]
max_unavailable = "10%"
max_surge = 2
[partition]
replace_after = "3s"
minority = "keep"
"#;

fn errors(text: &str) -> Vec<String> {
    let diagnostics = Spec::parse(text, "app.toml").expect_err("must be refused");
    diagnostics
        .iter()
        .map(|d| format!("{}:{} {} {:?}", d.line, d.column, d.message, d.help))
        .collect()
}

/// Refused for exactly one reason, which says `part`.
#[track_caller]
fn refused(text: &str, part: &str) {
    let found = errors(text);
    assert!(found.len() == 1 && found[0].contains(part), "wanted `{part}`, got {found:#?}");
}

fn with(line: &str) -> String {
    format!("app = \"a\"\n[[container]]\nname = \"c\"\nimage = \"i:1\"\n{line}\n")
}

#[test]
fn full_spec_reads_as_written() {
    let s = Spec::parse(FULL, "app.toml").unwrap();
    assert_eq!(
        (s.namespace.as_str(), s.app.as_str(), s.kind, s.replicas),
        ("shop", "web", Kind::Service, 12)
    );
    let c = &s.containers[0];
    assert_eq!((c.cpu_milli, c.memory_bytes, c.pids), (500, 256 << 20, 64));
    assert_eq!(c.env["N"], "3");
    let probe = c.ready.as_ref().unwrap();
    assert_eq!(probe.check, Check::Http { port: 80, path: "/healthz".into() });
    assert_eq!((probe.every_ms, probe.timeout_ms, probe.fail), (2000, 1000, 3));
    assert_eq!((c.stop.signal.as_deref(), c.stop.grace_ms), (Some("QUIT"), 20_000));
    assert_eq!(c.caps.as_deref(), Some(&["CHOWN".to_owned(), "NET_BIND_SERVICE".to_owned()][..]));
    assert_eq!((c.read_only, c.restart), (true, Restart::OnFailure));
    assert_eq!(s.containers[1].ready.as_ref().unwrap().check, Check::Tcp { port: 9000 });
    assert!(s.place.unique_host && s.place.spread[1].hard);
    assert_eq!((s.place.spread[1].max_skew, s.place.require.len()), (2, 1));
    assert_eq!(
        (s.update.max_unavailable, s.update.max_surge),
        (Amount::Percent(10), Amount::Count(2))
    );
    assert_eq!(s.partition.replace_after_ms, 3000);
    assert_eq!((s.cpu_milli(), s.memory_bytes(), s.grace_ms()), (600, 384 << 20, 20_000));
}

#[test]
fn defaults_are_as_documented() {
    let s = Spec::parse(&with(""), "a.toml").unwrap();
    assert_eq!((s.namespace.as_str(), s.replicas, s.kind), ("default", 1, Kind::Service));
    let c = &s.containers[0];
    assert_eq!(
        (c.cpu_milli, c.memory_bytes, c.pids, c.stop.grace_ms),
        (100, 128 << 20, 1024, 10_000)
    );
    assert_eq!(
        (c.caps.clone(), c.ready.clone(), c.restart, c.read_only),
        (None, None, Restart::Always, false)
    );
    let by: Vec<_> = s.place.spread.iter().map(|s| (s.by.as_str(), s.hard)).collect();
    assert_eq!(by, [("row", false), ("rack", false)]);
    assert_eq!(s.partition.replace_after_ms, 1500);
    let daemon = Spec::parse(&format!("kind = \"daemon\"\n{}", with("")), "a.toml").unwrap();
    assert_eq!(daemon.kind, Kind::Daemon);
}

#[test]
fn all_mistakes_at_once_each_at_its_place() {
    let text = "app = \"Web\"\nreplcias = 3\n[[container]]\nname = \"c\"\nmemory = 256\nports = { http = 0 }\n[update]\nmax_surge = \"x\"\n";
    let found = errors(text);
    let at = |i: usize, part: &str| assert!(found[i].contains(part), "{part}: {found:#?}");
    assert_eq!(found.len(), 6, "{found:#?}");
    at(0, "1:7 `Web` is no app name");
    at(1, "2:1 unknown key `replcias` in the spec Some(\"did you mean `replicas`?\")");
    at(2, "3:1 `image` is missing in [[container]]");
    at(
        3,
        "5:10 `memory` in [[container]] wants a size in quotes Some(\"with a unit: memory = \\\"256Mi\\\"\")",
    );
    at(4, "6:18 port `http` wants a number from 1 to 65535");
    at(5, "8:13 `max_surge` in [update]: `x` is neither");
}

#[test]
fn a_diagnostic_shows_line_caret_and_help() {
    let d = Spec::parse(
        "app = \"a\"\nreplcias = 3\n[[container]]\nname=\"c\"\nimage=\"i\"\n",
        "app.toml",
    )
    .unwrap_err();
    let want = "error: unknown key `replcias` in the spec\n --> app.toml:2:1\n  |\n2 | replcias = 3\n  | ^^^^^^^^\n  = help: did you mean `replicas`?";
    assert_eq!(d[0].to_string(), want);
}

#[test]
fn fields_of_later_versions_are_refused_by_name() {
    for (text, part) in [
        (with("files = 1"), "`files` in [[container]] is not supported yet"),
        (
            with("[[volume]]\nname = \"d\"\nsize = \"1Mi\"\nkind = \"replicated\""),
            "`kind = \"replicated\"` is not supported yet",
        ),
        (with("[[service]]\nname = \"x\""), "`service` in the spec is not supported yet"),
        (with("[place]\nprefer = []"), "`prefer` in [place] is not supported yet"),
        (with("[update]\ncanary = { replicas = 1 }"), "`canary` in [update] is not supported yet"),
        (with("[partition]\nminority = \"stop\""), "`minority = \"stop\"` is not supported yet"),
        (format!("kind = \"cron\"\n{}", with("")), "`kind = \"cron\"` is not supported yet"),
        (with("env = { P = \"{{ secret.db }}\" }"), "secrets are not supported yet"),
    ] {
        refused(&text, part);
    }
}

#[test]
fn single_mistakes() {
    for (text, part) in [
        (String::new() + "[[container]]\nname=\"c\"\nimage=\"i\"", "`app` is missing"),
        ("app = \"a\"".into(), "there is no `[[container]]`"),
        ("app = \"a\"\ncontainer = 3".into(), "wants a list of tables"),
        ("app = \"a/b/c\"\n[[container]]\nname=\"c\"\nimage=\"i\"".into(), "is no app name"),
        (with("cpu = -1"), "wants CPUs from"),
        (with("cpu = \"two\""), "wants CPUs from"),
        (with("memory = \"1Ki\""), "between 1Mi and 64Ti"),
        (with("caps = [\"NET_ADMN\"]"), "did you mean `NET_ADMIN`?"),
        (with("ready = {}"), "wants one of"),
        (with("ready = { http = \":80/\", tcp = \":80\" }"), "wants one of"),
        (with("ready = { http = \"80/x\" }"), "is no port; write `:80`"),
        (with("ready = { tcp = \":80\", every = \"1ms\" }"), "must be between 100ms"),
        (with("stop = { signal = \"BOO\" }"), "one of TERM, QUIT"),
        (with("workdir = \"srv\""), "is no absolute path"),
        (with("image2 = \"x\""), "did you mean `image`?"),
        (with("command = []"), "is empty; leave it out"),
        (with("env = { A = [] }"), "`A` wants a string"),
        (with("[place]\nrequire = [\"arch = x\"]"), "to compare, write `==`"),
        (with("[place]\nunique = \"hst\""), "did you mean `host`?"),
        (with("[update]\nmax_surge = 0\nmax_unavailable = 0"), "nothing could ever be updated"),
        (with("[[container]]\nname = \"c\"\nimage = \"j\""), "two containers are named `c`"),
        (format!("kind = \"daemon\"\nreplicas = 2\n{}", with("")), "a daemon has no `replicas`"),
        (format!("replicas = 1.5\n{}", with("")), "wants a whole number, not a fraction"),
        (format!("replicas = 10001\n{}", with("")), "between 0 and 10000"),
        (format!("replicas = \n{}", with("")), ""),
        ("x".repeat(13_000), "at most 12288"),
    ] {
        refused(&text, part);
    }
}

const RICH: &str = r#"
app = "shop/rich"
share_pid = true
limits = "required"
[[volume]]
name = "data"
size = "8Mi"
[[container]]
name = "setup"
image = "i:1"
role = "init"
restart = "on-failure"
cpu = 2
memory = "32Mi"
mounts = [{ volume = "data", path = "/data" }]
[[container]]
name = "proxy"
image = "i:1"
role = "sidecar"
stop = { grace = "3s" }
ready = { grpc = ":9000/a.B", pass = 2 }
[[container]]
name = "main"
image = "i:1"
backoff = { first = "1s", max = "10s", reset = "5m" }
live = { exec = ["/check", "-q"], start_grace = "10s" }
start = { tcp = ":80" }
cpu_max = "1500m"
memory_high = "100Mi"
disk = "1.5Gi"
io = { read = "50Mi", write_ops = 500, weight = 50 }
cpuset = "0-3,8"
hugepages = { "2Mi" = "64Mi" }
rlimits = { nofile = "1024:65536", core = 0, memlock = "unlimited" }
tmpfs = [{ path = "/tmp" }, { path = "/run/x", size = "1Mi", mode = "0700" }]
mounts = [{ volume = "data", path = "/srv/data", read_only = true }]
devices = ["kvm", "gpu0"]
profile = "compat"
seccomp = "web"
init = false
stdin = "pipe"
log = { size = "1Mi", files = 2, rate = "64Ki" }
[[container]]
name = "tool"
exec = ["/usr/sbin/smartd", "-n"]
"#;

#[test]
fn a_pod_of_several_containers_reads_as_written() {
    let s = Spec::parse(RICH, "rich.toml").unwrap_or_else(|d| panic!("{}", d[0]));
    assert!(s.limits_required && s.share_pid);
    assert_eq!((s.volumes[0].name.as_str(), s.volumes[0].kind), ("data", VolumeKind::Empty));
    assert_eq!(s.volumes[0].size_bytes, 8 << 20);
    let roles: Vec<Role> = s.containers.iter().map(|c| c.role).collect();
    assert_eq!(roles, [Role::Init, Role::Sidecar, Role::Main, Role::Main]);
    let proxy = s.containers[1].ready.as_ref().unwrap();
    assert_eq!(proxy.check, Check::Grpc { port: 9000, service: "a.B".into() });
    assert_eq!(proxy.pass, 2);
    let c = &s.containers[2];
    assert_eq!(c.backoff, Backoff { first_ms: 1000, max_ms: 10_000, reset_ms: 300_000 });
    let live = c.live.as_ref().unwrap();
    assert_eq!(live.check, Check::Exec { argv: vec!["/check".into(), "-q".into()] });
    assert_eq!(live.start_grace_ms, 10_000);
    let start = c.start.as_ref().unwrap();
    assert_eq!((start.every_ms, start.fail), (1000, 60));
    assert_eq!((c.cpu_max_milli, c.memory_high_bytes), (Some(1500), Some(100 << 20)));
    assert_eq!((c.disk_bytes, s.containers[1].disk_bytes), (Some(3 << 29), None));
    let io = Io {
        read_bytes_per_s: Some(50 << 20),
        write_ops_per_s: Some(500),
        weight: Some(50),
        ..Io::default()
    };
    assert_eq!(c.io, io);
    assert_eq!(c.cpuset.as_deref(), Some("0-3,8"));
    assert_eq!(c.hugepages, BTreeMap::from([("2Mi".to_owned(), 64 << 20)]));
    assert_eq!(c.rlimits["nofile"], Rlimit { soft: 1024, hard: 65536 });
    assert_eq!(c.rlimits["core"], Rlimit { soft: 0, hard: 0 });
    assert_eq!(c.rlimits["memlock"], Rlimit { soft: u64::MAX, hard: u64::MAX });
    let tmp = Tmpfs { path: "/tmp".into(), size_bytes: 64 << 20, mode: 0o1777 };
    assert_eq!((&c.tmpfs[0], c.tmpfs[1].mode), (&tmp, 0o700));
    let mount = Mount { volume: "data".into(), path: "/srv/data".into(), read_only: true };
    assert_eq!(c.mounts, [mount]);
    assert_eq!(c.devices, ["gpu0", "kvm"]);
    assert_eq!((c.profile, c.seccomp.as_deref(), c.init), (Profile::Compat, Some("web"), false));
    assert_eq!((c.log.size_bytes, c.log.files), (1 << 20, 2));
    assert_eq!(c.log.rate_bytes_per_s, Some(64 << 10));
    let tool = &s.containers[3];
    assert_eq!(tool.exec.as_deref().unwrap()[0], "/usr/sbin/smartd");
    assert!(tool.image.is_empty() && tool.init);
}

#[test]
fn a_pod_holds_what_it_needs_at_once_and_stops_one_after_the_other() {
    let s = Spec::parse(RICH, "r").unwrap();
    // The init container's two CPUs and the sidecar's tenth: more than both main ones.
    assert_eq!(s.cpu_milli(), 2000 + 100);
    assert_eq!(s.memory_bytes(), (128 + 128 + 128) << 20);
    assert_eq!(s.grace_ms(), 10_000 + 3_000);
}

#[test]
fn what_a_node_must_have_is_listed_and_compared() {
    let demands = Spec::parse(RICH, "r").unwrap().demands();
    let names: Vec<String> = demands.iter().map(Demand::feature).collect();
    for name in [
        "cgroup.cpu",
        "cgroup.memory",
        "cgroup.pids",
        "cgroup.io",
        "cgroup.cpuset",
        "cgroup.hugetlb",
        "cpus",
        "hugepages.2Mi",
        "device.kvm",
        "device.gpu0",
        "host./usr/sbin/smartd",
        "seccomp.web",
    ] {
        assert!(names.contains(&name.to_owned()), "{name}: {names:?}");
    }
    let spec = Spec::parse(RICH, "r").unwrap();
    let mut features: BTreeMap<String, u64> = names.iter().map(|n| (n.clone(), 1 << 40)).collect();
    assert_eq!(spec.lacking(&features), None);
    features.insert("cpus".into(), 8);
    let (_, demand) = spec.lacking(&features).unwrap();
    assert_eq!((demand.to_string(), demand), ("CPU number 8".into(), Demand::Cpus(9)));
    features.remove("device.kvm");
    assert!(spec.lacking(&features).is_some_and(|(_, d)| !d.fix().is_empty()));
    let plain = Spec::parse(&with(""), "a").unwrap();
    assert_eq!(plain.lacking(&BTreeMap::new()), None, "an old node takes an old spec");
}

#[test]
fn a_grpc_probe_asks_for_a_service_or_for_the_server() {
    let check = |line: &str| {
        let s = Spec::parse(&with(line), "a").unwrap_or_else(|d| panic!("{}", d[0]));
        s.containers[0].live.as_ref().unwrap().check.clone()
    };
    let long = "s".repeat(256);
    for (text, port, service) in [
        (":1", 1, ""),
        (":65535/", 65_535, ""),
        (":90/a.b.C", 90, "a.b.C"),
        (&format!(":90/{long}"), 90, &long),
    ] {
        let want = Check::Grpc { port, service: service.to_owned() };
        assert_eq!(check(&format!("live = {{ grpc = \"{text}\" }}")), want);
    }
}

#[test]
fn mistakes_in_containers() {
    let volume = "[[volume]]\nname = \"d\"\nsize = \"1Mi\"\n";
    let before = |top: &str, line: &str| {
        format!("app = \"a\"\n{top}[[container]]\nname = \"c\"\nimage = \"i:1\"\n{line}\n")
    };
    for (text, part) in [
        (with("role = \"sidcar\""), "did you mean `sidecar`?"),
        (with("role = \"init\""), "none of the containers has the role `main`"),
        (with("backoff = { first = \"1m\", max = \"1s\" }"), "is longer than max"),
        (with("backoff = { frist = \"1m\" }"), "did you mean `first`?"),
        (with("live = { tcp = \":80\", pass = 3 }"), "`live` has no `pass`"),
        (with("live = { exec = [] }"), "`exec` in `live` is empty"),
        (with("ready = { grpc = \"80\" }"), "is no port; write `:80`"),
        (with("ready = { grpc = \":0/a\" }"), "is no port; write `:80`"),
        (with("ready = { grpc = \":66000\" }"), "is no port; write `:80`"),
        (with("ready = { grpc = \":90/a b\" }"), "printable ASCII"),
        (with(&format!("ready = {{ grpc = \":90/{}\" }}", "s".repeat(257))), "at most 256 bytes"),
        (with("ready = { grpc = \":90\", tcp = \":90\" }"), "`ready` wants one of"),
        (with("ready = { tcp = \":90/a\" }"), "is no port; write `:80`"),
        (with("start = { every = \"1s\" }"), "`start` wants one of"),
        (with("live = { tcp = \":80\", start_grace = \"2d\" }"), "is no duration"),
        (with("cpu = 2\ncpu_max = 1"), "is less than its `cpu`"),
        (with("memory_high = \"1Gi\""), "more than its `memory`"),
        (with("memory_high = 5"), "wants a size in quotes"),
        (with("disk = \"1Ki\""), "must be between 1Mi"),
        (with("disk = 5"), "wants a size in quotes"),
        (with("io = { read = \"1\" }"), "must be between 4Ki"),
        (with("io = { weight = 0 }"), "between 1 and 10000"),
        (with("io = { raed = \"1Mi\" }"), "did you mean `read`?"),
        (with("cpuset = \"3-1\""), "is no list of CPUs; write `0-3,8`"),
        (with("cpuset = \"\""), "is no list of CPUs"),
        (with("cpuset = \"0,+1\""), "is no list of CPUs"),
        (with("hugepages = { \"4Mi\" = \"4Mi\" }"), "there are 2Mi, 1Gi"),
        (with("hugepages = { \"2Mi\" = \"3Mi\" }"), "wants a multiple of 2Mi"),
        (with("rlimits = { nofiles = 3 }"), "did you mean `nofile`?"),
        (with("rlimits = { nofile = \"9:3\" }"), "SOFT not above HARD"),
        (with("rlimits = { nofile = -1 }"), "wants a number"),
        (with("tmpfs = [{ size = \"1Mi\" }]"), "`path` is missing in `tmpfs`"),
        (with("tmpfs = [{ path = \"/a/../b\" }]"), "without dots"),
        (with("tmpfs = [{ path = \"/\" }]"), "no absolute path below /"),
        (with("tmpfs = [{ path = \"/t\", mode = \"9\" }]"), "is no mode"),
        (with("mounts = [{ volume = \"d\", path = \"/d\" }]"), "no volume named `d`"),
        (before(volume, "mounts = [{ volume = \"dd\", path = \"/d\" }]"), "did you mean `d`?"),
        (
            before(
                volume,
                "mounts = [{ volume = \"d\", path = \"/d\" }]\ntmpfs = [{ path = \"/d/\" }]",
            ),
            "two mounts of `c` are at `/d`",
        ),
        (before(&volume.repeat(2), ""), "two volumes are named `d`"),
        (before("[[volume]]\nname = \"d\"\n", ""), "`size` is missing in [[volume]]"),
        (before("[[volume]]\nname = \"D\"\nsize = \"1Mi\"\n", ""), "is no volume name"),
        (with("devices = [\"/dev/kvm\"]"), "names that nodes grant in node.toml"),
        (with("profile = \"strong\""), "cannot be `strong`"),
        (with("seccomp = \"unconfined\""), "no container runs without a filter"),
        (with("caps = [\"SYS_ADMIN\"]"), "is given to no container"),
        (with("init = 1"), "wants true or false"),
        (with("exec = [\"/bin/x\"]"), "`image` cannot stand beside `exec`"),
        (
            "app = \"a\"\n[[container]]\nname = \"c\"\nexec = [\"/bin/x\"]\ndisk = \"1Gi\"\n"
                .into(),
            "`disk` cannot stand beside `exec`",
        ),
        (with("log = { files = 0 }"), "between 1 and 100"),
        (before("limits = \"hard\"\n", ""), "`limits` in the spec cannot be `hard`"),
        (
            "app = \"a\"\n[[container]]\nname = \"c\"\nexec = [\"sh\"]\n".into(),
            "is no absolute path",
        ),
        (
            "app = \"a\"\n[[container]]\nname = \"c\"\nexec = []\n".into(),
            "`exec` in [[container]] is empty",
        ),
    ] {
        refused(&text, part);
    }
    let init = with("role = \"init\"\nready = { tcp = \":1\" }")
        + &with("")[10..].replace("\"c\"", "\"m\"");
    refused(&init, "an init container has no `ready`");
}

#[test]
fn a_stored_spec_is_read_by_older_and_newer_builds() {
    let newer = with("tomorrow = 1").replace("app =", "later = { x = 1 }\napp =");
    assert!(Spec::parse(&newer, "n").is_err());
    let read = Spec::read_stored(&newer).unwrap();
    assert_eq!(read, Spec::parse(&with(""), "n").unwrap());
    // What an older build accepted.
    let older = Spec::read_stored(&with("caps = [\"SYS_ADMIN\"]")).unwrap();
    assert_eq!(older.containers[0].caps.as_deref(), Some(&["SYS_ADMIN".to_owned()][..]));
    assert!(Spec::read_stored("app = 3").is_err());
}

#[test]
fn an_upgrade_restarts_nothing() {
    // As version 0.1 computed them.
    assert_eq!(Spec::parse(FULL, "a").unwrap().template(), 0x4e7a_0f9b_c7ea_644e);
    assert_eq!(Spec::parse(&with(""), "a").unwrap().template(), 0x71bb_3c93_e06f_ccf0);
}

#[test]
fn every_field_of_a_pod_is_part_of_its_template() {
    let base = Spec::parse(RICH, "r").unwrap().template();
    let parts = [
        ("size = \"8Mi\"", "size = \"9Mi\""),
        ("role = \"sidecar\"", "role = \"main\""),
        ("first = \"1s\"", "first = \"2s\""),
        ("start_grace = \"10s\"", "start_grace = \"9s\""),
        ("start = { tcp = \":80\" }", "start = { tcp = \":81\" }"),
        ("pass = 2", "pass = 3"),
        ("1500m", "1600m"),
        ("memory_high = \"100Mi\"", "memory_high = \"99Mi\""),
        ("disk = \"1.5Gi\"", "disk = \"1Gi\""),
        ("read = \"50Mi\"", "read = \"51Mi\""),
        ("0-3,8", "0-3,7"),
        ("\"64Mi\"", "\"66Mi\""),
        ("core = 0", "core = 1"),
        ("\"/run/x\"", "\"/run/y\""),
        ("read_only = true", "read_only = false"),
        ("\"gpu0\"", "\"gpu1\""),
        ("profile = \"compat\"", "profile = \"strict\""),
        ("seccomp = \"web\"", "seccomp = \"wob\""),
        ("init = false", "init = true"),
        ("stdin = \"pipe\"", "stdin = \"terminal\""),
        ("share_pid = true", "share_pid = false"),
        ("files = 2", "files = 4"),
        ("smartd", "smartctl"),
    ];
    for (from, to) in parts {
        assert!(RICH.contains(from), "{from}");
        let other = Spec::parse(&RICH.replacen(from, to, 1), "r").unwrap().template();
        assert_ne!(base, other, "{from}");
    }
}

#[test]
fn template_changes_with_the_pod_only() {
    let base = Spec::parse(FULL, "a").unwrap().template();
    let scaled =
        Spec::parse(&FULL.replace("replicas = 12", "replicas = 3"), "a").unwrap().template();
    let surge =
        Spec::parse(&FULL.replace("max_surge = 2", "max_surge = 1"), "a").unwrap().template();
    let image = Spec::parse(&FULL.replace("side:1", "side:2"), "a").unwrap().template();
    assert_eq!((base, base), (scaled, surge));
    assert_ne!(base, image);
}

proptest::proptest! {
    /// Whatever is written, the answer is a spec or diagnostics that can be shown.
    #[test]
    fn no_text_panics(mut text in ".{0,200}", cut in 0..FULL.len(), insert in ".{0,6}") {
        if let Err(all) = Spec::parse(&text, "f") {
            assert!(!all.is_empty());
            for d in all { let _ = d.to_string(); }
        }
        // A real spec, damaged at one place.
        text = FULL.to_owned();
        if text.is_char_boundary(cut) { text.insert_str(cut, &insert); }
        if let Err(all) = Spec::parse(&text, "f") {
            for d in all { let _ = d.to_string(); }
        }
    }
}
