//! What shims say of their pods, in the words in which operators read it; and what is asked of them: programs, logs, details.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};

use initd::launch::Step;
use initd::shim::{
    Condition, ConnectId, ContainerState, Event as ShimEvent, ExecId, ExecSpec, Exit, PodStatus,
};
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};

use super::Node;
use super::pods::Local;
use crate::api::types::{Container as ContainerView, PodDetail};
use crate::pods::{Failure, Input};

/// What is asked of a running container.
pub struct ExecRequest {
    /// `APP.SLOT`.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Which container; the first main one where none is given.
    pub container: Option<String>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Replaces and adds to the container's environment.
    pub env: Vec<(String, String)>,
    /// Standard input, output and error of the program; a terminal where there are none.
    pub stdio: Option<[OwnedFd; 3]>,
}

/// A program that was asked for.
pub struct Running {
    /// The pod's claim.
    pub claim: String,
    /// Its name on the shim's connection.
    pub exec: ExecId,
    /// What becomes of it.
    pub news: mpsc::UnboundedReceiver<ExecNews>,
}

/// What becomes of an exec.
#[derive(Debug)]
pub enum ExecNews {
    /// Its terminal: our end of it.
    Terminal(OwnedFd),
    /// It ended.
    Exited(Exit),
    /// It could not be started.
    Failed(String),
}

/// A running container's streams.
#[derive(Debug)]
pub struct Attached {
    /// Where its input goes, if its spec gives it one.
    pub input: Option<OwnedFd>,
    /// What it writes from now on.
    pub output: OwnedFd,
    /// Its errors, where it is on no terminal.
    pub errors: Option<OwnedFd>,
    /// It runs on a terminal, which is `input`.
    pub terminal: bool,
}

/// Somebody who waits for an answer of a shim: what was asked for, or words for people.
pub(super) type Waiting<T> = oneshot::Sender<Result<T, String>>;
/// The receiving end of it.
pub(crate) type Answer<T> = oneshot::Receiver<Result<T, String>>;

/// One container, as its shim told it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    state: &'static str,
    restarts: u32,
    reason: String,
    /// What its liveness probe saw when it gave it up; until its end is told.
    unhealthy: Option<String>,
}

impl Node {
    pub(super) fn shim_said(&mut self, claim: &str) {
        let Some(local) = self.local.get_mut(claim) else { return };
        let Some(connection) = &mut local.shim else { return };
        let events = match connection.shim.recv() {
            Ok(events) => events,
            Err(error) => {
                self.event(format!("pod/{claim}"), format!("its shim is not understood: {error}"));
                vec![ShimEvent::Gone]
            }
        };
        for event in events {
            self.shim_event(claim, event);
        }
    }

    fn pod_name(&self, claim: &str) -> String {
        self.local.get(claim).map_or_else(|| claim.to_owned(), |l| l.kept.record.pod_name())
    }

    fn seen(&mut self, claim: &str, container: &str) -> Option<&mut Seen> {
        Some(self.local.get_mut(claim)?.seen.entry(container.to_owned()).or_default())
    }

    fn is_main(&self, claim: &str, container: &str) -> bool {
        self.local.get(claim).is_some_and(|l| l.kept.is_main(container))
    }

