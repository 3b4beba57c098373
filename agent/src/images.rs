//! Which images a node lets go of: those that nobody needs, by their age and by the room that all take. Pure.
//!
//! Invariants: what is needed stays, whatever the bounds say; nothing goes that the bounds allow; a layer of two images counts
//! once.

use std::collections::BTreeMap;

/// How long and how much a node keeps of what nobody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Since its last use, in milliseconds.
    pub unused_ms: u64,
    /// All images together, in bytes; what is needed may be more.
    pub bytes_max: u64,
    /// Bytes that the disk lacks.
    pub lacks_bytes: u64,
}

/// Whether an image has to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A pod here or a spec of the flock names it, or this is one of the flock's last copies of a named image.
    Needed,
    /// Nobody needs it.
    Unneeded,
    /// An operator has removed it from the flock.
    Removed,
}

/// One image of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its manifest digest.
    pub digest: String,
    /// When a pod here used it last, or when it came; milliseconds since 1970.
    pub used_ms: u64,
    /// Its layers: name and size in bytes.
    pub layers: Vec<(String, u64)>,
    /// Whether it has to stay.
    pub hold: Hold,
}

/// Why an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// [`Hold::Removed`].
    Removed,
    /// Longer unused than [`Bounds::unused_ms`].
    Age,
    /// All images took more than [`Bounds::bytes_max`], and of those that nobody needs it was unused the longest.
    Room,
    /// The disk's reserve was touched, and of those that nobody needs it was unused the longest.
    Reserve,
}

impl Cause {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Removed => "it was removed from the flock",
            Self::Age => "it was unused for longer than images.unused_hours",
            Self::Room => "all images took more room than images.max_mib",
            Self::Reserve => "its room was needed: the disk's reserve would have been touched",
        }
    }
}

/// What goes, and why.
pub fn choose(now_ms: u64, held: &[Held], bounds: Bounds) -> BTreeMap<String, Cause> {
    let mut gone = BTreeMap::new();
    for image in held {
        // A clock that was set back makes nothing old.
        let unused_ms = now_ms.saturating_sub(image.used_ms);
        let cause = match image.hold {
            Hold::Removed => Cause::Removed,
            Hold::Unneeded if unused_ms >= bounds.unused_ms => Cause::Age,
            _ => continue,
        };
        gone.insert(image.digest.clone(), cause);
    }
    let mut rest: Vec<&Held> = held.iter().filter(|h| h.hold == Hold::Unneeded).collect();
    rest.sort_by_key(|h| (h.used_ms, &h.digest));
    let all = size_bytes(held.iter());
    for image in rest {
        let left = size_bytes(held.iter().filter(|h| !gone.contains_key(&h.digest)));
        let cause = if left > bounds.bytes_max {
            Cause::Room
        } else if all - left < bounds.lacks_bytes {
            Cause::Reserve
        } else {
            break;
        };
        gone.entry(image.digest.clone()).or_insert(cause);
    }
    gone
}

