//! The server on real sockets: two network namespaces and a cable. Skips, by name, without root or ip(8).

use super::*;
use crate::bootdir::Manifest;
use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket as Std},
    process::Command,
    sync::{Arc, Mutex, mpsc},
};

/// A server's and a client's namespace, removed at the end.
struct Cable {
    server: String,
    client: String,
}

impl Cable {
    fn lay(test: &str) -> Option<Self> {
        let own = std::process::id();
        let cable = Self { server: format!("q{test}s{own}"), client: format!("q{test}c{own}") };
        let lines = [
            format!("netns add {}", cable.server),
            format!("netns add {}", cable.client),
            format!(
                "-n {} link add v0 type veth peer name v1 netns {}",
                cable.server, cable.client
            ),
            format!("-n {} addr add 10.9.0.1/24 dev v0", cable.server),
            format!("-n {} link set v1 address 52:54:00:09:00:02", cable.client),
            format!("-n {} addr add 10.9.0.2/24 dev v1", cable.client),
            format!("-n {} link set v0 up", cable.server),
            format!("-n {} link set v1 up", cable.client),
            format!("-n {} link set lo up", cable.server),
        ];
        for line in lines {
            let made = Command::new("ip").args(line.split(' ')).output();
            if !made.as_ref().is_ok_and(|out| out.status.success()) {
                skip::because(test, format_args!("ip {line}: {made:?}"));
                return None;
            }
        }
        Some(cable)
    }

    /// Runs something on a thread inside a namespace.
    fn inside<T: std::marker::Send + 'static>(
        name: &str,
        run: impl FnOnce() -> T + std::marker::Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run()
        })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn boot_dir() -> BootDir {
    let manifest = Manifest {
        set: "qemu".into(),
        release: "6.12".into(),
        cmdline: "panic=30".into(),
        sha256: std::collections::BTreeMap::default(),
    };
    BootDir {
        manifest,
        vmlinuz: vec![1; 200_000].into(),
        initramfs: vec![2; 4096].into(),
        stub: crate::pe::tests::program().into(),
        undionly: vec![3; 5000].into(),
        snponly: vec![4; 5000].into(),
    }
}

struct Fixed;

impl Keys for Fixed {
    fn files(&self, _: Mac, name: &str) -> std::result::Result<Vec<(String, Vec<u8>)>, String> {
        Ok(vec![("node.key".into(), format!("secret of {name}").into_bytes())])
    }
}

/// A running server; its events; how to stop it.
struct Running {
    events: Arc<Mutex<Vec<Event>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Running {
    fn start(cable: &Cable, pool: Option<&str>) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (sink, pool) = (Arc::clone(&events), pool.map(|p| lease::Pool::parse(p).unwrap()));
        let (ready, is_ready) = mpsc::channel();
        let thread = Cable::inside(&cable.server, move || {
            let interface = Interface::find(None).unwrap();
            assert_eq!((interface.name.as_str(), interface.prefix), ("v0", 24));
            let server = Server {
                dir: boot_dir(),
                rack: Rack::parse("[[machine]]\nmac = \"52:54:00:09:00:02\"\nname = \"n1\"\n[[machine]]\nmac = \"52:54:00:09:00:03\"\nname = \"n2\"").unwrap(),
                config: Config {
                    server: interface.address,
                    prefix: interface.prefix,
                    http_port: 7403,
                    unknown: Unknown::Ignore,
                    names: "m-{mac6}".into(),
                    credentials: true,
                    window: Duration::from_secs(60),
                    pool,
                    cmdline: "panic=30".into(),
                },
                keys: Some(Box::new(Fixed)),
                events: Box::new(move |event| sink.lock().unwrap().push(event)),
            };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let serving = run(server, Ports::here(&interface, 7403)?, async {
                    let _ = stopped.await;
                });
                tokio::pin!(serving);
                // Its sockets are bound when it is polled for the first time.
                tokio::select! {
                    biased;
                    end = &mut serving => return end,
                    () = async {} => {}
                }
                ready.send(()).unwrap();
                serving.await
            })
        });
        let running = Self { events, stop: Some(stop), thread: Some(thread) };
        is_ready.recv().ok();
        running
    }

    fn stop(mut self) -> Result<()> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.thread.take().unwrap().join().unwrap()
    }
}

