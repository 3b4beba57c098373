//! The overlay against plain routed veth, in interleaved rounds on this machine. Prints JSON lines. Needs root, `ip` and `iperf3`.
//!
//! `cargo run --release -p netshim --example overlay_bench [-- ROUNDS [SECONDS [TEST/WAY]]]`
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netshim::overlay::Gso;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;

#[path = "../tests/support/mod.rs"]
mod support;

use support::{Net, Node, Options, Space, inside, ip, spawn_inside};

/// Two namespaces and how to get from one to the other.
struct Way {
    name: &'static str,
    from: OwnedFd,
    to: OwnedFd,
    addr: IpAddr,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, default| args.get(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (rounds, seconds) = (number(0, 3), number(1, 2));
    // "tcp1/overlay" runs only that.
    let wanted = |test: &str, way: &str| {
        args.get(2).is_none_or(|only| format!("{test}/{way}").contains(only.as_str()))
    };
    if Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!(
            "{}",
            serde_json::json!({"bench": "overlay", "skipped": "iperf3 is not installed"})
        );
        return;
    }
    let off = Options { offload: false, gso: Gso::Off, ..Options::default() };
    let mut net = Net::new(&[Options::default(), Options::default(), off, off]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[1].pod());
    let same = net.nodes[0].pod();
    let (plain_a, plain_b) = (net.nodes[2].pod(), net.nodes[3].pod());
    let veth = plain(&net);
    let ways = [
        Way {
            name: "veth",
            from: veth.0.run(netns),
            to: veth.1.run(netns),
            addr: "10.98.1.2".parse().unwrap(),
        },
        Way {
            name: "overlay",
            from: a.netns.try_clone().unwrap(),
            to: b.netns,
            addr: b.addr.ip4.into(),
        },
        Way {
            name: "no_offload",
            from: plain_a.netns,
            to: plain_b.netns,
            addr: plain_b.addr.ip4.into(),
        },
        Way {
            name: "same_node",
            from: a.netns.try_clone().unwrap(),
            to: same.netns.try_clone().unwrap(),
            addr: same.addr.ip6.into(),
        },
    ];
    println!("# gso {}", net.nodes[0].overlay().stats().gso);
    let tests: [(&str, &[&str]); 3] =
        [("tcp1", &[]), ("tcp4", &["-P", "4"]), ("udp64", &["-u", "-b", "0", "-l", "64"])];
    for (test, extra) in tests {
        let mut results: Vec<Vec<Round>> = ways.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (way, list) in ways.iter().zip(&mut results) {
                if !wanted(test, way.name) {
                    continue;
                }
                list.push(iperf(way, seconds, extra));
            }
        }
        for (Way { name, .. }, list) in ways.iter().zip(&results) {
            if list.is_empty() {
                continue;
            }
            let rate = median(list.iter().map(|r| r.bits_per_s));
            if test == "udp64" {
                report(test, name, "rx", rate / 8.0 / 64.0 / 1e3, "kpps", "higher");
            } else {
                report(test, name, "rate", rate / 1e9, "Gb/s", "higher");
                report(
                    test,
                    name,
                    "cpu",
                    median(list.iter().map(|r| r.cpu_s_per_gb)),
                    "s/GB",
                    "lower",
                );
            }
            let ratios = list.iter().zip(&results[0]).map(|(r, v)| r.bits_per_s / v.bits_per_s);
            report(test, name, "ratio", median(ratios), "of veth", "higher");
        }
    }
    for way in ways.iter().filter(|w| wanted("rtt1", w.name)) {
        report("rtt1", way.name, "p50", round_trip(way), "us", "lower");
    }
    for node in &net.nodes {
        let stats = node.overlay().stats();
        let drops: Vec<_> = stats.drops.iter().filter(|(_, n)| *n > 0).collect();
        println!("# {} drops {drops:?} counts {:?}", node.name, stats.counts);
    }
    idle();
}

