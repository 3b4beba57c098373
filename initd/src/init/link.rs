//! What PID 1 and the agent say to each other: one short text a packet, over a socketpair.
//!
//! ```text
//! agent ─▶ PID 1   alive · ready · drained · power off|reboot|halt · kexec DIR · kept · retry
//! PID 1 ─▶ agent   phase NAME [REASON] · drain MS off|reboot|halt|kexec · refused REASON
//! ```
//!
//! `SOCK_SEQPACKET`: packets stay whole and in order, and the end of either side is seen by the other. The agent finds
//! its end's number in [`ENV`]; without it no PID 1 of ours is there, and the agent goes on without. Neither side ever
//! waits for the other: what does not fit into the queue is dropped and said to be.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};

use crate::machine::Power;
use crate::machine::phase::Phase;
use crate::{Error, Result, sys};

/// The environment variable that holds the number of the agent's end.
pub const ENV: &str = "QUELEA_INIT";
/// How often the agent says `alive`.
pub const ALIVE_EVERY_MS: u64 = 1_000;
/// An agent that has been silent for longer is hung; PID 1 ends it and starts another.
pub const ALIVE_MS_MAX: u64 = 10_000;
/// Longest packet. Longer ones are refused; a longer reason is cut.
pub const PACKET_BYTES_MAX: usize = 1024;
/// Longest reason in one packet.
const REASON_BYTES_MAX: usize = 900;

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToInit {
    /// The core thread's loop turns. Every [`ALIVE_EVERY_MS`].
    Alive,
    /// The node is up: gossip runs, the API listens.
    Ready,
    /// No pod runs any more.
    Drained,
    /// End the machine so. Not [`Power::Kexec`], which needs a directory.
    Power(Power),
    /// Start the kernel in this directory (`kernel`, `initrd`, `cmdline`): absolute, UTF-8, no control characters.
    Kexec(PathBuf),
    /// The kernel that runs on trial is healthy: stay.
    Kept,
    /// An operator has put right what made the agent fall: leave Maintenance now.
    Retry,
}

/// What PID 1 says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent {
    /// The machine is in this phase. Said on every change and to every new agent.
    Phase {
        /// Which.
        phase: Phase,
        /// Why, one line; empty when all is well.
        reason: String,
    },
    /// End all pods within this time, then say [`ToInit::Drained`]. Said once a life.
    Drain {
        /// Milliseconds.
        within_ms: u32,
        /// What follows.
        power: Power,
    },
    /// The last [`ToInit::Power`] or [`ToInit::Kexec`] is not done, and nothing has changed.
    Refused {
        /// Why, one line.
        reason: String,
    },
}

const FOREIGN: &str = "a packet of PID 1's link";

fn bad(why: &'static str) -> Error {
    Error::Format { what: FOREIGN, why }
}

/// One line that fits: control characters become spaces, what is too long is cut, ends are trimmed.
fn reason_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cut = (0..=REASON_BYTES_MAX.min(line.len())).rev().find(|at| line.is_char_boundary(*at));
    line.truncate(cut.unwrap_or(0));
    line.trim().to_owned()
}

/// First word and the rest of a whole packet.
fn words(packet: &[u8]) -> Result<(&str, &str)> {
    if packet.len() > PACKET_BYTES_MAX {
        return Err(bad("longer than PACKET_BYTES_MAX"));
    }
    let text = std::str::from_utf8(packet).map_err(|_| bad("not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(bad("a control character"));
    }
    Ok(text.split_once(' ').unwrap_or((text, "")))
}

fn alone<T>(rest: &str, message: T) -> Result<T> {
    if rest.is_empty() { Ok(message) } else { Err(bad("words after a message that has none")) }
}

impl ToInit {
    /// Parses one packet.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn parse(packet: &[u8]) -> Result<Self> {
        let (word, rest) = words(packet)?;
        match word {
            "alive" => alone(rest, Self::Alive),
            "ready" => alone(rest, Self::Ready),
            "drained" => alone(rest, Self::Drained),
            "kept" => alone(rest, Self::Kept),
            "retry" => alone(rest, Self::Retry),
            "power" => match Power::by_word(rest) {
                Some(Power::Kexec) | None => Err(bad("power is off, reboot or halt")),
                Some(power) => Ok(Self::Power(power)),
            },
            "kexec" if Path::new(rest).is_absolute() => Ok(Self::Kexec(rest.into())),
            "kexec" => Err(bad("kexec needs an absolute path")),
            _ => Err(bad("an unknown word")),
        }
    }
}

impl fmt::Display for ToInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alive => f.write_str("alive"),
            Self::Ready => f.write_str("ready"),
            Self::Drained => f.write_str("drained"),
            Self::Power(power) => write!(f, "power {}", power.word()),
            Self::Kexec(dir) => write!(f, "kexec {}", dir.display()),
            Self::Kept => f.write_str("kept"),
            Self::Retry => f.write_str("retry"),
        }
    }
}

impl ToAgent {
    /// Parses one packet.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn parse(packet: &[u8]) -> Result<Self> {
        let (word, rest) = words(packet)?;
        match word {
            "phase" => {
                let (name, reason) = rest.split_once(' ').unwrap_or((rest, ""));
                let phase = Phase::by_name(name).ok_or_else(|| bad("an unknown phase"))?;
                Ok(Self::Phase { phase, reason: reason_line(reason) })
            }
            "drain" => {
                let (ms, power) = rest.split_once(' ').ok_or_else(|| bad("drain MS POWER"))?;
                let within_ms = ms.parse().map_err(|_| bad("drain needs milliseconds"))?;
                let power = Power::by_word(power).ok_or_else(|| bad("an unknown power word"))?;
                Ok(Self::Drain { within_ms, power })
            }
            "refused" => Ok(Self::Refused { reason: reason_line(rest) }),
            _ => Err(bad("an unknown word")),
        }
    }
}

