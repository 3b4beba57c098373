//! The scenarios, by name.

mod boot;

use crate::{Env, figures::Figure};
use anyhow::Result;

/// How a scenario ended.
#[derive(Debug)]
pub enum Outcome {
    /// It holds, with what was measured.
    Passed(Vec<Figure>),
    /// It could not be tried.
    Skipped(String),
}

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Part of the short set that every change runs.
    pub smoke: bool,
    /// The test.
    pub run: fn(&Env, &str) -> Result<Outcome>,
}

/// All of them, in the order they run.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "boot_first_line_budget",
        about: "from QEMU's start to PID 1's first line, uncompressed kernel and bzImage",
        smoke: true,
        run: boot::first_line_budget,
    },
    Scenario {
        name: "boot_network_up",
        about: "modules, DHCP with host name and labels, cgroup v2, memory of PID 1, orderly power off",
        smoke: true,
        run: boot::network_up,
    },
    Scenario {
        name: "boot_given_address",
        about: "an address on the command line, and unknown arguments warned about and ignored",
        smoke: false,
        run: boot::given_address,
    },
    Scenario {
        name: "boot_dhcp_trouble",
        about: "a silent server, then a refusing one, then an honest one: the boot goes on and the address comes late",
        smoke: false,
        run: boot::dhcp_trouble,
    },
    Scenario {
        name: "boot_wrong_clock",
        about: "a clock in 1999 is set to the day the kernel was built",
        smoke: false,
        run: boot::wrong_clock,
    },
];
