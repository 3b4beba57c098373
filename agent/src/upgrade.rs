//! Upgrades: what an operator signs, and how a new kernel is staged on a node before PID 1 starts it.
//!
//! The body of the request is one stream: the length of the signed order (4 bytes, big endian), the order, the kernel, the
//! initramfs. The order is verified before anything is written, the files against its digests before they count. The machine's own
//! files go in front of the initramfs, which need not bring any: a boot image is the same for every machine.

mod own;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use initd::machine::cmdline::TRIAL_S;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::node::IMAGE_WORD;
use crate::trust::{OperatorKey, Signed};

/// Keeps this use of an operator's key apart from all others.
const DOMAIN: &[u8] = b"quelea upgrade v1\0";
/// The largest kernel or initramfs, in bytes.
pub const FILE_BYTES_MAX: u64 = 512 << 20;
/// The longest kernel command line, in bytes (x86 `COMMAND_LINE_SIZE`).
pub const CMDLINE_BYTES_MAX: usize = 2048;
/// The largest signed order, in bytes.
const ORDER_BYTES_MAX: usize = 8 * 1024;
/// The word of the kernel command line that puts a kernel on trial: seconds until PID 1 goes back.
const TRIAL_WORD: &str = "quelea.trial=";

/// One file of a boot image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its size.
    pub size_bytes: u64,
    /// Its digest.
    pub sha256: [u8; 32],
}

/// What a node is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The node it is for.
    pub node: String,
    /// The kernel.
    pub kernel: Part,
    /// The initramfs.
    pub initramfs: Part,
    /// The kernel command line; that of now where absent.
    pub cmdline: Option<String>,
    /// Seconds after which PID 1 goes back unless the node is healthy; 0 for none.
    pub trial_s: u32,
    /// The operator's clock, in milliseconds since 1970; makes each order another.
    pub at_ms: u64,
}

impl Part {
    /// Of a file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self { size_bytes: bytes.len() as u64, sha256 }
    }
}

fn bad(reason: impl Into<String>) -> Error {
    Error::Malformed { what: "upgrade", reason: reason.into() }
}

impl Order {
    fn check(&self) -> Result<(), Error> {
        for (name, part) in [("kernel", self.kernel), ("initramfs", self.initramfs)] {
            if part.size_bytes == 0 || part.size_bytes > FILE_BYTES_MAX {
                return Err(bad(format!("the {name} has {} bytes", part.size_bytes)));
            }
        }
        let cmdline = self.cmdline.as_deref().unwrap_or_default();
        if cmdline.len() > CMDLINE_BYTES_MAX || cmdline.chars().any(char::is_control) {
            return Err(bad(format!(
                "a kernel command line is one line of at most {CMDLINE_BYTES_MAX} bytes"
            )));
        }
        if self.trial_s > 0 && !TRIAL_S.contains(&self.trial_s.into()) {
            let (least, most) = (TRIAL_S.start(), TRIAL_S.end());
            return Err(bad(format!("a trial takes {least} to {most} s, or 0 for none")));
        }
        Ok(())
    }

    /// The head of the request: the length of the signed order, and the order.
    pub fn sign(&self, key: &OperatorKey) -> Result<Vec<u8>, Error> {
        self.check()?;
        let payload = postcard::to_stdvec(self).map_err(|e| bad(e.to_string()))?;
        let signed = key.sign_for(DOMAIN, payload).to_bytes()?;
        let length = u32::try_from(signed.len()).map_err(|e| bad(e.to_string()))?;
        Ok([&length.to_be_bytes()[..], &signed].concat())
    }

