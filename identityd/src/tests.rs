//! The service as its callers know it, over a real socket, with a real key service and a simulated cloud over real TLS.

mod authorization;
mod bad_answers;
mod certificates;
mod devices;
mod distrust;
mod fleet;
mod local;
mod many_modules;
mod nested;
mod offline;
mod overlaps;
mod principal_modules;
mod proxy;
mod reads;
mod refused_certificates;
mod reload;
mod renewal;
mod tpm;
mod whole;
mod world;
