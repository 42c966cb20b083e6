//! Registrations at the provisioning service: asked for, pending for some polls, then assigned, failed or disabled.
//!
//! An assignment puts the device into the hub's registry with the keys of its enrollment. Knows no HTTP; who may register is decided before.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::enrollments::Grant;
use crate::random;
use crate::registry::{self, Authentication, KeyPair, Registry, SystemModules};

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
    #[error("there are {MAX_REGISTRATIONS} registrations already")]
    TooManyRegistrations,
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
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Operation {
    id: String,
    remaining_polls: u32,
    payload: Option<Value>,
    outcome: Outcome,
}

/// One registration with its latest outcome.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Registration {
    pub(crate) created: Timestamp,
    pub(crate) last_updated: Timestamp,
    pub(crate) etag: String,
    pub(crate) outcome: Outcome,
    operations: Vec<Operation>,
}

/// All registrations by id in lower case.
pub(crate) type Registrations = BTreeMap<String, Registration>;

/// Begins a registration, again or for the first time, and returns the operation to poll.
pub(crate) fn register(
    registrations: &mut Registrations,
    registration_id: &str,
    payload: Option<Value>,
    polls: u32,
) -> Result<String, Error> {
    let key = registration_id.to_lowercase();
    if !registrations.contains_key(&key) && registrations.len() >= MAX_REGISTRATIONS {
        return Err(Error::TooManyRegistrations);
    }
    let now = Timestamp::now();
    let registration = registrations.entry(key).or_insert_with(|| Registration {
        created: now,
        last_updated: now,
        etag: random::etag(),
        outcome: Outcome::Assigning,
        operations: Vec::new(),
    });
    if registration.operations.len() >= MAX_OPERATIONS {
        registration.operations.remove(0);
    }
    let id = random::uuid();
    registration.operations.push(Operation {
        id: id.clone(),
        remaining_polls: polls,
        payload,
        outcome: Outcome::Assigning,
    });
    Ok(id)
}

/// Looks at an operation; each look brings it one poll nearer to its end.
pub(crate) fn poll(
    registrations: &mut Registrations,
    registry: &mut Registry,
    registration_id: &str,
    operation_id: &str,
    grant: &Grant,
    hub_name: &str,
) -> Result<Outcome, Error> {
    let key = registration_id.to_lowercase();
    let unknown = || Error::UnknownOperation { registration: key.clone(), operation: operation_id.to_owned() };
    let registration = registrations.get_mut(&key).ok_or_else(|| Error::UnknownRegistration(key.clone()))?;
    let is_asked = |operation: &&mut Operation| operation.id == operation_id;
    let operation = registration.operations.iter_mut().find(is_asked).ok_or_else(unknown)?;
    if operation.outcome != Outcome::Assigning {
        return Ok(operation.outcome.clone());
    }
    if operation.remaining_polls > 0 {
        operation.remaining_polls -= 1;
        return Ok(Outcome::Assigning);
    }
    operation.outcome = decide(registry, grant, hub_name, operation.payload.take());
    registration.outcome = operation.outcome.clone();
    registration.last_updated = Timestamp::now();
    registration.etag = random::etag();
    Ok(registration.outcome.clone())
}

/// The latest outcome of a registration.
pub(crate) fn look_up<'a>(registrations: &'a Registrations, registration_id: &str) -> Result<&'a Registration, Error> {
    let key = registration_id.to_lowercase();
    registrations.get(&key).ok_or(Error::UnknownRegistration(key))
}

