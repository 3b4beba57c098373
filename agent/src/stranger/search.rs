//! Who is there that no flock knows: one datagram asks all machines of a link, strangers answer with one each.
//!
//! | | bytes |
//! |---|---|
//! | question, [`DATAGRAM_BYTES`] | `quelea?1`, 8 bytes of chance, zeros |
//! | answer, at most as long | `quelea!1`, the same 8 bytes, a [`Card`] as JSON |
//!
//! Nothing of it is authenticated: a fingerprint that was found is to be compared with the machine's console. Nothing of it is kept.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::{Card, Fingerprint};
use crate::config::API_PORT;

/// The UDP port that strangers hear; nodes have nothing there.
pub const PORT: u16 = API_PORT;
/// The length of a question: no answer is longer, so that nobody is flooded by answers to questions in their name.
pub const DATAGRAM_BYTES: usize = 512;
/// Strangers in one answer of a node; further ones are left out.
pub const STRANGERS_MAX: usize = 256;
/// How long answers are waited for.
const WAIT: Duration = Duration::from_millis(1500);
/// How often it is asked meanwhile: datagrams may be lost.
const ASKS: u32 = 3;
/// Interfaces that are asked on; further ones are not.
const INTERFACES_MAX: usize = 64;
const QUESTION: &[u8; 8] = b"quelea?1";
const ANSWER: &[u8; 8] = b"quelea!1";

/// A question with these random bytes.
#[must_use]
pub fn question(nonce: [u8; 8]) -> Vec<u8> {
    let mut bytes = [&QUESTION[..], &nonce].concat();
    bytes.resize(DATAGRAM_BYTES, 0);
    bytes
}

/// The answer to a datagram; none to what is no question.
#[must_use]
pub fn answer(datagram: &[u8], card: &Card) -> Option<Vec<u8>> {
    let rest = datagram.strip_prefix(QUESTION).filter(|_| datagram.len() == DATAGRAM_BYTES)?;
    let mut bytes = [&ANSWER[..], rest.get(..8)?].concat();
    bytes.extend(serde_json::to_vec(card).ok()?);
    (bytes.len() <= DATAGRAM_BYTES).then_some(bytes)
}

/// The card in an answer to the question with these random bytes.
#[must_use]
pub fn card(datagram: &[u8], nonce: [u8; 8]) -> Option<Card> {
    let json = datagram.strip_prefix(ANSWER)?.strip_prefix(&nonce)?;
    let card: Card = serde_json::from_slice(json).ok()?;
    let plain = |text: &String| text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic());
    let texts = [&card.address, &card.mac, &card.uuid, &card.kernel, &card.version];
    (texts.into_iter().all(plain) && Fingerprint::parse(&card.fingerprint).is_some())
        .then_some(card)
}

/// Asks on every interface of this machine, and waits for answers.
///
/// # Errors
/// No socket, or no interface.
pub async fn search() -> std::io::Result<Vec<Card>> {
    let mut nonce = [0; 8];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut nonce)
        .map_err(|_| std::io::Error::other("the kernel gave no random bytes"))?;
    let mut sockets = Vec::new();
    for (name, address) in interfaces()? {
        let socket = UdpSocket::bind((address, 0)).await?;
        socket.bind_device(Some(name.as_bytes()))?;
        socket.set_broadcast(true)?;
        sockets.push(socket);
    }
    let asking = sockets.iter().map(|socket| ask(socket, nonce));
    let mut found: BTreeMap<String, Card> = BTreeMap::new();
    // One after the other would take as long as there are interfaces.
    let mut tasks = Vec::from_iter(asking.map(Box::pin));
    std::future::poll_fn(|context| {
        tasks.retain_mut(|task| match task.as_mut().poll(context) {
            std::task::Poll::Ready(cards) => {
                let room = STRANGERS_MAX.saturating_sub(found.len());
                found.extend(cards.into_iter().take(room));
                false
            }
            std::task::Poll::Pending => true,
        });
        if tasks.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    Ok(found.into_values().collect())
}

async fn ask(socket: &UdpSocket, nonce: [u8; 8]) -> BTreeMap<String, Card> {
    let mut found = BTreeMap::new();
    let everybody = SocketAddr::from((Ipv4Addr::BROADCAST, PORT));
    let mut buffer = [0; DATAGRAM_BYTES + 1];
    let start = Instant::now();
    for round in 1..=ASKS {
        // A link that is down answers nobody.
        let _ = socket.send_to(&question(nonce), everybody).await;
        let until = start + WAIT * round / ASKS;
        while let Ok(received) = tokio::time::timeout_at(until, socket.recv_from(&mut buffer)).await
        {
            let Ok((length, from)) = received else { continue };
            let told = buffer.get(..length).and_then(|bytes| card(bytes, nonce));
            if let Some(mut card) = told
                && found.len() < STRANGERS_MAX
            {
                // Where it answers from is where it is.
                card.address = from.ip().to_string();
                found.insert(card.fingerprint.clone(), card);
            }
        }
    }
    found
}

/// Interfaces with an IPv4 address but for the loopback, and that address.
fn interfaces() -> std::io::Result<Vec<(String, Ipv4Addr)>> {
    let mut found: Vec<(String, Ipv4Addr)> = Vec::new();
    for item in nix::ifaddrs::getifaddrs()? {
        let address = item.address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip());
        let Some(address) = address.filter(|a| !IpAddr::from(*a).is_loopback()) else { continue };
        if found.len() < INTERFACES_MAX
            && !found.iter().any(|(name, _)| *name == item.interface_name)
        {
            found.push((item.interface_name, address));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a_card() -> Card {
        Card {
            fingerprint: Fingerprint([7; 16]).to_string(),
            address: "255.255.255.255".into(),
            mac: "52:54:00:71:00:01".into(),
            uuid: "00000000-0000-4000-8000-000000000001".into(),
            cpus: 1024,
            memory_mib: 1 << 24,
            disks: 100,
            kernel: "6.12.117+deb12-cloud-amd64".into(),
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn a_question_is_answered_by_no_more_bytes_and_only_a_question() {
        let asked = question([3; 8]);
        let bytes = answer(&asked, &a_card()).unwrap();
        assert!(bytes.len() <= asked.len());
        assert_eq!(card(&bytes, [3; 8]), Some(a_card()));
        assert_eq!(card(&bytes, [4; 8]), None, "an answer to somebody else");
        assert_eq!(answer(&asked[..100], &a_card()), None, "shorter than what it asks for");
        assert_eq!(answer(&bytes, &a_card()), None, "two strangers do not talk for ever");
        let escape = Card { kernel: "\u{1b}[2J".into(), ..a_card() };
        assert_eq!(card(&answer(&asked, &escape).unwrap(), [3; 8]), None, "for a terminal");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = card(&bytes, [0; 8]);
            if let Some(out) = answer(&bytes, &a_card()) {
                prop_assert!(out.len() <= bytes.len());
            }
        }
    }
}
