//! Health checks over TCP, without blocking.
//!
//! The shim is in the pod's network namespace, so `127.0.0.1` is the pod's. What comes back is read up to
//! [`ANSWER_BYTES_MAX`] and only its status line is looked at.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType};

/// Most bytes of an answer that are read: more than any status line.
pub const ANSWER_BYTES_MAX: usize = 512;

/// A check under way. Whoever holds it waits for [`events`](Self::events) and calls [`advance`](Self::advance).
#[derive(Debug)]
pub struct TcpCheck {
    socket: OwnedFd,
    phase: Phase,
    answer: Vec<u8>,
}

#[derive(Debug)]
enum Phase {
    /// Path to ask for, once connected; `None` when a connection is enough.
    Connecting(Option<String>),
    Answering,
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
    /// Begins to connect to the port; then asks for `path`, if given.
    ///
    /// # Errors
    /// What `socket` or `connect` said, in words: the check has failed.
    pub fn start(port: u16, path: Option<&str>) -> Result<Self, String> {
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
        let phase = Phase::Connecting(path.map(str::to_owned));
        Ok(Self { socket, phase, answer: Vec::new() })
    }

    /// What to wait for.
    #[must_use]
    pub fn events(&self) -> PollFlags {
        match self.phase {
            Phase::Connecting(_) => PollFlags::OUT,
            Phase::Answering => PollFlags::IN,
        }
    }

    /// Goes on as far as it can without waiting.
    pub fn advance(&mut self) -> Progress {
        if let Phase::Connecting(path) = &self.phase {
            match net::sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => {}
                Ok(Err(e)) | Err(e) => return Progress::Bad(format!("connect: {}", text(e))),
            }
            let Some(path) = path else { return Progress::Good };
            let ask = format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: quelea-probe\r\nConnection: close\r\n\r\n"
            );
            // An empty socket buffer takes far more than this.
            match net::send(&self.socket, ask.as_bytes(), SendFlags::NOSIGNAL) {
                Ok(n) if n == ask.len() => self.phase = Phase::Answering,
                Ok(_) | Err(Errno::AGAIN) => return Progress::Pending,
                Err(e) => return Progress::Bad(format!("send: {}", text(e))),
            }
        }
        let mut chunk = [0u8; ANSWER_BYTES_MAX];
        loop {
            match rustix::io::read(&self.socket, &mut chunk) {
                Ok(0) => return Progress::Bad("closed without an HTTP status".to_owned()),
                Ok(n) => self.answer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(Errno::AGAIN) => return Progress::Pending,
                Err(Errno::INTR) => continue,
                Err(e) => return Progress::Bad(format!("read: {}", text(e))),
            }
            if let Some(verdict) = status(&self.answer) {
                return match verdict {
                    Some(code @ 200..=399) => {
                        let _ = code;
                        Progress::Good
                    }
                    Some(code) => Progress::Bad(format!("HTTP status {code}")),
                    None => Progress::Bad("the answer is not HTTP".to_owned()),
                };
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
        let ask = || finish(TcpCheck::start(port, Some("/h")).expect("start"));
        assert_eq!(ask(), Progress::Good);
        assert_eq!(ask(), Progress::Bad("HTTP status 500".into()));
        assert_eq!(ask(), Progress::Bad("the answer is not HTTP".into()));
        t.join().expect("server");
        // The port is closed now.
        let refused = TcpCheck::start(port, None).map(finish);
        assert!(matches!(refused, Err(_) | Ok(Progress::Bad(_))), "{refused:?}");
    }
}
