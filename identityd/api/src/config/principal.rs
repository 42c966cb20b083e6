//! Who may ask the identity service for what: `[[principal]]` tables.

use serde::{Deserialize, Serialize};

/// A Unix user and the identities that it may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Unix user id of the caller.
    pub uid: u32,
    /// Its name, used once; with the idtype `module` that of its module at the hub.
    pub name: String,
    /// Its identities. Absent: it is a daemon and may do everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idtype: Option<Vec<IdType>>,
    /// What its local identity is like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub localid: Option<LocalIdOptions>,
}

impl Principal {
    /// Whether it has an identity of this kind.
    #[must_use]
    pub fn has(&self, kind: IdType) -> bool {
        self.idtype.as_ref().is_some_and(|kinds| kinds.contains(&kind))
    }
}

/// A kind of identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdType {
    /// The device's own.
    Device,
    /// A module at the hub.
    Module,
    /// A name of the local network.
    Local,
}

/// What a local identity is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalIdOptions {
    /// `x509`, the only kind there is.
    pub r#type: LocalIdType,
    /// What its certificate is for. Default `client`.
    #[serde(default)]
    pub attributes: CertificateUse,
}

/// A kind of local identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalIdType {
    /// A certificate.
    X509,
}

/// What the certificate of a local identity is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateUse {
    /// For TLS clients.
    #[default]
    Client,
    /// For TLS clients and servers.
    Server,
}

/// Whether the hub takes this as a module's name; `.` and `..` would mean something else in a path.
#[must_use]
pub fn module_name_is_valid(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != ".."
}
