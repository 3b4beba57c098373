use proptest::prelude::*;

use super::*;
use crate::Error;

fn put(out: &[Output]) -> Option<(String, Vec<u8>)> {
    out.iter().find_map(|o| match o {
        Output::Put { key, body } => Some((key.clone(), body.clone())),
        _ => None,
    })
}

#[test]
fn a_lone_node_gets_its_prefix_after_the_settle_time() {
    let mut ipam = Ipam::new("n1", b"flock");
    let mut out = Vec::new();
    ipam.step(5, Input::Timer, &mut out);
    assert!(out.is_empty(), "no claim before the map is there");
    ipam.step(10, Input::Synced, &mut out);
    let (key, body) = put(&out).expect("a claim");
    assert_eq!(Claim::decode(&body).unwrap(), Claim { epoch: 1, node: "n1".into() });
    assert_eq!(ipam.prefix4(), None);
    assert_eq!(ipam.next_deadline(), Some(10 + SETTLE_US));
    out.clear();
    ipam.step(9 + SETTLE_US, Input::Timer, &mut out);
    assert!(out.is_empty());
    ipam.step(10 + SETTLE_US, Input::Timer, &mut out);
    let prefix = ipam.prefix4().expect("usable");
    assert_eq!(out, [Output::Usable(prefix)]);
    assert_eq!(super::key(prefix.node_index().unwrap()), key);
    assert_eq!(ipam.next_deadline(), None);
}

#[test]
fn claims_of_others_are_probed_past() {
    let mut first = Ipam::new("n1", b"flock");
    let mut out = Vec::new();
    first.step(0, Input::Synced, &mut out);
    let (taken, _) = put(&out).unwrap();
    let other = Claim { epoch: 1, node: "zz".into() }.encode();
    let mut second = Ipam::new("n1", b"flock");
    out.clear();
    second.step(0, Input::Record { key: &taken, body: Some(&other) }, &mut out);
    second.step(0, Input::Synced, &mut out);
    assert_ne!(put(&out).unwrap().0, taken);
}

#[test]
fn the_lower_name_keeps_a_contested_prefix_and_the_loser_says_so() {
    let mut ipam = Ipam::new("m", b"flock");
    let mut out = Vec::new();
    ipam.step(0, Input::Synced, &mut out);
    ipam.step(SETTLE_US, Input::Timer, &mut out);
    let prefix = ipam.prefix4().unwrap();
    let key = super::key(prefix.node_index().unwrap());

    out.clear();
    let worse = Claim { epoch: 1, node: "z".into() }.encode();
    ipam.step(SETTLE_US, Input::Record { key: &key, body: Some(&worse) }, &mut out);
    assert_eq!(put(&out).unwrap().0, key, "ours is written again");
    assert_eq!(ipam.prefix4(), Some(prefix));

    out.clear();
    let better = Claim { epoch: 1, node: "a".into() }.encode();
    ipam.step(SETTLE_US, Input::Record { key: &key, body: Some(&better) }, &mut out);
    assert_eq!(out[0], Output::Lost { prefix, to: "a".into() });
    assert_ne!(put(&out).unwrap().0, key);
    assert_eq!(ipam.prefix4(), None);
}

#[test]
fn a_prefix_taken_over_after_removal_beats_the_old_owner() {
    let mut ipam = Ipam::new("b", b"flock");
    let mut out = Vec::new();
    ipam.step(0, Input::Synced, &mut out);
    let (key, _) = put(&out).unwrap();
    // The record of its former owner `a` was there and was deleted: epoch 2 beats even the lower name.
    let mut ipam = Ipam::new("b", b"flock");
    let old = Claim { epoch: 1, node: "a".into() }.encode();
    out.clear();
    ipam.step(0, Input::Record { key: &key, body: Some(&old) }, &mut out);
    ipam.step(0, Input::Record { key: &key, body: None }, &mut out);
    ipam.step(0, Input::Synced, &mut out);
    let (again, body) = put(&out).unwrap();
    assert_eq!(again, key);
    assert_eq!(Claim::decode(&body).unwrap().epoch, 2);
    out.clear();
    ipam.step(1, Input::Record { key: &key, body: Some(&old) }, &mut out);
    assert_eq!(put(&out).unwrap().0, key);
}

