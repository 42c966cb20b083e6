//! Reads a merged tree into a serde type, with the place of each error and the keys that the type did not know.
//!
//! serde buffers internally tagged and flattened types and asks the buffer instead of us: errors in them are placed
//! at the enclosing table, and `unread.rs` finds their unknown keys.

mod containers;
mod key;

use std::cell::RefCell;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, Visitor};

use crate::failure::Failure;
use crate::path::Path;
use crate::tree::{Entry, Kind, Value};

use containers::{Elements, Entries, Variant};

/// What came to light while reading.
#[derive(Default)]
pub(crate) struct Reading<'t> {
    unknown: RefCell<Vec<Unknown<'t>>>,
    buffered: RefCell<Vec<Unknown<'t>>>,
    poisoned: Option<&'t Entry>,
}

/// A key that no field asked for.
#[derive(Clone)]
pub(crate) struct Unknown<'t> {
    pub(crate) key: &'t str,
    pub(crate) entry: &'t Entry,
    /// The dotted key.
    pub(crate) key_path: String,
    /// Where it stands: `in [a.b]`.
    pub(crate) table: String,
    /// The names that would have been known there, if serde told.
    pub(crate) known: &'static [&'static str],
}

impl<'t> Reading<'t> {
    /// A reading in which `entry` has a value that fits no type; only who does not look at it gets through.
    pub(crate) fn with_poison(entry: &'t Entry) -> Reading<'t> {
        Reading { poisoned: Some(entry), ..Reading::default() }
    }

    /// Reads `root` as a `T`.
    pub(crate) fn read<T: DeserializeOwned>(&self, root: &'t Value) -> Result<T, Failure> {
        Node { value: root, slot: None, path: Path::ROOT, reading: self }.read(PhantomData::<T>)
    }

    /// The keys that are surely unknown, and those that serde put into a buffer, of which nobody knows yet.
    pub(crate) fn into_unknown_and_buffered(self) -> (Vec<Unknown<'t>>, Vec<Unknown<'t>>) {
        (self.unknown.into_inner(), self.buffered.into_inner())
    }
}

/// A value as serde sees it.
#[derive(Clone, Copy)]
struct Node<'t, 'p> {
    value: &'t Value,
    /// What the value belongs to; none for the whole document and for elements of arrays.
    slot: Option<Slot<'t>>,
    path: &'p Path<'p>,
    reading: &'p Reading<'t>,
}

/// The key that a value belongs to.
#[derive(Clone, Copy)]
struct Slot<'t> {
    key: &'t str,
    entry: &'t Entry,
    /// The names that are known beside it, if it is in a struct.
    fields: Option<&'static [&'static str]>,
}

impl<'t> Node<'t, '_> {
    fn visit<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.is_poisoned() {
            // No type takes bytes that are not even UTF-8; a floating-point number would do for some.
            return visitor.visit_bytes(&[0xff]);
        }
        match &self.value.kind {
            Kind::String(string) | Kind::Datetime(string) => visitor.visit_borrowed_str(string),
            Kind::Integer(integer) => match (i64::try_from(*integer), u64::try_from(*integer)) {
                (Ok(integer), _) => visitor.visit_i64(integer),
                (_, Ok(integer)) => visitor.visit_u64(integer),
                _ => Err(Failure::custom("the number is too large")),
            },
            Kind::Float(float) => visitor.visit_f64(*float),
            Kind::Boolean(boolean) => visitor.visit_bool(*boolean),
            Kind::Array(array) => {
                let mut elements = Elements::new(array, self.path, self.reading);
                let value = visitor.visit_seq(&mut elements)?;
                elements.finish().map(|()| value)
            }
            Kind::Table(table) => visitor.visit_map(Entries::new(table, self.path, self.reading)),
        }
    }

    /// Reads the value as whatever `seed` makes, and places an error that has no place yet here.
    fn read<S: DeserializeSeed<'t>>(self, seed: S) -> Result<S::Value, Failure> {
        seed.deserialize(self).map_err(|failure| match &self.value.kind {
            Kind::Table(table) => {
                // Not from a struct, so the known names are not known; a short name resembles too many others.
                let strangers = table.iter().filter(|(key, _)| key.len() > 4);
                self.placed(failure.or_misspelled(self.path, strangers.map(|(key, entry)| (key.as_str(), &entry.key))))
            }
            _ => self.placed(failure),
        })
    }

    fn placed(&self, failure: Failure) -> Failure {
        failure.or_at(&self.value.origin, self.path)
    }

    fn is_poisoned(&self) -> bool {
        matches!((self.slot, self.reading.poisoned), (Some(slot), Some(poisoned)) if std::ptr::eq(slot.entry, poisoned))
    }

    fn unknown(&self, Slot { key, entry, fields }: Slot<'t>) -> Unknown<'t> {
        Unknown {
            key,
            entry,
            key_path: self.path.to_string(),
            table: self.path.parent().as_table(),
            known: fields.unwrap_or_default(),
        }
    }
}

/// A config says of each value what it is; what the type hoped for shows in the visitor's answer.
macro_rules! visit_as_it_is {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.visit(visitor)
        })*
    };
}

impl<'t> Deserializer<'t> for Node<'t, '_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        // Asked for by buffers, and by types that take anything, which `unread.rs` tells apart.
        self.reading.buffered.borrow_mut().extend(self.slot.map(|slot| self.unknown(slot)));
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(self, _: &'static str, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let Kind::Table(table) = &self.value.kind else { return self.visit(visitor) };
        if self.is_poisoned() {
            return self.visit(visitor);
        }
        visitor.visit_map(Entries::of_struct(table, fields, self.path, self.reading)).map_err(|failure| {
            let strangers = table.iter().filter(|(key, _)| !fields.contains(&key.as_str()));
            self.placed(failure.or_misspelled(self.path, strangers.map(|(key, entry)| (key.as_str(), &entry.key))))
        })
    }

    fn deserialize_enum<V: Visitor<'t>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match &self.value.kind {
            _ if self.is_poisoned() => self.visit(visitor),
            Kind::String(word) => visitor.visit_enum(Variant::Word(word)),
            Kind::Table(table) => match table.iter().next() {
                Some((name, entry)) if table.len() == 1 => {
                    visitor.visit_enum(Variant::Entry { name, entry, path: self.path, reading: self.reading })
                }
                _ => Err(Failure::custom("expected a table with exactly one key")),
            },
            _ => self.visit(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Failure> {
        if let Some(slot @ Slot { key, fields: Some(fields), .. }) = self.slot {
            // A field may be of a type that ignores its value.
            if !fields.contains(&key) {
                self.reading.unknown.borrow_mut().push(self.unknown(slot));
            }
        }
        visitor.visit_unit()
    }

    fn deserialize_tuple<V: Visitor<'t>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        self.visit(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.visit(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'t>>(self, _: &'static str, visitor: V) -> Result<V::Value, Failure> {
        self.visit(visitor)
    }

    visit_as_it_is! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16 deserialize_u32
        deserialize_u64 deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_unit deserialize_seq deserialize_map deserialize_identifier
    }
}
