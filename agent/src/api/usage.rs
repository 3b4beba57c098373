//! What this node and its pods have used: counters, of which two readings make a rate. Read from the kernel's files when asked;
//! nothing is read while nobody asks.

use std::path::{Path, PathBuf};
use std::time::Instant;

use axum::extract::State;
use axum::response::Json;
use initd::cgroup::{self, Pressure};
use tokio::sync::oneshot;

use super::server::{Answer, Refused, Shared};
use super::types::{NodeUsage, PodUsage, Stall, Traffic, Usage};
use crate::host;

/// Pids looked at below one pod's cgroup until one tells of the pod's network.
const PIDS_MAX: usize = 64;
/// Cgroups below one pod's that are looked through for them.
const CGROUPS_MAX: usize = 64;
/// Interfaces that carry what other interfaces carry, too.
const INNER: [&str; 2] = ["lo", netshim::podnet::HOST_INTERFACE];

/// A pod that is to be read: what is known of it already, and its cgroup.
pub(crate) type Asked = (PodUsage, Option<PathBuf>);

pub(super) async fn usage(State(shared): State<Shared>) -> Answer<Usage> {
    let (name, pods, at_us) = shared
        .core
        .call(|node| (node.config.name.clone(), node.usage_asked(), node.now_us()))
        .await?;
    let (sender, receiver) = oneshot::channel();
    // A thousand small files for a hundred pods: on a thread of its own.
    std::thread::spawn(move || {
        let began = Instant::now();
        let mut usage = Usage { node: name, at_us, machine: machine(), pods: Vec::new() };
        usage.pods = pods.into_iter().map(|(known, dir)| pod(known, dir.as_deref())).collect();
        // In the middle of the reading, so that the error of a rate is half of its duration at most.
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(0);
        usage.at_us = usage.at_us.saturating_add(took_us / 2);
        let _ = sender.send(usage);
    });
    receiver.await.map(Json).map_err(|_| Refused(500, "the reading was interrupted".into()))
}

fn pod(known: PodUsage, dir: Option<&Path>) -> PodUsage {
    let Some(dir) = dir else { return known };
    let used = cgroup::usage(dir);
    let stall = |p: Option<Pressure>| p.map(|p| p.some.avg10_permyriad);
    PodUsage {
        cpu_us: used.cpu_us,
        memory_bytes: used.memory_bytes,
        pids: used.pids,
        pressure: Stall {
            cpu_permyriad: stall(used.cpu_pressure),
            memory_permyriad: stall(used.memory_pressure),
            io_permyriad: stall(used.io_pressure),
        },
        read_bytes: used.read_bytes,
        written_bytes: used.written_bytes,
        net: traffic_of(dir),
        ..known
    }
}

/// The pod's traffic, through the eyes of any process in it.
fn traffic_of(dir: &Path) -> Option<Traffic> {
    let mut dirs = vec![dir.to_owned()];
    let mut looked = 0;
    while let Some(dir) = dirs.pop().filter(|_| looked < CGROUPS_MAX) {
        looked += 1;
        let pids = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let found = pids.lines().take(PIDS_MAX).find_map(|pid| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
            traffic(&text, |name| name == netshim::podnet::POD_INTERFACE)
        });
        if found.is_some() {
            return found;
        }
        let below = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    None
}

fn machine() -> NodeUsage {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let field = |name| host::field_kib(&memory, name).map(|kib| kib << 10);
    let total_bytes = field("MemTotal:").unwrap_or(0);
    let stall = |file: &str| cgroup::pressure(&read(file)).map(|p| p.some.avg10_permyriad);
    NodeUsage {
        cpus_milli: host::cpu_milli(),
        cpu_us: busy_us(&read("/proc/stat")),
        memory_bytes: total_bytes.saturating_sub(field("MemAvailable:").unwrap_or(total_bytes)),
        memory_total_bytes: total_bytes,
        pressure: Stall {
            cpu_permyriad: stall("/proc/pressure/cpu"),
            memory_permyriad: stall("/proc/pressure/memory"),
            io_permyriad: stall("/proc/pressure/io"),
        },
        net: traffic(&read("/proc/net/dev"), |name| !INNER.contains(&name)),
        agent_cpu_us: host::own_cpu_us(),
        agent_rss_bytes: host::rss_bytes(),
    }
}

/// All that the CPUs did but idle and wait for disks: the first line of `/proc/stat`, in hundredths of a second (proc_stat(5)).
fn busy_us(stat: &str) -> u64 {
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu "));
    let times: Vec<u64> =
        line.unwrap_or_default().split_ascii_whitespace().map_while(|w| w.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests' time is in user already.
    let busy = times.iter().take(8).enumerate().filter(|(at, _)| ![3, 4].contains(at));
    busy.map(|(_, ticks)| ticks).sum::<u64>().saturating_mul(10_000)
}

/// Sums over the interfaces that `counts` names: `NAME: rx_bytes 7 others tx_bytes …` (proc_pid_net(5)).
fn traffic(text: &str, counts: impl Fn(&str) -> bool) -> Option<Traffic> {
    let mut total: Option<Traffic> = None;
    for (name, rest) in text.lines().filter_map(|line| line.split_once(':')) {
        if !counts(name.trim()) {
            continue;
        }
        let number = |at| rest.split_ascii_whitespace().nth(at).and_then(|w| w.parse::<u64>().ok());
        let (Some(received), Some(sent)) = (number(0), number(8)) else { continue };
        let sum = total.get_or_insert_default();
        sum.received_bytes = sum.received_bytes.saturating_add(received);
        sum.sent_bytes = sum.sent_bytes.saturating_add(sent);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files() {
        assert_eq!(busy_us("cpu  1 2 3 1000 500 4 5 6 7 8\ncpu0 9 9\n"), 21 * 10_000);
        assert_eq!(busy_us(""), 0);
        let dev = "Inter-|   Receive\n face |bytes\n    lo:  7 1 0 0 0 0 0 0 7 1\n  eth0: 100 1 0 0 0 0 0 0 30 1\n mesh0:5 1 0 0 0 0 0 0 5 1\n";
        let own = traffic(dev, |name| !INNER.contains(&name)).unwrap();
        assert_eq!((own.received_bytes, own.sent_bytes), (100, 30));
        assert!(traffic(dev, |name| name == "eth9").is_none());
        assert!(machine().memory_total_bytes > 0);
    }
}
