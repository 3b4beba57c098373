//! How containers end and why they do not start, in the words in which operators read it.

use initd::launch::Step;
use initd::shim::Exit;
use nix::sys::signal::Signal;

/// `container web exited with code 1`, `container web was killed for memory: raise its ...`.
pub(super) fn exit_words(container: &str, exit: Exit, unhealthy: Option<&str>) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by {}", signal_name(signal)),
        (None, None) => "ended".to_owned(),
    };
    let name = format!("container {container}");
    match unhealthy {
        Some(text) => format!("{name} was given up ({text}): it {how}"),
        None if exit.oom => {
            format!(
                "{name} {how}: it used all of its memory (OOM); raise `memory` or make it use less"
            )
        }
        None => format!("{name} {how}"),
    }
}

/// Of a container that was asked to end and had to be killed.
pub(super) fn deaf_words(signal: i32, grace_ms: u32) -> String {
    let (name, s) = (signal_name(signal), f64::from(grace_ms) / 1e3);
    format!(
        "did not end within {s:.1} s of {name} and is killed: make it end on that signal, or set `stop` to the signal and grace that it \
         needs"
    )
}

fn signal_name(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => format!("{} ({number})", signal.as_str()),
        Err(_) => format!("signal {number}"),
    }
}

/// `container web could not be started: no program "x" in the image; ...`.
pub(super) fn failure_words(container: &str, step: Step, errno: i32, text: &str) -> String {
    format!("container {container} could not be started: {}", step_words(step, errno, text))
}

/// What failed, why, and what to do about it.
pub(super) fn step_words(step: Step, errno: i32, text: &str) -> String {
    let os = std::io::Error::from_raw_os_error(errno);
    let hint = match step {
        Step::Exec if text.contains("is built for") => {
            "; bring in an image for this machine, or keep the app to others by place.require"
        }
        Step::Exec if text.contains("interpreter") || text.contains("the loader") => {
            "; put it into the image, or build the program static"
        }
        Step::Exec if text.contains("no program") => "; set `command` to a program of the image",
        Step::Exec if text.contains("not executable") => {
            "; set its mode in the image (chmod 755), or another `user`"
        }
        Step::Exec if text.contains("larger than the kernel") => "; make `env` and `args` smaller",
        Step::User => "; set `user` to one of the image's /etc/passwd, or to a number",
        Step::Workdir => "; set `workdir` to a directory of the image",
        _ => "",
    };
    // What explains itself needs no number of the kernel's.
    match step {
        Step::Exec | Step::User | Step::Workdir => format!("{text}{hint}"),
        _ if text.contains(&os.to_string()) => format!("{text}{hint}"),
        _ => format!("{text}: {os}{hint}"),
    }
}

/// The exit code of a program that could not be started, as shells have it: 127 for one that is not there, 126 for one that cannot be
/// run; 125 for what was in the way before that, as `docker exec` has it.
pub(super) fn not_started_code(step: Step, errno: i32) -> i32 {
    match (step, nix::errno::Errno::from_raw(errno)) {
        (Step::Exec, nix::errno::Errno::ENOENT) => 127,
        (Step::Exec, _) => 126,
        _ => 125,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_say_how_and_what_to_do() {
        let exit = |code, signal, oom| Exit { code, signal, oom };
        let words = |e| exit_words("c", e, None);
        assert_eq!(words(exit(Some(3), None, false)), "container c exited with code 3");
        let killed = words(exit(None, Some(9), false));
        assert_eq!(killed, "container c was killed by SIGKILL (9)");
        let oom = words(exit(None, Some(9), true));
        assert!(oom.contains("OOM") && oom.contains("raise `memory`"), "{oom}");
        assert!(words(exit(None, Some(40), false)).contains("signal 40"));
        let live =
            exit_words("c", exit(None, Some(15), false), Some("its `live` probe: HTTP status 500"));
        assert!(live.contains("its `live` probe: HTTP status 500"), "{live}");
    }

    #[test]
    fn codes_are_those_of_shells() {
        assert_eq!(not_started_code(Step::Exec, nix::libc::ENOENT), 127);
        assert_eq!(not_started_code(Step::Exec, nix::libc::EACCES), 126);
        assert_eq!(not_started_code(Step::User, nix::libc::ENOENT), 125);
        let other = step_words(Step::Dev, nix::libc::EPERM, "the console");
        assert_eq!(other, "the console: Operation not permitted (os error 1)");
    }

    #[test]
    fn each_failure_has_an_advice() {
        for (step, text, advice) in [
            (Step::Exec, "no program \"x\" in the image", "set `command`"),
            (Step::Exec, "\"x\" is built for arm, this node is x86_64", "place.require"),
            (Step::Exec, "\"x\" needs the loader /lib/ld.so, which is not in the image", "static"),
            (Step::Exec, "\"x\" is not executable by uid 0", "chmod"),
            (Step::User, "no user www", "set `user`"),
            (Step::Workdir, "working directory /x: no", "set `workdir`"),
        ] {
            let words = step_words(step, 2, text);
            assert!(words.contains(advice) && words.starts_with(text), "{words}");
        }
    }
}
