//! Routes of the module runtime. The management API is for the agent and the CLI, the workload API for modules; both have the same versions.
//!
//! What only the agent may do, or only the module that a path names, is guarded before the body is looked at. Names are checked before
//! anything is done with them. Nothing is decided here about modules, keys or certificates.

mod callers;
mod management;
mod paths;
mod statuses;
mod workload;

pub(crate) use management::Management;
pub(crate) use workload::WorkloadApi;
