//! TFTP, read-only, as a state machine without IO (RFC 1350, 2347, 2348, 2349). One block is under way at a time: it
//! carries iPXE only, and that once a boot.

use bytes::Bytes;
use std::time::Duration;

/// Largest block agreed to: with its headers it fits an Ethernet frame.
pub const BLOCK_BYTES_MAX: usize = 1468;
/// How often a packet is sent before the client is given up.
pub const SENDS_MAX: u32 = 6;
/// Longest file name looked at.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest packet a client sends.
pub const PACKET_BYTES_MAX: usize = 512;

/// Longest pause between two packets that is agreed to, in seconds: one session lasts some six minutes at most.
pub const TIMEOUT_S_MAX: usize = 10;

const RETRY: Duration = Duration::from_secs(1);

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Serve it: send the packet from a new port, and go on with the session.
    Serve(Session, Vec<u8>),
    /// Send this refusal.
    Refuse(Vec<u8>, String),
    /// No request; nothing is sent.
    Ignore,
}

/// What a session wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this and wait.
    Send(Vec<u8>),
    /// Go on waiting.
    Wait,
    /// The client has all of it.
    Done,
    /// It ended early, with the reason.
    Failed(String),
}

/// One file on its way to one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    name: String,
    file: Bytes,
    block_bytes: usize,
    /// The block under way; 0 while the options are.
    block: u64,
    last: Vec<u8>,
    sends: u32,
    retry: Duration,
    deadline: Duration,
}

/// Reads a client's first packet. `find` knows the files there are; nothing else can be had.
pub fn start(now: Duration, packet: &[u8], find: impl Fn(&str) -> Option<Bytes>) -> Start {
    let (opcode, rest) = match packet {
        [0, opcode @ (1 | 2), rest @ ..] => (*opcode, rest),
        _ => return Start::Ignore,
    };
    let words: Option<Vec<&str>> = rest
        .strip_suffix(&[0])
        .map(|rest| rest.split(|b| *b == 0).map(|w| std::str::from_utf8(w).ok()).collect())
        .unwrap_or_default();
    let Some([name, mode, options @ ..]) = words.as_deref() else {
        return refuse(4, "cannot be read");
    };
    if opcode == 2 {
        return refuse(2, "nothing can be written here");
    }
    if !mode.eq_ignore_ascii_case("octet") {
        return refuse(4, "only octet mode");
    }
    let clean = name.trim_start_matches('/');
    let Some(file) = find(clean).filter(|_| name.len() <= NAME_BYTES_MAX) else {
        let shown: String =
            clean.chars().filter(|c| !c.is_control()).take(NAME_BYTES_MAX).collect();
        return refuse(1, &format!("there is no {shown:?}"));
    };
    let mut session = Session {
        name: clean.to_owned(),
        block_bytes: 512,
        block: 0,
        last: Vec::new(),
        sends: 0,
        retry: RETRY,
        deadline: now,
        file,
    };
    let agreed = session.agree(options);
    if agreed.is_empty() {
        session.block = 1;
        session.last = session.data();
    } else {
        session.last = [&[0, 6][..], &agreed].concat();
    }
    let packet = session.send(now);
    Start::Serve(session, packet)
}

impl Session {
    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When [`Session::timeout`] is due.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Takes a packet from the client.
    pub fn input(&mut self, now: Duration, packet: &[u8]) -> Step {
        match packet {
            [0, 4, high, low]
                if u64::from(u16::from_be_bytes([*high, *low])) == self.block & 0xffff =>
            {
                let sent = self.block.saturating_mul(self.block_bytes as u64);
                if self.block > 0 && sent > self.file.len() as u64 {
                    return Step::Done;
                }
                self.block += 1;
                self.last = self.data();
                self.sends = 0;
                Step::Send(self.send(now))
            }
            // PXE asks for the size first and then says no (error 8, or 0).
            [0, 5, rest @ ..] => {
                let text: String = String::from_utf8_lossy(rest.get(2..).unwrap_or_default())
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(100)
                    .collect();
                Step::Failed(format!("the client ended it: {text}"))
            }
            // A late acknowledgement must not send a block twice (RFC 1123, 4.2.3.1).
            _ => Step::Wait,
        }
    }

    /// Takes the passing of time.
    pub fn timeout(&mut self, now: Duration) -> Step {
        if now < self.deadline {
            Step::Wait
        } else if self.sends >= SENDS_MAX {
            Step::Failed(format!("no answer to {SENDS_MAX} packets"))
        } else {
            Step::Send(self.send(now))
        }
    }

