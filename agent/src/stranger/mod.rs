//! A machine that no flock knows: it has an address and no configuration, and waits for an operator to adopt it.
//!
//! ```text
//!  machine: makes a key, shows its fingerprint on the console, listens (TLS 1.3, its bare key)
//!  operator: `quelea strangers` ─UDP─▶ who is there?      `quelea adopt ADDRESS --fingerprint F --name N` ─TLS─▶ name, labels, credentials
//!  machine: checks them as a whole, writes them, listens no more; PID 1 starts the agent
//! ```
//!
//! **What is protected, and what is not.** The operator knows by the fingerprint which machine gets the credentials, and nobody else
//! can read them on the way. The machine knows nobody: whoever reaches it first may adopt it, into a flock of theirs. Where
//! that must not be, `quelea.adopt=off` on the kernel command line closes it; only what its state disk holds counts then.
//!
//! Invariants: one adoption a machine; nothing of the network is parsed but requests of a bounded size after a TLS handshake, and
//! one fixed datagram, answered by one that is no longer; no flock's state is touched by a stranger or by the search for one.

pub mod client;
pub mod search;
pub mod server;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use initd::init::link::{self, AgentEnd, ToAgent, ToInit};
use ring::signature::Ed25519KeyPair;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::adopt;
use crate::config::NodeFile;
use crate::error::Error;
use crate::found::{self, Boot, Net};
use crate::hex;

/// Bytes of a fingerprint: of the SHA-256 of the machine's public key (its SubjectPublicKeyInfo, RFC 5280).
pub const FINGERPRINT_BYTES: usize = 16;
/// Pause between two looks for an address.
const LOOK: Duration = Duration::from_millis(200);

/// The beginning of a key's SHA-256, as people compare it: eight groups of four hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; FINGERPRINT_BYTES]);

impl Fingerprint {
    /// Of a public key.
    #[must_use]
    pub fn of(spki: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, spki);
        let mut own = [0; FINGERPRINT_BYTES];
        own.iter_mut().zip(digest.as_ref()).for_each(|(own, byte)| *own = *byte);
        Self(own)
    }

    /// From what somebody typed; dashes, colons, blanks and case do not count.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String =
            text.chars().filter(|c| !"-: ".contains(*c)).collect::<String>().to_ascii_lowercase();
        hex::decode_array(&digits).map(Self)
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, pair) in self.0.chunks(2).enumerate() {
            write!(f, "{}{}", if at == 0 { "" } else { "-" }, hex::encode(pair))?;
        }
        Ok(())
    }
}

/// What a stranger tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Card {
    /// Its key's; compare it with the machine's console.
    pub fingerprint: String,
    /// Its address.
    pub address: String,
    /// The hardware address of the device with that.
    pub mac: String,
    /// SMBIOS UUID, or one made from a hardware address.
    pub uuid: String,
    /// CPUs.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disks, of which none need be its state disk.
    pub disks: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Quelea's.
    pub version: String,
}

impl Card {
    fn of(fingerprint: Fingerprint, net: &Net, run: &Path) -> Self {
        let line = |path: String| found::read(path.as_ref()).trim().to_owned();
        let memory = line("/proc/meminfo".into());
        let total = memory.lines().find_map(|l| l.strip_prefix("MemTotal:"));
        let kib = total.and_then(|t| t.trim().trim_end_matches(" kB").trim().parse().ok());
        let blocks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        Self {
            fingerprint: fingerprint.to_string(),
            address: net.address.map(|a| a.to_string()).unwrap_or_default(),
            mac: line(format!("/sys/class/net/{}/address", net.device)),
            uuid: Boot::read(run).uuid,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib.unwrap_or(0u64) / 1024,
            // Virtual ones have no device behind them.
            disks: blocks.filter(|b| b.path().join("device").exists()).count(),
            kernel: line("/proc/sys/kernel/osrelease".into()),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// A key for this boot.
struct Identity {
    tls: Arc<ServerConfig>,
    fingerprint: Fingerprint,
}

impl Identity {
    fn fresh() -> Result<Self, Error> {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| Error::Random)?;
        let key = PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec());
        let signer = rustls::crypto::ring::sign::any_eddsa_type(&key)?;
        let spki = signer.public_key().ok_or(Error::Random)?.to_vec();
        let fingerprint = Fingerprint::of(&spki);
        let certified = rustls::sign::CertifiedKey::new(vec![CertificateDer::from(spki)], signer);
        let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified));
        let tls = ServerConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        Ok(Self { tls: Arc::new(tls), fingerprint })
    }
}

