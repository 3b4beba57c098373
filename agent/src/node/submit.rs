//! What operators change: specs and images.

use imagefs::ImageRecord;
use sched::Spec;
use tokio::sync::oneshot;

use super::Node;
use super::records::{IMAGE_PREFIX, TAG_PREFIX, effective_spec};
use crate::api::types::{Accepted, Image};
use crate::trust::Signed;

/// Why a request is refused: an HTTP status and words for people.
pub(crate) type Refusal = (u16, String);

impl Node {
    /// Takes a signed submission into the map, or says why not. Nothing is changed by one that is refused. What comes
    /// through the channel says that it is on this node's disk; until then it must not be acknowledged.
    pub(crate) fn submit(
        &mut self,
        namespace: &str,
        app: &str,
        signed: &Signed,
    ) -> Result<(Accepted, oneshot::Receiver<()>), Refusal> {
        let (submission, _) =
            signed.verify(&self.credentials.operators).map_err(|error| (403, error.to_string()))?;
        if submission.namespace != namespace || submission.app != app {
            let named = format!("{}/{}", submission.namespace, submission.app);
            return Err((400, format!("the submission is for {named}, not {namespace}/{app}")));
        }
        if let Err(diagnostics) = Spec::parse(&submission.document, "spec") {
            let lines: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
            return Err((400, lines.join("\n")));
        }
        effective_spec(&submission).map_err(|reason| (400, reason))?;
        for (reference, digest) in &submission.images {
            if !self.images.contains_key(digest) {
                return Err((422, self.image_missing(reference)));
            }
        }
        let key = (namespace.to_owned(), app.to_owned());
        let current = self.specs.get(&key).map_or(0, |s| s.submission.generation);
        if submission.generation <= current {
            return Err((
                409,
                format!(
                    "{namespace}/{app} is at generation {current} already: somebody submitted meanwhile; look at it with `quelea ps {app}` and submit again"
                ),
            ));
        }
        let body = signed.to_bytes().map_err(|error| (400, error.to_string()))?;
        let key = sched::record::spec_key(namespace, app);
        let (sender, receiver) = oneshot::channel();
        let waiting = self.durable.entry(key.clone()).or_default();
        // Who waited on a disk that answers nothing has gone.
        waiting.retain(|waiting| !waiting.is_closed());
        waiting.push(sender);
        if let Err(refusal) = self.put(&key, body) {
            self.durable.remove(&key);
            return Err(refusal);
        }
        let accepted =
            Accepted { generation: submission.generation, node: self.config.name.clone() };
        Ok((accepted, receiver))
    }

    /// Makes an imported image known to the flock.
    pub(crate) fn announce(&mut self, record: &ImageRecord) -> Result<Image, Refusal> {
        let digest = record.manifest_digest.to_string();
        if self.is_leaving(&digest) || !self.store.missing(record).is_empty() {
            // It was removed as it came in.
            return Err((
                503,
                format!("image {} was just being removed here: import it again", record.reference),
            ));
        }
        self.image_is_here(&digest);
        self.put(&format!("{IMAGE_PREFIX}{digest}"), record.encode())?;
        self.put(&format!("{TAG_PREFIX}{}", record.reference), digest.clone().into_bytes())?;
        self.publish();
        self.event(format!("image/{}", record.reference), format!("imported as {digest}"));
        self.pump();
        Ok(self.image_view(&record.reference, &digest))
    }

    /// What a reference means in this flock.
    pub(crate) fn resolve_image(&self, reference: &str) -> Result<Image, Refusal> {
        let name = imagefs::reference(reference).map_err(|error| (400, error.to_string()))?;
        let named = name.rsplit_once('@').map(|(_, digest)| digest);
        let digest = match named {
            Some(digest) => self.images.contains_key(digest).then_some(digest),
            None => self.tags.get(&name).map(String::as_str),
        };
        let digest = digest.ok_or_else(|| (404, self.image_missing(reference)))?;
        Ok(self.image_view(&name, digest))
    }

    fn image_missing(&self, reference: &str) -> String {
        let known: Vec<&str> = self.tags.keys().map(String::as_str).take(8).collect();
        let known = if known.is_empty() {
            "the flock has no images yet".to_owned()
        } else {
            format!("the flock has {} images, among them {}", self.tags.len(), known.join(", "))
        };
        format!(
            "image {reference} is not there: looked in the flock's map at {} ({known}); bring it in with `quelea image import LAYOUT`",
            self.config.name
        )
    }

    /// Writes a record and carries it on; an error of the map becomes the answer.
    fn put(&mut self, key: &str, body: Vec<u8>) -> Result<(), Refusal> {
        let mut events = Vec::new();
        let input = gossip::Input::Put { key, body, expect: gossip::Expect::Any };
        let result = self.driver.input(self.clock.now_us(), input, &mut events);
        let refused = events.iter().find_map(|event| match event {
            gossip::Event::Refused(error) => Some(error.to_string()),
            _ => None,
        });
        let answer = match (&result, refused) {
            (Err(error), _) => Err((500, format!("cannot store {key}: {error}"))),
            (Ok(()), Some(reason)) => Err((507, format!("cannot store {key}: {reason}"))),
            (Ok(()), None) => Ok(()),
        };
        self.gossip_said(result, events);
        answer
    }
}
