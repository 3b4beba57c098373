//! The only IO: a UDP socket and the log.

use std::net::SocketAddr;
use std::path::PathBuf;

use mio::{Registry, Token};

use crate::api::{Event, Input};
use crate::config::Config;
use crate::core::Gossip;
use crate::error::Error;

/// What a driver is told.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// The node's name.
    pub name: String,
    /// Local UDP address; port 0 picks one.
    pub bind: SocketAddr,
    /// Where peers reach this node; `None`: the bound address (which then must not be a wildcard).
    pub advertise: Option<SocketAddr>,
    /// Directory of the log; `None`: diskless.
    pub dir: Option<PathBuf>,
    /// The core's configuration.
    pub gossip: Config,
}

/// Gossip on a socket. The caller owns the [`mio::Poll`] and the clock (`now_us`, monotonic).
#[derive(Debug)]
pub struct Driver {
    gossip: Gossip,
}

impl Driver {
    /// Reads the log, persists the next generation, binds the socket. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::File`], [`Error::Corrupt`], [`Error::Socket`], [`Error::Random`].
    pub fn open(cfg: DriverConfig, now_us: u64) -> Result<Driver, Error> {
        let _ = (cfg, now_us);
        Err(Error::Random)
    }

    /// Registers the socket for reading.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn register(&mut self, registry: &Registry, token: Token) -> Result<(), Error> {
        let _ = (registry, token);
        Ok(())
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        unreachable!()
    }

    /// The socket is readable: takes everything in. News are appended to `events`.
    ///
    /// # Errors
    /// [`Error::File`]: the log broke (gossip itself goes on). Socket errors of single datagrams are counted, not returned.
    pub fn readable(&mut self, now_us: u64, events: &mut Vec<Event>) -> Result<(), Error> {
        let _ = (now_us, events);
        Ok(())
    }

    /// Does what is due at `now_us`; harmless when nothing is.
    ///
    /// # Errors
    /// As [`Driver::readable`].
    pub fn timer(&mut self, now_us: u64, events: &mut Vec<Event>) -> Result<(), Error> {
        let _ = (now_us, events);
        Ok(())
    }

    /// Passes an input (put, unicast, leave..) to the core.
    ///
    /// # Errors
    /// As [`Driver::readable`]; refusals of the core are [`Event::Refused`].
    pub fn input(
        &mut self,
        now_us: u64,
        input: Input<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        let _ = (now_us, input, events);
        Ok(())
    }

    /// When [`Driver::timer`] is due next, in the caller's clock.
    pub fn next_deadline(&self) -> Option<u64> {
        self.gossip.next_deadline()
    }

    /// Members and map.
    pub fn gossip(&self) -> &Gossip {
        &self.gossip
    }
}
