//! Container output: pipes into rotated files.
