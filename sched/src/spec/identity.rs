//! What makes two specs the same pod.
//!
//! The hash of a template is in every claim. A build that adds a field must give the same hash to every spec that does not
//! use it, or an upgrade of the agents would restart every pod of the flock: what version 0.1 knew is hashed as it
//! hashed it, and all that came later is appended only where it says something.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Backoff, Check, Container, Io, Log, Probe, Profile, Restart, Role, Spec, Stdin, Stop};
use crate::hash;

/// A container as version 0.1 wrote it; the order of the fields is part of the hash.
#[derive(Serialize)]
struct First<'a> {
    name: &'a str,
    image: &'a str,
    command: &'a Option<Vec<String>>,
    args: &'a Option<Vec<String>>,
    cpu_milli: u64,
    memory_bytes: u64,
    pids: u32,
    env: &'a BTreeMap<String, String>,
    ports: &'a BTreeMap<String, u16>,
    ready: Option<FirstProbe<'a>>,
    stop: &'a Stop,
    caps: &'a Option<Vec<String>>,
    user: &'a Option<String>,
    workdir: &'a Option<String>,
    read_only: bool,
    restart: Restart,
}

#[derive(Serialize)]
struct FirstProbe<'a> {
    check: &'a Check,
    every_ms: u64,
    timeout_ms: u64,
    fail: u32,
}

impl<'a> First<'a> {
    fn of(c: &'a Container) -> Self {
        let probe = |p: &'a Probe| FirstProbe {
            check: &p.check,
            every_ms: p.every_ms,
            timeout_ms: p.timeout_ms,
            fail: p.fail,
        };
        Self {
            name: &c.name,
            image: &c.image,
            command: &c.command,
            args: &c.args,
            cpu_milli: c.cpu_milli,
            memory_bytes: c.memory_bytes,
            pids: c.pids,
            env: &c.env,
            ports: &c.ports,
            ready: c.ready.as_ref().map(probe),
            stop: &c.stop,
            caps: &c.caps,
            user: &c.user,
            workdir: &c.workdir,
            read_only: c.read_only,
            restart: c.restart,
        }
    }
}

/// Values of later versions that say something, each behind a name that never changes.
fn later(c: &Container) -> Vec<(&'static str, Vec<u8>)> {
    let mut list = Vec::new();
    // Serialising plain owned data into a Vec has no failing case.
    fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
        postcard::to_allocvec(value).expect("plain data into a Vec cannot fail")
    }
    let mut add = |name, said: bool, value: Vec<u8>| {
        if said {
            list.push((name, value));
        }
    };
    add("role", c.role != Role::default(), bytes(&c.role));
    add("backoff", c.backoff != Backoff::default(), bytes(&c.backoff));
    add("live", c.live.is_some(), bytes(&c.live));
    add("start", c.start.is_some(), bytes(&c.start));
    let ready = c.ready.as_ref().map(|p| (p.pass, p.start_grace_ms));
    add("ready2", ready.is_some_and(|r| r != (1, 0)), bytes(&ready));
    add("cpu_max", c.cpu_max_milli.is_some(), bytes(&c.cpu_max_milli));
    add("memory_high", c.memory_high_bytes.is_some(), bytes(&c.memory_high_bytes));
    add("disk", c.disk_bytes.is_some(), bytes(&c.disk_bytes));
    add("io", c.io != Io::default(), bytes(&c.io));
    add("cpuset", c.cpuset.is_some(), bytes(&c.cpuset));
    add("hugepages", !c.hugepages.is_empty(), bytes(&c.hugepages));
    add("rlimits", !c.rlimits.is_empty(), bytes(&c.rlimits));
    add("tmpfs", !c.tmpfs.is_empty(), bytes(&c.tmpfs));
    add("mounts", !c.mounts.is_empty(), bytes(&c.mounts));
    add("devices", !c.devices.is_empty(), bytes(&c.devices));
    add("profile", c.profile != Profile::default(), bytes(&c.profile));
    add("seccomp", c.seccomp.is_some(), bytes(&c.seccomp));
    add("init", !c.init, bytes(&c.init));
    add("exec", c.exec.is_some(), bytes(&c.exec));
    add("stdin", c.stdin != Stdin::default(), bytes(&c.stdin));
    add("log", c.log != Log::default(), bytes(&c.log));
    list
}

impl Spec {
    /// Names what a pod is: two specs of one template need no restart between them. Scaling, placement,
    /// budgets and the app's labels are not part of it.
    #[must_use]
    pub fn template(&self) -> u64 {
        let first: Vec<First<'_>> = self.containers.iter().map(First::of).collect();
        // Serialising plain owned data into a Vec has no failing case.
        let bytes = postcard::to_allocvec(&first).expect("plain data into a Vec cannot fail");
        let mut more: Vec<(usize, &str, Vec<u8>)> = Vec::new();
        for (at, container) in self.containers.iter().enumerate() {
            more.extend(later(container).into_iter().map(|(name, value)| (at, name, value)));
        }
        for volume in &self.volumes {
            let value = postcard::to_allocvec(volume).expect("plain data into a Vec cannot fail");
            more.push((usize::MAX, "volume", value));
        }
        if self.share_pid {
            more.push((usize::MAX, "share_pid", Vec::new()));
        }
        if more.is_empty() {
            return hash::stable(&[b"template", &bytes]);
        }
        let more = postcard::to_allocvec(&more).expect("plain data into a Vec cannot fail");
        hash::stable(&[b"template", &bytes, &more])
    }
}
