//! What a fuzzer calls: plain functions over bytes, one per boundary. They panic if an invariant breaks.
//!
//! `fuzz/` has a target for each; `tests/corpus.rs` replays what the fuzzer has found worth keeping.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::msg::{MESSAGE_MAX, Message};
use crate::record::{self, BODY_MAX, ClaimRecord, NodeRecord, RolloutRecord};
use crate::{Claim, Config, Input, MemberState, Observed, Output, Sched, Spec};

/// Bytes of one diagnostic, its line of the text included.
const DIAGNOSTIC_MAX: usize = 64 * 1024;

/// Any text as a spec: it is accepted, or every mistake has words; what is accepted reads the same when it is read back,
/// and its sums do not overflow.
pub fn spec(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Spec::parse(text, "fuzz.toml") {
        Ok(spec) => {
            assert!(!spec.containers.is_empty() && !spec.app.is_empty());
            assert_eq!(Spec::read_stored(text).as_ref(), Ok(&spec), "stored as it was accepted");
            let _ = (spec.cpu_milli(), spec.memory_bytes(), spec.grace_ms(), spec.ports());
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "refused without a word");
            for mistake in mistakes {
                let told = mistake.to_string();
                assert!(!told.is_empty() && told.len() <= DIAGNOSTIC_MAX);
            }
        }
    }
    // A later version's words are passed over, never half understood.
    let _ = Spec::read_stored(text);
}

/// Any bytes as a record or a message: what was read reads the same once written, within the bounds.
pub fn record(bytes: &[u8]) {
    if let Ok(node) = NodeRecord::decode(bytes) {
        let written = node.encode();
        assert_eq!(NodeRecord::decode(&written), Ok(node));
    }
    if let Ok(claim) = ClaimRecord::decode(bytes) {
        let written = claim.encode();
        assert_eq!(ClaimRecord::decode(&written), Ok(claim.clone()));
        assert!(ClaimRecord::decode(&crate::msg::brief(&claim)).is_ok());
        let _ = (claim.pod_name(), claim.holds());
    }
    if let Ok(rollout) = RolloutRecord::decode(bytes) {
        let written = rollout.encode();
        assert_eq!(RolloutRecord::decode(&written), Ok(rollout));
    }
    if let Ok(message) = Message::decode(bytes)
        && let Ok(written) = message.encode()
    {
        assert_eq!(Message::decode(&written), Ok(message));
    }
}

/// Nodes of [`events`], and what each has.
const NODES: [&str; 3] = ["n0", "n1", "n2"];
const CPU_MILLI: u64 = 2_000;
const MEMORY_BYTES: u64 = 2 << 30;
const PODS: u32 = 6;
/// Messages and records under way; more are lost.
const WIRE_MAX: usize = 512;
const OPS_MAX: usize = 100;
/// Deadlines served in one pause: more is a timer that never rests.
const TURNS_MAX: usize = 20_000;
const APPS: [&str; 3] = [
    "app = \"a\"\nreplicas = 2\n[place]\nunique = \"host\"\n[[container]]\nname = \"c\"\nimage = \"i:1\"\ncpu = 0.5\n",
    "app = \"b\"\nreplicas = 3\n[[container]]\nname = \"c\"\nimage = \"i:2\"\ncpu = 1.0\nmemory = \"700Mi\"\n",
    "app = \"d\"\nkind = \"daemon\"\n[[container]]\nname = \"c\"\nimage = \"i:3\"\ncpu = 0.25\n",
];

enum Carried {
    Message { to: usize, from: usize, bytes: Vec<u8> },
    Record { to: usize, key: String, body: Option<Vec<u8>>, writer: usize },
}

/// A few nodes whose clock, network, pods and inputs are the fuzzer's.
struct Flock {
    nodes: Vec<Sched>,
    pods: Vec<BTreeMap<String, Claim>>,
    wire: Vec<Carried>,
    map: BTreeMap<String, (Vec<u8>, usize)>,
    generation: u64,
    specs: Vec<Arc<Spec>>,
    rng: Xoshiro256PlusPlus,
    now_us: u64,
}

