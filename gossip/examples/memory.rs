//! Resident memory of one node that knows many members and records, as JSON lines.
//!
//! `cargo run --profile sim -p gossip --example memory [-- MEMBERS RECORDS BODY_BYTES]`

use std::net::SocketAddr;

use gossip::{
    Config, Gossip, Identity, Input, KeyRing, MemberInfo, Profile, Record, Restored, SecretKey,
    State,
};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).expect("a number");
    pages * 4096
}

fn main() {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let members = args.next().unwrap_or(1000u32);
    let records = args.next().unwrap_or(10_000u32);
    let body = args.next().unwrap_or(700u32) as usize;
    let before = resident_bytes();
    let keys = KeyRing::new(&SecretKey::new(1, [1; 32]));
    let addr = SocketAddr::from(([10, 0, 0, 1], 7946));
    let me = Identity { name: "me".to_owned(), generation: 1, addr };
    let mut gossip = Gossip::new(Config::new(keys, Profile::Lan), me).expect("a valid name");
    let name = |i: u32| format!("node-{i:05}");
    let member = |i: u32| MemberInfo {
        name: name(i),
        addr: SocketAddr::from((i.to_be_bytes(), 7946)),
        generation: 5,
        incarnation: 0,
        state: State::Alive,
    };
    let record = |i: u32| {
        let (key, writer) = (format!("a/{}/web.{i}", name(i % members)), name(i % members));
        Record::new(
            &key,
            3,
            1_700_000_000_000,
            writer.as_str().into(),
            0,
            Some(vec![1; body].into()),
        )
    };
    for i in 0..members.max(records) {
        // One by one, so that nothing but the node itself is in memory.
        let records = (i < records).then(|| record(i)).into_iter().collect();
        let roster = (i < members).then(|| member(i)).into_iter().collect();
        gossip.restore(0, 0, Restored { records, roster, saved_ms: 0 });
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    gossip.step(1, 1, Input::Timer, &mut rng, &mut Vec::new());
    let used = (resident_bytes() - before) as f64 / f64::from(1 << 20);
    println!(
        "{{\"metric\":\"memory_{members}_{records}_{body}\",\"who\":\"quelea\",\"value\":{used:.2},\"unit\":\"MiB\"}}"
    );
    assert_eq!(gossip.range("").count(), records as usize);
}
