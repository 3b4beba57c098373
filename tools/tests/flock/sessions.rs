//! Exec, attach, logs and port-forward as an operator has them, through a node that has not the pod.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Flock, eventually, hello_spec, pids_with};

/// How long a thing that must be shown may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// `quelea` at a terminal of its own, which the test types at.
struct Seat {
    child: Child,
    keys: std::fs::File,
    screen: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Seat {
    fn take(flock: &Flock, args: &[&str], columns: u16, rows: u16) -> Self {
        use std::os::unix::process::CommandExt as _;
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command: Command = flock.command(args);
        command.env("TERM", "vt100").stdin(end()).stdout(end()).stderr(end()).process_group(0);
        let child = command.spawn().unwrap();
        // Its copies of the terminal go with it.
        drop(command);
        drop(pty.slave);
        let keys = std::fs::File::from(pty.master);
        let mut from = keys.try_clone().unwrap();
        let (sender, screen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keys, screen, seen: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    fn look(&mut self, wait: Duration) -> bool {
        let bytes = self.screen.recv_timeout(wait);
        self.seen.push_str(&String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()));
        bytes.is_ok()
    }

    fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(self.look(left), "{text:?} was not shown: {:?}", self.seen);
        }
    }
}

/// A flock of two, with a pod of the app `box` on n2 only.
fn apart(test: &str, more: &str) -> Flock {
    let flock = Flock::up(test, 2);
    flock.import_tools();
    let script =
        "echo ready; trap 'exit 0' TERM; while read line; do echo got $line; done; sleep 1000";
    let spec = flock.file(
        "box.toml",
        &format!(
            "app = \"box\"\n[[container]]\nname = \"main\"\nimage = \"tools\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\ncpu = 0.02\nmemory = \"16Mi\"\nstop = {{ grace = \"1s\" }}\n{more}\n[place]\nrequire = [\"rack == r2\"]\n"
        ),
    );
    flock.ok(&["--node", "n1", "run", &spec]);
    assert_eq!(flock.pods("n1", "box")[0]["node"], "n2");
    flock
}

#[test]
fn a_terminal_in_a_pod_of_another_node() {
    let flock = apart("tty", "");
    let args = ["--node", "n1", "exec", "-it", "box", "--", "/bin/sh"];
    let mut seat = Seat::take(&flock, &args, 101, 37);
    seat.sees("# ");
    // The terminal's size is ours, its echo is the program's, and its name is in the environment.
    seat.types("stty size; echo $TERM-$((6*7))\n");
    seat.sees("37 101");
    seat.sees("vt100-42");
    // It changes with ours.
    let size = rustix::termios::Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&seat.keys, size).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(seat.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !seat.seen.contains("50 132") {
        assert!(Instant::now() < deadline, "the size did not arrive: {:?}", seat.seen);
        seat.types("stty size\n");
        seat.look(Duration::from_millis(200));
    }
    // Ctrl-C goes to the program in the pod, not to `quelea`.
    seat.types("sleep 1000; echo over-$((1+1))\n");
    seat.sees("over-$");
    seat.types("\x03");
    seat.types("echo still-$((1+1))\n");
    seat.sees("still-2");
    assert!(!seat.seen.contains("over-2"), "{:?}", seat.seen);
    seat.types("exit 7\n");
    assert_eq!(seat.child.wait().unwrap().code(), Some(7), "{:?}", seat.seen);
}

