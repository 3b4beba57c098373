//! Health checks on their way.

use super::core::{Input, Which};
use super::shell::{Owner, Shell};
use crate::pod::Check;
use crate::probe::{Ask, Progress, TcpCheck};

/// One over TCP.
pub(super) struct Connecting {
    container: usize,
    which: Which,
    pub(super) check: TcpCheck,
    pub(super) gone: bool,
}

impl Shell {
    pub(super) fn begin_check(&mut self, i: usize, which: Which) -> Option<Input> {
        let spec = self.spec.containers.get(i)?;
        let probe = match which {
            Which::Ready => spec.ready.as_ref(),
            Which::Live => spec.live.as_ref(),
            Which::Start => spec.start.as_ref(),
        }?;
        let bad = Some(Input::Checked(i, which, false));
        let started = match &probe.check {
            Check::Http { port, path } => TcpCheck::start(*port, Ask::Http { path }),
            Check::Tcp { port } => TcpCheck::start(*port, Ask::Connection),
            Check::Grpc { port, service } => TcpCheck::start(*port, Ask::Grpc { service }),
            Check::Exec { argv } => {
                let exec = super::ExecSpec {
                    container: spec.name.clone(),
                    argv: argv.clone(),
                    env: Vec::new(),
                    workdir: String::new(),
                    user: String::new(),
                };
                return match self.join(Owner::Check(i, which), &exec, [None, None, None], false) {
                    Ok(_) => None,
                    Err(_) => bad,
                };
            }
        };
        match started {
            Ok(check) => {
                self.checks.push(Connecting { container: i, which, check, gone: false });
                None
            }
            Err(why) => {
                self.note_check(i, which, &why);
                bad
            }
        }
    }

    /// For the words in which a container is given up.
    fn note_check(&mut self, i: usize, which: Which, why: &str) {
        let name = match which {
            Which::Ready => return,
            Which::Live => "live",
            Which::Start => "start",
        };
        if let Some(c) = self.containers.get_mut(i) {
            c.last_check = format!("its `{name}` probe: {why}");
        }
    }

    pub(super) fn cancel_check(&mut self, i: usize, which: Which) {
        self.checks.retain(|c| (c.container, c.which) != (i, which));
        for k in 0..self.joined.len() {
            if self.joined.get(k).is_some_and(|j| j.owner == Owner::Check(i, which)) {
                self.kill_joined(k);
            }
        }
    }

    pub(super) fn check_ready(&mut self, k: usize) {
        let Some(c) = self.checks.get_mut(k).filter(|c| !c.gone) else { return };
        let why = match c.check.advance() {
            Progress::Pending => return,
            Progress::Good => None,
            Progress::Bad(why) => Some(why),
        };
        c.gone = true;
        let (container, which, ok) = (c.container, c.which, why.is_none());
        if let Some(why) = why {
            self.note_check(container, which, &why);
        }
        self.feed(Input::Checked(container, which, ok));
    }
}
