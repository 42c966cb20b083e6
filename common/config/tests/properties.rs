//! What holds for any config: it reads as the `toml` crate reads it, broken ones end in an error and never a panic,
//! and a secret stays one.

#![expect(clippy::unwrap_used, reason = "clippy.toml's leave for tests does not reach the helper functions here")]

use aziot_config::{Finding, load_str};
use proptest::prelude::*;
use serde::Deserialize;
use toml::{Table, Value};

const SECRET: &str = "c2VjcmV0IGtleQ==";

const GOOD: &str = r#"
hostname = "device.example"
# an old key: c2VjcmV0IGtleQ==
[provisioning]
source = "dps"
retries = 3
attestation = { method = "symmetric_key", registration_id = "r", symmetric_key = { value = "c2VjcmV0IGtleQ==" } }

[preloaded]
ca = "pkcs11:token=t?pin-value=c2VjcmV0IGtleQ=="
[[est]]
url = "https://user:c2VjcmV0IGtleQ==@est.example/"
password = '''
c2VjcmV0IGtleQ=='''
[[est]]
url = "https://est.example"
password = ["c2VjcmV0IGtleQ==",
  "c2VjcmV0IGtleQ=="]
"#;

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only read from TOML")]
struct Config {
    hostname: String,
    provisioning: Provisioning,
    #[serde(default)]
    preloaded: std::collections::BTreeMap<String, String>,
    est: Vec<Est>,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only read from TOML")]
struct Provisioning {
    source: String,
    retries: u8,
    attestation: Attestation,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
#[expect(dead_code, reason = "only read from TOML")]
enum Attestation {
    SymmetricKey { registration_id: String, symmetric_key: Key },
    Tpm,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only read from TOML")]
struct Key {
    value: String,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only read from TOML")]
struct Est {
    url: String,
    password: Password,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only read from TOML")]
enum Password {
    One(String),
    Several(Vec<String>),
}

/// All that an operator gets to see of reading `text`.
fn shown(text: &str) -> String {
    match load_str::<Config>("/c.toml", text) {
        Ok(loaded) => {
            let lines: Vec<String> = loaded.findings.iter().flat_map(|f| [f.to_string(), f.one_line()]).collect();
            format!("{lines:?} {:?}", loaded.findings)
        }
        Err(error) => format!("{} {error:?}", error.problem().unwrap()),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        any::<bool>().prop_map(Value::Boolean),
        (-1.0e9..1.0e9).prop_map(Value::Float),
        ".{0,8}".prop_map(Value::String),
    ];
    scalar.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| Value::Table(map.into_iter().collect())),
        ]
    })
}

#[test]
fn the_example_is_good() {
    assert_eq!(load_str::<Config>("/c.toml", GOOD).unwrap().findings, Vec::<Finding>::new());
}

/// Every slip of one key, at every place: a character missing, doubled or another one.
#[test]
fn a_damaged_config_shows_no_secret() {
    for (place, hit) in GOOD.char_indices() {
        let (before, behind) = (&GOOD[..place], &GOOD[place + hit.len_utf8()..]);
        for typed in ["", "\"", "'", "=", "[", "]", "{", "}", "#", "\n", " ", "x", "é", &format!("{hit}{hit}")] {
            let text = format!("{before}{typed}{behind}");
            let shown = shown(&text);
            // The slip may be in the secret itself; then its first half must not be seen either.
            assert!(!shown.contains(&SECRET[..8]), "{text}\n{shown}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn any_config_reads_as_toml_reads_it(map in prop::collection::btree_map(".{0,4}", any_value(), 0..4)) {
        let table: Table = map.into_iter().collect();
        let text = table.to_string();
        let loaded = load_str::<Table>("/c.toml", &text).unwrap();
        prop_assert_eq!(loaded.value, table);
        prop_assert_eq!(loaded.findings, vec![]);
    }

    #[test]
    fn any_text_is_read_or_refused(text in r#"([a-c\[\]{}=,.'"\t\n#é…0-9\\ ]|\r\n){0,60}"#) {
        shown(&text);
    }
}
