//! The runtime's two APIs as their callers see them on the wire, byte for byte where deployed clients count bytes, over the real domain: an
//! engine in memory, the key and certificate services as they are, an identity service without a hub. On real containers they are tested
//! with the whole system.

mod wire_management;
mod wire_workload;
mod world;
