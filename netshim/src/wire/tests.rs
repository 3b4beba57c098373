use proptest::prelude::*;

use super::*;

fn ipv4(payload: &[u8], protocol: u8) -> Vec<u8> {
    let mut packet =
        vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 100, 64, 1, 2, 100, 64, 2, 2];
    packet.extend_from_slice(payload);
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    fill_ipv4_checksum(&mut packet, 20);
    packet
}

fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn inner_lengths_must_agree() {
    let packet = ipv4(&[0; 8], PROTOCOL_UDP);
    let inner = Inner::parse(&packet).unwrap();
    assert_eq!((inner.header_len, inner.ttl, inner.protocol), (20, 64, 17));
    let mut longer = packet.clone();
    longer.push(0);
    assert_eq!(Inner::parse(&longer), None);
    assert_eq!(Inner::parse(&packet[..27]), None);
    assert_eq!(Inner::parse(&[]), None);
    let mut header = packet.clone();
    header[0] = 0x44;
    assert_eq!(Inner::parse(&header), None);
}

#[test]
fn ttl_keeps_the_checksum_right() {
    let mut packet = ipv4(&[], PROTOCOL_ICMP);
    for _ in 0..63 {
        decrement_ttl(&mut packet);
        assert_eq!(naive_sum(&packet[..20]), 0xffff);
    }
    assert_eq!(packet[8], 1);
}

#[test]
fn kinds_and_versions() {
    let header = DataHeader { receiver: 0x0102_0304, counter: 5 };
    let mut datagram = header.emit().to_vec();
    assert_eq!(Kind::of(&datagram), Some(Kind::Data));
    assert_eq!(DataHeader::parse(&datagram), None, "no room for a tag");
    datagram.resize(DATA_OVERHEAD, 0);
    assert_eq!(DataHeader::parse(&datagram), Some(header));
    datagram[1] = VERSION + 1;
    assert_eq!(Kind::of(&datagram), None);
}

#[test]
fn martians() {
    for text in [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.251",
        "255.255.255.255",
        "169.254.1.1",
        "240.0.0.1",
        "0.1.2.3",
        "::",
        "::1",
        "fe80::1",
        "ff02::fb",
        "::ffff:10.0.0.1",
    ] {
        assert!(is_martian(text.parse().unwrap()), "{text}");
    }
    for text in ["100.64.0.2", "10.0.0.1", "8.8.8.8", "fd00::1", "2001:db8::1"] {
        assert!(!is_martian(text.parse().unwrap()), "{text}");
    }
}

proptest! {
    #[test]
    fn sums_agree_with_a_naive_one(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        // Zero has two forms in one's complement.
        prop_assert_eq!(fold(sum_words(0, &bytes)) % 0xffff, naive_sum(&bytes) % 0xffff);
    }

    #[test]
    fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0u8..16) {
        if let Some(b) = bytes.first_mut() { *b = version << 4 | *b & 0xf; }
        if let Some(inner) = Inner::parse(&bytes) {
            prop_assert!(inner.header_len <= bytes.len());
        }
        let _ = (Kind::of(&bytes), DataHeader::parse(&bytes), VnetHdr::split(&mut bytes.clone()));
        decrement_ttl(&mut bytes);
        finish_checksum(&mut bytes.clone(), 3, 1_000);
        finish_checksum(&mut bytes, 300, 0);
    }

    #[test]
    fn meta_round_trips(bytes in any::<[u8; META_LEN]>()) {
        if let Some(meta) = Meta::parse(bytes) {
            prop_assert_eq!(meta.emit(), bytes);
        }
    }

    #[test]
    fn vnet_headers_round_trip(flags in 0u8..2, gso_type: u8, words: [u16; 4]) {
        let header = VnetHdr {
            needs_checksum: flags == 1, gso_type, header_len: words[0], gso_size: words[1],
            checksum_start: words[2], checksum_offset: words[3],
        };
        let mut bytes = header.emit().to_vec();
        let (parsed, rest) = VnetHdr::split(&mut bytes).unwrap();
        prop_assert_eq!(parsed, header);
        prop_assert!(rest.is_empty());
    }
}
