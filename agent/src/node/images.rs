//! Images of this node that nobody needs: looked through now and then, and let go of.
//!
//! ```text
//!  now and then ─▶ Survey ─▶ what is here, how long unused ─▶ `images::choose` ─▶ Collect ─▶ given back
//! ```
//!
//! The choice is made on the core thread, where it is known who needs what; from then until it is done, what was chosen counts as
//! gone, and who asks for it waits.

use std::collections::{BTreeMap, BTreeSet};

use imagefs::ImageRecord;

use super::Node;
use super::records::{IMAGE_PREFIX, TAG_PREFIX};
use super::submit::Refusal;
use crate::api::types::Image;
use crate::images::{self, Bounds, Cause, Held, Hold};
use crate::reserve;
use crate::worker::Job;

/// The first look after the agent's start, in microseconds: by then it has heard the flock.
const FIRST_US: u64 = 60_000_000;
/// Between two looks, in microseconds.
const EVERY_US: u64 = 600_000_000;
/// From an image's removal to a look, in microseconds: a spec that needs it may be under way.
const REMOVED_US: u64 = 5_000_000;
/// An image that lost its name to a newer one stays at least this long: a submission that means it may be under way.
const RENAMED_MS: u64 = 600_000;
/// Copies of a named image that the flock keeps though nobody needs it: there is no registry to get it back from.
const COPIES: usize = 2;

/// What is known of this node's images.
#[derive(Debug, Default)]
pub(super) struct Collector {
    due_us: Option<u64>,
    /// A survey or a collection is under way.
    busy: bool,
    /// Being removed.
    leaving: BTreeMap<String, Cause>,
    /// Asked for while it is being removed.
    waiting: BTreeSet<String>,
    /// Bytes that the disk lacks for what was refused.
    lacks_bytes: u64,
    /// Refused for want of room, once: what nobody needs is given up before it is said.
    refused: BTreeSet<String>,
    /// Since when it has no name here, in milliseconds since 1970.
    nameless_ms: BTreeMap<String, u64>,
}

/// What a survey found.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Images with a name in this node's store, and when each was used last, in milliseconds since 1970.
    pub images: Vec<(ImageRecord, u64)>,
    /// Bytes of the file system that they are on.
    pub disk_bytes: u64,
}

impl Node {
    /// A look is due, if one is.
    pub(super) fn images_tick(&mut self, now_us: u64) {
        let due_us = *self.collector.due_us.get_or_insert(now_us + FIRST_US);
        if now_us < due_us || self.collector.busy || self.machine.in_maintenance() || !self.joined {
            return;
        }
        self.collector.busy = self.give(Job::Survey).is_ok();
        let next_us = if self.collector.busy { EVERY_US } else { REMOVED_US };
        self.collector.due_us = Some(now_us + next_us);
    }

    /// The disk has no room for something: what nobody needs goes.
    pub(crate) fn make_room(&mut self, lacks_bytes: u64) {
        self.collector.lacks_bytes = self.collector.lacks_bytes.max(lacks_bytes);
        if !self.collector.busy {
            self.collector.busy = self.give(Job::Survey).is_ok();
        }
        if !self.collector.busy {
            self.image_removed();
        }
    }

    /// A pod was not prepared: if that was for want of room, what nobody needs goes before it is tried again.
    pub(super) fn room_for_layers(&mut self) {
        if let Err(lacks) = reserve::check(&self.config.state, 0) {
            self.make_room(lacks.bytes());
        }
    }

    /// An image did not fit. True: it is tried again once there is room, and fails then if there is none.
    pub(super) fn fetch_again(&mut self, digest: &str, lacks_bytes: u64) -> bool {
        let again = self.collector.refused.remove(digest);
        if lacks_bytes == 0 || again {
            return false;
        }
        self.collector.refused.insert(digest.to_owned());
        self.collector.waiting.insert(digest.to_owned());
        self.make_room(lacks_bytes);
        true
    }

    fn fetch_waiting(&mut self) {
        for digest in std::mem::take(&mut self.collector.waiting) {
            self.fetch(digest);
        }
    }

    /// Tells, or takes back, that the reserve is touched.
    fn watch_reserve(&mut self) {
        match reserve::check(&self.config.state, 0) {
            Ok(()) => self.machine.unalert("reserve"),
            Err(lacks) => self.machine.alert("reserve", lacks.to_string()),
        }
    }

