//! Whether this machine can run a dev flock: each thing that is missing, with what to do about it.

use std::path::Path;

use anyhow::{Result, bail};
use initd::cgroup::Cgroups;

/// Refuses, with every reason at once; says what is missing but can be done without.
pub(super) fn check() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let args: Vec<String> = std::env::args().collect();
        bail!("namespaces, mounts and TUNs need root; run\n  sudo {}", args.join(" "));
    }
    let mut missing = Vec::new();
    if !Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun: `modprobe tun`".to_owned());
    }
    if find_program("ip").is_none() {
        missing.push("the program `ip`: `apt-get install iproute2`".to_owned());
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for name in ["overlay", "erofs"] {
        let built_in = filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
        if !built_in && !load_module(name) {
            missing.push(format!(
                "the file system {name}: `modprobe {name}`, or a kernel that has it"
            ));
        }
    }
    for namespace in ["net", "mnt", "pid", "user", "uts", "ipc", "cgroup"] {
        if !Path::new("/proc/self/ns").join(namespace).exists() {
            missing.push(format!("{namespace} namespaces: a kernel that has them"));
        }
    }
    if !missing.is_empty() {
        bail!("this machine lacks\n  {}", missing.join("\n  "));
    }
    for condition in agent::node::cgroup_conditions(Cgroups::probe().as_ref()) {
        eprintln!("note: {condition}");
    }
    Ok(())
}

fn load_module(name: &str) -> bool {
    let Some(modprobe) = find_program("modprobe") else { return false };
    std::process::Command::new(modprobe).arg("-q").arg(name).status().is_ok_and(|s| s.success())
}

/// A program by its name, in `PATH` and where root's programs are.
fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<_> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().map(|dir| dir.join(name)).find(|path| path.exists())
}
