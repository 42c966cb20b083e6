//! `config mp`: a super-config for manual provisioning out of a connection string.

use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};

use aziot_edged_api::config::ReprovisioningMode;
use aziot_files::{Created, Mode};
use clap::Args;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::console;
use crate::failure::Failure;
use crate::product::Product;
use crate::super_config::connection_string::ConnectionString;
use aziot_http::SecretText;

/// Write a super-config for a device that is provisioned by hand
///
/// Writes the file only; `config apply` puts it into effect.
#[derive(Args)]
#[command(after_long_help = long_help!(
    "    sudo aziotctl config mp -c - <connection-string.txt\n    sudo aziotctl config mp -c 'HostName=...;DeviceId=...;SharedAccessKey=...' --force"
))]
pub(super) struct ManualArguments {
    /// The device's connection string; `-` reads it from standard input
    ///
    /// On the command line other users of this machine may see it.
    #[arg(short, long, value_name = "CONNECTION_STRING", value_parser = connection_string_argument, verbatim_doc_comment)]
    connection_string: SecretText,
    /// The file to write
    #[arg(short, long, value_name = "FILE", default_value = "/etc/aziot/config.toml")]
    out_config_file: PathBuf,
    /// Replace a file that is there; the old one is kept as FILE.backup
    #[arg(short, long)]
    force: bool,
}

#[expect(clippy::unnecessary_wraps, reason = "clap wants a parser that may fail")]
fn connection_string_argument(text: &str) -> Result<SecretText, std::convert::Infallible> {
    Ok(SecretText::from(text.to_owned()))
}

#[derive(Serialize)]
struct Minimal<'t> {
    /// Of IoT Edge: a device whose connection string is written down does not look for another by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_reprovisioning_mode: Option<ReprovisioningMode>,
    provisioning: Provisioning<'t>,
}

#[derive(Serialize)]
struct Provisioning<'t> {
    source: &'static str,
    connection_string: &'t str,
}

/// The longest connection string that is read, in bytes; real ones have some hundred.
const LONGEST_LINE: u64 = 64 * 1024;

pub(super) fn run(product: Product, arguments: &ManualArguments) -> Result<(), Failure> {
    let path = arguments.out_config_file.as_path();
    if !arguments.force && path.symlink_metadata().is_ok() {
        return Err(already_configured(product, path));
    }
    let text = match arguments.connection_string.expose() {
        "-" => SecretText::from(read_line()?),
        _ => arguments.connection_string.clone(),
    };
    ConnectionString::parse(text.expose()).map_err(|error| {
        Failure::new(error, "copy the whole connection string of the device from the hub and try again")
    })?;
    let config = Minimal {
        auto_reprovisioning_mode: (product == Product::Edge).then_some(ReprovisioningMode::OnErrorOnly),
        provisioning: Provisioning { source: "manual", connection_string: text.expose() },
    };
    let contents = Zeroizing::new(toml::to_string(&config).expect("three texts are TOML"));
    write(product, path, &contents, arguments.force)?;
    console::say(format_args!(
        "wrote {path}\nnext: run `sudo {program} config apply -c '{path}'`",
        path = path.display(),
        program = product.program()
    ));
    if product == Product::Edge {
        console::say(
            "note: this is not meant for a gateway: modules get certificates from a CA that this device makes for itself, and the host name is \
             that of the machine",
        );
    }
    Ok(())
}

fn write(product: Product, path: &Path, contents: &str, force: bool) -> Result<(), Failure> {
    let failed = |error: aziot_files::Error| {
        Failure::new(
            error,
            "run the command as a user who may write there, for example with sudo, or choose another file with -o",
        )
    };
    if !force {
        return match aziot_files::write_new(path, Mode::PRIVATE, contents).map_err(failed)? {
            Created::New => Ok(()),
            Created::AlreadyThere => Err(already_configured(product, path)),
        };
    }
    if path.symlink_metadata().is_ok() {
        let mut backup = path.as_os_str().to_owned();
        backup.push(".backup");
        let old = aziot_files::read_limited(path, 1024 * 1024).map(Zeroizing::new).map_err(failed)?;
        aziot_files::write(&backup, Mode::PRIVATE, &*old).map_err(failed)?;
        console::say(format_args!("kept the old file as {}", Path::new(&backup).display()));
    }
    aziot_files::write(path, Mode::PRIVATE, contents).map_err(failed)
}

fn already_configured(product: Product, path: &Path) -> Failure {
    Failure::new(
        format!("the device is configured already: {} is there", path.display()),
        format!(
            "run `sudo {} config apply` to apply that file, or this command with --force to replace it",
            product.program()
        ),
    )
}

fn read_line() -> Result<String, Failure> {
    let mut line = String::new();
    io::Read::take(io::stdin().lock(), LONGEST_LINE)
        .read_line(&mut line)
        .map_err(|error| Failure::new(error, "pass the connection string as one line on standard input"))?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}
