//! What modules and the agent say to the module runtime, as the stock SDKs and edgeAgent say it: over their sockets, with what their
//! environment tells them. The program of this crate does so inside containers, the system tests from outside through a door in one.
//!
//! It knows the published interface alone, and shares no code with the runtime.

pub mod agent;
pub mod environment;
pub mod http;
pub mod token;
pub mod workload;

pub use agent::{Agent, Wanted};
pub use environment::Environment;
pub use workload::Workload;
