//! A gateway as edgeHub is one to the modules of its device: MQTT over TLS, its server certificate from the runtime.

use std::{
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result};
use aziot_test_module::{Environment, Workload};
use openssl::{
    pkey::PKey,
    ssl::{SslAcceptor, SslMethod},
    x509::X509,
};
use serde_json::json;

use super::{mqtt, output};

/// Prints what clients send, as long as the process lives. Names the certificate after `EdgeDeviceHostName`, as edgeHub does.
pub(crate) fn open(environment: &Environment, port: u16) -> Result<()> {
    let name = environment.get("EdgeDeviceHostName")?;
    let issued = Workload::connect(environment)?.server_certificate(name)?;
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    let mut chain = X509::stack_from_pem(issued.certificate.as_bytes())?.into_iter();
    let leaf = chain.next().context("no certificate")?;
    acceptor.set_certificate(&leaf)?;
    for issuer in chain {
        acceptor.add_extra_chain_cert(issuer)?;
    }
    acceptor.set_private_key(PKey::private_key_from_pem(issued.key.as_bytes())?.as_ref())?;
    let acceptor = acceptor.build();
    let listener = TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("could not bind port {port}"))?;
    output::line(&json!({ "gateway": name }))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let acceptor = acceptor.clone();
            thread::spawn(move || {
                if let Err(error) = serve(&acceptor, stream) {
                    output::failure(&error);
                }
            });
        }
    });
    Ok(())
}

fn serve(acceptor: &SslAcceptor, stream: TcpStream) -> Result<()> {
    let mut stream = acceptor.accept(stream).context("no TLS")?;
    output::line(&json!({ "tls": stream.ssl().version_str() }))?;
    mqtt::serve(&mut stream, output::line)
}
