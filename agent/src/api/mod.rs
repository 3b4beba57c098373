//! The API of a node: HTTP/1.1 over TLS on the network, and over a unix socket for root on the machine.
//!
//! Any node answers for the whole flock from what gossip told it. Only `logs`, `exec` and blobs need the node that has
//! them; a client finds it with `GET /v1/pods` and asks it directly.

pub mod client;
pub mod exec;
mod keys;
mod machine;
pub mod server;
pub mod types;
