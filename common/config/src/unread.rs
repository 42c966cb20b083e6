//! The unknown keys in types that serde buffers: internally tagged enums, flattened structs.
//!
//! serde empties its buffer without telling what nobody took. So the whole config is read once more for each buffered
//! key, with a value there that fits no type: if that succeeds, nobody looks at the key. Types that take anything
//! refuse the value, too, and keep their keys. Of an untagged enum a key may be called unknown that another variant
//! knows.

use serde::de::DeserializeOwned;

use crate::deserializer::{Reading, Unknown};
use crate::tree::{Entry, Kind, Value};

/// Reading a config once per key is cheap for the configs there are; past this many keys the rest is not looked at.
const MOST_READINGS: usize = 1000;

/// The ones of `buffered` that reading `root` as a `T` does not look at, outermost keys only.
pub(crate) fn unread<'t, T: DeserializeOwned>(root: &'t Value, buffered: Vec<Unknown<'t>>) -> Vec<Unknown<'t>> {
    let mut unread: Vec<Unknown<'t>> = Vec::new();
    for candidate in buffered.into_iter().take(MOST_READINGS) {
        let is_covered = unread.iter().any(|found| contains(found.entry, candidate.entry));
        if !is_covered && Reading::with_poison(candidate.entry).read::<T>(root).is_ok() {
            unread.push(candidate);
        }
    }
    unread
}

/// Whether `inner` is `outer` or somewhere in its value.
fn contains(outer: &Entry, inner: &Entry) -> bool {
    std::ptr::eq(outer, inner) || value_contains(&outer.value, inner)
}

fn value_contains(outer: &Value, inner: &Entry) -> bool {
    match &outer.kind {
        Kind::Table(table) => table.values().any(|entry| contains(entry, inner)),
        Kind::Array(array) => array.iter().any(|element| value_contains(element, inner)),
        _ => false,
    }
}
