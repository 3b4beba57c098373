//! A flock on virtual time with perfect delivery: what is sent arrives after 1 ms, a record reaches all
//! nodes after 50 ms, a death is known to all after 2 s. Pods start in 100 ms.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use sched::{
    Claim, ClaimRecord, Config, Input, MemberState, NodeRecord, Observed, Output, Sched, Spec,
};

pub(crate) const MS: u64 = 1_000;
pub(crate) const S: u64 = 1_000_000;
const WALL_MS: u64 = 1_800_000_000_000;

/// Generation, spec, stopped.
type Submitted = (u64, Option<Arc<Spec>>, bool);

#[derive(Clone, Debug)]
enum Ev {
    Message { from: String, bytes: Vec<u8> },
    Record { key: String, body: Option<Vec<u8>>, writer: String },
    Member { name: String, state: MemberState },
    Pod { claim: String, observed: Observed },
}

pub(crate) struct Node {
    pub(crate) sched: Sched,
    pub(crate) up: bool,
    /// Pods that run or are being started here.
    pub(crate) pods: BTreeMap<String, Claim>,
    pub(crate) record: NodeRecord,
}

pub(crate) struct Flock {
    pub(crate) now: u64,
    rng: Xoshiro256PlusPlus,
    pub(crate) nodes: BTreeMap<String, Node>,
    queue: BTreeMap<(u64, u64), (String, Ev)>,
    next: u64,
    map: BTreeMap<String, (Vec<u8>, String)>,
    specs: BTreeMap<(String, String), Submitted>,
    /// Starts emitted so far: `(time, node, pod)`.
    pub(crate) starts: Vec<(u64, String, String)>,
    /// Images of which every start fails.
    pub(crate) broken: Vec<String>,
    /// Directions in which messages are lost: (from, to). Records still arrive.
    pub(crate) cut: BTreeSet<(String, String)>,
    /// What was lost there.
    pub(crate) lost: Vec<Vec<u8>>,
    /// Lowest number of ready claims of any app seen at the end of a millisecond, when watched.
    pub(crate) watch_ready: Option<(String, u32)>,
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

pub(crate) fn spec(text: &str) -> Arc<Spec> {
    match Spec::parse(text, "test.toml") {
        Ok(spec) => Arc::new(spec),
        Err(all) => {
            panic!("{}", all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        }
    }
}

/// A spec of this app with these top lines and these closing sections.
pub(crate) fn app(name: &str, top: &str, sections: &str) -> Arc<Spec> {
    spec(&format!(
        "app = \"{name}\"\n{top}\n[[container]]\nname = \"c\"\nimage = \"i:1\"\n{sections}\n"
    ))
}

impl Flock {
    /// Nodes `n0..`, node i in rack `r(i % racks)`, with 4 CPUs, 4 GiB and 100 pods each.
    pub(crate) fn new(nodes: usize, racks: usize) -> Self {
        let mut flock = Self {
            now: 10 * S,
            rng: Xoshiro256PlusPlus::seed_from_u64(7),
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            next: 0,
            map: BTreeMap::new(),
            specs: BTreeMap::new(),
            starts: Vec::new(),
            broken: Vec::new(),
            cut: BTreeSet::new(),
            lost: Vec::new(),
            watch_ready: None,
        };
        for i in 0..nodes {
            let rack = format!("r{}", i % racks);
            let record = NodeRecord {
                cpu_milli: 4000,
                memory_bytes: 4 << 30,
                pods: 100,
                labels: labels(&[("rack", &rack), ("row", "a")]),
                ..NodeRecord::default()
            };
            flock.boot(&format!("n{i}"), record, &[]);
        }
        flock.run(5 * S);
        flock
    }

    /// A node starts with an empty disk (or finds these pods still running) and joins.
    pub(crate) fn boot(
        &mut self,
        name: &str,
        record: NodeRecord,
        adopted: &[(String, ClaimRecord)],
    ) {
        let sched = Sched::new(Config::new(name), self.now);
        let node = Node { sched, up: true, pods: BTreeMap::new(), record: record.clone() };
        self.nodes.insert(name.into(), node);
        for (id, record) in adopted {
            let observed = Observed::Running { ip: "10.0.0.1".into(), ready: true };
            let record = record.clone();
            self.step(name, Input::Adopt { claim: id, record, observed });
        }
        self.step(name, Input::SelfRecord(record));
        self.step(name, Input::Recovered);
        let others: Vec<(String, bool)> =
            self.nodes.iter().filter(|(n, _)| *n != name).map(|(n, x)| (n.clone(), x.up)).collect();
        for (other, up) in others {
            let state = if up { MemberState::Alive } else { MemberState::Dead };
            self.later(0, name, Ev::Member { name: other.clone(), state });
            self.later(0, &other, Ev::Member { name: name.into(), state: MemberState::Alive });
        }
        for (key, (body, writer)) in self.map.clone() {
            self.later(30 * MS, name, Ev::Record { key, body: Some(body), writer });
        }
        for ((ns, app), (generation, spec, stopped)) in self.specs.clone() {
            let input = Input::Spec { namespace: &ns, app: &app, generation, spec, stopped };
            self.step(name, input);
        }
    }

    pub(crate) fn kill(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).unwrap();
        node.up = false;
        node.pods.clear();
        for other in self.up() {
            self.later(2 * S, &other, Ev::Member { name: name.into(), state: MemberState::Dead });
        }
    }

    /// Stands still; its pods too, but they stay.
    pub(crate) fn pause(&mut self, name: &str) {
        let pods = self.nodes[name].pods.clone();
        self.kill(name);
        self.nodes.get_mut(name).unwrap().pods = pods;
    }

    /// Goes on as if nothing had been; the others see it alive again, and it gets what it missed.
    pub(crate) fn resume(&mut self, name: &str) {
        self.nodes.get_mut(name).unwrap().up = true;
        for other in self.up().into_iter().filter(|other| other != name) {
            let state = MemberState::Alive;
            self.later(20 * MS, &other, Ev::Member { name: name.into(), state });
        }
        for (key, (body, writer)) in self.map.clone() {
            self.later(300 * MS, name, Ev::Record { key, body: Some(body), writer });
        }
    }

    /// Its agent says goodbye; what it runs goes on.
    pub(crate) fn leave(&mut self, name: &str) {
        self.nodes.get_mut(name).unwrap().up = false;
        for other in self.up() {
            let state = MemberState::Left;
            self.later(20 * MS, &other, Ev::Member { name: name.into(), state });
        }
    }

    /// Pods of an app that a node's records call ready.
    pub(crate) fn ready_on(&self, name: &str, app: &str) -> u32 {
        let records = self.map.iter().filter(|(key, _)| key.starts_with(&format!("a/{name}/")));
        let decoded = records.filter_map(|(_, (body, _))| ClaimRecord::decode(body).ok());
        decoded.filter(|r| r.app == app && r.ready).count() as u32
    }

    pub(crate) fn up(&self) -> Vec<String> {
        self.nodes.iter().filter(|(_, n)| n.up).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn submit(&mut self, spec: &Arc<Spec>, stopped: bool) {
        let key = (spec.namespace.clone(), spec.app.clone());
        let generation = self.specs.get(&key).map_or(1, |s| s.0 + 1);
        self.specs.insert(key, (generation, Some(spec.clone()), stopped));
        for name in self.up() {
            let (namespace, app) = (&spec.namespace, &spec.app);
            let spec = Some(spec.clone());
            self.step(&name, Input::Spec { namespace, app, generation, spec, stopped });
        }
    }

    pub(crate) fn delete(&mut self, namespace: &str, app: &str) {
        let key = (namespace.to_owned(), app.to_owned());
        let generation = self.specs[&key].0 + 1;
        self.specs.insert(key, (generation, None, true));
        for name in self.up() {
            self.step(&name, Input::Spec { namespace, app, generation, spec: None, stopped: true });
        }
    }

    pub(crate) fn drain(&mut self, name: &str, on: bool) {
        self.step(name, Input::Drain(on));
    }

    pub(crate) fn step(&mut self, name: &str, input: Input<'_>) {
        let node = self.nodes.get_mut(name).unwrap();
        let mut out = Vec::new();
        let wall = WALL_MS + self.now / 1000;
        node.sched.step(self.now, wall, input, &mut self.rng, &mut out);
        for output in out {
            self.effect(name, output);
        }
    }

    fn effect(&mut self, name: &str, output: Output) {
        match output {
            Output::Put { key, body } => {
                assert!(body.len() <= sched::record::BODY_MAX);
                self.map.insert(key.clone(), (body.clone(), name.into()));
                self.spread(name, &key, Some(body));
            }
            Output::Delete { key } => {
                self.map.remove(&key);
                self.spread(name, &key, None);
            }
            Output::Send { to, bytes } => {
                assert!(to != name, "a message to oneself");
                assert!(bytes.len() <= sched::msg::MESSAGE_MAX);
                if self.cut.contains(&(name.to_owned(), to.clone())) {
                    self.lost.push(bytes);
                } else {
                    self.later(MS, &to, Ev::Message { from: name.into(), bytes });
                }
            }
            Output::Start(claim) => {
                self.starts.push((self.now, name.into(), claim.pod_name()));
                let image = claim.spec.containers[0].image.clone();
                let id = claim.id.clone();
                self.nodes.get_mut(name).unwrap().pods.insert(id.clone(), claim);
                let observed = if self.broken.contains(&image) {
                    Observed::Failed {
                        reason: format!("image {image}: not found"),
                        retryable: false,
                    }
                } else {
                    Observed::Running { ip: "100.64.0.9".into(), ready: true }
                };
                self.later(100 * MS, name, Ev::Pod { claim: id, observed });
            }
            Output::Stop { claim, .. } => {
                self.later(50 * MS, name, Ev::Pod { claim, observed: Observed::Gone });
            }
            Output::Event(event) => {
                if std::env::var_os("FLOCK_TRACE").is_some() {
                    println!("{:>9} {name} {event:?}", self.now / 1000);
                }
            }
        }
    }

    fn spread(&mut self, writer: &str, key: &str, body: Option<Vec<u8>>) {
        for to in self.up() {
            let (key, body, writer) = (key.to_owned(), body.clone(), writer.to_owned());
            self.later(50 * MS, &to, Ev::Record { key, body, writer });
        }
    }

    fn later(&mut self, after: u64, to: &str, ev: Ev) {
        self.next += 1;
        self.queue.insert((self.now + after, self.next), (to.to_owned(), ev));
    }

    /// An observation of a running pod.
    pub(crate) fn observe(&mut self, node: &str, claim: &str, observed: Observed) {
        self.step(node, Input::Pod { claim, observed });
    }

    pub(crate) fn run(&mut self, us: u64) {
        let end = self.now + us;
        loop {
            let timer = self.nodes.iter().filter(|(_, n)| n.up);
            let timer =
                timer.filter_map(|(name, n)| Some((n.sched.next_deadline()?, name.clone()))).min();
            let event = self.queue.keys().next().copied();
            let at = event.map(|e| e.0).into_iter().chain(timer.as_ref().map(|t| t.0)).min();
            let Some(at) = at.filter(|at| *at <= end) else { break };
            if at > self.now {
                self.check();
            }
            self.now = self.now.max(at);
            if let Some(key) = event.filter(|e| e.0 <= at) {
                let (to, ev) = self.queue.remove(&key).unwrap();
                if self.nodes[&to].up {
                    self.deliver(&to, &ev);
                }
            } else if let Some((_, name)) = timer {
                self.step(&name, Input::Timer);
            }
        }
        self.check();
        self.now = end;
    }

    fn deliver(&mut self, to: &str, ev: &Ev) {
        match ev {
            Ev::Message { from, bytes } => self.step(to, Input::Message { from, bytes }),
            Ev::Record { key, body, writer } => {
                self.step(to, Input::Record { key, body: body.as_deref(), writer });
            }
            Ev::Member { name, state } => self.step(to, Input::Member { name, state: *state }),
            Ev::Pod { claim, observed } => {
                if matches!(observed, Observed::Gone | Observed::Failed { .. }) {
                    self.nodes.get_mut(to).unwrap().pods.remove(claim);
                }
                self.step(to, Input::Pod { claim, observed: observed.clone() });
            }
        }
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        for (name, node) in &self.nodes {
            let sum = |f: fn(&Spec) -> u64| node.pods.values().map(|c| f(&c.spec)).sum::<u64>();
            assert!(sum(Spec::cpu_milli) <= node.record.cpu_milli, "{name} is over its CPU");
            assert!(
                sum(Spec::memory_bytes) <= node.record.memory_bytes,
                "{name} is over its memory"
            );
            for (id, c) in &node.pods {
                let same =
                    |o: &Claim| o.spec.app == c.spec.app && o.spec.namespace == c.spec.namespace;
                let twin = node.pods.iter().any(|(other, o)| other != id && same(o));
                assert!(!(c.spec.place.unique_host && twin), "two of {} on {name}", c.spec.app);
            }
        }
        if let Some((app, lowest)) = self.watch_ready.take() {
            let ready = self.ready(&app);
            self.watch_ready = Some((app, lowest.min(ready)));
        }
    }

    /// Pods of an app by node, those on nodes that are up.
    pub(crate) fn on(&self, app: &str) -> BTreeMap<String, Vec<String>> {
        let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, node) in self.nodes.iter().filter(|(_, n)| n.up) {
            for c in node.pods.values().filter(|c| c.spec.app == app) {
                map.entry(name.clone()).or_default().push(c.pod_name());
            }
        }
        map
    }

    /// Counts per node, sorted.
    pub(crate) fn shape(&self, app: &str) -> Vec<usize> {
        let mut counts: Vec<usize> = self.on(app).values().map(Vec::len).collect();
        counts.sort_unstable();
        counts
    }

    /// Ready claims of an app as its own nodes' records say.
    pub(crate) fn ready(&self, app: &str) -> u32 {
        let mut ready = 0;
        for (name, node) in self.nodes.iter().filter(|(_, n)| n.up) {
            let mine =
                node.sched.claims().filter(|(_, r)| r.node == *name && r.app == app && r.ready);
            ready += mine.count() as u32;
        }
        ready
    }

    /// Every slot 0..n has exactly one pod and each is ready.
    #[track_caller]
    pub(crate) fn whole(&self, app: &str, n: usize) {
        let mut pods: Vec<String> = self.on(app).into_values().flatten().collect();
        pods.sort();
        let mut want: Vec<String> = (0..n).map(|i| format!("{app}.{i}")).collect();
        want.sort();
        assert_eq!(pods, want, "{:?}", self.on(app));
        assert_eq!(self.ready(app), n as u32);
    }

    pub(crate) fn why(&self, app: &str) -> sched::Why {
        self.nodes.values().find(|n| n.up).unwrap().sched.why("default", app)
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }
}
