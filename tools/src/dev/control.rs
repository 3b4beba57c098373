//! The supervisor's control socket: one JSON request a connection, one JSON answer.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::registry::run_dir;

/// The longest request or answer, in bytes.
const MESSAGE_BYTES_MAX: u64 = 4096;
/// How long the supervisor may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the supervisor is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Request {
    /// Cut a node's power.
    Kill(String),
    /// Give it back.
    Start(String),
}

/// What it answers: words for people, or why not.
pub(super) type Answer = Result<String, String>;

/// Where the socket is.
pub(super) fn path() -> PathBuf {
    run_dir().join("control.sock")
}

/// Asks the supervisor and prints its answer.
pub(super) fn ask(request: &Request) -> Result<()> {
    let path = path();
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!("no dev flock runs here ({}); start one with `sudo quelea dev`", path.display())
    })?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut bytes = Vec::new();
    stream
        .take(MESSAGE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .context("the supervisor does not answer")?;
    match serde_json::from_slice::<Answer>(&bytes).context("the supervisor's answer is odd")? {
        Ok(words) => {
            eprintln!("{words}");
            Ok(())
        }
        Err(words) => bail!("{words}"),
    }
}

/// Reads a request and writes what `decide` answers.
pub(super) fn serve(mut stream: UnixStream, decide: impl FnOnce(Request) -> Answer) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut bytes = Vec::new();
    (&mut stream).take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes)?;
    let answer = match serde_json::from_slice(&bytes) {
        Ok(request) => decide(request),
        Err(error) => Err(format!("not a request: {error}")),
    };
    stream.write_all(&serde_json::to_vec(&answer)?)?;
    Ok(())
}
