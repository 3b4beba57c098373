//! Unicast messages between coordinators and nodes: a version byte, then postcard.
//!
//! They may be lost, repeated and reordered. Only [`Message::Offer`] can start anything, and it carries a
//! term, a generation and an id that is answered once. A new field is a new variant: a build that does not
//! know it drops the message, and the map carries the same truth a little later.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::record::ClaimRecord;

/// Bytes of one message: it travels in one datagram.
pub const MESSAGE_MAX: usize = 1_100;
/// First byte of every message.
pub const VERSION: u8 = 1;
/// Bytes of a claim's reason inside a message; the record holds all of it.
const REASON_MAX: usize = 200;

/// What a node has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Free {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Pods.
    pub pods: u32,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Coordinator to node: run this slot.
    Offer(Offer),
    /// Node to coordinator: it is admitted (or was, by an earlier copy of the offer).
    Accept {
        /// The offer's id.
        offer: u64,
        /// The claim's id.
        claim: String,
        /// [`ClaimRecord`] body without its ports.
        body: Vec<u8>,
        /// What is left.
        free: Free,
    },
    /// Node to coordinator: no.
    Refuse {
        /// The offer's id.
        offer: u64,
        /// Namespace.
        namespace: String,
        /// App.
        app: String,
        /// Slot.
        slot: u32,
        /// Why.
        reason: Refusal,
        /// What is left.
        free: Free,
    },
    /// Coordinator to node: stop this claim.
    Stop {
        /// Namespace.
        namespace: String,
        /// App.
        app: String,
        /// The claim's id.
        claim: String,
        /// The coordinator's term.
        term: u64,
    },
    /// Node to coordinator: how a claim is; on every change and when asked.
    Status {
        /// The claim's id.
        claim: String,
        /// [`ClaimRecord`] body without its ports.
        body: Vec<u8>,
    },
    /// Node to coordinator: that claim is not here (any more).
    Gone {
        /// The claim's id.
        claim: String,
    },
    /// Coordinator to node: how is this claim?
    Ask {
        /// The claim's id.
        claim: String,
    },
    /// For another node: the direct way seems to be cut. Carried over one hop.
    Forward {
        /// Who sent it.
        origin: String,
        /// For whom.
        to: String,
        /// An encoded message, not a `Forward` itself.
        bytes: Vec<u8>,
    },
    /// Do you hear me?
    Ping {
        /// Random.
        nonce: u64,
    },
    /// I do.
    Pong {
        /// As asked.
        nonce: u64,
    },
    /// Node to coordinator: your term is old, I heard this one.
    Term {
        /// Namespace.
        namespace: String,
        /// App.
        app: String,
        /// The highest term heard.
        term: u64,
    },
}

/// An offer of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Random; answered once.
    pub id: u64,
    /// Namespace.
    pub namespace: String,
    /// App.
    pub app: String,
    /// Slot.
    pub slot: u32,
    /// Generation whose spec says what to run.
    pub generation: u64,
    /// The coordinator's term.
    pub term: u64,
}

/// Why a node refuses an offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// It has just started and does not know yet what it runs.
    Recovering,
    /// A coordinator with a higher `(term, name)` was heard.
    StaleTerm {
        /// The highest term heard.
        term: u64,
    },
    /// It knows a newer generation.
    StaleGeneration,
    /// The spec did not arrive in time.
    NoSpec,
    /// The app is stopped, or has fewer slots.
    NotWanted,
    /// It drains.
    Draining,
    /// `place.require` does not hold here.
    Require,
    /// Not enough CPU.
    Cpu,
    /// Not enough memory.
    Memory,
    /// As many pods as it takes.
    Pods,
    /// `unique = "host"` and one is here.
    UniqueHost,
    /// An operator cordoned it.
    Cordoned,
    /// It lacks what the spec insists on; its record says what it has.
    Lacks,
}

impl Refusal {
    /// For people.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Refusal::Recovering => "it has just started",
            Refusal::StaleTerm { .. } => "a newer coordinator was heard",
            Refusal::StaleGeneration => "it knows a newer generation",
            Refusal::NoSpec => "it has not got the spec",
            Refusal::NotWanted => "the app does not want this slot",
            Refusal::Draining => "it drains",
            Refusal::Require => "place.require does not hold",
            Refusal::Cpu => "not enough cpu",
            Refusal::Memory => "not enough memory",
            Refusal::Pods => "no room for another pod",
            Refusal::UniqueHost => "one of this app is already there",
            Refusal::Cordoned => "it is cordoned",
            Refusal::Lacks => "it lacks what the spec insists on",
        }
    }
}

impl Message {
    /// The bytes to carry, at most [`MESSAGE_MAX`].
    ///
    /// # Errors
    /// [`Error::TooLarge`]: names at their bounds leave room, so only a caller's own message can be.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![VERSION];
        // Serialising plain owned data into a Vec has no failing case.
        bytes.extend(postcard::to_allocvec(self).expect("plain data into a Vec cannot fail"));
        if bytes.len() > MESSAGE_MAX {
            return Err(Error::TooLarge { what: "message", size: bytes.len(), max: MESSAGE_MAX });
        }
        Ok(bytes)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// Oversized, of another version, or not a message of this build.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MESSAGE_MAX {
            return Err(Error::TooLarge { what: "message", size: bytes.len(), max: MESSAGE_MAX });
        }
        match bytes.split_first() {
            None => Err(Error::Truncated { what: "message" }),
            Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
                Ok((message, [])) => Ok(message),
                _ => Err(Error::Truncated { what: "message" }),
            },
            Some((&found, _)) => Err(Error::Version { what: "message", found }),
        }
    }
}

/// A claim's record as messages carry it: no ports, a short reason.
#[must_use]
pub fn brief(record: &ClaimRecord) -> Vec<u8> {
    let mut record = record.clone();
    record.ports.clear();
    shorten(&mut record.reason, REASON_MAX);
    shorten(&mut record.note, REASON_MAX);
    record.encode()
}

/// Cuts a text to at most `max` bytes, at a character.
pub(crate) fn shorten(text: &mut String, max: usize) {
    let mut at = max.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    text.truncate(at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_names_fit() {
        let name = "n".repeat(63);
        let record = ClaimRecord {
            namespace: name.clone(),
            app: name.clone(),
            node: name.clone(),
            slot: u32::MAX,
            generation: u64::MAX,
            template: u64::MAX,
            ip: "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".into(),
            ports: (0..128).map(|i| (format!("{i:063}"), i)).collect(),
            reason: "\u{e9}".repeat(5000),
            seq: u64::MAX,
            offer: u64::MAX,
            term: u64::MAX,
            created_ms: u64::MAX,
            started_ms: u64::MAX,
            cpu_milli: u64::MAX,
            memory_bytes: u64::MAX,
            restarts: u32::MAX,
            ..ClaimRecord::default()
        };
        let free = Free { cpu_milli: u64::MAX, memory_bytes: u64::MAX, pods: u32::MAX };
        let claim = "f".repeat(12);
        let message = Message::Accept { offer: u64::MAX, claim, body: brief(&record), free };
        let bytes = message.encode().unwrap();
        assert_eq!(Message::decode(&bytes).unwrap(), message);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..1200)) {
            let _ = Message::decode(&bytes);
            let mut tagged = vec![VERSION];
            tagged.extend(&bytes);
            let _ = Message::decode(&tagged);
            let _ = ClaimRecord::decode(&bytes);
            let _ = crate::NodeRecord::decode(&bytes);
            let _ = crate::RolloutRecord::decode(&bytes);
        }
    }
}
