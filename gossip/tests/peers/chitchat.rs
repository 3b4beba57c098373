//! A flock of chitchat 0.11.2 nodes on a paused tokio clock: its messages as bytes, on the network model of `world`.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chitchat::transport::{Socket, Transport};
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable,
    FailureDetectorConfig, Serializable, spawn_chitchat,
};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use crate::world::{addr, name};

/// What our frames add to a payload, so that bytes compare.
const SEAL_BYTES: usize = 30;

struct Net {
    inboxes: HashMap<SocketAddr, mpsc::UnboundedSender<(SocketAddr, Vec<u8>)>>,
    loss: u64,
    side: Option<usize>,
    sent_bytes: u64,
    longest: usize,
    rng: Xoshiro256PlusPlus,
}

/// The network all nodes share.
#[derive(Clone)]
struct Hub(Arc<Mutex<Net>>);

impl Hub {
    fn net(&self) -> MutexGuard<'_, Net> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Port {
    hub: Hub,
    addr: SocketAddr,
    inbox: mpsc::UnboundedReceiver<(SocketAddr, Vec<u8>)>,
}

fn index(addr: SocketAddr) -> usize {
    let SocketAddr::V4(v4) = addr else { return usize::MAX };
    let [_, b, c, d] = v4.ip().octets();
    u32::from_be_bytes([0, b, c, d]) as usize
}

#[async_trait::async_trait]
impl Transport for Hub {
    async fn open(&self, addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (tell, inbox) = mpsc::unbounded_channel();
        self.net().inboxes.insert(addr, tell);
        Ok(Box::new(Port { hub: self.clone(), addr, inbox }))
    }
}

#[async_trait::async_trait]
impl Socket for Port {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        message.serialize(&mut bytes);
        let mut net = self.hub.net();
        net.sent_bytes += (bytes.len() + SEAL_BYTES) as u64;
        net.longest = net.longest.max(bytes.len());
        let cut = net.side.is_some_and(|s| (index(self.addr) < s) != (index(to) < s));
        if cut || net.rng.next_u64() % 1000 < net.loss {
            return Ok(());
        }
        let latency = Duration::from_micros(100 + net.rng.next_u64() % 401);
        if let Some(inbox) = net.inboxes.get(&to).cloned() {
            let from = self.addr;
            tokio::spawn(async move {
                tokio::time::sleep(latency).await;
                // Nobody listens any more: lost like any datagram.
                let _ = inbox.send((from, bytes));
            });
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let Some((from, bytes)) = self.inbox.recv().await else {
                return std::future::pending().await;
            };
            if let Ok(message) = ChitchatMessage::deserialize(&mut &bytes[..]) {
                return Ok((from, message));
            }
        }
    }
}

/// The flock; every call runs inside [`run`].
pub struct ChitchatWorld {
    hub: Hub,
    nodes: Vec<ChitchatHandle>,
}

/// Runs on a clock that only moves when everybody waits.
pub fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread")
        .block_on(what)
}

impl ChitchatWorld {
    pub async fn new(seed: u64, count: usize) -> ChitchatWorld {
        let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (inboxes, loss) = (HashMap::new(), 0);
        let net = Net { inboxes, loss, side: None, sent_bytes: 0, longest: 0, rng };
        let hub = Hub(Arc::new(Mutex::new(net)));
        let mut nodes = Vec::new();
        for node in 0..count {
            let config = ChitchatConfig {
                chitchat_id: ChitchatId::new(name(node), 1, addr(node)),
                cluster_id: "flock".into(),
                gossip_interval: Duration::from_secs(1),
                listen_addr: addr(node),
                seed_nodes: vec![addr(0).to_string()],
                failure_detector_config: FailureDetectorConfig::default(),
                marked_for_deletion_grace_period: Duration::from_secs(30 * 24 * 3600),
                catchup_callback: None,
                extra_liveness_predicate: None,
            };
            let handle = spawn_chitchat(config, Vec::new(), &hub).await.expect("it starts");
            nodes.push(handle);
            // Real processes do not start in the same microsecond, and all would tick together for ever.
            let phase = hub.net().rng.next_u64() % 1000;
            tokio::time::sleep(Duration::from_millis(phase / count as u64 + 1)).await;
        }
        ChitchatWorld { hub, nodes }
    }

    pub fn set_loss(&self, loss: u64) {
        self.hub.net().loss = loss;
    }

    /// Cuts nodes below `side` from the others.
    pub fn partition(&self, side: Option<usize>) {
        self.hub.net().side = side;
    }

    pub async fn set(&self, node: usize, key: &str, value: &str) {
        self.nodes[node].with_chitchat(|c| c.self_node_state().set(key, value)).await;
    }

    pub async fn delete(&self, node: usize, key: &str) {
        self.nodes[node].with_chitchat(|c| c.self_node_state().delete(key)).await;
    }

    /// `writer/key` to value, as a node sees it.
    pub async fn view(&self, node: usize) -> BTreeMap<String, String> {
        let view = |c: &mut chitchat::Chitchat| {
            let mut all = BTreeMap::new();
            for (id, state) in c.node_states() {
                for (key, value) in state.key_values() {
                    all.insert(format!("{}/{key}", id.node_id), value.to_owned());
                }
            }
            all
        };
        self.nodes[node].with_chitchat(view).await
    }

    pub async fn has(&self, node: usize, writer: usize, key: &str, value: &str) -> bool {
        let id = ChitchatId::new(name(writer), 1, addr(writer));
        let look = |c: &mut chitchat::Chitchat| {
            c.node_state(&id).and_then(|s| s.get(key)).is_some_and(|v| v == value)
        };
        self.nodes[node].with_chitchat(look).await
    }

    /// Members a node has heard of, itself included.
    pub async fn known(&self, node: usize) -> usize {
        self.nodes[node].with_chitchat(|c| c.node_states().len()).await
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes sent since the last call, and the longest message ever.
    pub fn take_sent(&self) -> (u64, usize) {
        let mut net = self.hub.net();
        (std::mem::take(&mut net.sent_bytes), net.longest)
    }
}
