//! The time by SNTP, without IO: whom to ask when, which answers to believe, and what to do to the clock.
//!
//! - An answer counts only when it echoes the 64 random bits that the question has in place of a time (so nothing
//!   about this clock leaves the machine), comes from a synchronised server, and is plausible.
//! - Before the machine runs, a clock that is off by more than [`STEP_US`] is stepped at the first answer; later only
//!   when two answers in a row agree, from two servers where there are two. Anything less is slewed by the kernel.
//! - SNTP is not authenticated: whoever owns the path can lie. What bounds a lie is [`Client::new`]'s floor (no time
//!   before the image was made), [`HORIZON_US`] after it, and the second answer.
//!
//! Source: RFC 5905 §7.3 and §14, RFC 4330 §5.

use std::net::SocketAddr;

/// An offset larger than this is stepped, a smaller one slewed; also the kernel's own limit (adjtimex(2)).
pub(super) const STEP_US: i64 = 500_000;
/// Bytes of a packet without extensions.
pub(super) const PACKET_BYTES: usize = 48;
/// Shortest and longest time between questions, as powers of two seconds.
const POLL_EXP_MIN: u32 = 6;
const POLL_EXP_MAX: u32 = 10;
/// How long an answer may take. One that takes longer says too little.
const ANSWER_US: u64 = 1_000_000;
/// How soon a second opinion is asked for.
const SUSPECT_US: u64 = 16_000_000;
/// Two opinions agree when they differ by less.
const AGREE_US: i64 = 100_000;
/// An offset below this is a clock that keeps time: asked less often.
const GOOD_US: i64 = 10_000;
/// Root distance a server may have: half its root delay and its root dispersion.
const DISTANCE_US_MAX: i64 = 1_000_000;
/// No time later than this after the image was made: 20 years.
const HORIZON_US: i64 = 20 * 366 * 86_400 * 1_000_000;
/// Seconds between 1900 and 1970.
const NTP_EPOCH_S: i64 = 2_208_988_800;

/// A question to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) server: SocketAddr,
    pub(super) packet: [u8; PACKET_BYTES],
}

/// What an answer asks for. Offsets are to be added to the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Let the kernel slew; `poll_exp` is how often it will hear.
    Slew { offset_us: i64, poll_exp: u32 },
    /// Set the clock.
    Step { offset_us: i64 },
    /// Nothing yet: so large an offset needs a second answer.
    Doubt { offset_us: i64 },
}

/// Why an answer is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody was asked, somebody else was, or it does not echo the question. The question stands.
    Unasked,
    /// Not a server's packet of version 3 or 4.
    Form,
    /// The server says it has no time itself.
    Unsynchronised,
    /// "Do not ask me again" (DENY, RSTR): it is not.
    Denied,
    /// "Less often" (RATE).
    Rate,
    /// It is too far from its own source of time.
    Distance,
    /// Its times contradict each other, or it took too long.
    Delay,
    /// A time before this image was made, or decades after.
    Implausible,
}

impl Refusal {
    /// For people.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Unasked => "not an answer to what was asked",
            Self::Form => "not a server's answer",
            Self::Unsynchronised => "it has no time itself",
            Self::Denied => "it wants no questions from here",
            Self::Rate => "asked too often",
            Self::Distance => "too far from its own source",
            Self::Delay => "late, or its times contradict each other",
            Self::Implausible => "a time before this image was made or decades after",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    server: usize,
    nonce: u64,
    wall_us: i64,
    sent_us: u64,
}

/// The client. `now_us` is monotonic, `wall_us` microseconds since 1970 by the clock that is to be set.
#[derive(Debug)]
pub(super) struct Client {
    /// With whether it wants no more questions.
    servers: Vec<(SocketAddr, bool)>,
    at: usize,
    floor_us: i64,
    poll_exp: u32,
    next_us: u64,
    asked: Option<Asked>,
    suspect_us: Option<i64>,
    misses: u32,
    synced: bool,
}

