//! The scenarios, by name.

mod boot;
mod fence;
mod flock;
mod limits;
mod netboot;
mod network;
mod operator;
mod power;
mod rack;
mod state;
mod stranger;
mod suites;

use crate::{Cluster, Env, figures::Figure, vm::remove_dir};
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
        about: "from QEMU's start to PID 1's first line; the images racks get, too",
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
        name: "boot_two_dhcp_servers",
        about: "two servers answer, the wrong one first: the lower one's address, its labels, seeds and the firmware's",
        smoke: false,
        run: network::two_dhcp_servers,
    },
    Scenario {
        name: "boot_late_link",
        about: "no carrier at boot: it goes on, and the address comes with the cable",
        smoke: false,
        run: network::late_link,
    },
    Scenario {
        name: "boot_network_mends",
        about: "a network that comes after the boot has given it up: the fault is gone from console, agent and file",
        smoke: false,
        run: network::mends,
    },
    Scenario {
        name: "boot_several_nics",
        about: "two devices: one primary with the default route, the other with an address; one named by its MAC",
        smoke: false,
        run: network::several_nics,
    },
    Scenario {
        name: "boot_lease_lost",
        about: "a server falls silent: the address stays until the lease ends, goes, and comes back with the server",
        smoke: false,
        run: network::lease_lost,
    },
    Scenario {
        name: "boot_sntp",
        about: "a clock an hour off is stepped before the node runs; lying servers are not believed",
        smoke: false,
        run: network::sntp,
    },
    Scenario {
        name: "boot_ra_only",
        about: "a network of router advertisements without DHCP: the node has an IPv6 address",
        smoke: false,
        run: network::ra_only,
    },
    Scenario {
        name: "boot_module_missing",
        about: "a network device without a driver in the image is named; so is the lack of any other",
        smoke: false,
        run: network::module_missing,
    },
    Scenario {
        name: "boot_hotplug",
        about: "a controller plugged in later gets its driver",
        smoke: false,
        run: network::hotplug,
    },
    Scenario {
        name: "boot_wrong_clock",
        about: "a clock in 1999 is set to the day the kernel was built",
        smoke: false,
        run: boot::wrong_clock,
    },
    Scenario {
        name: "mesh_forms_3",
        about: "three machines, one view, from power on",
        smoke: true,
        run: flock::mesh_forms_3,
    },
    Scenario {
        name: "mesh_forms_5",
        about: "five machines, one view, from power on",
        smoke: false,
        run: flock::mesh_forms_5,
    },
    Scenario {
        name: "partition_minority_heals",
        about: "one of three machines is cut off, is seen dead by the others, and is back after the heal",
        smoke: false,
        run: flock::partition_minority_heals,
    },
    Scenario {
        name: "asymmetric_link_no_flap",
        about: "two machines hear each other through the third only: nobody is declared dead",
        smoke: false,
        run: flock::asymmetric_link_no_flap,
    },
    Scenario {
        name: "orderly_shutdown",
        about: "/sbin/poweroff: the agent ends first, then the machine",
        smoke: false,
        run: flock::orderly_shutdown,
    },
    Scenario {
        name: "runs_app_with_real_limits",
        about: "an app runs; memory, CPU and process limits of cgroup v2 hold inside it",
        smoke: true,
        run: limits::runs_app_with_real_limits,
    },
    Scenario {
        name: "kill9_reschedules_and_rejoins",
        about: "a machine loses power: its replicas start elsewhere; it comes back and joins",
        smoke: true,
        run: flock::kill9_reschedules_and_rejoins,
    },
    Scenario {
        name: "frozen_then_resumed_node_fenced",
        about: "a machine whose CPUs stood still for 30 s stops what was replaced; its clock stood still, too",
        smoke: false,
        run: fence::frozen_then_resumed_node_fenced,
    },
    Scenario {
        name: "stopped_then_resumed_node_fenced",
        about: "the same of a machine whose clock jumps when it goes on",
        smoke: false,
        run: fence::stopped_then_resumed_node_fenced,
    },
    Scenario {
        name: "small_guest_runs_three_pods",
        about: "128 MiB of memory: three pods run; what PID 1 and the agent take",
        smoke: false,
        run: limits::small_guest_runs_three_pods,
    },
    Scenario {
        name: "escape_suite_real_cgroups",
        about: "initd's own tests of ways out of a container and of leaks, inside a guest with all of cgroup v2",
        smoke: true,
        run: suites::escape_suite_real_cgroups,
    },
    Scenario {
        name: "state_disk_first_boot_grow_persist",
        about: "blank virtio, NVMe and SATA disks are formatted when told to; a power cut loses nothing; grown disks are used",
        smoke: true,
        run: state::first_boot_grow_persist,
    },
    Scenario {
        name: "state_disk_comes_late",
        about: "a labelled disk that a controller finds after the boot: waited for, and said; one that never comes is not",
        smoke: false,
        run: state::comes_late,
    },
    Scenario {
        name: "state_disk_bad_inputs",
        about: "disks that are full, read-only, damaged, someone else's, two, or not to be formatted: said, and left alone",
        smoke: true,
        run: state::bad_disks,
    },
    Scenario {
        name: "diskless_rack_power_cycle",
        about: "a rack loses power: its apps are back from the one machine with a disk; without any, the flock begins anew",
        smoke: false,
        run: state::diskless_rack_power_cycle,
    },
    Scenario {
        name: "power_button_orderly_shutdown",
        about: "pods end by SIGTERM, the node leaves, the disk is unmounted clean, the machine is off",
        smoke: true,
        run: power::power_button_orderly_shutdown,
    },
    Scenario {
        name: "watchdog_resets_hung_agent",
        about: "a hung agent is replaced by PID 1; a PID 1 that stands still is reset by the hardware",
        smoke: false,
        run: power::watchdog_resets_hung_agent,
    },
    Scenario {
        name: "agent_crash_loop_maintenance",
        about: "an agent that falls again and again: Maintenance, seen from another node, with the reason",
        smoke: false,
        run: power::agent_crash_loop_maintenance,
    },
    Scenario {
        name: "kexec_upgrade_rolls_back",
        about: "a new kernel and initramfs are kept when the node is healthy, and rolled back when it is not",
        smoke: false,
        run: power::kexec_upgrade_rolls_back,
    },
    Scenario {
        name: "duplicate_smbios_uuid",
        about: "two machines with one SMBIOS UUID are two nodes, and both say so",
        smoke: false,
        run: power::duplicate_smbios_uuid,
    },
    Scenario {
        name: "pxe_bios_boots_with_labels",
        about: "a blank BIOS machine boots by `quelea boot serve` of a running node, beside the site's DHCP, and joins with its labels",
        smoke: true,
        run: netboot::bios,
    },
    Scenario {
        name: "pxe_bios_undionly",
        about: "the same by the served undionly.kpxe, on the PXE functions of the card's ROM",
        smoke: false,
        run: netboot::bios_undi,
    },
    Scenario {
        name: "pxe_uefi_boots_with_labels",
        about: "the same for UEFI's PXE: iPXE by TFTP, the rest by HTTP",
        smoke: false,
        run: netboot::uefi_pxe,
    },
    Scenario {
        name: "uefi_http_boot_uki",
        about: "the same for UEFI's HTTP boot: one image with the machine's own configuration inside",
        smoke: false,
        run: netboot::uefi_http,
    },
    Scenario {
        name: "pxe_boots_through_a_node",
        about: "the same through a node that has only its image: files, keys and the operator are elsewhere; addresses are the site's",
        smoke: false,
        run: netboot::through_a_node,
    },
    Scenario {
        name: "rack_image_boots",
        about: "the image of racks on server NICs and disk controllers: drivers, state disks, one flock",
        smoke: false,
        run: rack::image_boots,
    },
    Scenario {
        name: "stranger_is_adopted",
        about: "machines without a configuration are found by a node and adopted by their fingerprint, once; a disk remembers it",
        smoke: false,
        run: stranger::is_adopted,
    },
];

/// Removes the directory of a test that passed.
fn passed(env: &Env, cluster: Cluster, figures: Vec<Figure>) -> Outcome {
    let dir = cluster.dir.clone();
    drop(cluster);
    if !env.keep {
        remove_dir(&dir);
    }
    Outcome::Passed(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tests may skip elsewhere is run here, and whole.
    #[test]
    fn all_that_may_be_skipped_is_proven_by_a_scenario() {
        for lacks in skip::Listed::ALL {
            let proof = ALL.iter().find(|scenario| scenario.name == lacks.proof());
            assert!(proof.is_some(), "{lacks:?}: no scenario {}", lacks.proof());
        }
        let suites = suites::SUITES;
        assert!(suites.iter().any(|(name, tests)| *name == "limits" && tests.is_empty()));
    }
}
