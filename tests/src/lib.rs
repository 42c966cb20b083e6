//! A device in a folder, as its users drive it: real daemons on their own sockets, the simulated cloud over TLS, `aziotctl`,
//! and curl and openssl as clients. The system tests and `cargo xtask demo` both stand on this.
//!
//! Nothing here links against the daemons: the same tests can be run on other builds of them.

pub mod at_once;
pub mod calls;
pub mod curl;
pub mod device;
pub mod docker;
pub mod edge;
pub mod est;
pub mod gate;
pub mod hex;
pub mod module;
pub mod openssl;
pub mod pairs;
pub mod process;
pub mod provisioned;
pub mod raw;
pub mod token;
pub mod tpm;
pub mod world;

pub use at_once::at_once;
pub use curl::Reply;
pub use device::{Daemon, Device, Programs};
pub use edge::Edge;
pub use est::EstServer;
pub use process::eventually;
pub use world::World;
