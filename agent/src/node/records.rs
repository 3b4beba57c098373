//! Records of the map, each carried to those that act on it.

use std::sync::Arc;

use imagefs::ImageRecord;
use sched::{NodeRecord, Spec};

use super::{Node, Stored};
use crate::trust::{Signed, Submission};

/// Records of images: `i/<manifest digest>`, written once by the node that imported it.
pub(super) const IMAGE_PREFIX: &str = "i/";
/// What a reference means now: `t/<reference>` → manifest digest.
pub(super) const TAG_PREFIX: &str = "t/";

impl Node {
    pub(super) fn record_changed(&mut self, record: &gossip::Record) {
        self.key_changed(&record.key, record.body.as_deref(), &record.writer);
    }

    /// A key has a new body, or none any more.
    pub(super) fn key_changed(&mut self, key: &str, body: Option<&[u8]>, writer: &str) {
        let Some((kind, rest)) = key.split_once('/') else { return };
        match kind {
            "n" => {
                self.node_record(rest, body);
                self.sched_step(sched::Input::Record { key, body, writer });
            }
            "a" | "r" => {
                if kind == "a" {
                    self.peers.changed();
                }
                self.sched_step(sched::Input::Record { key, body, writer });
            }
            "s" => self.spec_record(rest, body, writer),
            "i" => self.image_record(rest, body),
            "t" => self.tag_record(rest, body),
            "p" if self.machine.in_maintenance() => {}
            "p" => self.ipam_step(netshim::ipam::Input::Record { key, body }),
            _ => {}
        }
    }

    fn node_record(&mut self, name: &str, body: Option<&[u8]>) {
        self.overlay_dirty = true;
        match body.map(NodeRecord::decode) {
            Some(Ok(record)) => {
                if name == self.config.name {
                    self.remembered(&record);
                }
                self.nodes.insert(name.to_owned(), record);
            }
            Some(Err(error)) => {
                self.event(format!("node/{name}"), format!("its record is not readable: {error}"));
            }
            None => {
                self.nodes.remove(name);
            }
        }
    }

    /// A spec takes effect only if an operator signed it, whoever put it into the map.
    fn spec_record(&mut self, rest: &str, body: Option<&[u8]>, writer: &str) {
        let Some((namespace, app)) = rest.split_once('/') else { return };
        let Some(body) = body else { return };
        let verified = Signed::from_bytes(body).and_then(|signed| {
            let (submission, operator) = signed.verify(&self.credentials.operators)?;
            Ok((submission, operator.to_owned()))
        });
        let (submission, operator) = match verified {
            Ok(verified) => verified,
            Err(error) => {
                let about = format!("app/{rest}");
                self.event(
                    about,
                    format!("a spec that came through {writer} was refused: {error}"),
                );
                return;
            }
        };
        if submission.namespace != namespace || submission.app != app {
            self.event(
                format!("app/{rest}"),
                format!("{writer} filed another app's spec here: refused"),
            );
            return;
        }
        let key = (namespace.to_owned(), app.to_owned());
        if self.specs.get(&key).is_some_and(|s| s.submission.generation > submission.generation) {
            // A signed but older spec: replayed, or still under way.
            return;
        }
        match effective_spec(&submission) {
            Ok(spec) => {
                self.sched_step(sched::Input::Spec {
                    namespace,
                    app,
                    generation: submission.generation,
                    spec: Some(Arc::new(spec)),
                    stopped: submission.stopped,
                });
                self.specs.insert(key, Stored { submission, operator });
            }
            Err(reason) => self.event(
                format!("app/{rest}"),
                format!(
                    "generation {} is not understood by this version: {reason}",
                    submission.generation
                ),
            ),
        }
    }

    fn image_record(&mut self, digest: &str, body: Option<&[u8]>) {
        match body.map(ImageRecord::decode) {
            // The key is what specs name; a record that claims to be another image is nobody's.
            Some(Ok(record)) if record.manifest_digest.to_string() == digest => {
                self.images.insert(digest.to_owned(), record);
            }
            Some(_) => self.event(format!("image/{digest}"), "its record is not readable: ignored"),
            None => {
                self.images.remove(digest);
                self.image_removed();
            }
        }
        self.publish();
    }

    fn tag_record(&mut self, reference: &str, body: Option<&[u8]>) {
        match body.map(std::str::from_utf8) {
            Some(Ok(digest)) => {
                self.tags.insert(reference.to_owned(), digest.to_owned());
            }
            Some(Err(_)) => {}
            None => {
                self.tags.remove(reference);
            }
        }
        self.publish();
    }

    /// An image is complete on this node.
    pub(crate) fn image_is_here(&mut self, digest: &str) {
        self.held.insert(digest.to_owned());
        self.pods.image_is_here(digest);
    }

    /// What the node record says of the images held: under every name by which a spec may ask for one.
    pub(super) fn image_prefixes(&self) -> Vec<u64> {
        let by_digest = self.held.iter().map(|digest| sched::record::image_prefix(digest));
        let by_name = self
            .tags
            .iter()
            .filter(|(_, digest)| self.held.contains(*digest))
            .map(|(reference, digest)| sched::record::image_prefix(&pinned(reference, digest)));
        let mut prefixes: Vec<u64> = by_digest.chain(by_name).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes.truncate(sched::record::IMAGES_MAX);
        prefixes
    }
}

/// How a container names its image once the submission has said what the reference means.
pub(super) fn pinned(reference: &str, digest: &str) -> String {
    let name = imagefs::reference(reference).unwrap_or_else(|_| reference.to_owned());
    let name = name.split_once('@').map_or(name.as_str(), |(name, _)| name);
    format!("{name}@{digest}")
}

/// The spec of a submission with every image pinned: another image is another template, so it rolls out.
///
/// # Errors
/// The first thing in it that this version does not understand, for people.
pub(super) fn effective_spec(submission: &Submission) -> Result<Spec, String> {
    let mut spec = Spec::read_stored(&submission.document)
        .map_err(|diagnostics| diagnostics.first().map(ToString::to_string).unwrap_or_default())?;
    if spec.namespace != submission.namespace || spec.app != submission.app {
        return Err("it names another app than its envelope".into());
    }
    for container in spec.containers.iter_mut().filter(|c| c.exec.is_none()) {
        let digest = submission
            .images
            .get(&container.image)
            .ok_or_else(|| format!("the image {} is not pinned to a digest", container.image))?;
        container.image = pinned(&container.image, digest);
    }
    Ok(spec)
}
