//! Which disk holds the state: what is wished, what is there, what follows. Pure.

use super::ext4::{Found, LABEL};

/// Smallest disk that can be formatted: the template's size.
pub const FORMAT_BYTES_MIN: u64 = 128 << 20;

/// What `quelea.state=` or `/etc/quelea/state` says.
///
/// ```text
/// auto                  the labelled disk if there is one, else memory (default)
/// memory                memory
/// disk                  the labelled disk, waited for
/// format:SELECTOR       the same, and if no disk has the label, this blank one is formatted
///
/// SELECTOR  auto            the only blank whole disk
///           min:SIZE        the only blank whole disk of at least SIZE (a number and M, G or T)
///           serial:TEXT     the whole disk of this serial number
///           NAME            the disk or partition of this kernel name, such as vda or nvme0n1p3
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wish {
    /// Take what is there.
    #[default]
    Auto,
    /// No disk.
    Memory,
    /// One is expected.
    Disk,
    /// One is expected; this one may be made.
    Format(Selector),
}

/// Which disk may be formatted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The only blank one of at least so many bytes.
    Only(u64),
    /// By serial number.
    Serial(String),
    /// By kernel name.
    Name(String),
}

impl Wish {
    /// Parses it.
    ///
    /// # Errors
    /// What is wrong, for the console.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(selector) = text.strip_prefix("format:") else {
            return match text {
                "auto" => Ok(Self::Auto),
                "memory" => Ok(Self::Memory),
                "disk" => Ok(Self::Disk),
                _ => Err("a state is auto, memory, disk or format:WHICH"),
            };
        };
        let word = |text: &str| {
            let fits = (1..=64).contains(&text.len());
            fits && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
        };
        Ok(Self::Format(match selector.split_once(':') {
            None if selector == "auto" => Selector::Only(FORMAT_BYTES_MIN),
            None if word(selector) => Selector::Name(selector.into()),
            Some(("serial", serial)) if word(serial) => Selector::Serial(serial.into()),
            Some(("min", size)) => {
                let bytes = size_bytes(size).ok_or("min: needs a number and M, G or T")?;
                Selector::Only(bytes.max(FORMAT_BYTES_MIN))
            }
            _ => return Err("format: is followed by auto, min:SIZE, serial:TEXT or a name"),
        }))
    }

    /// Worth waiting for.
    #[must_use]
    pub fn expects(&self) -> bool {
        matches!(self, Self::Disk | Self::Format(_))
    }
}

fn size_bytes(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()? {
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        _ => return None,
    };
    let number: u64 = text.get(..text.len() - 1)?.parse().ok()?;
    number.checked_mul(1 << shift)
}

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// First and last MiB are zeros, no partition, no backup of a superblock of ours.
    Blank,
    /// An ext file system or what is left of one.
    Ext(Found),
    /// Someone's: in words.
    Other(String),
    /// It could not be read: why.
    Unreadable(String),
}

/// One whole disk or partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The kernel's name.
    pub name: String,
    /// As its firmware says.
    pub serial: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// It cannot be written.
    pub read_only: bool,
    /// A whole disk.
    pub whole: bool,
    /// Partitions the kernel has found on it.
    pub partitions: usize,
    /// What is on it.
    pub holds: Holds,
}

impl Candidate {
    fn in_words(&self) -> String {
        if self.partitions > 0 {
            return format!("{} holds {} partitions", self.name, self.partitions);
        }
        match &self.holds {
            Holds::Blank => format!("{} is blank", self.name),
            Holds::Ext(Found::Other(label)) if label.is_empty() => {
                format!("{} holds an ext file system without a label", self.name)
            }
            Holds::Ext(Found::Other(label)) => {
                format!("{} holds an ext file system labelled {label:?}", self.name)
            }
            Holds::Ext(_) => format!("{} is a state disk", self.name),
            Holds::Other(what) => format!("{} holds {what}", self.name),
            Holds::Unreadable(why) => format!("{} cannot be read: {why}", self.name),
        }
    }

