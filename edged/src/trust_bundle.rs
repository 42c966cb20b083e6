//! Certificates that modules are to trust, as the certificate service has them now.

use std::sync::Arc;

use aziot_certd_api::{certificate::GetCertificate, is_absent};
use aziot_edged_api::workload::TrustBundle;
use aziot_http::{Client, ClientError};

use crate::shared::{Outcome, Shared};

/// Why there is no bundle. `http` chooses the status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The certificate service has none, or is not there.
    #[error("certificate {id:?} not found")]
    NotFound {
        /// Name of the certificate.
        id: String,
        /// What the service said.
        source: Arc<ClientError>,
    },
    /// The certificate service did not tell.
    #[error("could not read the certificate {id}")]
    Unreadable {
        /// Name of the certificate.
        id: String,
        /// What it said.
        source: Arc<ClientError>,
    },
}

/// Names of both bundles in the certificate service.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    /// Of what modules trust.
    pub(crate) trust_bundle: String,
    /// Of what the agent trusts to sign deployments.
    pub(crate) manifest_trust_bundle: String,
}

type Read = Shared<TrustBundle, ClientError>;

/// Both bundles. Every process of the machine may ask: each is read once at a time, for all who ask meanwhile.
pub(crate) struct TrustBundles {
    certd: Client,
    ids: Ids,
    trust_bundle: Read,
    manifest_trust_bundle: Read,
}

impl TrustBundles {
    /// Nothing is read yet.
    pub(crate) fn new(certd: Client, ids: Ids) -> Self {
        Self { certd, ids, trust_bundle: Read::default(), manifest_trust_bundle: Read::default() }
    }

    /// What modules trust. A service that is out of reach has none: clients know how to go on without, and repeat what they are told to have
    /// failed until they give up.
    pub(crate) async fn trust_bundle(&self) -> Result<TrustBundle, Error> {
        let id = &self.ids.trust_bundle;
        taken(self.trust_bundle.get(self.read(id)).await).map_err(|source| {
            if is_absent(&source) || source.is_offline() {
                Error::NotFound { id: id.clone(), source }
            } else {
                Error::Unreadable { id: id.clone(), source }
            }
        })
    }

    /// What the agent trusts to sign deployments; usually nothing is configured. A service that is out of reach has not said so: an agent that
    /// was told of no signers would take any deployment.
    pub(crate) async fn manifest_trust_bundle(&self) -> Result<TrustBundle, Error> {
        let id = &self.ids.manifest_trust_bundle;
        match taken(self.manifest_trust_bundle.get(self.read(id)).await) {
            Err(error) if is_absent(&error) => Ok(TrustBundle::default()),
            read => read.map_err(|source| Error::Unreadable { id: id.clone(), source }),
        }
    }

    async fn read(&self, id: &str) -> Result<TrustBundle, ClientError> {
        let certificate = self.certd.send(&GetCertificate { cert_id: id.to_owned() }).await?;
        Ok(TrustBundle { certificate: certificate.pem })
    }
}

fn taken(bundle: Outcome<TrustBundle, ClientError>) -> Result<TrustBundle, Arc<ClientError>> {
    bundle.map(Arc::unwrap_or_clone)
}

#[cfg(test)]
mod tests {
    use aziot_certd_api::certificate::ImportCertificate;

    use super::*;
    use crate::workload::tests::world::{SELF_SIGNED, World};

    fn bundles(world: &World) -> TrustBundles {
        let ids = Ids { trust_bundle: "trust-bundle".to_owned(), manifest_trust_bundle: "manifest-bundle".to_owned() };
        TrustBundles::new(world.services.certd.clone(), ids)
    }

    #[tokio::test]
    async fn bundles_are_what_the_certificate_service_has_now() {
        let world = World::new(SELF_SIGNED).await;
        let bundles = bundles(&world);
        let error = bundles.trust_bundle().await.unwrap_err();
        assert_eq!(error.to_string(), r#"certificate "trust-bundle" not found"#);
        assert!(matches!(error, Error::NotFound { .. }));
        assert_eq!(bundles.manifest_trust_bundle().await.unwrap().certificate, "", "none is harmless");
        for pem in ["one", "another"] {
            for id in ["trust-bundle", "manifest-bundle"] {
                let call = ImportCertificate { cert_id: id.to_owned(), pem: format!("{pem} {id}") };
                world.services.certd.send(&call).await.unwrap();
            }
            assert_eq!(bundles.trust_bundle().await.unwrap().certificate, format!("{pem} trust-bundle"));
            assert_eq!(bundles.manifest_trust_bundle().await.unwrap().certificate, format!("{pem} manifest-bundle"));
        }
    }

    #[tokio::test]
    async fn a_service_out_of_reach_has_not_said_that_anybody_may_sign() {
        let mut world = World::new(SELF_SIGNED).await;
        world.certd.stop().await;
        let bundles = bundles(&world);
        assert!(matches!(bundles.trust_bundle().await, Err(Error::NotFound { .. })));
        assert!(matches!(bundles.manifest_trust_bundle().await, Err(Error::Unreadable { .. })));
    }
}
