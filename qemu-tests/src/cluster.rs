//! Machines and the network between them, made from one description.

use crate::{
    env::Env,
    fabric::{Dhcp, Fabric, Grant},
    pace,
    vm::{self, Plan, Vm},
};
use anyhow::{Context as _, Result};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Files for `/etc/quelea` of one machine.
pub type Files = Vec<(String, Vec<u8>)>;

/// Describes a cluster.
#[derive(Debug)]
pub struct Builder<'e> {
    env: &'e Env,
    name: String,
    nodes: usize,
    memory_mib: u32,
    agent: bool,
    dhcp: bool,
    product: bool,
    args: String,
    qemu: Vec<String>,
    files: Vec<Files>,
}

/// A running cluster. Dropping it switches everything off.
#[derive(Debug)]
pub struct Cluster {
    /// The machines. Dropped before the fabric.
    pub vms: Vec<Vm>,
    /// The network.
    pub fabric: Fabric,
    /// Logs, capture, sockets.
    pub dir: PathBuf,
}

/// Address of machine `n`.
#[must_use]
pub fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + n as u8)
}

/// Name of machine `n`.
#[must_use]
pub fn name(n: usize) -> String {
    format!("n{}", n + 1)
}

impl Cluster {
    /// A cluster of one machine with 128 MiB, DHCP and no agent, until told otherwise.
    #[must_use]
    pub fn builder<'e>(env: &'e Env, name: &str) -> Builder<'e> {
        Builder {
            env,
            name: name.into(),
            nodes: 1,
            memory_mib: 128,
            agent: false,
            dhcp: true,
            product: false,
            args: String::new(),
            qemu: Vec::new(),
            files: Vec::new(),
        }
    }
}

impl Builder<'_> {
    /// Number of machines.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Memory of each.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// quelead as `/init`, with these files in `/etc/quelea`, one list a machine.
    #[must_use]
    pub fn agent(mut self, files: Vec<Files>) -> Self {
        self.agent = true;
        self.files = files;
        self
    }

    /// No DHCP server in the switch: each machine is told its address on the command line.
    #[must_use]
    pub fn given_addresses(mut self) -> Self {
        self.dhcp = false;
        self
    }

    /// Kernel and initramfs as racks boot them: compressed, without test helpers and so without a control channel.
    #[must_use]
    pub fn product(mut self) -> Self {
        self.product = true;
        self
    }

    /// Further kernel arguments.
    #[must_use]
    pub fn args(mut self, args: &str) -> Self {
        self.args = args.into();
        self
    }

    /// Further QEMU arguments.
    #[must_use]
    pub fn qemu(mut self, args: &[&str]) -> Self {
        self.qemu = args.iter().map(|s| (*s).to_owned()).collect();
        self
    }

    /// Switches everything on.
    ///
    /// # Errors
    /// When a socket, a file or QEMU cannot be made.
    pub fn start(self) -> Result<Cluster> {
        let dir = vm::test_dir(&self.name)?;
        let fabric =
            Fabric::start(&dir, self.nodes, self.dhcp.then(|| self.server()), self.env.seed)?;
        let mut vms = Vec::new();
        for n in 0..self.nodes {
            vms.push(Vm::start(self.plan(n, &dir)?)?);
        }
        Ok(Cluster { vms, fabric, dir })
    }

    fn plan(&self, index: usize, dir: &Path) -> Result<Plan> {
        let env = self.env;
        let base = if self.product {
            &env.product
        } else if self.agent {
            env.node.as_ref().context("no quelead")?
        } else {
            &env.bare
        };
        let mut initrds = vec![base.clone()];
        if let Some(files) = self.files.get(index) {
            initrds.push(images::node_archive(files)?.to_bytes());
        }
        let ip = if self.dhcp {
            "quelea.ip=dhcp".into()
        } else {
            format!("quelea.ip={}/24,gw=10.77.0.1 quelea.hostname={}", address(index), name(index))
        };
        Ok(Plan {
            index,
            kernel: if self.product { env.vmlinuz.clone() } else { env.vmlinux.clone() },
            initrds,
            memory_mib: self.memory_mib,
            args: if self.product {
                format!("{ip} {}", self.args)
            } else {
                format!("rdinit=/{} {ip} {}", crate::env::GUEST, self.args)
            },
            dir: dir.to_owned(),
            qemu: self.qemu.clone(),
        })
    }

    fn server(&self) -> Dhcp {
        let grant = |n: usize| Grant {
            address: address(n),
            hostname: name(n),
            labels: format!("rack=r{}", n % 2 + 1),
        };
        Dhcp {
            server: Ipv4Addr::new(10, 77, 0, 1),
            mac: [0x52, 0x54, 0, 0x71, 1, 1],
            grants: (0..self.nodes).map(|n| (vm::mac(n), grant(n))).collect(),
            lease_s: 3600,
            mood: crate::fabric::Mood::Normal,
            heard: 0,
        }
    }
}

impl Cluster {
    /// Waits until every machine has an address; the times since each was switched on.
    ///
    /// # Errors
    /// When one has none in time.
    pub fn network_up(&mut self) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        for vm in &mut self.vms {
            let (first, _) = vm.line("is PID 1", Duration::from_secs(30))?;
            pace::booted(first);
            times.push(vm.line("net: up ", Duration::from_secs(20))?.0);
        }
        Ok(times)
    }

    /// A power cut of one machine, and on again.
    ///
    /// # Errors
    /// As [`Vm::start`].
    pub fn power_cycle(&mut self, index: usize) -> Result<()> {
        let plan = self.vms[index].plan().clone();
        self.vms[index].kill()?;
        self.vms[index] = Vm::start(plan)?;
        Ok(())
    }
}
