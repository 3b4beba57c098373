//! The one system call std and mio lack.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

/// Asks for a receive buffer of this size; the kernel gives what `net.core.rmem_max` allows, which is no error.
pub(crate) fn set_receive_buffer(socket: &impl AsRawFd, size_bytes: i32) {
    let size = std::ptr::from_ref(&size_bytes).cast::<libc::c_void>();
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `size` points to an i32 that outlives the call and `len` is its size; the fd is open while borrowed.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, size, len);
    }
}
