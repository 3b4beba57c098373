//! The host's end of the control channel: run programs and read files inside a guest.

use crate::{
    pace,
    wire::{Answer, Op, Request},
};
use anyhow::{Context as _, Result, bail};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// An answer that takes longer does not come.
const ANSWER: Duration = Duration::from_secs(120);

/// A connection to the helper in one guest.
#[derive(Debug)]
pub struct Ctl {
    stream: BufReader<UnixStream>,
    next: u64,
}

impl Ctl {
    /// Connects and waits until the guest answers.
    ///
    /// # Errors
    /// When it does not within a minute of an idle machine.
    pub fn connect(path: &Path) -> Result<Self> {
        pace::eventually(Duration::from_secs(60), "control channel", || {
            let stream =
                UnixStream::connect(path).with_context(|| format!("connect {}", path.display()))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            let mut ctl = Self { stream: BufReader::new(stream), next: 0 };
            ctl.ask(Op::Ping)?;
            ctl.stream.get_mut().set_read_timeout(Some(ANSWER))?;
            Ok(ctl)
        })
    }

    /// One request, one answer. Answers to earlier requests, given up on, are passed over.
    ///
    /// # Errors
    /// When the channel breaks or the guest says it cannot.
    pub fn ask(&mut self, op: Op) -> Result<Answer> {
        // Numbers are never used twice, not even by the next connection.
        self.next = self.next.max(u64::from(std::process::id()) << 32 | fresh()) + 1;
        let id = self.next;
        let what = format!("{op:?}");
        let mut text = serde_json::to_string(&Request { id, op })?;
        text.push('\n');
        self.stream.get_mut().write_all(text.as_bytes())?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).with_context(|| what.clone())? == 0 {
                bail!("{what}: the guest closed the channel");
            }
            let Ok(answer) = serde_json::from_str::<Answer>(&line) else { continue };
            if answer.id == id {
                if let Some(error) = answer.error {
                    bail!("{what}: {error}");
                }
                return Ok(answer);
            }
        }
    }

    /// Runs a program; its output when it ends with 0.
    ///
    /// # Errors
    /// When it cannot be run or ends otherwise, with what it wrote.
    pub fn run(&mut self, argv: &[&str]) -> Result<String> {
        let answer = self.exec(argv)?;
        if answer.code != 0 {
            bail!("{argv:?} ended with {}: {}{}", answer.code, answer.out, answer.err);
        }
        Ok(answer.out)
    }

    /// Runs a program to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn exec(&mut self, argv: &[&str]) -> Result<Answer> {
        self.exec_for(argv, 60_000)
    }

    /// As [`Ctl::exec`]; it is killed after that many milliseconds of an idle machine.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn exec_for(&mut self, argv: &[&str], timeout_ms: u64) -> Result<Answer> {
        let timeout = Duration::from_millis(timeout_ms).mul_f64(pace::stretch());
        let timeout_ms = u64::try_from(timeout.as_millis())?;
        self.stream.get_mut().set_read_timeout(Some(timeout + Duration::from_secs(20)))?;
        let argv = argv.iter().map(|s| (*s).to_owned()).collect();
        let answer = self.ask(Op::Exec { argv, timeout_ms });
        self.stream.get_mut().set_read_timeout(Some(ANSWER))?;
        answer
    }

    /// Starts a program that goes on by itself; its PID.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self, argv: &[&str], log: &str) -> Result<i32> {
        let argv = argv.iter().map(|s| (*s).to_owned()).collect();
        Ok(self.ask(Op::Spawn { argv, log: log.into() })?.out.parse()?)
    }

    /// The text of a file in the guest.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&mut self, path: &str) -> Result<String> {
        Ok(self.ask(Op::Read { path: path.into() })?.out)
    }

    /// Names in a directory of the guest.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn list(&mut self, path: &str) -> Result<Vec<String>> {
        Ok(self.ask(Op::List { path: path.into() })?.out.lines().map(str::to_owned).collect())
    }

    /// PIDs of the processes in the guest whose command line starts so.
    ///
    /// # Errors
    /// When the channel breaks.
    pub fn find(&mut self, starts: &str) -> Result<Vec<i32>> {
        let out = self.ask(Op::Find { starts: starts.into() })?.out;
        Ok(out.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Writes a file in the guest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, path: &str, text: &str) -> Result<()> {
        self.ask(Op::Write { path: path.into(), text: text.into() }).map(drop)
    }

    /// Sends a signal inside the guest.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&mut self, pid: i32, signal: i32) -> Result<()> {
        self.ask(Op::Kill { pid, signal }).map(drop)
    }
}

fn fresh() -> u64 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    u64::from(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}