/// Bytes of all their layers, each counted once.
pub fn size_bytes<'a>(images: impl Iterator<Item = &'a Held>) -> u64 {
    let layers: BTreeMap<&str, u64> =
        images.flat_map(|h| h.layers.iter().map(|(name, size)| (name.as_str(), *size))).collect();
    layers.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { unused_ms: 1000, bytes_max: 100, lacks_bytes: 0 };

    fn image(digest: &str, used_ms: u64, hold: Hold, layers: &[(&str, u64)]) -> Held {
        let layers = layers.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        Held { digest: digest.into(), used_ms, layers, hold }
    }

    fn gone(now_ms: u64, held: &[Held]) -> Vec<(String, Cause)> {
        choose(now_ms, held, BOUNDS).into_iter().collect()
    }

    #[test]
    fn what_is_unneeded_goes_at_its_age_and_not_before() {
        let held = [
            image("a", 10, Hold::Unneeded, &[("x", 1)]),
            image("b", 10, Hold::Needed, &[("y", 1)]),
            image("c", 2000, Hold::Removed, &[("z", 1)]),
        ];
        assert_eq!(gone(1009, &held), [("c".into(), Cause::Removed)]);
        let both = [("a".into(), Cause::Age), ("c".into(), Cause::Removed)];
        assert_eq!(gone(1010, &held), both);
        assert_eq!(gone(0, &held).len(), 1, "a clock that was set back");
    }

    #[test]
    fn room_is_made_by_the_longest_unused_and_layers_count_once() {
        let base = ("base", 60);
        let held = [
            image("old", 1, Hold::Unneeded, &[base, ("o", 30)]),
            image("new", 2, Hold::Unneeded, &[base, ("n", 20)]),
            image("used", 0, Hold::Needed, &[base, ("u", 10)]),
        ];
        assert_eq!(size_bytes(held.iter()), 120, "the base once");
        assert_eq!(gone(3, &held), [("old".into(), Cause::Room)]);
        let fits = Bounds { bytes_max: 120, ..BOUNDS };
        assert!(choose(3, &held, fits).is_empty());
        // Even nothing at all is not bought with what is needed.
        let none = Bounds { bytes_max: 0, ..BOUNDS };
        assert!(!choose(3, &held, none).contains_key("used"));
        assert_eq!(choose(3, &held, none).len(), 2);
    }

    #[test]
    fn what_a_disk_lacks_is_given_back_and_no_more() {
        let held = [
            image("old", 1, Hold::Unneeded, &[("o", 30)]),
            image("new", 2, Hold::Unneeded, &[("n", 20)]),
            image("used", 0, Hold::Needed, &[("u", 10)]),
        ];
        let lacks = |lacks_bytes| {
            let gone = choose(3, &held, Bounds { lacks_bytes, ..BOUNDS });
            gone.into_iter().map(|(name, cause)| (name, cause.words())).collect::<Vec<_>>()
        };
        let words = Cause::Reserve.words();
        assert_eq!(lacks(30), [("old".into(), words)]);
        assert_eq!(lacks(31).len(), 2);
        assert_eq!(lacks(u64::MAX).len(), 2, "what is needed stays");
    }

    fn held() -> impl Strategy<Value = Vec<Held>> {
        let hold = prop_oneof![Just(Hold::Needed), Just(Hold::Unneeded), Just(Hold::Removed)];
        let layers = prop::collection::vec((0u8..6, 1u64..50), 1..4);
        let one = (0u64..2000, hold, layers);
        prop::collection::vec(one, 0..8).prop_map(|images| {
            let named = images.into_iter().enumerate();
            named
                .map(|(n, (used_ms, hold, layers))| {
                    // A layer's size goes with its name.
                    let layers = layers.iter().map(|(l, _)| (l.to_string(), u64::from(*l) * 10));
                    Held { digest: n.to_string(), used_ms, layers: layers.collect(), hold }
                })
                .collect()
        })
    }

    proptest! {
        /// What is needed stays; what goes for room goes only while there is too much; what stays unneeded is younger than all
        /// that went for room.
        #[test]
        fn whatever_there_is(held in held(), now_ms in 0u64..3000) {
            let gone = choose(now_ms, &held, BOUNDS);
            let stays = |h: &&Held| !gone.contains_key(&h.digest);
            for image in &held {
                let cause = gone.get(&image.digest);
                match image.hold {
                    Hold::Needed => prop_assert_eq!(cause, None),
                    Hold::Removed => prop_assert_eq!(cause, Some(&Cause::Removed)),
                    Hold::Unneeded => {}
                }
            }
            let unneeded_left = held.iter().filter(stays).any(|h| h.hold == Hold::Unneeded);
            if size_bytes(held.iter().filter(stays)) > BOUNDS.bytes_max {
                prop_assert!(!unneeded_left);
            }
            let for_room: Vec<&Held> =
                held.iter().filter(|h| gone.get(&h.digest) == Some(&Cause::Room)).collect();
            if let Some(last) = for_room.iter().max_by_key(|h| (h.used_ms, &h.digest)) {
                // Without the last of them it was still too much.
                let before = held.iter().filter(|h| stays(h) || h.digest == last.digest);
                prop_assert!(size_bytes(before) > BOUNDS.bytes_max);
            }
        }
    }
}
