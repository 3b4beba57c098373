//! QEMU's machine protocol, as far as tests need it: one command, one answer.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// Lines read while waiting for an answer; events come in between.
const LINES_MAX: usize = 256;

/// A connection to one machine's monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves negotiation mode.
    ///
    /// # Errors
    /// When nobody listens or the greeting is not QMP's.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connect {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP greeting: {greeting}");
        }
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returned.
    ///
    /// # Errors
    /// When QEMU refuses it or does not answer.
    pub fn command(&mut self, name: &str, arguments: Value) -> Result<Value> {
        let mut text = json!({ "execute": name, "arguments": arguments }).to_string();
        text.push('\n');
        self.stream.get_mut().write_all(text.as_bytes())?;
        for _ in 0..LINES_MAX {
            let mut line = self.line()?;
            if let Some(error) = line.get("error") {
                bail!("{name}: {error}");
            }
            if let Some(value) = line.get_mut("return") {
                return Ok(value.take());
            }
        }
        bail!("{name}: no answer")
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
