//! The gossip keys of a node or a bundle, and their rotation: a new key is accepted everywhere, then used, then the old one is
//! dropped.
//!
//! ```text
//! epoch 2              grows by one with each rotation
//! key 1 HEX            accepted
//! key 2 HEX used       accepted and used
//! evicted n3           was not given key 2; its certificate is refused
//! ```
//!
//! The new key travels from the operator to each node over TLS, where only that node's certificate can answer. It is not in the
//! map, not even sealed: a stolen node reads the map and writes in it. Who is not given the key is out when the old
//! one is dropped.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::flock::{name_is_valid, write_secret};
use crate::hex;

/// Its name in a node's state, its credentials and a bundle.
pub const FILE: &str = "gossip.ring";
/// A rotation that has begun, in a bundle.
pub const NEXT_FILE: &str = "gossip.ring.next";
/// The id of a flock's first key.
pub const FIRST_ID: u8 = 1;
/// Keys held at once: the old one and the new one.
pub const KEYS_MAX: usize = 2;
/// Names of evicted nodes that are kept; more are refused.
pub const EVICTED_MAX: usize = 1024;
/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: usize = 256 * 1024;

/// One key. Without `Debug` on purpose.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    id: u8,
    secret: [u8; 32],
}

/// What a node or a bundle holds. Without `Debug` on purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct Ring {
    epoch: u64,
    keys: Vec<Key>,
    used: u8,
    evicted: BTreeSet<String>,
}

/// A step of a rotation, as sent to each node; doing it twice is as doing it once.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "lowercase")]
pub enum Step {
    /// Accept a new key, too.
    Accept {
        /// The rotation: one more than the node's epoch.
        epoch: u64,
        /// The key's id.
        id: u8,
        /// The key, 64 hex digits.
        key: String,
    },
    /// Use it.
    Use {
        /// The rotation.
        epoch: u64,
        /// The key's id.
        id: u8,
    },
    /// Accept no other, and refuse the certificates of these nodes.
    Drop {
        /// The rotation.
        epoch: u64,
        /// The key's id.
        id: u8,
        /// Nodes that were not given it.
        evicted: BTreeSet<String>,
    },
}

/// `GET` and `POST /v1/keys`: where a node stands. No secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stand {
    /// The node.
    pub node: String,
    /// Rotations it has finished.
    pub epoch: u64,
    /// Ids of the keys it accepts.
    pub accepts: Vec<u8>,
    /// The id of the key it uses.
    pub uses: u8,
    /// Authentic frames it was sent under each key since it started.
    pub frames: std::collections::BTreeMap<u8, u64>,
    /// Nodes it refuses.
    pub evicted: BTreeSet<String>,
}

impl Ring {
    /// A flock's first ring.
    pub fn first(secret: [u8; 32]) -> Self {
        let keys = vec![Key { id: FIRST_ID, secret }];
        Self { epoch: 0, keys, used: FIRST_ID, evicted: BTreeSet::new() }
    }

