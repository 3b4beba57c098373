use super::*;

const ME: Nid = Nid(7);

fn ring(id: u8) -> KeyRing {
    KeyRing::new(&SecretKey::new(id, [id; 32]))
}

fn bound(generation: u64) -> Binding {
    Binding::To { nid: ME, generation }
}

fn opens(ring: &KeyRing, generation: u64, frame: &[u8]) -> Option<Vec<u8>> {
    let mut scratch = Vec::new();
    ring.open(ME, generation, frame, &mut scratch).map(|o| o.plain.to_vec())
}

#[test]
fn round_trip_and_binding() {
    let ring = ring(1);
    let frame = ring.seal(bound(3), 9, 1, b"hello");
    assert_eq!(frame.len(), 5 + OVERHEAD_BYTES);
    assert_eq!(opens(&ring, 3, &frame).as_deref(), Some(&b"hello"[..]));
    assert_eq!(opens(&ring, 4, &frame), None, "another boot of the addressee");
    let other = ring.seal(Binding::To { nid: Nid(8), generation: 3 }, 9, 2, b"hello");
    assert_eq!(opens(&ring, 3, &other), None, "another addressee");
    let open = ring.seal(Binding::Open, 9, 3, b"hello");
    assert_eq!(opens(&ring, 3, &open).as_deref(), Some(&b"hello"[..]));
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let ring = ring(1);
    let frame = ring.seal(bound(3), 9, 1, b"hello");
    for len in 0..frame.len() {
        assert_eq!(opens(&ring, 3, &frame[..len]), None);
    }
    for bit in 0..frame.len() * 8 {
        let mut bad = frame.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(opens(&ring, 3, &bad), None, "bit {bit}");
    }
}

#[test]
fn rotation_keeps_both_sides_talking() {
    let next = SecretKey::new(2, [9; 32]);
    let (mut a, mut b) = (ring(1), ring(1));
    a.accept(&next).unwrap();
    b.accept(&next).unwrap();
    a.select(2).unwrap();
    let from_new = a.seal(bound(1), 1, 1, b"x");
    let from_old = b.seal(bound(1), 2, 1, b"y");
    assert!(opens(&b, 1, &from_new).is_some() && opens(&a, 1, &from_old).is_some());
    b.select(2).unwrap();
    a.remove(1).unwrap();
    assert!(opens(&a, 1, &from_old).is_none(), "the old key is gone");
    assert!(a.remove(2).is_err() && a.select(1).is_err() && a.accept(&next).is_err());
}

#[test]
fn window_admits_each_counter_once() {
    let mut window = Window::default();
    assert!(!window.admit(0));
    for counter in [1, 5, 3, 200, 199, 73] {
        assert!(window.admit(counter), "{counter}");
        assert!(!window.admit(counter), "{counter} again");
    }
    assert!(!window.admit(72), "older than the window");
    assert!(window.admit(COUNTER_MAX) && !window.admit(200));
}
