//! Keys that are known by name but mean nothing to this tool: those of IoT Edge, and of services that this version does not have.

use serde::de::IgnoredAny;

/// A value of any type and depth that nobody here looks into; whether it is there is all that is kept.
pub type Foreign = Option<IgnoredAny>;

/// Top-level keys that `iotedge config apply` reads from the same file.
pub const EDGE_KEYS: [&str; 15] = [
    "trust_bundle_cert",
    "allow_elevated_docker_permissions",
    "allow_host_access",
    "auto_reprovisioning_mode",
    "imported_master_encryption_key",
    "manifest_trust_bundle_cert",
    "additional_info",
    "iotedge_max_requests",
    "agent",
    "connect",
    "listen",
    "watchdog",
    "edge_ca",
    "moby_runtime",
    "image_garbage_collection",
];
