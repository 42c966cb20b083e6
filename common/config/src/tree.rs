//! A TOML document as a tree in which each key and value remembers the file and place it came from.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// Where something stands: which document, by its number, and which bytes of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Origin {
    pub(crate) document: usize,
    pub(crate) span: Range<usize>,
}

pub(crate) type Table = BTreeMap<String, Entry>;

/// A key and its value. No `Debug` outside of tests: values may be secrets.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub(crate) struct Entry {
    pub(crate) key: Origin,
    pub(crate) value: Value,
}

#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub(crate) struct Value {
    /// Of a table with a header this is the header, of a table made by a dotted key that key.
    pub(crate) origin: Origin,
    pub(crate) kind: Kind,
}

#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub(crate) enum Kind {
    String(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    /// As written; nothing in our configs is a date.
    Datetime(String),
    Array(Vec<Value>),
    Table(Table),
}

/// A number that no type can hold.
pub(crate) struct TooLarge(pub(crate) Origin);

pub(crate) fn table(document: usize, table: &DeTable<'_>) -> Result<Table, TooLarge> {
    table
        .iter()
        .map(|(key, child)| {
            let entry = Entry {
                key: Origin { document, span: key.span() },
                value: value(document, child.get_ref(), child.span())?,
            };
            Ok((key.get_ref().to_string(), entry))
        })
        .collect()
}

fn value(document: usize, value_read: &DeValue<'_>, span: Range<usize>) -> Result<Value, TooLarge> {
    let origin = Origin { document, span };
    let kind = match value_read {
        DeValue::String(string) => Kind::String(string.to_string()),
        DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Kind::Integer(integer),
            Err(_) => return Err(TooLarge(origin)),
        },
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(float) => Kind::Float(float),
            Err(_) => return Err(TooLarge(origin)),
        },
        DeValue::Boolean(boolean) => Kind::Boolean(*boolean),
        DeValue::Datetime(datetime) => Kind::Datetime(datetime.to_string()),
        DeValue::Array(array) => Kind::Array(
            array.iter().map(|element| value(document, element.get_ref(), element.span())).collect::<Result<_, _>>()?,
        ),
        DeValue::Table(children) => Kind::Table(table(document, children)?),
    };
    Ok(Value { origin, kind })
}

/// Whether two values say the same, wherever they stand.
pub(crate) fn same(one: &Value, other: &Value) -> bool {
    match (&one.kind, &other.kind) {
        (Kind::String(one), Kind::String(other)) | (Kind::Datetime(one), Kind::Datetime(other)) => one == other,
        (Kind::Integer(one), Kind::Integer(other)) => one == other,
        (Kind::Float(one), Kind::Float(other)) => one.to_bits() == other.to_bits(),
        (Kind::Boolean(one), Kind::Boolean(other)) => one == other,
        (Kind::Array(one), Kind::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Kind::Table(one), Kind::Table(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|((key, one), (other_key, other))| key == other_key && same(&one.value, &other.value))
        }
        _ => false,
    }
}
