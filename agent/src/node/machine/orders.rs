//! What operators order of a machine: cordon, drain, power, an upgrade, maintenance over, a member forgotten.

use std::path::PathBuf;

use initd::init::link::ToInit;
use initd::machine::Power;
use sched::record::{CORDON, DRAIN};
use tokio::sync::oneshot;

use super::WAITERS_MAX;
use crate::adopt;
use crate::api::types::Adopt;
use crate::found;
use crate::life;
use crate::node::Node;
use crate::node::submit::Refusal;
use crate::upgrade::{Order, Staging};

impl Node {
    pub(super) fn take_wish(&mut self, wish: &str) {
        wish.clone_into(&mut self.machine.wish);
        let life = &self.machine.life;
        let ends = !life.serves() && !life.stays();
        let drain = wish == DRAIN || self.machine.in_maintenance() || ends;
        self.sched_step(sched::Input::Drain(drain));
        self.publish();
    }

    /// An operator cordons or drains this node, or ends that by an empty wish.
    pub(crate) fn wish(&mut self, wish: &str) -> Result<(), Refusal> {
        if !["", CORDON, DRAIN].contains(&wish) {
            return Err((400, format!("{wish:?} is no wish: {CORDON}, {DRAIN} or nothing")));
        }
        self.machine.wished = true;
        if self.machine.wish != wish {
            let said = if wish.is_empty() { "free for new pods" } else { wish };
            self.event("machine", format!("an operator wants it: {said}"));
        }
        self.take_wish(wish);
        self.pump();
        Ok(())
    }

    /// An operator ends the machine. PID 1 has it drained first; what comes through the channel is its refusal.
    pub(crate) fn power(&mut self, power: &str) -> Result<oneshot::Receiver<String>, Refusal> {
        let power = match Power::by_word(power) {
            Some(power @ (Power::Off | Power::Reboot | Power::Halt)) => power,
            _ => return Err((400, format!("{power:?}: off, reboot or halt is needed"))),
        };
        self.tell_init(&ToInit::Power(power))
    }

    /// An operator's new kernel is staged and verified.
    fn kexec(&mut self, dir: PathBuf) -> Result<oneshot::Receiver<String>, Refusal> {
        self.tell_init(&ToInit::Kexec(dir))
    }

    /// Whether PID 1 of this machine is ours.
    fn has_init(&self) -> bool {
        self.machine.link.is_some()
    }

    fn no_init(&self) -> Refusal {
        let name = &self.config.name;
        (409, format!("PID 1 of {name} is not Quelea's: end that machine by its own means"))
    }

    fn tell_init(&mut self, message: &ToInit) -> Result<oneshot::Receiver<String>, Refusal> {
        if !self.has_init() {
            return Err(self.no_init());
        }
        self.event("machine", format!("an operator wants: {message}"));
        self.machine.say(message);
        let (sender, receiver) = oneshot::channel();
        self.machine.waiters.retain(|waiting| !waiting.is_closed());
        if self.machine.waiters.len() < WAITERS_MAX {
            self.machine.waiters.push(sender);
        }
        Ok(receiver)
    }

    /// An operator has put right what was wrong: maintenance ends.
    pub(crate) fn retry(&mut self) -> Result<(), Refusal> {
        if !self.machine.in_maintenance() {
            return Err((409, format!("{} is not in maintenance", self.config.name)));
        }
        self.event("machine", "an operator ends maintenance");
        self.machine.say(&ToInit::Retry);
        self.machine.ends_maintenance = true;
        self.life_step(life::Input::Quit);
        Ok(())
    }

    /// An operator gives this machine a name and credentials of its own; the words say where they were written.
    pub(crate) fn become_node(&mut self, given: &Adopt) -> Result<String, Refusal> {
        if !self.machine.in_maintenance() {
            return Err((
                409,
                format!(
                    "{} serves already: only a machine in maintenance is adopted",
                    self.config.name
                ),
            ));
        }
        let machine = &self.machine;
        let disk = machine.boot.state == "disk";
        let adopted = adopt::adopt(
            given,
            &machine.file,
            &machine.file_path,
            Some(&self.credentials.info.id),
            disk,
        )
        .map_err(|error| match error {
            crate::Error::Io { .. } => (500, error.to_string()),
            _ => (400, error.to_string()),
        })?;
        let kept = adopted.words(machine.boot.state == "memory");
        self.event("machine", format!("adopted as {}; {kept}", given.name));
        self.retry()?;
        Ok(kept)
    }

    /// An operator drops a dead or departed member everywhere.
    pub(crate) fn forget(&mut self, name: &str) -> Result<(), Refusal> {
        let gossip = self.driver.gossip();
        match gossip.member(name).map(|member| member.state) {
            None => Err((404, format!("no node {name} in this flock; see `quelea nodes`"))),
            Some(state) if state.is_live() || *name == *gossip.me().name => {
                Err((409, format!("{name} is {state}: only a dead or departed node is forgotten")))
            }
            Some(_) => {
                self.gossip_step(gossip::Input::Forget { name });
                self.pump();
                Ok(())
            }
        }
    }

    /// Where an upgrade of this machine is staged.
    pub(crate) fn staging(&mut self) -> Result<Staging, Refusal> {
        if !self.has_init() {
            return Err(self.no_init());
        }
        let running = found::read("/proc/cmdline".as_ref());
        let (name, operators) = (&self.config.name, &self.credentials.operators);
        let own = self.machine.file_path.parent().unwrap_or("/etc/quelea".as_ref());
        Ok(Staging::new(&self.config.run.join("kexec"), name, operators, &running, own))
    }

    /// What was staged is started; the boot counter now, and PID 1's refusal.
    pub(crate) fn start_upgrade(
        &mut self,
        dir: PathBuf,
        order: &Order,
        by: &str,
    ) -> Result<(u64, oneshot::Receiver<String>), Refusal> {
        let image = order.image();
        self.event("machine", format!("{by} upgrades it to the boot image {image}"));
        let boot = self.driver.gossip().me().generation;
        Ok((boot, self.kexec(dir)?))
    }
}
