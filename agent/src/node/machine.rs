//! The machine around the node: PID 1's link, what an operator wants of it, how it ends, and what it says of itself.

mod orders;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use initd::init::link::{AgentEnd, ToAgent, ToInit};
use sched::NodeRecord;
use tokio::sync::oneshot;

use super::Node;
use crate::config::NodeFile;
use crate::found::{self, Boot, Net};
use crate::host;
use crate::life::{self, Life, Purpose};

/// A stall this long is taken for an absence in which others may have replaced this node's pods, in microseconds. Longer
/// than a busy machine stalls; a node that was held dead for less is told so by the others.
pub(super) const AWAY_US: u64 = 3_000_000;
/// How often the machine is looked at, and PID 1 is told that the core thread's loop turns, in microseconds.
const SECOND_US: u64 = 1_000_000;
/// How long a new kernel has to be healthy to be kept, in microseconds.
const STEADY_US: u64 = 10_000_000;
/// How long an alert about another machine stands after it was last seen, in microseconds.
const SIGHTING_US: u64 = 60_000_000;
/// Requests that wait for PID 1's refusal; further ones are not told of it.
const WAITERS_MAX: usize = 8;
/// The word of the kernel command line that names the boot image, as an upgrade gave it.
pub const IMAGE_WORD: &str = "quelea.image=";

/// How the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It ends; whoever keeps it running may start another.
    Quit,
    /// It goes on as a full agent: maintenance is over.
    Serve,
}

/// What the machine is, and what PID 1 says.
pub struct Machine {
    /// The way to PID 1, where it is ours.
    pub link: Option<AgentEnd>,
    /// What PID 1 found.
    pub boot: Boot,
    /// The configuration as written, and where.
    pub file: NodeFile,
    /// Where that was read.
    pub file_path: PathBuf,
    /// Why the node serves no pods and waits for an operator.
    pub maintenance: Option<String>,
    /// The kernel's release.
    pub(crate) kernel: String,
    pub(crate) booted_ms: u64,
    pub(crate) image: String,
    pub(crate) phase: String,
    pub(crate) wish: String,
    pub(crate) life: Life,
    pub(crate) kept: bool,
    /// An operator has spoken since this agent started, or the past has been heard.
    wished: bool,
    /// The next agent is to be a full one.
    ends_maintenance: bool,
    exit: Option<Exit>,
    drained: bool,
    steady_us: Option<u64>,
    second_us: u64,
    /// By what they are about; some pass.
    alerts: BTreeMap<String, (String, Option<u64>)>,
    waiters: Vec<oneshot::Sender<String>>,
}

impl Machine {
    /// This machine, as `file` at `file_path` has it.
    pub fn new(file: NodeFile, file_path: PathBuf, link: Option<AgentEnd>) -> Self {
        let boot = Boot::read(&file.run);
        let cmdline = found::read("/proc/cmdline".as_ref());
        let image = cmdline.split_ascii_whitespace().find_map(|w| w.strip_prefix(IMAGE_WORD));
        let mut alerts = BTreeMap::new();
        for (at, fault) in boot.faults.iter().enumerate() {
            alerts.insert(format!("boot {at}"), (format!("boot: {fault}"), None));
        }
        Self {
            link,
            boot,
            file,
            file_path,
            maintenance: None,
            kernel: host::kernel(),
            booted_ms: host::booted_ms(),
            image: image.unwrap_or_default().to_owned(),
            phase: String::new(),
            wish: String::new(),
            life: Life::default(),
            kept: false,
            wished: false,
            ends_maintenance: false,
            exit: None,
            drained: false,
            steady_us: None,
            second_us: 0,
            alerts,
            waiters: Vec::new(),
        }
    }

    /// The node is to serve no pods and to wait for an operator.
    pub fn maintain(&mut self, reason: &str) {
        self.maintenance = Some(reason.to_owned());
        self.alert("maintenance", format!("maintenance: {reason}"));
    }

    /// Whether it serves no pods and waits for an operator.
    pub fn in_maintenance(&self) -> bool {
        self.maintenance.is_some()
    }

    /// Something that people should know of this machine, until it is said again.
    pub(super) fn alert(&mut self, about: &str, text: String) {
        self.alerts.insert(about.to_owned(), (text, None));
    }

    /// It is over.
    pub(super) fn unalert(&mut self, about: &str) {
        self.alerts.remove(about);
    }

    pub(super) fn alerts(&self) -> impl Iterator<Item = String> + '_ {
        self.alerts.values().map(|(text, _)| text.clone())
    }

    pub(super) fn next_deadline(&self) -> u64 {
        self.life.next_deadline().map_or(self.second_us, |at| at.min(self.second_us))
    }

    fn say(&mut self, message: &ToInit) {
        let Some(link) = &self.link else { return };
        match link.send(message) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(%message, "PID 1 does not read"),
            Err(error) => {
                tracing::warn!(%error, "PID 1 is not reached any more");
                self.link = None;
            }
        }
    }
}

