//! Reading a super-config for a command, and telling what is to be told about it.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use aziot_config::{Finding, Oddity};
use zeroize::Zeroizing;

use crate::check::check;
use crate::console;
use crate::failure::Failure;
use crate::finding::{Findings, Severity};
use crate::position::Positions;
use crate::product::Product;
use crate::report::Report;
use crate::settings::Settings;
use crate::super_config::SuperConfig;
use crate::super_config::edge::EdgeConfig;
use crate::super_config::foreign::EDGE_KEYS;

/// Real super-configs have a few KiB.
const LARGEST_FILE_BYTES: u64 = 1024 * 1024;

/// Whether warnings make a command fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strictness {
    /// They are told.
    Lenient,
    /// They do.
    Strict,
}

impl From<bool> for Strictness {
    fn from(strict: bool) -> Self {
        if strict { Self::Strict } else { Self::Lenient }
    }
}

/// The text of a super-config.
pub(super) struct Source {
    /// What messages call it.
    pub(super) name: PathBuf,
    text: Zeroizing<String>,
}

impl Source {
    /// Reads the file at `path`, or standard input for `-`.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let (name, bytes) = if path == Path::new("-") {
            (PathBuf::from("standard input"), read_standard_input()?)
        } else {
            let bytes = aziot_files::read_limited(path, LARGEST_FILE_BYTES).map(Zeroizing::new).map_err(|error| {
                let next = if error.is_not_found() {
                    "write the super-config there, starting from `aziotctl config template`, or name another file with -c"
                } else {
                    "make the file readable for this user, or run the command with sudo"
                };
                Failure::new(error, next)
            })?;
            (path.to_owned(), bytes)
        };
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let message =
                format!("{} is not UTF-8: byte {} does not belong there", name.display(), error.valid_up_to());
            Failure::new(message, "save the file as UTF-8 and run the command again")
        })?;
        Ok(Self { text: Zeroizing::new(text.to_owned()), name })
    }

    /// The settings, as far as `product` has to do with them, unless something makes the file unusable, and all that is to be said. `and_then`
    /// may find more.
    pub(super) fn check<T>(
        &self,
        product: Product,
        and_then: impl FnOnce(&Settings, &mut Findings) -> T,
    ) -> (Option<(Settings, T)>, Report) {
        let mut report = Report::default();
        let config = aziot_config::load_str::<SuperConfig>(&self.name, &self.text)
            .map(|loaded| {
                report.add_oddities(&loaded.findings);
                loaded.value
            })
            .map_err(|error| report.add_error(&error));
        // Read from the same text once more, as `aziotctl` takes no offence at what is in these tables.
        let edge = match product {
            Product::IdentityService => Ok(None),
            Product::Edge => aziot_config::load_str::<EdgeConfig>(&self.name, &self.text)
                .map(|loaded| {
                    report.add_oddities(&inside_edge_keys(loaded.findings));
                    Some(loaded.value)
                })
                .map_err(|error| report.add_error(&error)),
        };
        let (Ok(config), Ok(edge)) = (config, edge) else { return (None, report) };
        let positions = Positions::new(&self.text);
        let (settings, mut findings) = check(config, edge, &positions.top_level_keys());
        let result = settings.map(|settings| {
            let more = and_then(&settings, &mut findings);
            (settings, more)
        });
        report.add_findings(&self.name, &positions, findings);
        (result, report)
    }

    /// Says everything in `report`; a failure if it holds an error, or a warning and `strictness` minds.
    pub(super) fn tell(&self, report: &Report, strictness: Strictness) -> Result<(), Failure> {
        for remark in &report.remarks {
            console::say(remark);
        }
        self.judge(report, strictness)?;
        if report.count(Severity::Warning) > 0 {
            console::say("next: mend what is named above and run the command again; --strict lets no warning pass");
        }
        Ok(())
    }

    /// A failure if `report` holds an error, or a warning and `strictness` minds.
    pub(super) fn judge(&self, report: &Report, strictness: Strictness) -> Result<(), Failure> {
        let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
        let name = self.name.display();
        let message = if errors > 0 {
            format!("{name} cannot be applied as it is")
        } else if warnings > 0 && strictness == Strictness::Strict {
            format!(
                "{name} has {warnings} warning{}, which --strict does not let pass",
                if warnings == 1 { "" } else { "s" }
            )
        } else {
            return Ok(());
        };
        Err(Failure::new(message, "mend what is named above and run the command again; nothing was changed"))
    }
}

/// Those about the keys of IoT Edge. All other keys of the file are unknown to their schema, and have been told already if they are slips.
fn inside_edge_keys(findings: Vec<Finding>) -> Vec<Finding> {
    let is_inside = |finding: &Finding| match finding.oddity() {
        Oddity::UnknownKey { key_path, .. } => {
            EDGE_KEYS.contains(&key_path.split_once('.').map_or(key_path.as_str(), |(first, _)| first))
        }
        _ => true,
    };
    findings.into_iter().filter(is_inside).collect()
}

fn read_standard_input() -> Result<Zeroizing<Vec<u8>>, Failure> {
    let next = "pass the super-config on standard input, or name a file with -c";
    let mut bytes = Zeroizing::new(Vec::new());
    io::stdin()
        .lock()
        .take(LARGEST_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(error, next))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST_FILE_BYTES) {
        return Err(Failure::new("standard input has more than the 1 MiB that a super-config may have", next));
    }
    Ok(bytes)
}
