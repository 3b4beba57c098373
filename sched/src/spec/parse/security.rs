//! What a container may do: user, capabilities, system calls, devices.

use super::super::fields::{Cx, Table};
use super::super::{MOUNTS_MAX, Profile};
use super::name;

/// The capabilities that a spec may give a container, without `CAP_`: all of them act inside the pod's own user
/// namespace only.
const CAPS: [&str; 22] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_PTRACE",
];

/// Those that no container gets: they reach the machine, or the kernel as a whole.
const CAPS_NEVER: [&str; 19] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_BROADCAST",
    "PERFMON",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_PACCT",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

pub(super) fn caps(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<Vec<String>> {
    let mut caps = Vec::new();
    for at in table.strings(cx, "caps")? {
        let upper = at.value.to_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        // What was accepted once keeps running as it was.
        if CAPS.contains(&bare) || cx.stored && CAPS_NEVER.contains(&bare) {
            caps.push(bare.to_owned());
            continue;
        }
        if CAPS_NEVER.contains(&bare) {
            let message = format!("`{bare}` is given to no container: it reaches beyond the pod");
            cx.error_help(at.span, message, format!("there are {}", CAPS.join(", ")));
            continue;
        }
        let message = format!("`{}` is no capability", at.value);
        match near_cap(bare) {
            Some(near) => cx.error_help(at.span, message, format!("did you mean `{near}`?")),
            None => cx.error(at.span, message),
        }
    }
    caps.sort();
    caps.dedup();
    Some(caps)
}

fn near_cap(bare: &str) -> Option<String> {
    let all = CAPS.iter().chain(&CAPS_NEVER);
    let lower: Vec<String> = all.map(|c| c.to_lowercase()).collect();
    let refs: Vec<&str> = lower.iter().map(String::as_str).collect();
    super::super::diag::nearest(bare, &refs).map(str::to_uppercase)
}

pub(super) fn user(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<String> {
    table.read(cx, "user", |text| {
        let part = |p: &str| {
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !p.is_empty() && p.len() <= 64 && p.chars().all(fine)
        };
        let (user, group) = text.split_once(':').unwrap_or((text, "0"));
        if part(user) && part(group) {
            Ok(text.to_owned())
        } else {
            Err(format!("`{text}` is no user; write `1000`, `www` or `1000:1000`"))
        }
    })
}

pub(super) fn profile(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Profile {
    let words = [("strict", Profile::Strict), ("compat", Profile::Compat)];
    table.word(cx, "profile", &words, &[]).unwrap_or_default()
}

pub(super) fn seccomp(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<String> {
    table.read(cx, "seccomp", |text| {
        let help = "write `default`, `compat`, or the name under which nodes have a filter";
        match text {
            "unconfined" | "none" => Err(format!("no container runs without a filter; {help}")),
            _ if name(text) => Ok(text.to_owned()),
            _ => Err(format!("`{text}` is no name of a filter; {help}")),
        }
    })
}

pub(super) fn devices(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for at in table.strings(cx, "devices").unwrap_or_default() {
        if name(&at.value) {
            list.push(at.value);
        } else {
            let message = format!("`{}` is no device name: a-z, 0-9, -", at.value);
            let help = "devices go by the names that nodes grant in node.toml: [grants] devices";
            cx.error_help(at.span, message, help);
        }
    }
    list.sort();
    list.dedup();
    if list.len() > MOUNTS_MAX {
        cx.error(table.span.clone(), format!("`devices` has more than {MOUNTS_MAX} entries"));
    }
    list
}
