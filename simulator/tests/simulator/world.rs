//! A simulator in this process, and a client that trusts only its authority.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aziot_simulator::{Enrollments, Settings, Simulator, SymmetricKey, sas};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::certificates::Certified;

pub(crate) const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub(crate) const SCOPE: &str = "0ne00ABCDEF";
pub(crate) const DPS: &str = "api-version=2021-06-01";
pub(crate) const HUB: &str = "api-version=2017-11-08-preview";
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn key() -> SymmetricKey {
    SymmetricKey::from_base64(KEY).unwrap()
}

/// 30 s from now in Unix seconds.
pub(crate) fn soon() -> i64 {
    jiff::Timestamp::now().as_second() + 30
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }
}

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) hub_name: String,
    pub(crate) port: u16,
    /// What the client shows in its handshakes.
    pub(crate) certificate: Option<Certified>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl World {
    /// Knows `Contoso-Device-01` and, with `enrollments` (TOML), whom else is named there.
    pub(crate) async fn start(enrollments: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), enrollments).await
    }

    pub(crate) async fn start_in(folder: TempDir, enrollments: &str) -> Self {
        Self::start_with(folder, enrollments, |_| {}).await
    }

    /// The same with settings that `change` has changed.
    pub(crate) async fn start_with(folder: TempDir, enrollments: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let own = format!("[[enrollment]]\nregistration_id = 'Contoso-Device-01'\nsymmetric_key = '{KEY}'\n");
        let path = folder.path().join("enrollments.toml");
        aziot_files::write(&path, aziot_files::Mode::PRIVATE, own + enrollments).unwrap();
        let mut settings = Settings {
            folder: Some(folder.path().to_owned()),
            id_scope: Some(SCOPE.to_owned()),
            enrollments: Enrollments::read(&path).unwrap(),
            retry_after_seconds: 7,
            ..Settings::default()
        };
        change(&mut settings);
        let simulator = Simulator::start(settings).await.unwrap();
        let (port, hub_name) = (simulator.address().port(), simulator.hub_name().to_owned());
        let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(simulator.run(shutdown.clone()));
        Self { folder, hub_name, port, certificate: None, shutdown, tasks }
    }

    /// Ends the simulator as SIGTERM does, and gives its folder back.
    pub(crate) async fn stop(mut self) -> TempDir {
        self.shutdown.cancel();
        while let Some(ended) = timeout(LIMIT, self.tasks.join_next()).await.unwrap() {
            ended.unwrap();
        }
        self.folder
    }

    pub(crate) fn authority(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.folder.path().join("ca.pem")).unwrap()
    }

    pub(crate) async fn connect(&mut self) -> Result<Connection, Failure> {
        self.connect_with(rustls::ALL_VERSIONS).await
    }

    pub(crate) async fn connect_with(
        &mut self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Connection, Failure> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority())?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls_openssl::default_provider()))
            .with_protocol_versions(versions)?
            .with_root_certificates(roots);
        let config = match &self.certificate {
            None => config.with_no_client_auth(),
            Some(certificate) => config.with_client_auth_cert(certificate.chain(), certificate.key())?,
        };
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let name = ServerName::try_from("localhost")?;
        let stream = timeout(LIMIT, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await??;
        self.speak(stream).await
    }

    async fn speak<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &mut self,
        io: I,
    ) -> Result<Connection, Failure> {
        let (sender, connection) = handshake(TokioIo::new(io)).await?;
        self.tasks.spawn(async move {
            // Its end shows at the sender.
            let _ = connection.await;
        });
        Ok(Connection { sender, host: self.hub_name.clone() })
    }

    /// One request on a connection of its own.
    pub(crate) async fn try_request(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        body: impl Into<Bytes>,
    ) -> Result<Reply, Failure> {
        self.connect().await?.request(method, path, &[("authorization", token)], body).await
    }

    pub(crate) async fn request(&mut self, method: &str, path: &str, token: &str, body: impl Into<Bytes>) -> Reply {
        self.try_request(method, path, token, body).await.unwrap()
    }

    pub(crate) async fn control(&mut self, method: &str, path: &str, body: &str) -> Reply {
        let stream = UnixStream::connect(self.folder.path().join("control.sock")).await.unwrap();
        let mut connection = self.speak(stream).await.unwrap();
        connection.request(method, path, &[], body.to_owned()).await.unwrap()
    }

    /// The last request in the journal.
    pub(crate) async fn last_request(&mut self) -> Value {
        self.control("GET", "/journal", "").await.json().as_array().unwrap().last().unwrap().clone()
    }

    /// Why the last request was refused.
    pub(crate) async fn reason(&mut self) -> String {
        self.last_request().await["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Status of the answer to a device that lists its modules.
    pub(crate) async fn list(&mut self, device_id: &str, token: &str) -> u16 {
        self.request("GET", &format!("/devices/{device_id}/modules?{HUB}"), token, "").await.status
    }

    /// A token for the hub, valid for 30 s; `identity` is `d` or `d/modules/m`.
    pub(crate) fn hub_token(&self, identity: &str, key: &SymmetricKey) -> String {
        sas::sign(&format!("{}/devices/{identity}", self.hub_name), key, soon(), None)
    }

    /// Registers with `key` and polls until there is no more `assigning`; returns the last answer.
    pub(crate) async fn provision(&mut self, registration_id: &str, key: &SymmetricKey) -> Value {
        self.provision_by(registration_id, &dps_token(registration_id, key)).await
    }

    /// The same with a token, or without one for who shows a certificate.
    pub(crate) async fn provision_by(&mut self, registration_id: &str, token: &str) -> Value {
        let reply = self.register(registration_id, token).await;
        assert_eq!(reply.status, 202, "{}", self.reason().await);
        let operation = reply.json()["operationId"].as_str().unwrap().to_owned();
        self.finish(registration_id, &operation, token).await
    }

    /// Asks DPS for an assignment.
    pub(crate) async fn register(&mut self, registration_id: &str, token: &str) -> Reply {
        let path = format!("/{SCOPE}/registrations/{registration_id}/register?{DPS}");
        self.request("PUT", &path, token, format!(r#"{{"registrationId":"{registration_id}"}}"#)).await
    }

    /// Polls until there is no more `assigning`.
    pub(crate) async fn finish(&mut self, registration_id: &str, operation: &str, token: &str) -> Value {
        let path = format!("/{SCOPE}/registrations/{registration_id}/operations/{operation}?{DPS}");
        loop {
            let reply = self.request("GET", &path, token, "").await;
            if reply.status != 202 {
                assert_eq!(reply.status, 200);
                return reply.json();
            }
        }
    }
}

pub(crate) fn dps_token(registration_id: &str, key: &SymmetricKey) -> String {
    sas::sign(&format!("{SCOPE}/registrations/{registration_id}"), key, soon(), Some("registration"))
}

pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply, Failure> {
        let mut request = Request::builder().method(method).uri(path).header("host", &self.host);
        if path.contains("/registrations/") && method == "PUT" {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into()))?;
        let exchange = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
        };
        timeout(LIMIT, exchange).await?
    }
}

pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
