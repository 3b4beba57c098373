//! Makes `src/machine/disk/template.bin` and `template-quota.bin` again: needs e2fsprogs 1.47. The same bytes each time.
//!
//! `cargo run -p initd --example state-template [DIR]`

use std::process::Command;

const BLOCK_BYTES: usize = 4096;
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
    large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed";
/// A run ends where at least so many zeros follow.
const GAP: usize = 8;
/// A run of one byte is told as such from this length on.
const FILL_MIN: usize = 16;
const FILL: u16 = 0x8000;
const RUN_MAX: usize = 0x7fff;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args()
        .nth(1)
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/src/machine/disk").to_owned());
    make(&format!("{dir}/template.bin"), FEATURES, "")?;
    // For kernels that can mount it: what is below a directory can be bounded.
    make(
        &format!("{dir}/template-quota.bin"),
        &format!("{FEATURES},project,quota"),
        ",quotatype=prjquota",
    )
}

fn make(out: &str, features: &str, extended: &str) -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::temp_dir().join(format!("state-template-{}", std::process::id()));
    std::fs::File::create(&image)?.set_len(128 << 20)?;
    let made = Command::new("mkfs.ext4")
        .env("E2FSPROGS_FAKE_TIME", "1700000000")
        .env("MKE2FS_CONFIG", "/dev/null")
        .args(["-q", "-F", "-b", "4096", "-I", "256", "-N", "8192", "-m", "1", "-J", "size=32"])
        .args(["-L", "quelea-state", "-U", "71756c65-6100-4000-8000-000000000000"])
        .args(["-O", features, "-E"])
        // The journal and the inode table are zeroed by whoever writes the template. `resize`: room for descriptors
        // of 8 TiB; the kernel goes on with meta_bg beyond.
        .arg(format!(
            "hash_seed=71756c65-6100-4000-8000-000000000001,lazy_itable_init=0,lazy_journal_init=0,nodiscard,\
             root_owner=0:0,resize=2147483647{extended}"
        ))
        .arg(&image)
        .status()?;
    let bytes = std::fs::read(&image);
    std::fs::remove_file(&image)?;
    let bytes = bytes?;
    if !made.success() {
        return Err("mkfs.ext4 failed".into());
    }
    std::fs::write(out, encode(&bytes)?)?;
    println!("{out}: {} bytes", std::fs::metadata(out)?.len());
    Ok(())
}

fn encode(image: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    // Used blocks are those of the first group's bitmap, which is full: one group.
    let descriptor = image.get(BLOCK_BYTES..).ok_or("short")?;
    let bitmap = u32::from_le_bytes(descriptor[..4].try_into()?) as usize * BLOCK_BYTES;
    let used = (0..image.len() / BLOCK_BYTES)
        .filter(|b| image[bitmap + b / 8] >> (b % 8) & 1 == 1)
        .max()
        .ok_or("an empty file system")?
        + 1;
    let mut out = u32::try_from(used)?.to_le_bytes().to_vec();
    let mut at = 0;
    while let Some(start) = image[at..].iter().position(|b| *b != 0).map(|n| at + n) {
        let same = image[start..].iter().take_while(|b| **b == image[start]).count().min(RUN_MAX);
        out.extend(u32::try_from(start)?.to_le_bytes());
        if same >= FILL_MIN {
            out.extend((u16::try_from(same)? | FILL).to_le_bytes());
            out.push(image[start]);
            at = start + same;
            continue;
        }
        let ends = |n: &usize| {
            let from = start + n;
            let window = image.get(from..from + GAP).unwrap_or_default();
            window.iter().all(|b| *b == 0)
                || image.get(from..from + FILL_MIN).is_some_and(|w| w.iter().all(|b| *b == w[0]))
        };
        let len = (1..RUN_MAX).find(ends).unwrap_or(RUN_MAX);
        out.extend(u16::try_from(len)?.to_le_bytes());
        out.extend(&image[start..start + len]);
        at = start + len;
    }
    Ok(out)
}