impl Node {
    /// The loop has to end, and how.
    pub fn exit(&self) -> Option<Exit> {
        self.machine.exit
    }

    /// Everything runs: gossip, and the API listens.
    pub fn is_up(&mut self) {
        self.machine.say(&ToInit::Ready);
    }

    /// What is remembered is on disk when this returns.
    pub fn flush(&mut self) {
        if let Err(error) = self.driver.flush() {
            tracing::warn!(%error, "gossip log");
        }
    }

    /// PID 1 may have said something.
    pub fn link_readable(&mut self) {
        loop {
            let Some(link) = &self.machine.link else { return };
            match link.receive() {
                Ok(Some(message)) => self.init_said(message),
                Ok(None) => return,
                Err(initd::Error::Format { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, "PID 1 is not reached any more");
                    self.machine.link = None;
                }
            }
        }
    }

    fn init_said(&mut self, message: ToAgent) {
        match message {
            ToAgent::Phase { phase, reason } => {
                self.machine.phase = match reason.as_str() {
                    "" => phase.name().to_owned(),
                    reason => format!("{}: {reason}", phase.name()),
                };
                self.publish();
            }
            ToAgent::Drain { within_ms, power } => {
                self.event("machine", format!("{} in at most {within_ms} ms", power.name()));
                let grace_ms = self.longest_grace_ms();
                let within_ms = u64::from(within_ms);
                self.life_step(life::Input::Drain { within_ms, grace_ms });
            }
            ToAgent::Refused { reason } => {
                self.event("machine", format!("PID 1 refused: {reason}"));
                for waiting in std::mem::take(&mut self.machine.waiters) {
                    // Who asked may have gone away.
                    let _ = waiting.send(reason.clone());
                }
            }
        }
    }

    /// SIGTERM, or the agent itself: it ends, its pods run on.
    pub fn quit(&mut self) {
        if self.machine.drained {
            self.machine.exit = Some(Exit::Quit);
        } else if self.machine.life.serves() {
            self.event("agent", "it ends; its pods run on");
            self.life_step(life::Input::Quit);
        }
    }

    /// What is due around the machine.
    pub(super) fn machine_tick(&mut self, now_us: u64) {
        if !self.machine.life.serves() {
            self.look_at_life();
        }
        if now_us < self.machine.second_us {
            return;
        }
        self.machine.second_us = now_us + SECOND_US;
        self.machine.say(&ToInit::Alive);
        self.machine.alerts.retain(|_, (_, until)| until.is_none_or(|at| at > now_us));
        self.watch_address();
        self.watch_uuids();
        self.watch_health(now_us);
        self.images_tick(now_us);
        self.layers_tick(now_us);
        self.publish();
    }

    /// Pods here that another node may take over.
    fn movable_pods(&self) -> usize {
        let stay = |app: &sched::AppStatus| {
            app.spec.as_ref().is_some_and(|spec| spec.kind == sched::spec::Kind::Daemon)
        };
        let daemons: Vec<_> =
            self.sched.apps().filter(stay).map(|a| (a.namespace, a.app)).collect();
        let here = |local: &&super::pods::Local| {
            let record = local.record();
            !daemons
                .iter()
                .any(|(namespace, app)| (namespace, app) == (&record.namespace, &record.app))
        };
        self.local.values().filter(here).count()
    }

    fn look_at_life(&mut self) {
        let me = &self.config.name;
        let alive = |m: &&gossip::Member| m.state.is_live() && *m.name != **me;
        let others = self.driver.gossip().members().filter(alive).count();
        let (pods, movable) = (self.local.len(), self.movable_pods());
        self.life_step(life::Input::Seen { pods, movable, others });
    }

    fn life_step(&mut self, input: life::Input) {
        let mut out = Vec::new();
        self.machine.life.step(self.clock.now_us(), input, &mut out);
        for action in out {
            match action {
                life::Action::Move => {
                    self.sched_step(sched::Input::Drain(true));
                    self.look_at_life();
                }
                life::Action::Stop { grace_ms } => self.stop_all(grace_ms),
                life::Action::Stay => self.publish(),
                life::Action::Leave => self.gossip_step(gossip::Input::Leave),
                life::Action::Over(purpose) => self.over(purpose),
            }
        }
    }

    fn stop_all(&mut self, grace_ms_max: u64) {
        let claims: Vec<String> = self.local.keys().cloned().collect();
        self.event("machine", format!("{} pods are stopped here", claims.len()));
        for claim in claims {
            let grace_ms = self.grace_ms(&claim).min(grace_ms_max);
            self.pods_step(crate::pods::Input::Stop { claim, grace_ms });
        }
    }