/// Runs the role until it is adopted or told to end. PID 1 looks for the configuration again then. `file`: what the machine was
/// given beside an adoption; an adoption's words count before it.
///
/// # Errors
/// What keeps it from listening.
pub fn run(config_path: &Path, file: &NodeFile) -> anyhow::Result<()> {
    let link = AgentEnd::from_env().context("PID 1's link")?;
    // Adopted at an earlier boot: the disk kept it.
    if adopt::install(file, config_path)? {
        tracing::info!("an operator has adopted this machine: its configuration is on its disk");
        return tell(link.as_ref(), &ToInit::Retry);
    }
    let closed = is_closed(&found::read("/proc/cmdline".as_ref()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let alive = beat(link.as_ref());
        tokio::select! {
            ended = alive => ended,
            adopted = serve(file, config_path, closed) => {
                adopted?;
                tell(link.as_ref(), &ToInit::Retry)
            }
        }
    })
}

/// `quelea.adopt=off` among the kernel's arguments; the last one counts.
fn is_closed(cmdline: &str) -> bool {
    let words = cmdline.split_ascii_whitespace();
    words.filter_map(|word| word.strip_prefix("quelea.adopt=")).next_back() == Some("off")
}

fn tell(link: Option<&AgentEnd>, message: &ToInit) -> anyhow::Result<()> {
    if let Some(link) = link {
        link.send(message).context("PID 1's link")?;
    }
    Ok(())
}

/// Says to PID 1 that this runs, until PID 1 wants it to end.
async fn beat(link: Option<&AgentEnd>) -> anyhow::Result<()> {
    let mut every = tokio::time::interval(Duration::from_millis(link::ALIVE_EVERY_MS));
    loop {
        every.tick().await;
        tell(link, &ToInit::Alive)?;
        if let Some(Ok(Some(ToAgent::Drain { .. }))) = link.map(AgentEnd::receive) {
            return tell(link, &ToInit::Drained);
        }
    }
}

async fn serve(file: &NodeFile, config_path: &Path, closed: bool) -> anyhow::Result<()> {
    if closed {
        tracing::info!(
            "quelea.adopt=off: nobody can adopt this machine; it waits for a boot with a configuration"
        );
        return std::future::pending().await;
    }
    let identity = Identity::fresh()?;
    let net = loop {
        let net = Net::read(&file.run);
        if net.address.is_some() {
            break net;
        }
        tokio::time::sleep(LOOK).await;
    };
    let card = Card::of(identity.fingerprint, &net, &file.run);
    server::serve(identity, card, file, config_path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_they_are_shown_and_as_people_type() {
        let one = Identity::fresh().unwrap().fingerprint;
        let text = one.to_string();
        assert_eq!((text.len(), text.matches('-').count()), (39, 7), "{text}");
        assert_eq!(Fingerprint::parse(&text), Some(one));
        assert_eq!(Fingerprint::parse(&text.to_uppercase().replace('-', " ")), Some(one));
        assert_ne!(Identity::fresh().unwrap().fingerprint, one);
        for bad in ["", "00", &text[1..], &format!("{text}0"), &text.replace('-', "g")] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn adoption_is_closed_by_the_last_word() {
        for (line, closed) in [
            ("quiet panic=30", false),
            ("quelea.adopt=off", true),
            ("quelea.adopt=off quelea.adopt=on", false),
            ("xquelea.adopt=off", false),
        ] {
            assert_eq!(is_closed(line), closed, "{line}");
        }
    }
}