    /// Reads a ring; `None` where there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        let ring = Self::parse(&text);
        ring.map(Some).map_err(|reason| Error::Credential { path: path.into(), reason })
    }

    /// Of several rings, the one of the latest rotation.
    pub fn latest(rings: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        rings.into_iter().flatten().max_by_key(|ring| (ring.epoch, ring.used, ring.keys.len()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.len() > FILE_BYTES_MAX {
            return Err(format!("is longer than {FILE_BYTES_MAX} bytes"));
        }
        let mut ring = Self { epoch: 0, keys: Vec::new(), used: 0, evicted: BTreeSet::new() };
        for (number, line) in text.lines().enumerate() {
            // A line may hold a key, so it is not repeated.
            let odd = || format!("line {} is not understood", number + 1);
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                ["epoch", epoch] => ring.epoch = epoch.parse().map_err(|_| odd())?,
                ["evicted", name] if name_is_valid(name) => {
                    ring.evicted.insert((*name).to_owned());
                }
                ["key", id, secret, rest @ ..] => {
                    let id = id.parse().map_err(|_| odd())?;
                    let secret = hex::decode_array(secret).ok_or_else(odd)?;
                    ring.keys.push(Key { id, secret });
                    match rest {
                        [] => {}
                        ["used"] => ring.used = id,
                        _ => return Err(odd()),
                    }
                }
                _ => return Err(odd()),
            }
        }
        let ids: BTreeSet<u8> = ring.keys.iter().map(|key| key.id).collect();
        if ids.len() != ring.keys.len() || ring.keys.len() > KEYS_MAX || !ids.contains(&ring.used) {
            return Err("does not hold one or two different keys, one of them used".into());
        }
        Ok(ring)
    }

    /// Writes it, readable by root alone, in place of what was there.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut text = format!("epoch {}\n", self.epoch);
        for key in &self.keys {
            let used = if key.id == self.used { " used" } else { "" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "key {} {}{used}", key.id, hex::encode(&key.secret));
        }
        for name in &self.evicted {
            let _ = writeln!(text, "evicted {name}");
        }
        let fresh = path.with_extension("new");
        write_secret(&fresh, text.as_bytes())?;
        let replace = || {
            std::fs::rename(&fresh, path)?;
            std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        replace().map_err(|error| Error::io("replace", path, error))
    }

    /// As gossip wants it.
    pub fn key_ring(&self) -> Result<gossip::KeyRing, gossip::Error> {
        let (used, others): (Vec<&Key>, Vec<&Key>) =
            self.keys.iter().partition(|key| key.id == self.used);
        let secret = |key: &Key| gossip::SecretKey::new(key.id, key.secret);
        let Some(first) = used.first() else {
            return Err(gossip::Error::KeyRing { id: self.used, operation: "select" });
        };
        let mut ring = gossip::KeyRing::new(&secret(first));
        for key in others {
            ring.accept(&secret(key))?;
        }
        Ok(ring)
    }

    /// Whether a node was evicted.
    pub fn has_evicted(&self, node: &str) -> bool {
        self.evicted.contains(node)
    }

    /// Where its holder stands.
    pub fn stand(&self, node: &str) -> Stand {
        Stand {
            node: node.to_owned(),
            epoch: self.epoch,
            accepts: self.keys.iter().map(|key| key.id).collect(),
            uses: self.used,
            frames: Default::default(),
            evicted: self.evicted.clone(),
        }
    }

    /// What the rotation after this one leads to: one new key, and these nodes out.
    pub fn next(&self, evicted: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut secret = [0; 32];
        ring::rand::SystemRandom::new().fill(&mut secret).map_err(|_| Error::Random)?;
        let id = self.used.checked_add(1).unwrap_or(FIRST_ID);
        let evicted = self.evicted.iter().cloned().chain(evicted).collect();
        Ok(Self { epoch: self.epoch + 1, keys: vec![Key { id, secret }], used: id, evicted })
    }

    /// The steps by which every node gets to this ring, which [`Ring::next`] has made.
    pub fn steps(&self) -> Option<[Step; 3]> {
        let key = self.keys.iter().find(|key| key.id == self.used)?;
        let (epoch, id) = (self.epoch, key.id);
        let evicted = self.evicted.clone();
        let key = hex::encode(&key.secret);
        Some([
            Step::Accept { epoch, id, key },
            Step::Use { epoch, id },
            Step::Drop { epoch, id, evicted },
        ])
    }

    /// The ring after a step, or why it cannot be done. A step that was done already changes nothing.
    pub fn after(&self, step: &Step) -> Result<Self, String> {
        let (epoch, id) = match step {
            Step::Accept { epoch, id, .. }
            | Step::Use { epoch, id }
            | Step::Drop { epoch, id, .. } => (*epoch, *id),
        };
        let done = self.epoch == epoch && self.used == id;
        if !done && epoch != self.epoch + 1 {
            return Err(format!(
                "rotation {epoch} does not follow {}, which is the last one here",
                self.epoch
            ));
        }
        let mut ring = self.clone();
        match step {
            _ if done => {}
            Step::Accept { key, .. } => {
                let secret = hex::decode_array(key).ok_or("the key is not 64 hex digits")?;
                let new = Key { id, secret };
                match ring.keys.iter().find(|key| key.id == id) {
                    Some(held) if *held == new => {}
                    Some(_) => return Err(format!("another key {id} is held already")),
                    None if ring.keys.len() >= KEYS_MAX => {
                        return Err("another rotation is under way".into());
                    }
                    None => ring.keys.push(new),
                }
            }
            Step::Use { .. } | Step::Drop { .. } if !ring.keys.iter().any(|k| k.id == id) => {
                return Err(format!("key {id} has not been accepted here"));
            }
            Step::Use { .. } => ring.used = id,
            Step::Drop { .. } if ring.used != id => {
                return Err(format!("key {} is in use here, not {id}", ring.used));
            }
            Step::Drop { evicted, .. } => {
                if evicted.len() > EVICTED_MAX || !evicted.iter().all(|name| name_is_valid(name)) {
                    return Err(format!("at most {EVICTED_MAX} names of nodes can be evicted"));
                }
                ring.keys.retain(|key| key.id == id);
                ring.epoch = epoch;
                ring.evicted.clone_from(evicted);
            }
        }
        Ok(ring)
    }
}

#[cfg(test)]
mod tests;
