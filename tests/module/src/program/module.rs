//! A module: all that it can ask of the runtime, and a message to the hub.

use std::time::Duration;

use anyhow::{Result, ensure};
use aziot_test_module::{Environment, Workload, token};
use openssl::{pkey::PKey, x509::X509};
use serde_json::json;

use super::output;

const LIFETIME: Duration = Duration::from_secs(3600);

/// Prints one line about what it got.
pub(crate) fn run(environment: &Environment) -> Result<()> {
    let mut workload = Workload::connect(environment)?;
    let roots = workload.trust_bundle()?;
    let token = token::token(&mut workload, environment, LIFETIME)?;
    let issued = workload.server_certificate("sampler.test")?;
    let chain = X509::stack_from_pem(issued.certificate.as_bytes())?;
    let key = PKey::private_key_from_pem(issued.key.as_bytes())?;
    let own = chain.first().is_some_and(|leaf| leaf.public_key().is_ok_and(|public| public.public_eq(&key)));
    ensure!(own, "the certificate is not the key's");
    let secret = workload.encrypt(b"a secret", &[7; 32])?;
    ensure!(workload.decrypt(&secret, &[7; 32])? == b"a secret", "the secret came back as another");
    let message = token::send_message(environment, &token, &roots, r#"{"temperature":21.5}"#)?;
    output::line(&json!({
        "module": environment.module()?,
        "generation": environment.generation()?,
        "certificates": chain.len(),
        "message": message.status,
    }))
}
