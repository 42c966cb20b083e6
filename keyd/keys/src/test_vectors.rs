//! The keys of the worked examples in `keys.md`, section 10, for tests.

/// Key `k1`: 40 41 42 .. 5f.
pub(crate) fn k1() -> Vec<u8> {
    (0x40..0x60).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

/// The EC pair of 10.5.
pub(crate) const EC_PEM: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgtWBvKc7Qy94Xsth9
bXMuX8AqWjuvrhI7YhJ1ZctxMmehRANCAAQAXtSkTFt0lZ1d+6uJzM6qMdk/fnaE
0bglXgPKxcDJrAkGy2d9POF0NDxTMowDbKSwoc7YgR8kTPc2JBlJdleQ
-----END PRIVATE KEY-----
";

/// The RSA pair of 10.6; 1024 bit.
pub(crate) const RSA_PEM: &str = "\
-----BEGIN PRIVATE KEY-----
MIICdgIBADANBgkqhkiG9w0BAQEFAASCAmAwggJcAgEAAoGBAMULR9ogRQYv1Fr5
x3dJnMYYluIMeBHNKj8n6DtIHQ61hyCheP1dgtOUEz6gok/RnGNB3HUPeMR6qubk
suH+cFjt1OLAAH/6EjeQ5UK13RvUvUcD/zknMAR5qM1a4vldBX9oXKMWlqDKHNcU
XZYs6qwup+d1vd6OgCLmxunEzn6dAgMBAAECgYBOaMnD2/l7l8baGPEt38YZ8ikA
dNPGyayZCylXhb/CXawS6Q57TB3GUfNChatxNckUml2+21REY0fkr3cbhSNxG/ku
frUKwrChW+egR4dHFM0hpSTBCVmPgzVQWhNZH8NNeWllLwQEEedwN9wOyDxw5b/g
0dkEb8ImhznMF+58QQJBAPtbJ5hpE60LB9gmA7eWyOlZMY7SuuYHkWAQ9VZNmJnR
wUWtW5iZIWyJckfwASEl2dkf8oGaVwniENGFf2LwkFECQQDIrz6+XXF3h2gkAp0c
Vi5c2xUwod2AVv/++RQwK8Mcd7VpXQ/KT2n3eyBnv8Sc7jS4phPbsBsv76G2OvQK
EGKNAkA4WEe4950MhlN81ZCxv+BLxs3AKWbyF7Iz6blFXmGd4ZJEr0bAH1uJvAnd
LGTkbFq4PFwdR17JfV6tyRI0OJ7xAkBQhcBvMZ8tjq9Cg6n2jL3dlCpUcR4nOMFO
1TI8gdKvwXiQ5j5HtsWV/1lpR5DkRs/wpvKg23CNM2F3dQAmaZyhAkEAw1YKjEwm
Y33DjmzCFFQ4C7HuxOw/Rnc1D7gxm9YiZmAqG9MRWImaaGP1s7db6gqp6AdkMoYT
/KeMF8NsYyBTMw==
-----END PRIVATE KEY-----
";
