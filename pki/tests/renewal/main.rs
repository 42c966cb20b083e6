//! The renewal engine, with a clock that tests set and credentials that fail as told.

#![cfg(test)]

mod clocks;
mod doubts;
mod faults;
mod holding;
mod issued;
mod services;
mod timelines;
mod world;
