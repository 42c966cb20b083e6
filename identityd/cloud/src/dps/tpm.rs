//! What a registration with a TPM has more than others: a challenge at the beginning, and the hub's key at the end.
//!
//! Both are keys that only this TPM can unwrap, and both are imported into the same place.

use aziot_http::Base64;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Registration;
use crate::{Error, Refusal, TpmKey, TpmPublicKeys, Transport, error::Subject, transport::success};

/// Who the TPM is, for the key that DPS wraps.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PublicKeys {
    endorsement_key: Base64,
    storage_root_key: Base64,
}

/// A key for the TPM, as an import blob.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrappedKey {
    authentication_key: Base64,
}

/// DPS refuses a device that shows its TPM, and sends a key with the refusal: whoever signs with it has the TPM.
pub(super) async fn import_challenge(
    transport: &Transport,
    registration: &Registration,
    tpm: &dyn TpmKey,
) -> Result<(), Error> {
    let host = &registration.host;
    let keys = tpm.public_keys().await;
    let keys = keys.map_err(|source| Error::Tpm { action: "read the public keys of the TPM", source })?;
    let TpmPublicKeys { endorsement_key, storage_root_key } = keys;
    let keys = PublicKeys { endorsement_key: Base64(endorsement_key), storage_root_key: Base64(storage_root_key) };
    let (answer, _) = transport.send(&registration.call(Some(keys))?, None).await?;
    if answer.status() != StatusCode::UNAUTHORIZED {
        success(host, Subject::Registration, &[StatusCode::UNAUTHORIZED], answer)?;
        return Err(Error::malformed(host, "a challenge for the TPM was expected"));
    }
    let challenge = serde_json::from_slice(answer.body());
    let unknown = |_| Error::TpmUnknown {
        registration_id: registration.registration_id.clone(),
        refusal: Box::new(Refusal::of(&answer, Subject::Registration)),
    };
    let WrappedKey { authentication_key: Base64(blob) } = challenge.map_err(unknown)?;
    let imported = tpm.import(blob).await;
    imported.map_err(|source| Error::Tpm { action: "import DPS's challenge into the TPM", source })
}

/// Without it the TPM would go on signing with the challenge's key, which the hub does not know. `tpm` is the member of the registration's state.
pub(super) async fn import_hub_key(host: &str, member: Option<Value>, tpm: &dyn TpmKey) -> Result<(), Error> {
    let member =
        member.ok_or_else(|| Error::malformed(host, "the device was assigned, and there is no key for its TPM"))?;
    let key = serde_json::from_value(member).map_err(|error| Error::malformed(host, error))?;
    let WrappedKey { authentication_key: Base64(blob) } = key;
    let imported = tpm.import(blob).await;
    imported.map_err(|source| Error::Tpm { action: "import the device's key into the TPM", source })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use http::{Request, Response, header};
    use hyper::body::Bytes;

    use super::*;
    use crate::{
        Doing, Signer, Signing,
        dps::{Assignment, Attestation, register},
    };

    /// Writes down what is asked of the TPM and what is sent, in one list.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Log {
        fn note(&self, line: String) {
            self.0.lock().unwrap().push(line);
        }
    }

    impl Signer for Log {
        fn sign(&self, _message: Vec<u8>) -> Signing<'_> {
            self.note("sign".into());
            Box::pin(async { Ok(vec![0; 32]) })
        }
    }

    impl TpmKey for Log {
        fn public_keys(&self) -> Doing<'_, TpmPublicKeys> {
            self.note("public keys".into());
            Box::pin(async { Ok(TpmPublicKeys { endorsement_key: vec![1], storage_root_key: vec![2] }) })
        }

        fn import(&self, blob: Vec<u8>) -> Doing<'_, ()> {
            self.note(format!("import {}", String::from_utf8(blob).unwrap()));
            Box::pin(async { Ok(()) })
        }
    }

    async fn run(answers: &'static [(u16, &'static str)]) -> (Result<Assignment, Error>, Vec<String>) {
        let log = Log::default();
        let (seen, left) = (log.clone(), Mutex::new(answers.iter()));
        let exchange = move |request: Request<Bytes>| {
            let token = if request.headers().contains_key(header::AUTHORIZATION) { " with token" } else { "" };
            let body = String::from_utf8(request.body().to_vec()).unwrap();
            seen.note(format!("{}{token} {body}", request.method()).trim().to_owned());
            let (status, body) = *left.lock().unwrap().next().unwrap();
            async move { Ok(Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap()) }
        };
        let transport = Transport::new(Arc::new(exchange), Transport::patience(Duration::from_secs(70), 0));
        let registration = Registration {
            host: "dps.example".into(),
            scope_id: "s".into(),
            registration_id: "r".into(),
            payload: None,
        };
        let outcome = register(&transport, &registration, Attestation::Tpm(&log)).await;
        let lines = log.0.lock().unwrap().clone();
        (outcome, lines)
    }

    // base64 of "nonce" and "key"
    const CHALLENGE: (u16, &str) = (401, r#"{"errorCode":401002,"authenticationKey":"bm9uY2U="}"#);
    const STARTED: (u16, &str) = (202, r#"{"operationId":"o","status":"assigning"}"#);

    #[tokio::test(start_paused = true)]
    async fn the_challenge_signs_until_the_hubs_key_comes() {
        const ASSIGNED: &str = r#"{"operationId":"o","status":"assigned","registrationState":
            {"assignedHub":"h","deviceId":"d","tpm":{"authenticationKey":"a2V5"}}}"#;
        let (outcome, lines) = run(&[CHALLENGE, STARTED, STARTED, (200, ASSIGNED)]).await;
        assert_eq!(outcome.unwrap().device_id, "d");
        assert_eq!(
            lines,
            [
                "public keys",
                r#"PUT {"registrationId":"r","tpm":{"endorsementKey":"AQ==","storageRootKey":"Ag=="}}"#,
                "import nonce",
                "sign",
                r#"PUT with token {"registrationId":"r"}"#,
                "sign",
                "GET with token",
                "sign",
                "GET with token",
                "import key",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_tpm_that_dps_does_not_want_gets_no_key() {
        let (outcome, lines) = run(&[(401, r#"{"errorCode":401002,"message":"Unauthorized"}"#)]).await;
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "DPS has no enrollment of this TPM (of its endorsement key) as \"r\": Unauthorized (HTTP 401 Unauthorized, \
             error code 401002)"
        );
        assert!(!lines.iter().any(|line| line.starts_with("import")), "{lines:?}");
        let (outcome, _) = run(&[(200, "{}")]).await;
        assert!(matches!(outcome, Err(Error::Unexpected { .. })), "{outcome:?}");
        let (outcome, _) = run(&[(404, r#"{"errorCode":404201,"message":"none"}"#)]).await;
        assert_eq!(outcome.unwrap_err().to_string(), "none (HTTP 404 Not Found, error code 404201)");
    }

    #[tokio::test(start_paused = true)]
    async fn an_assignment_without_a_key_is_none() {
        const KEYLESS: &str =
            r#"{"operationId":"o","status":"assigned","registrationState":{"assignedHub":"h","deviceId":"d"}}"#;
        let (outcome, _) = run(&[CHALLENGE, (200, KEYLESS)]).await;
        assert!(matches!(outcome, Err(Error::Malformed { .. })), "{outcome:?}");
    }
}
