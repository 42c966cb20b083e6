//! How the EST server is to be: its file, and what of it can be changed while it runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::enrollments::{self, ParseError};

const DAY_SECONDS: u32 = 24 * 60 * 60;
const LIMIT_BYTES: u64 = 1 << 20;

/// Why the settings of the EST server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("could not read the settings of the EST server")]
    Read(#[source] aziot_files::Error),
    /// The file is not TOML of the expected shape.
    #[error("could not understand the settings of the EST server in {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Place and reason; without the line itself, which may hold a password.
        #[source]
        source: ParseError,
    },
    /// A setting is out of its range.
    #[error(transparent)]
    Range(#[from] RangeError),
}

/// A setting that would make certificates nobody can use.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} is not between 1 s and ten years")]
pub struct RangeError(&'static str);

/// Which credentials an enrolment needs. A credential that is wrong is refused even where it is not needed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// A user's password or a certificate.
    #[default]
    Any,
    /// A user's password.
    Basic,
    /// A certificate.
    Certificate,
    /// Both.
    Both,
}

/// What the holder of a bootstrap certificate may obtain.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Bootstrap {
    /// Only an identity for this server: client authentication alone, no names beside the subject.
    #[default]
    Identity,
    /// Whatever others may obtain.
    Anything,
}

/// Settings of the EST server. Every key of the file may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "one switch of the file each")]
pub struct Settings {
    /// For so long an issued certificate is valid; 30 days.
    pub lifetime_seconds: u32,
    /// The same for one that is asked for client authentication alone and has no names beside its subject; `lifetime_seconds` if absent.
    pub identity_lifetime_seconds: Option<u32>,
    /// By so much `notBefore` lies in the past; 0.
    pub backdate_seconds: u32,
    /// Which credentials an enrolment needs.
    pub authentication: Authentication,
    /// What the holder of a bootstrap certificate may obtain.
    pub bootstrap: Bootstrap,
    /// Labels in paths that are served beside the path without one.
    pub labels: Vec<String>,
    /// So many times a request is answered 202 before it is granted; 0. An attempt before `retry_after_seconds` are over does not count.
    pub pending_polls: u32,
    /// What `retry-after` of a 202 says; 1.
    pub retry_after_seconds: u32,
    /// Whether `cacerts` needs the credentials of an enrolment; RFC 7030, section 4.1.1, advises against it.
    pub protect_cacerts: bool,
    /// Whether the answer to an enrolment has the issuers too; RFC 7030, section 4.2.3, has the certificate alone.
    pub send_chain: bool,
    /// Refuse `simpleenroll` where subject and names are those of the client's own certificate.
    pub insist_on_reenroll: bool,
    /// Whether CA certificates are issued.
    pub allow_ca: bool,
    /// Whether requests in clear are served too, on the same port.
    pub plain_http: bool,
    /// Passwords by user name, for basic authentication.
    pub users: BTreeMap<String, Password>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lifetime_seconds: 30 * DAY_SECONDS,
            identity_lifetime_seconds: None,
            backdate_seconds: 0,
            authentication: Authentication::default(),
            bootstrap: Bootstrap::default(),
            labels: Vec::new(),
            pending_polls: 0,
            retry_after_seconds: 1,
            protect_cacerts: false,
            send_chain: false,
            insist_on_reenroll: false,
            allow_ca: false,
            plain_http: false,
            users: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Reads a file of TOML. Blocks.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = Zeroizing::new(aziot_files::read_limited(path, LIMIT_BYTES).map_err(Error::Read)?);
        let parsed: Result<Self, _> = enrollments::parse_toml(&bytes);
        let settings = parsed.map_err(|source| Error::Parse { path: path.to_owned(), source })?;
        settings.check()?;
        Ok(settings)
    }

    /// The same with `change` in force.
    pub(crate) fn changed(&self, change: &Change) -> Result<Self, RangeError> {
        let mut settings = self.clone();
        let put = |slot: &mut u32, value: Option<u32>| *slot = value.unwrap_or(*slot);
        put(&mut settings.lifetime_seconds, change.lifetime_seconds);
        put(&mut settings.backdate_seconds, change.backdate_seconds);
        put(&mut settings.pending_polls, change.pending_polls);
        put(&mut settings.retry_after_seconds, change.retry_after_seconds);
        let set = |slot: &mut bool, value: Option<bool>| *slot = value.unwrap_or(*slot);
        set(&mut settings.protect_cacerts, change.protect_cacerts);
        set(&mut settings.send_chain, change.send_chain);
        set(&mut settings.insist_on_reenroll, change.insist_on_reenroll);
        set(&mut settings.allow_ca, change.allow_ca);
        settings.identity_lifetime_seconds = change.identity_lifetime_seconds.or(settings.identity_lifetime_seconds);
        settings.authentication = change.authentication.unwrap_or(settings.authentication);
        settings.bootstrap = change.bootstrap.unwrap_or(settings.bootstrap);
        settings.check()?;
        Ok(settings)
    }

    /// What is in force, as the control API shows it: users without their passwords.
    pub(crate) fn shown(&self) -> Value {
        json!({
            "lifetimeSeconds": self.lifetime_seconds,
            "identityLifetimeSeconds": self.identity_lifetime_seconds,
            "backdateSeconds": self.backdate_seconds,
            "authentication": self.authentication,
            "bootstrap": self.bootstrap,
            "labels": self.labels,
            "pendingPolls": self.pending_polls,
            "retryAfterSeconds": self.retry_after_seconds,
            "protectCacerts": self.protect_cacerts,
            "sendChain": self.send_chain,
            "insistOnReenroll": self.insist_on_reenroll,
            "allowCa": self.allow_ca,
            "plainHttp": self.plain_http,
            "users": self.users.keys().collect::<Vec<_>>(),
        })
    }

    fn check(&self) -> Result<(), RangeError> {
        let range = 1..=3650 * DAY_SECONDS;
        if !range.contains(&self.lifetime_seconds) {
            return Err(RangeError("the lifetime of certificates"));
        }
        if self.identity_lifetime_seconds.is_some_and(|seconds| !range.contains(&seconds)) {
            return Err(RangeError("the lifetime of identities"));
        }
        if self.backdate_seconds > *range.end() {
            return Err(RangeError("the back-dating"));
        }
        Ok(())
    }
}

