//! DHCP as a boot server hears and speaks it (RFC 2131, 2132, 3004, 4578; UEFI 2.10, 24.7 for HTTP boot), as bytes.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// Longest message read or written; longer ones are cut by the socket and refused here.
pub const MESSAGE_BYTES_MAX: usize = 1472;
/// Options kept of one message; what follows is not read.
pub const OPTIONS_MAX: usize = 64;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const FIXED_BYTES: usize = 236;
const FILE_BYTES_MAX: usize = 127;

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mac = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2);
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("{text:?} is no hardware address like 52:54:00:12:34:56"))?;
        }
        match parts.next() {
            None => Ok(Self(mac)),
            Some(_) => Err(format!("{text:?} is longer than a hardware address")),
        }
    }
}

/// What a client wants, DHCP option 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who is there?
    Discover,
    /// This one, please; or: may I keep it?
    Request,
    /// Somebody else has it.
    Decline,
    /// I am done with it.
    Release,
    /// I have an address; what else should I know?
    Inform,
}

/// What a client is, which decides what it is given to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// iPXE that speaks HTTP: takes a script.
    Ipxe,
    /// A PXE ROM, or an iPXE without HTTP, of that architecture (RFC 4578): takes iPXE by TFTP.
    Pxe(u16),
    /// UEFI HTTP boot of that architecture: takes an EFI program.
    Http(u16),
    /// Does not boot: an operating system that wants an address.
    Other,
}

/// A client's message, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it wants.
    pub kind: Kind,
    /// Its own hardware address.
    pub mac: Mac,
    /// What it is.
    pub client: Client,
    /// Comes back in the answer.
    pub xid: u32,
    /// Comes back in the answer.
    pub flags: u16,
    /// The address it has, or none.
    pub ciaddr: Ipv4Addr,
    /// The relay that passed it on, or none.
    pub giaddr: Ipv4Addr,
    /// The address it asks for.
    pub wanted: Option<Ipv4Addr>,
    /// The server it speaks to.
    pub server: Option<Ipv4Addr>,
    /// Its UUID (option 97), which comes back in the answer.
    pub uuid: Option<Vec<u8>>,
}

impl Request {
    /// Reads a client's message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let fixed = bytes.get(..FIXED_BYTES).ok_or("shorter than a DHCP message")?;
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err("longer than MESSAGE_BYTES_MAX");
        }
        // BOOTREQUEST, Ethernet, addresses of six bytes.
        if fixed[..3] != [1, 1, 6] {
            return Err("no request of an Ethernet client");
        }
        if bytes.get(FIXED_BYTES..FIXED_BYTES + 4) != Some(&COOKIE) {
            return Err("no DHCP cookie");
        }
        let options = Options::parse(&bytes[FIXED_BYTES + 4..]);
        let kind = match options.get(53) {
            Some([1]) => Kind::Discover,
            Some([3]) => Kind::Request,
            Some([4]) => Kind::Decline,
            Some([7]) => Kind::Release,
            Some([8]) => Kind::Inform,
            _ => return Err("no kind of message that a client sends"),
        };
        let mac = Mac([fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]]);
        if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
            return Err("the hardware address is nobody's");
        }
        let address = |code: u8| {
            let four: [u8; 4] = options.get(code)?.try_into().ok()?;
            Some(Ipv4Addr::from(four))
        };
        let at = |n: usize| Ipv4Addr::new(fixed[n], fixed[n + 1], fixed[n + 2], fixed[n + 3]);
        Ok(Self {
            kind,
            mac,
            client: options.client(),
            xid: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            flags: u16::from_be_bytes([fixed[10], fixed[11]]),
            ciaddr: at(12),
            giaddr: at(24),
            wanted: address(50),
            server: address(54),
            // RFC 4578: type 0 and 16 bytes.
            uuid: options.get(97).filter(|uuid| uuid.len() == 17).map(<[u8]>::to_vec),
        })
    }
}

struct Options<'a>(Vec<(u8, &'a [u8])>);

impl<'a> Options<'a> {
    /// Reads code, length, value until the end, a cut option, or [`OPTIONS_MAX`].
    fn parse(mut bytes: &'a [u8]) -> Self {
        let mut options = Vec::new();
        while let [code, rest @ ..] = bytes {
            match (*code, rest) {
                (0, _) => bytes = rest,
                (255, _) | (_, []) => break,
                (code, [len, rest @ ..]) => {
                    let Some((value, next)) = rest.split_at_checked(usize::from(*len)) else {
                        break;
                    };
                    if options.len() >= OPTIONS_MAX {
                        break;
                    }
                    options.push((code, value));
                    bytes = next;
                }
            }
        }
        Self(options)
    }