#[test]
fn a_restarted_node_finds_its_prefix_in_the_map_or_on_its_disk() {
    let mut ipam = Ipam::new("n1", b"flock");
    let mut out = Vec::new();
    let mine = Claim { epoch: 3, node: "n1".into() }.encode();
    ipam.step(0, Input::Record { key: "p/77", body: Some(&mine) }, &mut out);
    assert_eq!(out, [Output::Usable(Prefix4::node(77).unwrap())]);

    let mut ipam = Ipam::new("n1", b"flock");
    out.clear();
    ipam.restore(Prefix4::node(78).unwrap(), 2, &mut out);
    assert_eq!(ipam.prefix4(), Prefix4::node(78));
    ipam.step(0, Input::Synced, &mut out);
    assert_eq!(put(&out).unwrap().0, "p/78");
}

#[test]
fn strange_records_change_nothing() {
    let mut ipam = Ipam::new("n1", b"flock");
    let mut out = Vec::new();
    let body = Claim { epoch: 1, node: "n1".into() }.encode();
    for key in ["p/16384", "p/-1", "p/077", "p/", "p/1/2", "n/1", ""] {
        ipam.step(0, Input::Record { key, body: Some(&body) }, &mut out);
    }
    ipam.step(0, Input::Record { key: "p/1", body: Some(&[0xff; 40]) }, &mut out);
    assert!(out.is_empty());
}

#[test]
fn ipv6_prefixes_differ_by_flock_and_node() {
    let a = prefix6(b"flock", "n1");
    assert_eq!(a, prefix6(b"flock", "n1"));
    assert_ne!(a, prefix6(b"flock", "n2"));
    assert_ne!(a, prefix6(b"other", "n1"));
    assert_eq!(a.len(), 96);
    let ipam = Ipam::new("n2", b"flock");
    assert!(ipam.overlay6().contains(a.network()));
    assert_eq!(a.network().octets()[0], 0xfd);
}

#[test]
fn pod_addresses_rest_before_reuse() {
    let mut pods = PodAddresses::new(Prefix4::node(5).unwrap(), prefix6(b"f", "n"));
    let first = pods.allocate(0).unwrap();
    assert_eq!(first.ip4.to_string(), "100.64.5.2");
    assert!(pods.release(0, first));
    assert!(!pods.release(0, first), "twice");
    let all: Vec<_> = (0..PODS_MAX - 1).map(|_| pods.allocate(1).unwrap()).collect();
    assert!(all.iter().all(|a| *a != first));
    match pods.allocate(1) {
        Err(Error::AddressesExhausted { free_at_us }) => {
            assert_eq!(free_at_us, Some(REUSE_AFTER_US))
        }
        other => panic!("{other:?}"),
    }
    let again = pods.allocate(REUSE_AFTER_US).unwrap();
    assert_eq!(again.ip4, first.ip4);
    assert_ne!(again.ip6, first.ip6, "an IPv6 address is not used twice");
    assert!(matches!(pods.allocate(u64::MAX), Err(Error::AddressesExhausted { free_at_us: None })));
    assert_eq!(pods.in_use().count(), PODS_MAX);
}

#[test]
fn restored_pods_keep_their_addresses() {
    let (p4, p6) = (Prefix4::node(5).unwrap(), prefix6(b"f", "n"));
    let mut before = PodAddresses::new(p4, p6);
    let (a, b) = (before.allocate(0).unwrap(), before.allocate(0).unwrap());
    let mut after = PodAddresses::new(p4, p6);
    assert!(after.restore(a) && after.restore(b) && !after.restore(a));
    assert!(!after.restore(PodAddr { ip4: Ipv4Addr::new(10, 0, 0, 9), ..a }));
    let c = after.allocate(0).unwrap();
    assert!(c.ip4 != a.ip4 && c.ip4 != b.ip4 && c.ip6 != b.ip6);
}

