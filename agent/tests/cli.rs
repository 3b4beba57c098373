//! What `quelead` says to wrong usage: what was wrong, and a code that is not zero.

#![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::process::{Command, Output};

fn quelead(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quelead")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn usage_and_version() {
    let help = quelead(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("quelead agent"));
    let version = quelead(&["--version"]);
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("quelead "));
}

#[test]
fn wrong_usage_is_code_2() {
    for (args, words) in [
        (&[][..], "which role?"),
        (&["agnet"][..], "no role is named \"agnet\""),
        (&["agent", "--confg", "x"][..], "--confg"),
        (&["agent", "--namespace"][..], "--namespace"),
    ] {
        let output = quelead(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_configuration_that_is_wrong_is_named() {
    let output = quelead(&["agent", "--config", "/nonexistent/node.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/node.toml"), "{}", stderr(&output));

    let path = std::env::temp_dir().join(format!("quelead-cli-{}.toml", std::process::id()));
    std::fs::write(&path, "name = \"n1\"\naddress = \"10.0.0.1\"\nlabel = 3\n").unwrap();
    let output = quelead(&["agent", "--config", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("line 3") && text.contains("label"), "{text}");
}

#[test]
fn init_is_for_pid_1() {
    let output = quelead(&["init", "--namespace"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("PID 1"), "{}", stderr(&output));
}