    /// There may be something to give back: an image's record is gone from the map, or room is wanted.
    pub(super) fn image_removed(&mut self) {
        let soon = self.clock.now_us() + REMOVED_US;
        self.collector.due_us = Some(self.collector.due_us.map_or(soon, |at| at.min(soon)));
    }

    /// Whether an operator has taken an image out of the flock: its record was deleted.
    fn is_removed(&self, digest: &str) -> bool {
        let key = format!("{IMAGE_PREFIX}{digest}");
        let gossip = self.driver.gossip();
        gossip.version(&key).is_some() && gossip.get(&key).is_none()
    }

    /// Apps that are wanted and whose spec names this image.
    pub(super) fn users_of(&self, digest: &str) -> Vec<String> {
        let uses = |s: &super::Stored| {
            !s.submission.stopped && s.submission.images.values().any(|d| d == digest)
        };
        let apps = self.specs.iter().filter(|(_, stored)| uses(stored));
        apps.map(|((namespace, app), _)| format!("{namespace}/{app}")).collect()
    }

    fn hold(&self, digest: &str) -> Hold {
        let here = self.local.values().any(|l| l.kept.images.iter().any(|i| i == digest));
        if here || !self.users_of(digest).is_empty() {
            Hold::Needed
        } else if self.is_removed(digest) {
            Hold::Removed
        } else if self.tags.values().any(|d| d == digest) && self.keeps_a_copy(digest) {
            Hold::Needed
        } else {
            Hold::Unneeded
        }
    }

    /// Whether this node is one of the first live holders by name: all nodes come to the same answer, so never do all let go.
    fn keeps_a_copy(&self, digest: &str) -> bool {
        let prefix = sched::record::image_prefix(digest);
        let holds = |record: &sched::NodeRecord| record.images.binary_search(&prefix).is_ok();
        let before = self.nodes.iter().filter(|(name, record)| {
            **name < self.config.name && self.is_live(name) && holds(record)
        });
        before.count() < COPIES
    }

    /// What is here is known: what goes?
    pub(super) fn surveyed(&mut self, survey: Result<Survey, String>) {
        self.collector.busy = false;
        let survey = match survey {
            Ok(survey) => survey,
            Err(reason) => {
                self.condition(format!("images cannot be looked through: {reason}"));
                return self.fetch_waiting();
            }
        };
        let lacks =
            reserve::check(&self.config.state, 0).map_or_else(|lacks| lacks.bytes(), |()| 0);
        let now_ms = self.clock.wall_ms();
        let held = self.held_images(now_ms, &survey);
        let file = &self.config.images;
        let bounds = Bounds {
            unused_ms: file.unused_hours.saturating_mul(3_600_000),
            bytes_max: file
                .max_mib
                .map_or(survey.disk_bytes / 2, |mib| mib.saturating_mul(1 << 20)),
            lacks_bytes: std::mem::take(&mut self.collector.lacks_bytes).max(lacks),
        };
        self.watch_reserve();
        let gone = images::choose(now_ms, &held, bounds);
        if gone.is_empty() {
            return self.fetch_waiting();
        }
        for digest in gone.keys() {
            self.held.remove(digest);
            self.pods.image_is_gone(digest);
            self.collector.nameless_ms.remove(digest);
        }
        self.publish();
        let mut keep: Vec<ImageRecord> =
            self.held.iter().filter_map(|digest| self.images.get(digest).cloned()).collect();
        // Needed, but its record is gone from the map.
        let named = survey.images.into_iter().map(|(record, _)| record);
        keep.extend(named.filter(|r| !gone.contains_key(&r.manifest_digest.to_string())));
        let digests = gone.keys().cloned().collect();
        self.collector.leaving = gone;
        self.collector.busy = true;
        if let Err(reason) = self.give(Job::Collect { digests, keep }) {
            self.collected(Err(reason));
        }
    }

