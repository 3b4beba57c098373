//! Programs that misbehave, and agents that are killed at a bad time.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bed, LONG, PROBE, eventually, finish, root_or_skip, running};
use initd::pod::{ContainerSpec, LogPolicy, Overflow, Root, RootIdmap, Stop, Tmpfs};
use initd::shim::{ContainerState, Event, Shim};

#[test]
fn an_environment_over_the_limit_and_a_missing_loader_say_so() {
    if !root_or_skip("env_limit") {
        return;
    }
    let bed = Bed::new("limits");
    // One string may have 128 KiB (MAX_ARG_STRLEN).
    let env = vec![("BIG".to_owned(), "x".repeat(200 << 10))];
    let text = bed.failure(ContainerSpec { env, ..bed.container(&["true"]) });
    assert!(text.contains("larger than the kernel takes"), "{text}");
    // A dynamic program in an image without its loader.
    let source = bed.dir.join("x.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").expect("source");
    let exe = bed.root().join("bin/dynamic");
    let built = Command::new("cc").arg("-o").arg(&exe).arg(&source).status();
    if built.is_ok_and(|s| s.success()) {
        let argv = vec!["/bin/dynamic".to_owned()];
        let text = bed.failure(ContainerSpec { argv, ..bed.container(&[]) });
        assert!(text.contains("needs the loader /lib"), "{text}");
    } else {
        skip::because("missing loader", "no cc");
    }
}

#[test]
fn who_is_deaf_to_sigterm_is_killed_with_what_it_left() {
    if !root_or_skip("deaf") {
        return;
    }
    let bed = Bed::new("deaf");
    for (init, words) in [(true, ["deaf", ""]), (false, ["deaf", ""]), (true, ["daemon", "stay"])] {
        let c = ContainerSpec {
            init,
            stop: Stop { signal: libc::SIGTERM, grace_ms: 200 },
            ..bed.container(&words)
        };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        eventually("the program", || !bed.log("main").is_empty());
        let t = Instant::now();
        shim.stop(None).expect("stop");
        let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
        assert!(events.iter().any(|e| matches!(e, Event::Exited { .. })), "{events:?}");
        if words[0] == "deaf" {
            assert!(t.elapsed() >= Duration::from_millis(200), "it heard");
        }
        finish(shim);
        assert_eq!(running("599996"), 0, "a daemon that was left");
        std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
    }
}

#[test]
fn a_full_disk_is_the_programs_own_trouble() {
    if !root_or_skip("full") {
        return;
    }
    let bed = Bed::new("full");
    let tmpfs = vec![Tmpfs { target: "/data".into(), size_bytes: 1 << 20, mode: 0o755 }];
    let (exit, log) = bed.run(ContainerSpec { tmpfs, ..bed.container(&["fill", "/data/x"]) });
    assert_eq!((exit.code, log.as_str()), (Some(0), "full after 1048576: 28\n"));
}

#[test]
fn a_flood_of_output_is_dropped_or_waits_and_is_bounded() {
    if !root_or_skip("flood") {
        return;
    }
    let bed = Bed::new("flood");
    for overflow in [Overflow::Wait, Overflow::Drop { bytes_per_s: 100_000 }] {
        let log = LogPolicy { file_bytes: 64 << 10, files: 2, overflow };
        let c = ContainerSpec { log, ..bed.container(&["flood", "20000"]) };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
        let good = |e: &Event| matches!(e, Event::Exited { exit, .. } if exit.success());
        assert!(events.iter().any(good), "{events:?}");
        shim.request_status().expect("asked");
        let events = shim.wait(LONG, |e| matches!(e, Event::Status(_))).expect("status");
        let Some(Event::Status(status)) = events.last() else { panic!("{events:?}") };
        let dropped = status.containers[0].log_dropped_bytes;
        // 20,000 lines of 201 bytes.
        match overflow {
            Overflow::Wait => assert_eq!(dropped, 0),
            Overflow::Drop { .. } => assert!(dropped > 2_000_000, "{dropped}"),
        }
        finish(shim);
        let dir = bed.pod_dir().join("logs");
        let size = |f: &str| std::fs::metadata(dir.join(f)).map_or(0, |m| m.len());
        assert!(size("main.log") + size("main.log.1") <= 2 * (64 << 10), "the log grew");
        assert!(!dir.join("main.log.2").exists());
        std::fs::remove_dir_all(&dir).expect("logs");
    }
}

