//! One container of a spec in the words of the shim.

use std::path::Path;

use imagefs::Image;
use initd::grants::Grants;
use initd::pod::{
    Backoff, Caps, Check, ContainerSpec, HugePages, IoLimit, Kind, LogPolicy, Overflow, Probe,
    Resources, Restart, Rlimit, Seccomp, Stdin, Stop, Tmpfs, VolumeMount,
};
use nix::sys::signal::Signal;
use sched::spec;

/// Everything but program, root, environment and binds.
pub(super) fn fill(
    container: &mut ContainerSpec,
    from: &spec::Container,
    image: Option<&Image>,
    grants: &Grants,
    disk: &Path,
) -> Result<(), String> {
    let of_image = |of: fn(&Image) -> &String| image.map(of).cloned().unwrap_or_default();
    container.kind = match from.role {
        spec::Role::Main => Kind::Main,
        spec::Role::Init => Kind::Init,
        spec::Role::Sidecar => Kind::Sidecar,
    };
    container.read_only = from.read_only;
    container.init = from.init;
    container.workdir = from.workdir.clone().unwrap_or_else(|| of_image(|i| &i.config.working_dir));
    container.user = from.user.clone().unwrap_or_else(|| of_image(|i| &i.config.user));
    container.caps = caps(from)?;
    container.seccomp = seccomp(from, grants)?;
    container.tmpfs = from.tmpfs.iter().map(tmpfs).collect();
    container.volumes = from.mounts.iter().map(volume).collect();
    for name in &from.devices {
        container.devices.extend(grants.devices(name).map_err(|e| e.to_string())?);
    }
    let limits = from.rlimits.iter().map(|(name, limit)| rlimit(name, *limit));
    container.rlimits = limits.collect::<Result<_, _>>()?;
    container.resources = resources(from, disk);
    container.restart = match from.restart {
        spec::Restart::Always => Restart::Always,
        spec::Restart::OnFailure => Restart::OnFailure,
        spec::Restart::Never => Restart::Never,
    };
    container.backoff = Backoff {
        first_ms: narrow(from.backoff.first_ms),
        max_ms: narrow(from.backoff.max_ms),
        reset_ms: narrow(from.backoff.reset_ms),
    };
    container.ready = from.ready.as_ref().map(probe);
    container.live = from.live.as_ref().map(probe);
    container.start = from.start.as_ref().map(probe);
    container.stop = stop(&from.stop, &of_image(|i| &i.config.stop_signal))?;
    container.stdin = match from.stdin {
        spec::Stdin::None => Stdin::Null,
        spec::Stdin::Pipe => Stdin::Pipe,
        spec::Stdin::Terminal => Stdin::Terminal,
    };
    container.log = LogPolicy {
        file_bytes: from.log.size_bytes,
        files: from.log.files,
        overflow: match from.log.rate_bytes_per_s {
            Some(bytes_per_s) => Overflow::Drop { bytes_per_s },
            None => Overflow::Wait,
        },
    };
    Ok(())
}

fn volume(from: &spec::Mount) -> VolumeMount {
    VolumeMount {
        volume: from.volume.clone(),
        target: from.path.clone(),
        read_only: from.read_only,
    }
}

/// 1 CPU is the kernel's default weight of 100 (cgroup-v2.rst, cpu.weight).
pub(super) fn cpu_weight(cpu_milli: u64) -> u32 {
    u32::try_from((cpu_milli / 10).clamp(1, 10_000)).unwrap_or(1)
}

pub(super) fn argv(from: &spec::Container, image: &Image) -> Vec<String> {
    let args = from.args.clone();
    match &from.command {
        Some(command) => command.iter().cloned().chain(args.unwrap_or_default()).collect(),
        None => {
            let args = args.unwrap_or_else(|| image.config.cmd.clone());
            image.config.entrypoint.iter().cloned().chain(args).collect()
        }
    }
}

pub(super) fn caps(from: &spec::Container) -> Result<Caps, String> {
    let Some(names) = &from.caps else {
        return Ok(match from.profile {
            spec::Profile::Strict => Caps::STRICT,
            spec::Profile::Compat => Caps::COMPAT,
        });
    };
    names.iter().try_fold(Caps::NONE, |caps, name| {
        Caps::named(name).map(|cap| caps.with(cap)).ok_or(format!("no capability named {name}"))
    })
}

