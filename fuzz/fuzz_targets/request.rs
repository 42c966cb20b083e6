//! Requests of every call, through the whole service: the first byte picks the call, the rest is the body.

#![no_main]

use std::sync::LazyLock;

use aziot_fuzz::{USER, World};
use aziot_http::{Peer, StatusCode, testing};
use http::Request;
use libfuzzer_sys::fuzz_target;

static WORLD: LazyLock<World> = LazyLock::new(World::new);

/// Method and target of each call, by the letter that stands for it.
const CALLS: &[(&str, &str)] = &[
    ("POST", "/key"),
    ("GET", "/key/k1"),
    ("DELETE", "/key"),
    ("POST", "/key/k2"),
    ("POST", "/keypair"),
    ("GET", "/keypair/device-id"),
    ("POST", "/keypair/device-id-temp"),
    ("DELETE", "/keypair"),
    ("POST", "/parameters/ec-point"),
    ("POST", "/parameters/rsa-modulus"),
    ("POST", "/derivedkey"),
    ("POST", "/derivedkey/export"),
    ("POST", "/sign"),
    ("POST", "/encrypt"),
    ("POST", "/decrypt"),
    ("PUT", "/key"),
];

fuzz_target!(|input: &[u8]| {
    let Some((call, body)) = input.split_first() else { return };
    let (method, target) = CALLS[usize::from(call.wrapping_sub(b'a')) % CALLS.len()];
    let request = Request::builder()
        .method(method)
        .uri(format!("{target}?api-version=2021-05-01"))
        .header("content-type", "application/json")
        .body(body.to_vec())
        .expect("a request");
    let peer = Peer::new(USER, USER, 1);
    let (status, answer) = WORLD.runtime.block_on(testing::answer(WORLD.service.routes(), peer, request));
    let allowed = [200, 204, 400, 401, 403, 415, 422, 500];
    assert!(allowed.contains(&status.as_u16()), "{status}");
    if status == StatusCode::NO_CONTENT {
        assert!(answer.is_empty());
    } else {
        assert!(answer.starts_with(b"{\"") && answer.ends_with(b"}"), "{}", String::from_utf8_lossy(&answer));
    }
});
