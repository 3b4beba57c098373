//! The server's mind, asked as machines ask.

use super::*;
use crate::serve::dhcp::tests::message;

const RACK: &str = r#"
    [[machine]]
    mac = "52:54:00:00:00:01"
    name = "n1"
    labels = { rack = "r1" }
    cmdline = "quiet"
    [[machine]]
    mac = "52:54:00:00:00:02"
    name = "n2"
    address = "10.0.0.200"
"#;
const BIOS: &[u8] = b"PXEClient:Arch:00000:UNDI:002001";
const HTTP: &[u8] = b"HTTPClient:Arch:00016:UNDI:003001";
const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);

fn raw(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n]
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

struct World {
    core: Core,
    next: u8,
    events: Vec<Event>,
}

impl World {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            server: ip(1),
            prefix: 24,
            http_port: 7403,
            unknown: Unknown::Maintenance,
            names: "m-{mac6}".into(),
            credentials: true,
            window: s(120),
            pool: None,
            cmdline: "panic=30".into(),
        };
        change(&mut config);
        let core = Core::new(config, Rack::parse(RACK).unwrap());
        Self { core, next: 0, events: Vec::new() }
    }

    fn dhcp(&mut self, now: Duration, late: bool, bytes: &[u8]) -> Option<Send> {
        let next = &mut self.next;
        let mut fresh = || {
            *next += 1;
            [*next; 16]
        };
        let from = if late { SocketAddrV4::new(ip(77), 4011) } else { NOBODY };
        let (send, events) = self.core.dhcp(now, late, from, bytes, &mut fresh);
        self.events.extend(events);
        send
    }

    /// A discover with these options; the file of the answer.
    fn file(&mut self, now: Duration, mac: u8, options: &[(u8, &[u8])]) -> Option<String> {
        let mut all: Vec<(u8, &[u8])> = vec![(53, &[1])];
        all.extend_from_slice(options);
        let send = self.dhcp(now, false, &message(raw(mac), &all))?;
        let end = send.bytes[108..236].iter().position(|b| *b == 0).unwrap();
        Some(String::from_utf8(send.bytes[108..108 + end].to_vec()).unwrap())
    }

    fn ipxe(&mut self, now: Duration, mac: u8) -> Option<String> {
        self.file(now, mac, &[(60, BIOS), (77, b"iPXE")])
    }

    fn get(&mut self, now: Duration, peer: u8, mac: Option<u8>, url: &str) -> Answer {
        self.ask(now, peer, mac, url, false, false)
    }

    fn ask(
        &mut self,
        now: Duration,
        peer: u8,
        mac: Option<u8>,
        url: &str,
        head: bool,
        resumes: bool,
    ) -> Answer {
        let path = url.strip_prefix("http://10.0.0.1:7403").unwrap_or(url).to_owned();
        let next = &mut self.next;
        let mut fresh = || {
            *next += 1;
            [*next; 16]
        };
        let ask = http::Ask { path, head, resumes };
        let mac = mac.map(|n| Mac(raw(n)));
        let (answer, events) = self.core.http(now, ip(peer), mac, &ask, &mut fresh);
        self.events.extend(events);
        answer
    }

    /// The URL of the archive in a machine's script.
    fn script(&mut self, now: Duration, mac: u8) -> String {
        let url = self.ipxe(now, mac).unwrap();
        let Answer::Text(text) = self.get(now, mac, Some(mac), &url) else { panic!() };
        let line = text.lines().find(|line| line.contains("node.cpio http")).unwrap();
        line.split(' ').find(|word| word.starts_with("http")).unwrap().to_owned()
    }
}

fn refused(answer: &Answer) -> bool {
    matches!(answer, Answer::Refuse(403, _))
}

#[test]
fn a_proxy_answers_who_boots_and_gives_no_address() {
    let mut world = World::new(|_| {});
    let bios = message(raw(1), &[(53, &[1]), (60, BIOS)]);
    let send = world.dhcp(s(0), false, &bios).unwrap();
    assert_eq!(send.to, BROADCAST);
    assert_eq!(send.bytes[16..20], [0; 4], "yiaddr");
    assert_eq!(world.file(s(0), 1, &[(60, BIOS)]).as_deref(), Some("undionly.kpxe"));
    let efi = b"PXEClient:Arch:00007:UNDI:003016";
    assert_eq!(world.file(s(0), 1, &[(60, efi)]).as_deref(), Some("snponly.efi"));
    // An operating system, another architecture, a request on port 67: not ours.
    assert_eq!(world.file(s(0), 1, &[]), None);
    assert_eq!(world.file(s(0), 1, &[(60, b"PXEClient:Arch:00011:UNDI:003016")]), None);
    let request = message(raw(1), &[(53, &[3]), (60, BIOS)]);
    assert_eq!(world.dhcp(s(0), false, &request), None);
    assert_eq!(world.dhcp(s(0), false, b"no DHCP"), None);
    // Port 4011 answers who asked, at its own port.
    let send = world.dhcp(s(0), true, &request).unwrap();
    assert_eq!(send.to, SocketAddrV4::new(ip(77), 4011));
    assert_eq!(send.bytes[242], 5, "an acknowledgement");
}

