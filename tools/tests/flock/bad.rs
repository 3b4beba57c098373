//! Real containers that are wrong in each way there is: `quelea ps` and `quelea why` say what was tried, on what, why it failed and
//! what to do. (Processes and memory need cgroup controllers: `qemu-tests`.)

use std::time::{Duration, Instant};

use crate::support::{Flock, eventually, hello_spec};

/// How long words may take to be said.
const PATIENCE: Duration = Duration::from_secs(30);

/// A container of the image `tools`.
fn container(command: &str, more: &str) -> String {
    format!(
        "[[container]]\nname = \"c\"\nimage = \"tools\"\ncommand = [\"{command}\"]\ncpu = 0.02\nmemory = \"16Mi\"\nbackoff = {{ first = \"50ms\", max = \"1s\" }}\n{more}\n"
    )
}

/// One that runs a shell script.
fn shell(script: &str, more: &str) -> String {
    container("/bin/sh", &format!("args = [\"-c\", '''{script}''']\n{more}"))
}

fn start(flock: &Flock, name: &str, containers: &str) {
    let file = flock.file(&format!("{name}.toml"), &format!("app = \"{name}\"\n{containers}"));
    flock.ok(&["run", "--detach", &file]);
}

/// `ps` in both forms and `why` have these words, which name the container.
fn told(flock: &Flock, name: &str, words: &[&str]) {
    for command in [&["ps", name][..], &["ps", name, "-o", "json"], &["why", name]] {
        let start = Instant::now();
        loop {
            // In JSON a quote has a backslash.
            let said = flock.ok(command).replace("\\\"", "\"");
            if words.iter().all(|word| said.contains(word)) {
                assert!(said.contains("container c"), "{said}");
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{command:?} lacks some of {words:?}:\n{said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn programs_that_cannot_be_started_say_why() {
    let flock = Flock::up("input", 1);
    flock.import_tools();
    let user = "user = \"nobody-here\"";
    for (name, text, words) in [
        ("absent", container("/bin/nope", ""), &["no program \"/bin/nope\"", "set `command`"][..]),
        ("path", container("nope", ""), &["no program \"nope\" in PATH", "set `command`"]),
        ("mode", container("/bin/data", ""), &["\"/bin/data\" is not executable", "chmod"]),
        ("arch", container("/bin/foreign", ""), &["built for aarch64", "place.require"]),
        ("script", container("/bin/script", ""), &["interpreter /usr/bin/perl6", "static"]),
        ("loader", container("/bin/unloaded", ""), &["the loader /lib/nowhere", "static"]),
        ("plain", container("/bin/plain", ""), &["neither a program", "script with #!"]),
        ("user", container("/bin/sh", user), &["nobody-here", "set `user`"]),
        ("link", container("/bin/sh", "workdir = \"/out\""), &["/out leads through a link out"]),
        ("file", container("/bin/sh", "workdir = \"/bin/sh\""), &["no directory", "set `workdir`"]),
    ] {
        start(&flock, name, &text);
        told(&flock, name, words);
        flock.ok(&["stop", name]);
    }
}

#[test]
fn programs_that_end_badly_say_how() {
    let flock = Flock::up("ends", 1);
    flock.import_tools();
    let args = "args = [\"/none\"]";
    start(&flock, "code", &container("/bin/cat", args));
    told(&flock, "code", &["exited with code 1", "starts again in"]);
    // Without an init of ours it is PID 1 of its namespace and ends by the limit alone.
    start(&flock, "killed", &shell("ulimit -t 1; while :; do :; done", "init = false"));
    told(&flock, "killed", &["was killed by SIG", "starts again in"]);
    start(&flock, "forks", &shell("sleep 1000 & exit 0", ""));
    told(&flock, "forks", &["exited with code 0", "left processes behind", "in the foreground"]);
    start(&flock, "chatty", &shell("while :; do echo $PATH; done", "log = { rate = \"1Ki\" }"));
    told(&flock, "chatty", &["part of its output is not in its log", "raise `log.rate`"]);
    tells_how_much_is_missing(&flock);
    for app in ["code", "killed", "forks", "chatty"] {
        flock.ok(&["stop", app]);
    }
}

/// How many bytes, of now: it writes on.
fn tells_how_much_is_missing(flock: &Flock) {
    let dropped = || {
        let shown = flock.ok(&["pod", "chatty.0", "-o", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&shown["name"], &shown["node"]), (&"chatty.0".into(), &"n1".into()), "{shown}");
        assert_eq!(shown["containers"][0]["state"], "running", "{shown}");
        shown["containers"][0]["log_dropped_bytes"].as_u64().unwrap()
    };
    let first = dropped();
    assert!(first > 0);
    eventually("it grows", || dropped() > first);
    let shown = flock.ok(&["pod", "chatty.0"]);
    assert!(shown.contains("LOG DROPPED"), "{shown}");
    let refused = flock.say(&["pod", "chatty.7"]).err;
    assert!(refused.contains("no replica default/chatty.7"), "{refused}");
}

#[test]
fn who_is_deaf_to_its_signal_is_killed_and_said_to_be() {
    let flock = Flock::up("deaf", 1);
    flock.import_tools();
    let script = "trap : TERM; while :; do sleep 0.05; done";
    // Given up by its probe it has to end, too. By the time it is, its trap is set.
    let probe = "live = { exec = [\"/bin/cat\", \"/none\"], every = \"100ms\", fail = 2, start_grace = \"2s\" }";
    start(&flock, "sick", &shell(script, &format!("stop = {{ grace = \"200ms\" }}\n{probe}")));
    let words = ["was given up", "did not end within 0.2 s of SIGTERM (15)", "set `stop`"];
    told(&flock, "sick", &words);
    flock.ok(&["stop", "sick"]);

    start(&flock, "deaf", &shell(script, "stop = { grace = \"6s\" }"));
    eventually("it runs", || {
        flock.pods("n1", "deaf").first().is_some_and(|p| p["state"] == "running")
    });
    flock.ok(&["stop", "--detach", "deaf"]);
    // While it is waited for, that is what it says.
    for command in [&["ps", "deaf"][..], &["ps", "deaf", "-o", "json"], &["why", "deaf"]] {
        eventually(&format!("{command:?} says what is waited for"), || {
            let said = flock.ok(command);
            said.contains("stopping") && said.contains("was told to end") && said.contains("killed")
        });
    }
    eventually("it is gone", || flock.pods("n1", "deaf").is_empty());
    let events = flock.ok(&["events"]);
    let words = "container c did not end within 6.0 s of SIGTERM (15) and is killed";
    assert!(events.contains(words), "{events}");
}

#[test]
fn what_a_node_lacks_is_refused_where_it_is_insisted_on() {
    let flock = Flock::up("lacks", 1);
    flock.import_tools();
    for (name, more, words) in [
        ("device", "devices = [\"gpu\"]", ["a device named gpu", "[grants] devices"]),
        ("filter", "seccomp = \"mine\"", ["a system call filter named mine", "[grants] seccomp"]),
        ("cpus", "cpuset = \"0-8000\"", ["lacks ", "fix: "]),
    ] {
        start(&flock, name, &container("/bin/sh", more));
        let mut why = String::new();
        eventually(&format!("why of {name}"), || {
            why = flock.ok(&["why", name]);
            words.iter().all(|word| why.contains(word))
        });
        assert_eq!(flock.pods("n1", name).len(), 0, "nothing was tried");
    }
}

/// A spec has less room for variables than a program, an image may have more.
#[test]
fn an_environment_over_the_limit_says_where_it_stands() {
    let flock = Flock::up("env", 1);
    flock.import_tools();
    let large = format!("env = {{ BIG = \"{}\" }}", "x".repeat(12 << 10));
    let text = format!("app = \"env\"\n{}", container("/bin/sh", &large));
    let said = flock.say(&["run", &flock.file("env.toml", &text)]);
    assert_eq!(said.code, 1, "{said:?}");
    for word in ["at most 12288 are allowed", "`env`) into the image", "nothing was submitted"] {
        assert!(said.err.contains(word), "{said:?}");
    }

    let (root, out) = (flock.dir.join("tools"), flock.dir.join("large.oci").display().to_string());
    let variables = ["A", "B"].map(|name| format!("{name}={}", "x".repeat(100 << 10)));
    let (root, [a, b]) = (root.display().to_string(), &variables);
    flock.ok(&["image", "pack", &root, "--out", &out, "--tag", "large", "--env", a, "--env", b]);
    flock.ok(&["image", "import", &out]);
    // With a small stack there is less room for them, too.
    let text = container("/bin/sh", "rlimits = { stack = \"524288\" }");
    start(&flock, "large", &text.replace("image = \"tools\"", "image = \"large\""));
    told(&flock, "large", &["\"/bin/sh\"", "larger than the kernel", "make `env` and `args`"]);
}

/// An image whose program nobody has named is no reason to try it for ever.
#[test]
fn an_image_without_a_program_says_so() {
    let flock = Flock::up("empty", 1);
    flock.import_tools();
    let text = hello_spec(1, "").replace("image = \"hello\"", "image = \"tools\"");
    let file = flock.file("empty.toml", &text);
    flock.ok(&["run", "--detach", &file]);
    flock.reason("hello", &["container hello", "neither the spec nor the image"]);
}
