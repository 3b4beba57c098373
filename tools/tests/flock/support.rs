//! A dev flock of a test's own, removed whatever happens.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// `quelea`, and beside it `quelead` and `hello`.
pub(crate) const QUELEA: &str = env!("CARGO_BIN_EXE_quelea");

/// What a command did.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A flock and a directory.
pub(crate) struct Flock {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
}

impl Flock {
    /// A name and a directory; nothing runs yet.
    pub(crate) fn named(test: &str) -> Self {
        for program in ["quelead", "hello"] {
            let path = beside(program);
            assert!(path.exists(), "{} is missing: cargo build --workspace", path.display());
        }
        let name = format!("t-{test}-{}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        Self { name, dir }
    }

    /// A flock that is up, with the image `hello` imported on n1.
    pub(crate) fn up(test: &str, nodes: u8) -> Self {
        let flock = Self::named(test);
        flock.ok(&["dev", "--nodes", &nodes.to_string(), "--detach"]);
        flock.import_hello();
        flock
    }

    pub(crate) fn import_hello(&self) {
        let root = self.dir.join("root");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::copy(beside("hello"), root.join("hello")).unwrap();
        let (root, out) =
            (root.display().to_string(), self.dir.join("hello.oci").display().to_string());
        let entrypoint = ["--entrypoint", "/hello"];
        self.ok(
            &[&["image", "pack", &root, "--out", &out, "--tag", "hello"], &entrypoint[..]].concat()
        );
        self.ok(&["--node", "n1", "image", "import", &out]);
    }

    /// An image `tools` with programs of this machine and what they are linked with, `sh` among them.
    pub(crate) fn import_tools(&self) {
        let root = self.dir.join("tools");
        let mut files: Vec<PathBuf> =
            ["/bin/dash", "/bin/cat", "/bin/sleep", "/bin/stty", "/bin/rm"]
                .map(PathBuf::from)
                .into();
        let output = Command::new("ldd").args(&files).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = text.split_whitespace().filter(|w| w.starts_with('/') && !w.ends_with(':'));
        files.extend(words.map(PathBuf::from));
        for file in &files {
            let target = root.join(file.strip_prefix("/").unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(file, target).unwrap();
        }
        std::fs::rename(root.join("bin/dash"), root.join("bin/sh")).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        let passwd = "root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n";
        std::fs::write(root.join("etc/passwd"), passwd).unwrap();
        // What a build for another machine, a script and a data file look like.
        let mut foreign = std::fs::read(root.join("bin/sh")).unwrap();
        foreign[18..20].copy_from_slice(&183_u16.to_le_bytes());
        // The same with another loader's name, as long as its own.
        let mut unloaded = std::fs::read(root.join("bin/sh")).unwrap();
        let own = b"/lib64/ld-linux-x86-64.so.2\0";
        let at = unloaded.windows(own.len()).position(|w| w == own).expect("a dynamic program");
        unloaded[at..at + own.len()].copy_from_slice(b"/lib/nowhere/x86-64-ld.so.2\0");
        for (name, bytes, mode) in [
            ("foreign", foreign.as_slice(), 0o755),
            ("unloaded", unloaded.as_slice(), 0o755),
            ("script", b"#!/usr/bin/perl6\n".as_slice(), 0o755),
            ("plain", b"no program\n".as_slice(), 0o755),
            ("data", b"data\n".as_slice(), 0o644),
        ] {
            use std::os::unix::fs::PermissionsExt as _;
            let path = root.join("bin").join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink("../../../proc/1/root/srv", root.join("out")).unwrap();
        let out = self.dir.join("tools.oci").display().to_string();
        self.ok(&["image", "pack", &root.display().to_string(), "--out", &out, "--tag", "tools"]);
        self.ok(&["--node", "n1", "image", "import", &out]);
    }

    /// Waits until `quelea ps` says something of the only replica of an app.
    pub(crate) fn reason(&self, app: &str, words: &[&str]) -> String {
        let mut last = String::new();
        eventually(&format!("{app} says {words:?}"), || {
            let pods = self.pods("n1", app);
            last = pods.first().map_or_else(String::new, |pod| {
                format!("{} {}", pod["state"].as_str().unwrap(), pod["reason"].as_str().unwrap())
            });
            words.iter().all(|word| last.contains(word))
        });
        last
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(QUELEA);
        command
            .args(args)
            .env("QUELEA_DEV", &self.name)
            .env_remove("QUELEA_NODE")
            .env_remove("QUELEA_FLOCK");
        command
    }

    /// Runs `quelea`.
    pub(crate) fn say(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// Runs `quelea`, which must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let said = self.say(args);
        assert_eq!(said.code, 0, "quelea {}: {}{}", args.join(" "), said.out, said.err);
        said.out
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// Writes a file into the test's directory and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Replicas of an app, as `node` sees them.
    pub(crate) fn pods(&self, node: &str, app: &str) -> Vec<Value> {
        let ps = self.json(&["--node", node, "ps", app]);
        ps["pods"].as_array().unwrap().clone()
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new("/run/quelea-dev").join(&self.name)
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        let _ = self.command(&["dev", "stop"]).output();
        let _ = std::fs::remove_dir_all(&self.dir);
        let _ = std::fs::remove_file(format!("/run/lock/quelea-{}.lock", self.name));
    }
}

fn beside(program: &str) -> PathBuf {
    Path::new(QUELEA).with_file_name(program)
}

/// The spec of an app of `hello`s.
pub(crate) fn hello_spec(replicas: u32, more: &str) -> String {
    format!(
        "app = \"hello\"\nreplicas = {replicas}\n[[container]]\nname = \"hello\"\nimage = \"hello\"\ncpu = 0.05\nmemory = \"16Mi\"\nports = {{ http = 8080 }}\nready = {{ http = \":8080/healthz\", every = \"200ms\" }}\n{more}"
    )
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(30), "not so after 30 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// PIDs whose command line has this text.
pub(crate) fn pids_with(text: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    })
    .collect()
}