    /// Verifies a signed order; the name is the operator's.
    pub fn verify<'a>(
        signed: &[u8],
        node: &str,
        operators: &'a [([u8; 32], String)],
    ) -> Result<(Self, &'a str), Error> {
        let signed = Signed::from_bytes(signed)?;
        let (payload, name) = signed.open_for(DOMAIN, operators)?;
        let order: Self = postcard::from_bytes(payload).map_err(|e| bad(e.to_string()))?;
        order.check()?;
        if order.node != node {
            return Err(bad(format!("it was signed for {}, and this is {node}", order.node)));
        }
        Ok((order, name))
    }

    /// By what a node says that it runs this image.
    pub fn image(&self) -> String {
        let payload = postcard::to_stdvec(self).unwrap_or_default();
        crate::hex::encode(digest(&SHA256, &payload).as_ref()).chars().take(12).collect()
    }

    /// The whole kernel command line; `running` is that of now.
    pub fn full_cmdline(&self, running: &str) -> String {
        let own = [IMAGE_WORD, TRIAL_WORD, "BOOT_IMAGE=", "initrd="];
        let words = self.cmdline.as_deref().unwrap_or(running).split_ascii_whitespace();
        let mut words: Vec<String> =
            words.filter(|w| !own.iter().any(|o| w.starts_with(o))).map(str::to_owned).collect();
        words.push(format!("{IMAGE_WORD}{}", self.image()));
        if self.trial_s > 0 {
            words.push(format!("{TRIAL_WORD}{}", self.trial_s));
        }
        words.join(" ")
    }
}

enum State {
    Length(Vec<u8>),
    Order { length: usize, bytes: Vec<u8> },
    Files,
}

/// Takes the stream of a request in, in pieces of any size.
pub struct Staging {
    dir: PathBuf,
    node: String,
    operators: Vec<([u8; 32], String)>,
    running: String,
    /// The machine's own files.
    own: PathBuf,
    state: State,
    order: Option<(Order, String)>,
    place: Option<Place>,
    /// The file being written: which of the two, and what is missing of it.
    file: Option<(usize, File, Context, u64)>,
    done: usize,
}

/// The directory that is staged in. Nobody else stages there meanwhile: two uploads would mix their files.
struct Place {
    dir: PathBuf,
    _lock: File,
    whole: bool,
}