impl Flock {
    fn new() -> Flock {
        let nodes = NODES.iter().map(|name| Sched::new(Config::new(name), 1)).collect();
        let parse = |text: &&str| Spec::parse(text, "fuzz.toml").expect("a spec of ours");
        let mut flock = Flock {
            nodes,
            pods: vec![BTreeMap::new(); NODES.len()],
            wire: Vec::new(),
            map: BTreeMap::new(),
            generation: 0,
            specs: APPS.iter().map(parse).map(Arc::new).collect(),
            rng: Xoshiro256PlusPlus::seed_from_u64(3),
            now_us: 1,
        };
        for node in 0..NODES.len() {
            let record = NodeRecord {
                cpu_milli: CPU_MILLI,
                memory_bytes: MEMORY_BYTES,
                pods: PODS,
                ..NodeRecord::default()
            };
            flock.step(node, Input::SelfRecord(record));
            flock.step(node, Input::Recovered);
            for (other, name) in NODES.iter().enumerate().filter(|(n, _)| *n != node) {
                let _ = other;
                flock.step(node, Input::Member { name, state: MemberState::Alive });
            }
        }
        flock
    }

    fn step(&mut self, node: usize, input: Input<'_>) {
        let mut out = Vec::new();
        let wall_ms = 1_800_000_000_000 + self.now_us / 1000;
        let Some(sched) = self.nodes.get_mut(node) else { return };
        sched.step(self.now_us, wall_ms, input, &mut self.rng, &mut out);
        for output in out {
            self.output(node, output);
        }
    }

    fn output(&mut self, node: usize, output: Output) {
        match output {
            Output::Put { key, body } => {
                assert!(body.len() <= BODY_MAX, "{key} has {} bytes", body.len());
                let me = NODES[node];
                let own = key.starts_with(&format!("a/{me}/")) || key == format!("n/{me}");
                assert!(own || key.starts_with("r/"), "{me} writes {key}");
                self.map.insert(key.clone(), (body.clone(), node));
                self.spread(node, &key, Some(body));
            }
            Output::Delete { key } => {
                self.map.remove(&key);
                self.spread(node, &key, None);
            }
            Output::Send { to, bytes } => {
                assert!(bytes.len() <= MESSAGE_MAX && to != NODES[node]);
                if let Some(to) = NODES.iter().position(|name| *name == to) {
                    self.carry(Carried::Message { to, from: node, bytes });
                }
            }
            Output::Start(claim) => {
                self.pods[node].insert(claim.id.clone(), claim);
                self.check(node);
            }
            Output::Stop { .. } | Output::Event(_) => {}
        }
    }

    fn spread(&mut self, from: usize, key: &str, body: Option<Vec<u8>>) {
        for to in (0..NODES.len()).filter(|to| *to != from) {
            let (key, body) = (key.to_owned(), body.clone());
            self.carry(Carried::Record { to, key, body, writer: from });
        }
    }

    fn carry(&mut self, what: Carried) {
        if self.wire.len() < WIRE_MAX {
            self.wire.push(what);
        }
    }

    /// A node never holds more than it has, and one pod of an app that wants a host for itself.
    fn check(&self, node: usize) {
        let pods = self.pods[node].values();
        let (mut cpu, mut memory, mut unique) = (0, 0, 0);
        for pod in pods.clone() {
            cpu += pod.spec.cpu_milli();
            memory += pod.spec.memory_bytes();
            unique += u32::from(pod.spec.app == "a");
        }
        assert!(cpu <= CPU_MILLI && memory <= MEMORY_BYTES, "{cpu} and {memory} on {node}");
        assert!(pods.count() <= PODS as usize && unique <= 1, "{unique} of one on {node}");
    }

    fn deliver(&mut self, at: usize, keep: bool, damage: Option<u8>) {
        if self.wire.is_empty() {
            return;
        }
        let at = at % self.wire.len();
        let mut what = self.wire.remove(at);
        if keep {
            let copy = match &what {
                Carried::Message { to, from, bytes } => {
                    Carried::Message { to: *to, from: *from, bytes: bytes.clone() }
                }
                Carried::Record { to, key, body, writer } => {
                    let (key, body) = (key.clone(), body.clone());
                    Carried::Record { to: *to, key, body, writer: *writer }
                }
            };
            self.wire.push(copy);
        }
        if let Some(damage) = damage {
            let bytes = match &mut what {
                Carried::Message { bytes, .. } => Some(bytes),
                Carried::Record { body, .. } => body.as_mut(),
            };
            if let Some(bytes) = bytes.filter(|b| !b.is_empty()) {
                let at = usize::from(damage) % bytes.len();
                bytes[at] ^= damage | 1;
            }
        }
        match what {
            Carried::Message { to, from, bytes } => {
                self.step(to, Input::Message { from: NODES[from], bytes: &bytes });
            }
            Carried::Record { to, key, body, writer } => {
                let writer = NODES[writer];
                self.step(to, Input::Record { key: &key, body: body.as_deref(), writer });
            }
        }
    }

