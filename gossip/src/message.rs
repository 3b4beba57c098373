//! What is said inside a frame: `name hash, generation, (tag, length, content)*`.
//!
//! A tag that is not known is skipped by its length and bytes behind the known fields of a content are ignored, so that
//! a newer node may say more.

use std::net::SocketAddr;

use crate::map::Record;
use crate::member::{MemberInfo, Nid, State};
use crate::wire::{Reader, put_addr, put_text, put_varint};

/// Member buckets compared by a digest.
pub(crate) const MEMBER_BUCKETS: usize = 64;
/// Map buckets compared by a digest.
pub(crate) const MAP_BUCKETS: usize = 256;
/// Accusers named with a suspicion; more confirmations change nothing.
pub(crate) const ACCUSERS_MAX: usize = 3;

pub(crate) mod tag {
    pub(crate) const PING: u8 = 1;
    pub(crate) const ACK: u8 = 2;
    pub(crate) const NACK: u8 = 3;
    pub(crate) const PING_REQ: u8 = 4;
    pub(crate) const UPDATES: u8 = 5;
    pub(crate) const HELLO: u8 = 6;
    pub(crate) const HELLO_ACK: u8 = 7;
    pub(crate) const WHO_ARE_YOU: u8 = 8;
    pub(crate) const MEMBER_DIGEST: u8 = 9;
    pub(crate) const MEMBER_WANT: u8 = 10;
    pub(crate) const UNICAST: u8 = 11;
    pub(crate) const OUTDATED: u8 = 12;
    pub(crate) const BEACON: u8 = 13;
    pub(crate) const PATH_PROBE: u8 = 14;
    pub(crate) const PATH_ACK: u8 = 15;
    pub(crate) const MAP_DIGEST: u8 = 16;
    pub(crate) const MAP_LIST: u8 = 17;
    pub(crate) const MAP_PULL: u8 = 18;
    pub(crate) const MAP_RECORD: u8 = 19;
    pub(crate) const MAP_PIECE: u8 = 20;
    pub(crate) const MAP_ADVERT: u8 = 21;
    pub(crate) const HINTS: u8 = 22;
}

