//! What each pod here is told of the replicas of its app: one text an app, shared by its pods, written where it has changed.
//!
//! Changes are gathered: at most one batch of files is with the worker, and the next is made [`WRITE_EVERY_US`] later at the
//! soonest, from what is so by then. What waits is therefore one batch, however many changes there were.

use std::collections::BTreeMap;
use std::sync::Arc;

/// From one batch to the next, in microseconds; a change after a quiet time is written at once.
pub const WRITE_EVERY_US: u64 = 150_000;

/// Namespace and name of an app.
pub type App = (String, String);

/// A file's whole text, shared by all that are given it.
pub type Text = Arc<[u8]>;

/// Which pod was given what. Decides; writes nothing.
#[derive(Debug, Default)]
pub struct PeerFiles {
    /// The newest text of each app that has a pod here.
    texts: BTreeMap<App, Text>,
    /// What each pod here was given last, by its claim.
    given: BTreeMap<String, Text>,
    /// Something may be different since the last batch.
    stale: bool,
    /// Before then no batch is made.
    free_us: u64,
    /// A batch is with the worker.
    under_way: bool,
}

impl PeerFiles {
    /// Something that the texts are made from may have changed.
    pub fn changed(&mut self) {
        self.stale = true;
    }

    /// When the next batch is due, in microseconds. While one is under way its end comes first.
    pub fn next_deadline(&self) -> Option<u64> {
        (self.stale && !self.under_way).then_some(self.free_us)
    }

    /// The text that a pod starts with: who makes the pod writes it.
    pub fn first(&mut self, claim: &str, app: &App, text: Vec<u8>) -> Text {
        let text = self.share(app, text);
        self.given.insert(claim.to_owned(), text.clone());
        text
    }

