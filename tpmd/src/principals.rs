//! Who may call: the `[[principal]]` tables. Without any, everybody who may connect to the socket, as the public service has it.

use std::collections::BTreeSet;

use aziot_tpmd_api::config::Principal;

/// One state of the tables. Replaced as a whole when the configuration changes.
#[derive(Debug, Default)]
pub(crate) struct Principals(Option<BTreeSet<u32>>);

impl Principals {
    pub(crate) fn new(entries: Option<&[Principal]>) -> Principals {
        Principals(entries.map(|entries| entries.iter().map(|entry| entry.uid).collect()))
    }

    /// Whether `uid` may read the public keys, replace the key and sign with it. Root always may.
    pub(crate) fn allow(&self, uid: u32) -> bool {
        uid == 0 || self.0.as_ref().is_none_or(|users| users.contains(&uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shuts_out_all_others_but_root() {
        let everybody = Principals::new(None);
        assert!(everybody.allow(7) && everybody.allow(0));
        let some = Principals::new(Some(&[Principal { uid: 7 }, Principal { uid: 8 }]));
        assert!(some.allow(7) && some.allow(8) && some.allow(0) && !some.allow(9));
        let nobody = Principals::new(Some(&[]));
        assert!(nobody.allow(0) && !nobody.allow(7));
    }
}
