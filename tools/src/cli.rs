//! The arguments of `quelea`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs apps on a flock of machines, without a master.
///
/// Every command may be given to any node. Which one: --node, else $QUELEA_NODE, else this machine's own agent, else the flock that
/// `quelea dev` runs here.
#[derive(Parser, Debug)]
#[command(name = "quelea", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Where and how.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// The node to ask: NAME (in a `quelea dev` flock), unix:PATH, NAME@ADDRESS or NAME@ADDRESS:PORT
    #[arg(long, global = true, env = "QUELEA_NODE", value_name = "NODE")]
    pub node: Option<String>,
    /// The flock's bundle: keys that sign specs and open HTTPS connections
    #[arg(long, global = true, env = "QUELEA_FLOCK", value_name = "DIR")]
    pub flock: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// How lists are printed.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Columns for people
    Table,
    /// All columns
    Wide,
    /// JSON, as the API gives it
    Json,
    /// Names only, one a line
    Name,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a flock of nodes on this machine, for development
    Dev(Dev),
    /// Make a flock's keys, or one node's credentials
    #[command(subcommand)]
    Init(Init),
    /// List the nodes, as one of them sees the flock
    Nodes,
    /// Show one node: where its labels come from, its conditions, its machine
    Node {
        /// Its name
        #[arg(value_name = "NODE")]
        target: String,
    },
    /// Give a node no new pods; those it has stay
    Cordon {
        /// Its name
        #[arg(value_name = "NODE")]
        target: String,
    },
    /// End a cordon or a drain
    Uncordon {
        /// Its name
        #[arg(value_name = "NODE")]
        target: String,
    },
    /// Give a node no new pods and have those it has moved away, within each app's budget; daemons stay
    Drain(Drain),
    /// Drain a machine and start it again
    Reboot(End),
    /// Drain a machine and power it off
    Poweroff(End),
    /// Start another kernel and initramfs on a machine, signed by the operator's key
    Upgrade(Upgrade),
    /// Print the end of a machine's kernel log, to which its PID 1 writes as well
    Console {
        /// Its name
        #[arg(value_name = "NODE")]
        target: String,
    },
    /// Give a machine in maintenance, or one that no flock knows, a name and credentials of its own, and start it
    Adopt(Adopt),
    /// List machines that no flock knows, on the links of the node asked: they booted without a configuration
    ///
    /// Nothing of it is proved: before you adopt one, compare its fingerprint with what its console shows.
    Strangers(Strangers),
    /// End a machine's maintenance: what made its agent fall is put right
    Retry {
        /// Its name
        #[arg(value_name = "NODE")]
        target: String,
    },
    /// Drop a dead or departed node everywhere: it no longer counts for what is a majority
    Forget {
        /// Its name
        #[arg(value_name = "NODE")]
        target: String,
    },
    /// Submit an app and wait until its replicas are ready
    Run(Run),
    /// List apps and their replicas
    Ps {
        /// Only this app: [NAMESPACE/]APP
        app: Option<String>,
    },
    /// Show one replica: what its containers do, and how much of their output their logs lack
    Pod {
        /// [NAMESPACE/]APP.SLOT, or APP.NODE of a daemon
        #[arg(value_name = "REPLICA")]
        target: String,
    },
    /// Stop an app; its spec is kept
    Stop(Stop),
    /// Show what nodes and replicas use: again and again on a terminal, else once
    Top(Top),
    /// Print what a replica wrote
    Logs(Logs),
    /// Run a program in a replica, and end with its exit code
    Exec(Exec),
    /// Watch a container's program, and give it input where its spec says `stdin`
    Attach(Attach),
    /// Carry ports of this machine to ports of a replica
    PortForward(PortForward),
    /// Say why an app is not running as wanted
    Why {
        /// [NAMESPACE/]APP
        app: String,
    },
    /// List what happened on the node asked
    Events {
        /// Go on until interrupted
        #[arg(short, long)]
        follow: bool,
    },
    /// Show the node asked: its size, its network, what it lacks
    Status,
    /// Pack, import, list and remove images
    #[command(subcommand)]
    Image(Image),
    /// Make what machines boot, and boot them
    #[command(subcommand)]
    Boot(crate::cmd::boot::Boot),
    /// Show which gossip keys the nodes hold, or give the flock a new one
    Keys {
        /// What to do; list where nothing is given
        #[command(subcommand)]
        action: Option<Keys>,
    },
    /// Print a completion script
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// `quelea dev`.
#[derive(Args, Debug)]
pub struct Dev {
    /// What to do with the flock; start it where nothing is given
    #[command(subcommand)]
    pub action: Option<DevAction>,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub nodes: u8,
    /// How many racks they stand in [default: one each, at most 3]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub racks: Option<u8>,
    /// A file with what is granted to pods on every node: the keys of the table `grants` of node.toml
    #[arg(long, value_name = "FILE")]
    pub grants: Option<PathBuf>,
    /// Return once the flock is up
    #[arg(short, long)]
    pub detach: bool,
    /// Stop when the process that started this one ends
    #[arg(long, hide = true)]
    pub with_parent: bool,
    /// Do not go into the background even though nobody waits (used by --detach)
    #[arg(long, hide = true)]
    pub supervise: bool,
}

