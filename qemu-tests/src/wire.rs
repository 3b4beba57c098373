//! What the host and the helper inside a guest say to each other: JSON lines over a virtio serial port.

use serde::{Deserialize, Serialize};

/// Longest line either way; longer output is cut by the guest.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer.
    pub id: u64,
    /// What to do.
    pub op: Op,
}

/// What a helper can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Nothing: are you there?
    Ping,
    /// Run a program to its end.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Killed after that.
        timeout_ms: u64,
    },
    /// Start a program and leave it alone; its PID is the output.
    Spawn {
        /// Program and arguments.
        argv: Vec<String>,
        /// What it prints goes to this file.
        log: String,
    },
    /// The text of a file.
    Read {
        /// Its path.
        path: String,
    },
    /// Names in a directory.
    List {
        /// Its path.
        path: String,
    },
    /// PIDs of processes whose command line (words with spaces between) starts so, one a line.
    Find {
        /// How it starts.
        starts: String,
    },
    /// Replace a file.
    Write {
        /// Its path.
        path: String,
        /// Its text.
        text: String,
    },
    /// Send a signal.
    Kill {
        /// To whom.
        pid: i32,
        /// Number.
        signal: i32,
    },
    /// HTTP/1.1 over a Unix socket; the connection is closed after it.
    Http {
        /// The socket's path.
        socket: String,
        /// The whole request.
        request: String,
    },
}

/// An answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Of the request.
    pub id: u64,
    /// Exit code, 128 + signal, or 0 for what is not a program.
    pub code: i32,
    /// Output.
    pub out: String,
    /// Error output.
    pub err: String,
    /// Why it could not be done at all.
    pub error: Option<String>,
}
