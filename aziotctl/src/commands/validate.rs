//! `aziotctl config validate`: everything that `apply` would have to say about a super-config, and nothing done.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Stop;
use super::source::{Source, Strictness};
use crate::console;
use crate::failure::Failure;
use crate::generate::{Surroundings, generate};
use crate::layout::Layout;
use crate::named_files::EdgeFiles;
use crate::product::Product;
use crate::report::{Remark, Report};
use crate::settings::EdgeUris;

/// Check a super-config without applying it
///
/// Needs no privileges and looks at nothing but the file, so a file for another device
/// can be checked, too.
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = long_help!(
    "    aziotctl config validate\n    aziotctl config validate -c new.toml --strict\n    aziotctl config validate -c - -o json <device.toml"
))]
pub(super) struct ValidateArguments {
    /// The super-config; `-` reads standard input
    #[arg(short, long, value_name = "FILE", default_value = "/etc/aziot/config.toml")]
    config: PathBuf,
    /// Fail on warnings, such as unknown keys, as well
    #[arg(long)]
    strict: bool,
    /// Findings for people on standard error, or for programs on standard output
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// The shape of `-o json`; a change that breaks readers gets a new `version`.
#[derive(Serialize)]
struct Json<'r> {
    version: u32,
    valid: bool,
    findings: &'r [Remark],
}

pub(super) fn run(arguments: &ValidateArguments) -> Result<(), Stop> {
    let source = Source::read(&arguments.config)?;
    let strictness = Strictness::from(arguments.strict);
    // Only ids that collide are of interest here, and those do not depend on uids and names.
    let surroundings = Surroundings {
        layout: Layout::Normal,
        hostname: String::new(),
        certd_uid: 0,
        identityd_uid: 0,
        edged_uid: 0,
        edge_uris: EdgeUris::default(),
        edge_files: EdgeFiles::default(),
    };
    let (_, report) =
        source.check(Product::IdentityService, |settings, findings| generate(settings, &surroundings, findings));
    match arguments.output {
        Format::Text => {
            source.tell(&report, strictness)?;
            console::say(format_args!("{} is valid", source.name.display()));
        }
        Format::Json => {
            let outcome = source.judge(&report, strictness);
            print_json(&report, outcome.is_ok())?;
            outcome?;
        }
    }
    Ok(())
}

fn print_json(report: &Report, valid: bool) -> Result<(), Failure> {
    let json = Json { version: 1, valid, findings: &report.remarks };
    let text = serde_json::to_string_pretty(&json).expect("texts and numbers are JSON");
    console::print(format_args!("{text}\n"))
        .map_err(|error| Failure::new(error, "check where standard output goes to and run the command again"))
}
