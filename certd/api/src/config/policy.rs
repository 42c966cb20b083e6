//! What a certificate request may ask for, where the operator wants to limit it. Without a policy everything is granted, as by the
//! public service: deployed programs make their certificate authorities that way.

use std::fmt;

use aziot_http::Glob;
use serde::{Deserialize, Serialize};

/// Limits for the requests of one certificate, whoever issues it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Whether it may be a certificate authority. Default true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub ca: bool,
    /// What it may be used for: each usage must be one of these, and a request must name one. Absent: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extended_key_usages: Option<Vec<ExtendedKeyUsage>>,
    /// Patterns, with `*` and `?`, of its alternative names: DNS names, IP addresses, e-mail addresses and URIs; other kinds are
    /// refused then. Absent: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<Glob>>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { ca: true, extended_key_usages: None, names: None }
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde wants")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// An extended key usage: a name of RFC 5280 such as `clientAuth`, or a dotted object identifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExtendedKeyUsage {
    written: String,
    dotted: String,
}

/// Names of RFC 5280, section 4.2.1.12, and their last number under id-kp.
const NAMES: [(&str, u32); 6] = [
    ("serverAuth", 1),
    ("clientAuth", 2),
    ("codeSigning", 3),
    ("emailProtection", 4),
    ("timeStamping", 8),
    ("OCSPSigning", 9),
];

/// A text that is no extended key usage.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no extended key usage such as clientAuth, serverAuth or 1.3.6.1.5.5.7.3.2")]
pub struct UsageError(String);

impl ExtendedKeyUsage {
    /// The object identifier: `1.3.6.1.5.5.7.3.2`.
    #[must_use]
    pub fn dotted(&self) -> &str {
        &self.dotted
    }
}

impl TryFrom<String> for ExtendedKeyUsage {
    type Error = UsageError;

    fn try_from(written: String) -> Result<Self, UsageError> {
        let named = NAMES.iter().find(|(name, _)| *name == written);
        let dotted = match named {
            Some((_, number)) => format!("1.3.6.1.5.5.7.3.{number}"),
            None => written.clone(),
        };
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if dotted.split('.').count() < 3 || !dotted.split('.').all(is_number) {
            return Err(UsageError(written));
        }
        Ok(Self { written, dotted })
    }
}

impl From<ExtendedKeyUsage> for String {
    fn from(usage: ExtendedKeyUsage) -> Self {
        usage.written
    }
}

impl fmt::Display for ExtendedKeyUsage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_and_written() {
        let text = "ca = false\nextended_key_usages = [\"clientAuth\", \"1.2.3\"]\nnames = [\"*.example\"]\n";
        let policy: Policy = toml::from_str(text).unwrap();
        let usages = policy.extended_key_usages.as_ref().unwrap();
        assert_eq!(usages.iter().map(ExtendedKeyUsage::dotted).collect::<Vec<_>>(), ["1.3.6.1.5.5.7.3.2", "1.2.3"]);
        assert_eq!(toml::to_string(&policy).unwrap(), text);
        assert_eq!(toml::from_str::<Policy>("").unwrap(), Policy::default());
        for mistake in ["clientauth", "", "1.2", "1..2", "1.2.x"] {
            assert!(toml::from_str::<Policy>(&format!("extended_key_usages = [{mistake:?}]")).is_err(), "{mistake}");
        }
    }
}
