//! What a seed means.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// Everything a run is drawn from. Printed with every failure.
#[derive(Clone, Debug, Serialize)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Nodes, the least and the most; the seed picks.
    pub nodes_min: usize,
    /// See `nodes_min`.
    pub nodes_max: usize,
    /// Kinds of faults that the draw knows: [`KINDS`] today. A seed that found something keeps the number that it was
    /// drawn with; new kinds come at the end of the list and change nothing for it.
    pub kinds: usize,
    /// How many times rarer than usual faults and operators are.
    pub pace: u64,
    /// Length of the safety phase, virtual seconds.
    pub safety_s: u64,
    /// The flock must have come together so long after the heal, virtual seconds.
    pub liveness_s: u64,
    /// Then nothing may start for so long, virtual seconds.
    pub rest_s: u64,
    /// Print what happens.
    #[serde(skip)]
    pub verbose: bool,
}

impl Options {
    /// The defaults for a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes_min: 3,
            nodes_max: 24,
            kinds: KINDS,
            pace: 1,
            safety_s: 90,
            liveness_s: 150,
            rest_s: 8,
            verbose: false,
        }
    }

    /// The command that replays this run.
    #[must_use]
    pub fn replay(&self) -> String {
        format!(
            "cargo xtask sim --start {} --seeds 1 --nodes {}..{} --seconds {} --kinds {} --pace {} --verbose",
            self.seed, self.nodes_min, self.nodes_max, self.safety_s, self.kinds, self.pace
        )
    }
}

/// What the seed drew.
#[derive(Clone, Debug, Serialize)]
pub struct Drawn {
    /// Nodes.
    pub nodes: usize,
    /// Racks.
    pub racks: usize,
    /// Mean time between faults, milliseconds.
    pub fault_every_ms: u64,
    /// Mean time between an operator's actions, milliseconds.
    pub operator_every_ms: u64,
    /// Loss at all times, per mille.
    pub loss: u32,
    /// Of 1000 datagrams, how many come twice.
    pub duplicate: u32,
    /// Of 1000 datagrams, how many are damaged.
    pub corrupt: u32,
    /// Round trips are up to this long, microseconds.
    pub latency_us: u64,
    /// Of 1000 pod starts, how many fail.
    pub fail: u32,
    /// Which faults this seed knows: swarm testing, so that not every run is everything at once.
    pub faults: Vec<Fault>,
}

/// A fault the world can inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The flock falls into two sides.
    Partition,
    /// One node is cut off.
    Isolate,
    /// One direction of one link is cut.
    OneWay,
    /// Half of the nodes hear one node and the other half does not.
    Bridge,
    /// A machine loses power; its disk stays (what was synced).
    Crash,
    /// A machine loses power and its disk.
    Amnesia,
    /// Several machines lose power at once.
    MassCrash,
    /// The agent dies and starts again; pods live on.
    AgentRestart,
    /// A node stands still.
    Pause,
    /// A wall clock jumps.
    ClockJump,
    /// Much loss for a while.
    LossBurst,
    /// Long, uneven delays for a while.
    DelayBurst,
    /// A pod exits, or vanishes.
    PodTrouble,
    /// A node dies for good and is forgotten.
    Forget,
    /// Some nodes' links are clogged one after another, and unclogged in another order.
    SwizzleClog,
    /// A disk makes what it is given durable seconds later.
    SlowDisk,
    /// A machine's clocks run up to 5 % fast or slow for a while. Where this is known, each is up to 500 ppm off anyway.
    ClockDrift,
    /// A machine loses power in the middle of its next write.
    TornWrite,
}

/// Kinds of faults there are.
pub const KINDS: usize = ALL.len();

/// In the order in which they came: see [`Options::kinds`].
const ALL: [Fault; 18] = [
    Fault::Partition,
    Fault::Isolate,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Crash,
    Fault::Amnesia,
    Fault::MassCrash,
    Fault::AgentRestart,
    Fault::Pause,
    Fault::ClockJump,
    Fault::LossBurst,
    Fault::DelayBurst,
    Fault::PodTrouble,
    Fault::Forget,
    Fault::SwizzleClog,
    Fault::SlowDisk,
    Fault::ClockDrift,
    Fault::TornWrite,
];

impl Drawn {
    /// Draws a run's options from its seed.
    #[must_use]
    pub fn draw(options: &Options) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed ^ 0x5eed_0000_0000_0001);
        let (min, max) = (options.nodes_min.max(1), options.nodes_max.max(options.nodes_min));
        // Small flocks are the rule: half of all runs have at most 8 nodes.
        let small = rng.random_bool(0.5) && min < 8;
        let nodes =
            if small { rng.random_range(min..=max.min(8)) } else { rng.random_range(min..=max) };
        let known = ALL.into_iter().take(options.kinds);
        let mut faults: Vec<Fault> = known.filter(|_| rng.random_bool(0.5)).collect();
        if faults.is_empty() {
            faults.push(Fault::Crash);
        }
        let some = |rng: &mut Xoshiro256PlusPlus, most: u32| {
            if rng.random_bool(0.5) { rng.random_range(0..=most) } else { 0 }
        };
        Self {
            nodes,
            racks: rng.random_range(1..=nodes.min(8)),
            fault_every_ms: rng.random_range(2_000..=15_000) * options.pace.max(1),
            operator_every_ms: rng.random_range(3_000..=20_000) * options.pace.max(1),
            loss: some(&mut rng, 100),
            duplicate: some(&mut rng, 200),
            corrupt: some(&mut rng, 50),
            latency_us: rng.random_range(200..=20_000),
            fail: some(&mut rng, 150),
            faults,
        }
    }
}
