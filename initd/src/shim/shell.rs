//! The loop that does what the core says, and tells the core what happened. It decides nothing.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use super::checks::Connecting;
use super::client::STATUS_NAME;
use super::container::Container;
use super::core::{Input, Output, Supervisor, Which};
use super::join::Joined;
use super::server::{Client, accept};
use super::streams::{Attached, Dialing, READS_MAX};
use super::wire::{self, Condition, ContainerStatus, PodStatus, Remark, Reply};
use crate::cgroup;
use crate::error::Result;
use crate::launch::{Empty, Holder, Step, Volumes};
use crate::log::Stream;
use crate::pod::PodSpec;
use crate::userns::IdMap;

/// A stopped pod's shim ends by itself after this time without a client. Its status is on disk.
const LINGER_US: u64 = 30_000_000;

/// What the pod was given, and what the shim keeps open for it.
pub(super) struct Held {
    /// SIGTERM, which means: stop the pod and end. A node that is shut down sends it to all.
    pub(super) terminate: OwnedFd,
    pub(super) dir: OwnedFd,
    /// Says that this directory has a shim.
    pub(super) _lock: OwnedFd,
    pub(super) netns: Option<OwnedFd>,
    pub(super) tun: Option<OwnedFd>,
    pub(super) userns: Option<(OwnedFd, IdMap)>,
    pub(super) volumes: Option<Volumes>,
    pub(super) empty: Empty,
    /// The containers' cgroups have their device filters.
    pub(super) device_filter: bool,
}

/// On whose behalf a program joined a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Client { client: u64, exec: u64 },
    Check(usize, Which),
}

pub(super) struct Shell {
    pub(super) spec: PodSpec,
    pub(super) held: Held,
    listener: OwnedFd,
    pub(super) clients: Vec<Client>,
    next_client: u64,
    supervisor: Supervisor,
    pub(super) containers: Vec<Container>,
    /// PID 1 of the pod, when its containers share a PID namespace.
    pub(super) holder: Option<Holder>,
    pub(super) joined: Vec<Joined>,
    pub(super) next_exec: u64,
    pub(super) checks: Vec<Connecting>,
    pub(super) attached: Vec<Attached>,
    pub(super) dialing: Vec<Dialing>,
    pub(super) conditions: Vec<Condition>,
    epoch: Instant,
    stopped_at_us: Option<u64>,
    /// By SIGTERM: nobody needs to say `quit`.
    terminated: bool,
    pub(super) quit: bool,
}

#[derive(Clone, Copy)]
enum Token {
    Terminate,
    Listener,
    Client(usize),
    Errors(usize),
    Ended(usize),
    Output(usize, Stream),
    JoinedErrors(usize),
    JoinedEnded(usize),
    Check(usize),
    Dialing(usize),
}

#[derive(Default)]
struct Watched<'a> {
    tokens: Vec<Token>,
    fds: Vec<PollFd<'a>>,
}

impl<'a> Watched<'a> {
    fn add(&mut self, token: Token, fd: BorrowedFd<'a>, events: PollFlags) {
        self.tokens.push(token);
        self.fds.push(PollFd::from_borrowed_fd(fd, events));
    }
}

impl Shell {
    pub(super) fn new(
        spec: PodSpec,
        held: Held,
        listener: OwnedFd,
        spawner: OwnedFd,
        conditions: Vec<Condition>,
    ) -> Result<Self> {
        let supervisor = Supervisor::new(&spec);
        let containers = spec
            .containers
            .iter()
            .map(|c| Container {
                cgroup: spec.cgroup.as_ref().map(|p| p.join(&c.name)),
                ..Container::default()
            })
            .collect();
        Ok(Self {
            supervisor,
            containers,
            spec,
            held,
            listener,
            clients: vec![Client::new(0, spawner)],
            next_client: 1,
            holder: None,
            joined: Vec::new(),
            next_exec: 0,
            checks: Vec::new(),
            attached: Vec::new(),
            dialing: Vec::new(),
            conditions,
            epoch: Instant::now(),
            stopped_at_us: None,
            terminated: false,
            quit: false,
        })
    }

    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Until the pod is over and nobody wants to know any more.
    pub(super) fn run(mut self) {
        for condition in self.conditions.clone() {
            self.tell(&Reply::Condition(condition));
        }
        self.feed(Input::Start);
        while !self.quit {
            let ready = self.wait();
            for (token, events) in ready {
                self.handle(token, events);
            }
            self.sweep();
            self.feed(Input::Timer);
            self.linger();
        }
        self.clean_up();
    }