    /// Lets time pass; who is due acts.
    fn pass(&mut self, time_us: u64, deliver: bool) {
        let end_us = self.now_us + time_us;
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "a timer that never rests");
            while deliver && !self.wire.is_empty() {
                self.deliver(0, false, None);
            }
            let next = |n: usize| Some((self.nodes[n].next_deadline()?, n));
            let next = (0..NODES.len()).filter_map(next).min();
            let Some((at_us, node)) = next.filter(|(at, _)| *at <= end_us) else { break };
            self.now_us = self.now_us.max(at_us);
            self.step(node, Input::Timer);
        }
        self.now_us = end_us;
    }

    fn observe(&mut self, node: usize, pod: usize, what: usize) {
        let Some(claim) = self.pods[node].keys().nth(pod % PODS as usize).cloned() else { return };
        let observed = match what % 7 {
            0 => Observed::Pulling,
            1 => Observed::Starting { ip: "100.64.0.9".into() },
            2 => Observed::Running { ip: "100.64.0.9".into(), ready: true },
            3 => Observed::Exited {
                code: Some(1),
                signal: None,
                oom: false,
                restarts: 1,
                reason: "x".into(),
            },
            4 => Observed::Failed { reason: "y".into(), retryable: what.is_multiple_of(4) },
            5 => Observed::Gone,
            _ => Observed::Noted { note: "z".into() },
        };
        // What failed was cleaned up, what is gone is gone.
        if matches!(observed, Observed::Failed { .. } | Observed::Gone) {
            self.pods[node].remove(&claim);
        }
        self.step(node, Input::Pod { claim: &claim, observed });
    }

    fn submit(&mut self, node: usize, app: usize, stopped: bool, gone: bool) {
        self.generation += 1;
        let spec = self.specs[app % self.specs.len()].clone();
        let (namespace, name) = (spec.namespace.clone(), spec.app.clone());
        let generation = self.generation;
        let spec = (!gone).then_some(spec);
        self.step(
            node,
            Input::Spec { namespace: &namespace, app: &name, generation, spec, stopped },
        );
    }
}

/// Any sequence of specs, members, messages (lost, repeated, damaged), records, pods' fates, pauses and stalls: no panic, no
/// timer that never rests, no node over what it has, no record of another's.
pub fn events(bytes: &[u8]) {
    let mut flock = Flock::new();
    for op in bytes.chunks_exact(3).take(OPS_MAX) {
        let (what, a, b) = (op[0], usize::from(op[1]), usize::from(op[2]));
        let node = a % NODES.len();
        match what % 14 {
            0 => (0..NODES.len()).for_each(|n| flock.submit(n, b, false, false)),
            1 => flock.submit(node, b, a & 64 != 0, a & 128 != 0),
            2 => {
                let state = [
                    MemberState::Alive,
                    MemberState::Suspect,
                    MemberState::Dead,
                    MemberState::Left,
                    MemberState::Forgotten,
                ][b / NODES.len() % 5];
                let name = NODES[b % NODES.len()];
                if name != NODES[node] {
                    flock.step(node, Input::Member { name, state });
                }
            }
            3 => flock.deliver(a * 7 + b, false, None),
            4 => flock.deliver(a * 7 + b, true, None),
            5 => flock.deliver(a, false, Some(b as u8)),
            6 => flock.wire.clear(),
            7 => flock.pass((b as u64 + 1) * 4_000, false),
            8 => flock.pass((b as u64 + 1) * 8_000, true),
            // Everybody stands still, then all timers are late.
            9 => flock.now_us += b as u64 * 50_000,
            10 => flock.observe(node, a / NODES.len(), b),
            11 => flock.step(node, Input::Drain(b.is_multiple_of(2))),
            12 => flock.step(node, Input::Away),
            13 => {
                // Somebody's record, as anybody could have written it.
                let key = match b % 3 {
                    0 => record::node_key(NODES[a % 3]),
                    1 => record::claim_key(NODES[a % 3], "0123456789ab"),
                    _ => record::rollout_key("default", "a"),
                };
                let body: Vec<u8> = op.repeat(b % 8);
                let writer = NODES[(a + 1) % 3];
                flock.step(node, Input::Record { key: &key, body: Some(&body), writer });
            }
            _ => {}
        }
    }
    flock.pass(6_000_000, true);
    (0..NODES.len()).for_each(|node| flock.check(node));
}
