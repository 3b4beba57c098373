//! Tagged fields over postcard: `tag varint, length varint, postcard bytes`, repeated.
//!
//! A reader skips tags it does not know and gives missing ones their default, so that two builds can
//! share a map during a rolling upgrade. Tags are never reused; a field never changes its type.

use serde::{Serialize, de::DeserializeOwned};

use crate::Error;

/// Fields in one body.
pub(crate) const FIELDS_MAX: usize = 64;

/// Appends fields to a body.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// Adds one field.
    pub(crate) fn put<T: Serialize + ?Sized>(&mut self, tag: u16, value: &T) {
        // Serialising plain owned data into a Vec has no failing case: no IO, no unsized sequences.
        let bytes = postcard::to_allocvec(value).expect("plain data into a Vec cannot fail");
        varint(&mut self.0, u64::from(tag));
        varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(&bytes);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// The fields of one body, borrowed.
pub(crate) struct Fields<'a> {
    what: &'static str,
    fields: Vec<(u16, &'a [u8])>,
}

impl<'a> Fields<'a> {
    pub(crate) fn parse(
        what: &'static str,
        mut bytes: &'a [u8],
        max: usize,
    ) -> Result<Self, Error> {
        if bytes.len() > max {
            return Err(Error::TooLarge { what, size: bytes.len(), max });
        }
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = take_varint(&mut bytes).ok_or(Error::Truncated { what })?;
            let len = take_varint(&mut bytes).ok_or(Error::Truncated { what })?;
            let len = usize::try_from(len).map_err(|_| Error::Truncated { what })?;
            let (value, rest) = bytes.split_at_checked(len).ok_or(Error::Truncated { what })?;
            bytes = rest;
            if fields.len() == FIELDS_MAX {
                return Err(Error::TooLarge { what, size: FIELDS_MAX + 1, max: FIELDS_MAX });
            }
            // A tag beyond u16 is from a build we cannot know: skipped like any other unknown one.
            if let Ok(tag) = u16::try_from(tag) {
                fields.push((tag, value));
            }
        }
        Ok(Self { what, fields })
    }

    /// The field's value; `T::default()` when it is missing. The last of equal tags wins.
    pub(crate) fn get<T: DeserializeOwned + Default>(&self, tag: u16) -> Result<T, Error> {
        match self.fields.iter().rev().find(|(t, _)| *t == tag) {
            None => Ok(T::default()),
            Some((_, bytes)) => {
                postcard::from_bytes(bytes).map_err(|_| Error::Field { what: self.what, tag })
            }
        }
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Defines a record: a struct whose fields carry tags, with `encode` and `decode`.
macro_rules! tagged {
    ($(#[$meta:meta])* pub struct $name:ident($what:literal, max $max:expr) {
        $($(#[$fmeta:meta])* $tag:literal => $field:ident: $ty:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        impl $name {
            /// The map body. Tags are permanent: see the source beside each field.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                let mut w = $crate::tags::Writer::default();
                $( if self.$field != <$ty>::default() { w.put($tag, &self.$field); } )*
                w.finish()
            }

            /// Decodes a body written by this or any other build.
            ///
            /// # Errors
            /// Truncated or oversized bodies and fields of the wrong type; unknown fields are skipped.
            pub fn decode(bytes: &[u8]) -> Result<Self, $crate::Error> {
                let f = $crate::tags::Fields::parse($what, bytes, $max)?;
                Ok(Self { $($field: f.get($tag)?,)* })
            }
        }
    };
}
pub(crate) use tagged;