fn decide(registry: &mut Registry, grant: &Grant, hub_name: &str, payload: Option<Value>) -> Outcome {
    if grant.disabled {
        return Outcome::Disabled { error_code: 403_002, error_message: "The enrollment is disabled".to_owned() };
    }
    if let Some(text) = &grant.fail_with {
        return Outcome::Failed { error_code: 400_000, error_message: text.clone() };
    }
    // Another hub keeps its own registry; here the device is unknown.
    if grant.assigned_hub.is_none() {
        let authentication = Authentication::sas(grant.keys.clone().unwrap_or_else(KeyPair::random));
        let system_modules = if grant.iot_edge { SystemModules::Preset } else { SystemModules::Absent };
        if let Err(error) = registry.put_device(&grant.device_id, authentication, system_modules) {
            return Outcome::Failed { error_code: 400_000, error_message: error.to_string() };
        }
    }
    Outcome::Assigned {
        assigned_hub: grant.assigned_hub.clone().unwrap_or_else(|| hub_name.to_owned()),
        device_id: grant.device_id.clone(),
        substatus: "initialAssignment".to_owned(),
        payload: payload
            .map(|sent| serde_json::json!({ "msg": "custom allocation payload received", "request_payload": sent })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            keys: Some(KeyPair::random()),
            device_id: "Seven".to_owned(),
            assigned_hub: None,
            disabled: false,
            fail_with: None,
            iot_edge: true,
        }
    }

    #[derive(Default)]
    struct World {
        registrations: Registrations,
        registry: Registry,
    }

    impl World {
        fn register(&mut self, payload: Option<Value>, polls: u32) -> String {
            register(&mut self.registrations, "Reg", payload, polls).unwrap()
        }

        fn poll(&mut self, operation: &str, grant: &Grant) -> Result<Outcome, Error> {
            poll(&mut self.registrations, &mut self.registry, "REG", operation, grant, "hub")
        }

        fn finish(&mut self, grant: &Grant) -> Outcome {
            let operation = self.register(None, 0);
            self.poll(&operation, grant).unwrap()
        }
    }

    #[test]
    fn assigned_after_the_polls_and_for_each_poll_after() {
        let (mut world, grant) = (World::default(), grant());
        let operation = world.register(Some(serde_json::json!(7)), 2);
        let mut next = || world.poll(&operation, &grant).unwrap();
        assert_eq!([next(), next()], [Outcome::Assigning, Outcome::Assigning]);
        let assigned = next();
        let Outcome::Assigned { assigned_hub, device_id, payload, .. } = &assigned else { panic!("{assigned:?}") };
        assert_eq!((assigned_hub.as_str(), device_id.as_str()), ("hub", "Seven"));
        assert_eq!(payload.as_ref().unwrap()["request_payload"], 7);
        assert_eq!(next(), assigned);
        assert_eq!(look_up(&world.registrations, "REG").unwrap().outcome, assigned);
        assert_eq!(world.registry.keys("Seven", None).unwrap(), grant.keys.unwrap().to_vec());
        assert!(world.registry.module("Seven", "$edgeHub").is_ok());
    }

    #[test]
    fn registering_again_gives_the_same_device() {
        let (mut world, grant) = (World::default(), grant());
        let first = world.finish(&grant);
        assert_eq!(world.finish(&grant), first);
        assert_eq!(world.registry.devices().len(), 1);
    }

    #[test]
    fn disabled_and_failing_enrollments_make_no_device() {
        let mut world = World::default();
        let disabled = Grant { disabled: true, ..grant() };
        assert!(matches!(world.finish(&disabled), Outcome::Disabled { .. }));
        let failing = Grant { fail_with: Some("no hub left".to_owned()), ..grant() };
        assert!(
            matches!(world.finish(&failing), Outcome::Failed { error_message, .. } if error_message == "no hub left")
        );
        let impossible = Grant { device_id: "a b".to_owned(), ..grant() };
        assert!(matches!(world.finish(&impossible), Outcome::Failed { .. }));
        assert!(world.registry.devices().is_empty());
    }

    #[test]
    fn only_operations_of_the_registration_can_be_polled() {
        let (mut world, grant) = (World::default(), grant());
        assert!(matches!(world.poll("x", &grant), Err(Error::UnknownRegistration(_))));
        let operations: Vec<_> = (0..=MAX_OPERATIONS).map(|_| world.register(None, 0)).collect();
        assert!(matches!(world.poll("x", &grant), Err(Error::UnknownOperation { .. })));
        assert!(matches!(world.poll(&operations[0], &grant), Err(Error::UnknownOperation { .. })));
        assert!(world.poll(&operations[1], &grant).is_ok());
    }
}
