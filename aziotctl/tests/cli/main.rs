//! The built `aziotctl`, run as its users run it. One program for all of these tests, so that they are linked once.
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for code that is none")]

mod device_in_a_folder;
mod help;
mod other_commands;
mod running;
mod scenarios;
