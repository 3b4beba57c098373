//! `grpc.health.v1.Health/Check` without a library: one request over HTTP/2 without TLS, written whole, and of the answer
//! only its first message.
//!
//! What is sent at once: the preface, empty SETTINGS, HEADERS (RFC 7541 literals without indexing and without Huffman
//! codes), one DATA frame. The server's header blocks need not be read: a server that is well answers with a DATA frame,
//! one that is not (or does not know the service) answers with headers alone. Frames: RFC 9113, section 4.1.

/// RFC 9113, 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const FRAME_HEAD_BYTES: usize = 9;
/// `HealthCheckResponse.ServingStatus`.
const SERVING: u64 = 1;
/// Longer names have a two-byte length in the message, which the longest that is allowed needs.
const SERVICE_BYTES_MAX: usize = 256;

/// Everything that the client says.
pub(super) fn request(service: &str) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    frame(&mut out, SETTINGS, 0, 0, &[]);
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "quelea-probe"),
    ] {
        // Literal header field without indexing, new name (RFC 7541, 6.2.2); lengths below 127 are one byte.
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(&mut out, HEADERS, END_HEADERS, 1, &block);
    let mut message = Vec::new();
    let service = service.get(..service.len().min(SERVICE_BYTES_MAX)).unwrap_or_default();
    if !service.is_empty() {
        // Field 1, length-delimited.
        message.push(0x0a);
        varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend_from_slice(&(message.len() as u32).to_be_bytes());
    body.extend_from_slice(&message);
    frame(&mut out, DATA, END_STREAM, 1, &body);
    out
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(length.get(1..).unwrap_or_default());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// What the server said so far. `None`: not enough yet.
pub(super) fn answer(bytes: &[u8]) -> Option<Result<(), String>> {
    let mut rest = bytes;
    let mut first = true;
    let mut body: Vec<u8> = Vec::new();
    loop {
        let head: &[u8; FRAME_HEAD_BYTES] = match rest.first_chunk() {
            Some(head) => head,
            // HTTP/1 says something that is no SETTINGS frame.
            None if first && rest.starts_with(b"HTTP") => {
                return Some(Err("not HTTP/2".to_owned()));
            }
            None => return None,
        };
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *head;
        if first && kind != SETTINGS {
            return Some(Err("not HTTP/2".to_owned()));
        }
        first = false;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        let payload = rest.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES.checked_add(length)?)?;
        rest = rest.get(FRAME_HEAD_BYTES + length..).unwrap_or_default();
        let end = flags & END_STREAM != 0;
        match (kind, stream) {
            (DATA, 1) => {
                body.extend_from_slice(unpadded(payload, flags));
                match status(&body) {
                    Some(SERVING) => return Some(Ok(())),
                    Some(other) => return Some(Err(format!("gRPC health status {other}"))),
                    None if end => return Some(Err("a gRPC answer without a status".to_owned())),
                    None => {}
                }
            }
            (HEADERS, 1) if end => return Some(Err("gRPC error: no such service".to_owned())),
            (RST_STREAM, 1) | (GOAWAY, _) => {
                return Some(Err("gRPC: the server refused the call".to_owned()));
            }
            _ => {}
        }
    }
}

/// Without padding (RFC 9113, 6.1).
fn unpadded(payload: &[u8], flags: u8) -> &[u8] {
    if flags & PADDED == 0 {
        return payload;
    }
    match payload.split_first() {
        Some((pad, data)) => {
            data.get(..data.len().saturating_sub(usize::from(*pad))).unwrap_or_default()
        }
        None => &[],
    }
}

/// The status in a `HealthCheckResponse` behind gRPC's five bytes; `None`: not all of it is there. A message without the
/// field has its default, UNKNOWN.
fn status(body: &[u8]) -> Option<u64> {
    let (&[compressed, a, b, c, d], message) = body.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    let message = message.get(..length)?;
    if compressed != 0 {
        return Some(u64::MAX);
    }
    // Field 1, a varint; other fields are of a later version.
    match message {
        [0x08, value, ..] if *value < 0x80 => Some(u64::from(*value)),
        [] => Some(0),
        _ => Some(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(frames: &[(u8, u8, u32, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, flags, stream, payload) in frames {
            frame(&mut out, *kind, *flags, *stream, payload);
        }
        out
    }

    const SETTINGS_FRAME: (u8, u8, u32, &[u8]) = (SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
    const HEAD: (u8, u8, u32, &[u8]) = (HEADERS, END_HEADERS, 1, &[0x88]);

    #[test]
    fn what_servers_say() {
        let data = |message: &'static [u8]| (DATA, 0u8, 1u32, message);
        let says = |frames: &[(u8, u8, u32, &[u8])]| answer(&reply(frames));
        assert_eq!(says(&[SETTINGS_FRAME, HEAD, data(&[0, 0, 0, 0, 2, 8, 1])]), Some(Ok(())));
        let no = |frames: &[(u8, u8, u32, &[u8])]| matches!(says(frames), Some(Err(_)));
        assert!(no(&[SETTINGS_FRAME, HEAD, data(&[0, 0, 0, 0, 2, 8, 2])]));
        assert!(no(&[SETTINGS_FRAME, HEAD, data(&[0, 0, 0, 0, 0])]));
        assert!(no(&[SETTINGS_FRAME, HEAD, data(&[1, 0, 0, 0, 2, 8, 1])]));
        assert!(no(&[SETTINGS_FRAME, (HEADERS, END_HEADERS | END_STREAM, 1, &[0x88])]));
        assert!(no(&[SETTINGS_FRAME, (GOAWAY, 0, 0, &[0; 8])]));
        assert!(no(&[HEAD]));
        assert_eq!(answer(b"HTTP/1.1"), Some(Err("not HTTP/2".into())));
        // In pieces, padded, and split over two frames.
        let padded = (DATA, PADDED, 1, [2, 0, 0, 0, 0, 2, 8, 1, 0, 0].as_slice());
        let whole = reply(&[SETTINGS_FRAME, HEAD, padded]);
        for cut in 0..whole.len() {
            assert_eq!(answer(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(answer(&whole), Some(Ok(())));
        assert_eq!(
            says(&[SETTINGS_FRAME, HEAD, data(&[0, 0, 0]), data(&[0, 2, 8, 1])]),
            Some(Ok(()))
        );
    }

    #[test]
    fn a_request_is_a_preface_and_three_frames() {
        let bytes = request("my.Service");
        let mut rest = bytes.strip_prefix(PREFACE).expect("preface");
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let length = usize::from(rest[1]) << 8 | usize::from(rest[2]);
            kinds.push((rest[3], rest[4]));
            rest = &rest[FRAME_HEAD_BYTES + length..];
        }
        assert_eq!(kinds, [(SETTINGS, 0), (HEADERS, END_HEADERS), (DATA, END_STREAM)]);
        assert!(bytes.ends_with(b"\x00\x00\x00\x00\x0c\x0a\x0amy.Service"));
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes(bytes: Vec<u8>) {
            let _ = answer(&bytes);
            let mut later = reply(&[SETTINGS_FRAME]);
            later.extend(bytes);
            let _ = answer(&later);
        }
    }
}
