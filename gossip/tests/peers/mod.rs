//! Peers on the same virtual network: foca for membership, chitchat for the map.
#![allow(dead_code, unreachable_pub)] // Each user takes its own part of this module.

pub mod chitchat;
pub mod foca;