/// A parsed message; lists are parsed as they are walked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Message<'a> {
    /// Are you there? With the sender's summaries of its view and its map.
    Ping { seq: u32, view: u32, root: u64 },
    /// I am.
    Ack { seq: u32 },
    /// I asked for you and heard nothing yet.
    Nack { seq: u32 },
    /// Ask that one for me.
    PingReq { seq: u32, target: Nid },
    /// News about members.
    Updates(Reader<'a>),
    /// Members that the sender only remembers: listed in full, their standing the last that was known.
    Hints(Reader<'a>),
    /// Open frame: who is at this address?
    Hello(Update<'a>),
    /// I am, and have been for so many seconds.
    HelloAck(Update<'a>, u64),
    /// Your name hash means nothing to me.
    WhoAreYou,
    /// Hashes of my member buckets.
    MemberDigest([u32; MEMBER_BUCKETS]),
    /// My entries of the buckets that differ are sent; send me yours of these.
    MemberWant { buckets: u64 },
    /// Your generation is not above one that is known of your name, last seen at this address.
    Outdated { generation: u64, addr: SocketAddr },
    /// Open frame to everybody on the link: does anybody of the flock hear me?
    Beacon(Update<'a>),
    /// Fills a long frame; say that it has arrived.
    PathProbe,
    /// A frame of that length with a probe in it has arrived.
    PathAck { len: usize },
    /// For the layers above.
    Unicast(&'a [u8]),
    /// Hashes of my map buckets.
    MapDigest(&'a [u8; 4 * MAP_BUCKETS]),
    /// All I have between two key hashes.
    MapList { first: u64, last: u64, items: Reader<'a> },
    /// Send me these; the number is an offset.
    MapPull(Reader<'a>),
    /// A whole record.
    MapRecord(&'a [u8]),
    /// A piece of an encoded record.
    MapPiece { key: u64, hash: u64, total: usize, offset: usize, bytes: &'a [u8] },
    /// I have these.
    MapAdvert(Reader<'a>),
}

impl<'a> Message<'a> {
    /// Next message; `None` at the end or where the bytes make no sense.
    pub(crate) fn next(reader: &mut Reader<'a>) -> Option<Message<'a>> {
        loop {
            let tag = reader.u8()?;
            let len = reader.len(usize::MAX)?;
            let mut content = Reader::new(reader.bytes(len)?);
            if let Some(message) = Message::parse(tag, &mut content)? {
                return Some(message);
            }
        }
    }

    /// `Some(None)` is an unknown tag.
    fn parse(tag: u8, r: &mut Reader<'a>) -> Option<Option<Message<'a>>> {
        Some(Some(match tag {
            tag::PING => Message::Ping { seq: r.u32()?, view: r.u32()?, root: r.u64()? },
            tag::ACK => Message::Ack { seq: r.u32()? },
            tag::NACK => Message::Nack { seq: r.u32()? },
            tag::PING_REQ => Message::PingReq { seq: r.u32()?, target: Nid(r.u64()?) },
            tag::UPDATES => Message::Updates(*r),
            tag::HINTS => Message::Hints(*r),
            tag::HELLO => Message::Hello(Update::read(r)?),
            tag::HELLO_ACK => Message::HelloAck(Update::read(r)?, r.varint()?),
            tag::WHO_ARE_YOU => Message::WhoAreYou,
            tag::MEMBER_DIGEST => {
                let mut hashes = [0; MEMBER_BUCKETS];
                for hash in &mut hashes {
                    *hash = r.u32()?;
                }
                Message::MemberDigest(hashes)
            }
            tag::MEMBER_WANT => Message::MemberWant { buckets: r.u64()? },
            tag::OUTDATED => Message::Outdated { generation: read_generation(r)?, addr: r.addr()? },
            tag::BEACON => Message::Beacon(Update::read(r)?),
            tag::PATH_PROBE => Message::PathProbe,
            tag::PATH_ACK => Message::PathAck { len: r.len(crate::config::PACKET_MAX_BYTES)? },
            tag::UNICAST => Message::Unicast(r.rest()),
            tag::MAP_DIGEST => Message::MapDigest(r.bytes(4 * MAP_BUCKETS)?.try_into().ok()?),
            tag::MAP_LIST => Message::MapList { first: r.u64()?, last: r.u64()?, items: *r },
            tag::MAP_PULL => Message::MapPull(*r),
            tag::MAP_RECORD => Message::MapRecord(r.rest()),
            tag::MAP_PIECE => Message::MapPiece {
                key: r.u64()?,
                hash: r.u64()?,
                total: r.len(crate::map::ENCODED_MAX_BYTES)?,
                offset: r.len(crate::map::ENCODED_MAX_BYTES)?,
                bytes: r.rest(),
            },
            tag::MAP_ADVERT => Message::MapAdvert(*r),
            _ => return Some(None),
        }))
    }
}

/// What a piece of news says about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Alive,
    Suspect,
    Dead,
    Left,
    /// Dropped by an operator; wins over everything of that incarnation.
    Forgotten,
}

impl From<State> for Standing {
    fn from(state: State) -> Standing {
        match state {
            State::Alive => Standing::Alive,
            State::Suspect => Standing::Suspect,
            State::Dead => Standing::Dead,
            State::Left => Standing::Left,
        }
    }
}

impl Standing {
    /// As a state of a listed member.
    pub(crate) fn state(self) -> Option<State> {
        Some(match self {
            Standing::Alive => State::Alive,
            Standing::Suspect => State::Suspect,
            Standing::Dead => State::Dead,
            Standing::Left => State::Left,
            Standing::Forgotten => return None,
        })
    }
}

/// News about one member. Short form: the name hash only, for what the reader should know already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Update<'a> {
    pub(crate) nid: Nid,
    pub(crate) full: Option<(&'a str, SocketAddr)>,
    pub(crate) generation: u64,
    pub(crate) incarnation: u64,
    pub(crate) standing: Standing,
    pub(crate) accusers: Accusers,
}

/// Up to [`ACCUSERS_MAX`] different members whose probes failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Accusers {
    nids: [Option<Nid>; ACCUSERS_MAX],
}

impl Accusers {
    pub(crate) fn one(nid: Nid) -> Accusers {
        let mut accusers = Accusers::default();
        accusers.add(nid);
        accusers
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Nid> {
        self.nids.into_iter().flatten()
    }

    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether it is new and there was room.
    pub(crate) fn add(&mut self, nid: Nid) -> bool {
        if self.iter().any(|n| n == nid) {
            return false;
        }
        match self.nids.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some(nid);
                true
            }
            None => false,
        }
    }
}

const FULL: u8 = 8;
/// Room to step above any of them must remain.
pub(crate) const GENERATION_MAX: u64 = 1 << 62;

/// A generation or an incarnation.
pub(crate) fn read_generation(r: &mut Reader<'_>) -> Option<u64> {
    r.varint().filter(|n| *n < GENERATION_MAX)
}

impl<'a> Update<'a> {
    pub(crate) fn of(info: &'a MemberInfo) -> Update<'a> {
        Update {
            nid: Nid::of(&info.name),
            full: Some((&info.name, info.addr)),
            generation: info.generation,
            incarnation: info.incarnation,
            standing: info.state.into(),
            accusers: Accusers::default(),
        }
    }

    pub(crate) fn read(r: &mut Reader<'a>) -> Option<Update<'a>> {
        Update::read_with(r, Nid::of)
    }

    /// The same with another way to the id of a name, for a reader that knows most of them.
    pub(crate) fn read_with(
        r: &mut Reader<'a>,
        nid_of: impl FnOnce(&str) -> Nid,
    ) -> Option<Update<'a>> {
        let flags = r.u8()?;
        let standing = match flags & 7 {
            0 => Standing::Alive,
            1 => Standing::Suspect,
            2 => Standing::Dead,
            3 => Standing::Left,
            4 => Standing::Forgotten,
            _ => return None,
        };
        let (nid, full) = if flags & FULL != 0 {
            let name = r.text()?;
            crate::member::check_name(name).ok()?;
            (nid_of(name), Some((name, r.addr()?)))
        } else {
            (Nid(r.u64()?), None)
        };
        let (generation, incarnation) = (read_generation(r)?, read_generation(r)?);
        let mut accusers = Accusers::default();
        for _ in 0..usize::from(flags >> 4).min(ACCUSERS_MAX) {
            accusers.add(Nid(r.u64()?));
        }
        Some(Update { nid, full, generation, incarnation, standing, accusers })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let standing = match self.standing {
            Standing::Alive => 0,
            Standing::Suspect => 1,
            Standing::Dead => 2,
            Standing::Left => 3,
            Standing::Forgotten => 4,
        };
        let full = if self.full.is_some() { FULL } else { 0 };
        out.push(standing | full | (self.accusers.len() as u8) << 4);
        match self.full {
            Some((name, addr)) => {
                put_text(out, name);
                put_addr(out, addr);
            }
            None => out.extend_from_slice(&self.nid.0.to_le_bytes()),
        }
        put_varint(out, self.generation);
        put_varint(out, self.incarnation);
        for nid in self.accusers.iter() {
            out.extend_from_slice(&nid.0.to_le_bytes());
        }
    }
}

/// A version in a listing, an advert or a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    /// Hash of the key.
    pub(crate) key: u64,
    /// Counter (in a pull: the offset wanted).
    pub(crate) number: u64,
    /// Hash of the record.
    pub(crate) hash: u64,
}

/// Longest [`Item`].
pub(crate) const ITEM_MAX_BYTES: usize = 26;

impl Item {
    pub(crate) fn read(r: &mut Reader<'_>) -> Option<Item> {
        Some(Item { key: r.u64()?, number: r.varint()?, hash: r.u64()? })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.to_le_bytes());
        put_varint(out, self.number);
        out.extend_from_slice(&self.hash.to_le_bytes());
    }
}

/// Encodes a record: for the wire and the log.
pub(crate) fn put_record(out: &mut Vec<u8>, record: &Record) {
    put_text(out, &record.key);
    put_text(out, &record.writer);
    put_varint(out, record.rev);
    put_varint(out, record.at_ms);
    out.extend_from_slice(&record.prev.to_le_bytes());
    match &record.body {
        None => out.push(0),
        Some(body) => {
            out.push(1);
            put_varint(out, body.len() as u64);
            out.extend_from_slice(body);
        }
    }
}

/// A record as it stands in the bytes it came in: checked, but its hash is not computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordView<'a> {
    pub(crate) key: &'a str,
    pub(crate) writer: &'a str,
    pub(crate) rev: u64,
    pub(crate) at_ms: u64,
    pub(crate) prev: u64,
    pub(crate) body: Option<&'a [u8]>,
}

impl<'a> RecordView<'a> {
    pub(crate) fn read(r: &mut Reader<'a>) -> Option<RecordView<'a>> {
        let (key, writer) = (r.text()?, r.text()?);
        crate::map::check_key(key).ok()?;
        crate::member::check_name(writer).ok()?;
        let (rev, at_ms, prev) = (r.varint()?, r.varint()?, r.u64()?);
        let body = match r.u8()? {
            0 => None,
            1 => {
                let len = r.len(crate::config::BODY_MAX_BYTES)?;
                Some(r.bytes(len)?)
            }
            _ => return None,
        };
        (rev > 0).then_some(RecordView { key, writer, rev, at_ms, prev, body })
    }

    pub(crate) fn to_record(self) -> Record {
        let body = self.body.map(Into::into);
        Record::new(self.key, self.rev, self.at_ms, self.writer.into(), self.prev, body)
    }
}

/// Decodes and checks a record.
pub(crate) fn read_record(r: &mut Reader<'_>) -> Option<Record> {
    RecordView::read(r).map(RecordView::to_record)
}

#[cfg(test)]
mod tests;
