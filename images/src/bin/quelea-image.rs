//! `quelea-image --set qemu|rack --quelead FILE --out DIR`: builds what a machine boots and prints its sizes.

use images::{Initramfs, Kernel, Set};
use std::{path::PathBuf, process::ExitCode};

const USAGE: &str =
    "usage: quelea-image --quelead FILE --out DIR [--set qemu|rack] [--cache DIR] [--vmlinux]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("quelea-image: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let (mut set, mut quelead, mut out, mut cache, mut unpack) =
        (Set::Qemu, None, None, None, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(USAGE);
        match arg.as_str() {
            "--set" => set = Set::by_name(&value()?).ok_or(USAGE)?,
            "--quelead" => quelead = Some(PathBuf::from(value()?)),
            "--out" => out = Some(PathBuf::from(value()?)),
            "--cache" => cache = Some(PathBuf::from(value()?)),
            "--vmlinux" => unpack = true,
            _ => return Err(USAGE.into()),
        }
    }
    let (quelead, out) = (quelead.ok_or(USAGE)?, out.ok_or(USAGE)?);
    let cache = cache.unwrap_or_else(|| out.join("../kernels"));
    let kernel = Kernel::fetch(set.flavour(), &cache)?;
    let image = Initramfs::build(set, &kernel, &quelead, &[])?;
    let product = image.write(&kernel, &out, unpack)?;
    println!("kernel     {} {} B", kernel.release, product.vmlinuz_bytes);
    println!("quelead    {} B", image.quelead_bytes);
    println!("modules    {} files, {} B", image.closure.modules.len(), image.module_bytes);
    println!("initramfs  {} B  sha256 {}", product.initramfs_bytes, product.initramfs_sha256);
    let (name, goal) = (set.name(), set.initramfs_bytes_max());
    let value = product.initramfs_bytes;
    println!(
        "{{\"bench\":\"image\",\"metric\":\"initramfs_{name}_bytes\",\"value\":{value},\"unit\":\"B\",\"goal\":{goal},\
         \"better\":\"lower\",\"peer\":null,\"pass\":{}}}",
        value <= goal
    );
    Ok(())
}