    /// Gives the core an input and does what it says; that may make further inputs.
    pub(super) fn feed(&mut self, input: Input) {
        let mut inputs = std::collections::VecDeque::from([input]);
        let mut out = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.supervisor.step(self.now_us(), input, &mut out);
            for output in std::mem::take(&mut out) {
                if let Some(next) = self.perform(output) {
                    inputs.push_back(next);
                }
            }
        }
    }

    fn name(&self, i: usize) -> String {
        self.spec.containers.get(i).map(|c| c.name.clone()).unwrap_or_default()
    }

    fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Launch(i) => {
                if let Err(failure) = self.launch(i) {
                    self.note_failure(i, failure);
                    return Some(Input::LaunchFailed(i));
                }
            }
            Output::Signal(i, signal) => self.signal(i, signal),
            Output::Kill(i) => self.kill(i),
            Output::Check(i, which) => return self.begin_check(i, which),
            Output::CancelCheck(i, which) => self.cancel_check(i, which),
            Output::Started(i) => {
                let reply = Reply::Started {
                    container: self.name(i),
                    pid: self.pid(i),
                    restarts: self.supervisor.restarts(i),
                };
                self.tell(&reply);
            }
            Output::Ready { container, ready, pod_ready } => {
                let container = self.name(container);
                self.tell(&Reply::Ready { container, ready, pod_ready });
            }
            Output::Exited { container, exit, restart_in_ms } => {
                let container = self.name(container);
                self.tell(&Reply::Exited { container, exit, restart_in_ms });
            }
            Output::Failed { container: i, retry_in_ms } => {
                let failure = self.containers.get(i).and_then(|c| c.last_failure.clone());
                let (step, errno, text) = failure.unwrap_or((Step::Clone, 0, String::new()));
                let container = self.name(i);
                self.tell(&Reply::Failed { container, step, errno, text, retry_in_ms });
            }
            Output::Deaf { container: i, grace_ms } => {
                let signal = self.spec.containers.get(i).map_or(libc::SIGTERM, |c| c.stop.signal);
                self.remark(i, Remark::Deaf { signal, grace_ms });
            }
            Output::Unhealthy(i) => {
                let seen = self.containers.get_mut(i).map(|c| std::mem::take(&mut c.last_check));
                let text =
                    seen.filter(|s| !s.is_empty()).unwrap_or_else(|| "its probe failed".into());
                let container = self.name(i);
                self.tell(&Reply::Unhealthy { container, text });
            }
            Output::Stopped => {
                self.stopped_at_us = Some(self.now_us());
                self.tell(&Reply::Stopped);
                self.save_status();
                self.quit |= self.terminated;
            }
        }
        None
    }

    pub(super) fn remark(&mut self, i: usize, remark: Remark) {
        let container = self.name(i);
        self.tell(&Reply::Remark { container, remark });
    }

    /// Waits for something to happen or to be due.
    fn wait(&mut self) -> Vec<(Token, PollFlags)> {
        let now = self.now_us();
        let linger = self.stopped_at_us.map(|at| at + LINGER_US);
        let dialing = self.dialing.iter().map(|d| d.until_us).min();
        let deadlines = [self.supervisor.next_deadline(), linger, dialing];
        let deadline = deadlines.into_iter().flatten().min();
        let timeout = deadline.map(|at| {
            let us = at.saturating_sub(now);
            Timespec { tv_sec: (us / 1_000_000) as i64, tv_nsec: (us % 1_000_000 * 1000) as _ }
        });
        let (tokens, mut fds) = self.watched();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(_) => return Vec::new(), // EINTR; nothing else is possible with these arguments
        }
        let ready = tokens.into_iter().zip(fds.iter().map(PollFd::revents));
        ready.filter(|(_, events)| !events.is_empty()).collect()
    }

    /// What is waited for. Reports come before ends, so that a program that is short is seen to have run.
    fn watched(&self) -> (Vec<Token>, Vec<PollFd<'_>>) {
        let mut watched = Watched::default();
        let mut add = |token, fd, events| watched.add(token, fd, events);
        add(Token::Terminate, self.held.terminate.as_fd(), PollFlags::IN);
        add(Token::Listener, self.listener.as_fd(), PollFlags::IN);
        for (i, c) in self.clients.iter().enumerate() {
            add(Token::Client(i), c.socket.as_fd(), c.events());
        }
        for (i, c) in self.containers.iter().enumerate() {
            if let Some(p) = &c.process {
                if p.told.is_some() {
                    add(Token::Errors(i), p.launched.errors.as_fd(), PollFlags::IN);
                }
                add(Token::Ended(i), p.launched.pidfd.as_fd(), PollFlags::IN);
            }
            for (fd, stream) in c.output.iter().zip([Stream::Stdout, Stream::Stderr]) {
                if let Some(fd) = fd {
                    add(Token::Output(i, stream), fd.as_fd(), PollFlags::IN);
                }
            }
        }
        for (k, j) in self.joined.iter().enumerate() {
            if j.told.is_some() {
                add(Token::JoinedErrors(k), j.launched.errors.as_fd(), PollFlags::IN);
            }
            add(Token::JoinedEnded(k), j.launched.pidfd.as_fd(), PollFlags::IN);
        }
        for (k, c) in self.checks.iter().enumerate() {
            add(Token::Check(k), c.check.as_fd(), c.check.events());
        }
        for (k, d) in self.dialing.iter().enumerate() {
            add(Token::Dialing(k), d.socket.as_fd(), PollFlags::OUT);
        }
        (watched.tokens, watched.fds)
    }

    fn handle(&mut self, token: Token, events: PollFlags) {
        match token {
            Token::Terminate => self.terminate(),
            Token::Listener => {
                if let Some(client) = accept(&self.listener, self.next_client, self.clients.len()) {
                    self.next_client += 1;
                    self.clients.push(client);
                }
            }
            Token::Client(i) => self.client_ready(i, events),
            Token::Errors(i) => self.launch_reported(i),
            Token::Ended(i) => self.container_ended(i),
            Token::Output(i, stream) => self.output(i, stream, READS_MAX),
            Token::JoinedErrors(k) => self.joined_reported(k),
            Token::JoinedEnded(k) => self.joined_ended(k),
            Token::Check(k) => self.check_ready(k),
            Token::Dialing(k) => self.dialed(k),
        }
    }

    fn terminate(&mut self) {
        let mut info = [0u8; 128];
        let _ = rustix::io::read(&self.held.terminate, &mut info);
        self.terminated = true;
        self.quit |= self.stopped();
        self.feed(Input::Stop { grace_ms: None });
    }

    /// Forgets what ended during the last round; indices of tokens are valid within one.
    fn sweep(&mut self) {
        let gone: Vec<u64> = self.clients.iter().filter(|c| c.gone).map(Client::id).collect();
        for id in gone {
            self.client_gone(id);
        }
        self.clients.retain(|c| !c.gone);
        self.joined.retain(|j| !j.gone);
        self.checks.retain(|c| !c.gone);
        self.dialing_due();
    }

    /// A snapshot.
    pub(super) fn status(&self) -> PodStatus {
        let now = self.now_us();
        let of = |(i, c): (usize, &Container)| ContainerStatus {
            name: self.name(i),
            state: self.supervisor.state(i, self.pid(i), now),
            restarts: self.supervisor.restarts(i),
            last_exit: c.last_exit,
            last_failure: c.last_failure.clone(),
            log_dropped_bytes: c.log.as_ref().map_or(0, |l| l.dropped),
        };
        PodStatus {
            id: self.spec.id.clone(),
            shim_pid: std::process::id(),
            phase: self.supervisor.phase(),
            ready: self.supervisor.pod_ready(),
            containers: self.containers.iter().enumerate().map(of).collect(),
            conditions: self.conditions.clone(),
        }
    }

    /// For an agent that comes when the shim has gone.
    fn save_status(&self) {
        let Ok(bytes) = wire::encode(&self.status()) else { return };
        let fresh = "status.new";
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let written = rustix::fs::openat(&self.held.dir, fresh, flags, Mode::from_raw_mode(0o600))
            .and_then(|fd| rustix::io::write(&fd, &bytes));
        if written.is_ok() {
            let _ = rustix::fs::renameat(&self.held.dir, fresh, &self.held.dir, STATUS_NAME);
        }
    }

    /// Whether the pod has stopped.
    pub(super) fn stopped(&self) -> bool {
        self.stopped_at_us.is_some()
    }

    fn linger(&mut self) {
        let over = self.stopped_at_us.is_some_and(|at| self.now_us() >= at + LINGER_US);
        if over && self.clients.is_empty() {
            self.quit = true;
        } else if over {
            // Somebody is still there: ask again later.
            self.stopped_at_us = Some(self.now_us());
        }
    }

    /// The directory and the logs stay: they are the agent's.
    fn clean_up(&mut self) {
        let name = super::client::SOCKET_NAME;
        let _ = rustix::fs::unlinkat(&self.held.dir, name, rustix::fs::AtFlags::empty());
        if let Some(pod) = &self.spec.cgroup {
            // What was killed last may still be on its way out.
            let _ = cgroup::clear(pod);
        }
    }
}

pub(super) fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