#[test]
fn ipxe_gets_its_script_then_its_configuration_once() {
    let mut world = World::new(|_| {});
    let url = world.ipxe(s(0), 1).unwrap();
    assert_eq!(world.ipxe(s(1), 1).unwrap(), url, "the same question has the same answer");
    let Answer::Text(text) = world.get(s(2), 9, Some(1), &url) else { panic!() };
    assert!(text.contains("http://10.0.0.1:7403/vmlinuz"), "{text}");
    assert!(text.contains("panic=30 quiet\n"), "{text}");
    let node = world.script(s(3), 1);
    assert!(refused(&world.get(s(4), 9, Some(2), &node)), "another machine");
    assert!(refused(&world.get(s(4), 9, None, &node)), "from beyond the link");
    assert!(refused(&world.get(s(4), 9, Some(1), &node.replace("/0", "/1"))), "another token");
    let Answer::Node(given) = world.get(s(5), 9, Some(1), &node) else { panic!() };
    assert!(given.credentials && !given.uki);
    assert!(given.node_toml.contains("name = \"n1\"") && given.node_toml.contains("rack = \"r1\""));
    assert_eq!(world.core.progress(), (1, 2));
    assert!(refused(&world.get(s(6), 9, Some(1), &node)), "twice");
    assert!(refused(&world.get(s(6), 9, Some(1), &url)), "the script again");
    // Booted again, it asks again.
    let again = world.script(s(7), 1);
    assert_ne!(again, node);
    assert!(matches!(world.get(s(8), 9, Some(1), &again), Answer::Node(_)));
    let told: Vec<&str> = world.events.iter().map(|e| e.event).collect();
    assert!(told.contains(&"configured") && told.contains(&"refused") && told.contains(&"ipxe"));
}

#[test]
fn a_window_closes() {
    let mut world = World::new(|_| {});
    let node = world.script(s(0), 1);
    assert!(refused(&world.get(s(121), 9, Some(1), &node)));
    let url = world.ipxe(s(200), 1).unwrap();
    assert!(refused(&world.get(s(321), 9, Some(1), &url)));
}

#[test]
fn uefi_http_boot_asks_for_the_size_and_may_go_on_where_it_was() {
    let mut world = World::new(|_| {});
    let url = world.file(s(0), 1, &[(60, HTTP)]).unwrap();
    assert!(url.ends_with("/uki.efi"), "{url}");
    let head = world.ask(s(1), 9, Some(1), &url, true, false);
    assert!(matches!(head, Answer::Node(given) if given.uki));
    assert_eq!(world.core.progress().0, 0, "a size is no configuration");
    assert!(matches!(world.get(s(2), 9, Some(1), &url), Answer::Node(_)));
    assert!(matches!(world.ask(s(3), 9, Some(1), &url, false, true), Answer::Node(_)));
    assert!(refused(&world.ask(s(3), 8, Some(1), &url, false, true)), "another address");
    assert!(refused(&world.get(s(3), 9, Some(1), &url)), "from the start");
}

#[test]
fn without_credentials_the_link_does_not_matter() {
    let mut world = World::new(|config| config.credentials = false);
    let url = world.ipxe(s(0), 1).unwrap();
    assert!(matches!(world.get(s(1), 9, None, &url), Answer::Text(_)));
    let node = world.script(s(2), 1);
    let Answer::Node(given) = world.get(s(3), 9, None, &node) else { panic!() };
    assert!(!given.credentials);
}

#[test]
fn machines_that_nobody_named() {
    let mut ignore = World::new(|config| config.unknown = Unknown::Ignore);
    assert_eq!(ignore.ipxe(s(0), 9), None);
    assert_eq!(ignore.events[0].event, "unknown");
    let mut wait = World::new(|_| {});
    let node = wait.script(s(0), 9);
    let Answer::Node(given) = wait.get(s(1), 9, Some(9), &node) else { panic!() };
    assert!(!given.credentials, "a stranger is given no keys");
    assert!(given.node_toml.contains("maintenance = true"), "{}", given.node_toml);
    assert!(given.node_toml.contains("MAC not in rack.toml"), "{}", given.node_toml);
    let mut auto = World::new(|config| config.unknown = Unknown::Auto);
    let node = auto.script(s(0), 9);
    let Answer::Node(given) = auto.get(s(1), 9, Some(9), &node) else { panic!() };
    assert!(given.credentials && given.machine.name == "m-000009");
}

