//! `hello` serves and asks.

#![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hello() -> Command {
    Command::new(env!("CARGO_BIN_EXE_hello"))
}

/// A server on a free port of the loopback interface.
fn serve() -> (Server, u16) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = hello()
        .env("PORT", port.to_string())
        .env("QUELEA_POD", "hello.7")
        .env("QUELEA_NODE", "n1")
        .env("QUELEA_RACK", "r1")
        .env("QUELEA_POD_IP", "100.64.0.2")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on port"), "{line}");
    (Server(child), port)
}

fn get(port: u16, path: &str) -> (bool, String) {
    let output = hello().args(["get", &format!("http://127.0.0.1:{port}{path}")]).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn tells_who_it_is() {
    let (_server, port) = serve();
    let expected = "hello from hello.7 on n1 (rack r1), 100.64.0.2\n";
    assert_eq!(get(port, "/"), (true, expected.into()));
    assert_eq!(get(port, "/healthz"), (true, "ok\n".into()));
    let (_, info) = get(port, "/info");
    assert!(info.contains("\"node\":\"n1\""), "{info}");
    assert!(!get(port, "/nothing").0, "an unknown path is no success");
}

#[test]
fn an_address_without_a_server_is_an_error() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(!get(port, "/").0);
}