impl Drop for Place {
    /// Half a boot image is worth nothing, and takes memory where it lies in a tmpfs.
    fn drop(&mut self) {
        if !self.whole {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

const INITRD: &str = "initrd";
const NAMES: [&str; 2] = ["kernel", INITRD];

impl Staging {
    /// Stages below `dir`, which is emptied. `running` is the kernel command line of now, `own` the directory of the files that
    /// make this machine the node that it is.
    pub fn new(
        dir: &Path,
        node: &str,
        operators: &[([u8; 32], String)],
        running: &str,
        own: &Path,
    ) -> Self {
        Self {
            dir: dir.into(),
            node: node.into(),
            operators: operators.to_vec(),
            running: running.into(),
            own: own.into(),
            state: State::Length(Vec::new()),
            order: None,
            place: None,
            file: None,
            done: 0,
        }
    }

    /// Takes the next piece in.
    ///
    /// # Errors
    /// It is not what an operator signed: nothing of it counts. Files that cannot be written.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Length(length) => {
                    take(&mut bytes, length, 4);
                    if let Ok(length) = <[u8; 4]>::try_from(length.as_slice()) {
                        let length = u32::from_be_bytes(length) as usize;
                        if length > ORDER_BYTES_MAX {
                            return Err(bad(format!("an order of {length} bytes")));
                        }
                        self.state = State::Order { length, bytes: Vec::new() };
                    }
                }
                State::Order { length, bytes: signed } => {
                    take(&mut bytes, signed, *length);
                    if signed.len() == *length {
                        let (order, by) = Order::verify(signed, &self.node, &self.operators)?;
                        self.order = Some((order, by.to_owned()));
                        self.state = State::Files;
                        self.empty()?;
                    }
                }
                State::Files => self.file_bytes(&mut bytes)?,
            }
        }
        Ok(())
    }

    fn empty(&mut self) -> Result<(), Error> {
        let path = self.dir.with_extension("lock");
        let lock = File::create(&path).map_err(|e| Error::io("write", &path, e))?;
        lock.try_lock().map_err(|e| match e {
            fs::TryLockError::WouldBlock => {
                bad(format!("another upgrade of {} is being uploaded: wait for its end", self.node))
            }
            fs::TryLockError::Error(e) => Error::io("lock", &path, e),
        })?;
        self.place = Some(Place { dir: self.dir.clone(), _lock: lock, whole: false });
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &self.dir, e));
            }
            _ => {}
        }
        crate::flock::make_private_dir(&self.dir)
    }

    fn part(&self) -> Option<Part> {
        let (order, _) = self.order.as_ref()?;
        [order.kernel, order.initramfs].get(self.done).copied()
    }

    fn file_bytes(&mut self, bytes: &mut &[u8]) -> Result<(), Error> {
        let (Some(part), Some(name)) = (self.part(), NAMES.get(self.done)) else {
            return Err(bad("there is more than the files"));
        };
        let path = self.dir.join(name);
        if self.file.is_none() {
            let mut file = File::create(&path).map_err(|e| Error::io("write", &path, e))?;
            if *name == INITRD {
                file.write_all(&own::archive(&self.own)?)
                    .map_err(|e| Error::io("write", &path, e))?;
            }
            self.file = Some((self.done, file, Context::new(&SHA256), part.size_bytes));
        }
        let Some((_, file, hash, missing)) = &mut self.file else { return Ok(()) };
        let count = usize::try_from(*missing).unwrap_or(usize::MAX).min(bytes.len());
        let (now, rest) = bytes.split_at(count);
        file.write_all(now).map_err(|e| Error::io("write", &path, e))?;
        hash.update(now);
        *bytes = rest;
        *missing -= count as u64;
        if *missing == 0
            && let Some((_, _, hash, _)) = self.file.take()
        {
            if hash.finish().as_ref() != part.sha256 {
                return Err(bad(format!("the {name} is not the one that was signed")));
            }
            self.done += 1;
        }
        Ok(())
    }

    /// All of it has come: the directory for PID 1, the order, and who signed it.
    ///
    /// # Errors
    /// Something is missing; a file that cannot be written.
    pub fn finish(self) -> Result<(PathBuf, Order, String), Error> {
        let all = self.done == NAMES.len();
        let (Some((order, by)), Some(mut place)) = (self.order.filter(|_| all), self.place) else {
            return Err(bad("it broke off"));
        };
        let path = self.dir.join("cmdline");
        let line = order.full_cmdline(&self.running);
        if line.len() > CMDLINE_BYTES_MAX {
            return Err(bad(format!("the kernel command line has {} bytes", line.len())));
        }
        fs::write(&path, line).map_err(|e| Error::io("write", &path, e))?;
        place.whole = true;
        Ok((self.dir, order, by))
    }
}

