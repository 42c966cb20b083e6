//! `preferredAlgorithms`: which kinds of key pair a caller would like, best first (`keys.md`, 6.8).

use crate::error::Invalid;

/// A kind of key pair that can be generated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NewKeyPair {
    EcP256,
    Rsa2048,
    Rsa4096,
}

/// The algorithms of `text`, each once, in order; no text means "any". Unknown ones are skipped, nothing left is an error.
pub(crate) fn parse(text: Option<&str>) -> Result<Vec<NewKeyPair>, Invalid> {
    let mut algorithms = Vec::new();
    for component in text.unwrap_or("*").split(':') {
        let named: &[NewKeyPair] = match component {
            "ec-p256" => &[NewKeyPair::EcP256],
            "rsa-2048" => &[NewKeyPair::Rsa2048],
            "rsa-4096" => &[NewKeyPair::Rsa4096],
            "*" => &[NewKeyPair::EcP256, NewKeyPair::Rsa2048],
            _ => &[],
        };
        for algorithm in named {
            if !algorithms.contains(algorithm) {
                algorithms.push(*algorithm);
            }
        }
    }
    if algorithms.is_empty() { Err(Invalid::NoKnownAlgorithm) } else { Ok(algorithms) }
}

#[cfg(test)]
mod tests {
    use super::NewKeyPair::{EcP256, Rsa2048, Rsa4096};
    use super::*;

    #[test]
    fn the_table_of_preferred_algorithms() {
        let table: [(Option<&str>, &[NewKeyPair]); 5] = [
            (None, &[EcP256, Rsa2048]),
            (Some("*"), &[EcP256, Rsa2048]),
            (Some("rsa-2048:*"), &[Rsa2048, EcP256]),
            (Some("ec-p256:rsa-4096:*"), &[EcP256, Rsa4096, Rsa2048]),
            (Some("foo:rsa-4096"), &[Rsa4096]),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).unwrap(), expected, "{text:?}");
        }
        for text in ["", "foo", "EC-P256", " ec-p256", ":"] {
            assert!(matches!(parse(Some(text)), Err(Invalid::NoKnownAlgorithm)), "{text:?}");
        }
    }
}
