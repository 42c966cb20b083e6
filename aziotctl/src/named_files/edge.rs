//! The files that a super-config names for modules and their runtime: two are read when it is applied, the others must be there later.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use aziot_http::SecretBytes;
use zeroize::Zeroizing;

use super::Look;
use crate::finding::Findings;
use crate::layout::Layout;
use crate::settings::{Edge, EdgeCa};

/// Bytes of an AES-256 key.
const MASTER_KEY_BYTES: usize = 32;
/// Nobody takes a larger file for a key.
const LARGEST_KEY_BYTES: u64 = 4096;

/// It is sent along with reports to the cloud.
const LARGEST_INFORMATION_BYTES: u64 = 64 * 1024;

/// What was read when a super-config was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeFiles {
    /// Texts that are shown as information about the system.
    pub additional_info: BTreeMap<String, String>,
    /// The imported master encryption key, unless the copy that the key service has is to stay.
    pub master_key: Option<SecretBytes>,
}

/// Reads what has to be read for `edge`. A caller who `only_looks` and may not read a key goes without it.
pub fn read(edge: &Edge, layout: &Layout, only_looks: bool, findings: &mut Findings) -> EdgeFiles {
    let additional_info = edge.additional_info.as_deref().map(|path| additional_info(path, findings));
    let master_key = edge.imported_master_encryption_key.as_deref();
    EdgeFiles {
        additional_info: additional_info.unwrap_or_default(),
        master_key: master_key.and_then(|path| read_master_key(path, layout, only_looks, findings)),
    }
}

/// Looks at the files that the services read.
pub(super) fn check(edge: &Edge, look: &mut Look<'_>) {
    let certs = [
        ("trust_bundle_cert", &edge.trust_bundle_cert),
        ("manifest_trust_bundle_cert", &edge.manifest_trust_bundle_cert),
    ];
    for (key, uri) in certs {
        if let Some(uri) = uri {
            look.cert(&[key], uri);
        }
    }
    for (registry, uri) in &edge.content_trust {
        look.cert(&["moby_runtime", "content_trust", "ca_certs", registry], uri);
    }
    match &edge.edge_ca {
        EdgeCa::Preloaded { cert, key } => {
            look.cert(&["edge_ca", "cert"], cert);
            look.key(&["edge_ca", "pk"], key);
        }
        EdgeCa::Issued(issued) => look.est(&["edge_ca"], &issued.est),
    }
}

fn additional_info(path: &Path, findings: &mut Findings) -> BTreeMap<String, String> {
    let message = match aziot_files::read_limited(path, LARGEST_INFORMATION_BYTES) {
        Ok(bytes) => match std::str::from_utf8(&bytes).map(|text| aziot_config::load_str(path, text)) {
            Err(error) => format!("{} is not UTF-8: {error}", path.display()),
            Ok(Ok(loaded)) => return loaded.value,
            Ok(Err(error)) => {
                let problem = error.problem();
                let place = problem.and_then(aziot_config::Problem::line_and_column);
                let place = place.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"));
                let what = problem.map_or_else(|| error.to_string(), |problem| problem.message().to_owned());
                format!("{}{place}: {what}; the file is a TOML table of texts", path.display())
            }
        },
        Err(error) => aziot_log::chain(&error).to_string(),
    };
    findings.error(&["additional_info"], message);
    BTreeMap::new()
}

