//! The built `aziotctl` and `iotedge`, run as their users run them. One program for all of these tests, so that they are linked once.
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for code that is none")]

mod device;
mod device_in_a_folder;
mod device_with_modules;
mod help;
mod other_commands;
mod running;
mod scenarios;
