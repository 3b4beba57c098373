//! placeholder replaced below
fn main() { println!("hi"); }
