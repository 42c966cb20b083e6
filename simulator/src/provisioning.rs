//! Registrations at the provisioning service: asked for, pending for some polls, then assigned, failed, disabled or left unassigned.
//!
//! This file has the registrations; `assignment` decides what becomes of one. Knows no HTTP; who may register is decided before.

mod assignment;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attestation::{Attestation, EndorsementKey, Public, TpmKeys};
use crate::enrollments::Grant;
use crate::random;
use crate::registries::Baggage;
use crate::registry;
use assignment::{Destination, decide};
pub(crate) use assignment::{Placed, Surroundings, place_in_first_hub};

/// So many operations of one registration can be polled; older ones are forgotten.
const MAX_OPERATIONS: usize = 8;
/// So many registrations the simulator keeps, as many as devices.
const MAX_REGISTRATIONS: usize = registry::MAX_DEVICES;

/// Why a registration cannot go on.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("the registration {0:?} never began")]
    UnknownRegistration(String),
    #[error("the registration {registration:?} has no operation {operation:?}")]
    UnknownOperation { registration: String, operation: String },
    #[error("the registration {0:?} belongs to another TPM")]
    ForeignTpm(String),
    #[error("there are {MAX_REGISTRATIONS} registrations already")]
    TooManyRegistrations,
    #[error("the device of the registration {registration:?} cannot move")]
    Move { registration: String, source: registry::Error },
}

/// How a device proved itself when it asked, as far as its hub has to know.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(tag = "by", rename_all = "camelCase")]
pub(crate) enum Proof {
    /// By a key of its enrollment.
    #[default]
    Key,
    Certificate {
        thumbprint: String,
    },
    Tpm(TpmKeys),
}

/// How far a registration is.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", tag = "status")]
pub(crate) enum Outcome {
    Assigning,
    #[serde(rename_all = "camelCase")]
    Assigned {
        assigned_hub: String,
        device_id: String,
        substatus: String,
        /// What a custom allocation answered, where the device had sent a payload.
        #[serde(skip_serializing_if = "Option::is_none")]
        payload: Option<Value>,
        /// The device's key for its hub, encrypted to its TPM.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tpm: Option<TpmAnswer>,
    },
    #[serde(rename_all = "camelCase")]
    Failed {
        error_code: u32,
        error_message: String,
    },
    #[serde(rename_all = "camelCase")]
    Disabled {
        error_code: u32,
        error_message: String,
    },
    Unassigned,
}

/// What only the TPM that was challenged can read.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TpmAnswer {
    /// An import blob in base64.
    pub(crate) authentication_key: String,
}

/// What somebody at the control socket wants a registration to become, whatever its enrollment says.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Answer {
    Assign,
    /// Without end.
    Assigning,
    Disabled,
    Failed,
    Unassigned,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Operation {
    id: String,
    remaining_polls: u32,
    payload: Option<Value>,
    #[serde(default)]
    proof: Proof,
    outcome: Outcome,
}

/// One registration with its latest outcome.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Registration {
    pub(crate) created: Timestamp,
    pub(crate) last_updated: Timestamp,
    pub(crate) etag: String,
    pub(crate) outcome: Outcome,
    /// Absent before the first assignment, and at a hub that is not of this simulator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) placed: Option<Placed>,
    /// The hub that somebody at the control socket wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wanted_hub: Option<Destination>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wanted_answer: Option<Answer>,
    /// How the device left its last hub, for the next assignment to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moved: Option<Baggage>,
    /// The TPM that was the first, where any may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endorsement_key: Option<Public>,
    operations: Vec<Operation>,
}

/// All registrations by id in lower case.
pub(crate) type Registrations = BTreeMap<String, Registration>;

/// A wish to register, from somebody who may.
pub(crate) struct Wish<'a> {
    pub(crate) registration_id: &'a str,
    pub(crate) proof: Proof,
    pub(crate) payload: Option<Value>,
    /// So many polls say `assigning`.
    pub(crate) polls: u32,
}

/// Begins a registration, again or for the first time, and returns the operation to poll.
pub(crate) fn register(
    registrations: &mut Registrations,
    wish: Wish<'_>,
    grant: &Grant,
    now: Timestamp,
) -> Result<String, Error> {
    let key = wish.registration_id.to_lowercase();
    if let Proof::Tpm(tpm) = &wish.proof
        && !may_be(registrations, wish.registration_id, grant, &tpm.endorsement_key)
    {
        return Err(Error::ForeignTpm(key));
    }
    if !registrations.contains_key(&key) && registrations.len() >= MAX_REGISTRATIONS {
        return Err(Error::TooManyRegistrations);
    }
    let registration = registrations.entry(key).or_insert_with(|| Registration {
        created: now,
        last_updated: now,
        etag: random::etag(),
        outcome: Outcome::Assigning,
        placed: None,
        wanted_hub: None,
        wanted_answer: None,
        moved: None,
        endorsement_key: None,
        operations: Vec::new(),
    });
    if let Proof::Tpm(tpm) = &wish.proof {
        registration.endorsement_key = Some(tpm.endorsement_key.clone());
    }
    if registration.operations.len() >= MAX_OPERATIONS {
        registration.operations.remove(0);
    }
    let id = random::uuid();
    registration.operations.push(Operation {
        id: id.clone(),
        remaining_polls: wish.polls,
        payload: wish.payload,
        proof: wish.proof,
        outcome: Outcome::Assigning,
    });
    Ok(id)
}