/// An agent is killed some time after it began to spawn a pod. The next one finds a shim that works, or nothing but what it
/// can clear away.
#[test]
fn an_agent_killed_at_any_step_of_a_launch_leaves_what_the_next_can_use_or_clear() {
    if !root_or_skip("killed_agent") {
        return;
    }
    let bed = Bed::new("killed");
    let root = Root::Mounted { path: bed.root(), idmap: RootIdmap::Done };
    let c = ContainerSpec { root, ..bed.container(&["sleep", "599995"]) };
    let spec = bed.pod(vec![c]);
    let file = bed.dir.join("spec");
    std::fs::write(&file, spec.encode().expect("small")).expect("spec");
    let (mut found, mut nothing) = (0, 0);
    // Fifty at least; on a slow machine until both have been seen.
    for step in 0..400u64 {
        if step >= 50 && found > 0 && nothing > 0 {
            break;
        }
        let mut agent = Command::new(PROBE)
            .arg("spawn-pod")
            .arg(&file)
            .stdout(Stdio::null())
            .spawn()
            .expect("agent");
        // From before its first instruction to well after the launch.
        std::thread::sleep(Duration::from_micros(step * step * 8));
        agent.kill().expect("kill");
        agent.wait().expect("reap");
        match Shim::attach(&bed.pod_dir()) {
            Ok(mut shim) => {
                found += 1;
                let runs = |e: &Event| match e {
                    Event::Started { .. } => true,
                    Event::Status(s) => {
                        matches!(s.containers[0].state, ContainerState::Running { .. })
                    }
                    _ => false,
                };
                let events = shim.wait(LONG, runs).expect("events");
                assert!(events.iter().any(runs), "step {step}: {events:?}");
                let _ = shim.stop(Some(0));
                shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("stop");
                let _ = shim.quit();
                shim.wait(LONG, |e| matches!(e, Event::Gone)).expect("gone");
            }
            Err(e) => {
                assert!(matches!(e, initd::Error::Gone { .. }), "step {step}: {e}");
                nothing += 1;
            }
        }
        if let Some(node) = &bed.node {
            node.remove_pod("pod-1").unwrap_or_else(|e| panic!("step {step}: {e}"));
            assert!(!node.pod("pod-1").exists() && !node.shim("pod-1").exists(), "step {step}");
        }
        eventually("no process of the pod", || running("599995") == 0);
        eventually("no shim", || running("quelea-shim") == 0 || !of(&bed.pod_dir()));
    }
    println!("{found} found running, {nothing} never came to be");
    assert!(
        found > 0 && nothing > 0,
        "{found} {nothing}: the times are not right for this machine"
    );
}

/// A user namespace is made by a process that has a copy of every descriptor, listening sockets too.
#[test]
fn an_agent_killed_while_it_makes_a_user_namespace_leaves_no_process() {
    if !root_or_skip("killed_userns") {
        return;
    }
    let word = format!("userns-{}", std::process::id());
    for step in 0..40u64 {
        let mut agent = Command::new(PROBE)
            .args(["make-user-namespaces", &word])
            .stdout(Stdio::piped())
            .spawn()
            .expect("agent");
        // It has begun: then at any moment of it.
        let mut byte = [0u8];
        let read = std::io::Read::read(agent.stdout.as_mut().expect("piped"), &mut byte);
        assert_eq!(read.expect("its first word"), 1);
        std::thread::sleep(Duration::from_micros(step * 37));
        agent.kill().expect("kill");
        agent.wait().expect("reap");
        eventually("nothing of it", || running(&word) == 0);
    }
}

/// Whether a living process holds the pod's lock.
fn of(dir: &Path) -> bool {
    let fd = std::fs::File::open(dir).expect("directory");
    rustix::fs::flock(&fd, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
}
