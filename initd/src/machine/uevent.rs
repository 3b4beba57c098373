//! Devices that come later: loads their drivers, in a process of its own that sleeps until the kernel speaks.
//!
//! PID 1 starts it under the name [`PLUGD`]. It holds no index while nothing happens, so it costs a page or two.

use super::{
    coldplug::{Coldplug, Report},
    console::say,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
        recvfrom, socket_with,
        sockopt::set_socket_recv_buffer_size,
    },
};
use std::{collections::BTreeSet, time::Duration};

/// The name (argv\[0\]) this role runs under.
pub const PLUGD: &str = "quelea-plugd";
/// Largest event; the kernel's own limit is 2048 bytes (`UEVENT_BUFFER_SIZE`) and the path.
const EVENT_BYTES_MAX: usize = 8192;
/// Different devices taken together; further ones are found by a new look at everything.
const BATCH_MAX: usize = 256;
/// How long more of a batch is waited for: a card is several devices.
const QUIET_MS: i64 = 50;
/// Shortest time between two batches: a device that flaps must not keep a processor busy.
const PAUSE: Duration = Duration::from_millis(500);
/// What the kernel keeps for us meanwhile.
const BUFFER_BYTES: usize = 256 << 10;

/// The role. Returns only when the kernel gives no events.
#[must_use]
pub fn main() -> i32 {
    let socket = match open() {
        Ok(socket) => socket,
        Err(e) => {
            say!("hotplug: listen to the kernel: {e}");
            return 1;
        }
    };
    // What appeared between the end of coldplug and now.
    tell("late", &Coldplug::open().run_quietly());
    loop {
        let mut aliases = BTreeSet::new();
        let whole = gather(&socket, &mut aliases);
        if !whole {
            tell("lost events", &Coldplug::open().run_quietly());
        } else if !aliases.is_empty() {
            let mut coldplug = Coldplug::open();
            let mut sum = Report::default();
            for alias in &aliases {
                let report = coldplug.modprobe(alias);
                sum.loaded += report.loaded;
                sum.failed += report.failed;
            }
            tell("new device", &sum);
            coldplug.tell_missing(|alias| aliases.contains(alias));
        }
        std::thread::sleep(PAUSE);
    }
}

fn tell(why: &str, report: &Report) {
    if report.loaded + report.failed > 0 {
        say!("hotplug: {why}: {} modules, {} failed", report.loaded, report.failed);
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(KOBJECT_UEVENT),
    )?;
    // Group 1 is the kernel's; udev's own is 2.
    bind(&socket, &SocketAddrNetlink::new(0, 1))?;
    let _ = set_socket_recv_buffer_size(&socket, BUFFER_BYTES);
    Ok(socket)
}

/// Waits for the first event and takes what follows closely. False when some were lost.
fn gather(socket: &OwnedFd, aliases: &mut BTreeSet<String>) -> bool {
    let mut buffer = [0; EVENT_BYTES_MAX];
    loop {
        let quiet = Timespec { tv_sec: 0, tv_nsec: QUIET_MS * 1_000_000 };
        let timeout = (!aliases.is_empty()).then_some(&quiet);
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], timeout) {
            Ok(0) => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return true,
        }
        match recvfrom(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((len, _, Some(from))) => {
                let kernel = SocketAddrNetlink::try_from(from).is_ok_and(|from| from.pid() == 0);
                let bytes = buffer.get(..len).unwrap_or_default();
                let Some(alias) = kernel.then(|| added(bytes)).flatten() else { continue };
                if aliases.len() >= BATCH_MAX {
                    return false;
                }
                aliases.insert(alias.to_owned());
            }
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::NOBUFS) => return false,
            Err(_) => return true,
        }
    }
}

/// The alias of a device that was added: `add@PATH`, then `KEY=VALUE`, each ended by NUL.
fn added(event: &[u8]) -> Option<&str> {
    let mut fields = event.split(|byte| *byte == 0);
    if !fields.next()?.starts_with(b"add@") {
        return None;
    }
    let alias = fields.find_map(|field| field.strip_prefix(b"MODALIAS="))?;
    std::str::from_utf8(alias).ok().filter(|alias| !alias.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_new_devices_with_an_alias_count() {
        let event = b"add@/devices/pci0000:00/0000:00:04.0\0ACTION=add\0SUBSYSTEM=pci\0MODALIAS=pci:v00001AF4\0";
        assert_eq!(added(event), Some("pci:v00001AF4"));
        assert_eq!(added(b"remove@/devices/x\0MODALIAS=pci:v1\0"), None);
        assert_eq!(added(b"add@/devices/x\0ACTION=add\0"), None);
        assert_eq!(added(b"add@/devices/x\0MODALIAS=\0"), None);
        assert_eq!(added(b"libudev\0\xfe\xed\xca\xfe"), None, "another program's");
        assert_eq!(added(b""), None);
    }

    proptest! {
        #[test]
        fn any_event_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = added(&bytes);
        }
    }
}
