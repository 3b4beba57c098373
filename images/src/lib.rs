//! What a machine boots: kernel, initramfs, iPXE script and UKI.
