//! The web server's shell: hyper connections in, byte strings out.

use super::{
    Shared,
    core::Answer,
    dhcp::Mac,
    http::{Ask, Range, range},
};
use crate::{Uki, node_archive};
use bytes::Bytes;
use hyper::{
    Method, Response, StatusCode,
    body::{Body, Frame, SizeHint},
    header,
};
use std::{
    collections::VecDeque,
    convert::Infallible,
    net::Ipv4Addr,
    pin::Pin,
    task::{Context, Poll},
};

/// A body of byte strings that others share.
#[derive(Debug, Default)]
pub(super) struct Parts(VecDeque<Bytes>);

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}

/// The bytes from `from` to before `to` of a file in parts.
fn cut(parts: &[Bytes], from: u64, to: u64) -> VecDeque<Bytes> {
    let mut out = VecDeque::new();
    let mut at = 0u64;
    for part in parts {
        let end = at + part.len() as u64;
        let (a, b) = (from.clamp(at, end) - at, to.clamp(at, end) - at);
        if a < b {
            // Both lie within the part.
            out.push_back(part.slice(a as usize..b as usize));
        }
        at = end;
    }
    out
}

/// Answers one request.
pub(super) fn answer<B>(
    shared: &Shared,
    peer: Ipv4Addr,
    mac: Option<Mac>,
    request: &hyper::Request<B>,
) -> Response<Parts> {
    let head = request.method() == Method::HEAD;
    if !head && request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into(), head);
    }
    let wanted = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let resumes = matches!(range(wanted, u64::MAX), Range::Part(from, _) if from > 0);
    let ask = Ask { path: request.uri().path().to_owned(), head, resumes };
    let (kind, parts) = match shared.http(peer, mac, &ask) {
        Answer::Refuse(status, why) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
            return text(status, why + "\n", head);
        }
        Answer::Text(body) => return text(StatusCode::OK, body, head),
        Answer::File(name) => match shared.file(name) {
            Ok(parts) => (kind_of(name), parts),
            Err(why) => return text(StatusCode::INTERNAL_SERVER_ERROR, why + "\n", head),
        },
        Answer::Node(given) => match node(shared, &given) {
            Ok(parts) => (kind_of(if given.uki { "uki.efi" } else { "node.cpio" }), parts),
            Err(why) => {
                shared.trouble(given.mac, &given.machine.name, &why);
                return text(StatusCode::INTERNAL_SERVER_ERROR, why + "\n", head);
            }
        },
    };
    file(kind, &parts, wanted, head)
}

/// A machine's own archive, or the image with it inside.
fn node(shared: &Shared, given: &super::core::Given) -> Result<Vec<Bytes>, String> {
    let mut files = vec![
        ("node.toml".to_owned(), given.node_toml.clone().into_bytes()),
        ("hostname".to_owned(), format!("{}\n", given.machine.name).into_bytes()),
    ];
    if given.credentials {
        files.extend(shared.keys(given.mac, &given.machine.name)?);
    }
    let archive = node_archive(&files).map_err(|error| error.to_string())?;
    let archive = Bytes::from(archive.to_bytes());
    if !given.uki {
        return Ok(vec![archive]);
    }
    let parts = shared.dir.parts(&given.machine.cmdline, Some(archive));
    Uki::new(&parts).map(|uki| uki.segments).map_err(|error| error.to_string())
}

fn kind_of(name: &str) -> &'static str {
    // UEFI decides by it what it has loaded (UEFI 2.10, 24.7.7.2).
    if name.ends_with(".efi") { "application/efi" } else { "application/octet-stream" }
}

fn file(kind: &str, parts: &[Bytes], wanted: Option<&str>, head: bool) -> Response<Parts> {
    let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let (status, from, to) = match range(wanted, len) {
        Range::Whole => (StatusCode::OK, 0, len),
        Range::Part(from, to) => (StatusCode::PARTIAL_CONTENT, from, to),
        Range::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
    };
    let mut builder = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, to - from);
    if status == StatusCode::PARTIAL_CONTENT {
        builder = builder.header(header::CONTENT_RANGE, format!("bytes {from}-{}/{len}", to - 1));
    } else if status == StatusCode::RANGE_NOT_SATISFIABLE {
        builder = builder.header(header::CONTENT_RANGE, format!("bytes */{len}"));
    }
    let body = if head { VecDeque::new() } else { cut(parts, from, to) };
    finish(builder, body)
}

fn text(status: StatusCode, body: String, head: bool) -> Response<Parts> {
    let builder = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .header(header::CONTENT_LENGTH, body.len());
    let body = if head { VecDeque::new() } else { VecDeque::from([Bytes::from(body)]) };
    finish(builder, body)
}

fn finish(builder: hyper::http::response::Builder, body: VecDeque<Bytes>) -> Response<Parts> {
    // Our own headers are valid; if one were not, an empty answer is what is left to say.
    builder.body(Parts(body)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cross_parts() {
        let parts = [Bytes::from_static(b"abc"), Bytes::new(), Bytes::from_static(b"defg")];
        let joined =
            |from, to| cut(&parts, from, to).iter().flat_map(|b| b.to_vec()).collect::<Vec<u8>>();
        assert_eq!(joined(0, 7), b"abcdefg");
        assert_eq!(joined(2, 5), b"cde");
        assert_eq!(joined(3, 4), b"d");
        assert_eq!(joined(7, 7), b"");
    }
}
