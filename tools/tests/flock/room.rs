//! A node whose disk is nearly full: the reserve stays free, and what is refused for it says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Flock, eventually, hello_spec, pids_with};

const MIB: i64 = 1 << 20;

/// A small ext4 as the state of one node, mounted where only that node sees it.
struct SmallDisk {
    /// As others see it.
    at: PathBuf,
}

fn sh(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl SmallDisk {
    /// The node's agent starts again on it, with nothing of before.
    fn new(flock: &Flock, node: &str, mib: u64) -> Self {
        let image = flock.dir.join(format!("{node}.img"));
        let run = flock.run_dir().join("nodes").join(node);
        let state = Path::new("/var/lib/quelea-dev").join(&flock.name).join(node);
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let (file, dir) = (image.display().to_string(), state.display().to_string());
        sh("mkfs.ext4", &["-q", "-F", "-m", "0", "-J", "size=4", &file]);
        let pid = std::fs::read_to_string(run.join("pid")).unwrap();
        sh("nsenter", &["-t", pid.trim(), "-m", "mount", "-o", "loop", &file, &dir]);
        for agent in pids_with(&format!("agent --config {}", run.join("node.toml").display())) {
            sh("kill", &["-KILL", &agent.to_string()]);
        }
        let at = Path::new("/proc").join(pid.trim()).join("root").join(dir.trim_start_matches('/'));
        eventually("it has begun anew", || at.join("images").exists());
        Self { at }
    }

    /// What the node keeps of it.
    fn reserve_bytes(&self) -> u64 {
        let seen = rustix::fs::statvfs(&self.at).unwrap();
        imagefs::Limits::reserve_of(seen.f_blocks * seen.f_frsize)
    }

    fn free_bytes(&self) -> u64 {
        let seen = rustix::fs::statvfs(&self.at).unwrap();
        seen.f_bavail * seen.f_frsize
    }

    /// Leaves so much beside the reserve, or less than that.
    fn leave(&self, more_bytes: i64) {
        let bytes = self.reserve_bytes().checked_add_signed(more_bytes).unwrap();
        let filler = std::fs::File::create(self.at.join("filler")).unwrap();
        rustix::fs::fsync(&filler).unwrap();
        let size = self.free_bytes().checked_sub(bytes).expect("more than is free");
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    }

    fn empty(&self) {
        std::fs::remove_file(self.at.join("filler")).unwrap();
    }
}

/// Three nodes, the last of them with a disk of 256 MiB, of which about 30 are kept.
fn nearly(test: &str) -> (Flock, SmallDisk) {
    let flock = Flock::up(test, 3);
    let disk = SmallDisk::new(&flock, "n3", 256);
    eventually("all are there again", || {
        let said = flock.say(&["--node", "n3", "status", "-o", "json"]);
        let status = serde_json::from_str(&said.out).unwrap_or(serde_json::Value::Null);
        status["alive"] == 3 && status["network_ready"] == true
    });
    (flock, disk)
}

fn on_n3(app: &str) -> String {
    hello_spec(1, "[place]\nrequire = [\"rack == r3\"]\n")
        .replace("app = \"hello\"", &format!("app = \"{app}\""))
}

fn told(flock: &Flock, app: &str, words: &[&str]) {
    for command in [&["ps", app][..], &["ps", app, "-o", "json"], &["why", app]] {
        let mut last = String::new();
        eventually(&format!("{command:?} says {words:?}"), || {
            last = flock.ok(command);
            words.iter().all(|word| last.contains(word))
        });
    }
}

fn ready(flock: &Flock, app: &str) {
    let mut pods = Vec::new();
    eventually(&format!("{app} is ready"), || {
        pods = flock.pods("n1", app);
        if std::env::var_os("QUELEA_SHOW").is_some() {
            eprintln!("{pods:?}");
        }
        pods.first().is_some_and(|pod| pod["ready"] == true)
    });
}

#[test]
fn images_and_layers_stop_before_the_reserve() {
    let (flock, disk) = nearly("room");
    disk.leave(MIB / 2);
    let spec = flock.file("late.toml", &on_n3("late"));
    flock.ok(&["run", "--detach", &spec]);
    // The image would take what is kept.
    let kept = ["this node's disk of", "and keeps", "in reserve", "more do not fit"];
    told(&flock, "late", &kept);
    told(&flock, "late", &["image hello:latest", "quelea image rm"]);
    // An operator who brings one to it is told as well.
    disk.empty();
    disk.leave(-4 * MIB);
    let layout = flock.dir.join("hello.oci").display().to_string();
    let said = flock.say(&["--node", "n3", "image", "import", &layout, "--tag", "other"]);
    assert!(said.code == 1 && said.err.contains("in reserve"), "{said:?}");
    eventually("the node says it", || flock.ok(&["--node", "n3", "status"]).contains("in reserve"));
    disk.empty();
    ready(&flock, "late");

    // With the image here it is the layer that finds no room.
    flock.ok(&["stop", "late"]);
    disk.leave(-4 * MIB);
    let spec = flock.file("later.toml", &on_n3("later"));
    flock.ok(&["run", "--detach", &spec]);
    told(&flock, "later", &["container hello: no room to write", "in reserve"]);
    disk.empty();
    ready(&flock, "later");
}

#[test]
fn an_image_that_nobody_needs_gives_way() {
    let (flock, disk) = nearly("gives");
    // Every node has `tools`, so the third need not keep it.
    flock.import_tools();
    let all = "app = \"all\"\nkind = \"daemon\"\n[[container]]\nname = \"c\"\nimage = \"tools\"\ncommand = [\"/bin/sleep\", \"1000\"]\ncpu = 0.02\nmemory = \"16Mi\"\nstop = { grace = \"0s\" }\n";
    flock.ok(&["run", &flock.file("all.toml", all)]);
    flock.ok(&["stop", "all"]);
    let tools = || flock.json(&["--node", "n3", "image", "ls"]);
    let holders = |images: &serde_json::Value| {
        let all = images.as_array().unwrap();
        let tools = all.iter().find(|image| image["reference"] == "tools:latest").unwrap();
        tools["nodes"].as_array().unwrap().len()
    };
    eventually("all have it", || holders(&tools()) == 3);

    // What `hello` takes, less what `tools` gives back.
    let hello = std::fs::metadata(Path::new(crate::support::QUELEA).with_file_name("hello"));
    disk.leave(i64::try_from(hello.unwrap().len()).unwrap() + MIB);
    flock.ok(&["run", "--detach", &flock.file("late.toml", &on_n3("late"))]);
    ready(&flock, "late");
    assert_eq!(holders(&tools()), 2);
    let events = flock.ok(&["--node", "n3", "events"]);
    assert!(events.contains("the disk's reserve would have been touched"), "{events}");
}
