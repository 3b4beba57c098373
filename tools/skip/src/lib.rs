//! Tests that cannot run on this machine: they say so and pass; where `QUELEA_NO_SKIP` is set, as in CI, they fail instead,
//! unless what the machine lacks is on the list of [`Listed`].

use std::fmt::Display;

/// All that a machine of CI may lack. Each is proven by a scenario of `qemu-tests` instead, on a kernel that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// The controllers of cgroup v2, which a host with cgroup v1 keeps there.
    Controllers,
    /// Free pages of 2 MiB: the kernel argument `hugepages=` of a machine that nobody else uses.
    HugePages,
    /// A disk that may be overwritten (`QUELEA_TEST_DISK`).
    SpareDisk,
    /// CAP_SYS_RESOURCE, without which ext4 does not grow; containers seldom have it.
    Growing,
}

impl Listed {
    /// The whole list.
    pub const ALL: [Self; 4] = [Self::Controllers, Self::HugePages, Self::SpareDisk, Self::Growing];

    /// The scenario that runs what is skipped.
    #[must_use]
    pub fn proof(self) -> &'static str {
        match self {
            // It refuses any skip in the tests that it runs.
            Self::Controllers | Self::HugePages | Self::SpareDisk => "escape_suite_real_cgroups",
            Self::Growing => "state_disk_first_boot_grow_persist",
        }
    }
}

/// Says that a test, or a part of one, is not run for want of what any machine of CI has.
///
/// # Panics
/// Where `QUELEA_NO_SKIP` is set.
pub fn because(test: &str, why: impl Display) {
    say(strict(), test, &why, None);
}

/// Says that a test, or a part of one, is not run for want of something that is on the list.
pub fn listed(test: &str, lacks: Listed, why: impl Display) {
    say(strict(), test, &why, Some(lacks));
}

fn strict() -> bool {
    std::env::var_os("QUELEA_NO_SKIP").is_some_and(|value| !value.is_empty())
}

fn say(strict: bool, test: &str, why: &dyn Display, lacks: Option<Listed>) {
    match lacks {
        // Whoever refuses skips looks for the first word.
        Some(lacks) => println!("SKIP {test}: {why} (proven by {})", lacks.proof()),
        None => println!("SKIP {test}: {why}"),
    }
    assert!(!strict || lacks.is_some(), "{test} must not be skipped (QUELEA_NO_SKIP): {why}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_is_listed_may_be_skipped_anywhere_and_all_else_where_nobody_is_strict() {
        for lacks in Listed::ALL {
            say(true, "a test", &"lacks it", Some(lacks));
            say(false, "a test", &"lacks it", Some(lacks));
        }
        say(false, "a test", &"no crun", None);
    }

    #[test]
    #[should_panic(expected = "a test must not be skipped (QUELEA_NO_SKIP): no crun")]
    fn what_is_not_listed_fails_where_skips_are_refused() {
        say(true, "a test", &"no crun", None);
    }

    /// Rust files below a directory that say it by hand.
    fn by_hand(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                by_hand(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs")
                && std::fs::read_to_string(&path).expect("text").contains("println!(\"SKIP")
            {
                found.push(path.display().to_string());
            }
        }
    }

    /// Otherwise it would count as passed.
    #[test]
    fn no_test_says_skip_by_itself() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let (mut found, mut dirs) = (Vec::new(), 0);
        for member in std::fs::read_dir(&root).expect("the clone") {
            let member = member.expect("an entry").path();
            for dir in ["src", "tests"].map(|name| member.join(name)).iter().filter(|d| d.is_dir())
            {
                by_hand(dir, &mut found);
                dirs += 1;
            }
        }
        // `qemu-tests` counts its own, and refuses them itself.
        found.retain(|path| !path.ends_with("/qemu-tests/src/main.rs"));
        assert!(dirs > 10, "{dirs}");
        assert_eq!(found, [""; 0], "use skip::because");
    }
}