/// Whether this TPM may be the one of the registration.
pub(crate) fn may_be(
    registrations: &Registrations,
    registration_id: &str,
    grant: &Grant,
    endorsement_key: &Public,
) -> bool {
    match &grant.attestation {
        Attestation::EndorsementKey(EndorsementKey::Exactly(expected)) => expected == endorsement_key,
        Attestation::EndorsementKey(EndorsementKey::Any) => {
            let first = registrations.get(&registration_id.to_lowercase()).and_then(|it| it.endorsement_key.as_ref());
            first.is_none_or(|first| first == endorsement_key)
        }
        _ => false,
    }
}

/// What a poll of an operation would say, if the poll changed nothing: it is over, or held up without end.
pub(crate) fn settled(
    registrations: &Registrations,
    registration_id: &str,
    operation_id: &str,
) -> Result<Option<Outcome>, Error> {
    let registration = look_up(registrations, registration_id)?;
    let operation = registration.operations.iter().find(|operation| operation.id == operation_id);
    let operation = operation.ok_or_else(|| Error::UnknownOperation {
        registration: registration_id.to_lowercase(),
        operation: operation_id.to_owned(),
    })?;
    let is_held_up = registration.wanted_answer == Some(Answer::Assigning) && operation.remaining_polls == 0;
    Ok((operation.outcome != Outcome::Assigning || is_held_up).then(|| operation.outcome.clone()))
}

/// Looks at an operation; each look brings it one poll nearer to its end.
pub(crate) fn poll(
    registrations: &mut Registrations,
    registration_id: &str,
    operation_id: &str,
    grant: &Grant,
    mut surroundings: Surroundings<'_>,
) -> Result<Outcome, Error> {
    if let Some(outcome) = settled(registrations, registration_id, operation_id)? {
        return Ok(outcome);
    }
    let registration = find_mut(registrations, registration_id)?;
    let place = registration.operations.iter().position(|operation| operation.id == operation_id);
    let place = place.expect("`settled` has found the operation");
    let operation = &mut registration.operations[place];
    if operation.remaining_polls > 0 {
        operation.remaining_polls -= 1;
        return Ok(Outcome::Assigning);
    }
    let (proof, payload) = (operation.proof.clone(), operation.payload.take());
    let outcome = decide(registration, grant, &proof, payload, &mut surroundings);
    registration.operations[place].outcome = outcome.clone();
    registration.outcome = outcome.clone();
    registration.last_updated = surroundings.now;
    registration.etag = random::etag();
    Ok(outcome)
}

/// The latest outcome of a registration.
pub(crate) fn look_up<'a>(registrations: &'a Registrations, registration_id: &str) -> Result<&'a Registration, Error> {
    let key = registration_id.to_lowercase();
    registrations.get(&key).ok_or(Error::UnknownRegistration(key))
}

fn find_mut<'a>(registrations: &'a mut Registrations, registration_id: &str) -> Result<&'a mut Registration, Error> {
    let key = registration_id.to_lowercase();
    registrations.get_mut(&key).ok_or(Error::UnknownRegistration(key))
}

/// Has a registration answered like this from now on, whatever its enrollment says.
pub(crate) fn answer_with(
    registrations: &mut Registrations,
    registration_id: &str,
    answer: Answer,
) -> Result<(), Error> {
    find_mut(registrations, registration_id)?.wanted_answer = Some(answer);
    Ok(())
}

/// Forgets a registration, and the TPM that was the first; its device stays.
pub(crate) fn forget(registrations: &mut Registrations, registration_id: &str) -> Result<(), Error> {
    let key = registration_id.to_lowercase();
    registrations.remove(&key).map(drop).ok_or(Error::UnknownRegistration(key))
}

