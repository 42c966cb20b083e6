//! The TPM service on a TPM in software, with the cloud's side of the protocol played by `aziot_simulator::tpm`.

mod bus;
mod faults;
mod import;
mod keys;
mod power_cuts;
mod wire;
mod world;
