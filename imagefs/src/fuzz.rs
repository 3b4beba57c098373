//! What a fuzzer calls: plain functions over bytes, one per boundary. They panic if an invariant breaks.
//!
//! `fuzz/` has a target for each; `tests/corpus.rs` replays what the fuzzer has found worth keeping.

use std::io::{BufReader, Read};

use crate::decompress::Decoder;
use crate::oci::{Config, Document, media};
use crate::record::{ImageRecord, reference};
use crate::tarfmt::{Member, Parser, TarError};
use crate::tree::Builder;

/// Bytes taken from one decompression; a bomb makes more.
const OUT_MAX: u64 = 1 << 20;

fn members(tar: &[u8], chunk: usize) -> Result<Vec<Member>, TarError> {
    let (mut found, mut parser) = (Vec::new(), Parser::new());
    for piece in tar.chunks(chunk.max(1)) {
        parser.feed(piece, &mut |member| {
            found.push(member);
            Ok(())
        })?;
    }
    parser.finish()?;
    Ok(found)
}

/// Any bytes as a layer: the same members however it is cut; they make a tree and an index of whole blocks, or a fault
/// that has a place. Once as they are, and once with the checksums of all header blocks put right.
pub fn layer(bytes: &[u8]) {
    checked(bytes);
    let mut tar = bytes.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|b| b.iter().any(|byte| *byte != 0)) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    checked(&tar);
}

fn checked(tar: &[u8]) {
    let whole = members(tar, tar.len());
    // An error's offset is that of the step it came in, which the cut decides.
    let found = |result: &Result<Vec<Member>, TarError>| match result {
        Ok(found) => Ok(found.clone()),
        Err(error) => Err((error.fault, error.path.clone())),
    };
    for chunk in [1, 511, 512, 700] {
        assert_eq!(found(&members(tar, chunk)), found(&whole), "in pieces of {chunk}");
    }
    let found = match whole {
        Ok(found) => found,
        Err(error) => return assert!(error.offset <= tar.len() as u64, "behind the end"),
    };
    let mut builder = Builder::new();
    for member in found {
        if builder.add(member).is_err() {
            return;
        }
    }
    let Ok(tree) = builder.finish() else { return };
    if let Some(index) = crate::erofs::write(&tree, tar.len() as u64) {
        assert!(index.len() >= 1536 && index.len() % 512 == 0);
        assert_eq!(crate::erofs::write(&tree, tar.len() as u64), Some(index), "twice the same");
    }
}

/// Any bytes as a compressed layer: an end, or an error, and the members of what came out.
pub fn compressed(bytes: &[u8]) {
    let Ok(decoder) = Decoder::new(BufReader::new(bytes)) else { return };
    let mut out = Vec::new();
    let _ = decoder.take(OUT_MAX).read_to_end(&mut out);
    assert!(out.len() as u64 <= OUT_MAX);
    let _ = members(&out, 4096);
}

/// Any bytes as a manifest, an index, a config, a record of the map or a reference.
pub fn document(bytes: &[u8]) {
    for kind in ["", media::INDEX, media::MANIFEST, media::DOCKER_INDEX, media::DOCKER_MANIFEST] {
        match Document::parse(bytes, kind) {
            Ok(Document::Manifest(m)) => {
                let written = serde_json::to_vec(&m).expect("plain data");
                let again = Document::parse(&written, media::MANIFEST);
                assert!(again.is_err() || again.ok() == Some(Document::Manifest(m)));
            }
            Ok(Document::Index(_)) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    if let Ok(config) = Config::parse(bytes) {
        let written = serde_json::to_vec(&config).expect("plain data");
        assert_eq!(Config::parse(&written).ok(), Some(config));
    }
    if let Ok(record) = ImageRecord::decode(bytes) {
        assert_eq!(ImageRecord::decode(&record.encode()).ok(), Some(record.clone()));
        let _ = (record.blobs(), record.size_bytes());
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(whole) = reference(text)
    {
        assert_eq!(reference(&whole).ok().as_deref(), Some(whole.as_str()), "complete is complete");
    }
}
