//! One node: the gossip and scheduling cores wired to each other as the agent wires them. Nothing here
//! decides; every output of one core is an input of the other or an [`Effect`].

use std::collections::VecDeque;
use std::sync::Arc;

use gossip::{Expect, Gossip, Identity, Persist, Restored};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use sched::record::spec_key;
use sched::{ClaimRecord, MemberState, NodeRecord, Observed, Sched, Spec};

/// What the world has to do for a node.
#[derive(Debug)]
pub enum Effect {
    /// Carry a datagram.
    Send {
        /// To where.
        to: std::net::SocketAddr,
        /// Sealed.
        bytes: Vec<u8>,
    },
    /// Write to the disk.
    Persist(Persist),
    /// Start a pod.
    Start(Box<sched::Claim>),
    /// Stop a pod.
    Stop {
        /// Claim id.
        claim: String,
    },
    /// The scheduler wrote or deleted this key.
    Wrote {
        /// Map key.
        key: String,
        /// Deleted.
        delete: bool,
    },
    /// For marks and the trace.
    Sched(Box<sched::Event>),
    /// For checks.
    Member(gossip::Member),
    /// For the trace.
    Gossip(&'static str),
}

/// Outputs carried between the cores in one turn; more would be a loop between them.
const TURN_MAX: usize = 200_000;

enum Todo {
    Gossip(gossip::Output),
    Sched(Box<sched::Output>),
}

/// A pod that outlived its agent.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// Claim id.
    pub claim: String,
    /// As given with its start.
    pub record: ClaimRecord,
    /// Its state now.
    pub observed: Observed,
}

/// What a node starts from.
pub struct Boot {
    /// Who it is.
    pub identity: Identity,
    /// Keys, seeds.
    pub gossip: gossip::Config,
    /// What its disk holds.
    pub restored: Option<Restored>,
    /// Pods still running.
    pub survivors: Vec<Survivor>,
    /// What it has.
    pub record: NodeRecord,
    /// Told to drain before.
    pub drain: bool,
    /// Seed of its random source.
    pub seed: u64,
}

/// A running agent.
pub struct Node {
    /// The knowledge core.
    pub gossip: Gossip,
    /// The decisions core.
    pub sched: Sched,
    rng: Xoshiro256PlusPlus,
    todo: VecDeque<Todo>,
    /// Empty lists that keep their room.
    known: Vec<gossip::Output>,
    decided: Vec<sched::Output>,
}

impl Node {
    /// Starts an agent and feeds its cores what is known from before.
    pub fn boot(boot: Boot, now_us: u64, wall_ms: u64, effects: &mut Vec<Effect>) -> Node {
        let name = boot.identity.name.clone();
        let mut gossip =
            Gossip::new(boot.gossip, boot.identity).expect("the world gives valid names");
        if let Some(restored) = boot.restored {
            gossip.restore(now_us, wall_ms, restored);
        }
        let mut node = Node {
            sched: Sched::new(
                sched::Config { bootstrap: false, ..sched::Config::new(&name) },
                now_us,
            ),
            gossip,
            rng: Xoshiro256PlusPlus::seed_from_u64(boot.seed),
            todo: VecDeque::new(),
            known: Vec::new(),
            decided: Vec::new(),
        };
        let roster: Vec<gossip::Member> = node.gossip.members().cloned().collect();
        for member in &roster {
            node.member(now_us, wall_ms, member);
        }
        let records: Vec<gossip::Record> = node.gossip.range("").cloned().collect();
        for record in records {
            node.record(now_us, wall_ms, &record);
        }
        for s in boot.survivors {
            let input =
                sched::Input::Adopt { claim: &s.claim, record: s.record, observed: s.observed };
            node.decide(now_us, wall_ms, input);
        }
        node.decide(now_us, wall_ms, sched::Input::SelfRecord(boot.record));
        if boot.drain {
            node.decide(now_us, wall_ms, sched::Input::Drain(true));
        }
        node.decide(now_us, wall_ms, sched::Input::Recovered);
        node.know(now_us, wall_ms, gossip::Input::Timer, effects);
        node.pump(now_us, wall_ms, effects);
        node
    }

    /// A datagram arrived.
    pub fn datagram(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        from: std::net::SocketAddr,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        self.know(now_us, wall_ms, gossip::Input::Datagram { from, bytes }, effects);
        self.pump(now_us, wall_ms, effects);
    }

