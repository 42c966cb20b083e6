//! Tables, arrays and enums as serde walks them.

use std::collections::btree_map;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::key::Key;
use super::{Node, Reading, Slot};
use crate::failure::Failure;
use crate::path::Path;
use crate::tree::{Entry, Kind, Table, Value};

/// The entries of a table, in order of their keys.
pub(super) struct Entries<'t, 'p> {
    rest: btree_map::Iter<'t, String, Entry>,
    current: Option<(&'t str, &'t Entry)>,
    /// The names that are known here, if it is a struct.
    fields: Option<&'static [&'static str]>,
    path: &'p Path<'p>,
    reading: &'p Reading<'t>,
}

impl<'t, 'p> Entries<'t, 'p> {
    pub(super) fn new(table: &'t Table, path: &'p Path<'p>, reading: &'p Reading<'t>) -> Entries<'t, 'p> {
        Entries { rest: table.iter(), current: None, fields: None, path, reading }
    }

    pub(super) fn of_struct(
        table: &'t Table,
        fields: &'static [&'static str],
        path: &'p Path<'p>,
        reading: &'p Reading<'t>,
    ) -> Entries<'t, 'p> {
        Entries { fields: Some(fields), ..Entries::new(table, path, reading) }
    }
}

impl<'t> MapAccess<'t> for Entries<'t, '_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'t>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        self.current = self.rest.next().map(|(key, entry)| (key.as_str(), entry));
        let Some((key, entry)) = self.current else { return Ok(None) };
        seed.deserialize(Key(key)).map(Some).map_err(|failure| failure.or_at(&entry.key, &self.path.child(key)))
    }

    fn next_value_seed<V: DeserializeSeed<'t>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        let (key, entry) = self.current.expect("serde asks for a value after its key");
        let path = self.path.child(key);
        let slot = Slot { key, entry, fields: self.fields };
        let node = Node { value: &entry.value, slot: Some(slot), path: &path, reading: self.reading };
        node.read(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The elements of an array.
pub(super) struct Elements<'t, 'p> {
    rest: std::slice::Iter<'t, Value>,
    length: usize,
    path: Path<'p>,
    reading: &'p Reading<'t>,
}

impl<'t, 'p> Elements<'t, 'p> {
    pub(super) fn new(array: &'t [Value], path: &Path<'p>, reading: &'p Reading<'t>) -> Elements<'t, 'p> {
        Elements { rest: array.iter(), length: array.len(), path: path.element(), reading }
    }

    /// Complains when a tuple took fewer elements than there are.
    pub(super) fn finish(&self) -> Result<(), Failure> {
        let taken = self.length - self.rest.len();
        if self.rest.len() == 0 {
            return Ok(());
        }
        Err(Failure::invalid_length(self.length, &format!("{taken} elements").as_str()))
    }
}

impl<'t> SeqAccess<'t> for &mut Elements<'t, '_> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let Some(value) = self.rest.next() else { return Ok(None) };
        let node = Node { value, slot: None, path: &self.path, reading: self.reading };
        node.read(seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// A variant of an enum: a word, or a table whose one key is the word.
pub(super) enum Variant<'t, 'p> {
    Word(&'t str),
    Entry { name: &'t str, entry: &'t Entry, path: &'p Path<'p>, reading: &'p Reading<'t> },
}

impl<'t, 'p> EnumAccess<'t> for Variant<'t, 'p> {
    type Error = Failure;
    type Variant = Variant<'t, 'p>;

    fn variant_seed<V: DeserializeSeed<'t>>(self, seed: V) -> Result<(V::Value, Variant<'t, 'p>), Failure> {
        let variant = match self {
            Variant::Word(word) => seed.deserialize(BorrowedStrDeserializer::new(word)),
            Variant::Entry { name, entry, path, .. } => seed
                .deserialize(BorrowedStrDeserializer::new(name))
                .map_err(|failure: Failure| failure.or_at(&entry.key, &path.child(name))),
        };
        variant.map(|variant| (variant, self))
    }
}

impl<'t> Variant<'t, '_> {
    /// Hands what the variant holds to `read`.
    fn with_contents<T>(self, read: impl FnOnce(Node<'t, '_>) -> Result<T, Failure>) -> Result<T, Failure> {
        match self {
            Variant::Word(word) => {
                Err(Failure::custom(format_args!("expected a table with the key `{}`", word.escape_debug())))
            }
            Variant::Entry { name, entry, path, reading } => {
                let path = path.child(name);
                let slot = Slot { key: name, entry, fields: None };
                let node = Node { value: &entry.value, slot: Some(slot), path: &path, reading };
                read(node).map_err(|failure| node.placed(failure))
            }
        }
    }
}

impl<'t> VariantAccess<'t> for Variant<'t, '_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        match self {
            Variant::Word(_) => Ok(()),
            Variant::Entry { .. } => self.with_contents(|node| match &node.value.kind {
                Kind::Table(table) if table.is_empty() => Ok(()),
                _ => Err(Failure::invalid_type(Unexpected::Map, &"the word alone, as a string")),
            }),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'t>>(self, seed: T) -> Result<T::Value, Failure> {
        self.with_contents(|node| node.read(seed))
    }

    fn tuple_variant<V: Visitor<'t>>(self, length: usize, visitor: V) -> Result<V::Value, Failure> {
        self.with_contents(|node| node.deserialize_tuple(length, visitor))
    }

    fn struct_variant<V: Visitor<'t>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        self.with_contents(|node| node.deserialize_struct("", fields, visitor))
    }
}