/// The file that a discover of this hardware address is answered with.
fn discover(mac: u8, class: &[u8]) -> String {
    let socket = Std::bind("0.0.0.0:68").unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // An address of our own is no way to broadcast, so say where.
    socket2::SockRef::from(&socket).bind_device(Some(b"v1")).unwrap();
    let user: &[u8] = if class.starts_with(b"PXE") { b"iPXE" } else { b"" };
    let mac = [0x52, 0x54, 0, 9, 0, mac];
    let message = dhcp::tests::message(mac, &[(53, &[1]), (60, class), (77, user)]);
    socket.send_to(&message, "255.255.255.255:67").unwrap();
    let mut answer = [0; 1500];
    let len = socket.recv(&mut answer).unwrap();
    assert!(len > 236);
    let file = &answer[108..236];
    String::from_utf8(file[..file.iter().position(|b| *b == 0).unwrap()].to_vec()).unwrap()
}

/// Status and body of a web request.
fn get(url: &str, more: &str) -> (u16, Vec<u8>) {
    let path = url.strip_prefix("http://10.9.0.1:7403").unwrap_or(url);
    let mut stream = TcpStream::connect("10.9.0.1:7403").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&bytes[9..12]).unwrap().parse().unwrap();
    (status, bytes[head + 4..].to_vec())
}

/// A file by TFTP, one block at a time; `drop` blocks are not acknowledged the first time.
fn tftp_get(name: &str, drop: u16) -> std::result::Result<Vec<u8>, String> {
    let socket = Std::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request = [b"\0\x01", name.as_bytes(), b"\0octet\0"].concat();
    socket.send_to(&request, "10.9.0.1:69").unwrap();
    let (mut file, mut next, mut dropped) = (Vec::new(), 1u16, false);
    loop {
        let mut packet = [0; 600];
        let (len, from) = socket.recv_from(&mut packet).unwrap();
        if packet[1] == 5 {
            return Err(String::from_utf8_lossy(&packet[4..len - 1]).into_owned());
        }
        assert_ne!(from.port(), 69, "a transfer has a port of its own");
        let block = u16::from_be_bytes([packet[2], packet[3]]);
        if block == drop && !std::mem::replace(&mut dropped, true) {
            continue;
        }
        if block == next {
            file.extend_from_slice(&packet[4..len]);
            next += 1;
        }
        socket.send_to(&[0, 4, packet[2], packet[3]], from).unwrap();
        if len < 516 {
            return Ok(file);
        }
    }
}

#[test]
fn a_machine_is_given_everything_and_nobody_else_its_keys() {
    let Some(cable) = Cable::lay("all") else { return };
    let running = Running::start(&cable, None);
    let client = Cable::inside(&cable.client, || {
        assert_eq!(tftp_get("undionly.kpxe", 3).unwrap(), vec![3; 5000]);
        assert!(tftp_get("/etc/shadow", 0).unwrap_err().contains("there is no"));
        let bios = b"PXEClient:Arch:00000:UNDI:002001";
        let script = discover(2, bios);
        let (status, text) = get(&script, "");
        assert_eq!(status, 200);
        let text = String::from_utf8(text).unwrap();
        let node = text.split_whitespace().find(|w| w.ends_with("/node.cpio")).unwrap().to_owned();
        assert_eq!(get("/vmlinuz", ""), (200, vec![1; 200_000]));
        assert_eq!(get("/vmlinuz", "Range: bytes=199990-\r\n"), (206, vec![1; 10]));
        assert_eq!(get("/../etc/shadow", "").0, 404);
        // Another machine's script, asked for by us: ARP knows who we are.
        let other = discover(3, bios);
        assert_eq!(get(&other, "").0, 403);
        let (status, archive) = get(&node, "");
        let text = String::from_utf8_lossy(&archive);
        assert!(status == 200 && text.contains("secret of n1") && text.contains("name = \"n1\""));
        assert_eq!(get(&node, "").0, 403, "once");
        let uki = discover(2, b"HTTPClient:Arch:00016:UNDI:003001");
        let (status, image) = get(&uki, "");
        assert!(status == 200 && image.starts_with(b"MZ"));
        assert!(image.windows(12).any(|w| w == b"secret of n1"));
    });
    client.join().unwrap();
    let events = running.events.lock().unwrap().clone();
    let told = |what: &str| events.iter().filter(|e| e.event == what).count();
    assert_eq!(told("configured"), 2, "{events:?}");
    assert!(told("tftp") == 1 && told("script") == 1 && told("refused") >= 3, "{events:?}");
    assert!(events.iter().any(|e| e.progress == Some((1, 2))), "{events:?}");
    running.stop().unwrap();
}

#[test]
fn a_second_server_is_told_who_has_the_port() {
    let Some(cable) = Cable::lay("two") else { return };
    let running = Running::start(&cable, Some("10.9.0.100-10.9.0.109"));
    let second = Running::start(&cable, None);
    let error = second.stop().unwrap_err().to_string();
    let expected = format!("(process {})", std::process::id());
    assert!(error.contains("udp port 67 is taken by") && error.contains(&expected), "{error}");
    running.stop().unwrap();
}
