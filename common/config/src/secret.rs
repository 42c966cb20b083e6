//! Which parts of a config file must not be shown in an excerpt or a message.
//!
//! Judged by the names of the keys above a value and by what some values carry inside them. It errs on the side of
//! hiding.

/// A key with one of these in its name, in any case, holds a secret, as does everything below it.
const SECRET_NAMES: [&str; 9] = [
    "password",
    "connection_string",
    "pin",
    "value",
    "key_bytes",
    "symmetric_key",
    "sharedaccesskey",
    "secret",
    "hierarchy_authorization",
];

/// A value with one of these in it, in any case, holds a secret whatever its key is called: a PKCS#11 URI may carry a
/// PIN.
const SECRET_PARTS: [&str; 4] = ["pin-value", "sharedaccesskey", "sharedaccesssignature", "password"];

/// Whether a key of this name holds a secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

/// Whether a value holds a secret, judged by its text alone.
pub(crate) fn has_secret(value: &str) -> bool {
    let value = value.to_lowercase();
    SECRET_PARTS.iter().any(|part| value.contains(part)) || has_url_password(&value)
}

/// Whether this may have `user:password@` in it, also if its `@`, its `:` before the slashes or an escape is lacking:
/// then what follows the colon is no port.
fn has_url_password(value: &str) -> bool {
    if value.split_once(':').is_some_and(|(_, rest)| rest.contains('@')) {
        return true;
    }
    let Some((_, rest)) = value.split_once("//") else { return false };
    let Some((_, port)) = rest.split_once(':') else { return false };
    let behind_port = port.trim_start_matches(|c: char| c.is_ascii_digit());
    !(behind_port.is_empty() || behind_port.starts_with(['/', '?', '#']))
}

/// How much of a line may be shown of a file that could not even be parsed; `before` is the text above the line.
///
/// Without a tree nothing is certain: what stands there may be a comment that lost its `#`, or a string that lost a
/// quote. So only what looks like a key or a header is shown, and nothing at all if the line may go on with the value
/// of a secret above it.
pub(crate) fn presentable_prefix(before: &str, line: &str) -> usize {
    let inside_text = ["\"\"\"", "'''"].iter().any(|quotes| before.matches(quotes).count() % 2 == 1);
    let key_above = before.lines().rev().take_while(|line| !is_header(line)).find(|line| line.contains('='));
    if inside_text || key_above.is_some_and(|line| is_secret_name(line) || has_secret(line)) {
        return 0;
    }
    let is_word = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let word_start = line.len() - line.trim_start_matches([' ', '\t', '[']).len();
    let word_end = line[word_start..].find(|c| !is_word(c)).map_or(line.len(), |length| word_start + length);
    let rest = &line[word_end..];
    if is_header(line) {
        return word_end + rest.len() - rest.trim_start_matches(']').len();
    }
    let Some(value) = rest.trim_start().strip_prefix('=') else {
        // A word alone may be anything; one with more behind it is most likely a key that lacks its equals sign.
        return if rest.starts_with([' ', '\t']) { word_end } else { 0 };
    };
    // Base64 ends like this.
    let is_padding = rest.starts_with('=') && (value.starts_with('=') || value.trim().is_empty());
    if is_padding { 0 } else { line.len() - value.trim_start().len() }
}

fn is_header(line: &str) -> bool {
    line.trim_start().starts_with('[')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values() {
        for name in ["value", "Password", "user_pin", "symmetric_key", "SharedAccessKey", "key_bytes"] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["hostname", "registration_id", "provisioning", "uid"] {
            assert!(!is_secret_name(name), "{name}");
        }
        for value in [
            "pkcs11:token=a?PIN-value=1234",
            "HostName=h;SharedAccessKey=k",
            "https://u:p@host/x",
            "https://u:p/#?@host",
        ] {
            assert!(has_secret(value), "{value}");
        }
        for value in ["pkcs11:token=a", "https://host:443/x", "https://host:443", "file:///a", "user@host"] {
            assert!(!has_secret(value), "{value}");
        }
    }

    #[test]
    fn a_line_without_a_tree_is_cut_when_in_doubt() {
        for (before, line, shown) in [
            ("", "hostname = h", "hostname = "),
            ("", "hostname=\"h", "hostname="),
            ("", "hostname = ", "hostname = "),
            ("", "registration_id \"a\"", "registration_id"),
            ("", " an old key: abc", " an"),
            ("", "abc", ""),
            ("", "abc=", ""),
            ("", "abc==", ""),
            ("", "\"abc\"", ""),
            ("value = [\n", "abc def", ""),
            ("value = ''\n", "abc = d", ""),
            ("[value]\n", "abc = d", "abc = "),
            ("value = 1\n[x]\n", "abc = d", "abc = "),
            ("a = '''\n", "abc = d", ""),
            ("a = '''b'''\n", "abc = d", "abc = "),
            ("", "[attestation.symmetric_key", "[attestation.symmetric_key"),
            ("", "[[a]] x", "[[a]]"),
            ("", "[\"abc", "["),
        ] {
            assert_eq!(&line[..presentable_prefix(before, line)], shown, "{before:?} {line:?}");
        }
    }
}
