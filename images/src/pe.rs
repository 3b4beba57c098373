//! Adds sections to an EFI program (Microsoft's "PE Format"), without reading or writing more than its headers.
//!
//! A layout is the program's own bytes with new headers, then each section's bytes, each padded. Because it names
//! sizes only, a section's bytes can come from anywhere: an image for one machine shares all but a few kilobytes with
//! the others.

use crate::{Error, Result};

/// Most sections added at once. More are refused.
pub const SECTIONS_MAX: usize = 16;
/// Largest image laid out: PE sizes are 32 bits and loaders keep clear of the sign. Larger ones are refused.
pub const IMAGE_BYTES_MAX: u64 = i32::MAX as u64;

/// New sections start at a page, whatever the program's own alignment, so that loaders may protect them apart.
const PAGE: u32 = 4096;
const SECTION_HEADER_BYTES: usize = 40;
/// IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ.
const READ_ONLY_DATA: u32 = 0x4000_0040;

/// Where things of the headers stand.
struct Headers {
    coff: usize,
    optional: usize,
    table: usize,
    sections: usize,
    section_alignment: u32,
    file_alignment: u32,
    headers_bytes: usize,
}

/// A program's headers and own sections with the new ones announced, and how far each new one is padded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The file up to the first new section.
    pub head: Vec<u8>,
    /// Zeros after each new section, in order.
    pub padding: Vec<usize>,
}

/// Lays out `program` with `sections` (name, bytes) after its own. Symbols and what else trails the program's last
/// section is dropped, and the checksum, which firmware does not read, is cleared.
///
/// # Errors
/// [`Error::Pe`] when `program` is not an unsigned x86-64 EFI program or has no room for another section header, or
/// when a section's name or the whole is too long.
pub fn append(program: &[u8], sections: &[(&str, u64)]) -> Result<Layout> {
    let headers = parse(program)?;
    let end = headers.table + (headers.sections + sections.len()) * SECTION_HEADER_BYTES;
    if sections.len() > SECTIONS_MAX {
        return Err(bad("more than SECTIONS_MAX new sections"));
    }
    if end > headers.headers_bytes {
        return Err(bad("no room for another section header"));
    }
    let (mut address, mut raw) = (0u64, headers.headers_bytes as u64);
    for index in 0..headers.sections {
        let at = headers.table + index * SECTION_HEADER_BYTES;
        let field = |n: usize| Ok::<u64, Error>(u32_at(program, at + n)?.into());
        address = address.max(field(12)? + field(8)?.max(field(16)?));
        if field(16)? > 0 {
            raw = raw.max(field(20)? + field(16)?);
        }
    }
    let own = usize::try_from(raw).ok().and_then(|n| program.get(..n));
    let mut head = own.ok_or_else(|| bad("a section ends beyond the file"))?.to_vec();
    raw = raw.next_multiple_of(headers.file_alignment.into());
    head.resize(raw as usize, 0);
    let mut padding = Vec::with_capacity(sections.len());
    let page = u64::from(PAGE.max(headers.section_alignment));
    for (index, (name, bytes)) in sections.iter().enumerate() {
        if name.len() > 8 || name.is_empty() {
            return Err(bad("a section's name must have 1 to 8 bytes"));
        }
        address = address.next_multiple_of(page);
        let padded = bytes.next_multiple_of(headers.file_alignment.into());
        if *bytes > IMAGE_BYTES_MAX
            || address + padded > IMAGE_BYTES_MAX
            || raw + padded > IMAGE_BYTES_MAX
        {
            return Err(bad("larger than IMAGE_BYTES_MAX"));
        }
        let at = headers.table + (headers.sections + index) * SECTION_HEADER_BYTES;
        head[at..at + SECTION_HEADER_BYTES].fill(0);
        head[at..at + name.len()].copy_from_slice(name.as_bytes());
        // All four fit: they were just compared with IMAGE_BYTES_MAX.
        for (n, value) in [*bytes, address, padded, raw].into_iter().enumerate() {
            put(&mut head, at + 8 + 4 * n, value as u32);
        }
        put(&mut head, at + 36, READ_ONLY_DATA);
        address += bytes;
        raw += padded;
        padding.push((padded - bytes) as usize);
    }
    let count =
        u16::try_from(headers.sections + sections.len()).map_err(|_| bad("too many sections"))?;
    head[headers.coff + 2..headers.coff + 4].copy_from_slice(&count.to_le_bytes());
    // Symbols: none. SizeOfImage: all of it. CheckSum: not computed.
    let whole = address.next_multiple_of(headers.section_alignment.into());
    for (at, value) in [
        (headers.coff + 8, 0),
        (headers.coff + 12, 0),
        (headers.optional + 56, whole as u32),
        (headers.optional + 64, 0),
    ] {
        put(&mut head, at, value);
    }
    Ok(Layout { head, padding })
}

