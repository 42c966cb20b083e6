//! The tasks of the program, each in a file of its own.

pub(crate) mod agent;
pub(crate) mod doors;
pub(crate) mod gateway;
pub(crate) mod leave;
pub(crate) mod load;
pub(crate) mod module;
pub(crate) mod mqtt;
pub(crate) mod output;
