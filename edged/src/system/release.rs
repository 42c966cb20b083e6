//! os-release(5): which distribution this is.

use super::Machine;

/// The file that an administrator may change, and the one of the distribution.
const FILES: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];

/// The text of the first file that is there.
#[derive(Debug, Default)]
pub(super) struct Release(String);

impl Release {
    /// Without a file nothing is known. Blocks on files.
    pub(super) fn read(machine: &Machine) -> Self {
        Self(FILES.iter().find_map(|file| machine.read(file).ok()).unwrap_or_default())
    }

    /// The value of a name; of a repeated one the last, as in a shell.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let mut values = self.0.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        let value = unquoted(values.next_back()?.trim());
        (!value.is_empty()).then(|| value.to_owned())
    }
}

fn unquoted(value: &str) -> &str {
    let inside = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_without_their_quotes() {
        let text = "NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n# ID=x\nVARIANT_ID='edge'\nBUILD_ID=\nID_LIKE=y\n";
        let release = Release(text.to_owned());
        assert_eq!(release.get("ID").as_deref(), Some("debian"));
        assert_eq!(release.get("VERSION_ID").as_deref(), Some("12"));
        assert_eq!(release.get("VARIANT_ID").as_deref(), Some("edge"));
        assert_eq!((release.get("BUILD_ID"), release.get("VERSION")), (None, None));
    }
}