    /// Every image here, whether it has a name or has lost it.
    fn held_images(&mut self, now_ms: u64, survey: &Survey) -> Vec<Held> {
        let layers = |record: &ImageRecord| {
            record.layers.iter().map(|l| (l.diff_id.to_string(), l.size_bytes)).collect()
        };
        let mut held: BTreeMap<String, Held> = BTreeMap::new();
        for (record, used_ms) in &survey.images {
            let digest = record.manifest_digest.to_string();
            let hold = self.hold(&digest);
            let image =
                Held { digest: digest.clone(), used_ms: *used_ms, layers: layers(record), hold };
            // Of two names the one used last counts.
            let known = held.entry(digest).or_insert_with(|| image.clone());
            known.used_ms = known.used_ms.max(image.used_ms);
        }
        let lost: Vec<String> =
            self.held.iter().filter(|digest| !held.contains_key(*digest)).cloned().collect();
        self.collector.nameless_ms.retain(|digest, _| lost.contains(digest));
        for digest in lost {
            let since_ms = *self.collector.nameless_ms.entry(digest.clone()).or_insert(now_ms);
            let hold = match self.hold(&digest) {
                Hold::Needed => Hold::Needed,
                _ if now_ms.saturating_sub(since_ms) < RENAMED_MS => Hold::Needed,
                // Its store has forgotten its use with its name.
                _ => Hold::Removed,
            };
            let layers = self.images.get(&digest).map(layers).unwrap_or_default();
            held.insert(digest.clone(), Held { digest, used_ms: since_ms, layers, hold });
        }
        held.into_values().collect()
    }

    /// What was chosen is gone.
    pub(super) fn collected(&mut self, result: Result<u64, String>) {
        self.collector.busy = false;
        let gone = std::mem::take(&mut self.collector.leaving);
        match result {
            Ok(freed_bytes) => {
                for (digest, cause) in &gone {
                    let text = format!("no longer kept here: {}", cause.words());
                    self.event(format!("image/{digest}"), text);
                }
                let text = format!("{} images removed, {freed_bytes} bytes given back", gone.len());
                self.event("images", text);
            }
            Err(reason) => self.event("images", format!("cannot be removed: {reason}")),
        }
        for digest in gone.keys() {
            self.forget_record(digest);
        }
        self.watch_reserve();
        self.fetch_waiting();
    }

    /// The record of an image that has no name, no user and no holder any more.
    fn forget_record(&mut self, digest: &str) {
        let prefix = sched::record::image_prefix(digest);
        let me = &self.config.name;
        let elsewhere = |(name, record): (&String, &sched::NodeRecord)| {
            name != me && record.images.binary_search(&prefix).is_ok()
        };
        let known = self.images.contains_key(digest) && !self.tags.values().any(|d| d == digest);
        if known && self.users_of(digest).is_empty() && !self.nodes.iter().any(elsewhere) {
            self.gossip_step(gossip::Input::Delete { key: &format!("{IMAGE_PREFIX}{digest}") });
        }
    }

    /// Whether an image is just being removed here; who asked for it is served afterwards.
    pub(super) fn is_leaving(&mut self, digest: &str) -> bool {
        let leaving = self.collector.leaving.contains_key(digest);
        if leaving {
            self.collector.waiting.insert(digest.to_owned());
        }
        leaving
    }

    /// An operator takes a name, or an image under all its names, out of the flock.
    ///
    /// # Errors
    /// It is not there, or an app needs it: which, and what to do.
    pub(crate) fn remove_image(&mut self, reference: &str) -> Result<Image, Refusal> {
        let (names, digest) = if reference.starts_with("sha256:") {
            let named = self.tags.iter().filter(|(_, d)| *d == reference);
            (named.map(|(name, _)| name.clone()).collect(), reference.to_owned())
        } else {
            let found = self.resolve_image(reference)?;
            (vec![found.reference], found.digest)
        };
        if !self.images.contains_key(&digest) {
            return Err((
                404,
                format!("no image {reference} in this flock; see `quelea image ls`"),
            ));
        }
        let mut image = self.image_view(names.first().map_or(&digest, |name| name), &digest);
        let others = self.tags.iter().any(|(name, d)| *d == digest && !names.contains(name));
        if !others {
            let users = self.users_of(&digest);
            if let Some(first) = users.first() {
                return Err((
                    409,
                    format!(
                        "image {reference} is used by {}; stop it first: `quelea stop {first}`",
                        users.join(", ")
                    ),
                ));
            }
        }
        for name in &names {
            self.gossip_step(gossip::Input::Delete { key: &format!("{TAG_PREFIX}{name}") });
        }
        if others {
            // Its bytes stay for its other names.
            image.nodes.clear();
        } else {
            self.gossip_step(gossip::Input::Delete { key: &format!("{IMAGE_PREFIX}{digest}") });
        }
        self.event(format!("image/{}", image.reference), "an operator removes it from the flock");
        self.pump();
        Ok(image)
    }
}
