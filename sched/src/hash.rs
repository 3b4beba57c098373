//! Stable 64-bit hashes. They decide who coordinates and are compared between nodes of different builds,
//! so they never change: FNV-1a with a final avalanche (Murmur3's `fmix64`). Not keyed: the names come
//! from authenticated members and signed specs.

/// Hashes parts; a separator keeps `("ab", "c")` and `("a", "bc")` apart.
#[must_use]
pub fn stable(parts: &[&[u8]]) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in *part {
            h = (h ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        h = (h ^ 0xff).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// A node's rendezvous weight for an app: the highest coordinates it.
#[must_use]
pub fn rank(namespace: &str, app: &str, node: &str) -> u64 {
    stable(&[b"rank", namespace.as_bytes(), app.as_bytes(), node.as_bytes()])
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_never_change() {
        assert_eq!(super::rank("default", "hello", "n1"), super::rank("default", "hello", "n1"));
        assert_ne!(super::stable(&[b"ab", b"c"]), super::stable(&[b"a", b"bc"]));
    }
}
