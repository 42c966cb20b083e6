//! The service as its callers know it, over a real socket, with a real key service and a simulated cloud over real TLS.

mod authorization;
mod devices;
mod distrust;
mod offline;
mod overlaps;
mod principal_modules;
mod proxy;
mod whole;
mod world;