    /// The files to write now, by claim: those of `pods`, a claim and its app each, whose text is another than before. Apps
    /// without a text are forgotten.
    pub fn batch<'a>(
        &mut self,
        now_us: u64,
        texts: BTreeMap<App, Vec<u8>>,
        pods: impl Iterator<Item = (&'a str, &'a App)>,
    ) -> Vec<(String, Text)> {
        self.stale = false;
        self.texts.retain(|app, _| texts.contains_key(app));
        for (app, text) in texts {
            self.share(&app, text);
        }
        let mut files = Vec::new();
        for (claim, app) in pods {
            let Some(text) = self.texts.get(app) else { continue };
            if self.given.get(claim).is_some_and(|given| Arc::ptr_eq(given, text) || given == text)
            {
                continue;
            }
            self.given.insert(claim.to_owned(), text.clone());
            files.push((claim.to_owned(), text.clone()));
        }
        if !files.is_empty() {
            self.under_way = true;
            self.free_us = now_us + WRITE_EVERY_US;
        }
        files
    }

    /// The batch is done but for these claims: they are written again when something changes next.
    pub fn written(&mut self, failed: &[String]) {
        self.under_way = false;
        for claim in failed {
            self.given.remove(claim);
        }
    }

    /// There was no room for the batch: it is made again, from what is so by then.
    pub fn refused(&mut self, claims: &[String]) {
        self.written(claims);
        self.stale = true;
    }

    /// A pod is no more.
    pub fn forget(&mut self, claim: &str) {
        self.given.remove(claim);
    }

    /// The one copy of an app's text.
    fn share(&mut self, app: &App, text: Vec<u8>) -> Text {
        match self.texts.get(app) {
            Some(old) if **old == *text => old.clone(),
            _ => {
                let text = Text::from(text);
                self.texts.insert(app.clone(), text.clone());
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> App {
        ("default".into(), name.into())
    }

    /// What a node does: `changed`, and a batch when it is due.
    struct Bench {
        files: PeerFiles,
        pods: Vec<(String, App)>,
    }

    impl Bench {
        fn new(pods: usize) -> Self {
            let pods = (0..pods).map(|i| (format!("c{i}"), app("a"))).collect();
            Self { files: PeerFiles::default(), pods }
        }

        fn turn(&mut self, now_us: u64, text: &str) -> Vec<(String, Text)> {
            if self.files.next_deadline().is_none_or(|at| at > now_us) {
                return Vec::new();
            }
            let texts = BTreeMap::from([(app("a"), text.as_bytes().to_vec())]);
            self.files.batch(now_us, texts, self.pods.iter().map(|(c, a)| (c.as_str(), a)))
        }
    }

    #[test]
    fn many_changes_are_few_batches_and_the_last_holds_the_newest() {
        let mut bench = Bench::new(100);
        let (mut batches, mut last) = (0, BTreeMap::new());
        // A hundred pods come up within a second, each of them two changes.
        for change in 0..200_u64 {
            bench.files.changed();
            let files = bench.turn(change * 5_000, &format!("{change}"));
            if !files.is_empty() {
                batches += 1;
                last.extend(files);
                bench.files.written(&[]);
            }
        }
        let due = bench.files.next_deadline().unwrap();
        last.extend(bench.turn(due, "199"));
        assert!((6..=8).contains(&batches), "{batches} batches in a second");
        assert_eq!(last.len(), 100);
        assert!(last.values().all(|text| **text == *b"199"));
    }

    #[test]
    fn a_slow_worker_has_one_batch_and_gets_the_newest_after_it() {
        let mut bench = Bench::new(2);
        bench.files.changed();
        assert_eq!(bench.turn(0, "0").len(), 2);
        for change in 1..1000_u64 {
            bench.files.changed();
            assert_eq!(bench.files.next_deadline(), None, "the first is still under way");
            assert!(bench.turn(change * 10_000, "x").is_empty());
        }
        bench.files.written(&[]);
        let files = bench.turn(10_000_000, "newest");
        assert_eq!(files.len(), 2);
        assert!(files.iter().all(|(_, text)| **text == *b"newest"));
    }

    #[test]
    fn after_a_quiet_time_a_change_is_written_at_once() {
        let mut bench = Bench::new(1);
        bench.files.changed();
        assert_eq!(bench.turn(7, "0").len(), 1);
        bench.files.written(&[]);
        assert_eq!(bench.files.next_deadline(), None, "nothing has changed");
        bench.files.changed();
        assert_eq!(bench.files.next_deadline(), Some(7 + WRITE_EVERY_US));
        assert_eq!(bench.turn(9_000_000, "1").len(), 1);
    }

    #[test]
    fn the_same_text_is_not_written_again_and_is_there_once() {
        let mut bench = Bench::new(3);
        let first: Vec<Text> = bench
            .pods
            .clone()
            .iter()
            .map(|(claim, app)| bench.files.first(claim, app, b"same".to_vec()))
            .collect();
        assert!(first.iter().all(|text| Arc::ptr_eq(text, &first[0])));
        bench.files.changed();
        assert!(bench.turn(0, "same").is_empty(), "they were made with it");
        bench.files.changed();
        assert_eq!(bench.files.next_deadline(), Some(0), "an empty batch holds nothing up");
        let files = bench.turn(0, "other");
        assert!(files.iter().all(|(_, text)| Arc::ptr_eq(text, &files[0].1)));
        assert_eq!(Arc::strong_count(&first[0]), 3, "only the test still has the old text");
    }

    #[test]
    fn a_batch_that_found_no_room_is_made_again_with_the_newest() {
        let mut bench = Bench::new(2);
        bench.files.changed();
        let claims: Vec<String> = bench.turn(0, "0").into_iter().map(|file| file.0).collect();
        bench.files.refused(&claims);
        assert_eq!(bench.files.next_deadline(), Some(WRITE_EVERY_US), "not in a loop");
        let files = bench.turn(WRITE_EVERY_US, "1");
        assert_eq!(files.len(), 2);
        assert!(files.iter().all(|(_, text)| **text == *b"1"));
    }

    #[test]
    fn what_failed_is_written_with_the_next_change_and_what_is_gone_is_forgotten() {
        let mut bench = Bench::new(2);
        bench.files.changed();
        assert_eq!(bench.turn(0, "0").len(), 2);
        bench.files.written(&["c1".into()]);
        assert_eq!(bench.files.next_deadline(), None, "not in a loop");
        bench.files.changed();
        let files = bench.turn(WRITE_EVERY_US, "0");
        assert_eq!(files.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), ["c1"]);
        bench.files.written(&[]);
        bench.files.forget("c0");
        bench.files.forget("c1");
        bench.files.batch(2 * WRITE_EVERY_US, BTreeMap::new(), std::iter::empty());
        assert!(bench.files.given.is_empty() && bench.files.texts.is_empty());
    }
}
