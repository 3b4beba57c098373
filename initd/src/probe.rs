//! Health checks over TCP, without blocking.
//!
//! The shim is in the pod's network namespace, so `127.0.0.1` is the pod's. What comes back is read up to
//! [`ANSWER_BYTES_MAX`]; of HTTP only the status line is looked at, of gRPC only the first message.

mod grpc;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType};

/// Most bytes of an answer that are read: more than any status line, and than what a gRPC server says of its health.
pub const ANSWER_BYTES_MAX: usize = 4096;
/// Read at once.
const CHUNK_BYTES: usize = 512;

/// A check under way. Whoever holds it waits for [`events`](Self::events) and calls [`advance`](Self::advance).
#[derive(Debug)]
pub struct TcpCheck {
    socket: OwnedFd,
    phase: Phase,
    answer: Vec<u8>,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// That a connection is accepted.
    Connection,
    /// `GET path`: a status of 200..=399.
    Http {
        /// Absolute path.
        path: &'a str,
    },
    /// `grpc.health.v1.Health/Check`: `SERVING`.
    Grpc {
        /// Which service; empty for the server.
        service: &'a str,
    },
}

#[derive(Debug)]
enum Phase {
    /// What to send, once connected; `None` when a connection is enough.
    Connecting(Option<(Vec<u8>, Kind)>),
    Answering(Kind),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Http,
    Grpc,
}

/// How far a check is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Wait for more events.
    Pending,
    /// Passed.
    Good,
    /// Failed, and why.
    Bad(String),
}

impl TcpCheck {
    /// Begins to connect to the port; then asks.
    ///
    /// # Errors
    /// What `socket` or `connect` said, in words: the check has failed.
    pub fn start(port: u16, ask: Ask<'_>) -> Result<Self, String> {
        let socket = net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|e| format!("socket: {}", text(e)))?;
        match net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(format!("connect to port {port}: {}", text(e))),
        }
        let phase = Phase::Connecting(match ask {
            Ask::Connection => None,
            Ask::Http { path } => {
                let ask = format!(
                    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: quelea-probe\r\nConnection: close\r\n\r\n"
                );
                Some((ask.into_bytes(), Kind::Http))
            }
            Ask::Grpc { service } => Some((grpc::request(service), Kind::Grpc)),
        });
        Ok(Self { socket, phase, answer: Vec::new() })
    }

    /// What to wait for.
    #[must_use]
    pub fn events(&self) -> PollFlags {
        match self.phase {
            Phase::Connecting(_) => PollFlags::OUT,
            Phase::Answering(_) => PollFlags::IN,
        }
    }

    /// Goes on as far as it can without waiting.
    pub fn advance(&mut self) -> Progress {
        let kind = match &self.phase {
            Phase::Answering(kind) => *kind,
            Phase::Connecting(ask) => {
                match net::sockopt::socket_error(&self.socket) {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) | Err(e) => return Progress::Bad(format!("connect: {}", text(e))),
                }
                let Some((ask, kind)) = ask else { return Progress::Good };
                let kind = *kind;
                // An empty socket buffer takes far more than this.
                match net::send(&self.socket, ask, SendFlags::NOSIGNAL) {
                    Ok(n) if n == ask.len() => self.phase = Phase::Answering(kind),
                    Ok(_) | Err(Errno::AGAIN) => return Progress::Pending,
                    Err(e) => return Progress::Bad(format!("send: {}", text(e))),
                }
                kind
            }
        };
        let mut chunk = [0u8; CHUNK_BYTES];
        loop {
            match rustix::io::read(&self.socket, &mut chunk) {
                Ok(0) => return Progress::Bad("closed without an answer".to_owned()),
                Ok(n) => self.answer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(Errno::AGAIN) => return Progress::Pending,
                Err(Errno::INTR) => continue,
                Err(e) => return Progress::Bad(format!("read: {}", text(e))),
            }
            let verdict = match kind {
                Kind::Http => http(&self.answer),
                Kind::Grpc => grpc::answer(&self.answer),
            };
            if let Some(verdict) = verdict {
                return match verdict {
                    Ok(()) => Progress::Good,
                    Err(why) => Progress::Bad(why),
                };
            }
            if self.answer.len() > ANSWER_BYTES_MAX {
                return Progress::Bad("the answer is too long".to_owned());
            }
        }
    }
}

impl AsFd for TcpCheck {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn text(e: Errno) -> std::io::Error {
    e.into()
}

/// `None`: not enough bytes yet.
fn http(answer: &[u8]) -> Option<Result<(), String>> {
    Some(match status(answer)? {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP status {code}")),
        None => Err("the answer is not HTTP".to_owned()),
    })
}

/// `None`: not enough bytes yet. `Some(None)`: no HTTP. Else the status code.
fn status(answer: &[u8]) -> Option<Option<u16>> {
    const START: &[u8] = b"HTTP/1.";
    let same = answer.len().min(START.len());
    if answer.get(..same) != START.get(..same) {
        return Some(None);
    }
    // "HTTP/1.x NNN"
    let digits = answer.get(8..12)?;
    let code = digits.strip_prefix(b" ").and_then(|d| std::str::from_utf8(d).ok());
    Some(code.filter(|d| d.bytes().all(|b| b.is_ascii_digit())).and_then(|d| d.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n"), Some(Some(200)));
        assert_eq!(status(b"HTTP/1.0 503"), Some(Some(503)));
        assert_eq!(status(b"HTTP/1.1 20"), None);
        assert_eq!(status(b""), None);
        assert_eq!(status(b"SSH-2.0-x"), Some(None));
        assert_eq!(status(b"HTTP/1.1 2x0 "), Some(None));
        assert_eq!(status(b"HTTP/1.1 +20 "), Some(None));
    }

    fn finish(mut c: TcpCheck) -> Progress {
        for _ in 0..100 {
            let mut fds = [rustix::event::PollFd::new(&c.socket, c.events())];
            let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&second)).expect("poll");
            match c.advance() {
                Progress::Pending => {}
                done => return done,
            }
        }
        panic!("never finished");
    }

    #[test]
    fn against_a_server_that_answers_and_one_that_is_not_there() {
        use std::io::{Read as _, Write as _};
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = server.local_addr().expect("address").port();
        let t = std::thread::spawn(move || {
            for answer in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 500 No\r\n\r\n", "nonsense"]
            {
                let (mut s, _) = server.accept().expect("accept");
                let mut buffer = [0u8; 256];
                let n = s.read(&mut buffer).expect("read");
                assert!(buffer[..n].starts_with(b"GET /h HTTP/1.1\r\n"));
                s.write_all(answer.as_bytes()).expect("write");
            }
        });
        let ask = || finish(TcpCheck::start(port, Ask::Http { path: "/h" }).expect("start"));
        assert_eq!(ask(), Progress::Good);
        assert_eq!(ask(), Progress::Bad("HTTP status 500".into()));
        assert_eq!(ask(), Progress::Bad("the answer is not HTTP".into()));
        t.join().expect("server");
        // The port is closed now.
        let refused = TcpCheck::start(port, Ask::Connection).map(finish);
        assert!(matches!(refused, Err(_) | Ok(Progress::Bad(_))), "{refused:?}");
    }
}
