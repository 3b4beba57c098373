//! A device and its address: the DHCP client's packets, the lease that is put on it and taken away.

use super::super::{
    console::say,
    dhcp::{Change, Client, Lease, Wire},
    netlink::{Message, request},
    sys,
};
use super::{LISTEN_US, LOOK_US, links::Link, via};
use rustix::{
    fd::OwnedFd,
    net::{RecvFlags, SendFlags, recv, send},
};

/// A device that has, or is to get, an IPv4 address.
pub(super) struct Nic {
    pub(super) link: Link,
    /// None for a given address.
    pub(super) client: Option<Client>,
    pub(super) socket: Option<Packets>,
    pub(super) closes_at_us: u64,
    pub(super) lease: Option<Lease>,
    /// Which one got its lease first.
    pub(super) order: u64,
}

pub(super) struct Packets(pub(super) OwnedFd);

impl Wire for Packets {
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1514];
        let (len, _) = recv(&self.0, &mut frame[..], RecvFlags::empty()).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn send(&mut self, frame: &[u8]) {
        let _ = send(&self.0, frame, SendFlags::empty());
    }
}

impl Nic {
    pub(super) fn poll(&mut self, now_us: u64) -> Option<Change> {
        let client = self.client.as_mut()?;
        let due = client.next_deadline(now_us).is_some_and(|at| at <= now_us);
        if due {
            if self.socket.is_none() {
                // A device that went away or down: tried again when the next message is due.
                self.socket = sys::packet_socket(self.link.index).ok().map(Packets);
            }
            self.closes_at_us = now_us + LISTEN_US;
        }
        let wire = self.socket.as_mut()?;
        let change = client.poll(now_us, wire);
        for note in client.take_notes() {
            say!("net: {} {note}", self.link.name);
        }
        if matches!(change, Some(Change::Granted(_))) || now_us >= self.closes_at_us {
            self.socket = None;
        }
        change
    }

    pub(super) fn next_deadline(&mut self, now_us: u64) -> Option<u64> {
        let due = self.client.as_mut()?.next_deadline(now_us).unwrap_or(u64::MAX);
        Some(if self.socket.is_some() {
            due.min(self.closes_at_us)
        } else {
            // Without a socket nothing can be sent: not a busy loop while the device is away.
            due.max(now_us + LOOK_US)
        })
    }

    /// Gives the kernel the address.
    pub(super) fn grant(&mut self, lease: Lease, order: u64) {
        let (link, old) = (&self.link, self.lease.as_ref());
        let Lease { address, prefix, .. } = lease;
        if let Some(old) = old.filter(|old| (old.address, old.prefix) != (address, prefix)) {
            let gone = Message::no_address(link.index, old.address, old.prefix);
            let _ = request("address", &link.name, gone);
        }
        let message = Message::address(link.index, address, prefix, lease.lease_s);
        if let Err(e) = request("address", &link.name, message) {
            say!("net: {e}");
        }
        if old.is_none_or(|old| old.address != address) {
            let via = via(&lease);
            say!("net: up device={} address={address}/{prefix} via={via}", link.name);
        }
        if old.is_none() {
            self.order = order;
        }
        self.lease = Some(lease);
    }

    /// Takes it back.
    pub(super) fn lose(&mut self, why: &str) {
        let Some(old) = self.lease.take() else { return };
        let link = &self.link;
        if let Some(gateway) = old.gateway {
            let gone = Message::no_default_route(link.index, gateway);
            let _ = request("default route", &link.name, gone);
        }
        let gone = Message::no_address(link.index, old.address, old.prefix);
        let _ = request("address", &link.name, gone);
        say!("net: {} {why}: address {} removed", link.name, old.address);
    }
}