impl Client {
    /// Asks these servers, in turns when one does not answer. No time before `floor_s` (since 1970) is believed.
    pub(super) fn new(servers: &[SocketAddr], floor_s: i64, now_us: u64) -> Self {
        Self {
            servers: servers.iter().map(|at| (*at, false)).collect(),
            at: 0,
            floor_us: floor_s.clamp(0, i64::from(u32::MAX)) * 1_000_000,
            poll_exp: POLL_EXP_MIN,
            next_us: now_us,
            asked: None,
            suspect_us: None,
            misses: 0,
            synced: false,
        }
    }

    /// Whether any answer has been believed.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    /// When [`Client::timer`] is due; `None` when there is nobody to ask.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.servers.iter().any(|(_, denied)| !denied).then_some(self.next_us)
    }

    /// Gives up on an unanswered question and asks the next one. `nonce` is random.
    pub(super) fn timer(&mut self, now_us: u64, wall_us: i64, nonce: u64) -> Option<Ask> {
        if self.next_deadline().is_none_or(|at| now_us < at) {
            return None;
        }
        if self.asked.take().is_some() {
            self.miss(now_us);
            if self.next_us > now_us {
                return None;
            }
        }
        let count = self.servers.len();
        let server = (0..count).map(|n| (self.at + n) % count).find(|n| !self.servers[*n].1)?;
        self.at = server;
        self.asked = Some(Asked { server, nonce, wall_us, sent_us: now_us });
        self.next_us = now_us + ANSWER_US;
        let mut packet = [0; PACKET_BYTES];
        // Leap 0, version 4, mode 3 (client).
        packet[0] = 4 << 3 | 3;
        packet[40..].copy_from_slice(&nonce.to_be_bytes());
        Some(Ask { server: self.servers[server].0, packet })
    }

    /// Judges what came from `from`. `before_running`: nothing depends on the clock yet.
    pub(super) fn answer(
        &mut self,
        now_us: u64,
        from: SocketAddr,
        bytes: &[u8],
        before_running: bool,
    ) -> Result<Deed, Refusal> {
        let asked = self.asked.ok_or(Refusal::Unasked)?;
        let server = self.servers.get(asked.server).map(|(at, _)| *at);
        let packet = Packet::read(bytes).ok_or(Refusal::Unasked)?;
        if server != Some(from) || packet.originate != asked.nonce {
            return Err(Refusal::Unasked);
        }
        // From here on it is the server that was asked, or somebody who sees its packets.
        self.asked = None;
        match self.offset(now_us, &asked, &packet) {
            Ok(offset_us) => Ok(self.decide(now_us, offset_us, before_running)),
            Err(why) => {
                match why {
                    Refusal::Denied => self.servers[asked.server].1 = true,
                    Refusal::Rate => self.poll_exp = POLL_EXP_MAX,
                    _ => {}
                }
                self.miss(now_us);
                if why == Refusal::Rate {
                    self.next_us = now_us + self.poll_us();
                }
                Err(why)
            }
        }
    }

    fn offset(&self, now_us: u64, asked: &Asked, packet: &Packet) -> Result<i64, Refusal> {
        if packet.mode != 4 || !(3..=4).contains(&packet.version) {
            return Err(Refusal::Form);
        }
        if packet.stratum == 0 {
            return Err(match &packet.reference {
                b"DENY" | b"RSTR" => Refusal::Denied,
                b"RATE" => Refusal::Rate,
                _ => Refusal::Unsynchronised,
            });
        }
        if packet.leap == 3 || packet.stratum > 15 || packet.transmit == 0 || packet.receive == 0 {
            return Err(Refusal::Unsynchronised);
        }
        if packet.distance_us > DISTANCE_US_MAX {
            return Err(Refusal::Distance);
        }
        let received = unix_us(packet.receive, self.floor_us);
        let transmitted = unix_us(packet.transmit, self.floor_us);
        if transmitted < self.floor_us || transmitted > self.floor_us.saturating_add(HORIZON_US) {
            return Err(Refusal::Implausible);
        }
        let took = i64::try_from(now_us.saturating_sub(asked.sent_us)).unwrap_or(i64::MAX);
        let held = transmitted.saturating_sub(received);
        // Both clocks are read in steps: a millisecond of contradiction is none.
        if held < 0 || held > took.saturating_add(1000) || now_us > asked.sent_us + ANSWER_US {
            return Err(Refusal::Delay);
        }
        // ((T2 - T1) + (T3 - T4)) / 2, with T4 = T1 + what passed on the monotonic clock.
        let there = received.saturating_sub(asked.wall_us);
        let back = transmitted.saturating_sub(asked.wall_us.saturating_add(took));
        Ok(there / 2 + back / 2)
    }

    fn decide(&mut self, now_us: u64, offset_us: i64, before_running: bool) -> Deed {
        self.misses = 0;
        let small = offset_us.saturating_abs() <= STEP_US;
        let agrees =
            self.suspect_us.is_some_and(|other| other.saturating_sub(offset_us).abs() < AGREE_US);
        if !small && !agrees && (!before_running || self.synced) {
            self.suspect_us = Some(offset_us);
            self.next_us = now_us + SUSPECT_US;
            self.turn();
            return Deed::Doubt { offset_us };
        }
        self.suspect_us = None;
        self.synced = true;
        self.poll_exp = if offset_us.saturating_abs() < GOOD_US {
            (self.poll_exp + 1).min(POLL_EXP_MAX)
        } else {
            POLL_EXP_MIN
        };
        self.next_us = now_us + self.poll_us();
        if small {
            Deed::Slew { offset_us, poll_exp: self.poll_exp }
        } else {
            Deed::Step { offset_us }
        }
    }

    /// No answer, or none to believe: the next server, at once as long as there is one that was not tried.
    fn miss(&mut self, now_us: u64) {
        self.misses = self.misses.saturating_add(1);
        self.turn();
        let round = u32::try_from(self.servers.len().max(1)).unwrap_or(1);
        let pause = if !self.misses.is_multiple_of(round) {
            0
        } else {
            (1_000_000u64 << (self.misses / round).min(POLL_EXP_MIN)).min(self.poll_us())
        };
        self.next_us = now_us + pause;
    }

    fn turn(&mut self) {
        self.at = (self.at + 1) % self.servers.len().max(1);
    }

    fn poll_us(&self) -> u64 {
        1_000_000 << self.poll_exp
    }
}

