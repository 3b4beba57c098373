//! What gossip and the scheduler said, carried to where it is an input.

use super::{Node, STALL_TOLD_US, machine, network};

impl Node {
    pub(super) fn gossip_event(&mut self, event: gossip::Event) {
        use gossip::Event;
        match event {
            Event::Joined { members } => {
                self.joined = true;
                self.event("flock", format!("joined: {members} members"));
                self.begin_addresses();
            }
            Event::Member(member) => self.member_changed(&member),
            Event::Forgotten { name } => {
                self.event(format!("node/{name}"), "forgotten");
                let state = sched::MemberState::Forgotten;
                self.sched_step(sched::Input::Member { name: &name, state });
            }
            Event::Changed(record) => self.record_changed(&record),
            Event::Unicast { from, payload } => {
                self.sched_step(sched::Input::Message { from: &from, bytes: &payload });
            }
            // Only a sure loss is news: the other one is what a lost race of our own looks like.
            Event::Superseded { mine, by, sure: true } => self.event(
                mine.key.as_ref(),
                format!("what was written here lost to a write at {}", by.writer),
            ),
            Event::NameConflict { addr } => self.namesake(addr),
            Event::HeldDead => self.was_away("the flock took this node for dead"),
            Event::Refused(error) => self.event("map", format!("refused: {error}")),
            Event::Quota { writer } => {
                self.event(format!("node/{writer}"), "writes more than its quota: ignored");
            }
            // Shorter ones are what a busy machine looks like.
            Event::Stalled { stall_us } if stall_us >= STALL_TOLD_US => {
                self.event("agent", format!("stood still for {} ms", stall_us / 1000));
                if stall_us >= machine::AWAY_US {
                    self.was_away("it stood still");
                }
            }
            Event::Slow { took_us, calls } => self.event(
                "agent",
                format!(
                    "a turn of gossip took {} ms; {calls} slow ones since start",
                    took_us / 1000
                ),
            ),
            Event::Durable { key, .. } => {
                for waiting in self.durable.remove(&key).unwrap_or_default() {
                    // Who asked may have gone away.
                    let _ = waiting.send(());
                }
            }
            Event::LogRestored => self.log_restored(),
            Event::Dropped { key } => self.key_changed(&key, None, ""),
            Event::Left => self.left(),
            _ => {}
        }
    }

    pub(super) fn sched_output(&mut self, output: sched::Output) {
        use sched::Output;
        match output {
            Output::Put { key, body } => {
                self.gossip_step(gossip::Input::Put {
                    key: &key,
                    body,
                    expect: gossip::Expect::Any,
                });
            }
            Output::Delete { key } => self.gossip_step(gossip::Input::Delete { key: &key }),
            Output::Send { to, bytes } => {
                self.gossip_step(gossip::Input::Unicast { to: &to, payload: bytes });
            }
            Output::Start(claim) => self.start(claim),
            Output::Stop { claim, grace_ms } => {
                self.pods_step(crate::pods::Input::Stop { claim, grace_ms });
            }
            Output::Event(event) => self.sched_event(&event),
        }
    }

    fn sched_event(&mut self, event: &sched::Event) {
        use sched::Event;
        let (about, message) = match event {
            Event::TookOver { app, term } => {
                (format!("app/{app}"), format!("{} coordinates it, term {term}", self.config.name))
            }
            Event::SteppedDown { app } => {
                (format!("app/{app}"), format!("{} no longer coordinates it", self.config.name))
            }
            Event::Placed { app, slot, node } => {
                (format!("app/{app}"), format!("slot {slot} placed on {node}"))
            }
            Event::Refused { app, slot, node, reason } => {
                (format!("app/{app}"), format!("slot {slot} refused by {node}: {reason}"))
            }
            Event::Moving { app, slot, node, reason } => {
                (format!("app/{app}"), format!("slot {slot} moves off {node}: {reason}"))
            }
            Event::Duplicate { app, slot, node } => {
                (format!("app/{app}"), format!("slot {slot}: the surplus pod on {node} is stopped"))
            }
            Event::Held { reason } if reason.is_empty() => {
                ("sched".into(), "starts are free again".into())
            }
            Event::Held { reason } => ("sched".into(), format!("starts are held: {reason}")),
            Event::Phase { app, phase } => (format!("app/{app}"), phase.clone()),
            Event::Failed { pod, reason, .. } => (format!("pod/{pod}"), reason.clone()),
            Event::Malformed { from, error } => {
                (format!("node/{from}"), format!("sent what is not understood: {error}"))
            }
            _ => return,
        };
        self.event(about, message);
    }

    fn member_changed(&mut self, member: &gossip::Member) {
        let state = member_state(member.state);
        self.event(format!("node/{}", member.name), member.state.to_string());
        if member.state.is_live() && !self.joined {
            // A peer joined us before our own joining found anybody: what it knows comes with the next exchange.
            self.joined = true;
            let soon = self.clock.now_us() + network::EXCHANGE_US;
            self.alone_us = self.alone_us.map(|at| at.min(soon));
        }
        self.overlay_dirty = true;
        self.peers.changed();
        self.sched_step(sched::Input::Member { name: &member.name, state });
        self.drop_evicted(member);
    }
}

/// In the words of the scheduler.
pub(super) fn member_state(state: gossip::State) -> sched::MemberState {
    match state {
        gossip::State::Alive => sched::MemberState::Alive,
        gossip::State::Suspect => sched::MemberState::Suspect,
        gossip::State::Dead => sched::MemberState::Dead,
        gossip::State::Left => sched::MemberState::Left,
    }
}