fn parse(program: &[u8]) -> Result<Headers> {
    if program.get(..2) != Some(b"MZ") {
        return Err(bad("no MZ signature"));
    }
    let pe = u32_at(program, 0x3c)? as usize;
    if pe.checked_add(4).and_then(|end| program.get(pe..end)) != Some(b"PE\0\0") {
        return Err(bad("no PE signature"));
    }
    let (coff, optional) = (pe + 4, pe + 24);
    if u16_at(program, coff)? != 0x8664 || u16_at(program, optional)? != 0x20b {
        return Err(bad("not for x86-64"));
    }
    let optional_bytes = usize::from(u16_at(program, coff + 16)?);
    let headers = Headers {
        coff,
        optional,
        table: optional + optional_bytes,
        sections: usize::from(u16_at(program, coff + 2)?),
        section_alignment: u32_at(program, optional + 32)?,
        file_alignment: u32_at(program, optional + 36)?,
        headers_bytes: u32_at(program, optional + 60)? as usize,
    };
    if !headers.section_alignment.is_power_of_two() || !headers.file_alignment.is_power_of_two() {
        return Err(bad("an alignment is no power of two"));
    }
    // IMAGE_DIRECTORY_ENTRY_SECURITY: adding sections would break the signature.
    if u32_at(program, optional + 108)? > 4 && u32_at(program, optional + 112 + 4 * 8 + 4)? != 0 {
        return Err(bad("is signed"));
    }
    if optional_bytes < 112 || headers.headers_bytes > program.len() {
        return Err(bad("headers end beyond the file"));
    }
    Ok(headers)
}

fn bad(what: &'static str) -> Error {
    Error::Pe { what }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let two =
        at.checked_add(2).and_then(|end| bytes.get(at..end)).ok_or_else(|| bad("too short"))?;
    Ok(u16::from_le_bytes([two[0], two[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let four =
        at.checked_add(4).and_then(|end| bytes.get(at..end)).ok_or_else(|| bad("too short"))?;
    Ok(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

/// `at` lies within the headers, which [`parse`] and [`append`] have measured.
fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program with one section of 8 bytes and room for ten headers.
    pub(crate) fn program() -> Vec<u8> {
        let mut p = vec![0u8; 0x410];
        p[..2].copy_from_slice(b"MZ");
        put(&mut p, 0x3c, 0x40);
        p[0x40..0x44].copy_from_slice(b"PE\0\0");
        let (coff, optional) = (0x44, 0x58);
        p[coff..coff + 4].copy_from_slice(&[0x64, 0x86, 1, 0]);
        p[coff + 8] = 7; // symbols, dropped
        p[coff + 16] = 112;
        p[optional..optional + 2].copy_from_slice(&[0x0b, 0x02]);
        for (at, value) in [(32, 0x200), (36, 0x200), (56, 0x1008), (60, 0x200), (64, 9)] {
            put(&mut p, optional + at, value);
        }
        let table = optional + 112;
        p[table..table + 5].copy_from_slice(b".text");
        for (n, value) in [8, 0x1000, 0x200, 0x200].into_iter().enumerate() {
            put(&mut p, table + 8 + 4 * n, value);
        }
        p[0x200..0x208].copy_from_slice(b"\xc3CODE\xc3\xc3\xc3");
        p
    }

    #[test]
    fn sections_follow_at_pages_and_trailing_bytes_go() {
        let made = append(&program(), &[(".linux", 5000), (".initrd", 0), (".x", 512)]).unwrap();
        assert_eq!(made.head.len(), 0x400);
        assert_eq!(made.padding, [120, 0, 0]);
        let table = 0x58 + 112;
        let row = |n: usize| -> Vec<u32> {
            (0..4).map(|f| u32_at(&made.head, table + 40 * n + 8 + 4 * f).unwrap()).collect()
        };
        assert_eq!(row(0), [8, 0x1000, 0x200, 0x200]);
        assert_eq!(row(1), [5000, 0x2000, 5120, 0x400]);
        assert_eq!(row(2), [0, 0x4000, 0, 0x1800]);
        assert_eq!(row(3), [512, 0x4000, 512, 0x1800]);
        assert_eq!(u16_at(&made.head, 0x46).unwrap(), 4);
        assert_eq!(u32_at(&made.head, 0x4c).unwrap(), 0, "symbols");
        assert_eq!(u32_at(&made.head, 0x58 + 56).unwrap(), 0x4200, "SizeOfImage");
    }

    #[test]
    fn what_cannot_take_sections_is_refused() {
        let refused = |p: &[u8], sections: &[(&str, u64)]| match append(p, sections) {
            Err(Error::Pe { what }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(b"ELF", &[]), "no MZ signature");
        let mut p = program();
        p[0x44] = 0x4c;
        assert_eq!(refused(&p, &[]), "not for x86-64");
        let mut p = program();
        put(&mut p, 0x58 + 108, 16);
        put(&mut p, 0x58 + 112 + 36, 1);
        assert_eq!(refused(&p, &[]), "is signed");
        assert_eq!(
            refused(&program(), &[(".toolong1", 1)]),
            "a section's name must have 1 to 8 bytes"
        );
        assert_eq!(refused(&program(), &[(".a", 1 << 32)]), "larger than IMAGE_BYTES_MAX");
        assert_eq!(refused(&program(), &[(".a", 1); 12]), "no room for another section header");
        assert_eq!(refused(&program(), &[(".a", 1); 17]), "more than SECTIONS_MAX new sections");
    }

    proptest::proptest! {
        #[test]
        fn damaged_programs_never_panic(at in 0usize..0x200, value in 0u32.., len in 0usize..0x410) {
            let mut p = program();
            if at + 4 <= p.len() {
                put(&mut p, at, value);
            }
            let _ = append(&p, &[(".a", 10)]);
            let _ = append(&p[..len], &[(".a", 10)]);
        }
    }
}