impl fmt::Display for ToAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Phase { phase, reason } => match reason_line(reason).as_str() {
                "" => write!(f, "phase {}", phase.name()),
                reason => write!(f, "phase {} {reason}", phase.name()),
            },
            Self::Drain { within_ms, power } => write!(f, "drain {within_ms} {}", power.word()),
            Self::Refused { reason } => write!(f, "refused {}", reason_line(reason)),
        }
    }
}

/// Whether a packet got into the queue; a full one is no error, and the packet is gone.
fn put(fd: &OwnedFd, message: &dyn fmt::Display) -> Result<bool> {
    let text = message.to_string();
    if text.len() > PACKET_BYTES_MAX {
        return Err(bad("longer than PACKET_BYTES_MAX"));
    }
    loop {
        match send(fd, text.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(false),
            Err(e) => return Err(Error::sys("send", "PID 1's link", e)),
        }
    }
}

/// What came from the queue.
#[derive(Debug)]
enum Got<T> {
    Message(T),
    Nothing,
    TheEnd,
}

fn get<T>(fd: &OwnedFd, parse: fn(&[u8]) -> Result<T>) -> Result<Got<T>> {
    let mut packet = [0; PACKET_BYTES_MAX];
    loop {
        return match recv(fd, &mut packet[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            // No message is empty, so a length of zero is the end.
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Got::TheEnd),
            Ok((_, len)) if len > PACKET_BYTES_MAX => Err(bad("longer than PACKET_BYTES_MAX")),
            Ok((_, len)) => parse(packet.get(..len).unwrap_or_default()).map(Got::Message),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Ok(Got::Nothing),
            Err(e) => Err(Error::sys("recv", "PID 1's link", e)),
        };
    }
}

/// The agent's end. Nonblocking, close-on-exec; poll it for reading.
#[derive(Debug)]
pub struct AgentEnd(OwnedFd);

static TAKEN: AtomicBool = AtomicBool::new(false);

impl AgentEnd {
    /// The end that PID 1 has given to this process. `None`: no PID 1 of ours, or it has been taken already.
    ///
    /// # Errors
    /// [`Error::Format`] when [`ENV`] names no such socket: somebody else has set it.
    pub fn from_env() -> Result<Option<Self>> {
        let Some(value) = std::env::var_os(ENV) else { return Ok(None) };
        let number: RawFd = value
            .to_str()
            .and_then(|v| v.parse().ok())
            .filter(|n| *n > 2)
            .ok_or_else(|| bad("QUELEA_INIT is not a descriptor's number"))?;
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let no = |_| bad("QUELEA_INIT names no packet socket");
        let fd = sys::inherited_fd(number).map_err(no)?;
        if rustix::net::sockopt::socket_type(&fd).map_err(no)? != SocketType::SEQPACKET {
            // Not ours to close.
            let _ = fd.into_raw_fd();
            return Err(no(Errno::NOTSOCK));
        }
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(no)?;
        Ok(Some(Self(fd)))
    }

    /// Says it. `false`: the queue is full, the message is dropped; say it again later if it matters.
    ///
    /// # Errors
    /// [`Error::Sys`] with `EPIPE` when PID 1 has closed its end; [`Error::Format`] for a path that is too long.
    pub fn send(&self, message: &ToInit) -> Result<bool> {
        put(&self.0, message)
    }

    /// The next message, `None` when none waits.
    ///
    /// # Errors
    /// [`Error::Format`] for a message of a later version: skip it. [`Error::Sys`] with `EPIPE` at the end of the link.
    pub fn receive(&self) -> Result<Option<ToAgent>> {
        match get(&self.0, ToAgent::parse)? {
            Got::Message(message) => Ok(Some(message)),
            Got::Nothing => Ok(None),
            Got::TheEnd => Err(Error::sys("recv", "PID 1's link", Errno::PIPE)),
        }
    }
}

impl AsFd for AgentEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for AgentEnd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// PID 1's end, one for each life of the agent.
#[derive(Debug)]
pub struct InitEnd {
    fd: OwnedFd,
    /// Messages that found the queue full.
    pub dropped: u64,
}

impl InitEnd {
    /// Two ends that belong together.
    ///
    /// # Errors
    /// [`Error::Sys`]: `EMFILE`, `ENOMEM`.
    pub fn pair() -> Result<(Self, AgentEnd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(|e| Error::sys("socketpair", "PID 1's link", e))?;
        Ok((Self { fd: ours, dropped: 0 }, AgentEnd(theirs)))
    }

    /// Says it, or counts it as dropped: a stuck agent must not stop PID 1.
    pub fn send(&mut self, message: &ToAgent) {
        if !matches!(put(&self.fd, message), Ok(true)) {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    /// The next message; `None` when none waits.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes that are no message; the next one may be. [`Error::Sys`] with `EPIPE` at the end of
    /// the link: it would be readable for ever, so it must be let go.
    pub fn receive(&self) -> Result<Option<ToInit>> {
        match get(&self.fd, ToInit::parse)? {
            Got::Message(message) => Ok(Some(message)),
            Got::Nothing => Ok(None),
            Got::TheEnd => Err(Error::sys("recv", "the agent's link", Errno::PIPE)),
        }
    }
}

impl AsFd for InitEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests;
