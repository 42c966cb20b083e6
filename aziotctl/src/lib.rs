//! The command lines of a device: `aziotctl`, and `iotedge` for one with modules, which does the same for one service more.
//!
//! A super-config is read ([`super_config`]) and checked ([`check`](mod@check)), which makes [`settings`] of it; these are turned into the services'
//! files ([`generate`]), compared with what is there ([`plan`]) and put in place ([`apply`]). Only `apply` and `restart` change anything; all before
//! them runs without privileges and on any machine.

pub mod apply;
pub mod check;
pub mod commands;
pub mod console;
pub mod engine;
pub mod failure;
pub mod finding;
pub mod generate;
pub mod host_name;
pub mod layout;
pub mod named_files;
pub mod pending;
pub mod plan;
pub mod position;
pub mod process;
pub mod product;
pub mod report;
pub mod reprovisioning;
pub mod restart;
pub mod settings;
pub mod super_config;
pub mod users;
