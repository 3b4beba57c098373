//! The system calls of this half that rustix has no safe form for, and those that give rights up.
#![allow(unsafe_code)]

use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs},
};

/// A raw packet socket on one device: every frame it receives, each send a whole frame (packet(7)).
/// Nonblocking, close-on-exec.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`; `ENODEV` when the device is gone; `ENETDOWN` when it is down.
pub(super) fn packet_socket(device_index: u32) -> Result<OwnedFd, Errno> {
    let every_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
    let index = i32::try_from(device_index).map_err(|_| Errno::NODEV)?;
    // Protocol 0: nothing is received before the bind names device and protocol together.
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: every_protocol,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a live, fully initialised sockaddr_ll and the length is its size.
    let failed = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if failed == 0 {
        Ok(socket)
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// Hands the kernel an offset of at most half a second to work off, and says that the clock follows somebody who is
/// asked every 2^`poll_exp` seconds (adjtimex(2); the values are those systemd-timesyncd uses). Whether the kernel calls its
/// clock synchronised after that.
///
/// # Errors
/// `EPERM` without `CAP_SYS_TIME`.
pub(super) fn slew(offset_us: i64, poll_exp: u32) -> Result<bool, Errno> {
    // SAFETY: timex is plain data, all zero is a valid value of it.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET
        | libc::ADJ_STATUS
        | libc::ADJ_TIMECONST
        | libc::ADJ_MAXERROR
        | libc::ADJ_ESTERROR
        | libc::ADJ_MICRO;
    // Without STA_UNSYNC: that clears it.
    timex.status = libc::STA_PLL;
    timex.offset = offset_us;
    timex.constant = i64::from(poll_exp.saturating_sub(4));
    // SAFETY: the pointer is to a live timex, which the call reads and writes.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0)
}

/// Keeps of root's rights those over the network and the clock, for good.
///
/// # Errors
/// That of capset(2) or prctl(2).
pub(super) fn keep_network_rights() -> Result<(), Errno> {
    let keep = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::SYS_TIME;
    set_no_new_privs(true)?;
    set_capabilities(
        None,
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() },
    )
}

fn done(result: libc::c_long) -> Result<(), Errno> {
    if result == -1 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

/// Sets a watchdog's timeout; returns the one it has taken, in seconds (linux/watchdog.h).
pub(super) fn watchdog_timeout(device: impl AsFd, timeout_s: i32) -> Result<i32, Errno> {
    // `_IOWR('W', 6, int)`.
    const WDIOC_SETTIMEOUT: u32 = 0xc004_5706;
    let mut timeout_s: libc::c_int = timeout_s;
    // SAFETY: the kernel reads and writes one int at a pointer to one.
    done(libc::c_long::from(unsafe {
        libc::ioctl(device.as_fd().as_raw_fd(), WDIOC_SETTIMEOUT as libc::Ioctl, &raw mut timeout_s)
    }))?;
    Ok(timeout_s)
}

/// Makes a netlink socket hear a multicast group (netlink(7)).
pub(super) fn join_netlink_group(socket: impl AsFd, group: u32) -> Result<(), Errno> {
    // SAFETY: the pointer is to a live u32 and the length is its size.
    done(libc::c_long::from(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    }))
}

/// Loads a kernel for a later `reboot(LINUX_REBOOT_CMD_KEXEC)` (kexec_file_load(2)). One that was loaded is replaced.
pub(super) fn kexec_file_load(
    kernel: impl AsFd,
    initrd: impl AsFd,
    cmdline: &str,
) -> Result<(), Errno> {
    let line = std::ffi::CString::new(cmdline).map_err(|_| Errno::INVAL)?;
    // SAFETY: two descriptors, and a string whose length counts its zero.
    done(unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_fd().as_raw_fd(),
            initrd.as_fd().as_raw_fd(),
            line.as_bytes_with_nul().len(),
            line.as_ptr(),
            0_usize,
        )
    })
}

/// Grows a mounted ext4 to so many blocks of its own size (EXT4_IOC_RESIZE_FS, linux/ext4.h).
pub(super) fn ext4_resize(root: impl AsFd, blocks: u64) -> Result<(), Errno> {
    // `_IOW('f', 16, __u64)`.
    const EXT4_IOC_RESIZE_FS: u32 = 0x4008_6610;
    // SAFETY: the kernel reads one u64 at a pointer to one.
    done(libc::c_long::from(unsafe {
        libc::ioctl(root.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS as libc::Ioctl, &raw const blocks)
    }))
}
