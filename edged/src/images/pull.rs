//! Gets the image of a module.
//!
//! A registry that cannot be reached does not keep a module from being made of an image that is there: devices are offline. A registry that says
//! no does.

use std::sync::Arc;

use aziot_edged_api::config::PullPolicy;
use aziot_log::{chain, fields};
use http::StatusCode;

use super::Use;
use crate::{
    docker::{Docker, Error, Reference},
    specification::Specification,
};

/// The images of the engine, and when they were used.
#[derive(Clone)]
pub(crate) struct Images {
    docker: Docker,
    usage: Arc<Use>,
}

impl Images {
    /// Images of this engine.
    pub(crate) fn new(docker: Docker, usage: Arc<Use>) -> Self {
        Self { docker, usage }
    }

    /// Pulls the image of a module, unless its policy is never to do so.
    pub(crate) async fn obtain(&self, specification: &Specification) -> Result<(), Error> {
        let image = specification.image();
        if specification.names_digest() {
            tracing::warn!({ fields::IMAGE } = %image, "`digest` has no effect: the image is pulled by its name");
        }
        if specification.pull_policy() == PullPolicy::Never {
            return Ok(());
        }
        if let Err(error) = self.docker.pull(image, specification.auth()).await {
            if !is_unreachable(&error) || self.docker.image(image).await.is_err() {
                return Err(error);
            }
            tracing::warn!(
                { fields::IMAGE } = %image,
                { fields::ERROR } = %chain(&error),
                "the registry cannot be reached: the image is used as it is here"
            );
        }
        self.used(image).await;
        Ok(())
    }

    /// Notes that the image of this name is used now. A failure is logged: no module waits for it.
    async fn used(&self, image: &Reference) {
        match self.docker.image(image).await {
            Ok(found) => self.usage.used(&found.id).await,
            Err(error) => {
                tracing::warn!({ fields::IMAGE } = %image, { fields::ERROR } = %chain(&error), "the image's use is not noted");
            }
        }
    }

    /// Notes that the image of this id is used now.
    pub(crate) async fn used_id(&self, id: &str) {
        self.usage.used(id).await;
    }
}

/// What engines say when they did not reach the registry, as opposed to what the registry said. They answer 500 to both.
const UNREACHABLE: [&str; 19] = [
    "dial tcp",
    "no such host",
    "server misbehaving",
    "temporary failure in name resolution",
    "connection refused",
    "connection reset",
    "network is unreachable",
    "no route to host",
    "i/o timeout",
    "tls handshake timeout",
    "client.timeout",
    "context deadline exceeded",
    "request canceled",
    "unexpected eof",
    ": eof",
    "proxyconnect",
    // A gateway or the registry itself, out of order or overrun.
    "toomanyrequests",
    "unexpected http status: 5",
    // The device's clock is not set yet.
    "certificate has expired or is not yet valid",
];

fn is_unreachable(error: &Error) -> bool {
    match error {
        Error::Refused { status, message } => {
            let message = message.to_lowercase();
            // It is overrun, or was too slow: some engines pass its own status on.
            let is_overrun = matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
            is_overrun || status.is_server_error() && UNREACHABLE.iter().any(|words| message.contains(words))
        }
        // The engine waits for the registry longer than it should.
        Error::TimedOut { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_says_no_is_not_unreachable() {
        let refused = |status: u16, message: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            is_unreachable(&Error::Refused { status, message: message.to_owned() })
        };
        for message in [
            r#"Get "http://localhost:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused"#,
            r#"Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 10.0.0.1:53: no such host"#,
            "initializing source docker://x:latest: pinging container registry x: dial tcp: i/o timeout",
            "net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)",
            "received unexpected HTTP status: 503 Service Unavailable",
            "net/http: TLS handshake timeout",
            "Get \"https://x/v2/\": EOF",
        ] {
            assert!(refused(500, message), "{message}");
        }
        assert!(refused(429, "toomanyrequests: You have reached your pull rate limit"));
        assert!(refused(500, "toomanyrequests: too many requests"));
        assert!(refused(408, "request timeout"));
        for (status, message) in [
            (404, "pull access denied for x, repository does not exist or may require 'docker login'"),
            (404, "manifest for x:2 not found: manifest unknown"),
            (401, "unauthorized: authentication required"),
            (500, "unauthorized: authentication required"),
            (500, "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"),
            (403, "dial tcp"),
        ] {
            assert!(!refused(status, message), "{message}");
        }
    }
}
