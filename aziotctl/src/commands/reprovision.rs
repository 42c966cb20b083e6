//! `aziotctl system reprovision`: asks the identity service to register the device anew.

use std::time::Duration;

use aziot_http::{ClientError, Endpoint, Retry};
use aziot_identityd_api::device::Reprovision;
use clap::Args;

use crate::console;
use crate::failure::Failure;

/// Register the device anew
///
/// For changes that the identity service does not act on by itself, on the side of DPS or in
/// [provisioning], such as the payload. Not needed after a change of source, endpoint, scope
/// or registration id: the device registers anew when the identity service restarts, as
/// `config apply` makes it do. Waits until the device is registered.
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = long_help!(
    "    sudo aziotctl system reprovision\n    aziotctl system reprovision --uri unix:///tmp/device/run/aziot/identityd.sock"
))]
pub(super) struct ReprovisionArguments {
    /// Socket of the identity service
    #[arg(long, value_name = "URI", default_value = "unix:///run/aziot/identityd.sock")]
    uri: Endpoint,
    /// How long to wait; the service itself may have to wait for the cloud
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u32,
}

pub(super) fn run(arguments: &ReprovisionArguments) -> Result<(), Failure> {
    let limit = Duration::from_secs(arguments.timeout.into());
    // Not repeated: a second request would only join the first.
    let retry = Retry { retries: 0, attempt: limit, total: limit };
    let client = aziot_identityd_api::client(&arguments.uri, retry)
        .map_err(|error| Failure::new(error, "name the service's socket as unix:///PATH"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(error, "free memory or file descriptors and run the command again"))?;
    runtime.block_on(client.send(&Reprovision::default())).map_err(|error| {
        let next = match &error {
            ClientError::NotConnected { .. } => {
                "start the service with `systemctl start aziot-identityd`, and run the command as root or as a user of the group aziotid"
            }
            ClientError::TimedOut { .. } => "see `journalctl -u aziot-identityd -e`; a longer wait is to be had with --timeout",
            ClientError::Refused { .. } => "see `journalctl -u aziot-identityd -e`; only root and daemons may ask for this",
            _ => "see `journalctl -u aziot-identityd -e` and run the command again",
        };
        Failure::new(error, next)
    })?;
    console::say("the device is registered anew");
    Ok(())
}
