//! The power button: the kernel's ACPI events over generic netlink. Needs the module `button`, no daemon.
//!
//! ```text
//! CTRL_CMD_GETFAMILY acpi_event ─▶ family id, id of acpi_mc_group ─▶ join ─▶ acpi_genl_event {class, bus, type, data}
//! ```
//! Layouts: include/uapi/linux/{netlink,genetlink}.h, drivers/acpi/event.c.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::sys;

/// Events taken before anything else is looked at again.
const EVENTS_MAX: usize = 16;
/// The answer about a family; events are much shorter.
const PACKET_BYTES_MAX: usize = 4096;
/// How long the kernel may take to answer: it answers before send(2) returns.
const ANSWERS_MAX: usize = 4;

const FAMILY: &[u8] = b"acpi_event\0";
const GROUP: &[u8] = b"acpi_mc_group";
const POWER: &[u8] = b"button/power";

const HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;
const GENL_ID_CTRL: u16 = 0x10;
const NLM_F_REQUEST: u16 = 1;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
const ACPI_GENL_ATTR_EVENT: u16 = 1;
/// `device_class` of `struct acpi_genl_event`.
const CLASS_BYTES: usize = 20;

/// A subscription.
#[derive(Debug)]
pub(super) struct Button {
    socket: OwnedFd,
    family: u16,
}

impl Button {
    /// Subscribes. `ENOENT`: this machine has no ACPI events.
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let generic = Some(netlink::GENERIC);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, generic)?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        send(&socket, &get_family(FAMILY), SendFlags::empty())?;
        for _ in 0..ANSWERS_MAX {
            let mut packet = [0; PACKET_BYTES_MAX];
            let (len, _) = recv(&socket, &mut packet[..], RecvFlags::DONTWAIT)?;
            let answer = packet.get(..len).unwrap_or_default();
            if let Some((family, group)) = parse_family(answer) {
                sys::join_netlink_group(&socket, group)?;
                return Ok(Self { socket, family });
            }
        }
        Err(Errno::NOENT)
    }

    /// Whether it has been pressed since the last call. Never waits.
    pub(super) fn pressed(&self) -> bool {
        let mut pressed = false;
        for _ in 0..EVENTS_MAX {
            let mut packet = [0; PACKET_BYTES_MAX];
            match recv(&self.socket, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    pressed |= is_power(packet.get(..len).unwrap_or_default(), self.family);
                }
                // Lost events: a press among them is repeated by whoever pressed.
                Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(_) => break,
            }
        }
        pressed
    }
}

