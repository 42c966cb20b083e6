//! What becomes of a registration at last: which hub the device goes to, what that hub knows it by, and its way from the hub where it was.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Answer, Outcome, Proof, Registration, Registrations, TpmAnswer};
use crate::attestation::Attestation;
use crate::authentication::{Authentication, AuthenticationType, KeyPair};
use crate::enrollments::{Grant, Verdict};
use crate::hubs::Hubs;
use crate::registries::{Baggage, HubKey, Registries};
use crate::registry::{self, SystemModules};
use crate::thumbprint::Thumbprint;

/// Where a registration's device is.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Placed {
    pub(crate) hub: HubKey,
    pub(crate) device_id: String,
}

/// A hub, for the state: the name of one of ours may have another port after a restart.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Destination {
    Here(HubKey),
    /// The name of a hub that is not of this simulator; it keeps its own registry.
    Elsewhere(String),
}

impl Destination {
    fn named(name: &str, hubs: &Hubs) -> Self {
        hubs.named(name).map_or_else(|| Self::Elsewhere(name.to_owned()), |hub| Self::Here(hub.key.clone()))
    }

    fn key(&self) -> Option<&HubKey> {
        match self {
            Self::Here(key) => Some(key),
            Self::Elsewhere(_) => None,
        }
    }

    /// What a device is told. There is none for a hub that was of this simulator before its restart.
    fn name(&self, hubs: &Hubs) -> Option<String> {
        match self {
            Self::Here(key) => hubs.all().iter().find(|hub| hub.key == *key).map(|hub| hub.name.clone()),
            Self::Elsewhere(name) => Some(name.clone()),
        }
    }
}

/// The cloud around a registration.
pub(crate) struct Surroundings<'a> {
    pub(crate) registries: &'a mut Registries,
    pub(crate) hubs: &'a Hubs,
    pub(crate) now: Timestamp,
}

/// Takes the device away from its hub at once; the next registration assigns it to `hub_name`. An error says that nothing was changed.
pub(super) fn move_to(
    registration: &mut Registration,
    hub_name: &str,
    baggage: Baggage,
    surroundings: Surroundings<'_>,
) -> Result<(), registry::Error> {
    let Surroundings { registries, hubs, .. } = surroundings;
    let destination = Destination::named(hub_name, hubs);
    leave(registration, registries, destination.key(), baggage)?;
    registration.wanted_hub = Some(destination);
    Ok(())
}

/// Moves the device, if it is anywhere else. Somebody may have deleted it at its hub: then there is nothing to move.
fn leave(
    registration: &mut Registration,
    registries: &mut Registries,
    to: Option<&HubKey>,
    baggage: Baggage,
) -> Result<(), registry::Error> {
    let Some(placed) = registration.placed.clone().filter(|placed| to != Some(&placed.hub)) else { return Ok(()) };
    registration.placed = match registries.move_device(&placed.device_id, &placed.hub, to, baggage) {
        Ok(()) => {
            registration.moved = Some(baggage);
            to.filter(|_| baggage == Baggage::Migrated).map(|hub| Placed { hub: hub.clone(), ..placed })
        }
        Err(registry::Error::UnknownDevice(_)) => None,
        Err(error) => return Err(error),
    };
    Ok(())
}

/// For states from when there was one hub.
pub(crate) fn place_in_first_hub(registrations: &mut Registrations, registries: &Registries) {
    for registration in registrations.values_mut() {
        if let Outcome::Assigned { device_id, .. } = &registration.outcome
            && registries.of(&HubKey::FIRST).devices().contains_key(device_id)
        {
            registration.placed = Some(Placed { hub: HubKey::FIRST, device_id: device_id.clone() });
        }
    }
}