/// Takes a device away from its hub at once; the next registration assigns it to `hub_name`.
pub(crate) fn move_to(
    registrations: &mut Registrations,
    registration_id: &str,
    hub_name: &str,
    baggage: Baggage,
    surroundings: Surroundings<'_>,
) -> Result<(), Error> {
    assignment::move_to(find_mut(registrations, registration_id)?, hub_name, baggage, surroundings)
        .map_err(|source| Error::Move { registration: registration_id.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authentication::{Authentication, KeyPair};
    use crate::enrollments::Verdict;
    use crate::hubs::Hubs;
    use crate::registries::{HubKey, Registries};

    const THUMBPRINT: &str = "A9993E364706816ABA3E25717850C26C9CD0D89D";

    fn grant() -> Grant {
        Grant {
            attestation: Attestation::SymmetricKey(KeyPair::random()),
            device_id: "Seven".to_owned(),
            assigned_hub: None,
            verdict: Verdict::Assign,
            assigning_polls: None,
            iot_edge: true,
        }
    }

    struct World {
        registrations: Registrations,
        registries: Registries,
        hubs: Hubs,
    }

    impl World {
        fn new() -> Self {
            let hubs = Hubs::new(Some("hub"), &["other".to_owned()], &[], 443).unwrap();
            Self { registrations: Registrations::new(), registries: Registries::default(), hubs }
        }

        fn register(
            &mut self,
            grant: &Grant,
            proof: Proof,
            payload: Option<Value>,
            polls: u32,
        ) -> Result<String, Error> {
            let wish = Wish { registration_id: "Reg", proof, payload, polls };
            register(&mut self.registrations, wish, grant, Timestamp::now())
        }

        fn poll(&mut self, operation: &str, grant: &Grant) -> Result<Outcome, Error> {
            let Self { registrations, registries, hubs } = self;
            let surroundings = Surroundings { registries, hubs, now: Timestamp::now() };
            poll(registrations, "REG", operation, grant, surroundings)
        }

        fn finish_by(&mut self, grant: &Grant, proof: Proof) -> Outcome {
            let operation = self.register(grant, proof, None, 0).unwrap();
            self.poll(&operation, grant).unwrap()
        }

        fn finish(&mut self, grant: &Grant) -> Outcome {
            self.finish_by(grant, Proof::Key)
        }

        fn move_to(&mut self, hub: &str, baggage: Baggage) {
            let Self { registrations, registries, hubs } = self;
            let surroundings = Surroundings { registries, hubs, now: Timestamp::now() };
            move_to(registrations, "rEG", hub, baggage, surroundings).unwrap();
        }

        fn is_at(&self, hub: &HubKey) -> bool {
            self.registries.of(hub).device("Seven").is_ok()
        }
    }

    fn hub_and_substatus(outcome: &Outcome) -> (&str, &str) {
        match outcome {
            Outcome::Assigned { assigned_hub, substatus, .. } => (assigned_hub, substatus),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn assigned_after_the_polls_and_for_each_poll_after() {
        let (mut world, grant) = (World::new(), grant());
        let operation = world.register(&grant, Proof::Key, Some(serde_json::json!(7)), 2).unwrap();
        let mut next = || world.poll(&operation, &grant).unwrap();
        assert_eq!([next(), next()], [Outcome::Assigning, Outcome::Assigning]);
        let assigned = next();
        let Outcome::Assigned { assigned_hub, device_id, payload, .. } = &assigned else { panic!("{assigned:?}") };
        assert_eq!((assigned_hub.as_str(), device_id.as_str()), ("hub", "Seven"));
        assert_eq!(payload.as_ref().unwrap()["request_payload"], 7);
        assert_eq!(next(), assigned);
        assert_eq!(look_up(&world.registrations, "REG").unwrap().outcome, assigned);
        let registry = world.registries.of(&HubKey::FIRST);
        assert_eq!(registry.authentication("Seven", None).unwrap(), &grant.attestation.without_dps());
        assert!(registry.module("Seven", "$edgeHub").is_ok());
    }

    #[test]
    fn registering_again_gives_the_same_device() {
        let (mut world, grant) = (World::new(), grant());
        let first = world.finish(&grant);
        assert_eq!(world.finish(&grant), first);
        assert_eq!(world.registries.of(&HubKey::FIRST).devices().len(), 1);
    }

    #[test]
    fn other_verdicts_make_no_device() {
        let mut world = World::new();
        let with = |verdict| Grant { verdict, ..grant() };
        assert!(matches!(world.finish(&with(Verdict::Disabled)), Outcome::Disabled { .. }));
        assert_eq!(world.finish(&with(Verdict::Unassigned)), Outcome::Unassigned);
        let failing = with(Verdict::Failed("no hub left".to_owned()));
        assert!(
            matches!(world.finish(&failing), Outcome::Failed { error_message, .. } if error_message == "no hub left")
        );
        let impossible = Grant { device_id: "a b".to_owned(), ..grant() };
        assert!(matches!(world.finish(&impossible), Outcome::Failed { .. }));
        assert!(world.registries.of(&HubKey::FIRST).devices().is_empty());
    }

    #[test]
    fn somebody_decides_otherwise() {
        let (mut world, grant) = (World::new(), grant());
        let operation = world.register(&grant, Proof::Key, None, 0).unwrap();
        let mut after = |answer| {
            answer_with(&mut world.registrations, "reg", answer).unwrap();
            world.poll(&operation, &grant).unwrap()
        };
        assert_eq!([after(Answer::Assigning), after(Answer::Assigning)], [Outcome::Assigning, Outcome::Assigning]);
        assert!(matches!(after(Answer::Disabled), Outcome::Disabled { .. }));
        for (answer, is_assigned) in [(Answer::Failed, false), (Answer::Unassigned, false), (Answer::Assign, true)] {
            answer_with(&mut world.registrations, "reg", answer).unwrap();
            assert_eq!(matches!(world.finish(&grant), Outcome::Assigned { .. }), is_assigned, "{answer:?}");
        }
        assert!(answer_with(&mut world.registrations, "nobody", Answer::Assign).is_err());
    }

    #[test]
    fn a_device_moves_and_is_told_how() {
        let (other, grant) = (HubKey::further("other"), grant());
        for (baggage, substatus) in [(Baggage::Migrated, "deviceDataMigrated"), (Baggage::Reset, "deviceDataReset")] {
            let mut world = World::new();
            world.finish(&grant);
            world.move_to("OTHER", baggage);
            assert!(!world.is_at(&HubKey::FIRST));
            assert_eq!(world.is_at(&other), baggage == Baggage::Migrated);
            assert_eq!(hub_and_substatus(&world.finish(&grant)), ("other", substatus));
            assert!(world.is_at(&other) && !world.is_at(&HubKey::FIRST));
            // The move is over.
            assert_eq!(hub_and_substatus(&world.finish(&grant)), ("other", "initialAssignment"));
            world.move_to("foreign.example", baggage);
            assert!(!world.is_at(&other));
            assert_eq!(hub_and_substatus(&world.finish(&grant)), ("foreign.example", substatus));
            assert!(!world.is_at(&other) && !world.is_at(&HubKey::FIRST));
        }
    }

    #[test]
    fn an_enrollment_with_another_hub_takes_its_device_along() {
        let mut world = World::new();
        world.finish(&grant());
        let elsewhere = Grant { assigned_hub: Some("other".to_owned()), ..grant() };
        assert_eq!(hub_and_substatus(&world.finish(&elsewhere)), ("other", "deviceDataMigrated"));
        assert!(!world.is_at(&HubKey::FIRST) && world.is_at(&HubKey::further("other")));
    }

    #[test]
    fn a_new_certificate_replaces_the_old_one() {
        let (mut world, grant) = (World::new(), grant());
        for thumbprint in [THUMBPRINT.to_owned(), THUMBPRINT.replace('9', "8")] {
            world.finish_by(&grant, Proof::Certificate { thumbprint: thumbprint.clone() });
            let known = world.registries.of(&HubKey::FIRST).authentication("Seven", None).unwrap();
            assert_eq!(known, &Authentication::thumbprints(&[thumbprint.parse().unwrap()]));
        }
    }

    #[test]
    fn any_tpm_may_be_the_first_and_no_other_after_it() {
        let mut world = World::new();
        let tpm =
            |byte| Proof::Tpm(TpmKeys { endorsement_key: Public(vec![byte]), storage_root_key: Public(vec![byte]) });
        let any = Grant { attestation: Attestation::EndorsementKey(EndorsementKey::Any), ..grant() };
        world.register(&any, tpm(1), None, 0).unwrap();
        world.register(&any, tpm(1), None, 0).unwrap();
        assert_eq!(world.register(&any, tpm(2), None, 0), Err(Error::ForeignTpm("reg".to_owned())));
        let exactly = EndorsementKey::Exactly(Public(vec![2]));
        let exactly = Grant { attestation: Attestation::EndorsementKey(exactly), ..grant() };
        world.register(&exactly, tpm(2), None, 0).unwrap();
        assert!(world.register(&exactly, tpm(1), None, 0).is_err());
        assert!(world.register(&grant(), tpm(1), None, 0).is_err());
    }

    #[test]
    fn only_operations_of_the_registration_can_be_polled() {
        let (mut world, grant) = (World::new(), grant());
        assert!(matches!(world.poll("x", &grant), Err(Error::UnknownRegistration(_))));
        let operations: Vec<_> =
            (0..=MAX_OPERATIONS).map(|_| world.register(&grant, Proof::Key, None, 0).unwrap()).collect();
        assert!(matches!(world.poll("x", &grant), Err(Error::UnknownOperation { .. })));
        assert!(matches!(world.poll(&operations[0], &grant), Err(Error::UnknownOperation { .. })));
        assert!(world.poll(&operations[1], &grant).is_ok());
    }
}
