//! The end: everything is mended, and all have to agree.

use gossip::State;

use super::Flock;

impl Flock {
    pub(super) fn heal_all(&mut self) {
        self.calm = true;
        self.net.side.fill(0);
        self.net.cut.clear();
        self.calm_net();
        for node in 0..self.slots.len() {
            self.unclog(node);
            self.resume(node);
            self.boot(node);
        }
    }

    /// All views and all maps are equal.
    pub(super) fn agree(&self) -> Result<(), String> {
        let mut first = None;
        for (n, slot) in self.slots.iter().enumerate() {
            let gossip = slot.gossip.as_ref().ok_or(format!("n{n} is down"))?;
            let here = (gossip.view(), gossip.root());
            let want = first.get_or_insert(here);
            if here.0 != want.0 {
                return Err(format!("n{n} sees other members than n0"));
            }
            if here.1 != want.1 {
                return Err(format!("n{n} holds another map than n0"));
            }
        }
        let Some(gossip) = self.slots.first().and_then(|slot| slot.gossip.as_ref()) else {
            return Ok(());
        };
        let alive = 1 + gossip.members().filter(|m| m.state == State::Alive).count();
        if alive == self.slots.len() { Ok(()) } else { Err(format!("n0 sees {alive} alive")) }
    }
}
