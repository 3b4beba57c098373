//! System calls that rustix lacks, and the ones a cloned child makes.
#![allow(unsafe_code)]
