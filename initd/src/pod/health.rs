//! Health checks of a container.

use serde::{Deserialize, Serialize};

/// A health check, made from inside the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// Time between the end of a check and the start of the next.
    pub every_ms: u32,
    /// A check that takes longer has failed.
    pub timeout_ms: u32,
    /// Time after the start in which failures do not count.
    pub start_grace_ms: u32,
    /// Failures in a row that turn it bad.
    pub failures: u32,
    /// Successes in a row that turn it good.
    pub successes: u32,
}

impl Probe {
    /// Every second, one second long, three failures, one success.
    #[must_use]
    pub fn new(check: Check) -> Self {
        Self {
            check,
            every_ms: 1000,
            timeout_ms: 1000,
            start_grace_ms: 0,
            failures: 3,
            successes: 1,
        }
    }
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// `GET path` on a port; a status of 200..=399 is good.
    Http {
        /// TCP port on 127.0.0.1 of the pod.
        port: u16,
        /// Absolute path.
        path: String,
    },
    /// A connection is accepted.
    Tcp {
        /// TCP port on 127.0.0.1 of the pod.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` answers `SERVING`.
    Grpc {
        /// TCP port on 127.0.0.1 of the pod, without TLS.
        port: u16,
        /// The service that is asked for; empty for the server as a whole.
        service: String,
    },
    /// A command inside the container ends with 0.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
}
