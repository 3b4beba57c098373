//! Pods that cannot stay as they are: of an old template, or on a draining node.

use std::collections::BTreeMap;

use super::{Held, OFFERS_MAX, Slot};
use crate::api::Event;
use crate::app::{App, Lead};
use crate::place::Tally;
use crate::spec::Spec;
use crate::turn::Turn;
use crate::view::AppKey;

impl Turn<'_> {
    /// Replaces pods of an old template or on a draining node, within the budget.
    pub(super) fn renew(
        &mut self,
        key: &AppKey,
        app: &App,
        lead: &mut Lead,
        slots: &BTreeMap<u32, Slot>,
        tally: &mut Tally,
    ) {
        let Some(spec) = app.wanted().cloned() else { return };
        let replicas = spec.replicas;
        let mut surge = spec.update.max_surge.of(replicas);
        let unavailable = spec.update.max_unavailable.of(replicas);
        if surge == 0 && unavailable == 0 {
            surge = 1;
        }
        let mut extra: u32 = slots.values().map(Slot::extra).sum::<u32>()
            + lead
                .offers
                .keys()
                .filter(|n| slots.get(n).is_some_and(|s| !s.offered && s.leaving > 0))
                .count() as u32;
        // A template that fails on one slot after the other waits as a whole.
        let renew_at = if lead.failures > 0 { lead.renew_at } else { 0 };
        let ready = |s: &Slot| s.live.iter().any(|h| h.ready);
        let mut available = slots.range(..replicas).filter(|(_, s)| ready(s)).count() as u32;
        for (number, slot) in slots.range(..replicas) {
            let [old] = slot.live.as_slice() else { continue };
            if (old.current && !old.draining) || slot.offered {
                continue;
            }
            let not_before = lead.slots.get(number).map_or(0, |m| m.not_before).max(renew_at);
            if not_before > self.now_us {
                lead.wake = lead.wake.min(not_before);
                continue;
            }
            if extra < surge && *self.in_flight < OFFERS_MAX {
                tally.remove(self.view, &spec, &old.node);
                if let Some(node) = self.pick(key, &spec, lead, tally, *number) {
                    self.moving(key, *number, old);
                    self.offer(key, app, lead, *number, &node);
                    tally.add(self.view, &spec, &node);
                    extra += 1;
                    continue;
                }
                tally.add(self.view, &spec, &old.node);
            }
            let affordable = !old.ready || available > replicas.saturating_sub(unavailable);
            if affordable && self.would_fit(key, &spec, lead, tally, *number, old) {
                self.moving(key, *number, old);
                self.stop(key, lead, &old.id, &old.node);
                available -= u32::from(old.ready);
                extra += 1;
            }
        }
    }

    fn moving(&mut self, key: &AppKey, slot: u32, old: &Held) {
        let reason = if old.current { "its node drains" } else { "a new generation" };
        let (node, reason) = (old.node.clone(), reason.to_owned());
        self.event(Event::Moving { app: key.to_string(), slot, node, reason });
    }

    /// Whether the slot could be placed once its old pod is gone.
    fn would_fit(
        &mut self,
        key: &AppKey,
        spec: &Spec,
        lead: &Lead,
        tally: &Tally,
        slot: u32,
        old: &Held,
    ) -> bool {
        let mut tally = tally.clone();
        tally.vacate(self.view, spec, &old.node);
        let used = self.view.nodes.get(&old.node).map(|n| n.used);
        if let Some(node) = self.view.nodes.get_mut(&old.node) {
            node.used = node.used.minus(old.amounts);
        }
        let fits = self.pick(key, spec, lead, &tally, slot).is_some();
        if let (Some(node), Some(used)) = (self.view.nodes.get_mut(&old.node), used) {
            node.used = used;
        }
        fits
    }
}