    fn get(&self, code: u8) -> Option<&'a [u8]> {
        self.0.iter().find(|(c, _)| *c == code).map(|(_, value)| *value)
    }

    fn client(&self) -> Client {
        let class = self.get(60).unwrap_or_default();
        let arch = self
            .get(93)
            .and_then(|v| Some(u16::from_be_bytes(v.get(..2)?.try_into().ok()?)))
            .or_else(|| arch_of_class(class));
        if class.starts_with(b"HTTPClient") {
            return Client::Http(arch.unwrap_or(u16::MAX));
        }
        // RFC 3004 puts a length before each class; iPXE, as most, does not.
        let user = self.get(77).unwrap_or_default();
        let ipxe = user == b"iPXE" || user == b"\x04iPXE";
        // Without 175 it is no iPXE that we know; 19 in it says that HTTP is built in.
        let http = self.get(175).is_none_or(|features| Options::parse(features).get(19).is_some());
        match (ipxe, class.starts_with(b"PXEClient")) {
            (true, _) if http => Client::Ipxe,
            (_, true) => Client::Pxe(arch.unwrap_or(0)),
            _ => Client::Other,
        }
    }
}

/// `PXEClient:Arch:00007:UNDI:003016` → 7.
fn arch_of_class(class: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(class).ok()?;
    text.split(':').skip_while(|part| *part != "Arch").nth(1)?.parse().ok()
}