fn read_master_key(path: &Path, layout: &Layout, only_looks: bool, findings: &mut Findings) -> Option<SecretBytes> {
    const KEY: [&str; 1] = ["imported_master_encryption_key"];
    let copy = layout.on_disk(&layout.master_key());
    match aziot_files::read_limited(path, LARGEST_KEY_BYTES).map(Zeroizing::new) {
        Ok(bytes) => {
            if bytes.len() != MASTER_KEY_BYTES {
                let message = format!(
                    "{} has {} bytes, and the key under which modules keep secrets has {MASTER_KEY_BYTES}",
                    path.display(),
                    bytes.len()
                );
                findings.warn(&KEY, message);
            }
            Some(SecretBytes::from(bytes))
        }
        // The package that left it has been purged.
        Err(error) if error.is_not_found() && copy.exists() => {
            let message = format!("{} is not there any more; its copy {} stays in use", path.display(), copy.display());
            findings.note(&KEY, message);
            None
        }
        Err(error) if only_looks && error.kind() == ErrorKind::PermissionDenied => {
            findings.note(&KEY, format!("this user may not read {}; its copy is not shown", path.display()));
            None
        }
        Err(error) => {
            findings.error(&KEY, aziot_log::chain(&error).to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use aziot_files::Mode;

    use super::*;
    use crate::finding::Severity;

    fn told(findings: &Findings) -> Vec<(Severity, &str)> {
        findings.0.iter().map(|finding| (finding.severity, finding.message.as_str())).collect()
    }

    #[test]
    fn the_copy_of_a_key_whose_source_is_gone_stays() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::Relocated(folder.path().to_owned());
        let source = folder.path().join("old.enc.key");
        let mut findings = Findings::default();
        assert_eq!(read_master_key(&source, &layout, false, &mut findings), None);
        assert!(findings.has_errors() && told(&findings)[0].1.contains("old.enc.key"), "{findings:?}");

        let mut findings = Findings::default();
        aziot_files::write(&source, Mode::PRIVATE, [7; 32]).unwrap();
        let read = read_master_key(&source, &layout, false, &mut findings).unwrap();
        assert_eq!((read.expose(), told(&findings).len()), (&[7; 32][..], 0));

        let copy = layout.master_key();
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        aziot_files::write(&copy, Mode::PRIVATE, [7; 32]).unwrap();
        aziot_files::remove(&source).unwrap();
        assert_eq!(read_master_key(&source, &layout, false, &mut findings), None);
        let [(Severity::Note, message)] = told(&findings)[..] else { panic!("{findings:?}") };
        assert!(message.contains("stays in use"), "{message}");
    }

    #[test]
    fn a_key_of_another_length_is_told_and_copied() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("key");
        aziot_files::write(&source, Mode::PRIVATE, [7; 31]).unwrap();
        let mut findings = Findings::default();
        let read = read_master_key(&source, &Layout::Normal, false, &mut findings).unwrap();
        assert_eq!(read.expose().len(), 31);
        let [(Severity::Warning, message)] = told(&findings)[..] else { panic!("{findings:?}") };
        assert!(message.contains("has 31 bytes"), "{message}");
    }

    #[test]
    fn information_that_is_no_text_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("info.toml");
        aziot_files::write(&path, Mode::PRIVATE, "site = 'Delft'\nhall = 7\n").unwrap();
        let mut findings = Findings::default();
        assert_eq!(additional_info(&path, &mut findings), BTreeMap::new());
        let [(Severity::Error, message)] = told(&findings)[..] else { panic!("{findings:?}") };
        assert!(message.starts_with(&format!("{}:2:8: ", path.display())), "{message}");

        aziot_files::write(&path, Mode::PRIVATE, "site = 'Delft'\n").unwrap();
        let mut findings = Findings::default();
        aziot_files::write(&path, Mode::PRIVATE, b"site = 'D\xfcsseldorf'\n").unwrap();
        assert_eq!(additional_info(&path, &mut findings), BTreeMap::new());
        let [(Severity::Error, message)] = told(&findings)[..] else { panic!("{findings:?}") };
        assert!(message.starts_with(&format!("{} is not UTF-8: ", path.display())), "{message}");

        aziot_files::write(&path, Mode::PRIVATE, "site = 'Delft'\n").unwrap();
        let mut findings = Findings::default();
        let info = additional_info(&path, &mut findings);
        assert_eq!((info["site"].as_str(), told(&findings).len()), ("Delft", 0));
    }
}
