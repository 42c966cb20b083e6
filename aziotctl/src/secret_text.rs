//! Text of a configuration that nobody may see.

use std::fmt;

use serde::Deserialize;
use zeroize::Zeroizing;

/// A text that may hold a key, a password or a PIN: `Debug` prints `[redacted]`, dropping wipes it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The text itself; the name marks the places that handle it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_show() {
        assert_eq!(format!("{:?}", SecretText::from("hunter2".to_owned())), "[redacted]");
    }
}
