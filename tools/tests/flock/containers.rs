//! Pods of several containers, their probes and limits.

use crate::support::{Flock, eventually};

/// An app of one replica; `rest` are its containers.
fn app(name: &str, rest: &str) -> String {
    format!("app = \"{name}\"\n{rest}")
}

/// One container that runs a shell script.
fn shell(name: &str, script: &str, more: &str) -> String {
    format!(
        "[[container]]\nname = \"{name}\"\nimage = \"tools\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\ncpu = 0.02\nmemory = \"16Mi\"\nstop = {{ grace = \"1s\" }}\n{more}\n"
    )
}

fn run(flock: &Flock, name: &str, text: &str) {
    let file = flock.file(&format!("{name}.toml"), text);
    flock.ok(&["run", &file]);
}

fn start(flock: &Flock, name: &str, text: &str) {
    let file = flock.file(&format!("{name}.toml"), text);
    flock.ok(&["run", "--detach", &file]);
}

fn sh(flock: &Flock, pod: &str, container: &str, script: &str) -> String {
    flock.ok(&["exec", pod, "-c", container, "--", "/bin/sh", "-c", script])
}

#[test]
fn containers_start_in_order_and_share_what_they_should() {
    let flock = Flock::up("order", 1);
    flock.import_tools();
    let volume = "[[volume]]\nname = \"data\"\nsize = \"1Mi\"\n";
    let mount = "mounts = [{ volume = \"data\", path = \"/data\" }]";
    let setup = "echo init > /data/order; echo from-init";
    let side = "echo side >> /data/order; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let main = "echo main >> /data/order; ulimit -n; echo $QUELEA_POD; exec sleep 1000";
    let more = format!(
        "{mount}\nrlimits = {{ nofile = \"77:99\" }}\ntmpfs = [{{ path = \"/tmp\", size = \"64Ki\" }}]\nready = {{ exec = [\"/bin/cat\", \"/data/order\"], every = \"100ms\" }}"
    );
    let text = app(
        "multi",
        &[
            volume.to_owned(),
            shell("setup", setup, &format!("role = \"init\"\nrestart = \"on-failure\"\n{mount}")),
            shell("side", side, &format!("role = \"sidecar\"\n{mount}")),
            shell("main", main, &more),
        ]
        .concat(),
    );
    // The volume is written before a main container and what stands in a table comes last in TOML.
    run(&flock, "multi", &text);
    assert_eq!(sh(&flock, "multi", "side", "cat /data/order"), "init\nside\nmain\n");
    assert_eq!(flock.ok(&["logs", "multi.0", "-c", "main"]).lines().next(), Some("77"));
    // All containers, in the order of their lines, each with its name.
    let logs = flock.ok(&["logs", "multi"]);
    assert!(logs.starts_with("multi.0/setup from-init\n"), "{logs}");
    assert!(logs.contains("multi.0/main multi.0\n"), "{logs}");
    // What the volume and the tmpfs may hold is all that can be written.
    let fill = |container: &str, file: &str| {
        let script = format!("cat /dev/zero > {file}");
        let said = flock.say(&["exec", "multi", "-c", container, "--", "/bin/sh", "-c", &script]);
        assert!(said.code != 0 && said.err.contains("No space left"), "{said:?}");
    };
    fill("side", "/data/big");
    fill("main", "/tmp/big");
    let pods = flock.pods("n1", "multi");
    assert_eq!(pods[0]["restarts"], 0, "an init container that ended well is no restart");
    flock.ok(&["stop", "multi"]);
}

