//! Who is in the flock: names, identities and the order in which news about a member supersede each other.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::NAME_MAX_BYTES;
use crate::error::Error;

/// A node as it knows itself at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `[a-z0-9-]{1,63}`, unique in the flock.
    pub name: String,
    /// Boot counter: higher than at any earlier start, persisted before the first datagram. A diskless node takes the
    /// wall clock in milliseconds.
    pub generation: u64,
    /// Where peers reach it.
    pub addr: SocketAddr,
}

/// Short form of a name on the wire: the first eight bytes of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nid(pub u64);

impl Nid {
    /// Of a name.
    pub fn of(name: &str) -> Nid {
        Nid(crate::wire::hash64(&[b"node", name.as_bytes()]))
    }
}

impl fmt::Debug for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Checks a node name.
///
/// # Errors
/// [`Error::Name`] unless it is `[a-z0-9-]{1,63}`.
pub fn check_name(name: &str) -> Result<(), Error> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(good) {
        return Err(Error::Name { name: name.to_owned() });
    }
    Ok(())
}

/// What the flock thinks of a member. The order is the precedence within one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Answers, or nobody has complained.
    Alive,
    /// Somebody's probe failed; it may still refute.
    Suspect,
    /// Did not refute in time.
    Dead,
    /// Said goodbye.
    Left,
}

impl State {
    /// Alive or suspect: it takes part.
    pub fn is_live(self) -> bool {
        matches!(self, State::Alive | State::Suspect)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Alive => "alive",
            State::Suspect => "suspect",
            State::Dead => "dead",
            State::Left => "left",
        })
    }
}

/// A member as listed by [`crate::Gossip::members`].
// What changes and is compared comes first: tables rely on it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C)]
pub struct Member {
    /// Its boot counter.
    pub generation: u64,
    /// How often it refuted something since its boot.
    pub incarnation: u64,
    /// Smoothed round trip in microseconds; 0 while unmeasured.
    pub rtt_us: u32,
    /// Present state.
    pub state: State,
    /// Its name.
    pub name: Arc<str>,
    /// Where it is reached.
    pub addr: SocketAddr,
}

impl Member {
    /// The part that travels.
    pub fn info(&self) -> MemberInfo {
        MemberInfo {
            name: self.name.to_string(),
            addr: self.addr,
            generation: self.generation,
            incarnation: self.incarnation,
            state: self.state,
        }
    }
}

/// A member as it travels and is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// Its boot counter.
    pub generation: u64,
    /// How often it refuted something since its boot.
    pub incarnation: u64,
    /// State.
    pub state: State,
}
