//! Lines, rotation, policies.

use super::*;

fn writer(policy: LogPolicy) -> (std::path::PathBuf, Writer) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("quelea-log-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temporary directory");
    let fd = rustix::fs::open(&dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("open");
    (dir, Writer::new(fd, "c", policy))
}

fn texts(file: &std::path::Path) -> Vec<String> {
    let bytes = std::fs::read(file).expect("log");
    let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    lines
        .map(|l| {
            let l = parse(l).expect("one of ours");
            format!(
                "{}{}{}",
                l.stream.name().get(3..4).expect("letter"),
                if l.partial { "~" } else { "|" },
                String::from_utf8_lossy(l.text)
            )
        })
        .collect()
}

#[test]
fn dates() {
    for (s, want) in [
        (0, "1970-01-01T00:00:00.000000005Z"),
        (951_782_400, "2000-02-29T00:00:00.000000005Z"),
        (1_795_192_906, "2026-11-20T16:41:46.000000005Z"),
        (4_107_542_399, "2100-02-28T23:59:59.000000005Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000005Z"),
    ] {
        let mut out = Vec::new();
        timestamp(s * 1_000_000_000 + 5, &mut out);
        assert_eq!(String::from_utf8(out).expect("ascii"), want);
    }
}

#[test]
fn pieces_become_lines_and_streams_do_not_mix() {
    let (dir, mut w) = writer(LogPolicy::default());
    w.feed(Stream::Stdout, b"a", 1);
    w.feed(Stream::Stderr, b"x\n\ny", 2);
    w.feed(Stream::Stdout, b"b\nc d\n", 3);
    w.end(4);
    assert_eq!(texts(&dir.join("c.log")), ["e|x", "e|", "o|ab", "o|c d", "e~y"]);
    std::fs::remove_dir_all(dir).expect("clean up");
}

#[test]
fn long_lines_are_cut_at_the_same_place_however_they_arrive() {
    let line = vec![b'z'; LINE_BYTES_MAX * 2 + 10];
    for chunk in [1000, LINE_BYTES_MAX, LINE_BYTES_MAX + 1, line.len()] {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for c in line.chunks(chunk) {
            lines.feed(Stream::Stdout, c, 0, &mut out);
        }
        lines.feed(Stream::Stdout, b"\n", 0, &mut out);
        let parts: Vec<_> = out
            .split(|b| *b == b'\n')
            .filter_map(parse)
            .map(|l| (l.partial, l.text.len()))
            .collect();
        assert_eq!(
            parts,
            [(true, LINE_BYTES_MAX), (true, LINE_BYTES_MAX), (false, 10)],
            "chunk {chunk}"
        );
    }
}

#[test]
fn files_rotate_between_lines_and_old_ones_go() {
    let policy = LogPolicy { file_bytes: 4096, files: 3, overflow: Overflow::Wait };
    let (dir, mut w) = writer(policy);
    for i in 0..1000 {
        w.feed(Stream::Stdout, format!("line {i}\n").as_bytes(), 0);
    }
    let mut all = Vec::new();
    for file in ["c.log.2", "c.log.1", "c.log"] {
        let path = dir.join(file);
        assert!(std::fs::metadata(&path).expect(file).len() <= 4096);
        all.extend(texts(&path));
    }
    assert!(!dir.join("c.log.3").exists());
    let first = 1000 - all.len();
    let want: Vec<String> = (first..1000).map(|i| format!("o|line {i}")).collect();
    assert_eq!(all, want);
    std::fs::remove_dir_all(dir).expect("clean up");
}

#[test]
fn a_flood_is_cut_to_its_rate_and_counted() {
    let policy =
        LogPolicy { overflow: Overflow::Drop { bytes_per_s: 100 }, ..LogPolicy::default() };
    let (dir, mut w) = writer(policy);
    let second = 1_000_000_000;
    w.feed(Stream::Stdout, &[b'a'; 300], second);
    assert_eq!(w.dropped, 200);
    w.feed(Stream::Stdout, b"bbbb\n", second + second / 2);
    let got = texts(&dir.join("c.log"));
    assert_eq!(got.len(), 3, "{got:?}");
    assert_eq!(got[0].len(), 102);
    assert_eq!(got[1], "e|[200 bytes of output dropped]");
    assert_eq!(got[2], "o|bbbb");
    std::fs::remove_dir_all(dir).expect("clean up");
}

/// Reads what there is, as line numbers.
fn follow(tail: &mut Tail, seen: &mut Vec<u32>) {
    let mut bytes = Vec::new();
    while tail.read(100, &mut bytes).expect("read") {}
    let lines = bytes.split(|b| *b == b'\n').filter_map(parse);
    seen.extend(lines.map(|l| String::from_utf8_lossy(l.text).parse::<u32>().expect("number")));
}

#[test]
fn following_loses_nothing_across_rotations() {
    let policy = LogPolicy { file_bytes: 4096, files: 4, overflow: Overflow::Wait };
    let (dir, mut w) = writer(policy);
    let mut tail = Tail::oldest(&dir, "c").expect("open");
    let mut seen = Vec::new();
    follow(&mut tail, &mut seen);
    assert_eq!(seen, []);
    for i in 0..2000u32 {
        w.feed(Stream::Stdout, format!("{i}\n").as_bytes(), 0);
        // Sometimes several rotations pass between two looks, but fewer than there are files.
        if i % 190 == 0 {
            follow(&mut tail, &mut seen);
        }
    }
    follow(&mut tail, &mut seen);
    assert!(seen.iter().copied().eq(0..2000), "{seen:?}");
    // Who was away too long reads its file to the end and goes on with the oldest that is kept: one gap.
    for i in 2000..4000u32 {
        w.feed(Stream::Stdout, format!("{i}\n").as_bytes(), 0);
    }
    let mut late = Vec::new();
    follow(&mut tail, &mut late);
    assert_eq!(late.last(), Some(&3999));
    assert_eq!(late.windows(2).filter(|p| p[0] + 1 != p[1]).count(), 1);
    std::fs::remove_dir_all(dir).expect("clean up");
}

#[test]
fn the_last_lines_may_lie_in_several_files() {
    let policy = LogPolicy { file_bytes: 4096, files: 3, overflow: Overflow::Wait };
    let (dir, mut w) = writer(policy);
    for i in 0..300u32 {
        w.feed(Stream::Stdout, format!("{i}\n").as_bytes(), 0);
    }
    for n in [0, 1, 5, 100, 150, 100_000] {
        let mut seen = Vec::new();
        follow(&mut Tail::last(&dir, "c", n).expect("open"), &mut seen);
        let first = 300 - u32::try_from(n).expect("small").min(seen.len() as u32);
        assert!(seen.iter().copied().eq(first..300), "{n}: {seen:?}");
        assert!(n > 150 || seen.len() == n, "{n}: {}", seen.len());
    }
    assert!(Tail::oldest(&dir, "../c").is_err());
    std::fs::remove_dir_all(dir).expect("clean up");
}
