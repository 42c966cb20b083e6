//! Whom the device's certificate names when it is requested, out of the settings.
//!
//! What a table of attributes asks for is checked when the settings are read. A plain name is checked when a certificate is requested: one that
//! is there already may name the device in a way that no request could.

use aziot_identityd_api::config::Subject;
use aziot_pki::name::{self, LONGEST_COMMON_NAME, NameError};

const DPS: &str = "provisioning.attestation.registration_id";
const MANUAL: &str = "provisioning.device_id";
const MANUAL_SUBJECT: &str = "provisioning.authentication.csr_subject";

/// Why no certificate can be requested with a subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubjectError {
    /// The name would have to be cut.
    #[error(
        "{setting} has {length} characters, and the common name of a certificate has at most {LONGEST_COMMON_NAME}"
    )]
    TooLong {
        /// Dotted key of the setting.
        setting: &'static str,
        /// Its length.
        length: usize,
    },
    /// An attribute that no subject has, or not with this value.
    #[error("{setting} is no subject of a certificate: {problem}")]
    Attribute {
        /// Dotted key of the setting.
        setting: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// A subject as configured: the common name, then the other attributes in alphabetical order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateSubject {
    /// Setting that the common name comes from.
    setting: &'static str,
    entries: Vec<(String, String)>,
}

impl CertificateSubject {
    /// For a device that is configured by hand: only the other attributes of `csr_subject` count.
    pub(crate) fn of_manual(device_id: &str, csr_subject: Option<&Subject>) -> Result<Self, SubjectError> {
        let subject = Self::new(MANUAL, device_id, csr_subject);
        let others = subject.entries.iter().skip(1).map(as_text);
        name::from_entries(others).map_err(|error| attribute(MANUAL_SUBJECT, &error))?;
        Ok(subject)
    }

    /// For a registration.
    pub(crate) fn of_dps(registration_id: &Subject) -> Result<Self, SubjectError> {
        let subject = Self::new(DPS, registration_id.common_name(), Some(registration_id));
        if let Subject::Attributes(_) = registration_id {
            subject.entries().map(drop)?;
        }
        Ok(subject)
    }

    fn new(setting: &'static str, common_name: &str, subject: Option<&Subject>) -> Self {
        let others = subject.into_iter().flat_map(Subject::other_attributes);
        let all = std::iter::once(("CN", common_name)).chain(others);
        Self { setting, entries: all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect() }
    }

    /// The attributes, if a request can have them.
    pub(crate) fn entries(&self) -> Result<impl Iterator<Item = (&str, &str)>, SubjectError> {
        let length = self.entries.first().map_or(0, |(_, common_name)| common_name.chars().count());
        if length > LONGEST_COMMON_NAME {
            return Err(SubjectError::TooLong { setting: self.setting, length });
        }
        let entries = self.entries.iter().map(as_text);
        name::from_entries(entries.clone()).map_err(|error| attribute(self.setting, &error))?;
        Ok(entries)
    }
}

fn as_text((name, value): &(String, String)) -> (&str, &str) {
    (name, value)
}

fn attribute(setting: &'static str, error: &NameError) -> SubjectError {
    SubjectError::Attribute { setting, problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, &str)]) -> Subject {
        Subject::Attributes(entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    fn entries(subject: &CertificateSubject) -> Vec<(&str, &str)> {
        subject.entries().unwrap().collect()
    }

    #[test]
    fn the_common_name_is_first_and_the_rest_in_order() {
        let wanted = table(&[("ST", "Antarctica"), ("CN", "r"), ("L", "AQ")]);
        let subject = CertificateSubject::of_dps(&wanted).unwrap();
        assert_eq!(entries(&subject), [("CN", "r"), ("L", "AQ"), ("ST", "Antarctica")]);
        let subject = CertificateSubject::of_manual("device", Some(&wanted)).unwrap();
        assert_eq!(entries(&subject), [("CN", "device"), ("L", "AQ"), ("ST", "Antarctica")]);
        let plain = Subject::CommonName("without effect".into());
        assert_eq!(entries(&CertificateSubject::of_manual("device", Some(&plain)).unwrap()), [("CN", "device")]);
    }

    /// Also where a cut would fall into a character (W24).
    #[test]
    fn a_long_common_name_is_an_error_and_never_cut() {
        let (fits, long) = ("é".repeat(64), "é".repeat(65));
        CertificateSubject::of_manual(&fits, None).unwrap().entries().map(drop).unwrap();
        let error = CertificateSubject::of_manual(&long, None).unwrap().entries().map(drop).unwrap_err();
        assert_eq!(
            error.to_string(),
            "provisioning.device_id has 65 characters, and the common name of a certificate has at most 64"
        );
    }
}