    fn agree(&mut self, options: &[&str]) -> Vec<u8> {
        let mut agreed = Vec::new();
        let mut say = |key: &str, value: usize| {
            agreed.extend_from_slice(key.as_bytes());
            agreed.push(0);
            agreed.extend_from_slice(value.to_string().as_bytes());
            agreed.push(0);
        };
        for pair in options.chunks_exact(2) {
            let value = pair[1].parse::<usize>();
            match (pair[0].to_ascii_lowercase().as_str(), value) {
                ("blksize", Ok(n @ 8..=65464)) => {
                    self.block_bytes = n.min(BLOCK_BYTES_MAX);
                    say("blksize", self.block_bytes);
                }
                ("tsize", Ok(_)) => say("tsize", self.file.len()),
                // A longer one is passed over (RFC 2349): a place would be taken for hours.
                ("timeout", Ok(n @ 1..=TIMEOUT_S_MAX)) => {
                    self.retry = Duration::from_secs(n as u64);
                    say("timeout", n);
                }
                _ => {}
            }
        }
        agreed
    }

    fn data(&self) -> Vec<u8> {
        let number = (self.block & 0xffff) as u16;
        let skip =
            usize::try_from(self.block - 1).unwrap_or(usize::MAX).saturating_mul(self.block_bytes);
        let rest = self.file.get(skip..).unwrap_or_default();
        let body = &rest[..rest.len().min(self.block_bytes)];
        [&[0, 3][..], &number.to_be_bytes(), body].concat()
    }

    fn send(&mut self, now: Duration) -> Vec<u8> {
        self.sends += 1;
        // Twice as long each time, up to eight times.
        self.deadline = now + self.retry * (1 << (self.sends - 1).min(3));
        self.last.clone()
    }
}