struct Packet {
    leap: u8,
    version: u8,
    mode: u8,
    stratum: u8,
    distance_us: i64,
    reference: [u8; 4],
    originate: u64,
    receive: u64,
    transmit: u64,
}

impl Packet {
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; PACKET_BYTES] = bytes.get(..PACKET_BYTES)?.try_into().ok()?;
        let word = |at: usize| {
            let mut b = [0; 4];
            b.copy_from_slice(&bytes[at..at + 4]);
            u32::from_be_bytes(b)
        };
        let time = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        // 16.16 fixed point seconds.
        let short_us = |at: usize| (i64::from(word(at)) * 1_000_000) >> 16;
        Some(Self {
            leap: bytes[0] >> 6,
            version: bytes[0] >> 3 & 7,
            mode: bytes[0] & 7,
            stratum: bytes[1],
            distance_us: short_us(4) / 2 + short_us(8),
            reference: word(12).to_be_bytes(),
            originate: time(24),
            receive: time(32),
            transmit: time(40),
        })
    }
}

/// Microseconds since 1970. The 32 bits of seconds wrap in 2036: the era is the one that starts at the floor.
fn unix_us(ntp: u64, floor_us: i64) -> i64 {
    let mut seconds = i64::try_from(ntp >> 32).unwrap_or(0) - NTP_EPOCH_S;
    // A day of grace, so that a time shortly before the floor is seen as what it is.
    while seconds < floor_us / 1_000_000 - 86_400 {
        seconds += 1 << 32;
    }
    let fraction = ((ntp & 0xffff_ffff) * 1_000_000) >> 32;
    seconds * 1_000_000 + i64::try_from(fraction).unwrap_or(0)
}

#[cfg(test)]
mod tests;
