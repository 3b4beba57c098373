//! cargo xtask: build, test, demo and bench from a clone.
