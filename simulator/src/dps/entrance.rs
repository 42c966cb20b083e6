//! Who may register: the credential of a caller against what enrollments say, and the challenge for a TPM that has none yet.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{POLICY, Refusal, error_body};
use crate::attestation::{Attestation, TpmKeys};
use crate::authentication::KeyPair;
use crate::client_certificate::Case;
use crate::cloud::{Caller, Cloud, Denied, Trust};
use crate::enrollments::{Grant, Verdict};
use crate::key::SymmetricKey;
use crate::provisioning::{self, Proof};
use crate::random;

/// Somebody who may register.
pub(super) struct Admission {
    pub(super) grant: Grant,
    pub(super) proof: Proof,
}

/// Lets a caller in who proves to be the device of a registration.
pub(super) fn admit(cloud: &Cloud, scope: &str, registration_id: &str, caller: &Caller) -> Result<Admission, Refusal> {
    if cloud.trust == Trust::Permissive {
        return Ok(Admission { grant: anybody(), proof: Proof::Key });
    }
    let mut reason = format!("no enrollment for the registration id {registration_id:?}");
    for grant in cloud.enrollments.candidates(registration_id) {
        match prove(cloud, scope, registration_id, caller, &grant.attestation) {
            Ok(proof) => return Ok(Admission { grant, proof }),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(Refusal::unauthorized(reason))
}

/// The public mock server assigns a new device each time, and its users' scripts rely on it.
fn anybody() -> Grant {
    Grant {
        attestation: Attestation::SymmetricKey(KeyPair::random()),
        device_id: random::uuid(),
        assigned_hub: None,
        verdict: Verdict::Assign,
        assigning_polls: None,
        iot_edge: false,
    }
}

fn prove(
    cloud: &Cloud,
    scope: &str,
    registration_id: &str,
    caller: &Caller,
    attestation: &Attestation,
) -> Result<Proof, Denied> {
    let now = cloud.now().as_second();
    let check_token = |keys: &[SymmetricKey]| {
        cloud.check_token(caller, &format!("{scope}/registrations/{registration_id}"), keys, Some(POLICY))
    };
    match attestation {
        Attestation::SymmetricKey(keys) => check_token(&keys.to_vec()).map(|()| Proof::Key),
        Attestation::Thumbprints(thumbprints) => {
            let certificate = caller.certificate()?;
            certificate.check_thumbprint(thumbprints, now)?;
            certificate.check_name(registration_id, Case::Ignored)?;
            Ok(Proof::Certificate { thumbprint: certificate.thumbprint()?.to_string() })
        }
        Attestation::Authority(authority) => {
            let certificate = caller.certificate()?;
            certificate.check_authority(&authority.anchors, registration_id, Case::Ignored, now)?;
            Ok(Proof::Certificate { thumbprint: certificate.thumbprint()?.to_string() })
        }
        Attestation::EndorsementKey(_) => {
            let nonce = cloud.nonces.find(registration_id, Instant::now()).ok_or(Denied::NotChallenged)?;
            check_token(std::slice::from_ref(&nonce.key))?;
            cloud.nonces.renew(registration_id, Instant::now());
            Ok(Proof::Tpm(nonce.tpm))
        }
    }
}

/// The enrollment of a TPM that has not been challenged: it sends its keys and no token.
pub(super) fn of_unproved_tpm(cloud: &Cloud, registration_id: &str, caller: &Caller) -> Option<Grant> {
    if cloud.trust == Trust::Permissive || caller.has_token() {
        return None;
    }
    let grant = cloud.enrollments.candidates(registration_id).into_iter().next()?;
    matches!(grant.attestation, Attestation::EndorsementKey(_)).then_some(grant)
}

/// Challenges a TPM: the body of a 401 with a nonce that only this TPM can decrypt.
pub(super) fn challenge(
    cloud: &Cloud,
    registration_id: &str,
    grant: &Grant,
    tpm: Option<TpmKeys>,
) -> Result<Value, Refusal> {
    let tpm = tpm.ok_or_else(|| Refusal::unauthorized("the request has neither a token nor the keys of a TPM"))?;
    let may_be = |state: &crate::state::State| {
        provisioning::may_be(&state.registrations, registration_id, grant, &tpm.endorsement_key)
    };
    if !cloud.store.read(may_be) {
        return Err(Refusal::unauthorized("the endorsement key is not the enrolled one"));
    }
    let nonce = SymmetricKey::random();
    let blob = crate::tpm::challenge(&tpm.endorsement_key.0, &tpm.storage_root_key.0, nonce.bytes())
        .map_err(|error| Refusal::bad_request(aziot_log::chain(&error).to_string()))?;
    cloud.nonces.add(registration_id, nonce, tpm, Instant::now());
    let mut body = error_body(401_002, "Unauthorized");
    body["authenticationKey"] = STANDARD.encode(blob).into();
    Ok(body)
}