/// Revision, writer, body: the order of the map.
type Versioned = (u64, String, Vec<u8>);

/// Nodes that exchange claims through a last-writer-wins map, as `gossip` keeps it.
struct Flock {
    nodes: Vec<Ipam>,
    views: Vec<BTreeMap<String, Versioned>>,
}

impl Flock {
    /// All prefixes but the first 8 are taken, so that the nodes collide.
    fn new(count: usize) -> Self {
        let filler = Claim { epoch: 9, node: "filler".into() };
        let nodes = (0..count)
            .map(|n| {
                let mut node = Ipam::new(&format!("n{n}"), b"f");
                node.claims.extend((8..PREFIX4_COUNT).map(|i| (i, filler.clone())));
                node
            })
            .collect();
        Self { nodes, views: vec![BTreeMap::new(); count] }
    }

    fn act(&mut self, at: usize, now_us: u64, input: Input<'_>) {
        let mut out = Vec::new();
        self.nodes[at].step(now_us, input, &mut out);
        for output in out {
            if let Output::Put { key, body } = output {
                let view = &mut self.views[at];
                let rev = view.get(&key).map_or(0, |r| r.0) + 1;
                view.insert(key, (rev, format!("n{at}"), body));
            }
        }
    }

    fn sync(&mut self, from: usize, to: usize, now_us: u64) -> bool {
        let mut changed = false;
        for (key, record) in self.views[from].clone() {
            let newer = self.views[to]
                .get(&key)
                .is_none_or(|have| (have.0, &have.1, &have.2) < (record.0, &record.1, &record.2));
            if newer {
                changed = true;
                self.views[to].insert(key.clone(), record.clone());
                self.act(to, now_us, Input::Record { key: &key, body: Some(&record.2) });
            }
        }
        changed
    }
}

proptest! {
    // Each case walks the whole prefix table several times.
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the order of messages and timers, the flock ends with one prefix a node, all different.
    #[test]
    fn claims_converge(
        count in 2usize..6,
        events in proptest::collection::vec((0usize..6, 0usize..7, 0u64..400_000), 0..120),
    ) {
        let mut flock = Flock::new(count);
        let mut now_us = 0;
        for (a, b, wait_us) in events {
            now_us += wait_us;
            let (a, b) = (a % count, b % (count + 2));
            if b < count {
                flock.sync(a, b, now_us);
            } else if b == count {
                flock.act(a, now_us, Input::Synced);
            } else {
                flock.act(a, now_us, Input::Timer);
            }
        }
        for node in 0..count {
            flock.act(node, now_us, Input::Synced);
        }
        for round in 0.. {
            prop_assert!(round < 100, "does not come to rest");
            let mut changed = false;
            for pair in 0..count * count {
                changed |= flock.sync(pair / count, pair % count, now_us);
            }
            now_us += SETTLE_US;
            for node in 0..count {
                flock.act(node, now_us, Input::Timer);
            }
            if !changed {
                break;
            }
        }
        let held: std::collections::BTreeSet<_> =
            flock.nodes.iter().filter_map(Ipam::prefix4).collect();
        prop_assert_eq!(held.len(), count);
    }

    #[test]
    fn any_record_body_is_survived(body in proptest::collection::vec(any::<u8>(), 0..80), key in "p/[0-9]{1,6}|.{0,8}") {
        let mut ipam = Ipam::new("n1", b"f");
        let mut out = Vec::new();
        ipam.step(0, Input::Synced, &mut out);
        ipam.step(1, Input::Record { key: &key, body: Some(&body) }, &mut out);
    }
}