/// What becomes of a registration whose time has come.
pub(super) fn decide(
    registration: &mut Registration,
    grant: &Grant,
    proof: &Proof,
    payload: Option<Value>,
    surroundings: &mut Surroundings<'_>,
) -> Outcome {
    let wanted = registration.wanted_answer.map(|answer| match answer {
        Answer::Disabled => Verdict::Disabled,
        Answer::Failed => Verdict::Failed("The registration fails on demand".to_owned()),
        Answer::Unassigned => Verdict::Unassigned,
        Answer::Assign | Answer::Assigning => Verdict::Assign,
    });
    match wanted.as_ref().unwrap_or(&grant.verdict) {
        Verdict::Assign => assign(registration, grant, proof, payload, surroundings)
            .unwrap_or_else(|error_message| Outcome::Failed { error_code: 400_000, error_message }),
        Verdict::Disabled => {
            Outcome::Disabled { error_code: 403_002, error_message: "The enrollment is disabled".to_owned() }
        }
        Verdict::Failed(text) => Outcome::Failed { error_code: 400_000, error_message: text.clone() },
        Verdict::Unassigned => Outcome::Unassigned,
    }
}

/// Puts the device where it belongs. An error is the text of a registration that failed.
fn assign(
    registration: &mut Registration,
    grant: &Grant,
    proof: &Proof,
    payload: Option<Value>,
    surroundings: &mut Surroundings<'_>,
) -> Result<Outcome, String> {
    let Surroundings { registries, hubs, .. } = surroundings;
    let enrolled = || match &grant.assigned_hub {
        None => Destination::Here(HubKey::FIRST),
        Some(name) => Destination::named(name, hubs),
    };
    let destination = registration.wanted_hub.clone().unwrap_or_else(enrolled);
    let assigned_hub = destination.name(hubs).ok_or("The hub of this registration is not there any more")?;
    leave(registration, registries, destination.key(), Baggage::Migrated).map_err(|error| error.to_string())?;
    let mut tpm = None;
    if let Some(to) = destination.key() {
        let registry = registries.of_mut(to);
        let known_by = registry.devices().get(&grant.device_id).map(|device| &device.authentication);
        let (authentication, answer) = credential(grant, proof, known_by)?;
        tpm = answer;
        let system_modules = if grant.iot_edge { SystemModules::Preset } else { SystemModules::Absent };
        let put = registry.put_device(&grant.device_id, authentication, system_modules);
        put.map_err(|error| error.to_string())?;
        registration.placed = Some(Placed { hub: to.clone(), device_id: grant.device_id.clone() });
    }
    Ok(Outcome::Assigned {
        assigned_hub,
        device_id: grant.device_id.clone(),
        substatus: registration.moved.take().map_or("initialAssignment", Baggage::substatus).to_owned(),
        payload: payload
            .map(|sent| serde_json::json!({ "msg": "custom allocation payload received", "request_payload": sent })),
        tpm,
    })
}

/// What the hub will know the device by, and what a TPM has to be told of it.
fn credential(
    grant: &Grant,
    proof: &Proof,
    known_by: Option<&Authentication>,
) -> Result<(Authentication, Option<TpmAnswer>), String> {
    match proof {
        Proof::Key => {
            let keys = match &grant.attestation {
                Attestation::SymmetricKey(keys) => keys.clone(),
                _ => return Err("The enrollment has changed meanwhile".to_owned()),
            };
            Ok((Authentication::sas(keys), None))
        }
        Proof::Certificate { thumbprint } => {
            let thumbprint: Thumbprint = thumbprint.parse().map_err(|error| format!("{error}"))?;
            Ok((Authentication::thumbprints(&[thumbprint]), None))
        }
        Proof::Tpm(tpm) => {
            let kept = known_by.filter(|known| known.kind == AuthenticationType::Sas);
            let keys = kept.and_then(|known| known.symmetric_key.clone()).unwrap_or_else(KeyPair::random);
            let (endorsement_key, storage_root_key) = (&tpm.endorsement_key.0, &tpm.storage_root_key.0);
            let blob = crate::tpm::challenge(endorsement_key, storage_root_key, keys.primary_key.bytes());
            let blob = blob.map_err(|error| aziot_log::chain(&error).to_string())?;
            let answer = TpmAnswer { authentication_key: STANDARD.encode(blob) };
            Ok((Authentication::sas(keys), Some(answer)))
        }
    }
}