#[test]
fn probes_gate_restart_and_wait() {
    let flock = Flock::up("probes", 1);
    flock.import_tools();
    // Readiness comes and goes with a file; nothing is started again for it.
    let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let probe = "ready = { exec = [\"/bin/cat\", \"/up\"], every = \"100ms\", fail = 2 }";
    start(&flock, "flap", &app("flap", &shell("c", script, probe)));
    let ready = |want: bool| {
        eventually(&format!("ready is {want}"), || {
            let pods = flock.pods("n1", "flap");
            pods.first().is_some_and(|p| p["state"] == "running" && p["ready"] == want)
        });
    };
    ready(false);
    let why = flock.ok(&["why", "flap"]);
    assert!(why.contains("its probes have not passed"), "{why}");
    for _ in 0..2 {
        sh(&flock, "flap", "c", "echo > /up");
        ready(true);
        sh(&flock, "flap", "c", "rm /up");
        ready(false);
    }
    let pods = flock.pods("n1", "flap");
    assert_eq!(pods[0]["restarts"], 0);
    flock.ok(&["stop", "flap"]);

    // Liveness fails: the container is started again in the same pod, and says why.
    let probe = "live = { exec = [\"/bin/cat\", \"/none\"], every = \"100ms\", fail = 2, start_grace = \"300ms\" }\nbackoff = { first = \"10ms\", max = \"50ms\" }";
    start(&flock, "sick", &app("sick", &shell("c", script, probe)));
    let said = flock.reason("sick", &["given up"]);
    assert!(said.contains("container c was given up"), "{said}");
    let claim = flock.pods("n1", "sick")[0]["claim"].clone();
    eventually("restarts are counted", || {
        flock.pods("n1", "sick").first().is_some_and(|p| p["restarts"].as_u64() > Some(1))
    });
    assert_eq!(flock.pods("n1", "sick")[0]["claim"], claim);
    flock.ok(&["stop", "sick"]);

    // A start probe holds the others back, and gives up after every × fail.
    let probe = "start = { tcp = \":9\", every = \"100ms\", fail = 3 }";
    start(&flock, "slow", &app("slow", &shell("c", script, probe)));
    flock.reason("slow", &["given up", "`start` probe", "refused"]);
    flock.ok(&["stop", "slow"]);

    // A pod whose work is done is not born again under its identity.
    let text = app("done", &shell("c", "exit 3", "restart = \"never\""));
    start(&flock, "done", &text);
    let said = flock.reason("done", &["the pod ended", "exited with code 3"]);
    assert!(said.starts_with("failed"), "{said}");
    flock.ok(&["stop", "done"]);
}

#[test]
fn a_host_tool_runs_where_it_is_granted_only() {
    let flock = Flock::named("host");
    let grants = flock.file(
        "grants.toml",
        "host_tools = [\"/bin/sleep\", \"/bin/cat\", \"/usr/lib\", \"/lib\", \"/lib64\"]\n",
    );
    flock.ok(&["dev", "--nodes", "1", "--detach", "--grants", &grants]);
    let text = |name: &str, exec: &str| {
        format!(
            "app = \"{name}\"\n[[container]]\nname = \"c\"\nexec = {exec}\ncpu = 0.02\nmemory = \"16Mi\"\nstop = {{ grace = \"1s\" }}\n"
        )
    };
    run(&flock, "tool", &text("tool", "[\"/bin/sleep\", \"1000\"]"));
    let said = flock.ok(&["exec", "tool", "--", "/bin/cat", "/proc/self/status"]);
    assert!(said.contains("NoNewPrivs:\t1"), "the limits of every container: {said}");
    // Nothing else of the host is there.
    let said = flock.say(&["exec", "tool", "--", "/bin/cat", "/etc/shadow"]);
    assert!(said.code != 0 && said.err.contains("No such file"), "{said:?}");
    flock.ok(&["stop", "tool"]);

    start(&flock, "other", &text("other", "[\"/bin/dash\"]"));
    let mut why = String::new();
    eventually("why names the tool", || {
        why = flock.ok(&["why", "other"]);
        why.contains("lacks the permission to run /bin/dash of the host")
    });
    assert!(why.contains("host_tools = [\"/bin/dash\"]"), "what to do: {why}");
}

