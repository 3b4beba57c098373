//! A machine's oscillator: the one thing behind its monotonic and its wall clock, and it may run fast or slow.

/// Parts in a million: what a rate is told in.
const MILLION: i128 = 1_000_000;

/// What a machine takes for the time since the start of the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// True time at the last change of the rate, microseconds.
    since_us: u64,
    /// What it showed then, microseconds.
    shown_us: u64,
    ppm: i64,
    /// Its rate when nothing is wrong with it: how well it was made.
    rated_ppm: i64,
}

impl Clock {
    /// A clock that is right now and gains so many parts in a million from here on (more than -1,000,000).
    #[must_use]
    pub fn new(rated_ppm: i64) -> Clock {
        Clock { ppm: rated_ppm, rated_ppm, ..Clock::default() }
    }

    /// What it shows at a true time, microseconds. Never less than before.
    #[must_use]
    pub fn at(&self, true_us: u64) -> u64 {
        let passed_us = true_us.saturating_sub(self.since_us);
        if self.ppm == 0 {
            return self.shown_us + passed_us;
        }
        let gained_us = (i128::from(passed_us) * i128::from(self.ppm)).div_euclid(MILLION);
        // Less than what has passed, whatever the rate.
        (self.shown_us + passed_us).saturating_add_signed(gained_us as i64)
    }

    /// The first true time at which it shows this, microseconds; a time in the past for what it has shown already.
    #[must_use]
    pub fn when(&self, shown_us: u64) -> u64 {
        let wait_us = shown_us.saturating_sub(self.shown_us);
        if self.ppm == 0 {
            return self.since_us.saturating_add(wait_us);
        }
        let rate = (MILLION + i128::from(self.ppm)) as u128;
        let wait_us = (u128::from(wait_us) * MILLION as u128).div_ceil(rate);
        self.since_us.saturating_add(u64::try_from(wait_us).unwrap_or(u64::MAX))
    }

    /// Drifts at another rate from now on.
    pub fn drift(&mut self, true_us: u64, ppm: i64) {
        (self.shown_us, self.since_us) = (self.at(true_us), true_us);
        self.ppm = ppm;
    }

    /// Runs as it was made to. What it has gained or lost stays. Whether it did not.
    pub fn steady(&mut self, true_us: u64) -> bool {
        let drifted = self.ppm != self.rated_ppm;
        self.drift(true_us, self.rated_ppm);
        drifted
    }

    /// How far it is off, microseconds.
    #[must_use]
    pub fn off_us(&self, true_us: u64) -> u64 {
        self.at(true_us).abs_diff(true_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_at_the_first_microsecond_that_shows_it() {
        for ppm in [-50_000, -500, -1, 0, 1, 333, 50_000] {
            let mut clock = Clock::new(ppm);
            clock.drift(7_000_003, ppm * 2);
            clock.drift(9_000_001, ppm);
            let shown_us = clock.at(9_000_001) + 1;
            for shown_us in (shown_us..shown_us + 500_000).step_by(997) {
                let true_us = clock.when(shown_us);
                assert!(clock.at(true_us) >= shown_us, "{ppm} ppm: {shown_us} too early");
                assert!(clock.at(true_us - 1) < shown_us, "{ppm} ppm: {shown_us} too late");
            }
        }
    }

    #[test]
    fn a_change_of_the_rate_is_no_jump() {
        let mut clock = Clock::new(500);
        assert_eq!(clock.at(1_000_000), 1_000_500);
        clock.drift(1_000_000, -50_000);
        assert_eq!(clock.at(1_000_000), 1_000_500);
        assert_eq!(clock.at(3_000_000), 1_000_500 + 1_900_000);
        assert!(clock.steady(3_000_000));
        assert!(!clock.steady(3_000_000), "it does already");
        assert_eq!(clock.off_us(3_000_000), 99_500);
        assert_eq!(clock.at(4_000_000), 2_900_500 + 1_000_500);
    }

    #[test]
    fn a_clock_without_a_rate_shows_the_truth() {
        let clock = Clock::default();
        for us in [0, 1, 1_000_000, u64::from(u32::MAX)] {
            assert_eq!((clock.at(us), clock.when(us)), (us, us));
        }
    }
}
