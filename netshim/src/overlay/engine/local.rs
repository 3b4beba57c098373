//! What is written to a TUN of this node: packets, joined ones, and the ICMP errors that answer them.

use std::net::IpAddr;

use rand::Rng;

use super::{Engine, Ports, carry_checksum};
use crate::counters::{Count, Counters, DropReason};
use crate::gso::{Joined, Large, open_checksum};
use crate::path::{End, icmp};
use crate::wire::{self, Inner, Meta, VnetHdr};

impl<R: Rng> Engine<R> {
    pub(super) fn single_to_local(
        &mut self,
        to: End,
        header: &VnetHdr,
        inner: &Inner,
        packet: &mut [u8],
        ports: &mut impl Ports,
    ) {
        let Some(partial) = carry_checksum(header, inner, packet) else {
            return self.counters.dropped(DropReason::BadOffload);
        };
        let header = match partial {
            true => open_checksum(inner, packet).unwrap_or_default(),
            false => VnetHdr::default(),
        };
        self.local(to, header, packet, ports);
    }

    pub(super) fn finish_joined(&mut self, buffer: &[u8], ports: &mut impl Ports) {
        if let Some(joined) = self.rebuild.finish() {
            let Joined { to, header, head, payloads, len } = joined;
            let written = ports.write(*to, header, head, payloads, buffer);
            count_written(&self.counters, written, *len);
        }
    }

    /// Writes a packet to a TUN of this node, finished in software if the TUN takes no offloads.
    pub(super) fn local(
        &mut self,
        to: End,
        header: VnetHdr,
        packet: &[u8],
        ports: &mut impl Ports,
    ) {
        if ports.offload(to) || !header.needs_checksum {
            let written = ports.write(to, &header, packet, &[], &[]);
            return count_written(&self.counters, written, packet.len());
        }
        let (start, offset) =
            (usize::from(header.checksum_start), usize::from(header.checksum_offset));
        let large = Inner::parse(packet).and_then(|inner| Large::parse(&header, &inner, packet));
        let mut flat = std::mem::take(&mut self.flat);
        for index in 0..large.map_or(1, |l| l.count()) {
            flat.clear();
            match &large {
                Some(large) => {
                    flat.resize(large.segment_len(index), 0);
                    if large.write(packet, index, &mut flat).is_none() {
                        self.counters.dropped(DropReason::BadOffload);
                        continue;
                    }
                }
                None => flat.extend_from_slice(packet),
            }
            if wire::finish_checksum(&mut flat, start, offset) {
                let written = ports.write(to, &VnetHdr::default(), &flat, &[], &[]);
                count_written(&self.counters, written, flat.len());
            } else {
                self.counters.dropped(DropReason::BadOffload);
            }
        }
        self.flat = flat;
    }

    /// Tells the sender of a packet why it was dropped, at a limited rate.
    pub(super) fn refuse(
        &mut self,
        now_us: u64,
        to: End,
        reason: icmp::Reason,
        inner: &Inner,
        packet: &[u8],
        ports: &mut impl Ports,
    ) {
        let Some(gateway) = self.path.routes.gateway(inner.source) else { return };
        let mut reply = std::mem::take(&mut self.icmp);
        self.send_error(now_us, to, reason, inner, packet, gateway, &mut reply, ports);
        self.icmp = reply;
    }

    #[expect(clippy::too_many_arguments, reason = "one call, split off for its early return")]
    fn send_error(
        &mut self,
        now_us: u64,
        to: End,
        reason: icmp::Reason,
        inner: &Inner,
        packet: &[u8],
        gateway: IpAddr,
        reply: &mut Vec<u8>,
        ports: &mut impl Ports,
    ) {
        let Some(reply) = icmp::error(reason, inner, packet, gateway, reply) else { return };
        if !self.icmp_bucket.take(now_us) {
            return self.counters.add(Count::IcmpLimited, 1);
        }
        self.counters.add(Count::IcmpSent, 1);
        match to {
            End::Peer(peer) => {
                self.seal_to(now_us, peer, Meta::WHOLE, reply.len(), ports, |out| {
                    (out.len() == reply.len()).then(|| out.copy_from_slice(reply))
                });
            }
            _ => self.local(to, VnetHdr::default(), reply, ports),
        }
    }
}

fn count_written(counters: &Counters, written: bool, len: usize) {
    if written {
        counters.add(Count::TunTxPackets, 1);
        counters.add(Count::TunTxBytes, len as u64);
    } else {
        counters.dropped(DropReason::TunFailed);
    }
}
