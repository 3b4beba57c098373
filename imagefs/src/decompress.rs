//! gzip, zstd or plain, told apart by the first bytes: media types are wrong often enough (Docker's `tar.gzip` on plain
//! tars), and the digests decide anyway.

use std::io::{self, BufRead, Read, Result};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// 16 magic numbers of skippable frames, which zstd:chunked layers carry; RFC 8878 section 3.1.2.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// Decompresses to the very end of `inner`; anything that is no part of the format there is an error.
pub(crate) enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Zstd<R>),
}

impl<R: BufRead> Decoder<R> {
    pub(crate) fn new(mut inner: R) -> Result<Decoder<R>> {
        let head = peek(&mut inner)?;
        let skippable = head.get(1..4) == Some(&ZSTD_SKIPPABLE) && head[0] & 0xf0 == 0x50;
        Ok(if head.starts_with(&GZIP) {
            Decoder::Gzip(Box::new(MultiGzDecoder::new(inner)))
        } else if head.starts_with(&ZSTD) || skippable {
            Decoder::Zstd(Zstd::Between(inner))
        } else {
            Decoder::Plain(inner)
        })
    }
}

impl<R: BufRead> Decoder<R> {
    /// The reader underneath, where the decoder in use shows it.
    pub(crate) fn get_ref(&self) -> Option<&R> {
        match self {
            Decoder::Plain(r) => Some(r),
            Decoder::Gzip(r) => Some(r.get_ref()),
            Decoder::Zstd(Zstd::Between(r)) => Some(r),
            Decoder::Zstd(Zstd::Frame(r)) => Some(r.get_ref()),
            Decoder::Zstd(Zstd::Ended) => None,
        }
    }
}

/// What the buffer holds, at least one byte unless at the end. Readers here buffer far more than a magic number.
fn peek<R: BufRead>(r: &mut R) -> Result<&[u8]> {
    loop {
        match r.fill_buf() {
            Ok(_) => return r.fill_buf(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        match self {
            Decoder::Plain(r) => r.read(out),
            Decoder::Gzip(r) => r.read(out),
            Decoder::Zstd(r) => r.read(out),
        }
    }
}

/// Any number of frames, skippable ones passed over.
pub(crate) enum Zstd<R: BufRead> {
    Between(R),
    Frame(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    Ended,
}

impl<R: BufRead> Zstd<R> {
    /// Starts the next frame; false at the end.
    fn next_frame(mut inner: R) -> Result<Zstd<R>> {
        loop {
            if peek(&mut inner)?.is_empty() {
                return Ok(Zstd::Ended);
            }
            let head = inner.fill_buf()?;
            let skippable = head.get(1..4) == Some(&ZSTD_SKIPPABLE)
                && head.first().is_some_and(|b| b & 0xf0 == 0x50);
            if !skippable {
                let frame = StreamingDecoder::new(inner).map_err(invalid)?;
                return Ok(Zstd::Frame(Box::new(frame)));
            }
            let mut header = [0; 8];
            inner.read_exact(&mut header)?;
            let [_, _, _, _, a, b, c, d] = header;
            let length = u64::from(u32::from_le_bytes([a, b, c, d]));
            let skipped = io::copy(&mut (&mut inner).take(length), &mut io::sink())?;
            if skipped != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        loop {
            match std::mem::replace(self, Zstd::Ended) {
                Zstd::Ended => return Ok(0),
                Zstd::Between(inner) => *self = Zstd::next_frame(inner)?,
                Zstd::Frame(mut frame) => {
                    let n = frame.read(out)?;
                    // The frame's own checksum is not looked at: the whole is compared with its digest.
                    *self = if n == 0 && !out.is_empty() {
                        Zstd::Between(frame.into_inner())
                    } else {
                        Zstd::Frame(frame)
                    };
                    if n > 0 || out.is_empty() {
                        return Ok(n);
                    }
                }
            }
        }
    }
}

fn invalid(e: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}
