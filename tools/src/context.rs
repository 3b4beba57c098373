//! Which node to ask, and with whose keys.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::api::client::Endpoint;
use agent::api::types::{Nodes, Pod};
use agent::config::API_PORT;
use agent::flock::Bundle;
use agent::trust::OperatorKey;
use anyhow::{Context as _, Result, bail};

use crate::cli::Global;
use crate::dev::registry;

/// The socket of a node's own agent.
pub(crate) const LOCAL_SOCKET: &str = "/run/quelea/api.sock";
/// Where an operator's bundle is looked for on a machine.
const LOCAL_BUNDLE: &str = "/etc/quelea/flock";

/// The node that is asked, and how others are reached from here.
pub struct Context {
    /// The node that is asked.
    pub endpoint: Endpoint,
    bundle: Option<PathBuf>,
}

impl Context {
    /// Finds the node to ask.
    ///
    /// # Errors
    /// There is none: where it was looked for, and what to do.
    pub fn find(global: &Global) -> Result<Self> {
        let dev = registry::read();
        let bundle = match (&global.flock, &dev) {
            (Some(dir), _) => Some(dir.clone()),
            (None, Some(dev)) if !Path::new(LOCAL_SOCKET).exists() => Some(dev.bundle.clone()),
            (None, _) => Some(PathBuf::from(LOCAL_BUNDLE)).filter(|dir| dir.exists()),
        };
        let context = |endpoint| Self { endpoint, bundle: bundle.clone() };
        if let Some(node) = &global.node {
            if let Some(path) = node.strip_prefix("unix:") {
                return Ok(context(Endpoint::Unix(path.into())));
            }
            if let Some((name, address)) = node.split_once('@') {
                let addr = parse_address(address)?;
                return Ok(context(https(name, addr, bundle.as_deref())?));
            }
            let Some(found) = dev.as_ref().and_then(|dev| dev.node(node)) else {
                bail!(
                    "no node {node:?} on this machine: give NAME@ADDRESS for one on the network, unix:PATH for a socket, or start a flock here by `quelea dev`"
                );
            };
            return Ok(context(Endpoint::Unix(found.socket())));
        }
        if Path::new(LOCAL_SOCKET).exists() {
            return Ok(context(Endpoint::Unix(LOCAL_SOCKET.into())));
        }
        // Of a dev flock any node will do; one whose power is cut will not.
        if let Some(node) = dev.as_ref().and_then(|dev| dev.nodes.iter().find(|n| n.is_up())) {
            return Ok(context(Endpoint::Unix(node.socket())));
        }
        if dev.is_some() {
            bail!(
                "the dev flock {:?} has no node with power; start one by `quelea dev start n1`, or the flock again by `quelea dev stop` and `quelea dev`",
                registry::name()
            );
        }
        bail!(
            "no node to ask: no agent on this machine ({LOCAL_SOCKET}), no `quelea dev` flock either; name one by --node NAME@ADDRESS, or start a flock by `sudo quelea dev`"
        )
    }

    /// The operator's key, to sign with.
    ///
    /// # Errors
    /// There is none: where it was looked for.
    pub fn operator(&self) -> Result<OperatorKey> {
        OperatorKey::open(self.bundle_dir()?).context("cannot sign as an operator")
    }

    fn bundle_dir(&self) -> Result<&Path> {
        self.bundle.as_deref().with_context(|| {
            format!("no operator's key: give the flock's bundle by --flock DIR or $QUELEA_FLOCK (looked at {LOCAL_BUNDLE})")
        })
    }

    /// The flock's bundle, to issue credentials from.
    ///
    /// # Errors
    /// There is none: where it was looked for.
    pub fn bundle(&self) -> Result<Bundle> {
        let dir = self.bundle.as_deref().with_context(|| {
            format!("which flock? give its bundle by --flock DIR or $QUELEA_FLOCK (looked at {LOCAL_BUNDLE})")
        })?;
        Bundle::open(dir).with_context(|| format!("{} holds no flock", dir.display()))
    }

