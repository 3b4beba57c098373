//! What is asked of a running pod: programs, streams, connections, logs, details.

use std::os::fd::{AsFd as _, OwnedFd};

use initd::shim::{ConnectId, ExecId, ExecSpec, Exit};
use tokio::sync::{mpsc, oneshot};

use super::Node;
use crate::api::types::{Container as ContainerView, PodDetail};

/// What a shim has to say of one program: its terminal, and its end.
const NEWS_MAX: usize = 2;
/// Programs, watchers and connections of one pod that its agent waits for, of each kind; more are refused.
const SESSIONS_MAX: usize = 256;

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
    pub news: mpsc::Receiver<ExecNews>,
}

/// What becomes of an exec.
#[derive(Debug)]
pub enum ExecNews {
    /// Its terminal: our end of it.
    Terminal(OwnedFd),
    /// It ended.
    Exited(Exit),
    /// It could not be started.
    Failed {
        /// Why, for people.
        reason: String,
        /// What its exit code would be in a shell.
        code: i32,
    },
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

/// Whether one more may wait for a shim.
fn room(waiting: usize, pod: &str) -> Result<(), String> {
    if waiting < SESSIONS_MAX {
        return Ok(());
    }
    Err(format!("{pod}: {SESSIONS_MAX} wait for its shim already; try again when some have ended"))
}

impl Node {
    pub(super) fn exec_said(&mut self, claim: &str, exec: ExecId, news: ExecNews) {
        let Some(local) = self.local.get_mut(claim) else { return };
        let Some(connection) = &mut local.shim else { return };
        let last = !matches!(news, ExecNews::Terminal(_));
        if let Some(waiting) = connection.execs.get(&exec) {
            // Who asked may have gone away; a shim that says more than there is to say is not heard.
            let _ = waiting.try_send(news);
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
        room(connection.execs.len(), &request.pod)?;
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
        let (sender, news) = mpsc::channel(NEWS_MAX);
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
        room(connection.attaching.len(), pod)?;
        connection
            .shim
            .attach_to(&container)
            .map_err(|e| format!("{pod}: its shim refused: {e}"))?;
        let (sender, answer) = oneshot::channel();
        connection.attaching.push((container.clone(), sender));
        Ok((claim, container, answer))
    }

    pub(super) fn attached(
        &mut self,
        claim: &str,
        container: &str,
        result: Result<Attached, String>,
    ) {
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
        room(connection.connecting.len(), pod)?;
        let id =
            connection.shim.connect(port).map_err(|e| format!("{pod}: its shim refused: {e}"))?;
        let (sender, answer) = oneshot::channel();
        connection.connecting.insert(id, sender);
        Ok(answer)
    }

    pub(super) fn connected(
        &mut self,
        claim: &str,
        id: ConnectId,
        result: Result<OwnedFd, String>,
    ) {
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

    /// Asks a local pod's shim how it is; None where there is no shim to ask. Once answered, [`pod_detail`](Self::pod_detail)
    /// is of now.
    ///
    /// # Errors
    /// Words for people: no such pod here, or too many ask.
    pub(crate) fn look_at(
        &mut self,
        namespace: &str,
        pod: &str,
    ) -> Result<Option<Answer<()>>, String> {
        let claim = self.find_local(namespace, pod)?;
        let connection = self.local.get_mut(&claim).and_then(|local| local.shim.as_mut());
        let Some(connection) = connection else { return Ok(None) };
        room(connection.asking.len(), pod)?;
        // One that takes no question has ended, or is about to be found to have.
        if connection.shim.request_status().is_err() {
            return Ok(None);
        }
        let (sender, answer) = oneshot::channel();
        connection.asking.push(sender);
        Ok(Some(answer))
    }

    pub(super) fn looked_at(&mut self, claim: &str) {
        let connection = self.local.get_mut(claim).and_then(|local| local.shim.as_mut());
        for waiting in connection.into_iter().flat_map(|c| c.asking.drain(..)) {
            // Who asked may have gone away.
            let _ = waiting.send(Ok(()));
        }
    }

    /// A local pod and its containers, as it was last seen.
    pub(crate) fn pod_detail(&self, namespace: &str, pod: &str) -> Result<PodDetail, String> {
        let claim = self.find_local(namespace, pod)?;
        let Some(local) = self.local.get(&claim) else { return Ok(PodDetail::default()) };
        let view = |name: &String| match local.seen.get(name) {
            Some(seen) => ContainerView {
                name: name.clone(),
                state: seen.state.to_owned(),
                restarts: seen.restarts,
                reason: seen.reason.clone(),
                log_dropped_bytes: seen.log_dropped_bytes,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_too_many_is_refused_with_what_to_do() {
        assert_eq!(room(SESSIONS_MAX - 1, "web.0"), Ok(()));
        let said = room(SESSIONS_MAX, "web.0").unwrap_err();
        assert!(said.starts_with("web.0: 256 wait for its shim") && said.contains("try again"));
    }

    /// A shim that repeats itself fills no memory, and its caller hears the first of it.
    #[tokio::test]
    async fn news_beyond_what_there_is_to_say_are_not_kept() {
        let (sender, mut news) = mpsc::channel(NEWS_MAX);
        let end = |code| {
            let exit = Exit { code: Some(code), signal: None, oom: false };
            ExecNews::Exited(exit)
        };
        let taken = (0..5).filter(|code| sender.try_send(end(*code)).is_ok()).count();
        assert_eq!(taken, NEWS_MAX);
        drop(sender);
        assert!(matches!(news.recv().await, Some(ExecNews::Exited(Exit { code: Some(0), .. }))));
    }
}