    /// A deadline came.
    pub fn timer(&mut self, now_us: u64, wall_ms: u64, effects: &mut Vec<Effect>) {
        self.know(now_us, wall_ms, gossip::Input::Timer, effects);
        self.pump(now_us, wall_ms, effects);
        if self.sched.next_deadline().is_some_and(|at| at <= now_us) {
            self.decide(now_us, wall_ms, sched::Input::Timer);
        }
        self.pump(now_us, wall_ms, effects);
    }

    /// When [`Node::timer`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        [self.gossip.next_deadline(), self.sched.next_deadline()].into_iter().flatten().min()
    }

    /// What became of a pod.
    pub fn pod(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        claim: &str,
        observed: Observed,
        effects: &mut Vec<Effect>,
    ) {
        self.decide(now_us, wall_ms, sched::Input::Pod { claim, observed });
        self.pump(now_us, wall_ms, effects);
    }

    /// An operator drains this node, or ends that.
    pub fn drain(&mut self, now_us: u64, wall_ms: u64, on: bool, effects: &mut Vec<Effect>) {
        self.decide(now_us, wall_ms, sched::Input::Drain(on));
        self.pump(now_us, wall_ms, effects);
    }

    /// An operator forgets a dead node.
    pub fn forget(&mut self, now_us: u64, wall_ms: u64, name: &str, effects: &mut Vec<Effect>) {
        self.know(now_us, wall_ms, gossip::Input::Forget { name }, effects);
        self.pump(now_us, wall_ms, effects);
    }

    /// An operator submits a spec here; the generation it got.
    pub fn submit(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        submitted: &Submitted,
        effects: &mut Vec<Effect>,
    ) -> u64 {
        let key = spec_key(&submitted.namespace, &submitted.app);
        let before = self.gossip.get(&key).and_then(|r| r.body.clone());
        let before = before.and_then(|b| Submitted::decode(&b)).map_or(0, |s| s.generation);
        let submitted = Submitted { generation: before + 1, ..submitted.clone() };
        let body = submitted.encode();
        self.know(
            now_us,
            wall_ms,
            gossip::Input::Put { key: &key, body, expect: Expect::Any },
            effects,
        );
        self.pump(now_us, wall_ms, effects);
        submitted.generation
    }

    fn know(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        input: gossip::Input<'_>,
        effects: &mut Vec<Effect>,
    ) {
        self.gossip.step(now_us, wall_ms, input, &mut self.rng, &mut self.known);
        for output in self.known.drain(..) {
            match output {
                // Most are datagrams; with nothing to do before it one goes at once.
                gossip::Output::Send { to, bytes } if self.todo.is_empty() => {
                    effects.push(Effect::Send { to, bytes });
                }
                output => self.todo.push_back(Todo::Gossip(output)),
            }
        }
    }

    fn decide(&mut self, now_us: u64, wall_ms: u64, input: sched::Input<'_>) {
        self.sched.step(now_us, wall_ms, input, &mut self.rng, &mut self.decided);
        self.todo.extend(self.decided.drain(..).map(|output| Todo::Sched(Box::new(output))));
    }

    fn pump(&mut self, now_us: u64, wall_ms: u64, effects: &mut Vec<Effect>) {
        for turn in 0.. {
            assert!(turn < TURN_MAX, "gossip and sched answer each other without end");
            match self.todo.pop_front() {
                None => break,
                Some(Todo::Gossip(output)) => self.gossip_output(now_us, wall_ms, output, effects),
                Some(Todo::Sched(output)) => self.sched_output(now_us, wall_ms, *output, effects),
            }
        }
    }

    fn gossip_output(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        output: gossip::Output,
        effects: &mut Vec<Effect>,
    ) {
        use gossip::Event;
        match output {
            gossip::Output::Send { to, bytes } => effects.push(Effect::Send { to, bytes }),
            gossip::Output::Persist(what) => effects.push(Effect::Persist(what)),
            gossip::Output::Event(Event::Member(member)) => {
                self.member(now_us, wall_ms, &member);
                effects.push(Effect::Member(member));
            }
            gossip::Output::Event(Event::Forgotten { name }) => {
                let state = MemberState::Forgotten;
                self.decide(now_us, wall_ms, sched::Input::Member { name: &name, state });
                effects.push(Effect::Gossip("forgotten"));
            }
            gossip::Output::Event(Event::Changed(record)) => self.record(now_us, wall_ms, &record),
            gossip::Output::Event(Event::Unicast { from, payload }) => {
                let input = sched::Input::Message { from: &from, bytes: &payload };
                self.decide(now_us, wall_ms, input);
            }
            gossip::Output::Event(Event::HeldDead) => {
                self.decide(now_us, wall_ms, sched::Input::Away);
                effects.push(Effect::Gossip("held dead"));
            }
            gossip::Output::Event(event) => effects.push(Effect::Gossip(match event {
                Event::Joined { .. } => "joined",
                Event::Superseded { .. } => "superseded",
                Event::NameConflict { .. } => "name conflict",
                Event::Quota { .. } => "quota",
                Event::Stalled { .. } => "stalled",
                _ => "other",
            })),
            _ => {}
        }
    }

    fn member(&mut self, now_us: u64, wall_ms: u64, member: &gossip::Member) {
        let state = match member.state {
            gossip::State::Alive => MemberState::Alive,
            gossip::State::Suspect => MemberState::Suspect,
            gossip::State::Dead => MemberState::Dead,
            gossip::State::Left => MemberState::Left,
        };
        self.decide(now_us, wall_ms, sched::Input::Member { name: &member.name, state });
    }

    fn record(&mut self, now_us: u64, wall_ms: u64, record: &gossip::Record) {
        let (key, body) = (record.key.as_ref(), record.body.as_deref());
        match key.split_once('/') {
            Some(("n" | "a" | "r", _)) => {
                let input = sched::Input::Record { key, body, writer: &record.writer };
                self.decide(now_us, wall_ms, input);
            }
            Some(("s", _)) => {
                let Some(s) = body.and_then(Submitted::decode) else { return };
                let spec = if s.deleted { None } else { Spec::parse(&s.text, "spec").ok() };
                let input = sched::Input::Spec {
                    namespace: &s.namespace,
                    app: &s.app,
                    generation: s.generation,
                    spec: spec.map(Arc::new),
                    stopped: s.stopped || s.deleted,
                };
                self.decide(now_us, wall_ms, input);
            }
            _ => {}
        }
    }

    fn sched_output(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        output: sched::Output,
        effects: &mut Vec<Effect>,
    ) {
        match output {
            sched::Output::Put { key, body } => {
                let input = gossip::Input::Put { key: &key, body, expect: Expect::Any };
                self.know(now_us, wall_ms, input, effects);
                effects.push(Effect::Wrote { key, delete: false });
            }
            sched::Output::Delete { key } => {
                self.know(now_us, wall_ms, gossip::Input::Delete { key: &key }, effects);
                effects.push(Effect::Wrote { key, delete: true });
            }
            sched::Output::Send { to, bytes } => {
                self.know(
                    now_us,
                    wall_ms,
                    gossip::Input::Unicast { to: &to, payload: bytes },
                    effects,
                );
            }
            sched::Output::Start(claim) => effects.push(Effect::Start(Box::new(claim))),
            sched::Output::Stop { claim, .. } => effects.push(Effect::Stop { claim }),
            sched::Output::Event(event) => effects.push(Effect::Sched(Box::new(event))),
        }
    }
}

/// What the simulation keeps under `s/<ns>/<app>`: the agent's holds a signature as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Submitted {
    /// Namespace.
    pub namespace: String,
    /// App.
    pub app: String,
    /// Generation.
    pub generation: u64,
    /// Told to stop.
    pub stopped: bool,
    /// Deleted.
    pub deleted: bool,
    /// The TOML.
    pub text: String,
}

impl Submitted {
    fn encode(&self) -> Vec<u8> {
        let flags = format!("{} {} {}", self.generation, self.stopped, self.deleted);
        format!("{}\n{}\n{flags}\n{}", self.namespace, self.app, self.text).into_bytes()
    }

    /// Reads a body.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let mut lines = text.splitn(4, '\n');
        let (namespace, app) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        let mut flags = lines.next()?.split(' ');
        let generation = flags.next()?.parse().ok()?;
        let (stopped, deleted) = (flags.next()? == "true", flags.next()? == "true");
        Some(Self { namespace, app, generation, stopped, deleted, text: lines.next()?.to_owned() })
    }
}
