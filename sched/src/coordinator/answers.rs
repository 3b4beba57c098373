//! What nodes answer to offers, and claims that vanish.

use super::{REFUSED_MS, TRIES_MAX};
use crate::api::Event;
use crate::app::App;
use crate::msg::{Free, Refusal};
use crate::record::ClaimRecord;
use crate::turn::Turn;
use crate::view::AppKey;

impl Turn<'_> {
    /// A node took a slot.
    pub(crate) fn accepted(
        &mut self,
        key: &AppKey,
        app: &mut App,
        offer: u64,
        record: &ClaimRecord,
    ) {
        let Some(mut lead) = app.lead.take() else { return };
        let found = lead.offers.iter().find(|(_, p)| p.id == offer).map(|(slot, _)| *slot);
        if let Some(slot) = found {
            self.drop_offer(&mut lead, slot);
            let node = record.node.clone();
            self.event(Event::Placed { app: key.to_string(), slot, node });
        }
        app.lead = Some(lead);
    }

    /// A node refused a slot.
    pub(crate) fn refused(
        &mut self,
        key: &AppKey,
        app: &mut App,
        from: &str,
        offer: u64,
        reason: &Refusal,
        _free: Free,
    ) {
        if let Refusal::StaleTerm { term } = reason {
            self.outranked(app, *term);
        }
        let Some(mut lead) = app.lead.take() else { return };
        let found = lead.offers.iter().find(|(_, p)| p.id == offer).map(|(slot, _)| *slot);
        if let Some(slot) = found {
            self.drop_offer(&mut lead, slot);
            if !matches!(reason, Refusal::StaleTerm { .. }) {
                let until = self.after(REFUSED_MS);
                lead.avoid.insert(from.to_owned(), until);
            }
            let memo = lead.slots.entry(slot).or_default();
            memo.refused += 1;
            if memo.refused.is_multiple_of(TRIES_MAX) {
                memo.not_before = self.now_us + self.jitter_us(self.config.backoff_ms);
            }
            let (node, reason) = (from.to_owned(), reason.as_str().to_owned());
            self.event(Event::Refused { app: key.to_string(), slot, node, reason });
        }
        app.lead = Some(lead);
    }

    /// A node heard a higher term: if this node still leads, it goes above it.
    pub(crate) fn outranked(&mut self, app: &mut App, term: u64) {
        let me = self.me().to_owned();
        if let Some(lead) = &mut app.lead
            && lead.term != 0
            && term >= lead.term
        {
            lead.term = term.saturating_add(1);
            app.term = (lead.term, me);
        }
    }

    /// A claim vanished on a live node without being told to.
    pub(crate) fn lost(&mut self, app: &mut App, id: &str, record: &ClaimRecord) {
        let Some(mut lead) = app.lead.take() else { return };
        let asked = lead.stops.remove(id).is_some() || lead.failed.remove(id);
        if !asked && self.view.is_live(record) {
            let memo = lead.slots.entry(record.slot).or_default();
            // The first is free: a node that rebooted quickly is no reason to wait.
            if memo.lost > 0 {
                self.back_off(&mut lead, record.slot);
            }
            lead.slots.entry(record.slot).or_default().lost += 1;
        }
        app.lead = Some(lead);
    }
}