    fn shim_event(&mut self, claim: &str, event: ShimEvent) {
        let about = format!("pod/{}", self.pod_name(claim));
        let claim = claim.to_owned();
        match event {
            ShimEvent::Status(status) => self.status(claim, &status),
            ShimEvent::Started { container, restarts, .. } => {
                if let Some(seen) = self.seen(&claim, &container) {
                    (seen.state, seen.restarts) = ("running", restarts);
                }
                // The pod runs when its main containers do.
                if self.is_main(&claim, &container) {
                    let ready = self.local.get(&claim).is_some_and(|l| l.ready);
                    self.pods_step(Input::Running { claim, ready });
                }
            }
            ShimEvent::Ready { pod_ready, .. } => self.ready(claim, pod_ready),
            ShimEvent::Exited { container, exit, restart_in_ms } => {
                self.exited(claim, about, &container, exit, restart_in_ms);
            }
            ShimEvent::Failed { container, step, errno, text, retry_in_ms } => {
                let failed = failure_words(&container, step, errno, &text);
                self.not_started(claim, about, &container, failed, retry_in_ms);
            }
            ShimEvent::Unhealthy { container, text } => {
                self.event(about, format!("container {container} is given up: {text}"));
                if let Some(seen) = self.seen(&claim, &container) {
                    seen.unhealthy = Some(text);
                }
            }
            // What the machine lacks for every pod is one of the node's conditions already.
            ShimEvent::Condition(Condition::NoLimit { .. } | Condition::NoCgroup { .. }) => {}
            ShimEvent::Condition(condition) => self.event(about, format!("{condition:?}")),
            ShimEvent::Terminal { exec, fd } => {
                self.exec_said(&claim, exec, ExecNews::Terminal(fd));
            }
            ShimEvent::ExecExited { exec, exit } => {
                self.exec_said(&claim, exec, ExecNews::Exited(exit));
            }
            ShimEvent::ExecFailed { exec, step, errno, text } => {
                let reason = step_words(step, errno, &text);
                self.exec_said(&claim, exec, ExecNews::Failed(reason));
            }
            ShimEvent::Attached { container, input, output, errors, terminal } => {
                let attached = Attached { input, output, errors, terminal };
                self.attached(&claim, &container, Ok(attached));
            }
            ShimEvent::AttachFailed { container, errno, text } => {
                let os = std::io::Error::from_raw_os_error(errno);
                self.attached(&claim, &container, Err(format!("{container}: {text} ({os})")));
            }
            ShimEvent::Connected { connect, socket } => self.connected(&claim, connect, Ok(socket)),
            ShimEvent::ConnectFailed { connect, errno, text } => {
                let os = std::io::Error::from_raw_os_error(errno);
                self.connected(&claim, connect, Err(format!("{text} ({os})")));
            }
            // It ends once it is told to; until then it may hold the mounts.
            ShimEvent::Stopped => {
                let connection = self.local.get_mut(&claim).and_then(|local| local.shim.as_mut());
                if !matches!(connection.map(|c| c.shim.quit()), Some(Ok(()))) {
                    self.pods_step(Input::ShimGone { claim });
                }
            }
            ShimEvent::Gone => {
                if let Some(local) = self.local.get_mut(&claim)
                    && let Some(mut connection) = local.shim.take()
                {
                    self.tokens.remove(&connection.token);
                    connection.shim.reap();
                }
                self.pods_step(Input::ShimGone { claim });
            }
            _ => {}
        }
    }

    fn status(&mut self, claim: String, status: &PodStatus) {
        if let Some(local) = self.local.get_mut(&claim) {
            local.seen = status_seen(status);
        }
        self.ready(claim, status.ready);
    }

    fn exited(
        &mut self,
        claim: String,
        about: String,
        container: &str,
        exit: Exit,
        restart_in_ms: Option<u32>,
    ) {
        let unhealthy = self.seen(&claim, container).and_then(|seen| seen.unhealthy.take());
        let mut reason = exit_words(container, exit, unhealthy.as_deref());
        if let Some(ms) = restart_in_ms {
            reason.push_str(&format!("; starts again in {:.1} s", f64::from(ms) / 1e3));
        }
        self.event(about, reason.clone());
        if let Some(seen) = self.seen(&claim, container) {
            seen.state = match (restart_in_ms, exit.success()) {
                (Some(_), _) => "backing off",
                (None, true) => "done",
                (None, false) => "failed",
            };
            seen.reason.clone_from(&reason);
        }
        let main = self.is_main(&claim, container);
        // An init container that ended well, or a sidecar that is done: the pod goes on.
        if restart_in_ms.is_none() && !main && exit.success() {
            return;
        }
        if main {
            self.set_ready(&claim, false);
        }
        let Exit { code, signal, oom } = exit;
        self.pods_step(Input::Exited { claim, code, signal, oom, reason });
    }

    fn not_started(
        &mut self,
        claim: String,
        about: String,
        container: &str,
        reason: String,
        retry_in_ms: Option<u32>,
    ) {
        self.event(about, reason.clone());
        self.set_ready(&claim, false);
        if let Some(seen) = self.seen(&claim, container) {
            seen.state = if retry_in_ms.is_some() { "backing off" } else { "failed" };
            seen.reason.clone_from(&reason);
        }
        if retry_in_ms.is_some() {
            let (code, signal, oom) = (None, None, false);
            self.pods_step(Input::Exited { claim, code, signal, oom, reason });
        } else {
            self.pods_step(Input::Broken { claim, failure: Failure { reason, retryable: false } });
        }
    }

    fn set_ready(&mut self, claim: &str, ready: bool) {
        if let Some(local) = self.local.get_mut(claim) {
            local.ready = ready;
        }
    }

    fn ready(&mut self, claim: String, ready: bool) {
        self.set_ready(&claim, ready);
        // Before the main containers run there is nothing that could be ready; while one waits to be started again, that is
        // what is told.
        let up = self.local.get(&claim).is_some_and(Local::mains_run);
        if ready || up {
            self.pods_step(Input::Running { claim, ready });
        }
    }

