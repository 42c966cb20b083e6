//! Who is at the other end of a connection.

/// Credentials of the connected process, read by the kernel when it connected (`SO_PEERCRED`).
///
/// Rights hang on the uid alone. The pid is for the log: it can be reused before anybody looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id; 0 where the kernel does not say.
    pub pid: i32,
}