/// Two namespaces with veths to the nodes, which route between them.
fn plain(net: &Net) -> (Space, Space) {
    let make = |node: &Node, n: u8| {
        let pod = Space::new();
        pod.ip("link set lo up");
        node.space.ip(&format!("link add p0 type veth peer name eth0 netns {}", pod.tid));
        node.space.ip(&format!("addr add 10.98.{n}.1/24 dev p0"));
        node.space.ip("link set p0 up");
        pod.ip(&format!("addr add 10.98.{n}.2/24 dev eth0"));
        pod.ip("link set eth0 up");
        pod.ip(&format!("route add default via 10.98.{n}.1"));
        node.space.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        pod
    };
    let pods = (make(&net.nodes[0], 0), make(&net.nodes[1], 1));
    net.nodes[0].space.run(|| ip("route add 10.98.1.0/24 via 10.99.0.2"));
    net.nodes[1].space.run(|| ip("route add 10.98.0.0/24 via 10.99.0.1"));
    pods
}

fn netns() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

struct Round {
    bits_per_s: f64,
    cpu_s_per_gb: f64,
}

fn cpu_s() -> f64 {
    let of = |u: Usage| (u.user_time() + u.system_time()).num_microseconds() as f64 / 1e6;
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .map(|w| of(getrusage(w).unwrap()))
        .iter()
        .sum()
}

/// One run; CPU of client, server and this process (the data threads).
fn iperf(way: &Way, seconds: u32, extra: &[&str]) -> Round {
    let addr = way.addr.to_string();
    let before = cpu_s();
    let mut server = inside(&way.to, {
        let addr = addr.clone();
        move || {
            let server = Command::new("iperf3")
                .args(["-s", "-1", "-B", &addr])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            support::eventually("iperf3 listens", || {
                // Port 5201 in state LISTEN, in either family.
                ["tcp", "tcp6"].iter().any(|table| {
                    std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).is_ok_and(
                        |t| t.lines().any(|l| l.contains(":1451 ") && l.contains(" 0A ")),
                    )
                })
            });
            server
        }
    });
    let extra: Vec<String> = extra.iter().map(|s| (*s).to_owned()).collect();
    let output = inside(&way.from, move || {
        let mut command = Command::new("iperf3");
        command.args(["-c", &addr, "-t", &seconds.to_string(), "-J"]).args(&extra);
        if !extra.iter().any(|e| e == "-u") {
            command.args(["-C", "cubic"]);
        }
        command.output().unwrap()
    });
    if !output.status.success() {
        server.kill().unwrap();
        println!("# {}: {}", way.name, String::from_utf8_lossy(&output.stdout));
    }
    server.wait().unwrap();
    let cpu = cpu_s() - before;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let end = &json["end"];
    let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    let bits_per_s = sum["bits_per_second"].as_f64().unwrap_or(0.0);
    let bytes = sum["bytes"].as_f64().unwrap_or(f64::NAN);
    Round { bits_per_s, cpu_s_per_gb: cpu / (bytes / 1e9) }
}

/// The median round trip of one byte over TCP, in microseconds.
fn round_trip(way: &Way) -> f64 {
    const COUNT: usize = 5_000;
    let addr = way.addr;
    let (tell, told) = mpsc::channel();
    let server = spawn_inside(&way.to, move || {
        let listener = TcpListener::bind((addr, 0)).unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            stream.write_all(&byte).unwrap();
        }
    });
    let to = told.recv().unwrap();
    let times: Vec<f64> = inside(&way.from, move || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut byte = [0];
        (0..COUNT)
            .map(|_| {
                let start = Instant::now();
                stream.write_all(&byte).unwrap();
                stream.read_exact(&mut byte).unwrap();
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect()
    });
    server.join().unwrap();
    median(times.into_iter())
}

/// What two overlays that carry nothing cost: memory of this process, CPU over three seconds.
fn idle() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let rss_kib: f64 = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(f64::NAN);
    report("idle", "bench_process", "rss", rss_kib / 1024.0, "MiB", "lower");
    let before = cpu_s();
    std::thread::sleep(Duration::from_secs(3));
    report("idle", "four_overlays", "cpu", (cpu_s() - before) / 3.0 * 100.0, "%", "lower");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(test: &str, way: &str, metric: &str, value: f64, unit: &str, better: &str) {
    let value = (value * 1_000.0).round() / 1_000.0;
    println!(
        "{}",
        serde_json::json!({"bench": "overlay", "metric": format!("{test}_{way}_{metric}"), "value": value, "unit": unit, "better": better})
    );
}