#[test]
fn input_through_a_pipe_and_who_goes_away_takes_the_program_along() {
    let flock = apart("pipe", "");
    let mut child = flock
        .command(&["--node", "n1", "exec", "-i", "box", "--", "/bin/cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "0123456789abcdef\n".repeat(20_000);
    let mut stdin = child.stdin.take().unwrap();
    let sent = text.clone();
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let mut back = String::new();
    child.stdout.take().unwrap().read_to_string(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    let same = back.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    assert!(back == text, "{} of {} bytes came back, alike to {same}", back.len(), text.len());

    let count = || pids_with("/bin/sleep 98761").len();
    let mut child = flock
        .command(&["--node", "n1", "exec", "box", "--", "/bin/sleep", "98761"])
        .spawn()
        .unwrap();
    // Itself, and the program in the pod.
    eventually("the program runs", || count() >= 2);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the program is gone", || count() == 0);
}

#[test]
fn attached_operators_see_and_feed_the_program_itself() {
    let flock = apart("attach", "stdin = \"pipe\"");
    let mut child = flock
        .command(&["--node", "n1", "attach", "box"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut bytes = [0; 64];
    let n = stdout.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"got one\n");
    child.kill().unwrap();
    child.wait().unwrap();
    // The program goes on, and its log has it.
    eventually("the log has it", || flock.ok(&["logs", "box"]).contains("got one"));
    let pods = flock.pods("n1", "box");
    assert_eq!((pods[0]["restarts"].as_u64(), &pods[0]["ready"]), (Some(0), &true.into()));
}

#[test]
fn logs_follow_across_rotation_and_know_times() {
    // A line on its input has it write far more than its files hold.
    let lines = 3000;
    let script = format!(
        "echo ready; trap 'exit 0' TERM; read go; i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i of a log that is rotated again and again; [ $((i % 100)) = 0 ] && sleep 0.15; done; exec sleep 1000"
    );
    let flock = Flock::up("logs", 2);
    flock.import_tools();
    let spec = flock.file(
        "box.toml",
        &format!(
            "app = \"box\"\n[[container]]\nname = \"main\"\nimage = \"tools\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\ncpu = 0.02\nmemory = \"16Mi\"\nstdin = \"pipe\"\nlog = {{ size = \"64Ki\", files = 2 }}\n[place]\nrequire = [\"rack == r2\"]\n"
        ),
    );
    flock.ok(&["--node", "n1", "run", &spec]);
    let mut child = flock
        .command(&["--node", "n1", "logs", "-f", "box.0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut seen = String::new();
    let mut bytes = [0; 65536];
    let mut read_until = |seen: &mut String, text: &str| {
        while !seen.contains(text) {
            let n = stdout.read(&mut bytes).unwrap();
            assert_ne!(n, 0, "the log ended before {text:?}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    };
    read_until(&mut seen, "ready\n");
    let mut feeder = flock
        .command(&["attach", "box"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    feeder.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let last = format!("line {lines} of a log that is rotated again and again\n");
    read_until(&mut seen, &last);
    for process in [&mut child, &mut feeder] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    for i in 1..=lines {
        assert!(seen.contains(&format!("line {i} of")), "line {i} is lost");
    }
    // What is kept is less: the oldest went.
    let kept = flock.ok(&["logs", "box"]);
    assert!(!kept.contains("line 1 of") && kept.ends_with(&last));
    let stamped = flock.ok(&["logs", "box", "--tail", "1", "--timestamps"]);
    let time = stamped.split(' ').next().unwrap().to_owned();
    assert!(time.ends_with('Z') && time.len() > 20, "{stamped}");
    // Lines that were written together have one time.
    let since = flock.ok(&["logs", "box", "--since", &time]);
    assert!(since.ends_with(&last) && since.len() < kept.len(), "{} bytes", since.len());
    assert_eq!(flock.ok(&["logs", "box", "--since", "1h"]), kept);
    let said = flock.say(&["logs", "box", "--since", "yesterday"]);
    assert!(said.code == 1 && said.err.contains("90s, 10m, 2h"), "{said:?}");
}

#[test]
fn ports_of_a_pod_on_another_node_are_ports_here() {
    let flock = Flock::up("forward", 2);
    let spec = flock.file("hello.toml", &hello_spec(1, "[place]\nrequire = [\"rack == r2\"]\n"));
    flock.ok(&["--node", "n1", "run", &spec]);
    let mut child = flock
        .command(&["--node", "n1", "port-forward", "hello", "0:8080", "0:81"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut port = || -> u16 {
        let line = lines.next().unwrap().unwrap();
        let (addr, _) = line.split_once(' ').unwrap();
        addr.strip_prefix("127.0.0.1:").unwrap().parse().unwrap()
    };
    let (open, closed) = (port(), port());
    let ask = |port: u16, path: &str| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let text = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A connection that is cut is one without an answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    for _ in 0..3 {
        let answer = ask(open, "/info");
        assert!(answer.contains("hello.0") && answer.contains("n2"), "{answer}");
    }
    // A port where nobody listens: that connection ends with a reason, the others go on.
    assert_eq!(ask(closed, "/"), "");
    assert!(ask(open, "/healthz").contains("200 OK"));
    child.kill().unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    child.wait().unwrap();
    assert!(errors.contains("to port 81:") && errors.contains("refused"), "{errors}");
    let said = flock.say(&["port-forward", "hello", "x:1"]);
    assert!(said.code == 1 && said.err.contains("LOCAL:REMOTE"), "{said:?}");
}
