//! How many requests each room has at the other services at a time.
//!
//! A service works on ten requests of one user and turns the others away after a while; here they wait in a line instead, and what one room
//! asks for leaves room for the others. The sums are checked when this is compiled.

/// Requests of one user that a service works on.
const MOST: usize = 10;

/// Signatures of modules.
pub(crate) const SIGNATURES: usize = 6;
/// Secrets of modules: a key in hardware is slow, and signatures do not wait for it.
pub(crate) const SECRETS: usize = 2;
/// The key of the Edge CA: a handle for those who issue, and a renewal or, where nobody renews it, a look for the report.
const EDGE_CA_KEY: usize = 2;
const _: () = assert!(SIGNATURES + SECRETS + EDGE_CA_KEY <= MOST, "the key service");

/// Certificates of modules, and the removal of those that they replace.
pub(crate) const CERTIFICATES: usize = 4;
/// Trust bundles: two, each read once at a time.
const TRUST_BUNDLES: usize = 2;
/// The certificate of the Edge CA: a renewal or a look.
const EDGE_CA: usize = 1;
const _: () = assert!(CERTIFICATES + TRUST_BUNDLES + EDGE_CA <= MOST, "the certificate service");

/// Identities that are read for their keys.
pub(crate) const IDENTITY_READS: usize = 6;
/// Changes of identities, and lists.
pub(crate) const IDENTITY_CHANGES: usize = 2;
/// The agent's identity, which the watchdog asks for: it does not wait for what the agent itself asks for.
pub(crate) const AGENT_IDENTITY: usize = 1;
/// The device's identity, at the start, and provisioning it anew.
const DEVICE: usize = 1;
const _: () = assert!(IDENTITY_READS + IDENTITY_CHANGES + AGENT_IDENTITY + DEVICE <= MOST, "the identity service");
