//! Records of the map: nodes, claims, rollouts.

use rand::Rng;

use super::Sched;
use crate::api::{Event, Output};
use crate::record::{ClaimRecord, NodeRecord, RolloutRecord};
use crate::turn::Turn;
use crate::view::AppKey;

/// Changes that arrive through the map are looked at together after this, microseconds.
const COALESCE_US: u64 = 20_000;

impl Sched {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn record(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        key: &str,
        body: Option<&[u8]>,
        writer: &str,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let mut parts = key.split('/');
        let kind = parts.next();
        let rest = (parts.next(), parts.next(), parts.next());
        let result = match (kind, rest) {
            (Some("n"), (Some(node), None, None)) => {
                if node == self.config.node {
                    let mut turn = turn!(self, now_us, wall_ms, rng, out);
                    self.admit.node_record_seen(&mut turn, body);
                    return;
                }
                self.node_record(now_us, node, body, writer)
            }
            (Some("a"), (Some(node), Some(claim), None)) => {
                if node == self.config.node && self.admit.recovered {
                    let mut turn = turn!(self, now_us, wall_ms, rng, out);
                    self.admit.claim_record_seen(&mut turn, claim, body.is_some());
                    return;
                }
                self.claim_record(now_us, wall_ms, (node, claim), body, writer, rng, out)
            }
            (Some("r"), (Some(namespace), Some(app), None)) => {
                self.rollout_record(now_us, &AppKey::new(namespace, app), body)
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            let from = writer.to_owned();
            out.push(Output::Event(Event::Malformed { from, error: format!("{key}: {error}") }));
        }
    }

    fn node_record(
        &mut self,
        now_us: u64,
        node: &str,
        body: Option<&[u8]>,
        writer: &str,
    ) -> Result<(), String> {
        let record = match body {
            Some(_) if writer != node => return Err(format!("written by {writer}")),
            Some(body) => Some(NodeRecord::decode(body).map_err(|e| e.to_string())?),
            None => None,
        };
        self.view.node_record(now_us, node, record);
        self.sweep_later(now_us, node);
        self.all_dirty(now_us + COALESCE_US);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn claim_record(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        (node, claim): (&str, &str),
        body: Option<&[u8]>,
        writer: &str,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) -> Result<(), String> {
        let Some(body) = body else {
            let for_good = writer == node;
            self.claim_gone(now_us, wall_ms, claim, for_good, now_us + COALESCE_US, rng, out);
            return Ok(());
        };
        if writer != node {
            return Err(format!("written by {writer}"));
        }
        let record = ClaimRecord::decode(body).map_err(|e| e.to_string())?;
        if record.node != node {
            return Err(format!("speaks of node {}", record.node));
        }
        self.claim_news(now_us, claim, record, None, now_us + COALESCE_US);
        Ok(())
    }

    /// A claim's record, from the map or (`acked_us`) from its node itself.
    pub(super) fn claim_news(
        &mut self,
        now_us: u64,
        id: &str,
        record: ClaimRecord,
        acked_us: Option<u64>,
        at: u64,
    ) {
        let key = AppKey::of(&record);
        let daemon = record.daemon;
        let node = record.node.clone();
        let news = self.view.put_claim(id, record, acked_us);
        self.sweep_later(now_us, &node);
        if news || acked_us.is_some() {
            self.daemons_dirty |= daemon;
            if self.leads(&key) {
                self.mark(&key, at.max(now_us));
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn claim_gone(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        id: &str,
        for_good: bool,
        at: u64,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let Some(record) = self.view.drop_claim(id, now_us, for_good) else { return };
        self.claim_left(now_us, wall_ms, id, &record, at, rng, out);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn claim_left(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        id: &str,
        record: &ClaimRecord,
        at: u64,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let key = AppKey::of(record);
        self.daemons_dirty |= record.daemon;
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        if let Some(app) = self.apps.get_mut(&key) {
            turn.lost(app, id, record);
        }
        if self.leads(&key) {
            self.mark(&key, at);
        }
    }

    fn rollout_record(
        &mut self,
        now_us: u64,
        key: &AppKey,
        body: Option<&[u8]>,
    ) -> Result<(), String> {
        let record = body.map(RolloutRecord::decode).transpose().map_err(|e| e.to_string())?;
        let Some(app) = self.app(key) else { return Ok(()) };
        if let Some(r) = &record {
            let current = app.hear_term(r.term, &r.coordinator);
            if let Some(lead) = app.lead.as_mut().filter(|l| l.term != 0)
                && lead.written.as_ref() != Some(r)
            {
                // Someone wrote over ours: say it again, above it if its term is higher.
                lead.written = None;
                self.mark(key, now_us + COALESCE_US);
                return Ok(());
            }
            if !current {
                return Ok(());
            }
        }
        app.rollout = record;
        Ok(())
    }
}
