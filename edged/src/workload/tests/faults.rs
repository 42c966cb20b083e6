//! A certificate service and a key service that fail as the test wants, before real ones.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use aziot_certd_api::certificate::{CreateCertificate, DeleteCertificate, GetCertificate, ImportCertificate};
use aziot_http::{Client, ClientError, Peer, Retry, Service, StatusCode, testing::TestServer};
use aziot_keyd_api::{
    key_pair::{CreateKeyPair, LoadKeyPair},
    operation::Sign,
};
use tokio::{sync::watch, time::timeout};

use super::world::{PATIENCE, Refused};

/// What both count, and what they do instead of their work.
pub(crate) struct Faults {
    real: Client,
    calls: Mutex<Vec<String>>,
    /// Calls that fail with 500, by their first word or whole.
    failing: Mutex<BTreeSet<String>>,
    /// Ids in whose calls nobody answers for now.
    silent: watch::Sender<BTreeSet<String>>,
}

type Shared = Arc<Faults>;

impl Faults {
    fn new(real: &Client) -> Shared {
        let real = real.clone();
        Arc::new(Self { real, calls: Mutex::default(), failing: Mutex::default(), silent: watch::Sender::default() })
    }

    /// In front of this certificate service.
    pub(crate) fn certd(real: &Client) -> (Shared, TestServer, Client) {
        let faults = Self::new(real);
        let service = Service::new(Arc::clone(&faults), aziot_certd_api::VERSIONS)
            .call(|this: Shared, _: Peer, call: GetCertificate| async move {
                this.pass("get", &call.cert_id).await?;
                this.real.send(&call).await.map_err(refused)
            })
            .call(|this: Shared, _: Peer, call: CreateCertificate| async move {
                this.pass("create", &call.cert_id).await?;
                this.real.send(&call).await.map_err(refused)
            })
            .call(|this: Shared, _: Peer, call: ImportCertificate| async move {
                this.pass("import", &call.cert_id).await?;
                this.real.send(&call).await.map_err(refused)
            })
            .call(|this: Shared, _: Peer, call: DeleteCertificate| async move {
                this.pass("delete", &call.cert_id).await?;
                this.real.send(&call).await.map_err(refused)
            });
        let server = TestServer::start(service.into_routes());
        let client = aziot_certd_api::client(&server.endpoint(), Retry::local(0)).unwrap();
        (faults, server, client)
    }

    /// In front of this key service.
    pub(crate) fn keyd(real: &Client) -> (Shared, TestServer, Client) {
        let faults = Self::new(real);
        let service = Service::new(Arc::clone(&faults), aziot_keyd_api::VERSIONS)
            .call(|this: Shared, _: Peer, call: LoadKeyPair| async move {
                this.pass("load", &call.key_id).await?;
                this.real.send(&call).await.map_err(refused)
            })
            .call(|this: Shared, _: Peer, call: CreateKeyPair| async move {
                this.pass("create", &call.key_id).await?;
                this.real.send(&call).await.map_err(refused)
            })
            .call(|this: Shared, _: Peer, call: Sign| async move {
                this.pass("sign", "").await?;
                this.real.send(&call).await.map_err(refused)
            });
        let server = TestServer::start(service.into_routes());
        let client = aziot_keyd_api::client(&server.endpoint(), Retry::local(0)).unwrap();
        (faults, server, client)
    }

    /// These fail from now on: `get`, `create`, or one of them with an id.
    pub(crate) fn fail(&self, calls: &[&str]) {
        *self.failing.lock().unwrap() = calls.iter().map(|call| (*call).to_owned()).collect();
    }

    /// About these ids nobody answers from now on.
    pub(crate) fn silence(&self, ids: &[&str]) {
        self.silent.send_replace(ids.iter().map(|id| (*id).to_owned()).collect());
    }

    /// What was asked for so far: call and id.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    async fn pass(&self, name: &str, id: &str) -> Result<(), Refused> {
        let call = format!("{name} {id}");
        self.calls.lock().unwrap().push(call.clone());
        let mut silent = self.silent.subscribe();
        let answers = silent.wait_for(|silent| !silent.contains(id));
        timeout(PATIENCE, answers).await.expect("the test lets it answer").unwrap();
        let failing = self.failing.lock().unwrap();
        if failing.contains(name) || failing.contains(&call) {
            return Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, "it broke".to_owned()));
        }
        Ok(())
    }
}

fn refused(error: ClientError) -> Refused {
    match error {
        ClientError::Refused { status, message, .. } => Refused(status, message),
        other => Refused(StatusCode::BAD_GATEWAY, other.to_string()),
    }
}