#[test]
fn later_machines_join_earlier_ones() {
    let mut world = World::new(|_| {});
    let first = world.script(s(0), 1);
    let Answer::Node(given) = world.get(s(1), 31, Some(1), &first) else { panic!() };
    assert!(given.node_toml.contains("join = []"), "{}", given.node_toml);
    let second = world.script(s(2), 2);
    let Answer::Node(given) = world.get(s(3), 32, Some(2), &second) else { panic!() };
    assert!(given.node_toml.contains("join = [\"10.0.0.31:7400\"]"), "{}", given.node_toml);
}

#[test]
fn the_only_server_lends_addresses_to_all() {
    let mut world =
        World::new(|config| config.pool = Some(Pool::parse("10.0.0.100-10.0.0.109").unwrap()));
    let discover = |mac: u8| message(raw(mac), &[(53, &[1])]);
    let offer = world.dhcp(s(0), false, &discover(1)).unwrap();
    let address = <[u8; 4]>::try_from(&offer.bytes[16..20]).unwrap();
    assert_eq!(address[..3], [10, 0, 0]);
    let request = |mac: u8, address: [u8; 4]| {
        message(raw(mac), &[(53, &[3]), (50, &address), (54, &[10, 0, 0, 1])])
    };
    assert_eq!(world.dhcp(s(1), false, &request(1, address)).unwrap().bytes[242], 5);
    assert_eq!(world.dhcp(s(1), false, &request(3, address)).unwrap().bytes[242], 6, "another's");
    let other = message(raw(1), &[(53, &[3]), (50, &address), (54, &[10, 0, 0, 2])]);
    assert_eq!(world.dhcp(s(1), false, &other), None, "it chose another server");
    // rack.toml fixes this one's.
    let offer = world.dhcp(s(2), false, &discover(2)).unwrap();
    assert_eq!(offer.bytes[16..20], [10, 0, 0, 200]);
    // Who boots is told what, too, and by no class that makes PXE look for menus.
    let boots = world.dhcp(s(3), false, &message(raw(1), &[(53, &[1]), (60, BIOS)])).unwrap();
    assert!(boots.bytes[108..].starts_with(b"undionly.kpxe"));
    assert!(!boots.bytes.windows(9).any(|w| w == b"PXEClient"));
}

#[test]
fn a_flood_of_strangers_ends() {
    let mut world = World::new(|_| {});
    for n in 0..SEEN_BY_STRANGERS_MAX + 50 {
        let [a, b] = (n as u16).to_be_bytes();
        let bytes = message([2, 0, 0, 0, a, b], &[(53, &[1]), (60, BIOS)]);
        let answered = world.dhcp(s(0), false, &bytes).is_some();
        assert_eq!(answered, n < SEEN_BY_STRANGERS_MAX, "{n}");
    }
    assert_eq!(world.core.seen.len(), SEEN_BY_STRANGERS_MAX);
    let named = message(raw(1), &[(53, &[1]), (60, BIOS)]);
    assert!(world.dhcp(s(0), false, &named).is_some(), "rack.toml names it");
}

proptest::proptest! {
    #[test]
    fn whatever_is_asked_keys_go_to_their_machine(steps in proptest::collection::vec((0u8..4, 1u8..4, 1u8..4, 0u64..60), 1..60)) {
        let mut world = World::new(|config| config.unknown = Unknown::Auto);
        let mut now = Duration::ZERO;
        let mut urls: Vec<String> = Vec::new();
        for (what, mac, other, later) in steps {
            now += s(later);
            match what {
                0 => urls.extend(world.ipxe(now, mac)),
                1 => urls.extend(world.file(now, mac, &[(60, HTTP)])),
                _ => for url in urls.clone() {
                    match world.get(now, other, Some(other), &url) {
                        Answer::Node(given) => proptest::prop_assert_eq!(given.mac, Mac(raw(other))),
                        Answer::Text(text) => urls.extend(text.split_whitespace().filter(|w| w.ends_with("node.cpio") && w.starts_with("http")).map(str::to_owned)),
                        _ => {}
                    }
                },
            }
        }
    }
}
