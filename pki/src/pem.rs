//! PEM blocks among other text, as certificate files and requests come from operators and other programs.
//!
//! OpenSSL's own reader asks the terminal for a passphrase where a block claims to be encrypted; a service must not.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use der::pem::LineEnding;

/// Why text that looks like PEM is none.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The line that ends a block is missing.
    #[error("the PEM block {0:?} has no end")]
    NoEnd(String),
    /// Headers (encrypted blocks have them), or characters that base64 does not know.
    #[error("the PEM block {0:?} is not plain base64")]
    NotBase64(String),
}

/// A block that was found; its text is not looked at until it is wanted.
pub(crate) struct Block<'t> {
    label: &'t str,
    body: &'t str,
}

impl Block<'_> {
    /// What the block says it is, such as `CERTIFICATE`.
    pub(crate) fn label(&self) -> &str {
        self.label
    }

    /// The bytes of the block. Line lengths do not matter, nor do line ends.
    pub(crate) fn decode(&self) -> Result<Vec<u8>, PemError> {
        let text: String = self.body.split_ascii_whitespace().collect();
        STANDARD.decode(text).map_err(|_| PemError::NotBase64(self.label.to_owned()))
    }
}

/// All blocks of `text` in order; text before, between and behind them is skipped.
pub(crate) fn blocks(text: &str) -> impl Iterator<Item = Result<Block<'_>, PemError>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (label, after) = find_begin(rest)?;
        let end = format!("-----END {label}-----");
        let Some(length) = after.find(&end) else {
            rest = "";
            return Some(Err(PemError::NoEnd(label.to_owned())));
        };
        rest = &after[length + end.len()..];
        Some(Ok(Block { label, body: &after[..length] }))
    })
}

/// The label of the first line that begins a block, and what follows that line.
fn find_begin(mut text: &str) -> Option<(&str, &str)> {
    loop {
        if text.is_empty() {
            return None;
        }
        let (line, after) = text.split_once('\n').unwrap_or((text, ""));
        if let Some(label) = line.trim().strip_prefix("-----BEGIN ").and_then(|line| line.strip_suffix("-----")) {
            return Some((label, after));
        }
        text = after;
    }
}

/// A block of 64 columns with LF, one LF after its last line.
pub(crate) fn encode(label: &str, bytes: &[u8]) -> Result<String, der::Error> {
    Ok(der::pem::encode_string(label, LineEnding::LF, bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_among_other_text() {
        let text = "subject=x\r\n-----BEGIN A B-----\r\naGVs\r\n bG8=\r\n-----END A B-----\nmore\n-----BEGIN C-----\n-----END C-----";
        let found: Vec<_> = blocks(text).map(Result::unwrap).collect();
        assert_eq!(found.iter().map(Block::label).collect::<Vec<_>>(), ["A B", "C"]);
        assert_eq!(found[0].decode().unwrap(), b"hello");
        assert!(found[1].decode().unwrap().is_empty());
        assert_eq!(blocks("no block").count(), 0);
    }

    #[test]
    fn damaged_blocks_are_errors_and_end_the_list() {
        let mut cut = blocks("-----BEGIN A-----\naGVs\n-----END B-----\n-----BEGIN C-----\n-----END C-----\n");
        assert!(matches!(cut.next(), Some(Err(PemError::NoEnd(label))) if label == "A"));
        assert!(cut.next().is_none());
        let encrypted = "-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\naGVs\n-----END A-----\n";
        assert!(matches!(blocks(encrypted).next().unwrap().unwrap().decode(), Err(PemError::NotBase64(_))));
    }

    #[test]
    fn what_is_written_is_read() {
        let text = encode("CERTIFICATE", &[7; 100]).unwrap();
        assert_eq!(text.lines().nth(1).map(str::len), Some(64));
        assert!(text.ends_with("-----END CERTIFICATE-----\n") && !text.contains('\r'));
        assert_eq!(blocks(&text).next().unwrap().unwrap().decode().unwrap(), [7; 100]);
    }
}
