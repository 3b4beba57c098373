//! `quelea boot serve`: boots a rack from this machine.

use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent::flock::Bundle;
use anyhow::{Context as _, Result, bail};
use images::BootDir;
use images::serve::{
    Config, Event, Interface, Keys, Mac, Ports, Rack, Server, Unknown, lease::Pool, rack,
};
use serde::Serialize;

use super::{Serve, UnknownName};
use crate::cli::{Format, Global};
use crate::context::Context;
use crate::output;

/// Files of a node's credentials, as `quelea init node` writes them.
const CREDENTIALS: [&str; 6] =
    ["flock.json", "ca.pem", "gossip.key", "node.pem", "node.key", "operators"];
/// Where machines' credentials are kept, below the boot directory.
const KEPT: &str = "machines";

pub(super) fn serve(args: &Serve, global: &Global) -> Result<()> {
    let dir = BootDir::open(&args.dir)?;
    let rack = match &args.rack {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Rack::parse(&text)
                .map_err(|why| anyhow::anyhow!("{why}"))
                .with_context(|| path.display().to_string())?
        }
        None => Rack::default(),
    };
    let sample = args.names.replace("{mac}", "000000000000");
    let sample = sample.replace("{mac6}", "000000").replace("{mac4}", "0000");
    if sample == args.names || !rack::name_is_valid(&sample) {
        bail!("--names {:?}: use a-z, 0-9, - and one of {{mac}}, {{mac6}}, {{mac4}}", args.names);
    }
    let keys = keys(args, global)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let (interface, ports) = match &args.on {
        Some(node) => runtime.block_on(through(node, args, global))?,
        None => {
            let interface = Interface::find(args.interface.as_deref())?;
            let ports = runtime.block_on(async { Ports::here(&interface, args.http_port) })?;
            (interface, ports)
        }
    };
    let pool = args.dhcp.as_deref().map(|range| pool(range, &interface)).transpose()?;
    let config = Config {
        server: interface.address,
        prefix: interface.prefix,
        http_port: args.http_port,
        unknown: match args.unknown {
            UnknownName::Maintenance => Unknown::Maintenance,
            UnknownName::Ignore => Unknown::Ignore,
            UnknownName::Auto => Unknown::Auto,
        },
        names: args.names.clone(),
        credentials: keys.is_some(),
        window: Duration::from_secs(args.window),
        pool,
        cmdline: images::bootdir::join(&dir.manifest.cmdline, &args.cmdline),
    };
    banner(&config, &dir, &rack, (&interface, args.on.as_deref()), global.output);
    let format = global.output;
    let server =
        Server { dir, rack, config, keys, events: Box::new(move |event| print(&event, format)) };
    let served = runtime.block_on(async {
        let stop = async {
            let terminated = async {
                use tokio::signal::unix::{SignalKind, signal};
                match signal(SignalKind::terminate()) {
                    Ok(mut signal) => signal.recv().await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated => {}
            }
        };
        images::serve::run(server, ports, stop).await
    });
    match &args.on {
        Some(node) => served.with_context(|| format!("{node} carries no more"))?,
        None => served?,
    }
    if format != Format::Json {
        println!("stopped; machines that are up are not touched");
    }
    Ok(())
}

/// The ports of a node: one of the flock that is asked, or one that is asked itself.
async fn through(node: &str, args: &Serve, global: &Global) -> Result<(Interface, Ports)> {
    let endpoint = if node.contains('@') {
        let asked = Global { node: Some(node.to_owned()), ..global.clone() };
        Context::find(&asked)?.endpoint
    } else {
        Context::find(global)?.reach(node).await?
    };
    let opened = super::far::open(endpoint, args.interface.as_deref(), args.http_port).await;
    opened.with_context(|| format!("cannot serve through {node}"))
}

/// Where credentials come from: made by the flock's bundle, kept in the boot directory.
fn keys(args: &Serve, global: &Global) -> Result<Option<Box<dyn Keys>>> {
    if args.no_credentials {
        return Ok(None);
    }
    let Some(flock) = &global.flock else {
        bail!(
            "which flock do the machines join? give its bundle by --flock DIR (made by `quelea init flock DIR`), or --no-credentials for machines that have theirs on their state disk"
        );
    };
    let bundle = Bundle::open(flock).with_context(|| {
        format!("{} holds no flock; make one with `quelea init flock`", flock.display())
    })?;
    let kept = args.state.clone().unwrap_or_else(|| args.dir.join(KEPT));
    Ok(Some(Box::new(Kept { bundle, dir: kept, lock: RefCell::new(()) })))
}

/// Credentials by hardware address: issued at the first boot, the same at every later one.
struct Kept {
    bundle: Bundle,
    dir: PathBuf,
    lock: RefCell<()>,
}

impl Keys for Kept {
    fn files(&self, mac: Mac, name: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        let _one_at_a_time = self.lock.borrow_mut();
        let dir = self.dir.join(mac.to_string().replace(':', "-"));
        self.kept(&dir, name).map_err(|error| format!("no credentials for {name}: {error:#}"))
    }
}

