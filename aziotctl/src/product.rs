//! The two command lines over this library, and what each of them configures.

use crate::layout::Service;

/// Which command line runs. Both read the same super-config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `aziotctl`: keys, certificates, identities and the TPM. What the super-config says about IoT Edge is not looked into.
    IdentityService,
    /// `iotedge`: the same, and the module runtime with its share in the other services' files.
    Edge,
}

impl Product {
    /// The program, as users type it.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::IdentityService => "aziotctl",
            Self::Edge => "iotedge",
        }
    }

    /// The package that makes the users and folders of its services.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::IdentityService => "aziot-identity-service",
            Self::Edge => "aziot-edge",
        }
    }

    /// The services whose files it writes, in the order of writing.
    #[must_use]
    pub fn services(self) -> &'static [Service] {
        match self {
            Self::IdentityService => &[Service::Keyd, Service::Certd, Service::Identityd, Service::Tpmd],
            Self::Edge => &Service::ALL,
        }
    }

    /// The users of its services, as a sentence lists them.
    #[must_use]
    pub fn users(self) -> String {
        let users: Vec<&str> = self.services().iter().map(|service| service.user()).collect();
        users.split_last().map_or_else(String::new, |(last, others)| format!("{} and {last}", others.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_iot_edge_has_the_runtime() {
        assert_eq!(Product::Edge.services(), Service::ALL);
        assert!(!Product::IdentityService.services().contains(&Service::Edged));
        assert_eq!(Product::IdentityService.users(), "aziotks, aziotcs, aziotid and aziottpm");
        assert!(Product::Edge.users().ends_with("aziottpm and iotedge"));
    }
}
