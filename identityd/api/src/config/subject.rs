//! Subjects of certificates: a common name, or a table of attributes.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};

/// A certificate's subject as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A plain string: the common name.
    CommonName(String),
    /// Attribute short names, in upper case, to values; `CN` is one of them.
    Attributes(BTreeMap<String, String>),
}

const COMMON_NAME: &str = "CN";

impl Subject {
    /// The common name.
    #[must_use]
    pub fn common_name(&self) -> &str {
        match self {
            Self::CommonName(name) => name,
            Self::Attributes(attributes) => attributes.get(COMMON_NAME).map_or("", String::as_str),
        }
    }

    /// The attributes beside the common name, in alphabetical order.
    pub fn other_attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        let attributes = match self {
            Self::CommonName(_) => None,
            Self::Attributes(attributes) => Some(attributes),
        };
        let all = attributes.into_iter().flatten();
        all.map(|(name, value)| (name.as_str(), value.as_str())).filter(|(name, _)| *name != COMMON_NAME)
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::CommonName(name) => serializer.serialize_str(name),
            Self::Attributes(attributes) => attributes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SubjectVisitor)
    }
}

/// By hand: serde's untagged enums lose the place of an error.
struct SubjectVisitor;

impl<'de> Visitor<'de> for SubjectVisitor {
    type Value = Subject;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a common name, or a table of subject attributes with CN")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Subject, E> {
        Ok(Subject::CommonName(name.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Subject, A::Error> {
        let mut attributes = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            attributes.insert(name.to_uppercase(), value);
        }
        if !attributes.contains_key(COMMON_NAME) {
            return Err(A::Error::missing_field(COMMON_NAME));
        }
        Ok(Subject::Attributes(attributes))
    }
}
