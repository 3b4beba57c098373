//! Lifeguard's local health: a node that hears little doubts itself before it doubts others
//! (Dadgar, Phillips, Currey 2017, section IV.A).

/// 0 is healthy; every timeout of ours is multiplied by one more than this.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Health {
    score: u32,
}

const SCORE_MAX: u32 = 8;

impl Health {
    pub(crate) fn better(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    pub(crate) fn worse(&mut self, by: u32) {
        self.score = (self.score + by).min(SCORE_MAX);
    }

    pub(crate) fn stretch(self, time_us: u64) -> u64 {
        time_us * u64::from(self.score + 1)
    }

    pub(crate) fn score(self) -> u32 {
        self.score
    }
}
