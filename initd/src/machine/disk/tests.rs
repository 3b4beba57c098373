//! On what the real tools make.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// Root's programs are not in everybody's path.
fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    command
}

/// A sparse file that is removed.
struct Image {
    path: PathBuf,
    file: File,
}

impl Image {
    fn new(name: &str, mib: u64) -> Self {
        let path = std::env::temp_dir().join(format!("quelea-disk-{name}-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.expect("create");
        file.set_len(mib << 20).expect("size");
        Self { path, file }
    }

    fn bytes(&self) -> u64 {
        self.file.metadata().expect("size").len()
    }

    /// Runs a program with the image as its last argument.
    fn run(&self, words: &[&str]) -> String {
        let out = tool(words[0]).args(&words[1..]).arg(&self.path).output();
        let out = out.unwrap_or_else(|e| panic!("{}: {e}; apt-get install it", words[0]));
        let text = String::from_utf8_lossy(&out.stdout).into_owned()
            + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{words:?}: {text}");
        text
    }

    fn ours(name: &str, mib: u64) -> Self {
        let image = Self::new(name, mib);
        image.run(&["mkfs.ext4", "-q", "-F", "-L", LABEL]);
        image
    }

    fn holds(&self) -> Holds {
        scan::holds(&self.path, self.bytes())
    }

    fn words(&self) -> String {
        match self.holds() {
            Holds::Other(what) => what,
            Holds::Ext(Found::Broken(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).expect("write");
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn a_blank_disk_is_blank_and_one_byte_at_either_end_is_not() {
    let image = Image::new("blank", 4);
    assert_eq!(image.holds(), Holds::Blank);
    // Old bytes in the middle are nobody's: neither end says whose.
    image.put(2 << 20, b"old");
    assert_eq!(image.holds(), Holds::Blank);
    image.put((4 << 20) - 1, b"x");
    assert_eq!(image.words(), "bytes that are not zero and that we do not know");
    let image = Image::new("blank-tiny", 0);
    image.file.set_len(512).expect("size");
    assert_eq!(image.holds(), Holds::Blank);
    assert!(matches!(scan::holds(&image.path, 4096), Holds::Unreadable(_)), "shorter than told");
}

#[test]
fn what_mkfs_and_partitioners_write_is_known_by_name() {
    let image = Image::new("vfat", 64);
    image.run(&["mkfs.vfat"]);
    assert_eq!(image.words(), "a FAT file system");
    let image = Image::new("xfs", 320);
    image.run(&["mkfs.xfs", "-q"]);
    assert_eq!(image.words(), "an XFS file system");
    let image = Image::new("swap", 4);
    image.run(&["mkswap"]);
    assert_eq!(image.words(), "swap space");
    for (label, what) in [("gpt", "a GPT"), ("msdos", "an MBR")] {
        let image = Image::new(label, 8);
        let path = image.path.to_str().expect("path").to_owned();
        let made = tool("parted").args(["-s", &path, "mklabel", label]).output();
        assert!(made.expect("parted").status.success());
        assert_eq!(image.words(), what);
        if label == "gpt" {
            image.put(0, &[0; 1 << 20]);
            assert_eq!(image.words(), "the backup of a GPT");
        }
    }
}

#[test]
fn anothers_label_is_anothers() {
    let image = Image::new("other", 16);
    image.run(&["mkfs.ext4", "-q", "-F", "-L", "quelea-stat"]);
    assert_eq!(image.holds(), Holds::Ext(Found::Other("quelea-stat".into())));
    let image = Image::new("unlabelled", 16);
    image.run(&["mkfs.ext4", "-q", "-F"]);
    assert_eq!(image.holds(), Holds::Ext(Found::Other(String::new())));
}

#[test]
fn ours_is_ours_whole_or_damaged() {
    let image = Image::ours("ours", 256);
    let Holds::Ext(Found::Ours(superblock)) = image.holds() else { panic!("{:?}", image.holds()) };
    assert_eq!((superblock.bytes, superblock.replay), (256 << 20, false));

    image.file.set_len(200 << 20).expect("cut");
    assert!(image.words().contains("larger than the 209715200 of its device"), "{}", image.words());
    image.file.set_len(256 << 20).expect("size");

    let mut block = [0; ext4::BYTES];
    image.file.read_exact_at(&mut block, ext4::OFFSET as u64).expect("read");
    // A bit of the free blocks' count.
    image.put(1024 + 0x0c, &[block[0x0c] ^ 1]);
    assert!(image.words().contains("wrong checksum"), "{}", image.words());
    image.put(1024, &block);
    image.put(1024 + 0x38, &[0, 0]);
    assert!(image.words().contains("no magic"), "{}", image.words());
    // The whole start is gone: blank to look at, and not.
    image.put(0, &[0; 1 << 20]);
    assert!(image.words().contains("a backup is there"), "{}", image.words());
}

#[test]
fn errors_an_open_journal_and_a_missing_one_are_told_apart() {
    let image = Image::ours("errors", 64);
    // Set as the kernel sets it, with the sum made again.
    image.run(&["debugfs", "-w", "-R", "set_super_value state 3"]);
    assert!(image.words().contains("the kernel has found errors"), "{}", image.words());
    let image = Image::ours("error-count", 64);
    image.run(&["debugfs", "-w", "-R", "set_super_value error_count 2"]);
    assert!(image.words().contains("the kernel has found errors"), "{}", image.words());
    let image = Image::ours("dirty", 64);
    image.run(&["debugfs", "-w", "-R", "feature needs_recovery"]);
    assert!(matches!(image.holds(), Holds::Ext(Found::Ours(Superblock { replay: true, .. }))));
    let image = Image::new("no-journal", 64);
    image.run(&["mkfs.ext4", "-q", "-F", "-L", LABEL, "-O", "^has_journal"]);
    assert!(image.words().contains("no journal"), "{}", image.words());
}

#[test]
fn the_template_is_a_clean_file_system_with_its_own_identity() {
    for quota in [false, true] {
        template_is_whole(quota);
    }
}

fn template_is_whole(quota: bool) {
    let image = Image::new("template", 300);
    // What another life left in the middle.
    image.put(2 << 20, &vec![0xa5; 60 << 20]);
    let (uuid, seed) = ([0x11; 16], [0x22; 16]);
    template::write(&image.file, quota, uuid, seed).expect("write");
    let Holds::Ext(Found::Ours(superblock)) = image.holds() else { panic!("{:?}", image.holds()) };
    assert_eq!((superblock.bytes, superblock.replay), (FORMAT_BYTES_MIN, false));
    assert_eq!(superblock.quota, quota);
    image.run(&["e2fsck", "-f", "-n"]);
    let text = image.run(&["dumpe2fs", "-h"]);
    assert!(
        text.contains("Filesystem UUID:          11111111-1111-1111-1111-111111111111"),
        "{text}"
    );
    assert!(text.contains("22222222-2222-2222-2222-222222222222"), "{text}");
    assert!(text.contains("Total journal size:       32M"), "{text}");
    // e2fsprogs' own way to grow it leaves it whole as well.
    let grown = tool("resize2fs").arg(&image.path).output().expect("resize2fs");
    assert!(grown.status.success(), "{}", String::from_utf8_lossy(&grown.stderr));
    image.run(&["e2fsck", "-f", "-n"]);
}

#[test]
fn a_format_cut_before_its_end_leaves_a_blank_disk() {
    // Everything but the last write, which is the head.
    let image = Image::new("cut", 300);
    template::write(&image.file, true, [1; 16], [2; 16]).expect("write");
    image.put(0, &[0; 1 << 20]);
    assert_eq!(image.holds(), Holds::Blank);
}

/// An image as a block device, in a mount namespace of this thread's own with an empty /run.
struct Loop {
    name: String,
}

impl Loop {
    fn new(image: &Image, options: &[&str]) -> Self {
        let out = tool("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(&image.path)
            .output()
            .expect("losetup");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let path = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        Self { name: path.strip_prefix("/dev/").expect("a device").to_owned() }
    }

    fn candidate(&self) -> Candidate {
        let names = scan::names(Some("loop"));
        assert!(names.contains(&self.name), "{names:?}");
        scan::candidate(&self.name, &names).expect("a disk")
    }

    fn mount(&self) -> Result<(Superblock, OwnedFd), String> {
        mount(&self.name)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(STAGE, UnmountFlags::DETACH);
        let _ = tool("losetup").arg("-d").arg(format!("/dev/{}", self.name)).status();
    }
}

fn unmount() {
    rustix::mount::unmount(STAGE, UnmountFlags::empty()).expect("unmount");
}

/// Runs it on a thread that sees mounts of its own. False (and says so): the test needs root.
fn apart(test: &str, run: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        skip::because(test, "needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        use rustix::mount::{MountPropagationFlags, mount_change};
        use rustix::thread::UnshareFlags;
        // SAFETY: a fresh thread that shares no file system state that matters, and ends here.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
            .expect("unshare");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).expect("private");
        rustix::mount::mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).expect("run");
        run();
    });
    thread.join().expect("the test");
}

#[test]
fn a_blank_disk_is_formatted_grown_and_keeps_what_is_written() {
    apart("state_disk_life", || {
        let image = Image::new("life", 300);
        let device = Loop::new(&image, &[]);
        let there = [device.candidate()];
        assert_eq!((there[0].holds.clone(), there[0].whole), (Holds::Blank, true));
        let wish = Wish::Format(Selector::Name(device.name.clone()));
        assert_eq!(choose(&wish, &there, true), Decision::Format(device.name.clone()));
        format(&device.name).expect("format");
        let (superblock, root) = device.mount().expect("mount");
        assert_eq!(superblock.bytes, FORMAT_BYTES_MIN);
        grow(&device.name, &superblock, root);
        let mib = |stat: rustix::fs::StatVfs| (stat.f_blocks * stat.f_frsize) >> 20;
        // Resizing needs CAP_SYS_RESOURCE, which a container that runs this may lack; `qemu-tests` has it.
        let grows = may_resize();
        let size = || mib(rustix::fs::statvfs(STAGE).expect("statvfs"));
        assert!(!grows || size() > 240, "{}", size());
        std::fs::write(Path::new(STAGE).join("kept"), "kept").expect("write");
        unmount();

        image.file.set_len(1 << 30).expect("a larger disk");
        let path = format!("/dev/{}", device.name);
        assert!(tool("losetup").args(["-c", &path]).status().expect("losetup").success());
        assert_eq!(
            choose(&Wish::Auto, &[device.candidate()], false),
            Decision::Mount(device.name.clone())
        );
        let (superblock, root) = device.mount().expect("mount");
        assert_eq!(superblock.bytes >> 20, if grows { 300 } else { 128 });
        grow(&device.name, &superblock, root);
        assert!(!grows || size() > 900, "{}", size());
        assert_eq!(std::fs::read(Path::new(STAGE).join("kept")).expect("read"), b"kept");
        // A second format of what is in use is refused by the kernel, should all else fail.
        assert_eq!(format(&device.name).expect_err("busy").raw_os_error(), Some(libc::EBUSY));
        unmount();
        drop(device);
        image.run(&["e2fsck", "-f", "-n"]);
    });
}

/// CAP_SYS_RESOURCE is bit 24.
fn may_resize() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).expect("CapEff");
    let may = u64::from_str_radix(line.trim(), 16).expect("hex") >> 24 & 1 == 1;
    if !may {
        skip::listed("the growing", skip::Listed::Growing, "no CAP_SYS_RESOURCE");
    }
    may
}

#[test]
fn a_disk_that_lost_its_power_is_replayed() {
    apart("state_disk_replay", || {
        let image = Image::ours("power", 64);
        let device = Loop::new(&image, &[]);
        let (_, root) = device.mount().expect("mount");
        let path = Path::new(STAGE).join("synced");
        std::fs::write(&path, "synced").expect("write");
        File::open(&path).expect("open").sync_all().expect("sync");
        // The disk as it is at this moment.
        let copy = Image::new("power-copy", 64);
        std::fs::copy(&image.path, &copy.path).expect("copy");
        drop(root);
        unmount();
        let device = Loop::new(&copy, &[]);
        let Holds::Ext(Found::Ours(superblock)) = device.candidate().holds else { panic!() };
        assert!(superblock.replay, "it was mounted");
        let _root = device.mount().expect("mount");
        assert_eq!(std::fs::read(Path::new(STAGE).join("synced")).expect("read"), b"synced");
    });
}

#[test]
fn full_damaged_and_read_only_disks_are_refused_with_their_names() {
    apart("state_disk_bad", || {
        let image = Image::ours("full", 64);
        let device = Loop::new(&image, &[]);
        let (_, root) = device.mount().expect("mount");
        let file = File::create(Path::new(STAGE).join("all")).expect("create");
        let chunk = vec![1; 1 << 16];
        while std::io::Write::write_all(&mut &file, &chunk).is_ok() {}
        while std::io::Write::write_all(&mut &file, &chunk[..512]).is_ok() {}
        file.sync_all().expect("sync");
        drop((file, root));
        unmount();
        let why = device.mount().expect_err("full");
        assert!(why.starts_with(&format!("{} is full", device.name)), "{why}");
        drop(device);

        // Group descriptors gone, the superblock whole: only the kernel can tell.
        let image = Image::ours("descriptors", 256);
        let block = if let Holds::Ext(Found::Ours(s)) = image.holds() { s.block_bytes } else { 0 };
        image.put(u64::from(block.max(2048)), &[0; 1024]);
        let device = Loop::new(&image, &[]);
        let why = device.mount().expect_err("damaged");
        assert!(why.starts_with(&format!("mount {}: ", device.name)), "{why}");
        drop(device);

        let image = Image::ours("read-only", 64);
        let device = Loop::new(&image, &["--read-only"]);
        let why = refused(&Wish::Auto, &[device.candidate()]);
        assert_eq!(why, format!("{} is read-only", device.name));
    });
}

fn disk(name: &str, holds: Holds) -> Candidate {
    Candidate {
        name: name.into(),
        serial: Some(format!("S-{name}")),
        bytes: 1 << 30,
        read_only: false,
        whole: true,
        partitions: 0,
        holds,
    }
}

fn good() -> Holds {
    let superblock = Superblock {
        bytes: 1 << 30,
        block_bytes: 4096,
        label: LABEL.into(),
        quota: false,
        replay: false,
    };
    Holds::Ext(Found::Ours(superblock))
}

fn refused(wish: &Wish, there: &[Candidate]) -> String {
    match choose(wish, there, true) {
        Decision::Refuse(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_labelled_disk_is_taken_and_only_if_it_is_good() {
    let ours = disk("vdb", good());
    let there = [disk("vda", Holds::Blank), ours.clone()];
    for wish in [Wish::Auto, Wish::Disk, Wish::Format(Selector::Only(0))] {
        assert_eq!(choose(&wish, &there, false), Decision::Mount("vdb".into()));
    }
    assert_eq!(choose(&Wish::Memory, &there, true), Decision::Memory);
    let read_only = Candidate { read_only: true, ..ours.clone() };
    assert_eq!(refused(&Wish::Auto, &[read_only]), "vdb is read-only");
    let parts = Candidate { partitions: 2, ..ours.clone() };
    assert!(refused(&Wish::Auto, &[parts]).contains("2 partitions"));
    let broken = disk("vda", Holds::Ext(Found::Broken("it is damaged".into())));
    assert_eq!(refused(&Wish::Auto, std::slice::from_ref(&broken)), "vda: it is damaged");
    let two = refused(&Wish::Format(Selector::Only(0)), &[broken, ours]);
    assert_eq!(two, "vda, vdb are all labelled quelea-state: none is used");
}

#[test]
fn an_expected_disk_is_waited_for_and_an_unexpected_one_is_not() {
    let there = [disk("vda", Holds::Other("a GPT".into()))];
    assert_eq!(choose(&Wish::Auto, &there, true), Decision::Memory);
    assert_eq!(choose(&Wish::Auto, &there, false), Decision::Wait);
    assert_eq!(choose(&Wish::Disk, &there, false), Decision::Wait);
    assert_eq!(refused(&Wish::Disk, &there), "no disk is labelled quelea-state: vda holds a GPT");
    assert!(refused(&Wish::Disk, &[]).ends_with("there is no disk at all"));
}

#[test]
fn only_a_blank_disk_that_was_meant_is_formatted() {
    let format = |text: &str| Wish::parse(text).expect("a wish");
    let gpt = disk("vda", Holds::Other("a GPT".into()));
    let other = disk("vdc", Holds::Ext(Found::Other("data".into())));
    let blank = disk("vdb", Holds::Blank);
    let there = [gpt.clone(), blank.clone(), other.clone()];
    for text in ["format:auto", "format:vdb", "format:serial:S-vdb", "format:min:1G"] {
        assert_eq!(choose(&format(text), &there, false), Decision::Wait, "{text}");
        assert_eq!(choose(&format(text), &there, true), Decision::Format("vdb".into()), "{text}");
    }
    assert!(refused(&format("format:vda"), &there).contains("vda: vda holds a GPT"));
    let why = refused(&format("format:vdc"), &there);
    assert!(why.contains("vdc holds an ext file system labelled \"data\""), "{why}");
    assert!(refused(&format("format:vdz"), &there).contains("no disk is named vdz"));
    assert!(refused(&format("format:min:2G"), &there).contains("no blank disk of 2048 MiB"));
    let second = Candidate { name: "vdd".into(), ..blank.clone() };
    let why = refused(&format("format:auto"), &[blank.clone(), second.clone()]);
    assert_eq!(why, "nothing was formatted: vdb, vdd are all blank: name one");
    let why = refused(&format("format:serial:S-vdb"), &[blank.clone(), second]);
    assert!(why.contains("more than one disk has the serial number"), "{why}");
    for unfit in [
        Candidate { read_only: true, ..blank.clone() },
        Candidate { bytes: FORMAT_BYTES_MIN - 1, ..blank.clone() },
        Candidate { partitions: 1, ..blank.clone() },
        Candidate { holds: Holds::Unreadable("I/O error".into()), ..blank.clone() },
    ] {
        let there = [unfit];
        assert!(refused(&format("format:vdb"), &there).starts_with("nothing was formatted"));
        assert!(refused(&format("format:auto"), &there).starts_with("nothing was formatted"));
    }
    // A partition only by its name.
    let part = Candidate { whole: false, ..blank };
    let there = [part];
    assert_eq!(choose(&format("format:vdb"), &there, true), Decision::Format("vdb".into()));
    assert!(refused(&format("format:auto"), &there).contains("no blank disk"));
}

#[test]
fn wishes_are_these_words() {
    assert_eq!(Wish::parse("disk"), Ok(Wish::Disk));
    let min = |n| Ok(Wish::Format(Selector::Only(n)));
    assert_eq!(Wish::parse("format:min:2T"), min(2 << 40));
    assert_eq!(Wish::parse("format:min:1M"), min(FORMAT_BYTES_MIN));
    for bad in [
        "",
        "ram",
        "format",
        "format:",
        "format:a/b",
        "format:min:G",
        "format:min:5",
        "format:size:5G",
        "format:serial:",
    ] {
        assert!(Wish::parse(bad).is_err(), "{bad}");
    }
    for text in ["auto", "memory", "disk", "format:vda", "format:serial:A1", "format:min:200M"] {
        let wish = Wish::parse(text).expect("a wish");
        assert_eq!(Wish::parse(&super::text(&wish)), Ok(wish), "{text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_superblock_or_not(
        at in prop::collection::vec((0usize..1024, any::<u8>()), 0..40),
        device in any::<u64>(),
    ) {
        let image = include_bytes!("template.bin");
        let mut block = vec![0; ext4::BYTES];
        let len = image.len().min(512);
        block[..len].copy_from_slice(&image[..len]);
        block[0x38..0x3a].copy_from_slice(&0xEF53u16.to_le_bytes());
        block[0x78..0x84].copy_from_slice(LABEL.as_bytes());
        for (at, byte) in at {
            block[at] = byte;
        }
        let _ = ext4::parse(&block, device);
        let _ = ext4::parse(&block[..block.len() / 2], device);
    }

    /// Nothing that is not blank is ever formatted, whatever is wished.
    #[test]
    fn what_is_not_blank_is_never_formatted(
        kinds in prop::collection::vec((0u8..6, any::<bool>(), any::<bool>(), 0usize..2), 0..5),
        which in 0usize..6,
        settled in any::<bool>(),
    ) {
        let there: Vec<Candidate> = kinds.iter().enumerate().map(|(n, (kind, ro, whole, parts))| {
            let holds = match kind {
                0 | 1 => Holds::Blank,
                2 => good(),
                3 => Holds::Ext(Found::Other("x".into())),
                4 => Holds::Other("a GPT".into()),
                _ => Holds::Ext(Found::Broken("x".into())),
            };
            let name = format!("vd{n}");
            Candidate { read_only: *ro, whole: *whole, partitions: *parts, ..disk(&name, holds) }
        }).collect();
        let wishes = ["auto", "memory", "disk", "format:auto", "format:vd0", "format:serial:S-vd1"];
        let wish = Wish::parse(wishes[which]).expect("a wish");
        match choose(&wish, &there, settled) {
            Decision::Format(name) => {
                let one = there.iter().find(|c| c.name == name).expect("there");
                prop_assert!(settled && one.holds == Holds::Blank && one.partitions == 0 && !one.read_only);
                let labelled = |c: &Candidate| matches!(c.holds, Holds::Ext(Found::Ours(_) | Found::Broken(_)));
                prop_assert!(!there.iter().any(labelled));
            }
            Decision::Mount(name) => {
                let one = there.iter().find(|c| c.name == name).expect("there");
                prop_assert!(matches!(one.holds, Holds::Ext(Found::Ours(_))) && !one.read_only);
            }
            _ => {}
        }
    }
}

#[test]
fn controllers_that_are_still_looking() {
    let sys = std::env::temp_dir().join(format!("quelea-searching-{}", std::process::id()));
    let dir = |path: &str| std::fs::create_dir_all(sys.join(path)).expect("dir");
    let file = |path: &str, text: &str| std::fs::write(sys.join(path), text).expect("file");
    let searching = || super::scan::searching(&sys);
    assert!(searching().is_empty(), "a machine without any");
    dir("class/scsi_host");
    let host = |number: u32, parent: &str, driver: &str| {
        let name = format!("host{number}");
        let at = format!("devices/{parent}/{name}");
        dir(&format!("{at}/scsi_host/{name}"));
        file(&format!("{at}/scsi_host/{name}/proc_name"), &format!("{driver}\n"));
        let to = sys.join(&at);
        std::os::unix::fs::symlink(&to, to.join(format!("scsi_host/{name}/device"))).expect("link");
        let class = sys.join(format!("class/scsi_host/{name}"));
        std::os::unix::fs::symlink(to.join("scsi_host").join(&name), class).expect("link");
    };
    // All there is has been found when the driver is loaded.
    host(0, "pci0/0000:00:1f.2/ata1", "ahci");
    assert!(searching().is_empty());
    host(2, "pci0/0000:00:03.0/virtio1", "virtio_scsi");
    dir("bus/usb/devices/1-1:1.0");
    file("bus/usb/devices/1-1:1.0/bInterfaceClass", "08\n");
    dir("bus/usb/devices/1-2:1.0");
    file("bus/usb/devices/1-2:1.0/bInterfaceClass", "03\n");
    assert_eq!(searching(), ["host2 (virtio_scsi)", "usb 1-1:1.0"]);
    let unit = "devices/pci0/0000:00:03.0/virtio1/host2/target2:0:0/2:0:0:0";
    dir(unit);
    file(&format!("{unit}/type"), "0\n");
    dir("bus/usb/devices/1-1:1.0/host3");
    assert_eq!(searching(), ["host2 (virtio_scsi)"], "its driver is not there yet");
    dir(&format!("{unit}/block/sda"));
    assert!(searching().is_empty());
    host(4, "pci0/0000:00:04.0", "mpt3sas");
    dir("devices/pci0/0000:00:04.0/host4/target4:0:0/4:0:0:0");
    file("devices/pci0/0000:00:04.0/host4/target4:0:0/4:0:0:0/type", "13\n");
    assert!(searching().is_empty(), "an enclosure is no disk");
    std::fs::remove_dir_all(&sys).expect("remove");
}