/// What to do with a running dev flock.
#[derive(Subcommand, Debug)]
pub enum DevAction {
    /// Stop it and remove everything of it
    Stop,
    /// Cut a node's power: kill -9 of everything on it
    Kill {
        /// Which, n2 for example
        node: String,
    },
    /// Start a killed node again; its disk is as it was
    Start {
        /// Which
        node: String,
    },
}

/// `quelea init`.
#[derive(Subcommand, Debug)]
pub enum Init {
    /// Make a flock: its certificate authority, its gossip key and the first operator's key
    Flock {
        /// The directory for the bundle; keep it safe, everything rests on it
        dir: PathBuf,
        /// The flock's name
        #[arg(long, default_value = "flock")]
        name: String,
        /// The operator's name
        #[arg(long, default_value = "operator")]
        operator: String,
    },
    /// Make the credentials of one node
    Node {
        /// The node's name
        name: String,
        /// The directory for its credentials (on the node: /etc/quelea)
        #[arg(long)]
        out: PathBuf,
    },
}

/// `quelea drain`.
#[derive(Args, Debug)]
pub struct Drain {
    /// The node's name
    #[arg(value_name = "NODE")]
    pub target: String,
    /// Wait until nothing but daemons runs there
    #[arg(short, long)]
    pub wait: bool,
    /// Give up waiting after this many seconds; the drain goes on
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `quelea reboot`, `quelea poweroff`.
#[derive(Args, Debug)]
pub struct End {
    /// The node's name
    #[arg(value_name = "NODE")]
    pub target: String,
    /// Wait until the others see it gone, and for a reboot until it is back
    #[arg(short, long)]
    pub wait: bool,
    /// Give up waiting after this many seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `quelea upgrade`.
#[derive(Args, Debug)]
pub struct Upgrade {
    /// The node's name
    #[arg(value_name = "NODE")]
    pub target: String,
    /// The kernel
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The initramfs
    #[arg(long, value_name = "FILE")]
    pub initramfs: PathBuf,
    /// The kernel command line [default: the one it runs with]
    #[arg(long, value_name = "WORDS")]
    pub cmdline: Option<String>,
    /// Go back to the kernel of before unless the node is healthy after this many seconds; 0 for no way back
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub trial: u32,
    /// Give up waiting after this many seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `quelea adopt`.
#[derive(Args, Debug)]
pub struct Adopt {
    /// The machine's present name, as `quelea nodes` has it; with --fingerprint its address
    #[arg(value_name = "NODE|ADDRESS")]
    pub target: String,
    /// What a machine that no flock knows shows on its console; it is given nothing before it has proved to be that machine
    #[arg(long, value_name = "DIGITS")]
    pub fingerprint: Option<String>,
    /// A running node that such a machine joins, besides those of the flock asked; may be repeated
    #[arg(long, value_name = "ADDRESS", requires = "fingerprint")]
    pub join: Vec<String>,
    /// Reach such a machine from here, not through the node asked
    #[arg(long, requires = "fingerprint")]
    pub here: bool,
    /// Its name from now on
    #[arg(long)]
    pub name: String,
    /// KEY=VALUE; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Give up waiting after this many seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `quelea strangers`.
#[derive(Args, Debug)]
pub struct Strangers {
    /// Search the links of this machine, not those of the node asked
    #[arg(long)]
    pub here: bool,
}

/// `quelea run`.
#[derive(Args, Debug)]
pub struct Run {
    /// The spec, TOML; - for standard input
    pub file: PathBuf,
    /// Return once the flock has it
    #[arg(short, long)]
    pub detach: bool,
    /// Give up waiting after this many seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `quelea top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Only replicas of this app: [NAMESPACE/]APP, or one of them: [NAMESPACE/]APP.SLOT
    pub app: Option<String>,
    /// What comes first
    #[arg(short, long, value_enum, default_value_t = SortBy::Cpu)]
    pub sort: SortBy,
    /// Only this node; may be repeated
    #[arg(long, value_name = "NODE")]
    pub on: Vec<String>,
    /// Seconds between two looks on a terminal
    #[arg(short, long, default_value_t = 2.0, value_name = "SECONDS", value_parser = seconds)]
    pub every: f64,
    /// Print once, also on a terminal
    #[arg(long)]
    pub once: bool,
}

/// A pause that leaves the nodes time for other things.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds is needed".to_owned())?;
    if (0.5..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("0.5 to 3600 s".into()) }
}

/// By what `quelea top` sorts.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortBy {
    /// Most CPU first
    Cpu,
    /// Most memory first
    Memory,
    /// By name
    Name,
}

/// `quelea stop`.
#[derive(Args, Debug)]
pub struct Stop {
    /// [NAMESPACE/]APP
    pub app: String,
    /// Return once the flock knows
    #[arg(short, long)]
    pub detach: bool,
    /// Give up waiting after this many seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `quelea logs`.
#[derive(Args, Debug)]
pub struct Logs {
    /// [NAMESPACE/]APP.SLOT, or APP for all of its replicas
    pub pod: String,
    /// Which container; all of them where none is given
    #[arg(short, long)]
    pub container: Option<String>,
    /// Go on until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines, of each container
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Only what was written since: 90s, 10m, 2h ago, or a moment like 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Print when each line was written
    #[arg(short, long)]
    pub timestamps: bool,
}

/// `quelea exec`.
#[derive(Args, Debug)]
#[command(
    after_help = "It ends with the program's exit code: 128 + N where signal N ended it, 127 where there is no such program, 126 where it cannot be run, 125 where something else kept it from starting. Of `quelea` itself: 1."
)]
pub struct Exec {
    /// [NAMESPACE/]APP.SLOT, or APP for its first replica
    pub pod: String,
    /// Which container; the first where none is given
    #[arg(short, long)]
    pub container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the program a terminal, which is this one: -it for a shell
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Program and arguments
    #[arg(last = true, required = true)]
    pub argv: Vec<String>,
}

/// `quelea attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// [NAMESPACE/]APP.SLOT, or APP for its first replica
    pub pod: String,
    /// Which container; the first main one where none is given
    #[arg(short, long)]
    pub container: Option<String>,
    /// Only watch: pass no input on
    #[arg(long)]
    pub no_stdin: bool,
}