    fn exec_said(&mut self, claim: &str, exec: ExecId, news: ExecNews) {
        let Some(local) = self.local.get_mut(claim) else { return };
        let Some(connection) = &mut local.shim else { return };
        let last = !matches!(news, ExecNews::Terminal(_));
        if let Some(waiting) = connection.execs.get(&exec) {
            // Who asked may have gone away.
            let _ = waiting.send(news);
        }
        if last {
            connection.execs.remove(&exec);
        }
    }

    /// Starts a program in a running container of this node.
    ///
    /// # Errors
    /// Words for people: no such pod here, or it is not running.
    pub(crate) fn exec(&mut self, request: ExecRequest) -> Result<Running, String> {
        let (claim, container) =
            self.find_container(&request.namespace, &request.pod, request.container.as_deref())?;
        let connection = self.local.get_mut(&claim).and_then(|local| local.shim.as_mut());
        let connection = connection
            .ok_or_else(|| format!("{} is not running yet; see `quelea ps`", request.pod))?;
        let spec = ExecSpec {
            container,
            argv: request.argv,
            env: request.env,
            workdir: String::new(),
            user: String::new(),
        };
        let started = match &request.stdio {
            Some([stdin, stdout, stderr]) => {
                connection.shim.exec(&spec, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
            }
            None => connection.shim.exec_terminal(&spec),
        };
        let exec = started.map_err(|e| format!("{}: its shim refused: {e}", request.pod))?;
        let (sender, news) = mpsc::unbounded_channel();
        connection.execs.insert(exec, sender);
        Ok(Running { claim, exec, news })
    }

    /// Ends a program whose caller went away.
    pub(crate) fn exec_kill(&mut self, claim: &str, exec: ExecId) {
        let connection = self.local.get_mut(claim).and_then(|local| local.shim.as_mut());
        if let Some(connection) = connection.filter(|c| c.execs.contains_key(&exec)) {
            // A shim that is gone has taken it along.
            let _ = connection.shim.exec_kill(exec);
        }
    }

    /// Asks for the streams of a running container: its pod's claim, its name, and where the answer comes.
    ///
    /// # Errors
    /// Words for people: no such pod or container here, or it is not running.
    pub(crate) fn attach(
        &mut self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<(String, String, Answer<Attached>), String> {
        let (claim, container) = self.find_container(namespace, pod, container)?;
        let connection = self.local.get_mut(&claim).and_then(|local| local.shim.as_mut());
        let connection =
            connection.ok_or_else(|| format!("{pod} is not running yet; see `quelea ps`"))?;
        connection
            .shim
            .attach_to(&container)
            .map_err(|e| format!("{pod}: its shim refused: {e}"))?;
        let (sender, answer) = oneshot::channel();
        connection.attaching.push((container.clone(), sender));
        Ok((claim, container, answer))
    }

    fn attached(&mut self, claim: &str, container: &str, result: Result<Attached, String>) {
        let connection = self.local.get_mut(claim).and_then(|local| local.shim.as_mut());
        let Some(connection) = connection else { return };
        let at = connection.attaching.iter().position(|(name, _)| name == container);
        if let Some(at) = at {
            // Who asked may have gone away.
            let _ = connection.attaching.remove(at).1.send(result);
        }
    }

    /// An attached operator's input has ended.
    pub(crate) fn close_stdin(&mut self, claim: &str, container: &str) {
        let connection = self.local.get_mut(claim).and_then(|local| local.shim.as_mut());
        if let Some(connection) = connection {
            // A shim that is gone has closed it.
            let _ = connection.shim.close_stdin(container);
        }
    }

    /// Asks for a connection to a port of a pod here.
    ///
    /// # Errors
    /// Words for people: no such pod here, or it is not running.
    pub(crate) fn connect_to(
        &mut self,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<Answer<OwnedFd>, String> {
        let claim = self.find_local(namespace, pod)?;
        let connection = self.local.get_mut(&claim).and_then(|local| local.shim.as_mut());
        let connection =
            connection.ok_or_else(|| format!("{pod} is not running yet; see `quelea ps`"))?;
        let id =
            connection.shim.connect(port).map_err(|e| format!("{pod}: its shim refused: {e}"))?;
        let (sender, answer) = oneshot::channel();
        connection.connecting.insert(id, sender);
        Ok(answer)
    }

    fn connected(&mut self, claim: &str, id: ConnectId, result: Result<OwnedFd, String>) {
        let connection = self.local.get_mut(claim).and_then(|local| local.shim.as_mut());
        if let Some(waiting) = connection.and_then(|c| c.connecting.remove(&id)) {
            // Who asked may have gone away.
            let _ = waiting.send(result);
        }
    }

    /// The claim of a pod that runs here.
    pub(crate) fn find_local(&self, namespace: &str, pod: &str) -> Result<String, String> {
        let found = self.local.iter().find(|(_, local)| {
            local.kept.record.namespace == namespace && local.kept.record.pod_name() == pod
        });
        found.map(|(claim, _)| claim.clone()).ok_or_else(|| {
            format!("{namespace}/{pod} does not run on {}; see `quelea ps`", self.config.name)
        })
    }

    /// The claim of a pod that runs here, and one of its containers: the one named, else its first main one.
    pub(crate) fn find_container(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<(String, String), String> {
        let claim = self.find_local(namespace, pod)?;
        let names = self.local.get(&claim).map(|l| l.kept.containers.clone()).unwrap_or_default();
        let found = match container {
            Some(name) => names.iter().find(|n| *n == name),
            None => names.iter().find(|n| self.is_main(&claim, n)).or(names.first()),
        };
        match found {
            Some(name) => Ok((claim, name.clone())),
            None => {
                let name = container.unwrap_or_default();
                Err(format!("{pod} has no container {name}; it has {}", names.join(", ")))
            }
        }
    }

    /// Where a local pod's logs are, and the names of its containers.
    pub(crate) fn logs_of(
        &self,
        namespace: &str,
        pod: &str,
    ) -> Result<(std::path::PathBuf, Vec<String>), String> {
        let claim = self.find_local(namespace, pod)?;
        let names = self.local.get(&claim).map(|l| l.kept.containers.clone()).unwrap_or_default();
        Ok((self.pod_dir(&claim).join("logs"), names))
    }

    /// A local pod and its containers.
    pub(crate) fn pod_detail(&self, namespace: &str, pod: &str) -> Result<PodDetail, String> {
        let claim = self.find_local(namespace, pod)?;
        let Some(local) = self.local.get(&claim) else { return Ok(PodDetail::default()) };
        let view = |name: &String| match local.seen.get(name) {
            Some(seen) => ContainerView {
                name: name.clone(),
                state: seen.state.to_owned(),
                restarts: seen.restarts,
                reason: seen.reason.clone(),
            },
            None => ContainerView {
                name: name.clone(),
                state: "waiting".into(),
                ..ContainerView::default()
            },
        };
        let containers = local.kept.containers.iter().map(view).collect();
        Ok(PodDetail { name: pod.to_owned(), claim, containers })
    }

    /// Where the API of another node of the flock is.
    ///
    /// # Errors
    /// Words for people: no such node, or it has not said.
    pub(crate) fn api_of(&self, name: &str) -> Result<std::net::SocketAddr, String> {
        if name == self.config.name {
            return Ok(self.config.api_addr());
        }
        let member = self.driver.gossip().member(name).is_some();
        let record = self.nodes.get(name).filter(|_| member);
        let record = record.ok_or_else(|| {
            format!("{} knows no node {name} in this flock; see `quelea nodes`", self.config.name)
        })?;
        record.api.parse().map_err(|_| format!("{name} has not told where its API is"))
    }
}

impl Local {
    /// Whether all main containers run, as far as was told.
    fn mains_run(&self) -> bool {
        let mut mains = self.kept.containers.iter().filter(|c| self.kept.is_main(c));
        mains.all(|c| self.seen.get(c).is_some_and(|seen| seen.state == "running"))
    }
}

/// What a snapshot says of each container.
pub(super) fn status_seen(status: &PodStatus) -> BTreeMap<String, Seen> {
    let of = |c: &initd::shim::ContainerStatus| {
        let state = match c.state {
            ContainerState::Waiting => "waiting",
            ContainerState::Running { .. } => "running",
            ContainerState::Backoff { .. } => "backing off",
            ContainerState::Stopping => "stopping",
            ContainerState::Done => "done",
        };
        let failed = c.last_failure.as_ref();
        let reason = match (failed, c.last_exit) {
            (Some((step, errno, text)), _) => failure_words(&c.name, *step, *errno, text),
            (None, Some(exit)) => exit_words(&c.name, exit, None),
            (None, None) => String::new(),
        };
        (c.name.clone(), Seen { state, restarts: c.restarts, reason, unhealthy: None })
    };
    status.containers.iter().map(of).collect()
}

/// `container web exited with code 1`, `container web was killed for memory: raise its ...`.
fn exit_words(container: &str, exit: Exit, unhealthy: Option<&str>) -> String {
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

fn signal_name(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => format!("{} ({number})", signal.as_str()),
        Err(_) => format!("signal {number}"),
    }
}

/// `container web could not be started: no program "x" in the image; ...`.
fn failure_words(container: &str, step: Step, errno: i32, text: &str) -> String {
    format!("container {container} could not be started: {}", step_words(step, errno, text))
}

/// What failed, why, and what to do about it.
fn step_words(step: Step, errno: i32, text: &str) -> String {
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
    format!("{text} ({step:?}: {os}){hint}")
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
            assert!(words.contains(advice) && words.contains("No such file"), "{words}");
        }
    }
}