/// What a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To a discover.
    Offer,
    /// To a request or an inform.
    Ack,
    /// To a request for an address that cannot be had.
    Nak,
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<'a> {
    /// What it says.
    pub verdict: Verdict,
    /// Ours; option 54 and siaddr.
    pub server: Ipv4Addr,
    /// The client's, or none: a proxy gives no addresses.
    pub yiaddr: Ipv4Addr,
    /// What to load: a file name for TFTP, or a URL. Left out when longer than the field has bytes.
    pub file: Option<&'a str>,
    /// `PXEClient` or `HTTPClient`: without it the client takes no boot file from a proxy.
    pub class: Option<&'a str>,
    /// For a BIOS: load the file, ask no further server (PXE 2.1, option 43, tag 6, bit 3).
    pub no_discovery: bool,
    /// Further options, in ascending order.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Reply<'_> {
    /// The bytes to send.
    #[must_use]
    pub fn bytes(&self, to: &Request) -> Vec<u8> {
        let mut out = vec![0; FIXED_BYTES];
        out[..3].copy_from_slice(&[2, 1, 6]);
        out[4..8].copy_from_slice(&to.xid.to_be_bytes());
        out[10..12].copy_from_slice(&to.flags.to_be_bytes());
        if self.verdict == Verdict::Ack {
            out[12..16].copy_from_slice(&to.ciaddr.octets());
        }
        out[16..20].copy_from_slice(&self.yiaddr.octets());
        out[20..24].copy_from_slice(&self.server.octets());
        out[24..28].copy_from_slice(&to.giaddr.octets());
        out[28..34].copy_from_slice(&to.mac.0);
        let file = self.file.filter(|file| file.len() <= FILE_BYTES_MAX);
        if let Some(file) = file {
            out[108..108 + file.len()].copy_from_slice(file.as_bytes());
        }
        out.extend_from_slice(&COOKIE);
        let kind = match self.verdict {
            Verdict::Offer => 2,
            Verdict::Ack => 5,
            Verdict::Nak => 6,
        };
        let mut put = |code: u8, value: &[u8]| {
            // Values are ours and short: names, addresses, labels that were cut before.
            let value = &value[..value.len().min(255)];
            out.extend_from_slice(&[code, value.len() as u8]);
            out.extend_from_slice(value);
        };
        put(53, &[kind]);
        put(54, &self.server.octets());
        if let Some(class) = self.class {
            put(60, class.as_bytes());
        }
        if self.no_discovery {
            put(43, &[6, 1, 8, 255]);
        }
        // UEFI's HTTP boot reads the option, PXE the field.
        if let Some(file) = file.filter(|_| self.class == Some("HTTPClient")) {
            put(67, file.as_bytes());
        }
        if let Some(uuid) = &to.uuid {
            put(97, uuid);
        }
        for (code, value) in &self.options {
            put(*code, value);
        }
        out.push(255);
        // RFC 1542: 300 bytes at least; old relays drop shorter ones.
        out.resize(out.len().max(300), 0);
        out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A client's message of these options.
    pub(in crate::serve) fn message(mac: [u8; 6], options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = vec![0; FIXED_BYTES];
        out[..3].copy_from_slice(&[1, 1, 6]);
        out[4..8].copy_from_slice(&7u32.to_be_bytes());
        out[28..34].copy_from_slice(&mac);
        out.extend_from_slice(&COOKIE);
        for (code, value) in options {
            out.extend_from_slice(&[*code, value.len() as u8]);
            out.extend_from_slice(value);
        }
        out.push(255);
        out
    }

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn client(options: &[(u8, &[u8])]) -> Client {
        let mut all: Vec<(u8, &[u8])> = vec![(53, &[1])];
        all.extend_from_slice(options);
        Request::parse(&message(MAC, &all)).unwrap().client
    }

    #[test]
    fn clients_are_told_apart() {
        let bios: &[u8] = b"PXEClient:Arch:00000:UNDI:002001";
        assert_eq!(client(&[(60, bios), (93, &[0, 0])]), Client::Pxe(0));
        assert_eq!(client(&[(60, b"PXEClient:Arch:00007:UNDI:003016")]), Client::Pxe(7));
        assert_eq!(client(&[(60, b"HTTPClient:Arch:00016:UNDI:003001")]), Client::Http(16));
        assert_eq!(client(&[(60, bios), (77, b"iPXE"), (175, &[19, 1, 1])]), Client::Ipxe);
        assert_eq!(client(&[(60, bios), (77, b"\x04iPXE")]), Client::Ipxe);
        // A ROM's iPXE that cannot do HTTP is given one that can.
        assert_eq!(client(&[(60, bios), (77, b"iPXE"), (175, &[17, 1, 1])]), Client::Pxe(0));
        assert_eq!(client(&[(60, b"udhcp 1.36")]), Client::Other);
        assert_eq!(client(&[]), Client::Other);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let refused = |bytes: &[u8]| Request::parse(bytes).unwrap_err();
        let good = message(MAC, &[(53, &[1])]);
        assert_eq!(refused(&good[..200]), "shorter than a DHCP message");
        assert_eq!(refused(&vec![1; 2000]), "longer than MESSAGE_BYTES_MAX");
        let mut reply = good.clone();
        reply[0] = 2;
        assert_eq!(refused(&reply), "no request of an Ethernet client");
        let mut bootp = good.clone();
        bootp[236] = 0;
        assert_eq!(refused(&bootp), "no DHCP cookie");
        assert_eq!(refused(&message(MAC, &[])), "no kind of message that a client sends");
        assert_eq!(refused(&message(MAC, &[(53, &[2])])), "no kind of message that a client sends");
        assert_eq!(refused(&message([0xff; 6], &[(53, &[1])])), "the hardware address is nobody's");
        assert_eq!(refused(&message([0; 6], &[(53, &[1])])), "the hardware address is nobody's");
    }

    /// An independent reader: smoltcp's.
    #[test]
    fn replies_are_read_by_smoltcp() {
        let request = message(MAC, &[(53, &[1]), (97, &[0; 17])]);
        let request = Request::parse(&request).unwrap();
        let reply = Reply {
            verdict: Verdict::Offer,
            server: Ipv4Addr::new(10, 0, 0, 1),
            yiaddr: Ipv4Addr::new(10, 0, 0, 9),
            file: Some("undionly.kpxe"),
            class: Some("PXEClient"),
            no_discovery: true,
            options: vec![(1, vec![255, 255, 255, 0]), (51, vec![0, 0, 1, 0])],
        };
        let bytes = reply.bytes(&request);
        let packet = smoltcp::wire::DhcpPacket::new_checked(&bytes[..]).unwrap();
        let read = smoltcp::wire::DhcpRepr::parse(&packet).unwrap();
        assert_eq!(read.message_type, smoltcp::wire::DhcpMessageType::Offer);
        assert_eq!(read.your_ip, reply.yiaddr);
        assert_eq!(read.server_identifier, Some(reply.server));
        assert_eq!(read.lease_duration, Some(256));
        assert_eq!(packet.get_boot_file().unwrap(), "undionly.kpxe");
        assert_eq!(packet.transaction_id(), 7);
        let kinds: Vec<u8> = packet.options().map(|o| o.kind).collect();
        assert_eq!(kinds, [53, 54, 60, 43, 97, 1, 51]);
    }

    #[test]
    fn hardware_addresses_read_both_ways() {
        assert_eq!("52-54-00-AB-cd-01".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:cd:01");
        for bad in ["", "52:54", "52:54:00:ab:cd:01:02", "52:54:00:ab:cd:g1", "5:54:00:ab:cd:01"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_messages_never_panic(mut bytes in proptest::collection::vec(0u8.., 0..700), fix in proptest::bool::ANY) {
            if fix && bytes.len() > 244 {
                bytes[..3].copy_from_slice(&[1, 1, 6]);
                bytes[236..240].copy_from_slice(&COOKIE);
                bytes[240..243].copy_from_slice(&[53, 1, 1]);
            }
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn options_survive(values in proptest::collection::vec((60u8..200, proptest::collection::vec(0u8.., 0..40)), 0..20)) {
            let mut all: Vec<(u8, &[u8])> = vec![(53, &[3])];
            all.extend(values.iter().map(|(c, v)| (*c, v.as_slice())));
            let bytes = message(MAC, &all);
            let options = Options::parse(&bytes[FIXED_BYTES + 4..]);
            proptest::prop_assert_eq!(options.0, all);
        }
    }
}
