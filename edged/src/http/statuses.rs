//! The statuses of what modules and the agent ask of keys, certificates and identities. From 500 on callers read what failed, as the public
//! runtime tells them, and the other services' own words with it, which are for callers; no key or secret is ever in them.

use aziot_http::{Status, StatusCode};

use crate::{identities, trust_bundle, workload};

impl Status for identities::Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::Absent(_) => StatusCode::NOT_FOUND,
            // The caller is the module, but not the one of that generation.
            Self::OtherGeneration { .. } => StatusCode::FORBIDDEN,
            Self::List(_)
            | Self::Create { .. }
            | Self::Update { .. }
            | Self::Delete { .. }
            | Self::Get { .. }
            | Self::IdentityType
            | Self::MissingModuleId
            | Self::MissingGeneration(_)
            | Self::MissingAuthentication
            | Self::MissingKey => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn message_of_failure(&self) -> String {
        aziot_log::chain(self).to_string()
    }
}

impl Status for workload::Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotBase64(_)
            | Self::VectorLength(_)
            | Self::Generation { .. }
            | Self::OldGeneration { .. }
            | Self::CommonName
            | Self::ModuleName
            | Self::Ciphertext => StatusCode::BAD_REQUEST,
            Self::Identity(error) => error.status(),
            Self::Sign { .. }
            | Self::MasterKey(_)
            | Self::Encrypt(_)
            | Self::Decrypt(_)
            | Self::Request(_)
            | Self::EdgeCa(_)
            | Self::Issue { .. }
            | Self::Certificate { .. }
            | Self::Useless(_)
            | Self::Stopping => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn message_of_failure(&self) -> String {
        aziot_log::chain(self).to_string()
    }
}

impl Status for trust_bundle::Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Unreadable { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn message_of_failure(&self) -> String {
        aziot_log::chain(self).to_string()
    }
}
