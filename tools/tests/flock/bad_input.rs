//! Bad input gets a clear error, a code that is not zero, and loses nothing.

use crate::support::{Flock, Said, hello_spec};

fn refused(said: &Said, words: &[&str]) {
    assert_ne!(said.code, 0, "{said:?}");
    for word in words {
        assert!(said.err.contains(word), "{word:?} is missing in: {}", said.err);
    }
}

#[test]
fn specs_images_and_names_that_are_wrong() {
    let flock = Flock::up("bad", 1);

    let spec = flock.file("typo.toml", &hello_spec(1, "").replace("replicas", "replcas"));
    refused(
        &flock.say(&["run", &spec]),
        &["typo.toml:2:1", "did you mean `replicas`?", "nothing was submitted"],
    );

    let spec = flock
        .file("image.toml", &hello_spec(1, "").replace("image = \"hello\"", "image = \"nope\""));
    refused(
        &flock.say(&["run", &spec]),
        &["image nope is not there", "looked in", "hello:latest", "quelea image import"],
    );
    assert_eq!(flock.json(&["ps"])["apps"].as_array().unwrap().len(), 0, "nothing half-done");

    let spec = flock.file("future.toml", &hello_spec(1, "kind = 7\n"));
    refused(&flock.say(&["run", &spec]), &["future.toml"]);
    refused(&flock.say(&["run", "/nonexistent.toml"]), &["/nonexistent.toml", "No such file"]);
    refused(&flock.say(&["--node", "n9", "nodes"]), &["no node \"n9\""]);
    refused(&flock.say(&["ps", "nothere"]), &["no app default/nothere", "quelea ps"]);
    refused(&flock.say(&["logs", "nothere.0"]), &["no replica default/nothere.0"]);
    refused(&flock.say(&["stop", "nothere"]), &["no app default/nothere"]);
    refused(&flock.say(&["dev", "kill", "n9"]), &["no node n9; there are n1"]);
    refused(&flock.say(&["dev"]), &["already", "quelea dev stop"]);

    let directory = flock.dir.join("root").display().to_string();
    refused(&flock.say(&["image", "import", &directory]), &["no OCI layout", "quelea image pack"]);
    let file = flock.file("noise", "this is no image");
    refused(
        &flock.say(&["image", "import", &file]),
        &["the image cannot be imported", "the upload"],
    );

    let usage = flock.say(&["nodez"]);
    refused(&usage, &["nodes"]);
    assert_eq!(usage.code, 2);
}

#[test]
fn what_cannot_be_placed_is_explained() {
    let flock = Flock::up("why", 2);
    let more = "[place]\nrequire = [\"disk == ssd\"]\n";
    let spec = flock.file("hello.toml", &hello_spec(1, more));
    let said = flock.say(&["run", "--timeout", "2", &spec]);
    refused(&said, &["is not ready after 2 s", "2", "disk == ssd"]);
    let why = flock.ok(&["why", "hello"]);
    assert!(why.contains("disk == ssd"), "{why}");
}

#[test]
fn exec_passes_code_output_and_input_and_says_what_is_missing() {
    let flock = Flock::up("exec", 1);
    let spec = flock.file("hello.toml", &hello_spec(1, ""));
    flock.ok(&["run", &spec]);
    let said = flock.say(&["exec", "hello.0", "--", "/nope"]);
    refused(&said, &["no program \"/nope\" in the image"]);
    assert_eq!(said.code, 127, "as shells have it: {said:?}");
    let said = flock.say(&["exec", "hello.0", "--", "/run/quelea/peers.json"]);
    refused(&said, &["not executable"]);
    assert_eq!(said.code, 126, "as shells have it: {said:?}");
    let said = flock.say(&["exec", "hello", "--", "/hello", "get", "http://127.0.0.1:1/"]);
    assert_eq!(said.code, 1, "the program's own code: {said:?}");
    assert!(said.err.contains("cannot connect to 127.0.0.1 port 1"), "{said:?}");
    refused(
        &flock.say(&["exec", "hello", "-c", "other", "--", "/hello"]),
        &["no container other", "hello"],
    );
}

#[test]
fn a_port_in_use_and_a_missing_privilege_say_what_to_do() {
    let flock = Flock::up("port", 1);
    let pid = std::fs::read_to_string(flock.run_dir().join("nodes/n1/pid")).unwrap();
    let config = std::fs::read_to_string(flock.run_dir().join("nodes/n1/node.toml")).unwrap();
    let other = config
        .replace(
            &format!("/var/lib/quelea-dev/{}/n1", flock.name),
            &format!("{}/state", flock.dir.display()),
        )
        .replace(
            &format!("{}/nodes/n1/run", flock.run_dir().display()),
            &format!("{}/run", flock.dir.display()),
        );
    let other = flock.file("node.toml", &other);
    let quelead = std::path::Path::new(crate::support::QUELEA).with_file_name("quelead");
    // In the node's network namespace, where its agent has the ports.
    let output = std::process::Command::new("nsenter")
        .args(["-t", pid.trim(), "-n"])
        .arg(&quelead)
        .args(["agent", "--config", &other])
        .output()
        .unwrap();
    refused(&output.into(), &["UDP 10.77.0.1:7400", "Address already in use", "another agent"]);

    let copy = flock.dir.join("quelea");
    std::fs::copy(crate::support::QUELEA, &copy).unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy)
        .args(["dev"])
        .output()
        .unwrap();
    refused(&output.into(), &["need root", "sudo"]);
}
