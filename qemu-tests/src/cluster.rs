//! Machines and the network between them, made from one description.

use crate::{
    disk::Disk,
    env::Env,
    fabric::{Dhcp, Fabric, Grant},
    firmware::Firmware,
    pace,
    vm::{self, Plan, Vm},
};
use anyhow::{Context as _, Result};
use images::cpio::Archive;
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Files for `/etc/quelea` of one machine.
pub type Files = Vec<(String, Vec<u8>)>;

/// What is special about one machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Memory, where it is not that of the others.
    pub memory_mib: Option<u32>,
    /// Its own kernel arguments, after those of all.
    pub args: String,
    /// Its own QEMU arguments, after those of all.
    pub qemu: Vec<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Further files of its root.
    pub extra: Option<Archive>,
    /// Another system UUID than [`vm::uuid`].
    pub uuid: Option<String>,
    /// Another network device than `virtio-net-pci`.
    pub nic: Option<&'static str>,
    /// It is blank: its firmware boots it from the network, once [`Vm::freeze`] lets it go.
    pub firmware: Option<Firmware>,
    /// It boots as racks do, whatever the others do; see [`Builder::product`].
    pub product: bool,
    /// Another kernel and initramfs than the tests' own, without a control channel.
    pub image: Option<(PathBuf, Vec<u8>)>,
    /// A second network device on the same switch, with this hardware address.
    pub second_nic: Option<[u8; 6]>,
}

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
    extra: Option<Archive>,
    reboots: bool,
    machines: Vec<Machine>,
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
            extra: None,
            reboots: false,
            machines: Vec::new(),
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

    /// Puts a file into `/etc/quelea` of one machine, in place of one of that name.
    #[must_use]
    pub fn file(mut self, machine: usize, name: &str, bytes: &[u8]) -> Self {
        if let Some(files) = self.files.get_mut(machine) {
            files.retain(|(known, _)| known != name);
            files.push((name.into(), bytes.into()));
        }
        self
    }

    /// The files of `/etc/quelea` of one machine.
    #[must_use]
    pub fn files(&self, machine: usize) -> &[(String, Vec<u8>)] {
        self.files.get(machine).map_or(&[], Vec::as_slice)
    }

    /// All files of `/etc/quelea` of one machine that has none so far.
    #[must_use]
    pub fn files_of(mut self, machine: usize, files: Files) -> Self {
        self.files.resize(self.files.len().max(machine + 1), Files::new());
        self.files[machine] = files;
        self
    }

    /// All of one machine's `/etc/quelea`, as it gets it beside its image.
    ///
    /// # Errors
    /// When there are too many files.
    fn archive(&self, machine: usize) -> Result<Vec<u8>> {
        let files = self.files.get(machine).context("no files of that machine")?;
        Ok(images::node_archive(files)?.to_bytes())
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

    /// Further files of every machine's root.
    #[must_use]
    pub fn extra(mut self, files: Archive) -> Self {
        self.extra = Some(files);
        self
    }

    /// Further files of one machine's root.
    #[must_use]
    pub fn extra_of(self, machine: usize, files: Archive) -> Self {
        self.each(|n, own| {
            if n == machine {
                own.extra = Some(files.clone());
            }
        })
    }

    /// A reset (reboot, watchdog) boots the same kernel again, as firmware does. Otherwise it ends QEMU.
    #[must_use]
    pub fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// A watchdog that resets the machine when nobody pets it.
    #[must_use]
    pub fn watchdog(mut self) -> Self {
        self.qemu.extend(["-device", "i6300esb", "-action", "watchdog=reset"].map(str::to_owned));
        self
    }

    /// Says what is special about each machine, by its number. After [`Builder::nodes`].
    #[must_use]
    pub fn each(mut self, change: impl Fn(usize, &mut Machine)) -> Self {
        self.machines.resize(self.nodes, Machine::default());
        self.machines.iter_mut().enumerate().for_each(|(n, machine)| change(n, machine));
        self
    }

    /// One disk for every machine.
    #[must_use]
    pub fn disk(self, disk: &Disk) -> Self {
        self.each(|_, machine| machine.disks.push(disk.clone()))
    }

    /// Switches everything on.
    ///
    /// # Errors
    /// When a socket, a file or QEMU cannot be made.
    pub fn start(self) -> Result<Cluster> {
        let dir = vm::test_dir(&self.name)?;
        let second = self.machines.iter().any(|machine| machine.second_nic.is_some());
        let ports = if second { 2 * self.nodes } else { self.nodes };
        let fabric = Fabric::start(&dir, ports, self.dhcp.then(|| self.server()), self.env.seed)?;
        let mut vms = Vec::new();
        for n in 0..self.nodes {
            vms.push(Vm::start(self.plan(n, &dir)?)?);
        }
        Ok(Cluster { vms, fabric, dir })
    }

    fn plan(&self, index: usize, dir: &Path) -> Result<Plan> {
        let env = self.env;
        let own = self.machines.get(index).cloned().unwrap_or_default();
        let product = self.product || own.product || own.image.is_some();
        let base = if let Some((_, image)) = &own.image {
            image
        } else if product {
            &env.product
        } else if self.agent {
            env.node.as_ref().context("no quelead")?
        } else {
            &env.bare
        };
        let mut initrds = vec![base.clone()];
        let extra = self.extra.iter().chain(&own.extra);
        initrds.extend(extra.map(Archive::to_bytes));
        if index < self.files.len() {
            initrds.push(self.archive(index)?);
        }
        let ip = if self.dhcp {
            "quelea.ip=dhcp".into()
        } else {
            format!("quelea.ip={}/24,gw=10.77.0.1 quelea.hostname={}", address(index), name(index))
        };
        let make = |(n, disk): (usize, Disk)| disk.make(dir, index, n);
        let args = format!("{} {}", self.args, own.args);
        let second =
            own.second_nic.map(|mac| vm::nic("virtio-net-pci", "n1", dir, self.nodes + index, mac));
        Ok(Plan {
            index,
            kernel: match own.image {
                Some((kernel, _)) => kernel,
                None if product => env.vmlinuz.clone(),
                None => env.vmlinux.clone(),
            },
            initrds,
            memory_mib: own.memory_mib.unwrap_or(self.memory_mib),
            args: if product {
                format!("{ip} {args}")
            } else {
                format!("rdinit=/{} {ip} {args}", crate::env::GUEST)
            },
            dir: dir.to_owned(),
            nic: own.firmware.map_or(own.nic.unwrap_or("virtio-net-pci"), Firmware::nic),
            firmware: own.firmware,
            uuid: own.uuid.unwrap_or_else(|| vm::uuid(index)),
            disks: own.disks.into_iter().enumerate().map(make).collect::<Result<_>>()?,
            reboots: self.reboots,
            qemu: self
                .qemu
                .iter()
                .chain(&own.qemu)
                .cloned()
                .chain(second.into_iter().flatten())
                .collect(),
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
            ntp: Vec::new(),
            seeds: String::new(),
            loader: None,
            lease_s: 3600,
            mood: crate::fabric::Mood::Normal,
            heard: 0,
            refused: 0,
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

    /// Switches a machine on that is off. Its disks hold what they held.
    ///
    /// # Errors
    /// As [`Vm::start`].
    pub fn power_on(&mut self, index: usize) -> Result<()> {
        self.vms[index] = Vm::start(self.vms[index].plan().clone())?;
        Ok(())
    }

    /// A power cut of one machine, and on again.
    ///
    /// # Errors
    /// As [`Vm::start`].
    pub fn power_cycle(&mut self, index: usize) -> Result<()> {
        self.vms[index].kill()?;
        self.power_on(index)
    }
}