#[test]
fn what_a_node_grants_by_name_reaches_the_container_that_asks() {
    let flock = Flock::named("grants");
    let filter = flock.file("mine", "base default\ndeny unlink unlinkat\n");
    let grants =
        format!("devices = {{ tap = [\"/dev/net/tun\"] }}\nseccomp = {{ mine = {filter:?} }}\n");
    let grants = flock.file("grants.toml", &grants);
    flock.ok(&["dev", "--nodes", "1", "--detach", "--grants", &grants]);
    flock.import_tools();
    let script = "exec sleep 1000";
    let asks = "devices = [\"tap\"]\nseccomp = \"mine\"";
    let containers = [shell("asks", script, asks), shell("not", script, "profile = \"compat\"")];
    run(&flock, "own", &app("own", &containers.concat()));

    let look = "[ -c /dev/net/tun ] && echo there; [ -e /dev/net/tun ] || echo none";
    assert_eq!(sh(&flock, "own", "asks", look), "there\n");
    assert_eq!(sh(&flock, "own", "not", look), "none\n");
    let script = "echo > /file; exec rm /file";
    assert_eq!(sh(&flock, "own", "not", script), "");
    let said = flock.say(&["exec", "own", "-c", "asks", "--", "/bin/sh", "-c", script]);
    assert!(said.code != 0 && said.err.contains("Operation not permitted"), "{said:?}");
    // CAP_SYS_CHROOT (18) is one of those that `compat` adds.
    let chroot = |container: &str| {
        let status = sh(&flock, "own", container, "cat /proc/1/status");
        let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        u64::from_str_radix(bounds, 16).unwrap() >> 18 & 1
    };
    assert_eq!((chroot("asks"), chroot("not")), (0, 1));
    flock.ok(&["stop", "own"]);
}

#[test]
fn the_image_says_by_which_signal_its_program_ends() {
    let flock = Flock::up("signal", 1);
    flock.import_tools();
    let path = |name: &str| flock.dir.join(name).display().to_string();
    let (root, out) = (path("tools"), path("quits.oci"));
    let signal = ["--tag", "quits", "--stop-signal", "SIGUSR1"];
    flock.ok(&[&["image", "pack", &root, "--out", &out], &signal[..]].concat());
    flock.ok(&["image", "import", &out]);
    let script = "trap \"\" TERM; trap \"exit 7\" USR1; while :; do sleep 0.05; done";
    let text = shell("c", script, "").replace("\"tools\"", "\"quits\"");
    run(&flock, "quits", &app("quits", &text));
    flock.ok(&["stop", "quits"]);
    let events = flock.ok(&["events"]);
    assert!(events.contains("container c exited with code 7"), "{events}");
}

#[test]
fn a_container_that_fills_its_layer_is_ended_and_the_disk_given_back() {
    let flock = Flock::up("layer", 1);
    flock.import_tools();
    // Both write 24 MiB and wait; one of them may.
    let script = "(ulimit -f 49152; cat /dev/zero > /big); exec sleep 1000";
    start(&flock, "room", &app("room", &shell("c", script, "disk = \"64Mi\"")));
    start(&flock, "fills", &app("fills", &shell("c", script, "disk = \"8Mi\"")));
    let layers = std::path::Path::new("/var/lib/quelea-dev").join(&flock.name).join("n1/images/up");
    let of = |app: &str| flock.pods("n1", app).into_iter().next();
    let mut ended = None;
    eventually("what it holds is told", || {
        ended = of("fills").filter(|pod| pod["state"] == "failed");
        ended.is_some()
    });
    let ended = ended.unwrap();
    let words = ["container c was ended: its layer holds", "Mi of 8Mi allowed (`disk`)"];
    for word in words {
        assert!(ended["reason"].as_str().unwrap().contains(word), "{ended}");
        assert!(flock.ok(&["why", "fills"]).contains(word), "{}", flock.ok(&["why", "fills"]));
        assert!(flock.ok(&["events"]).contains(word));
        assert!(flock.ok(&["ps", "fills"]).contains(word), "{}", flock.ok(&["ps", "fills"]));
    }
    let claim = |pod: &serde_json::Value| pod["claim"].as_str().unwrap().to_owned();
    assert!(!layers.join(claim(&ended)).exists(), "its layer is gone when its end is told");
    eventually("another is started, with an empty layer", || {
        of("fills").is_some_and(|pod| claim(&pod) != claim(&ended))
    });
    let room = of("room").unwrap();
    assert_eq!((&room["state"], &room["restarts"]), (&"running".into(), &0.into()), "{room}");
    let big = std::fs::metadata(layers.join(claim(&room)).join("c/u/big")).unwrap();
    assert_eq!(big.len(), 49152 * 512);
    flock.ok(&["stop", "fills"]);
}