impl AsFd for Button {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A request for what the kernel knows of a family.
fn get_family(name: &[u8]) -> Vec<u8> {
    let attribute = 4 + name.len();
    let len = HEADER_BYTES + GENERIC_HEADER_BYTES + attribute.next_multiple_of(4);
    let mut out = Vec::with_capacity(len);
    out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend(GENL_ID_CTRL.to_ne_bytes());
    out.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port: one request, one answer.
    out.extend([0; 8]);
    out.extend([CTRL_CMD_GETFAMILY, 1, 0, 0]);
    out.extend(u16::try_from(attribute).unwrap_or(u16::MAX).to_ne_bytes());
    out.extend(CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    out.extend(name);
    out.resize(len, 0);
    out
}

/// Type and attributes of the first message of a packet.
fn message(packet: &[u8]) -> Option<(u16, &[u8])> {
    let len = usize::try_from(number32(packet)?).ok()?;
    let kind = number16(packet.get(4..)?)?;
    Some((kind, packet.get(HEADER_BYTES + GENERIC_HEADER_BYTES..len)?))
}

/// Attributes in order; ends at the first that is cut.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(number16(bytes)?);
        // The two upper bits are flags.
        let kind = number16(bytes.get(2..)?)? & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn number16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

fn number32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

/// Text up to the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// Family id and the id of its group, from the answer to [`get_family`].
fn parse_family(packet: &[u8]) -> Option<(u16, u32)> {
    let (kind, body) = message(packet)?;
    if kind != GENL_ID_CTRL {
        return None;
    }
    let family = attributes(body).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)?;
    let groups = attributes(body).find(|(kind, _)| *kind == CTRL_ATTR_MCAST_GROUPS)?;
    let group = attributes(groups.1).find_map(|(_, group)| {
        let of = |wanted| attributes(group).find(|(kind, _)| *kind == wanted);
        let name = of(CTRL_ATTR_MCAST_GRP_NAME)?;
        let id = of(CTRL_ATTR_MCAST_GRP_ID)?;
        if text(name.1) == GROUP { number32(id.1) } else { None }
    })?;
    Some((number16(family.1)?, group))
}

/// Whether a packet says that the power button was pressed.
fn is_power(packet: &[u8], family: u16) -> bool {
    message(packet).is_some_and(|(kind, body)| {
        kind == family
            && attributes(body).any(|(kind, event)| {
                kind == ACPI_GENL_ATTR_EVENT
                    && event.get(..CLASS_BYTES).is_some_and(|class| text(class) == POWER)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(u16::try_from(4 + value.len()).expect("short").to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn packet(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(u32::try_from(20 + body.len()).expect("short").to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend([1, 1, 0, 0]);
        out.extend(body);
        out
    }

    fn event(class: &[u8]) -> Vec<u8> {
        let mut event = class.to_vec();
        event.resize(CLASS_BYTES, 0);
        event.extend(b"LNXPWRBN:00\0\0\0\0\0");
        event.extend([0x80, 0, 0, 0, 1, 0, 0, 0]);
        attribute(ACPI_GENL_ATTR_EVENT, &event)
    }

    #[test]
    fn the_family_and_its_group_are_found() {
        let group = |name: &[u8], id: u32| {
            [
                attribute(CTRL_ATTR_MCAST_GRP_ID, &id.to_ne_bytes()),
                attribute(CTRL_ATTR_MCAST_GRP_NAME, name),
            ]
            .concat()
        };
        let groups =
            [attribute(1, &group(b"other\0", 3)), attribute(2, &group(b"acpi_mc_group\0", 9))];
        let body = [
            attribute(CTRL_ATTR_FAMILY_NAME, FAMILY),
            attribute(CTRL_ATTR_FAMILY_ID, &25u16.to_ne_bytes()),
            // With the flag of nested attributes.
            attribute(CTRL_ATTR_MCAST_GROUPS | 0x8000, &groups.concat()),
        ]
        .concat();
        assert_eq!(parse_family(&packet(GENL_ID_CTRL, &body)), Some((25, 9)));
        assert_eq!(parse_family(&packet(2, &body)), None, "an error is no answer");
        for cut in 0..body.len() {
            let _ = parse_family(&packet(GENL_ID_CTRL, &body[..cut]));
        }
    }

    #[test]
    fn only_the_power_button_counts() {
        assert!(is_power(&packet(25, &event(b"button/power")), 25));
        for (class, family) in
            [(&b"button/sleep"[..], 25), (b"ac_adapter", 25), (b"button/powers", 25), (POWER, 26)]
        {
            assert!(!is_power(&packet(25, &event(class)), family), "{class:?}");
        }
    }

    #[test]
    fn the_request_is_what_the_kernel_reads() {
        let request = get_family(FAMILY);
        assert_eq!(request.len(), 36);
        assert_eq!(message(&request).map(|m| m.0), Some(GENL_ID_CTRL));
        let (_, body) = message(&request).expect("message");
        assert_eq!(attributes(body).collect::<Vec<_>>(), [(CTRL_ATTR_FAMILY_NAME, FAMILY)]);
    }

    #[test]
    fn the_kernel_answers_for_a_family_that_it_has() {
        // Every kernel has `nlctrl`; acpi_event only where there is ACPI.
        let flags = SocketFlags::CLOEXEC;
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::GENERIC))
                .expect("socket");
        send(&socket, &get_family(b"nlctrl\0"), SendFlags::empty()).expect("send");
        let mut bytes = [0; PACKET_BYTES_MAX];
        let (len, _) = recv(&socket, &mut bytes[..], RecvFlags::empty()).expect("recv");
        let (kind, body) = message(&bytes[..len]).expect("a message");
        assert_eq!(kind, GENL_ID_CTRL);
        let id = attributes(body).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID).expect("id");
        assert_eq!(number16(id.1), Some(GENL_ID_CTRL));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_family(&bytes);
            let _ = is_power(&bytes, 25);
            let _ = parse_family(&packet(GENL_ID_CTRL, &bytes));
            let _ = is_power(&packet(25, &bytes), 25);
        }
    }
}
