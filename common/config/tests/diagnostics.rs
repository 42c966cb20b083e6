//! What an operator sees of a config: values, errors with their place, warnings, and never a secret.

#![expect(clippy::unwrap_used, reason = "clippy.toml's leave for tests does not reach the helper functions here")]

use std::collections::BTreeMap;
use std::error::Error as _;

use aziot_config::{Loaded, Oddity, Sources, load, load_file, load_str, problem_at};
use aziot_files::{Mode, create_directory, write};
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Deserialize)]
struct Config {
    hostname: String,
    #[serde(default)]
    max_requests: Option<u32>,
    #[serde(default)]
    principal: Vec<Principal>,
    #[serde(default)]
    provisioning: Option<Provisioning>,
    #[serde(default)]
    preloaded: BTreeMap<KeyId, Uri>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct Principal {
    uid: u32,
    keys: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Provisioning {
    attestation: Attestation,
    #[serde(default)]
    retries: u8,
}

#[derive(Debug, Deserialize)]
struct Attestation {
    registration_id: String,
    #[serde(default)]
    symmetric_key: Option<SymmetricKey>,
}

#[derive(Debug, Deserialize)]
struct SymmetricKey {
    value: Checked,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Checked;

impl TryFrom<String> for Checked {
    type Error = String;

    fn try_from(text: String) -> Result<Checked, String> {
        if text == "good" { Ok(Checked) } else { Err(format!("`{text}` is not base64")) }
    }
}

#[derive(Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
struct KeyId(String);

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Uri(String);

impl TryFrom<String> for Uri {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Uri, &'static str> {
        if text.contains(':') { Ok(Uri(text)) } else { Err("a URI has a scheme, as in `file:///key`") }
    }
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Usage {
    Sign,
    Encrypt,
    Custom { name: String },
    Of(u8),
}

fn read<T: DeserializeOwned>(text: &str) -> Loaded<T> {
    load_str("/c.toml", text).unwrap_or_else(|error| panic!("{}", error.problem().unwrap()))
}

fn problem<T: DeserializeOwned>(text: &str) -> String {
    load_str::<T>("/c.toml", text).err().expect("an error").problem().unwrap().to_string()
}

fn warnings<T: DeserializeOwned>(text: &str) -> Vec<String> {
    read::<T>(text).findings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_config_is_read() {
    let loaded = read::<Config>(
        "hostname = 'h'\nmax_requests = 0\npreloaded = { a = 'file:///a' }\n[[principal]]\nuid = 4_294_967_295\nkeys = ['*']\n\
         [provisioning.attestation]\nregistration_id = 'r'\nsymmetric_key.value = 'good'\n",
    );
    assert_eq!(loaded.findings, []);
    let config = loaded.value;
    assert_eq!((config.hostname.as_str(), config.max_requests), ("h", Some(0)));
    assert_eq!((config.principal[0].uid, config.principal[0].keys[0].as_str()), (u32::MAX, "*"));
    assert_eq!(config.preloaded[&KeyId("a".into())].0, "file:///a");
    let provisioning = config.provisioning.unwrap();
    assert_eq!((provisioning.attestation.registration_id.as_str(), provisioning.retries), ("r", 0));
    assert!(provisioning.attestation.symmetric_key.is_some_and(|key| matches!(key.value, Checked)));
}

#[test]
fn enums_are_words_or_tables_with_one_key() {
    for (text, expected) in [
        ("'sign'", Usage::Sign),
        ("{ encrypt = {} }", Usage::Encrypt),
        ("{ custom = { name = 'n' } }", Usage::Custom { name: "n".into() }),
        ("{ of = 7 }", Usage::Of(7)),
    ] {
        assert_eq!(read::<Config>(&format!("hostname = 'h'\nusage = {text}")).value.usage, Some(expected), "{text}");
    }
    for (text, expected) in [
        (
            "'sing'",
            "/c.toml:2:9: `usage`: unknown value `sing`, expected `sign`, `encrypt`, `custom` or `of`\n    2 | usage = 'sing'\n      |         ^^^^^^ did you mean `sign`?",
        ),
        ("7", "/c.toml:2:9: `usage`: expected a string, found an integer\n    2 | usage = 7\n      |         ^"),
        (
            "{ of = 700 }",
            "/c.toml:2:16: `usage.of`: expected a whole number from 0 to 255, found 700\n    2 | usage = { of = 700 }\n      |                ^^^",
        ),
        (
            "'of'",
            "/c.toml:2:9: `usage`: expected a table with the key `of`\n    2 | usage = 'of'\n      |         ^^^^",
        ),
    ] {
        assert_eq!(problem::<Config>(&format!("hostname = 'h'\nusage = {text}")), expected, "{text}");
    }
}

#[test]
fn errors_name_file_line_column_and_key_and_show_the_line() {
    for (text, expected) in [
        (
            "hostname = 5",
            "/c.toml:1:12: `hostname`: expected a string, found an integer\n    1 | hostname = 5\n      |            ^",
        ),
        (
            "hostname = 'h'\nmax_requests = -1 # none",
            "/c.toml:2:16: `max_requests`: expected a whole number from 0 to 4294967295, found -1\n    2 | max_requests = -1\n      |                ^^",
        ),
        (
            "hostname = 'h'\n\n[[principal]]\nuid = 1\nkeys = ['a', 2]",
            "/c.toml:5:14: `principal.keys`: expected a string, found an integer\n    5 | keys = […, 2]\n      |            ^",
        ),
        (
            "hostname = 'h'\n[[principal]]\nuid = 1\n",
            "/c.toml:2:1: missing key `keys` in [[principal]]\n    2 | [[principal]]\n      | ^^^^^^^^^^^^^",
        ),
        (
            "hostname = 'h'\nprincipal = { uid = 1 }",
            "/c.toml:2:13: `principal`: expected an array, found a table\n    2 | principal = { uid = 1 }\n      |             ^^^^^^^^^^^",
        ),
        (
            "hostname = 'h'\nprovisioning = 'dps'",
            "/c.toml:2:16: `provisioning`: expected a table, found a string\n    2 | provisioning = 'dps'\n      |                ^^^^^",
        ),
        (
            "hostname = 'h'\n[preloaded]\n'a b' = 'x'",
            "/c.toml:3:9: `preloaded.\"a b\"`: a URI has a scheme, as in `file:///key`\n    3 | 'a b' = 'x'\n      |         ^^^",
        ),
        ("max_requests = 1", "/c.toml: missing key `hostname` at the top level"),
        (
            "hostnam = 'h'",
            "/c.toml:1:1: missing key `hostname` at the top level\n    1 | hostnam = 'h'\n      | ^^^^^^^ did you mean `hostname`?",
        ),
        (
            "hostname = 'h'\nx = 999999999999999999999999999999999999999999",
            "/c.toml:2:5: the number is too large\n    2 | x = 999999999999999999999999999999999999999999\n      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
        ),
        (
            "hostname = 'h'\nhostname = 'i'",
            "/c.toml:2:1: TOML parse error: duplicate key\n    2 | hostname = …\n      | ^^^^^^^^",
        ),
        (
            "hostname = h\n",
            "/c.toml:1:12: TOML parse error: string values must be quoted, expected literal string\n    1 | hostname = …\n      |            ^",
        ),
    ] {
        assert_eq!(problem::<Config>(text), expected, "{text}");
    }
}

#[test]
fn an_unknown_key_is_a_warning_with_the_nearest_name() {
    let text = "hostname = 'h'\n[provisioning]\nattempts = 3\n[provisioning.attestation]\nregistration_id = 'r'\nsymetric_key = { valeu = 'geheim' }\n\
                [[principal]]\nuid = 1\nkeys = []\nkey = ['a']\n[logging.deep]\nlevel = 1\n";
    assert_eq!(
        warnings::<Config>(text),
        [
            "warning: /c.toml:3:1: unknown key `attempts` in [provisioning]\n    3 | attempts = …\n      | ^^^^^^^^",
            "warning: /c.toml:6:1: unknown key `symetric_key` in [provisioning.attestation]\n    6 | symetric_key = …\n      | ^^^^^^^^^^^^ did you mean `symmetric_key`?",
            "warning: /c.toml:10:1: unknown key `key` in [[principal]]\n   10 | key = […]\n      | ^^^ did you mean `keys`?",
            "warning: /c.toml:11:2: unknown key `logging` at the top level\n   11 | [logging.deep]\n      |  ^^^^^^^",
        ]
    );
    let finding = &read::<Config>(text).findings[2];
    assert_eq!(finding.one_line(), "/c.toml:10:1: unknown key `key` in [[principal]], did you mean `keys`?");
    assert_eq!(finding.line_and_column(), Some((10, 1)));
    assert!(matches!(finding.oddity(), Oddity::UnknownKey { key_path, .. } if key_path == "principal.key"));
}

#[test]
fn secrets_are_never_shown() {
    for text in [
        // In the value at fault, in its message, beside it, under a wrong name, in a broken file.
        "hostname = 'h'\n[provisioning.attestation]\nregistration_id = 'r'\nsymmetric_key = { value = 'geheim' }",
        "hostname = 'h'\n[provisioning.attestation]\nregistration_id = 5\nsymmetric_key = { value = 'geheim' }",
        "hostname = 'h'\n[provisioning]\nattestation = { registration_id = 5, symmetric_key = { value = 'geheim' } }",
        "hostname = 'h'\n[provisioning]\nattestation = { registration_id = 'r', symmetric_key = 'geheim' }",
        "hostname = 'h'\n[provisioning.attestation]\nregistration_id = 'r'\n[provisioning.attestation.symmetric_key]\nvaleu = 'geheim'",
        "hostname = 'h'\n[provisioning]\nattestation = { registraton_id = 'r', passwrod = 'geheim' }",
        "hostname = 'h'\nvalue = 'geheim",
        "hostname = 'h'\nvalue = '''\ngeheim''",
        "hostname = 'h'\nvalue 'geheim'",
        "hostname = 5 # password was geheim",
        "hostname = ['HostName=h;SharedAccessKey=geheim']",
    ] {
        let error = load_str::<Config>("/c.toml", text).err().unwrap();
        let shown = format!("{error:?} {}", error.problem().unwrap());
        assert!(!shown.contains("geheim"), "{text}:\n{shown}");
    }
    for text in ["hostname = 'h'\npasswrod = 'geheim'", "hostname = 'h'\n[[x]]\nvalue = 'geheim'\n[y]\na = 'geheim'"] {
        let shown = format!("{:?} {}", read::<Config>(text).findings, warnings::<Config>(text).join("\n"));
        assert!(!shown.contains("geheim"), "{shown}");
    }
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "method", rename_all = "snake_case")]
enum Tagged {
    Sas { device_id: String, retries: Option<u8> },
    Tpm(TpmSettings),
}

#[derive(Debug, Deserialize, PartialEq)]
struct TpmSettings {
    registration_id: String,
    #[serde(default)]
    index: u32,
}

#[derive(Debug, Deserialize)]
struct Buffered {
    attestation: Tagged,
    #[serde(flatten)]
    more: More,
    #[serde(default)]
    free: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct More {
    level: Option<String>,
}

#[test]
fn tagged_and_flattened_types_work() {
    let loaded =
        read::<Buffered>("level = 'l'\nfree = { any = 1 }\nattestation = { method = 'tpm', registration_id = 'r' }");
    assert_eq!(loaded.value.attestation, Tagged::Tpm(TpmSettings { registration_id: "r".into(), index: 0 }));
    assert_eq!(loaded.value.more.level.as_deref(), Some("l"));
    assert!(loaded.value.free.is_some());
    assert_eq!(loaded.findings, []);
}

#[test]
fn errors_in_tagged_types_are_placed_at_the_table() {
    for (text, expected) in [
        (
            "[attestation]\nmethod = 'sas'\ndevice_id = 5",
            "/c.toml:1:1: `attestation`: expected a string, found an integer\n    1 | [attestation]\n      | ^^^^^^^^^^^^^",
        ),
        (
            "[attestation]\nmethod = 'tmp'",
            "/c.toml:2:10: `attestation.method`: unknown value `tmp`, expected `sas` or `tpm`\n    2 | method = 'tmp'\n      |          ^^^^^ did you mean `tpm`?",
        ),
        (
            "[attestation]\nmethod = 'tpm'\nregistraton_id = 'r'",
            "/c.toml:3:1: missing key `registration_id` in [attestation]\n    3 | registraton_id = 'r'\n      | ^^^^^^^^^^^^^^ did you mean `registration_id`?",
        ),
        (
            "[attestation]\ndevice_id = 'd'",
            "/c.toml:1:1: missing key `method` in [attestation]\n    1 | [attestation]\n      | ^^^^^^^^^^^^^",
        ),
    ] {
        assert_eq!(problem::<Buffered>(text), expected, "{text}");
    }
}

#[test]
fn unknown_keys_in_tagged_and_flattened_types_are_found() {
    let text =
        "lvel = 'l'\n[attestation]\nmethod = 'sas'\ndevice_id = 'd'\nretrys = 3\nretries = 3\n[extra.deep]\na = 1\n";
    let found: Vec<_> = read::<Buffered>(text).findings.iter().map(aziot_config::Finding::one_line).collect();
    assert_eq!(
        found,
        [
            "/c.toml:1:1: unknown key `lvel` at the top level",
            "/c.toml:5:1: unknown key `retrys` in [attestation]",
            "/c.toml:7:2: unknown key `extra` at the top level",
        ]
    );
}

#[test]
fn files_are_merged_and_each_place_names_its_own_file() {
    let folder = tempfile::tempdir().unwrap();
    let sources = Sources { main: folder.path().join("config.toml"), directory: folder.path().join("config.d") };
    let _ = create_directory(&sources.directory, Mode::PRIVATE_DIRECTORY).unwrap();
    let drop_in = |name: &str| sources.directory.join(name);
    write(&sources.main, Mode::PRIVATE, "hostname = 'one'\n[[principal]]\nuid = 1\nkeys = []\n").unwrap();
    write(drop_in("20.toml"), Mode::PRIVATE, "hostname = 'three'\nhost = 1\n").unwrap();
    write(drop_in("10.toml"), Mode::PRIVATE, "hostname = 'two'\n[[principal]]\nuid = 1\nkeys = []\n").unwrap();
    write(drop_in("30.TOML"), Mode::PRIVATE, "hostname = 'four'\n").unwrap();

    let Loaded { value, findings } = load::<Config>(&sources).unwrap();
    assert_eq!((value.hostname.as_str(), value.principal.len()), ("three", 2));
    let found: Vec<_> = findings.iter().map(aziot_config::Finding::one_line).collect();
    let at = |name: &str| drop_in(name).display().to_string();
    let main = sources.main.display();
    assert_eq!(
        found,
        [
            format!("{}: this file is not read: its extension is not `toml` in lower case; rename it", at("30.TOML")),
            format!(
                "{}:2:1: this element of `principal` is given at {main}:2:1 already, and now counts twice",
                at("10.toml")
            ),
            format!("{}:2:1: unknown key `host` at the top level", at("20.toml")),
        ]
    );

    write(drop_in("40.toml"), Mode::PRIVATE, "max_requests = true").unwrap();
    let error = load::<Config>(&sources).err().unwrap();
    let mut chain = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(next) = cause {
        chain.push(next.to_string());
        cause = next.source();
    }
    let path = at("40.toml");
    assert_eq!(chain[..2], ["could not read config".to_owned(), format!("could not read config from {path}")]);
    assert!(chain[2].starts_with(&format!("{path}:1:16: `max_requests`: expected a whole number")), "{}", chain[2]);
    assert_eq!(chain.len(), 3);
}

#[test]
fn unreadable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let error = load_file::<Config>(&path).err().unwrap();
    assert_eq!(error.source().unwrap().to_string(), format!("could not read config from {}", path.display()));
    assert!(error.problem().is_none());
    write(&path, Mode::PRIVATE, b"a = 1\nb = '\xff'").unwrap();
    let error = load_file::<Config>(&path).err().unwrap();
    assert_eq!(error.problem().unwrap().to_string(), format!("{}: line 2 is not valid UTF-8", path.display()));
}

#[test]
fn a_type_that_refuses_unknown_keys_gets_the_place_of_the_key() {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read from TOML")]
    struct Strict {
        level: u8,
    }
    assert_eq!(
        problem::<Strict>("level = 1\nlevle = 2"),
        "/c.toml:2:1: unknown key `levle` at the top level\n    2 | levle = 2\n      | ^^^^^ did you mean `level`?"
    );
}

#[test]
fn tuples_and_options_and_numbers() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Numbers {
        pair: (u8, i16),
        big: u64,
        half: f64,
        whole: f64,
        yes: bool,
        nested: Vec<Vec<u8>>,
        when: String,
    }
    let text = "pair = [1, -2]\nbig = 0xFFFFFFFFFFFFFFFF\nhalf = 0.5\nwhole = 2\nyes = true\nnested = [[1], []]\nwhen = 2026-11-21T00:00:00Z";
    let expected = Numbers {
        pair: (1, -2),
        big: u64::MAX,
        half: 0.5,
        whole: 2.0,
        yes: true,
        nested: vec![vec![1], vec![]],
        when: "2026-11-21T00:00:00Z".into(),
    };
    assert_eq!(read::<Numbers>(text).value, expected);
    let problem = problem::<Numbers>(&text.replace("-2]", "-2, 3]"));
    assert!(problem.starts_with("/c.toml:1:8: `pair`: expected 2 elements, found 3 elements"), "{problem}");
}

#[test]
fn a_mistake_found_later_has_its_place_in_the_file_that_counts() {
    let folder = tempfile::tempdir().unwrap();
    let sources = Sources { main: folder.path().join("config.toml"), directory: folder.path().join("config.d") };
    let _ = create_directory(&sources.directory, Mode::PRIVATE_DIRECTORY).unwrap();
    let drop_in = sources.directory.join("a.toml");
    write(&sources.main, Mode::PRIVATE, "[keys]\n\"a b\" = 'first'\nother = 'x'\n").unwrap();
    write(&drop_in, Mode::PRIVATE, "\n[keys]\n\"a b\" = 'second' # third\n").unwrap();

    let problem = problem_at(&sources, &["keys", "a b"], "not good");
    assert_eq!(problem.to_string(), format!("{}:3:1: not good\n    3 | \"a b\" = …\n      | ^^^^^", drop_in.display()));
    let problem = problem_at(&sources, &["keys", "other"], "not good");
    assert_eq!((problem.file(), problem.line_and_column()), (&*sources.main, Some((3, 1))));
    for nowhere in [&["keys", "missing"][..], &["missing", "a b"], &["keys", "other", "deeper"], &[]] {
        let problem = problem_at(&sources, nowhere, "not good");
        assert_eq!(problem.to_string(), format!("{}: not good", sources.main.display()));
    }
    // What cannot be read any more costs the place only.
    write(&drop_in, Mode::PRIVATE, "[keys").unwrap();
    let problem = problem_at(&sources, &["keys", "a b"], "not good");
    assert_eq!((problem.file(), problem.line_and_column()), (&*sources.main, Some((2, 1))));
}
