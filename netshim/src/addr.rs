//! Prefixes of the overlay: a /24 of 100.64.0.0/10 and a /96 of the flock's ULA/48 for every node.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How many node prefixes the IPv4 overlay holds.
pub const PREFIX4_COUNT: u16 = 16_384;
/// The IPv4 overlay: the shared address space of RFC 6598.
pub const OVERLAY4: Prefix4 = Prefix4 { net: 0x6440_0000, len: 10 };

/// An IPv4 prefix; host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Prefix4 {
    net: u32,
    len: u8,
}

impl Prefix4 {
    /// The prefix that holds `addr`; `None` if `len` is over 32.
    pub fn new(addr: Ipv4Addr, len: u8) -> Option<Self> {
        (len <= 32).then(|| Self { net: addr.to_bits() & mask4(len), len })
    }

    /// The node prefix with this index in [`OVERLAY4`]; `None` from [`PREFIX4_COUNT`] on.
    pub fn node(index: u16) -> Option<Self> {
        (index < PREFIX4_COUNT).then(|| Self { net: OVERLAY4.net | u32::from(index) << 8, len: 24 })
    }

    /// The index in [`OVERLAY4`] of a node prefix; `None` for any other prefix.
    pub fn node_index(self) -> Option<u16> {
        if self.len == 24 { node_index(Ipv4Addr::from_bits(self.net)) } else { None }
    }

    /// Whether `addr` lies in it.
    pub fn contains(self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & mask4(self.len) == self.net
    }

    /// The first address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.net)
    }

    /// The number of fixed bits.
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether it is 0.0.0.0/0.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The node's own address in it (`mesh0`, gateway of its pods).
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.net | 1)
    }
}

/// The index of the node prefix that holds `addr`; `None` outside of [`OVERLAY4`].
pub fn node_index(addr: Ipv4Addr) -> Option<u16> {
    if !OVERLAY4.contains(addr) {
        return None;
    }
    u16::try_from((addr.to_bits() >> 8) & u32::from(PREFIX4_COUNT - 1)).ok()
}

/// An IPv6 prefix; host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Prefix6 {
    net: u128,
    len: u8,
}

impl Prefix6 {
    /// The prefix that holds `addr`; `None` if `len` is over 128.
    pub fn new(addr: Ipv6Addr, len: u8) -> Option<Self> {
        (len <= 128).then(|| Self { net: addr.to_bits() & mask6(len), len })
    }

    /// Whether `addr` lies in it.
    pub fn contains(self, addr: Ipv6Addr) -> bool {
        addr.to_bits() & mask6(self.len) == self.net
    }

    /// The first address.
    pub fn network(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.net)
    }

    /// The number of fixed bits.
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether it is ::/0.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The node's own address in it (`mesh0`, gateway of its pods).
    pub fn gateway(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.net | 1)
    }
}

fn mask4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

fn mask6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// A prefix that could not be parsed: not `address/length`, or host bits set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPrefix(String);

impl fmt::Display for BadPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no prefix (want address/length without host bits)", self.0)
    }
}

impl std::error::Error for BadPrefix {}

macro_rules! text_form {
    ($prefix:ty, $addr:ty) => {
        impl fmt::Display for $prefix {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.network(), self.len)
            }
        }

        impl fmt::Debug for $prefix {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $prefix {
            type Err = BadPrefix;

            fn from_str(text: &str) -> Result<Self, BadPrefix> {
                let bad = || BadPrefix(text.chars().take(64).collect());
                let (addr, len) = text.split_once('/').ok_or_else(bad)?;
                let addr: $addr = addr.parse().map_err(|_| bad())?;
                let len: u8 = len.parse().map_err(|_| bad())?;
                let prefix = Self::new(addr, len).ok_or_else(bad)?;
                if prefix.network() == addr { Ok(prefix) } else { Err(bad()) }
            }
        }

        impl TryFrom<String> for $prefix {
            type Error = BadPrefix;

            fn try_from(text: String) -> Result<Self, BadPrefix> {
                text.parse()
            }
        }

        impl From<$prefix> for String {
            fn from(prefix: $prefix) -> String {
                prefix.to_string()
            }
        }
    };
}

text_form!(Prefix4, Ipv4Addr);
text_form!(Prefix6, Ipv6Addr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_prefixes_and_their_indexes_are_inverse() {
        for index in [0, 1, 255, 256, 16_383] {
            let prefix = Prefix4::node(index).unwrap();
            assert_eq!(prefix.node_index(), Some(index));
            assert_eq!(node_index(prefix.gateway()), Some(index));
        }
        assert_eq!(Prefix4::node(16_383).unwrap().to_string(), "100.127.255.0/24");
        assert_eq!(Prefix4::node(16_384), None);
        assert_eq!(node_index(Ipv4Addr::new(100, 128, 0, 1)), None);
        assert_eq!(OVERLAY4.node_index(), None);
    }

    #[test]
    fn text_form_is_strict() {
        assert_eq!("100.64.3.0/24".parse::<Prefix4>().unwrap(), Prefix4::node(3).unwrap());
        for bad in ["100.64.3.1/24", "100.64.3.0", "100.64.3.0/33", "x/24", "fd00::1/96"] {
            assert!(bad.parse::<Prefix4>().is_err(), "{bad}");
        }
        let six: Prefix6 = "fd00:1:2::/48".parse().unwrap();
        assert_eq!(six.to_string(), "fd00:1:2::/48");
        assert!(six.contains("fd00:1:2:3::4".parse().unwrap()));
        assert!("::/129".parse::<Prefix6>().is_err());
        assert!("::/0".parse::<Prefix6>().unwrap().contains("1::".parse().unwrap()));
    }
}