/// Moves bytes from the front of `bytes` until `into` has `length`.
fn take(bytes: &mut &[u8], into: &mut Vec<u8>, length: usize) {
    let count = length.saturating_sub(into.len()).min(bytes.len());
    let (now, rest) = bytes.split_at(count);
    into.extend_from_slice(now);
    *bytes = rest;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flock::{Bundle, Credentials};

    struct Kit {
        dir: PathBuf,
        key: OperatorKey,
        operators: Vec<([u8; 32], String)>,
    }

    impl Kit {
        fn new(name: &str) -> Self {
            let dir = crate::testing::temp_dir(name);
            let bundle = Bundle::create(&dir.join("b"), "b", "alice").unwrap();
            bundle.issue_node("n1", &dir.join("n1")).unwrap();
            let operators = Credentials::open(&dir.join("n1")).unwrap().operators;
            Self { key: OperatorKey::open(bundle.dir()).unwrap(), dir, operators }
        }

        fn staging(&self) -> Staging {
            let running = "console=ttyS0 quelea.image=old quelea.trial=9 initrd=x";
            let (dir, own) = (self.dir.join("kexec"), self.dir.join("own"));
            Staging::new(&dir, "n1", &self.operators, running, &own)
        }
    }

    fn order() -> Order {
        Order {
            node: "n1".into(),
            kernel: Part::of(b"kernel"),
            initramfs: Part::of(b"initramfs"),
            cmdline: None,
            trial_s: 60,
            at_ms: 1,
        }
    }

    fn stream(kit: &Kit, order: &Order) -> Vec<u8> {
        [&order.sign(&kit.key).unwrap()[..], b"kernel", b"initramfs"].concat()
    }

    #[test]
    fn a_signed_image_is_staged_from_pieces_of_any_size() {
        let kit = Kit::new("upgrade");
        fs::create_dir(kit.dir.join("own")).unwrap();
        fs::write(kit.dir.join("own/node.toml"), "name = n1").unwrap();
        let bytes = stream(&kit, &order());
        for size in [1, 7, 64, 1 << 20] {
            let mut staging = kit.staging();
            for piece in bytes.chunks(size) {
                staging.write(piece).unwrap();
            }
            let (dir, read, by) = staging.finish().unwrap();
            assert_eq!((read, by.as_str()), (order(), "alice"));
            assert_eq!(fs::read(dir.join("kernel")).unwrap(), b"kernel");
            let initrd = fs::read(dir.join("initrd")).unwrap();
            let own = initrd.strip_suffix(b"initramfs").unwrap();
            assert!(own.windows(9).any(|w| w == b"name = n1") && own.len().is_multiple_of(512));
            let line = fs::read_to_string(dir.join("cmdline")).unwrap();
            let image = order().image();
            assert_eq!(line, format!("console=ttyS0 quelea.image={image} quelea.trial=60"));
        }
        fs::remove_dir_all(&kit.dir).unwrap();
    }

    #[test]
    fn what_no_operator_signed_is_not_staged() {
        let kit = Kit::new("upgrade-bad");
        let staged = kit.dir.join("kexec");
        let good = stream(&kit, &order());
        let head = order().sign(&kit.key).unwrap().len();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            let mut staging = kit.staging();
            let result = staging.write(&bytes).and_then(|()| staging.finish().map(drop));
            assert!(result.is_err(), "byte {at} flipped and still staged");
            assert!(at >= head || !staged.exists(), "byte {at}: written before it was verified");
            assert!(!staged.join("cmdline").exists(), "byte {at}");
        }
        let other = Kit::new("upgrade-other");
        let mut staging = kit.staging();
        assert!(matches!(staging.write(&stream(&other, &order())), Err(Error::Untrusted { .. })));
        let elsewhere = Order { node: "n2".into(), ..order() };
        let said = kit.staging().write(&stream(&kit, &elsewhere)).unwrap_err().to_string();
        assert!(said.contains("signed for n2"), "{said}");
        for (order, words) in [
            (Order { trial_s: 9999, ..order() }, "trial"),
            (Order { cmdline: Some("a\nb".into()), ..order() }, "one line"),
            (Order { kernel: Part::of(b""), ..order() }, "kernel has 0 bytes"),
        ] {
            assert!(order.sign(&kit.key).unwrap_err().to_string().contains(words), "{words}");
        }
        let mut broken = kit.staging();
        broken.write(good.get(..good.len() - 1).unwrap()).unwrap();
        assert!(staged.exists());
        drop(broken);
        assert!(!staged.exists(), "an upload that broke off is left behind");
        let mut first = kit.staging();
        first.write(good.get(..good.len() - 1).unwrap()).unwrap();
        assert!(kit.staging().finish().is_err(), "nothing was sent");
        let said = kit.staging().write(&good).unwrap_err().to_string();
        assert!(said.contains("another upgrade of n1"), "{said}");
        first.write(&good[good.len() - 1..]).unwrap();
        first.finish().unwrap();
        let mut short = kit.staging();
        short.write(good.get(..good.len() - 1).unwrap()).unwrap();
        assert!(short.finish().is_err());
        let mut long = kit.staging();
        assert!(long.write(&[&good[..], b"x"].concat()).is_err());
        for kit in [kit, other] {
            fs::remove_dir_all(&kit.dir).unwrap();
        }
    }
}