/// What the control API changes; what is left out stays.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Change {
    lifetime_seconds: Option<u32>,
    identity_lifetime_seconds: Option<u32>,
    backdate_seconds: Option<u32>,
    authentication: Option<Authentication>,
    bootstrap: Option<Bootstrap>,
    pending_polls: Option<u32>,
    retry_after_seconds: Option<u32>,
    protect_cacerts: Option<bool>,
    send_chain: Option<bool>,
    insist_on_reenroll: Option<bool>,
    allow_ca: Option<bool>,
}

/// A user's password. Shown nowhere, and wiped when dropped.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Whether this is it, in a time that does not tell how much of it is right.
    pub(crate) fn is(&self, given: &str) -> bool {
        self.0.len() == given.len() && openssl::memcmp::eq(self.0.as_bytes(), given.as_bytes())
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Password([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("est.toml");
        aziot_files::write(&path, aziot_files::Mode::PRIVATE, text).unwrap();
        Settings::read(&path)
    }

    #[test]
    fn everything_has_a_default_and_passwords_show_nowhere() {
        assert_eq!(read("").unwrap().shown(), Settings::default().shown());
        let settings = read("lifetime_seconds = 20\nbootstrap = 'anything'\n[users]\npump = 'p@ss:word'").unwrap();
        assert_eq!((settings.lifetime_seconds, settings.bootstrap), (20, Bootstrap::Anything));
        assert!(settings.users["pump"].is("p@ss:word"));
        assert!(!settings.users["pump"].is("p@ss:worD") && !settings.users["pump"].is("p@ss"));
        let shown = format!("{settings:?} {}", settings.shown());
        assert!(shown.contains("pump") && !shown.contains("p@ss"), "{shown}");
    }

    #[test]
    fn a_slip_is_told_with_its_line_and_without_its_text() {
        let error = read("[users]\npump = 7531").unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains("line: 2") && text.contains("est.toml"), "{text}");
        assert!(read("lifetime = 20").is_err());
        assert!(matches!(read("lifetime_seconds = 0"), Err(Error::Range(_))));
        assert!(matches!(read("identity_lifetime_seconds = 0"), Err(Error::Range(_))));
    }

    #[test]
    fn a_change_leaves_the_rest() {
        let settings = read("lifetime_seconds = 20\nsend_chain = true\nidentity_lifetime_seconds = 7").unwrap();
        let change = serde_json::from_str(r#"{"lifetimeSeconds":30,"authentication":"both"}"#).unwrap();
        let changed = settings.changed(&change).unwrap();
        assert_eq!((changed.lifetime_seconds, changed.identity_lifetime_seconds), (30, Some(7)));
        assert!(changed.send_chain && changed.authentication == Authentication::Both);
        let zero = Change { lifetime_seconds: Some(0), ..Change::default() };
        assert!(settings.changed(&zero).is_err());
        assert!(serde_json::from_str::<Change>(r#"{"lifetime":30}"#).is_err());
    }
}
