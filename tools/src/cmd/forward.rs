//! `quelea port-forward`: listeners on this machine's loopback, each connection carried to a port inside a replica.

use std::net::Ipv4Addr;

use agent::api::client::{Endpoint, empty};
use agent::api::programs::FORWARD;
use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::cli;
use crate::context::Context;

/// Ports forwarded by one call.
const PORTS_MAX: usize = 64;

/// Listens until interrupted.
pub(super) async fn forward(context: &Context, args: &cli::PortForward) -> Result<()> {
    if args.ports.len() > PORTS_MAX {
        bail!("{} ports, {PORTS_MAX} are allowed", args.ports.len());
    }
    let ports = args.ports.iter().map(|text| pair(text)).collect::<Result<Vec<_>>>()?;
    let (endpoint, pod) = context.find_pod(&args.pod).await?;
    let mut tasks = Vec::new();
    for (local, remote) in ports {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await.with_context(|| {
                format!(
                    "cannot listen on 127.0.0.1:{local}: take another port, or 0 for a free one"
                )
            })?;
        println!("{} -> {} port {remote}", listener.local_addr()?, pod.name);
        let path = format!("/v1/pods/{}/{}/forward/{remote}", pod.namespace, pod.name);
        tasks.push(tokio::spawn(listen(listener, endpoint.clone(), path, remote)));
    }
    for task in tasks {
        task.await.context("a listener ended")??;
    }
    Ok(())
}

async fn listen(
    listener: TcpListener,
    endpoint: Endpoint,
    path: String,
    remote: u16,
) -> Result<()> {
    loop {
        let (stream, peer) = listener.accept().await.context("cannot accept a connection")?;
        let (endpoint, path) = (endpoint.clone(), path.clone());
        tokio::spawn(async move {
            // One that fails is told of and closed; the others go on.
            if let Err(error) = carry(stream, &endpoint, &path).await {
                eprintln!("connection from {peer} to port {remote}: {error:#}");
            }
        });
    }
}

async fn carry(mut stream: TcpStream, endpoint: &Endpoint, path: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let response = endpoint.upgrade(path, empty(), FORWARD).await?;
    let upgraded = hyper::upgrade::on(response).await.context("the node ended it")?;
    let mut far = TokioIo::new(upgraded);
    // Who closes first closes for both; what it sent has arrived.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
    Ok(())
}

/// `8080:80`, or `80` for both.
fn pair(text: &str) -> Result<(u16, u16)> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let wrong = || {
        format!(
            "{text:?} names no ports: write LOCAL:REMOTE, 8080:80 for example; a port is 1 to 65535"
        )
    };
    // What the parser says of it helps nobody.
    let local = local.parse().ok().with_context(wrong)?;
    let remote = remote.parse().ok().with_context(wrong)?;
    if remote == 0 {
        bail!("{}: no port inside a pod is 0", wrong());
    }
    Ok((local, remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_ports() {
        assert_eq!(pair("8080:80").unwrap(), (8080, 80));
        assert_eq!(pair("80").unwrap(), (80, 80));
        assert_eq!(pair("0:80").unwrap(), (0, 80));
        for bad in ["", "x", "80:", ":80", "1:2:3", "70000", "0", "1:0"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }
}
