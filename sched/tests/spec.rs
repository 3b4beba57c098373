//! The app spec as an operator meets it.

use sched::Spec;
use sched::spec::{Amount, Check, Kind, Restart};

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
        (with("live = { tcp = \":80\" }"), "`live` in [[container]] is not supported yet"),
        (with("mounts = [\"a:/b\"]"), "`mounts` in [[container]] is not supported yet"),
        (with("[volume]\ndata = { size = \"1Gi\" }"), "`volume` in the spec is not supported yet"),
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
