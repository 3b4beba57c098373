//! The `quelead` binary: roles by its first argument, or by the name it is called by.
//!
//! ```text
//! quelead agent [--config FILE]     the node's agent
//! quelead init [--config FILE]      PID 1: of a machine, or of a namespace of `quelea dev`
//! quelead shim ID                   one pod; started by the agent only
//! ```
//!
//! As `/init` of a machine it is `quelead init`, whatever its arguments.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: quelead agent [--config FILE] [--maintenance] [--reason TEXT]
                                        run this node's agent (default FILE: /etc/quelea/node.toml);
                                        with --maintenance serve no pods and wait for an operator
       quelead agent --stranger [--config FILE]
                                        without a configuration: wait to be adopted by an operator
       quelead init [--config FILE] [--namespace]
                                        run as PID 1 and keep the agent running
       quelead --version | --help

SIGTERM ends the agent in order: it says goodbye, its pods run on, and the next agent finds them.
Under systemd it needs KillMode=process, else the pods are killed with it:

    [Service]
    ExecStart=/usr/local/bin/quelead agent
    KillMode=process
    Delegate=yes
    Restart=always
";

fn main() -> ExitCode {
    agent::backtrace::forbid();
    // Before anything else: what runs before it is memory that each pod pays for.
    let all: Vec<OsString> = std::env::args_os().collect();
    if all.get(1).is_some_and(|role| role == "shim") {
        return code(initd::shim::main());
    }
    // `modprobe`, `poweroff`, `reboot`: by the name it is called by.
    if let Some(status) = initd::machine::personality(all.iter().map(OsString::as_os_str)) {
        return code(status);
    }
    let mut args = all.into_iter().skip(1);
    let mut role = args.next();
    if std::process::id() == 1 && role.as_deref().is_none_or(|role| role != "init") {
        // The kernel starts PID 1 of a machine with the words of its command line that it does not know.
        role = Some("init".into());
        args.by_ref().for_each(drop);
    }
    match parse(role, args) {
        Ok(role) => run(role),
        Err(error) => {
            eprintln!("quelead: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

enum Role {
    Agent { config: PathBuf, maintenance: Option<String> },
    Stranger { config: PathBuf },
    Init { config: PathBuf, namespace: bool },
    Help,
    Version,
}

fn parse(
    role: Option<OsString>,
    args: impl Iterator<Item = OsString>,
) -> Result<Role, lexopt::Error> {
    use lexopt::prelude::*;
    let mut config = PathBuf::from("/etc/quelea/node.toml");
    let mut namespace = false;
    let (mut maintenance, mut reason) = (false, String::from("as it was told"));
    let mut stranger = false;
    let name = role.as_ref().map(|role| role.to_string_lossy().into_owned()).unwrap_or_default();
    match name.as_str() {
        "--help" | "-h" | "help" => return Ok(Role::Help),
        "--version" | "-V" => return Ok(Role::Version),
        "agent" | "init" => {}
        "" => return Err("which role?".into()),
        other => return Err(format!("no role is named {other:?}").into()),
    }
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("config") => config = parser.value()?.into(),
            Long("stranger") if name == "agent" => stranger = true,
            Long("maintenance") if name == "agent" => maintenance = true,
            Long("reason") if name == "agent" => {
                reason = parser.value()?.to_string_lossy().into_owned();
            }
            Long("namespace") if name == "init" => namespace = true,
            Long("help") | Short('h') => return Ok(Role::Help),
            other => return Err(other.unexpected()),
        }
    }
    if name == "init" {
        return Ok(Role::Init { config, namespace });
    }
    if stranger {
        return Ok(Role::Stranger { config });
    }
    Ok(Role::Agent { config, maintenance: maintenance.then_some(reason) })
}

fn run(role: Role) -> ExitCode {
    match role {
        Role::Help => print!("{USAGE}"),
        Role::Version => println!("quelead {}", env!("CARGO_PKG_VERSION")),
        Role::Init { config, namespace } => return init(config, namespace),
        Role::Stranger { config } => {
            log();
            if let Err(error) = agent::stranger::run(&config, &agent::config::NodeFile::default()) {
                eprintln!("quelead: {error:#}");
                return ExitCode::FAILURE;
            }
        }
        Role::Agent { config, maintenance } => {
            log();
            match agent::runtime::run(&config, maintenance.as_deref()) {
                Ok(agent::node::Exit::Quit) => {}
                Ok(agent::node::Exit::Serve) => return again(&config),
                Err(error) => {
                    eprintln!("quelead: {error:#}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

fn log() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
}

/// Maintenance is over and nobody else starts the full agent: this process becomes it.
fn again(config: &std::path::Path) -> ExitCode {
    use std::os::unix::process::CommandExt as _;
    let exe = std::env::current_exe().unwrap_or_else(|_| "quelead".into());
    let error = std::process::Command::new(exe).args(["agent", "--config"]).arg(config).exec();
    eprintln!("quelead: cannot start the agent again: {error}");
    ExitCode::FAILURE
}

fn init(config: PathBuf, namespace: bool) -> ExitCode {
    let exe = std::env::current_exe().unwrap_or_else(|_| "/init".into());
    let mode = if namespace { initd::init::Mode::Namespace } else { initd::init::Mode::Machine };
    let agent = vec![exe.into(), "agent".into(), "--config".into(), config.clone().into()];
    code(initd::init::main(&initd::init::Config {
        mode,
        agent,
        node_config: Some(config),
        grace_ms: 5_000,
        // Whoever tries things on a laptop does not want to wait.
        drain_ms: if namespace { 5_000 } else { 30_000 },
        first_word_ms: (!namespace).then_some(120_000),
    }))
}

fn code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