/// `quelea port-forward`.
#[derive(Args, Debug)]
pub struct PortForward {
    /// [NAMESPACE/]APP.SLOT, or APP for its first replica
    pub pod: String,
    /// LOCAL:REMOTE, or one number for both; LOCAL 0 takes a free port; may be repeated
    #[arg(required = true, value_name = "LOCAL:REMOTE")]
    pub ports: Vec<String>,
}

/// `quelea image`.
#[derive(Subcommand, Debug)]
pub enum Image {
    /// Make an OCI image from a directory
    Pack(Pack),
    /// Bring an image into the flock: an OCI layout (directory or tar) or a `docker save`
    Import {
        /// The layout
        path: PathBuf,
        /// Its name in the flock, where the layout has none or another
        #[arg(short, long)]
        tag: Option<String>,
    },
    /// List the flock's images
    Ls,
    /// Take images out of the flock; nodes give back the room soon after
    Rm {
        /// A name, or sha256:DIGEST for an image under all its names
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// `quelea image pack`.
#[derive(Args, Debug)]
pub struct Pack {
    /// The directory that becomes the root file system
    pub dir: PathBuf,
    /// Where to write the OCI layout
    #[arg(long)]
    pub out: PathBuf,
    /// The image's name
    #[arg(short, long)]
    pub tag: String,
    /// The program and its first arguments; may be repeated
    #[arg(long)]
    pub entrypoint: Vec<String>,
    /// Default arguments; may be repeated
    #[arg(long)]
    pub cmd: Vec<String>,
    /// KEY=VALUE; may be repeated
    #[arg(short, long)]
    pub env: Vec<String>,
    /// UID, UID:GID, or names
    #[arg(short, long, default_value = "")]
    pub user: String,
    /// Working directory
    #[arg(short, long, default_value = "")]
    pub workdir: String,
    /// Signal that asks the program to end; SIGTERM where none is given
    #[arg(long, default_value = "", value_name = "SIGNAL")]
    pub stop_signal: String,
}

/// `quelea keys`.
#[derive(Subcommand, Debug)]
pub enum Keys {
    /// Give the flock a new gossip key while it runs; broken off, the same command goes on
    Rotate(Rotate),
}

/// `quelea keys rotate`.
#[derive(Args, Debug)]
pub struct Rotate {
    /// Keep the new key from this node and refuse its certificate; may be repeated
    #[arg(long, value_name = "NODE")]
    pub evict: Vec<String>,
    /// Leave this node behind: it is down and will get new credentials; may be repeated
    #[arg(long, value_name = "NODE")]
    pub without: Vec<String>,
}