impl Kept {
    fn kept(&self, dir: &Path, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        // Written last, so that what is there is whole; for another name or flock it is made anew.
        let stamp = format!("{} {name}\n", self.bundle.info.id);
        let marker = dir.join("for");
        if std::fs::read_to_string(&marker).ok().as_deref() != Some(stamp.as_str()) {
            // A stale marker must not vouch for half of the new files.
            let _ = std::fs::remove_file(&marker);
            self.bundle.issue_node(name, dir)?;
            std::fs::write(&marker, &stamp)
                .with_context(|| format!("cannot write {}", marker.display()))?;
        }
        // Of now, not of the machine's first boot: without the newest key it would be a stranger to the flock.
        let ring = self.bundle.dir().join(agent::keys::FILE);
        if ring.exists() {
            std::fs::copy(&ring, dir.join(agent::keys::FILE))
                .with_context(|| format!("cannot copy {}", ring.display()))?;
        }
        let ring = Some(&agent::keys::FILE).filter(|_| ring.exists());
        CREDENTIALS
            .iter()
            .chain(ring)
            .map(|file| {
                let path = dir.join(file);
                let bytes = std::fs::read(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Ok(((*file).to_owned(), bytes))
            })
            .collect()
    }
}

fn pool(range: &str, interface: &Interface) -> Result<Pool> {
    let pool = Pool::parse(range).map_err(|why| anyhow::anyhow!("--dhcp {why}"))?;
    let (first, last) = pool.ends();
    let mask = u32::MAX.checked_shl(32 - u32::from(interface.prefix)).unwrap_or(0);
    let net = |address: std::net::Ipv4Addr| u32::from(address) & mask;
    if net(first) != net(interface.address) || net(last) != net(interface.address) {
        bail!(
            "--dhcp {range} is not within {}/{} of {}",
            interface.address,
            interface.prefix,
            interface.name
        );
    }
    Ok(pool)
}

fn banner(
    config: &Config,
    dir: &BootDir,
    rack: &Rack,
    (interface, on): (&Interface, Option<&str>),
    format: Format,
) {
    if format == Format::Json {
        return;
    }
    let manifest = &dir.manifest;
    let of = on.map(|node| format!(" of {node}")).unwrap_or_default();
    println!(
        "serving the {} set, Linux {}, on {}{of} {}/{}",
        manifest.set, manifest.release, interface.name, interface.address, interface.prefix
    );
    match &config.pool {
        Some(pool) => {
            let (first, last) = pool.ends();
            println!("DHCP server of this network: {first} to {last}");
        }
        None => println!("beside the site's own DHCP server, which gives the addresses"),
    }
    let others = match config.unknown {
        Unknown::Maintenance => "others boot into maintenance",
        Unknown::Ignore => "others are not answered",
        Unknown::Auto => "others become nodes, too",
    };
    match rack.named() {
        1 => println!("1 machine is named; {others}"),
        named => println!("{named} machines are named; {others}"),
    }
    if config.credentials {
        println!(
            "node keys cross this network in plain HTTP, once a boot, to the hardware address that asked: let only the rack be on it, or give --no-credentials"
        );
    }
    println!("ready; switch the machines on (network boot first). Ctrl-C ends");
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    #[serde(flatten)]
    event: &'a Event,
}

fn print(event: &Event, format: Format) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = output::time(u64::try_from(now.as_millis()).unwrap_or_default());
    let line = match format {
        Format::Json => serde_json::to_string(&Line { at, event }).unwrap_or_default(),
        Format::Name => event.mac.to_string(),
        Format::Table | Format::Wide => format!("{at}  {}", event.line()),
    };
    // A closed pipe must not end the rack's boot.
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept_for_a_machine_and_made_anew_for_another_name() {
        let dir = std::env::temp_dir().join(format!("quelea-boot-keys-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let bundle = Bundle::create(&dir.join("flock"), "test", "alice").unwrap();
        let kept = Kept { bundle, dir: dir.join("machines"), lock: RefCell::new(()) };
        let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
        let key = |files: &[(String, Vec<u8>)]| {
            files.iter().find(|(name, _)| name == "node.key").unwrap().1.clone()
        };
        let first = kept.files(mac, "n1").unwrap();
        assert_eq!(first.len(), CREDENTIALS.len());
        assert_eq!(kept.files(mac, "n1").unwrap(), first, "another boot, another identity");
        let renamed = kept.files(mac, "n2").unwrap();
        assert_ne!(key(&renamed), key(&first));
        let other = kept.files("52:54:00:12:34:57".parse().unwrap(), "n3").unwrap();
        assert_ne!(key(&other), key(&renamed));
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |name: &str| {
            let path = dir.join("machines").join(name);
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode("52-54-00-12-34-56/node.key"), 0o600);
        assert_eq!(mode("52-54-00-12-34-56"), 0o700);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_range_of_another_network_is_refused() {
        let interface =
            Interface { name: "eth0".into(), address: "10.0.0.1".parse().unwrap(), prefix: 24 };
        assert!(pool("10.0.0.100-10.0.0.199", &interface).is_ok());
        let error = pool("10.0.1.100-10.0.1.199", &interface).unwrap_err().to_string();
        assert!(error.contains("not within 10.0.0.1/24 of eth0"), "{error}");
    }
}
