//! What goes into the core and what comes out of it.

use std::net::SocketAddr;

use crate::error::Error;
use crate::map::{Record, Rev};
use crate::member::{Member, MemberInfo};

/// What a put insists on finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expect {
    /// Anything.
    #[default]
    Any,
    /// No record, or a deleted one.
    Absent,
    /// Exactly this version.
    Version(Rev),
}

/// Something that happened to this node.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Input<'a> {
    /// A datagram arrived. Nothing about it is trusted yet.
    Datagram {
        /// Its source as the socket saw it.
        from: SocketAddr,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// Time passed: a deadline is due (harmless when none is).
    Timer,
    /// Write a record if the map holds what the caller expects.
    Put {
        /// The key.
        key: &'a str,
        /// The body, at most [`crate::BODY_MAX_BYTES`].
        body: Vec<u8>,
        /// What it must replace, else [`Error::Stale`].
        expect: Expect,
    },
    /// Delete a record (leaves a tombstone). Nothing happens when the key is absent.
    Delete {
        /// The key.
        key: &'a str,
    },
    /// Send a small unreliable message to one member.
    Unicast {
        /// The member's name; own name delivers locally.
        to: &'a str,
        /// At most [`crate::UNICAST_MAX_BYTES`].
        payload: Vec<u8>,
    },
    /// More places to look for the flock, tried at once.
    Join(Vec<SocketAddr>),
    /// Say goodbye; [`Event::Left`] follows when it has been said often enough.
    Leave,
    /// Drop a dead or departed member everywhere.
    Forget {
        /// Its name.
        name: &'a str,
    },
    /// The node is reached at another address from now on.
    Address(SocketAddr),
    /// The kernel refused a datagram as too long for the link (EMSGSIZE). It is lost, as any datagram may be.
    TooLong {
        /// Where it was to go.
        to: SocketAddr,
        /// Its length.
        len_bytes: usize,
    },
}

/// Something the shell has to do or to know, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send a datagram; losing it is allowed.
    Send {
        /// To where.
        to: SocketAddr,
        /// The sealed bytes, at most [`crate::PACKET_MAX_BYTES`]. More than [`crate::PACKET_SAFE_BYTES`] must not be
        /// fragmented on the way: they are also a question whether the path takes them.
        bytes: Vec<u8>,
    },
    /// Remember this across restarts. A diskless node ignores it.
    Persist(Persist),
    /// Tell the layers above.
    Event(Event),
}

/// What has to survive a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Persist {
    /// A record is new. `local`: written here, so nobody else may hold it yet. Peers may hear of it before it is durable:
    /// that makes it safer, not less safe.
    Record {
        /// The record.
        record: Record,
        /// Whether it was written at this node.
        local: bool,
    },
    /// A record is no longer held.
    Dropped {
        /// Its key.
        key: String,
    },
    /// A member to remember for a rejoin.
    Member(MemberInfo),
    /// A member to forget.
    Forgotten {
        /// Its name.
        name: String,
    },
    /// This node had to step above a generation that the flock remembered of it.
    Generation(u64),
}

/// News for the layers above.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first peer answered and its whole view was taken over; or there is nobody to ask, because neither seeds nor the
    /// roster name anybody. Not said while seeds are named and none answers.
    Joined {
        /// Members known now, this node included.
        members: usize,
    },
    /// A member is new or changed its state, address or generation. Never this node itself.
    Member(Member),
    /// A member was forgotten and is no longer listed.
    Forgotten {
        /// Its name.
        name: String,
    },
    /// A record is new, here or from elsewhere; a tombstone has no body.
    Changed(Record),
    /// A record from our disk is not held any more: we were away for longer than deletions are remembered, and a peer that
    /// was not took precedence. It comes back as [`Event::Changed`] if it still exists.
    Dropped {
        /// Its key.
        key: String,
    },
    /// A message from a member.
    Unicast {
        /// The sender, authenticated by the flock's key only.
        from: String,
        /// The bytes.
        payload: Vec<u8>,
    },
    /// A record that this node wrote lost against one that had not seen it.
    Superseded {
        /// What this node wrote.
        mine: Box<Record>,
        /// What everybody holds now.
        by: Box<Record>,
        /// Certain; else it may descend from ours through versions that never came here.
        sure: bool,
    },
    /// Another living node claims this node's name. Either of them has to be renamed.
    NameConflict {
        /// The other one's address.
        addr: SocketAddr,
    },
    /// An input was refused.
    Refused(Error),
    /// Records of this writer are being ignored because it exceeds its quota.
    Quota {
        /// The writer.
        writer: String,
    },
    /// This node stood still (event loop, scheduler, suspend); timers were forgiven.
    Stalled {
        /// For how long, about.
        stall_us: u64,
    },
    /// A turn of gossip took longer than 100 ms (driver only, told once a minute): the loop that owns it must stay fast.
    Slow {
        /// How long.
        took_us: u64,
        /// Slow turns since start.
        calls: u64,
    },
    /// A record written here is on this node's disk (driver only; a diskless node says it at once): what an operator may be
    /// told is stored. Never said again for that version, and not while the disk fails.
    Durable {
        /// Its key.
        key: String,
        /// Its version.
        version: Rev,
    },
    /// The log, which had failed, is whole again: a new one holds all that is known (driver only).
    LogRestored,
    /// A member that this node holds alive said that this node is dead: it was away without noticing (a paused machine, a
    /// long stall). The refutation is on its way; others may have taken over its work meanwhile.
    HeldDead,
    /// The farewell is said; the node may stop.
    Left,
}
