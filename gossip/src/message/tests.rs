use proptest::prelude::*;

use super::*;
use crate::wire::Reader;

fn nid() -> impl Strategy<Value = Nid> {
    any::<u64>().prop_map(Nid)
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
    ]
}

prop_compose! {
    fn update()(
        nid in nid(),
        full in proptest::option::of(("[a-z0-9-]{1,63}", addr())),
        generation in 0..GENERATION_MAX,
        incarnation in 0..GENERATION_MAX,
        standing in 0..5u8,
        accusers in proptest::collection::vec(nid(), 0..5),
    ) -> (Nid, Option<(String, SocketAddr)>, u64, u64, u8, Vec<Nid>) {
        (nid, full, generation, incarnation, standing, accusers)
    }
}

prop_compose! {
    fn record()(
        key in "[!-~]{1,255}",
        writer in "[a-z0-9-]{1,63}",
        rev in 1..u64::MAX,
        at_ms in any::<u64>(),
        prev in any::<u64>(),
        body in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..2000)),
    ) -> Record {
        Record::new(&key, rev, at_ms, writer.as_str().into(), prev, body.map(Into::into))
    }
}

proptest! {
    #[test]
    fn numbers_round_trip(value in any::<u64>()) {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        prop_assert_eq!(Reader::new(&bytes).varint(), Some(value));
        prop_assert!(bytes.len() <= 10);
    }

    #[test]
    fn updates_round_trip((nid, full, generation, incarnation, standing, nids) in update()) {
        let standings = [
            Standing::Alive,
            Standing::Suspect,
            Standing::Dead,
            Standing::Left,
            Standing::Forgotten,
        ];
        let mut accusers = Accusers::default();
        for nid in nids {
            accusers.add(nid);
        }
        let nid = full.as_ref().map_or(nid, |(name, _)| Nid::of(name));
        let full = full.as_ref().map(|(name, addr)| (name.as_str(), *addr));
        let standing = standings[usize::from(standing)];
        let update = Update { nid, full, generation, incarnation, standing, accusers };
        let mut bytes = Vec::new();
        update.write(&mut bytes);
        let mut reader = Reader::new(&bytes);
        prop_assert_eq!(Update::read(&mut reader), Some(update));
        prop_assert!(reader.rest().is_empty());
        for len in 0..bytes.len() {
            prop_assert_eq!(Update::read(&mut Reader::new(&bytes[..len])), None);
        }
    }

    #[test]
    fn records_round_trip(record in record()) {
        let mut bytes = Vec::new();
        put_record(&mut bytes, &record);
        prop_assert!(bytes.len() <= crate::map::ENCODED_MAX_BYTES);
        prop_assert_eq!(read_record(&mut Reader::new(&bytes)), Some(record));
        for len in 0..bytes.len() {
            prop_assert_eq!(read_record(&mut Reader::new(&bytes[..len])), None);
        }
    }

    #[test]
    fn items_round_trip(key in any::<u64>(), number in any::<u64>(), hash in any::<u64>()) {
        let item = Item { key, number, hash };
        let mut bytes = Vec::new();
        item.write(&mut bytes);
        prop_assert!(bytes.len() <= ITEM_MAX_BYTES);
        prop_assert_eq!(Item::read(&mut Reader::new(&bytes)), Some(item));
    }

    #[test]
    fn any_bytes_parse_or_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut reader = Reader::new(&bytes);
        while let Some(message) = Message::next(&mut reader) {
            if let Message::Updates(mut updates) = message {
                while Update::read(&mut updates).is_some() {}
            }
        }
    }
}

#[test]
fn what_a_later_version_adds_is_skipped() {
    let mut bytes = vec![200, 3, 1, 2, 3];
    bytes.extend_from_slice(&[tag::ACK, 6, 7, 0, 0, 0, 99, 99]);
    let mut reader = Reader::new(&bytes);
    let message = Message::next(&mut reader);
    assert!(matches!(message, Some(Message::Ack { seq: 7 })));
    assert!(Message::next(&mut reader).is_none());
}
