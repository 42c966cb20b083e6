//! The daemons in one executable: the file name of `argv[0]` picks the service. One copy of every library on disk and in
//! memory, however many services run.

use std::{env, ffi::OsString, path::Path, process::ExitCode};

use anyhow::{Context as _, anyhow};
use aziot_config::Sources;
use aziot_http::{Activation, DaemonError, Shutdown};

fn main() -> ExitCode {
    aziot_process::main(|activation| {
        let service = Service::from_process_name(env::args_os().next()).context("could not read argv[0]")?;
        if service == Service::Keys {
            aziot_process::no_debuggers().context("could not shut debuggers out")?;
        }
        aziot_process::serve(|shutdown| service.run(activation, shutdown))
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Keys,
    Certificates,
    Identity,
}

impl Service {
    fn from_process_name(argument: Option<OsString>) -> anyhow::Result<Self> {
        let argument = argument.ok_or_else(|| anyhow!("the process has no name"))?;
        let name = Path::new(&argument).file_name().unwrap_or_default().to_string_lossy();
        match name.as_ref() {
            "aziot-keyd" => Ok(Self::Keys),
            "aziot-certd" => Ok(Self::Certificates),
            "aziot-identityd" => Ok(Self::Identity),
            _ => Err(anyhow!(
                "unrecognized process name {name}: start it as aziot-keyd, aziot-certd or aziot-identityd (symbolic links will do)"
            )),
        }
    }

    async fn run(self, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
        match self {
            Self::Keys => aziot_keyd::run(Sources::for_service("keyd"), activation, shutdown).await,
            Self::Certificates => aziot_certd::run(Sources::for_service("certd"), activation, shutdown).await,
            Self::Identity => aziot_identityd::run(Sources::for_service("identityd"), activation, shutdown).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Service;

    #[test]
    fn the_file_name_picks_the_service() {
        for (name, service) in [
            ("aziot-keyd", Service::Keys),
            ("/usr/libexec/aziot-identity-service/aziot-certd", Service::Certificates),
            ("./aziot-identityd", Service::Identity),
        ] {
            assert_eq!(Service::from_process_name(Some(name.into())).unwrap(), service);
        }
        for name in ["aziotd", "foo", "", "/"] {
            let error = Service::from_process_name(Some(name.into())).unwrap_err();
            assert!(error.to_string().starts_with("unrecognized process name"), "{error}");
        }
    }
}
