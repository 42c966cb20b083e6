//! Who may do what. Callers are known by their Unix user id alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aziot_identityd_api::config::{CertificateUse, IdType, Principal};

/// Something that a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    /// Read the device's identity.
    GetDevice,
    /// Read the identity of this module.
    GetModule(&'a str),
    /// List all modules.
    GetAllHubModules,
    /// Create a module.
    CreateModule,
    /// Give a module new keys.
    UpdateModule,
    /// Delete a module.
    DeleteModule,
    /// Register the device anew.
    ReprovisionDevice,
    /// Read the trust bundle.
    GetTrustBundle,
}

/// The principals that have a module at the hub.
pub(crate) fn with_module(principals: &[Principal]) -> impl Iterator<Item = &Principal> {
    principals.iter().filter(|principal| principal.has(IdType::Module))
}

/// The principals of the configuration, ordered by what is asked of them.
#[derive(Debug, Default)]
pub(crate) struct Principals {
    by_uid: HashMap<u32, Principal>,
    hub_modules: BTreeSet<String>,
    /// What the certificates of local identities are for.
    local: BTreeMap<String, CertificateUse>,
}

impl Principals {
    /// Takes the tables in their order: of those without `idtype` the first counts, of those with one uid the last.
    #[must_use]
    pub(crate) fn new(principals: &[Principal]) -> Self {
        let hub_modules = with_module(principals).map(|principal| principal.name.clone()).collect();
        let mut table = Self { hub_modules, ..Self::default() };
        let mut daemon: Option<&str> = None;
        for principal in principals {
            let Principal { uid, name, idtype, localid } = principal;
            if idtype.is_none() {
                if let Some(first) = daemon {
                    tracing::warn!(uid, "the principal {name:?} is ignored: {first:?} already has no idtype");
                    continue;
                }
                daemon = Some(name);
            }
            if principal.has(IdType::Local) {
                let purpose = localid.map_or(CertificateUse::default(), |options| options.attributes);
                table.local.insert(name.clone(), purpose);
            }
            if let Some(former) = table.by_uid.insert(*uid, principal.clone()) {
                tracing::warn!(
                    uid,
                    "the principal {name:?} takes the place of {:?}, which has the same uid",
                    former.name
                );
            }
        }
        table
    }

    /// Whether the user may do this. Root may do everything, unless a table with its uid says otherwise.
    #[must_use]
    pub(crate) fn allows(&self, uid: u32, operation: Operation<'_>) -> bool {
        if operation == Operation::GetTrustBundle {
            return true;
        }
        let Some(principal) = self.by_uid.get(&uid) else { return uid == 0 };
        if principal.idtype.is_none() {
            return true;
        }
        match operation {
            Operation::GetDevice => principal.has(IdType::Device),
            Operation::GetModule(module_id) => {
                principal.name == module_id && (principal.has(IdType::Module) || principal.has(IdType::Local))
            }
            Operation::GetTrustBundle => true,
            Operation::GetAllHubModules
            | Operation::CreateModule
            | Operation::UpdateModule
            | Operation::DeleteModule
            | Operation::ReprovisionDevice => false,
        }
    }

    /// The name of a user that is a process with identities of its own.
    #[must_use]
    pub(crate) fn own_module(&self, uid: u32) -> Option<&str> {
        self.by_uid.get(&uid).filter(|principal| principal.idtype.is_some()).map(|principal| principal.name.as_str())
    }

    /// Names of the modules that the hub is to have for this device.
    #[must_use]
    pub(crate) fn hub_modules(&self) -> &BTreeSet<String> {
        &self.hub_modules
    }

    /// What the certificate of this name's local identity is for, if the name is that of a principal with one.
    #[must_use]
    pub(crate) fn local(&self, module_id: &str) -> Option<CertificateUse> {
        self.local.get(module_id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(uid: u32, name: &str, idtype: Option<&[IdType]>) -> Principal {
        Principal { uid, name: name.to_owned(), idtype: idtype.map(<[_]>::to_vec), localid: None }
    }

    #[test]
    fn rights_are_those_of_the_specifications_table() {
        use IdType::{Device, Local, Module};
        let table = Principals::new(&[
            principal(1, "daemon", None),
            principal(2, "module", Some(&[Module])),
            principal(3, "local", Some(&[Local])),
            principal(4, "device", Some(&[Device])),
            principal(5, "nothing", Some(&[])),
            principal(6, "both", Some(&[Device, Module])),
            principal(7, "all", Some(&[Device, Module, Local])),
        ]);
        let operations = |own| {
            [
                Operation::GetDevice,
                Operation::GetModule(own),
                Operation::GetModule("other"),
                Operation::GetAllHubModules,
                Operation::CreateModule,
                Operation::UpdateModule,
                Operation::DeleteModule,
                Operation::ReprovisionDevice,
                Operation::GetTrustBundle,
            ]
        };
        for (uid, own, expected) in [
            (0, "x", "+++++++++"),
            (1, "daemon", "+++++++++"),
            (2, "module", "-+------+"),
            (3, "local", "-+------+"),
            (4, "device", "+-------+"),
            (5, "nothing", "--------+"),
            (6, "both", "++------+"),
            (7, "all", "++------+"),
            (99, "x", "--------+"),
        ] {
            let rights: String =
                operations(own).map(|operation| if table.allows(uid, operation) { '+' } else { '-' }).iter().collect();
            assert_eq!(rights, expected, "uid {uid}");
        }
    }

    #[test]
    fn local_identities_are_of_those_who_ask_for_them() {
        use aziot_identityd_api::config::{LocalIdOptions, LocalIdType};
        let server = Some(LocalIdOptions { r#type: LocalIdType::X509, attributes: CertificateUse::Server });
        let table = Principals::new(&[
            principal(1, "client", Some(&[IdType::Local])),
            Principal { localid: server, ..principal(2, "server", Some(&[IdType::Module, IdType::Local])) },
            principal(3, "module", Some(&[IdType::Module])),
        ]);
        assert_eq!(table.local("client"), Some(CertificateUse::Client));
        assert_eq!(table.local("server"), Some(CertificateUse::Server));
        assert_eq!(table.local("module"), None);
    }

    #[test]
    fn a_table_for_root_replaces_its_power() {
        let table = Principals::new(&[principal(0, "root", Some(&[IdType::Module]))]);
        assert!(!table.allows(0, Operation::GetDevice));
        assert!(table.allows(0, Operation::GetModule("root")));
    }

    #[test]
    fn order_decides_between_doubles() {
        let table = Principals::new(&[
            principal(1, "first", None),
            principal(2, "second", None),
            principal(3, "early", Some(&[IdType::Module])),
            principal(3, "late", Some(&[IdType::Device])),
        ]);
        assert!(table.allows(1, Operation::DeleteModule));
        assert!(!table.allows(2, Operation::GetDevice), "only one daemon");
        assert!(table.allows(3, Operation::GetDevice), "the last of a uid");
        assert_eq!(table.own_module(3), Some("late"));
        assert!(table.hub_modules().contains("early"), "still a module of the hub");
    }
}