    fn grace_ms(&self, claim: &str) -> u64 {
        const UNKNOWN_MS: u64 = 10_000;
        let Some(local) = self.local.get(claim) else { return 0 };
        let record = local.record();
        let mut apps = self.sched.apps();
        let app = apps.find(|a| a.namespace == record.namespace && a.app == record.app);
        app.and_then(|app| app.spec).map_or(UNKNOWN_MS, |spec| spec.grace_ms())
    }

    fn longest_grace_ms(&self) -> u64 {
        self.local.keys().map(|claim| self.grace_ms(claim)).max().unwrap_or(0)
    }

    pub(super) fn left(&mut self) {
        self.event("flock", "left");
        self.life_step(life::Input::Left);
    }

    fn over(&mut self, purpose: Purpose) {
        self.flush();
        match purpose {
            Purpose::Power => {
                self.machine.drained = true;
                self.machine.say(&ToInit::Drained);
                if self.machine.link.is_none() {
                    self.machine.exit = Some(Exit::Quit);
                }
            }
            Purpose::Quit => {
                let serve = self.machine.ends_maintenance && self.machine.link.is_none();
                self.machine.exit = Some(if serve { Exit::Serve } else { Exit::Quit });
            }
        }
    }

    /// The network gave another address: everything that is bound to the old one starts again.
    fn watch_address(&mut self) {
        if self.machine.file.address.is_some() || !self.machine.life.serves() {
            return;
        }
        if let Some(address) = Net::read(&self.config.run).address
            && address != self.config.address
        {
            self.event(
                "machine",
                format!(
                    "its address is {address} now, not {}: the agent starts again, its pods run on",
                    self.config.address
                ),
            );
            self.life_step(life::Input::Quit);
        }
    }

    /// Two machines with one SMBIOS UUID: a vendor's carelessness, or a disk or machine that was cloned.
    fn watch_uuids(&mut self) {
        let uuid = &self.machine.boot.uuid;
        let me = &self.config.name;
        let same = |(name, record): &(&String, &NodeRecord)| {
            *name != me && !uuid.is_empty() && record.uuid == *uuid && self.is_live(name)
        };
        let names: Vec<&str> =
            self.nodes.iter().filter(same).map(|(name, _)| name.as_str()).collect();
        let text = format!("uuid {uuid} is also that of {}", names.join(", "));
        if names.is_empty() {
            self.machine.alerts.remove("uuid");
        } else if self.machine.alerts.get("uuid").is_none_or(|(old, _)| *old != text) {
            self.event("machine", text.clone());
            self.machine.alert("uuid", text);
        }
    }

    /// A kernel on trial stays once the node has been well for a while.
    fn watch_health(&mut self, now_us: u64) {
        if self.machine.kept {
            return;
        }
        let gossip = self.driver.gossip();
        let me = &gossip.me().name;
        let others = || gossip.members().filter(|m| m.name != *me);
        let roster = others().filter(|m| m.state != gossip::State::Left).count() + 1;
        let live = others().filter(|m| m.state.is_live()).count() + 1;
        let well = self.joined && live * 2 > roster && self.machine.life.serves();
        if !well || self.machine.in_maintenance() {
            self.machine.steady_us = None;
            return;
        }
        let since = *self.machine.steady_us.get_or_insert(now_us);
        if now_us >= since + STEADY_US {
            self.machine.kept = true;
            self.machine.say(&ToInit::Kept);
        }
    }

    /// This node was not there for a while and did not know.
    pub(super) fn was_away(&mut self, why: &str) {
        if self.machine.in_maintenance() {
            return;
        }
        self.event(
            "machine",
            format!("{why}: its pods count as not ready until it knows which were replaced"),
        );
        self.sched_step(sched::Input::Away);
    }

    /// Another machine goes by this node's name.
    pub(super) fn namesake(&mut self, addr: SocketAddr) {
        let text = format!(
            "another machine at {} goes by the name {} with this flock's key: a cloned disk, or one boot image for two; give one of them its own credentials by `quelea init node`",
            addr.ip(),
            self.config.name
        );
        let until = self.clock.now_us() + SIGHTING_US;
        let about = "namesake".to_owned();
        if self.machine.alerts.insert(about, (text.clone(), Some(until))).is_none() {
            self.event("machine", text);
            self.publish();
        }
    }

    /// What the flock remembers of this node from before this start.
    pub(super) fn remembered(&mut self, record: &NodeRecord) {
        let old = record.boot < self.driver.gossip().me().generation;
        if old && !self.machine.wished && !record.wish.is_empty() {
            self.machine.wished = true;
            self.event("machine", format!("as an operator wanted it before: {}", record.wish));
            self.take_wish(&record.wish);
        }
    }
}
