//! `[preloaded_certs]`: a certificate id that stands for a file of the operator, or for a list of other ids.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};
use url::Url;

/// What an id stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preloaded {
    /// `file:///path`. Other URIs are read too, and fail when they are used.
    Uri(Url),
    /// Ids of certificates that are joined, lists among them.
    List(Vec<String>),
}

impl Serialize for Preloaded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uri(uri) => serializer.serialize_str(uri.as_str()),
            Self::List(ids) => ids.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Preloaded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PreloadedVisitor)
    }
}

/// By hand, because serde's untagged enums forget which line was wrong and why.
struct PreloadedVisitor;

impl<'de> Visitor<'de> for PreloadedVisitor {
    type Value = Preloaded;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a file:// URI or a list of certificate ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Preloaded, E> {
        let uri =
            Url::parse(text).map_err(|error| E::custom(format!("{text:?} is no URI such as file:///path: {error}")))?;
        Ok(Preloaded::Uri(uri))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Preloaded, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = list.next_element()? {
            ids.push(id);
        }
        Ok(Preloaded::List(ids))
    }
}