fn refuse(code: u8, what: &str) -> Start {
    let packet = [&[0, 5, 0, code][..], what.as_bytes(), &[0]].concat();
    Start::Refuse(packet, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Duration = Duration::ZERO;

    fn request(words: &[&str]) -> Vec<u8> {
        let mut packet = vec![0, 1];
        for word in words {
            packet.extend_from_slice(word.as_bytes());
            packet.push(0);
        }
        packet
    }

    fn find(name: &str) -> Option<Bytes> {
        (name == "snponly.efi").then(|| Bytes::from(vec![7; 3000]))
    }

    fn begin(words: &[&str]) -> (Session, Vec<u8>) {
        match start(ZERO, &request(words), find) {
            Start::Serve(session, packet) => (session, packet),
            other => panic!("{other:?}"),
        }
    }

    fn ack(block: u16) -> Vec<u8> {
        let [high, low] = block.to_be_bytes();
        vec![0, 4, high, low]
    }

    #[test]
    fn a_file_goes_block_by_block_and_late_acks_send_nothing() {
        let (mut session, first) = begin(&["snponly.efi", "octet"]);
        assert_eq!((&first[..4], first.len()), (&[0, 3, 0, 1][..], 516));
        let mut got = first[4..].to_vec();
        for block in 1..=5 {
            let Step::Send(packet) = session.input(ZERO, &ack(block)) else { panic!() };
            assert_eq!(session.input(ZERO, &ack(block)), Step::Wait);
            got.extend_from_slice(&packet[4..]);
        }
        assert_eq!(session.input(ZERO, &ack(6)), Step::Done);
        assert_eq!(got, vec![7; 3000]);
    }

    #[test]
    fn options_are_agreed_and_bounded() {
        let (mut session, oack) =
            begin(&["/snponly.efi", "OCTET", "tsize", "0", "blksize", "65464", "windowsize", "8"]);
        assert_eq!(oack, b"\0\x06tsize\x003000\0blksize\x001468\0");
        let Step::Send(data) = session.input(ZERO, &ack(0)) else { panic!() };
        assert_eq!(data.len(), 4 + BLOCK_BYTES_MAX);
        for [option, value] in [["blksize", "4"], ["timeout", "0"], ["timeout", "255"]] {
            let (_, data) = begin(&["snponly.efi", "octet", option, value]);
            assert_eq!(data.len(), 516, "{option} of {value} is passed over");
        }
        assert_eq!(begin(&["snponly.efi", "octet", "timeout", "5"]).1, b"\0\x06timeout\x005\0");
    }

    #[test]
    fn a_file_of_whole_blocks_ends_with_an_empty_one() {
        let whole = |_: &str| Some(Bytes::from(vec![1; 1024]));
        let Start::Serve(mut session, _) = start(ZERO, &request(&["x", "octet"]), whole) else {
            panic!()
        };
        assert!(matches!(session.input(ZERO, &ack(1)), Step::Send(p) if p.len() == 516));
        assert!(matches!(session.input(ZERO, &ack(2)), Step::Send(p) if p.len() == 4));
        assert_eq!(session.input(ZERO, &ack(3)), Step::Done);
    }

    #[test]
    fn nothing_else_can_be_had() {
        let refused = |packet: &[u8]| match start(ZERO, packet, find) {
            Start::Refuse(packet, what) => (packet[3], what),
            other => panic!("{other:?}"),
        };
        for name in
            ["../etc/shadow", "/etc/shadow", "snponly.efi/..", "", "SNPONLY.EFI", "rack.toml"]
        {
            assert_eq!(refused(&request(&[name, "octet"])).0, 1, "{name}");
        }
        assert_eq!(refused(&request(&["snponly.efi", "netascii"])).1, "only octet mode");
        let mut write = request(&["snponly.efi", "octet"]);
        write[1] = 2;
        assert_eq!(refused(&write).1, "nothing can be written here");
        assert_eq!(refused(b"\0\x01\xff\xff\0").1, "cannot be read");
        assert_eq!(start(ZERO, b"\0\x04\0\x01", find), Start::Ignore);
        assert_eq!(start(ZERO, b"", find), Start::Ignore);
    }

    #[test]
    fn a_silent_client_is_asked_again_and_then_given_up() {
        let (mut session, first) = begin(&["snponly.efi", "octet"]);
        assert_eq!(session.timeout(ZERO), Step::Wait);
        let mut now = ZERO;
        for _ in 1..SENDS_MAX {
            now = session.deadline();
            assert_eq!(session.timeout(now), Step::Send(first.clone()));
        }
        now = now.max(session.deadline());
        assert!(matches!(session.timeout(now), Step::Failed(_)));
        assert!(now < Duration::from_secs(60));
        let (mut session, _) = begin(&["snponly.efi", "octet"]);
        assert!(matches!(session.input(ZERO, b"\0\x05\0\x08stop\0"), Step::Failed(_)));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_packets_never_panic(first in proptest::collection::vec(0u8.., 0..100), then in proptest::collection::vec(proptest::collection::vec(0u8.., 0..8), 0..20)) {
            let _ = start(ZERO, &first, find);
            let _ = start(ZERO, &[&[0, 1], &first[..], &[0]].concat(), |_| Some(Bytes::new()));
            let (mut session, _) = begin(&["snponly.efi", "octet"]);
            for packet in then {
                let _ = session.input(ZERO, &packet);
            }
        }

        /// Whatever is lost or doubled, the client ends with the file.
        #[test]
        fn loss_and_doubling_change_nothing(lose in proptest::collection::vec(proptest::bool::ANY, 1..60), size in 0usize..9000, block in 8usize..1500) {
            let file = Bytes::from((0..size).map(|n| n as u8).collect::<Vec<_>>());
            let asked = block.to_string();
            let packet = request(&["f", "octet", "blksize", &asked]);
            let Start::Serve(mut session, first) = start(ZERO, &packet, |_| Some(file.clone())) else { panic!() };
            let (mut got, mut expected, mut now) = (Vec::new(), 0u16, ZERO);
            let mut inbox = vec![first];
            let mut lose = lose.into_iter();
            loop {
                let Some(packet) = inbox.pop() else {
                    now = session.deadline();
                    match session.timeout(now) {
                        Step::Send(packet) => inbox.push(packet),
                        other => panic!("{other:?}"),
                    }
                    continue;
                };
                if lose.next().unwrap_or(false) {
                    // Lost on the way; the retry comes. A run of losses may not exceed the retries.
                    if session.sends >= SENDS_MAX { return Ok(()); }
                    continue;
                }
                if packet[1] == 3 && u16::from_be_bytes([packet[2], packet[3]]) == expected {
                    got.extend_from_slice(&packet[4..]);
                }
                let answer = ack(expected);
                expected += 1;
                match session.input(now, &answer) {
                    Step::Send(packet) => inbox.push(packet),
                    Step::Done => break,
                    other => panic!("{other:?}"),
                }
                // The same acknowledgement once more.
                proptest::prop_assert_eq!(session.input(now, &answer), Step::Wait);
            }
            proptest::prop_assert_eq!(got, file);
        }
    }
}
