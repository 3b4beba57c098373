//! One machine: its agent, its disk, its pods, and how it loses power.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use gossip::Persist;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use sched::{NodeRecord, Observed};

use super::{Ev, World};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::kernel::Kernel;
use crate::node::Node;

pub(super) enum Waiting {
    Datagram(SocketAddr, Vec<u8>),
    Pod(String, Observed),
}

/// One machine.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(super) addr: SocketAddr,
    /// Its agent, while it runs.
    pub(crate) node: Option<Node>,
    pub(crate) disk: Disk,
    pub(crate) kernel: Kernel,
    pub(super) record: NodeRecord,
    pub(crate) drain: bool,
    /// Boots of the machine: pods of an earlier one are gone.
    pub(crate) boots: u64,
    pub(crate) paused: bool,
    pub(super) inbox: Vec<Waiting>,
    /// Its clocks; the wall clock is so much farther off.
    pub(crate) clock: Clock,
    pub(crate) wall_offset_ms: i64,
    pub(super) wake_at: Option<u64>,
    /// What it writes becomes durable late.
    pub(crate) disk_slow: bool,
    /// Its power fails in the middle of its next write: the seed of how.
    pub(crate) tears: Option<u64>,
    /// It will not come back.
    pub(crate) gone: bool,
    /// When it last booted or resumed.
    pub(crate) fresh_us: u64,
    /// The newest (generation, incarnation) it has seen of each member, since its boot.
    pub(super) seen: BTreeMap<String, (u64, u64)>,
}

impl Machine {
    /// The power is off.
    fn off(&mut self) {
        self.node = None;
        self.paused = false;
        self.inbox.clear();
        self.wake_at = None;
        self.tears = None;
        self.kernel = Kernel::default();
        self.boots += 1;
    }
}

impl World {
    /// A power cut: the agent, its pods and what was not synced are gone.
    pub(crate) fn power_cut(&mut self, node: usize, wipe: bool) {
        let m = &mut self.machines[node];
        m.off();
        if m.disk.power_cut(&mut self.rng) > 0 {
            self.marks.hit("disk lost an unsynced record");
        }
        if wipe {
            m.disk.wipe();
        }
    }

    /// A power cut in the middle of a write.
    pub(crate) fn torn_write(&mut self, node: usize, what: Persist, how: u64) {
        if self.options.verbose {
            println!("{:>8} {}: torn write", self.now / 1000, self.machines[node].name);
        }
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(how);
        let m = &mut self.machines[node];
        m.off();
        m.disk.begin(what);
        self.marks.hit("fault torn write");
        match m.disk.tear(&m.name, &mut rng) {
            Ok(torn) if torn.partial => self.marks.hit("disk tore a record"),
            Ok(_) => {}
            Err(wrong) => self.violate(wrong),
        }
        let after = rng.random_range(300_000..=25_000_000);
        self.queue.push(self.now + after, Ev::Boot { node });
    }

    /// The agent alone dies; what it wrote is in the page cache and survives.
    pub(crate) fn agent_dies(&mut self, node: usize) {
        let wall = self.wall_ms(node);
        let m = &mut self.machines[node];
        m.node = None;
        m.paused = false;
        m.inbox.clear();
        m.wake_at = None;
        m.disk.sync(wall);
    }
}

/// Where machine `i` is reached.
fn address(i: usize) -> SocketAddr {
    let (high, low) = (i / 250, i % 250);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high as u8, low as u8 + 1)), 7946)
}

/// Which machine is reached there; none of ours for an address of nobody.
pub(super) fn index(addr: SocketAddr) -> usize {
    let SocketAddr::V4(v4) = addr else { return usize::MAX };
    let [a, b, high, low] = v4.ip().octets();
    let ours = (a, b) == (10, 0) && (1..=250).contains(&low);
    if ours { usize::from(high) * 250 + usize::from(low) - 1 } else { usize::MAX }
}

pub(super) fn machine(i: usize, racks: usize, clock: Clock) -> Machine {
    let rack = i % racks;
    // Rows of two racks; fits: nodes are bounded far below.
    let labels = [("rack", format!("r{rack}")), ("row", format!("row{}", rack / 2))];
    Machine {
        name: format!("n{i}"),
        addr: address(i),
        node: None,
        disk: Disk::default(),
        kernel: Kernel::default(),
        record: NodeRecord {
            cpu_milli: 4_000,
            memory_bytes: 4 << 30,
            pods: 64,
            labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            ..NodeRecord::default()
        },
        drain: false,
        disk_slow: false,
        tears: None,
        boots: 0,
        paused: false,
        inbox: Vec::new(),
        clock,
        wall_offset_ms: 0,
        wake_at: None,
        gone: false,
        fresh_us: 0,
        seen: BTreeMap::new(),
    }
}
