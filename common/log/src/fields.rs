//! Names of the fields of log events, so that a search finds one thing under one name in every daemon.
//!
//! Used as `info!({ fields::KEY_ID } = %id, "made a key")`. In the journal a name is upper case with `F_` in front:
//! `F_KEY_ID`.

/// Name of a symmetric key or key pair on this device. Never a handle: whoever has a handle may use the key.
pub const KEY_ID: &str = "key_id";
/// Name of a certificate on this device.
pub const CERTIFICATE_ID: &str = "certificate_id";
/// End of a certificate.
pub const NOT_AFTER: &str = "not_after";
/// When a certificate is renewed next, or its renewal tried again.
pub const NEXT_RENEWAL: &str = "next_renewal";
/// Name of a module identity at the hub.
pub const MODULE_ID: &str = "module_id";
/// Name or id of a container image.
pub const IMAGE: &str = "image";
/// Calls that some work has made to the hub.
pub const HUB_CALLS: &str = "hub_calls";
/// How many modules were made.
pub const MADE: &str = "made";
/// How many modules were there and were taken over.
pub const TAKEN_OVER: &str = "taken_over";
/// How many modules were deleted.
pub const DELETED: &str = "deleted";
/// How many modules were as they should be.
pub const KEPT: &str = "kept";
/// How many modules are left for later.
pub const LEFT: &str = "left";
/// Name of the device at the hub.
pub const DEVICE_ID: &str = "device_id";
/// What was done with a key: `sign`.
pub const OPERATION: &str = "operation";
/// PKCS#11 token that the line is about, by its label or slot.
pub const TOKEN: &str = "token";
/// Host name of the hub.
pub const HUB: &str = "hub";
/// Name under which the device provisions itself at DPS.
pub const REGISTRATION_ID: &str = "registration_id";

/// Numeric user of the process that called.
pub const UID: &str = "uid";
/// Process that called; it may be gone, and its number another's, by the time somebody reads the log.
pub const PID: &str = "pid";
/// Socket by which a call came, where a daemon has several of one kind: the module whose workload socket it is.
pub const LISTENER: &str = "listener";
/// HTTP method of a call.
pub const METHOD: &str = "method";
/// Path of a call, without its query.
pub const PATH: &str = "path";
/// HTTP status that answered a call.
pub const STATUS: &str = "status";
/// How long something took, in microseconds.
pub const ELAPSED_MICROSECONDS: &str = "elapsed_us";
/// Name of one call, passed on from daemon to daemon.
pub const REQUEST_ID: &str = "request_id";
/// Which daemon a line is about, by the short name: `keyd`.
pub const SERVICE: &str = "service";
/// Address of a service in the cloud or of a local socket.
pub const URL: &str = "url";

/// A file that the line is about.
pub const FILE: &str = "file";
/// An error with its causes, in one line.
pub const ERROR: &str = "error";
/// How many tries came before, counted from 1.
pub const ATTEMPT: &str = "attempt";
/// Time until the next try, in milliseconds.
pub const DELAY_MILLISECONDS: &str = "delay_ms";

/// Source file and line where a panic happened.
pub const LOCATION: &str = "location";
/// Name of the thread that panicked.
pub const THREAD: &str = "thread";