    fn is_blank(&self) -> bool {
        self.holds == Holds::Blank && self.partitions == 0
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// State lives in memory, as wished.
    Memory,
    /// Look again later.
    Wait,
    /// Mount this device.
    Mount(String),
    /// Format this device, then mount it.
    Format(String),
    /// Memory, and a fault: why.
    Refuse(String),
}

/// Decides. `settled`: no device has appeared for long enough, or the time to wait is over.
///
/// A disk is formatted only when it is blank, writable, large enough, the one that was meant, and no disk has the
/// label.
#[must_use]
pub fn choose(wish: &Wish, there: &[Candidate], settled: bool) -> Decision {
    if *wish == Wish::Memory {
        return Decision::Memory;
    }
    let is_ours = |c: &&Candidate| matches!(c.holds, Holds::Ext(Found::Ours(_) | Found::Broken(_)));
    let ours: Vec<&Candidate> = there.iter().filter(is_ours).collect();
    match ours.as_slice() {
        [] => {}
        [one] => return mount(one),
        several => {
            let names: Vec<&str> = several.iter().map(|c| c.name.as_str()).collect();
            return Decision::Refuse(format!(
                "{} are all labelled {LABEL}: none is used",
                names.join(", ")
            ));
        }
    }
    match wish {
        _ if !settled => Decision::Wait,
        Wish::Auto | Wish::Memory => Decision::Memory,
        Wish::Disk => Decision::Refuse(format!("no disk is labelled {LABEL}: {}", all(there))),
        Wish::Format(selector) => match format(selector, there) {
            Ok(name) => Decision::Format(name),
            Err(why) => Decision::Refuse(format!("nothing was formatted: {why}")),
        },
    }
}

fn mount(one: &Candidate) -> Decision {
    let name = &one.name;
    match &one.holds {
        Holds::Ext(Found::Broken(why)) => Decision::Refuse(format!("{name}: {why}")),
        _ if one.partitions > 0 => {
            let n = one.partitions;
            Decision::Refuse(format!("{name} is labelled {LABEL} and has {n} partitions as well"))
        }
        _ if one.read_only => Decision::Refuse(format!("{name} is read-only")),
        _ => Decision::Mount(name.clone()),
    }
}

fn format(selector: &Selector, there: &[Candidate]) -> Result<String, String> {
    let (one, named) = match selector {
        Selector::Only(min) => {
            let fits = |c: &&Candidate| c.whole && c.is_blank() && !c.read_only && c.bytes >= *min;
            let blank: Vec<&Candidate> = there.iter().filter(fits).collect();
            match blank.as_slice() {
                [one] => (*one, "it".to_owned()),
                [] => {
                    return Err(format!(
                        "no blank disk of {} MiB or more: {}",
                        min >> 20,
                        all(there)
                    ));
                }
                several => {
                    let names: Vec<&str> = several.iter().map(|c| c.name.as_str()).collect();
                    return Err(format!("{} are all blank: name one", names.join(", ")));
                }
            }
        }
        Selector::Serial(serial) => {
            let same = |c: &&Candidate| c.whole && c.serial.as_deref() == Some(serial);
            (only(there, same, &format!("has the serial number {serial}"))?, serial.clone())
        }
        Selector::Name(name) => {
            (only(there, |c| c.name == *name, &format!("is named {name}"))?, name.clone())
        }
    };
    if !one.is_blank() {
        Err(format!("{named}: {}", one.in_words()))
    } else if one.read_only {
        Err(format!("{} is read-only", one.name))
    } else if one.bytes < FORMAT_BYTES_MIN {
        let (mib, min) = (one.bytes >> 20, FORMAT_BYTES_MIN >> 20);
        Err(format!("{} has {mib} MiB, and {min} are needed", one.name))
    } else {
        Ok(one.name.clone())
    }
}

fn only<'a>(
    there: &'a [Candidate],
    wanted: impl Fn(&&Candidate) -> bool,
    what: &str,
) -> Result<&'a Candidate, String> {
    let found: Vec<&Candidate> = there.iter().filter(wanted).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(format!("no disk {what}: {}", all(there))),
        _ => Err(format!("more than one disk {what}")),
    }
}

/// Every device in words.
fn all(there: &[Candidate]) -> String {
    if there.is_empty() {
        return "there is no disk at all".into();
    }
    let words: Vec<String> = there.iter().map(Candidate::in_words).collect();
    words.join(", ")
}
