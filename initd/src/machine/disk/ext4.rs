//! The ext4 superblock: enough of it to tell ours from others', whole from damaged, and to make one our own.
//!
//! Layout: Documentation/filesystems/ext4/super.rst. It lies 1024 bytes into the device and is as long.

/// The label of a state disk.
pub const LABEL: &str = "quelea-state";
/// Where the superblock begins.
pub(super) const OFFSET: usize = 1024;
/// How long it is.
pub(super) const BYTES: usize = 1024;

const MAGIC: u16 = 0xEF53;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const COMPAT_HAS_JOURNAL: u32 = 0x4;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
/// `quota` and `project`.
const RO_COMPAT_PROJECT_QUOTA: u32 = 0x100 | 0x2000;

const AT_BLOCKS_LO: usize = 0x04;
const AT_LOG_BLOCK_SIZE: usize = 0x18;
const AT_MAGIC: usize = 0x38;
const AT_STATE: usize = 0x3A;
const AT_COMPAT: usize = 0x5C;
const AT_INCOMPAT: usize = 0x60;
const AT_RO_COMPAT: usize = 0x64;
const AT_UUID: usize = 0x68;
const AT_LABEL: usize = 0x78;
const AT_HASH_SEED: usize = 0xEC;
const AT_BLOCKS_HI: usize = 0x150;
const AT_ERROR_COUNT: usize = 0x194;
const AT_CHECKSUM: usize = 0x3FC;

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The file system's size.
    pub bytes: u64,
    /// Of one block.
    pub block_bytes: u32,
    /// The label, lossily.
    pub label: String,
    /// It counts, and can bound, what belongs to a project.
    pub quota: bool,
    /// The journal has what must be replayed: it was not unmounted.
    pub replay: bool,
}

/// What lies where a superblock would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No ext file system, nor what is left of ours.
    None,
    /// Someone's, with this label.
    Other(String),
    /// Ours.
    Ours(Superblock),
    /// Ours, and not to be mounted: why.
    Broken(String),
}

/// Reads it. `block` are the [`BYTES`] at [`OFFSET`]; `device_bytes` is how large its device is.
#[must_use]
pub(super) fn parse(block: &[u8], device_bytes: u64) -> Found {
    let Some(read) = Reader::new(block) else { return Found::None };
    let label = read.label();
    let has_magic = read.u16(AT_MAGIC) == MAGIC;
    if label != LABEL {
        return if has_magic { Found::Other(label) } else { Found::None };
    }
    match whole(&read, has_magic, device_bytes) {
        Ok(superblock) => Found::Ours(superblock),
        Err(why) => Found::Broken(why),
    }
}

fn whole(read: &Reader<'_>, has_magic: bool, device_bytes: u64) -> Result<Superblock, String> {
    if !has_magic {
        return Err("the superblock is damaged: no magic".into());
    }
    let (compat, incompat) = (read.u32(AT_COMPAT), read.u32(AT_INCOMPAT));
    let summed = read.u32(AT_RO_COMPAT) & RO_COMPAT_METADATA_CSUM != 0;
    if summed && read.u32(AT_CHECKSUM) != checksum(read.0) {
        return Err("the superblock is damaged: wrong checksum".into());
    }
    let log = read.u32(AT_LOG_BLOCK_SIZE);
    if log > 6 {
        return Err(format!(
            "the superblock is damaged: blocks of 2^{} bytes",
            log.saturating_add(10)
        ));
    }
    let block_bytes = 1024 << log;
    let high = if incompat & INCOMPAT_64BIT == 0 { 0 } else { read.u32(AT_BLOCKS_HI) };
    let blocks = u64::from(high) << 32 | u64::from(read.u32(AT_BLOCKS_LO));
    let bytes = blocks.saturating_mul(u64::from(block_bytes));
    if blocks == 0 || bytes > device_bytes {
        return Err(format!(
            "its file system of {bytes} bytes is larger than the {device_bytes} of its device"
        ));
    }
    if incompat & INCOMPAT_JOURNAL_DEV != 0 || compat & COMPAT_HAS_JOURNAL == 0 {
        return Err("it has no journal of its own".into());
    }
    let state = read.u16(AT_STATE);
    if state & STATE_ERRORS != 0 || read.u32(AT_ERROR_COUNT) != 0 {
        return Err(
            "the kernel has found errors in it: it needs fsck.ext4 on another machine".into()
        );
    }
    let replay = incompat & INCOMPAT_RECOVER != 0;
    if state & STATE_CLEAN == 0 && !replay {
        return Err("it was not unmounted and has nothing to replay: it needs fsck.ext4".into());
    }
    let quota = read.u32(AT_RO_COMPAT) & RO_COMPAT_PROJECT_QUOTA == RO_COMPAT_PROJECT_QUOTA;
    Ok(Superblock { bytes, block_bytes, label: LABEL.into(), quota, replay })
}

/// Gives a superblock an identity of its own. The sums of everything else hang on `s_checksum_seed`, which stays.
///
/// # Errors
/// False, and nothing changed, when it is none or its identity cannot be changed.
#[must_use]
pub(super) fn rename(block: &mut [u8], uuid: [u8; 16], hash_seed: [u8; 16]) -> bool {
    let Some(read) = Reader::new(block) else { return false };
    if read.u16(AT_MAGIC) != MAGIC || read.u32(AT_INCOMPAT) & INCOMPAT_CSUM_SEED == 0 {
        return false;
    }
    for (at, value) in [(AT_UUID, uuid), (AT_HASH_SEED, hash_seed)] {
        if let Some(place) = block.get_mut(at..at + 16) {
            place.copy_from_slice(&value);
        }
    }
    let sum = checksum(block);
    if let Some(place) = block.get_mut(AT_CHECKSUM..AT_CHECKSUM + 4) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    true
}

/// Bytes of exactly one superblock.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(block: &'a [u8]) -> Option<Self> {
        (block.len() == BYTES).then_some(Self(block))
    }

    fn u16(&self, at: usize) -> u16 {
        self.0.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
    }

    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
    }

    fn label(&self) -> String {
        let bytes = self.0.get(AT_LABEL..AT_LABEL + 16).unwrap_or_default();
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

/// crc32c of all but the sum itself, neither seeded with zero nor inverted at the end (`ext4_superblock_csum`).
fn checksum(block: &[u8]) -> u32 {
    block.get(..AT_CHECKSUM).unwrap_or_default().iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ 0x82F6_3B78 }
        })
    })
}
