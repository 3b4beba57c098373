//! `quelea image`: pack, import, list, remove.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use agent::api::client::{Body, empty};
use agent::api::types::Image;
use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Method;
use hyper::body::{Bytes, Frame};
use imagefs::PackOptions;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::run::escape;
use crate::cli::{self, Format};
use crate::context::Context;
use crate::output::{self, Column, column, wide};

/// Bytes sent in one go.
const CHUNK_BYTES: usize = 256 * 1024;

#[derive(Serialize)]
struct PackedView {
    reference: String,
    digest: String,
    layer_bytes: u64,
    compressed_bytes: u64,
    layout: String,
}

/// `quelea image pack`.
pub(super) fn pack(args: &cli::Pack, format: Format) -> Result<()> {
    let options = PackOptions {
        reference: args.tag.clone(),
        entrypoint: args.entrypoint.clone(),
        cmd: args.cmd.clone(),
        env: args.env.clone(),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        stop_signal: args.stop_signal.clone(),
        ..PackOptions::default()
    };
    if let Some(bad) = args.env.iter().find(|pair| !pair.contains('=')) {
        bail!("--env {bad:?} is not KEY=VALUE");
    }
    let packed = imagefs::pack(&args.dir, &args.out, &options)
        .with_context(|| format!("cannot pack {}", args.dir.display()))?;
    let view = PackedView {
        reference: args.tag.clone(),
        digest: packed.manifest_digest.to_string(),
        layer_bytes: packed.layer_bytes,
        compressed_bytes: packed.compressed_bytes,
        layout: args.out.display().to_string(),
    };
    match format {
        Format::Json => output::json(&view),
        Format::Name => {
            println!("{}", view.digest);
            Ok(())
        }
        Format::Table | Format::Wide => {
            println!(
                "{} {} ({}, {} compressed) in {}",
                view.reference,
                view.digest,
                output::bytes(view.layer_bytes),
                output::bytes(view.compressed_bytes),
                view.layout
            );
            Ok(())
        }
    }
}

const COLUMNS: &[Column<Image>] = &[
    // One that lost its name to a newer one goes by its digest, of which twelve digits tell it from others.
    column("IMAGE", |i| match i.reference.strip_prefix("sha256:") {
        Some(hex) => format!("sha256:{}…", hex.get(..12).unwrap_or(hex)),
        None => i.reference.clone(),
    }),
    column("SIZE", |i| output::bytes(i.size_bytes)),
    column("LAYERS", |i| i.layers.to_string()),
    column("USED BY", |i| match i.used_by.as_slice() {
        [] => "-".into(),
        apps if apps.len() > 3 => format!("{} apps", apps.len()),
        apps => apps.join(" "),
    }),
    column("HELD BY", |i| match i.nodes.as_slice() {
        [] => "no node".into(),
        names if names.len() > 5 => format!("{} nodes", names.len()),
        names => names.join(" "),
    }),
    wide("DIGEST", |i| i.digest.clone()),
];

/// `quelea image ls`.
pub(super) async fn ls(context: &Context, format: Format) -> Result<()> {
    let images: Vec<Image> = context.endpoint.get("/v1/images").await?;
    output::list(format, &images, COLUMNS, |i| i.reference.clone())
}

/// `quelea image rm`. One that cannot be removed keeps no other from being removed.
pub(super) async fn remove(
    context: &Context,
    format: Format,
    images: &[String],
) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut removed = Vec::new();
    for name in images {
        let path = format!("/v1/images?reference={}", escape(name));
        match context.endpoint.json::<Image>(Method::DELETE, &path, empty()).await {
            Ok(image) => {
                match (format, image.nodes.len()) {
                    (Format::Json, _) => {}
                    (Format::Name, _) => println!("{}", image.reference),
                    (_, 0) => println!("{} removed; its bytes have other names", image.reference),
                    (_, 1) => println!("{} removed from the flock", image.reference),
                    (_, n) => println!("{} removed from the flock and {n} nodes", image.reference),
                }
                removed.push(image);
            }
            Err(error) => {
                eprintln!("quelea: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if format == Format::Json {
        output::json(&removed)?;
    }
    Ok(code)
}

/// `quelea image import`.
pub(super) async fn import(
    context: &Context,
    format: Format,
    path: &Path,
    tag: Option<&str>,
) -> Result<()> {
    let file = open(path)?;
    let mut target = "/v1/images".to_owned();
    if let Some(tag) = tag {
        target.push_str(&format!("?reference={}", escape(tag)));
    }
    let image: Image = context.endpoint.json(Method::POST, &target, upload(file)?).await?;
    match format {
        Format::Json => output::json(&image),
        Format::Name => {
            println!("{}", image.digest);
            Ok(())
        }
        Format::Table | Format::Wide => {
            println!(
                "{} {} imported ({})",
                image.reference,
                image.digest,
                output::bytes(image.size_bytes)
            );
            Ok(())
        }
    }
}

/// A layout in a directory becomes a tar; a file is sent as it is.
fn open(path: &Path) -> Result<File> {
    let name = path.display();
    let metadata =
        std::fs::metadata(path).with_context(|| format!("cannot read the image {name}"))?;
    if !metadata.is_dir() {
        return File::open(path).with_context(|| format!("cannot read the image {name}"));
    }
    if !path.join("index.json").exists() {
        bail!("{name} is no OCI layout: it has no index.json (make one with `quelea image pack`)");
    }
    let file = unnamed_file()?;
    let mut builder = tar::Builder::new(file);
    builder.append_dir_all(".", path).with_context(|| format!("cannot read the image {name}"))?;
    let mut file = builder.into_inner().context("cannot keep the image's tar")?;
    file.flush()?;
    file.rewind()?;
    Ok(file)
}

fn unnamed_file() -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let dir = std::env::temp_dir();
    File::options()
        .read(true)
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_TMPFILE.bits())
        .mode(0o600)
        .open(&dir)
        .with_context(|| format!("cannot keep the image's tar in {}", dir.display()))
}

/// A request body that reads a file as it is sent, with a bar on a terminal.
fn upload(mut file: File) -> Result<Body> {
    let length = file.metadata()?.len() - file.stream_position()?;
    let bar = if output::fancy() {
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    } else {
        ProgressBar::hidden()
    };
    let next = move || {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let limit = u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX);
        match (&mut file).take(limit).read_to_end(&mut chunk) {
            Ok(0) => {
                bar.finish_and_clear();
                None
            }
            Ok(n) => {
                bar.inc(u64::try_from(n).unwrap_or(0));
                Some(Ok(Frame::data(Bytes::from(chunk))))
            }
            Err(error) => Some(Err(error)),
        }
    };
    Ok(StreamBody::new(Chunks(next)).boxed())
}

/// A stream of what a closure returns.
struct Chunks<F>(F);

impl<T, F: FnMut() -> Option<T> + Unpin> futures_core::Stream for Chunks<F> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        std::task::Poll::Ready((self.0)())
    }
}
