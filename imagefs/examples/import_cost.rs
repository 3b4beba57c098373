//! What an import costs: makes an image of about 200 MB of gzip, imports it, mounts it, and prints JSON lines.
//!
//! `cargo run --release -p imagefs --example import_cost [-- MiB [DIR]]`. Needs root for the mount figures; without it they
//! are named as skipped on stderr. With a DIR the image is made there and stays, so that two builds import the same one.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use imagefs::{Mounts, PackOptions, Store, Upper, pack};

fn main() {
    let mib: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(420);
    let base = std::env::temp_dir().join(format!("imagefs-bench-{}", std::process::id()));
    fs::create_dir_all(&base).unwrap();
    let kept = std::env::args_os().nth(2).map(PathBuf::from);
    let layout = kept.unwrap_or_else(|| base.join("layout"));
    if !layout.exists() {
        make_image(&base, &layout, mib);
    }
    run(&base, &layout);
    fs::remove_dir_all(&base).unwrap();
}

fn make_image(base: &Path, layout: &Path, mib: usize) {
    let tree = base.join("tree");
    make_tree(&tree, mib);
    let options = PackOptions { reference: "bench".into(), ..Default::default() };
    let packed = pack(&tree, layout, &options).unwrap();
    print("layer_gz", packed.compressed_bytes as f64 / 1e6, "MB");
}

fn run(base: &Path, layout: &Path) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let one = Store::open(base.join("one")).unwrap();
    let system_before = system_s();
    let ((record, spent), wall) = timed(|| cpu(|| one.import(layout, None, &mut |_| {}).unwrap()));
    print("layer", mb(record.layers[0].size_bytes), "MB");
    print("import_cpu", spent, "s");
    print("import_system", system_s() - system_before, "s");
    print("import_wall", wall, "s");
    print("import_peak_rss", peak_rss_mib(), "MiB");
    let hex = record.layers[0].diff_id.hex();
    let index = one.root().join("layers").join(hex).join("idx.v1");
    print("index", mb(fs::metadata(index).unwrap().len()), "MB");

    let two = Store::open(base.join("two")).unwrap();
    let (((), spent), wall) = timed(|| {
        cpu(|| {
            for blob in two.missing(&record) {
                let (mut file, _) = one.open_blob(&blob).unwrap();
                let mut ingest = two.ingest(blob).unwrap();
                let mut buffer = vec![0; 256 << 10];
                loop {
                    match std::io::Read::read(&mut file, &mut buffer).unwrap() {
                        0 => break,
                        n => ingest.write(&buffer[..n]).unwrap(),
                    }
                }
                ingest.commit().unwrap();
            }
            two.link(&record).unwrap();
        })
    });
    print("fetch_cpu", spent, "s");
    print("fetch_wall", wall, "s");
    mounts(base, &two);
}

fn mounts(base: &Path, store: &Store) {
    // SAFETY: unshare(CLONE_NEWNS) touches no memory; it gives this thread its own mount namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        eprintln!("skipped: mount figures need root");
        return;
    }
    use rustix::mount::{MountPropagationFlags, mount_change};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let image = store.resolve("bench").unwrap().unwrap();
    let mut mounts = Mounts::new(base.join("run")).unwrap();
    let upper = Upper::Tmpfs { size_bytes: 64 << 20 };
    let mut times: Vec<f64> = (0..21)
        .map(|_| {
            let (_, t) = timed(|| {
                mounts.assemble(store, &image, &base.join("c"), upper.clone(), None).unwrap()
            });
            mounts.release(&base.join("c")).unwrap();
            t * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    print("assemble_median", times[10], "ms");
    let root = mounts.assemble(store, &image, &base.join("c"), upper, None).unwrap().path;
    let (bytes, t) = timed(|| read_all(&root));
    print("read_all", bytes as f64 / 1e6 / t, "MB/s");
    mounts.sweep(&[]).unwrap();
}

fn read_all(dir: &Path) -> u64 {
    let mut sum = 0;
    for e in fs::read_dir(dir).unwrap() {
        let path = e.unwrap().path();
        let m = fs::symlink_metadata(&path).unwrap();
        if m.is_dir() {
            sum += read_all(&path);
        } else if m.is_file() {
            sum += fs::read(&path).unwrap().len() as u64;
        }
    }
    sum
}

/// Files of 1 KiB to 4 MiB, about half compressible, the same every time.
fn make_tree(tree: &Path, mib: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut left, mut n) = (mib << 20, 0);
    while left > 0 {
        let len = ((1 << 10) << (random() % 13)).min(left);
        let dir = tree.join(format!("d{}/e{}", n % 37, n % 11));
        fs::create_dir_all(&dir).unwrap();
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            // Eight random bytes, then eight that repeat: gzip gets it to about half.
            data.write_all(&random().to_le_bytes()).unwrap();
            data.write_all(b"quelea!\n").unwrap();
        }
        data.truncate(len);
        fs::write(dir.join(format!("f{n}")), data).unwrap();
        left -= len;
        n += 1;
    }
}

fn timed<T>(f: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let out = f();
    (out, start.elapsed().as_secs_f64())
}

/// User and system time of this process that `f` takes, seconds.
fn cpu<T>(f: impl FnOnce() -> T) -> (T, f64) {
    let now = || {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
    };
    let start = now();
    let out = f();
    (out, now() - start)
}

/// The system's share of this process's time, seconds.
fn system_s() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage(2) fills the struct it is given, which is zeroed before and plain numbers throughout.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_stime.tv_sec as f64 + usage.ru_stime.tv_usec as f64 / 1e6
}

fn peak_rss_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|k| k.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn print(metric: &str, value: f64, unit: &str) {
    println!(
        "{{\"bench\":\"image_import\",\"metric\":\"{metric}\",\"value\":{value:.3},\"unit\":\"{unit}\"}}"
    );
}