    /// The node that runs a replica, and the replica. `pod` is `[NAMESPACE/]APP.SLOT` or `[NAMESPACE/]APP`.
    ///
    /// # Errors
    /// No such replica, or its node cannot be reached.
    pub async fn find_pod(&self, pod: &str) -> Result<(Endpoint, Pod)> {
        let (namespace, name) = split_namespace(pod);
        let matching = self.find_pods(pod).await?;
        let pod = matching
            .into_iter()
            .next()
            .with_context(|| format!("no replica {namespace}/{name}; see `quelea ps`"))?;
        let endpoint = self.reach(&pod.node).await?;
        Ok((endpoint, pod))
    }

    /// The API of a node by its name.
    ///
    /// # Errors
    /// It is not known, or no way leads there from here.
    pub async fn reach(&self, name: &str) -> Result<Endpoint> {
        let nodes: Nodes = self.endpoint.get("/v1/nodes").await?;
        if !nodes.nodes.iter().any(|node| node.name == name) {
            bail!("no node {name} in this flock; see `quelea nodes`");
        }
        self.way_to(&nodes.answered_by, name)
    }

    /// The API of a member, by the name of the node that is asked and its own.
    ///
    /// # Errors
    /// No way leads there from here.
    pub fn way_to(&self, asked: &str, name: &str) -> Result<Endpoint> {
        if asked == name {
            return Ok(self.endpoint.clone());
        }
        let dir = self.bundle.as_deref().with_context(|| {
            format!("{name} is asked through {asked}, as an operator: give the flock's bundle by --flock DIR or $QUELEA_FLOCK")
        })?;
        let tls = agent::tls::client(dir, "operator")?;
        // Through the node that answered: from here the others may be out of reach.
        Ok(Endpoint::Via { through: Box::new(self.endpoint.clone()), node: name.to_owned(), tls })
    }

    /// The live replicas that are meant, sorted. `pod` is `[NAMESPACE/]APP.SLOT` or `[NAMESPACE/]APP`.
    ///
    /// # Errors
    /// The node that is asked does not answer.
    pub async fn find_pods(&self, pod: &str) -> Result<Vec<Pod>> {
        let (namespace, name) = split_namespace(pod);
        let mut pods: Vec<Pod> = self.endpoint.get("/v1/pods").await?;
        pods.retain(|p| {
            p.namespace == namespace && p.node_alive && (p.name == name || p.app == name)
        });
        Ok(pods)
    }
}

/// `NAMESPACE/NAME`, or `NAME` in the namespace `default`.
pub fn split_namespace(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("default", text))
}

pub(crate) fn parse_address(text: &str) -> Result<SocketAddr> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr);
    }
    let ip: IpAddr = text.parse().with_context(|| {
        format!("{text:?} is not an address: give 10.0.0.1 or 10.0.0.1:{API_PORT}")
    })?;
    Ok(SocketAddr::new(ip, API_PORT))
}

fn https(node: &str, addr: SocketAddr, bundle: Option<&Path>) -> Result<Endpoint> {
    let dir = bundle.with_context(|| {
        format!("{node} at {addr} is asked over HTTPS, which needs the flock's bundle: give it by --flock DIR or $QUELEA_FLOCK")
    })?;
    let tls: Arc<_> = agent::tls::client(dir, "operator")?;
    Ok(Endpoint::Https { addr, node: node.to_owned(), tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_namespaces() {
        assert_eq!(parse_address("10.0.0.1").unwrap(), "10.0.0.1:7402".parse().unwrap());
        assert_eq!(parse_address("[::1]:9").unwrap(), "[::1]:9".parse().unwrap());
        assert!(parse_address("somewhere").is_err());
        assert_eq!(split_namespace("shop/web.1"), ("shop", "web.1"));
        assert_eq!(split_namespace("web"), ("default", "web"));
    }
}