fn seccomp(from: &spec::Container, grants: &Grants) -> Result<Seccomp, String> {
    let name = match (from.seccomp.as_deref(), from.profile) {
        (Some(name), _) => name,
        (None, spec::Profile::Strict) => "default",
        (None, spec::Profile::Compat) => "compat",
    };
    grants.filter(name).map_err(|e| e.to_string())
}

fn resources(from: &spec::Container, disk: &Path) -> Resources {
    let io = &from.io;
    let limit = IoLimit {
        device: disk.to_owned(),
        read_bytes_per_s: io.read_bytes_per_s,
        write_bytes_per_s: io.write_bytes_per_s,
        read_ops_per_s: io.read_ops_per_s,
        write_ops_per_s: io.write_ops_per_s,
    };
    let limited = spec::Io { weight: None, ..*io } != spec::Io::default();
    let pages = |(page, bytes): (&String, &u64)| {
        Some(HugePages { page_bytes: spec::units::size(page).ok()?, max_bytes: *bytes })
    };
    Resources {
        cpu_weight: Some(cpu_weight(from.cpu_milli)),
        cpu_max_milli: from.cpu_max_milli.map(narrow),
        cpus: from.cpuset.clone(),
        memory_max_bytes: Some(from.memory_bytes),
        memory_high_bytes: from.memory_high_bytes,
        pids_max: Some(from.pids),
        huge_pages: from.hugepages.iter().filter_map(pages).collect(),
        io_weight: io.weight,
        io: if limited { vec![limit] } else { Vec::new() },
        ..Resources::default()
    }
}

fn tmpfs(from: &spec::Tmpfs) -> Tmpfs {
    Tmpfs { target: from.path.clone(), size_bytes: from.size_bytes, mode: from.mode }
}

fn rlimit(name: &str, limit: spec::Rlimit) -> Result<Rlimit, String> {
    Rlimit::named(name, limit.soft, limit.hard)
        .ok_or_else(|| format!("no process limit named {name}"))
}

/// Milliseconds and thousandths have bounds in the spec that fit.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn probe(from: &spec::Probe) -> Probe {
    let check = match &from.check {
        spec::Check::Http { port, path } => Check::Http { port: *port, path: path.clone() },
        spec::Check::Tcp { port } => Check::Tcp { port: *port },
        spec::Check::Exec { argv } => Check::Exec { argv: argv.clone() },
        spec::Check::Grpc { port, service } => {
            Check::Grpc { port: *port, service: service.clone() }
        }
    };
    Probe {
        check,
        every_ms: narrow(from.every_ms).max(1),
        timeout_ms: narrow(from.timeout_ms).max(1),
        start_grace_ms: narrow(from.start_grace_ms),
        failures: from.fail.max(1),
        successes: from.pass.max(1),
    }
}

/// The spec's signal, else the image's, else SIGTERM.
fn stop(from: &spec::Stop, of_image: &str) -> Result<Stop, String> {
    let named = from.signal.as_deref().unwrap_or(of_image);
    let signal = if named.is_empty() { Signal::SIGTERM as i32 } else { signal_number(named)? };
    let grace_ms = u32::try_from(from.grace_ms).unwrap_or(u32::MAX);
    Ok(Stop { signal, grace_ms })
}

/// `TERM`, `SIGTERM` or `15`.
fn signal_number(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>()
        && (1..=64).contains(&number)
    {
        return Ok(number);
    }
    let name = format!("SIG{}", text.strip_prefix("SIG").unwrap_or(text));
    name.parse::<Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| format!("no signal named {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stop_signal_is_the_specs_else_the_images() {
        let signal = |spec: Option<&str>, image: &str| {
            let from = spec::Stop { signal: spec.map(str::to_owned), grace_ms: 10 };
            stop(&from, image).map(|stop| stop.signal)
        };
        assert_eq!(signal(None, ""), Ok(15));
        assert_eq!(signal(None, "SIGQUIT"), Ok(3));
        assert_eq!(signal(Some("INT"), "SIGQUIT"), Ok(2));
        assert!(signal(None, "SIGNOPE").is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("TERM"), Ok(15));
        assert_eq!(signal_number("SIGQUIT"), Ok(3));
        assert_eq!(signal_number("37"), Ok(37));
        assert!(signal_number("65").is_err());
        assert!(signal_number("NOPE").is_err());
    }
}
