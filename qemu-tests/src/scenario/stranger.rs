//! Machines that come without a configuration: an operator finds and adopts them.

use super::{Outcome, operator::*, passed};
use crate::{
    Env,
    cluster::address,
    ctl::Ctl,
    disk::Disk,
    pace::{self, eventually},
    vm::Vm,
};
use anyhow::{Context as _, Result, ensure};

/// What a machine shows that can be adopted, up to the digits.
const TOLD: &str = "type: quelea adopt ";

/// The fingerprint on a machine's console.
fn fingerprint(vm: &mut Vm) -> Result<String> {
    let (first, _) = vm.line("is PID 1", seconds(30))?;
    pace::booted(first);
    vm.line("maintenance", seconds(30))?;
    let (_, line) = vm.line(TOLD, seconds(30))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "--fingerprint").context("no fingerprint")?;
    Ok((*words.get(at + 1).context("no digits")?).to_owned())
}

/// `quelea adopt` on the first machine; its words, whether it went well or not.
fn adopt(ctl: &mut Ctl, machine: usize, digits: &str, name: &str) -> Result<(bool, String)> {
    let at = address(machine).to_string();
    let label = ["--label", "rack=r9"];
    let argv = ["/usr/bin/quelea", "adopt", &at, "--fingerprint", digits, "--name", name];
    let argv: Vec<&str> = argv.into_iter().chain(label).collect();
    let answer = ctl.exec_for(&argv, 90_000)?;
    Ok((answer.code == 0, answer.out + &answer.err))
}

pub(super) fn is_adopted(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 1)
        .nodes(4)
        // What `quelea boot serve` gives a machine that nobody named.
        .files_of(2, vec![("node.toml".into(), b"name = \"m-1\"\nmaintenance = true\n".to_vec())])
        .each(|n, machine| {
            machine.product = n > 0;
            if n == 1 {
                machine.disks = vec![Disk::virtio(256)];
                machine.args = "quelea.state=format:auto".into();
            }
            if n == 3 {
                machine.args = "quelea.adopt=off".into();
            }
        })
        .start()?;
    let (first, _) = cluster.vms[0].line("is PID 1", seconds(30))?;
    pace::booted(first);
    let mut ctl = cluster.vms[0].ctl()?;
    one_view(&mut [&mut ctl], 1, seconds(30))?;
    let digits = [fingerprint(&mut cluster.vms[1])?, fingerprint(&mut cluster.vms[2])?];
    ensure!(digits[0] != digits[1], "one key for two machines");
    cluster.vms[3].line("nobody can adopt this machine", seconds(30))?;

    // Both are found by a node, with what their consoles show; the third is silent.
    eventually(seconds(30), "strangers", || {
        let found = ask(&mut ctl, &["strangers"])?;
        let list = found.as_array().context("a list")?;
        ensure!(list.len() == 2, "{found}");
        for (n, digits) in digits.iter().enumerate() {
            let at = address(n + 1).to_string();
            let card = list.iter().find(|c| c["address"] == at.as_str()).context("not found")?;
            ensure!(card["fingerprint"] == digits.as_str() && card["cpus"] == 1, "{card}");
            ensure!(card["disks"] == 1 - n, "{card}");
        }
        Ok(())
    })?;

    // Not with another machine's fingerprint, and not the one that is closed.
    let (done, said) = adopt(&mut ctl, 1, &digits[1], "n7")?;
    ensure!(!done && said.contains("compare with its console"), "{said}");
    let (done, said) = adopt(&mut ctl, 3, &digits[0], "n7")?;
    ensure!(!done && said.contains("did not answer here"), "{said}");
    one_view(&mut [&mut ctl], 1, seconds(5))?;

    let (done, said) = adopt(&mut ctl, 1, &digits[0], "n7")?;
    ensure!(done && said.contains("kept on its disk"), "{said}\n{}", cluster.vms[1].tail());
    let (done, said) = adopt(&mut ctl, 2, &digits[1], "n8")?;
    ensure!(done && said.contains("until the next boot"), "{said}\n{}", cluster.vms[2].tail());
    let node = ask(&mut ctl, &["node", "n7"])?;
    ensure!(node["labels"]["rack"] == "r9" && node["boot_state"] == "disk", "{node}");
    // It listens to nobody any more.
    let (done, said) = adopt(&mut ctl, 1, &digits[0], "n9")?;
    ensure!(!done, "adopted twice: {said}");
    let left = ask(&mut ctl, &["strangers"])?;
    ensure!(left.as_array().is_some_and(Vec::is_empty), "{left}");

    // Its disk remembers; nobody need come again.
    cluster.power_cycle(1)?;
    cluster.vms[1].line("its configuration is on its disk", seconds(60))?;
    cluster.vms[1].line(" joined: ", seconds(60))?;
    ensure!(!cluster.vms[1].said(TOLD), "it offers itself again");
    eventually(seconds(60), "n7 is back", || {
        let names = seen(&mut ctl, "alive")?;
        ensure!(names.len() == 3 && names.iter().any(|n| n == "n7"), "{names:?}");
        Ok(())
    })?;
    Ok(passed(env, cluster, Vec::new()))
}
