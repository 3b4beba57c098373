//! The frames of an exec: after the upgrade both sides send `kind, length (4 bytes, big endian), bytes`.
//!
//! | kind | from | bytes |
//! |---|---|---|
//! | 0 stdin | client | input; an empty frame is its end |
//! | 1 stdout, 2 stderr | node | output |
//! | 3 exit | node | the exit code, 4 bytes, big endian; the last frame |
//! | 4 failed | node | the exit code as shells have it, 4 bytes, big endian, and why it could not be started, UTF-8; the last frame |
//! | 5 resize | client | columns and rows of the terminal, 2 bytes each, big endian |
//!
//! A program on a terminal writes stdout only; the end of its input is what its terminal makes of a key.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The protocol's name in the `Upgrade` header.
pub const PROTOCOL: &str = "quelea-exec/1";
/// The largest frame, in bytes; a longer one ends the connection.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Input of the program.
    Stdin,
    /// Its output.
    Stdout,
    /// Its error output.
    Stderr,
    /// Its exit code.
    Exit,
    /// Why it did not start.
    Failed,
    /// The size of its terminal.
    Resize,
}

const KINDS: [Kind; 6] =
    [Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Exit, Kind::Failed, Kind::Resize];

/// What a failed frame holds.
#[must_use]
pub fn failure_bytes(code: i32, why: &str) -> Vec<u8> {
    [code.to_be_bytes().as_slice(), why.as_bytes()].concat()
}

/// The exit code and the words of a failed frame.
#[must_use]
pub fn failure(bytes: &[u8]) -> (i32, String) {
    match bytes.split_first_chunk::<4>() {
        Some((code, why)) => (i32::from_be_bytes(*code), String::from_utf8_lossy(why).into_owned()),
        None => (125, "it could not be started".to_owned()),
    }
}

/// What a resize frame holds.
#[must_use]
pub fn size_bytes(columns: u16, rows: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (columns.to_be_bytes(), rows.to_be_bytes());
    [a, b, c, d]
}

/// Columns and rows in a resize frame; none in one of another length.
#[must_use]
pub fn size(bytes: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = <[u8; 4]>::try_from(bytes).ok()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// Writes one frame; `bytes` longer than [`FRAME_BYTES_MAX`] go as several.
pub async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    bytes: &[u8],
) -> std::io::Result<()> {
    let code = KINDS.iter().position(|k| *k == kind).and_then(|at| u8::try_from(at).ok());
    let code = code.unwrap_or_default();
    let mut rest = bytes;
    loop {
        let (now, later) = rest.split_at(rest.len().min(FRAME_BYTES_MAX));
        let length = u32::try_from(now.len()).unwrap_or_default();
        to.write_u8(code).await?;
        to.write_u32(length).await?;
        to.write_all(now).await?;
        rest = later;
        if rest.is_empty() {
            return to.flush().await;
        }
    }
}

/// Reads one frame; `None` at the end of the stream.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<(Kind, Vec<u8>)>> {
    let invalid = |why| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    let code = match from.read_u8().await {
        Ok(code) => code,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = KINDS.get(usize::from(code)).ok_or_else(|| invalid("unknown kind of exec frame"))?;
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(invalid("exec frame over its bound"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(Some((*kind, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_are_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut wire = Vec::new();
            write(&mut wire, Kind::Stdout, b"hello").await.unwrap();
            write(&mut wire, Kind::Stdin, b"").await.unwrap();
            write(&mut wire, Kind::Resize, &size_bytes(80, 24)).await.unwrap();
            let mut from = wire.as_slice();
            assert_eq!(read(&mut from).await.unwrap(), Some((Kind::Stdout, b"hello".to_vec())));
            assert_eq!(read(&mut from).await.unwrap(), Some((Kind::Stdin, Vec::new())));
            let (kind, bytes) = read(&mut from).await.unwrap().unwrap();
            assert_eq!((kind, size(&bytes)), (Kind::Resize, Some((80, 24))));
            assert_eq!(size(&[1, 2, 3]), None);
            assert_eq!(failure(&failure_bytes(127, "no")), (127, "no".to_owned()));
            assert_eq!(failure(b"abc").0, 125);
            assert_eq!(read(&mut from).await.unwrap(), None);
            assert!(read(&mut [1, 0, 1, 0, 1].as_slice()).await.is_err(), "over its bound");
            assert!(read(&mut [9, 0, 0, 0, 0].as_slice()).await.is_err(), "unknown kind");
        });
    }
}
