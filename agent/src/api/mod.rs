//! The API of a node: HTTP/1.1 over TLS on the network, and over a unix socket for root on the machine.
//!
//! Any node answers for the whole flock from what gossip told it. Only one pod's logs and programs, a node's usage and blobs need
//! the node that has them: a client finds it with `GET /v1/pods` and speaks with it through the node that it reaches
//! ([`relay`]).

pub mod client;
pub mod core;
pub mod exec;
mod images;
mod keys;
mod machine;
pub mod netboot;
mod pods;
pub mod programs;
pub mod relay;
pub mod server;
pub mod types;
pub(crate) mod usage;
