//! Path and query members of a call: taken out of the serialized call by the client, put back in front of the body by the
//! server, so that body errors keep the parser's own words and positions.

use std::{borrow::Cow, fmt, marker::PhantomData};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{
    Deserializer, de,
    de::{DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, Visitor, value::StringDeserializer},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

use crate::Call;

/// All but the unreserved characters of RFC 3986, so that an id with `/` or `%` reaches the server whole.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Members of one request that travel outside its body.
pub(crate) type Parameters = Vec<(&'static str, String)>;

/// The names between braces in a path template.
pub(crate) fn names(template: &'static str) -> impl Iterator<Item = &'static str> {
    template.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

/// Fills the template and query from the call's members and removes them. The rest is the body.
pub(crate) fn take_target<C: Call>(members: &mut Map<String, Value>, version: &str) -> String {
    let mut target = String::with_capacity(C::PATH.len() + 64);
    for segment in C::PATH.split('/').skip(1) {
        target.push('/');
        match segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}')) {
            Some(name) => {
                let value = members.remove(name).and_then(as_text).unwrap_or_default();
                target.extend(utf8_percent_encode(&value, COMPONENT));
            }
            None => target.push_str(segment),
        }
    }
    target.push_str("?api-version=");
    target.push_str(version);
    for name in C::QUERY {
        if let Some(value) = members.remove(*name).and_then(as_text) {
            target.push('&');
            target.push_str(name);
            target.push('=');
            target.extend(utf8_percent_encode(&value, COMPONENT));
        }
    }
    target
}

fn as_text(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

/// Deserializes a call from its parameters and, where it has one, its body.
pub(crate) fn deserialize<C: Call>(parameters: Parameters, body: Option<&[u8]>) -> Result<C, serde_json::Error> {
    let Some(body) = body else { return C::deserialize(Merged { parameters, body: NoBody }) };
    let mut parser = serde_json::Deserializer::from_slice(body);
    let call = if parameters.is_empty() {
        C::deserialize(&mut parser)?
    } else {
        C::deserialize(Merged { parameters, body: &mut parser })?
    };
    parser.end()?;
    Ok(call)
}

/// A body that is not there.
struct NoBody;

impl<'de> Deserializer<'de> for NoBody {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(de::value::MapDeserializer::new(std::iter::empty::<(&str, &str)>()))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Parameters first, then the members of the body.
struct Merged<D> {
    parameters: Parameters,
    body: D,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Merged<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.body.deserialize_map(Prefixed { parameters: self.parameters, visitor })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Prefixed<V> {
    parameters: Parameters,
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Prefixed<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(formatter)
    }

    fn visit_map<A: MapAccess<'de>>(self, body: A) -> Result<Self::Value, A::Error> {
        let names = self.parameters.iter().map(|(name, _)| *name).collect();
        self.visitor.visit_map(Chain { parameters: self.parameters.into_iter(), value: None, names, body })
    }
}

struct Chain<A> {
    parameters: std::vec::IntoIter<(&'static str, String)>,
    value: Option<String>,
    names: Vec<&'static str>,
    body: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Chain<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        if let Some((name, value)) = self.parameters.next() {
            self.value = Some(value);
            return seed.deserialize(name.into_deserializer()).map(Some);
        }
        // A member of the body cannot replace one of the path: it is unknown there, and ignored as unknown ones are.
        while let Some(key) = self.body.next_key::<Cow<'de, str>>()? {
            if self.names.contains(&key.as_ref()) {
                self.body.next_value::<IgnoredAny>()?;
                continue;
            }
            return seed.deserialize(key.into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Self::Error> {
        match self.value.take() {
            Some(value) => seed.deserialize(Text(value, PhantomData)),
            None => self.body.next_value_seed(seed),
        }
    }
}

/// Text that may stand for an optional member or a new type, which serde's own string deserializer refuses.
struct Text<E>(String, PhantomData<E>);

impl<'de, E: de::Error> Deserializer<'de> for Text<E> {
    type Error = E;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        visitor.visit_string(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, E> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, E> {
        StringDeserializer::new(self.0).deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{Body, Method};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Move {
        key_id: String,
        #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        #[serde(default)]
        from: String,
    }

    impl Call for Move {
        const METHOD: Method = Method::POST;
        const PATH: &'static str = "/keypair/{keyId}/move";
        const QUERY: &'static [&'static str] = &["type"];
        const BODY: Body = Body::Required;
        type Reply = ();
    }

    #[test]
    fn what_the_client_takes_out_the_server_puts_back() {
        let call = Move { key_id: "a/b %é".into(), kind: Some("aziot".into()), from: "x".into() };
        let Ok(Value::Object(mut members)) = serde_json::to_value(&call) else { panic!("a struct is an object") };
        let target = take_target::<Move>(&mut members, "2021-05-01");
        assert_eq!(target, "/keypair/a%2Fb%20%25%C3%A9/move?api-version=2021-05-01&type=aziot");
        assert_eq!(Value::Object(members.clone()).to_string(), r#"{"from":"x"}"#);

        let parameters = vec![("keyId", "a/b %é".to_owned()), ("type", "aziot".to_owned())];
        assert_eq!(deserialize::<Move>(parameters, Some(br#"{"from":"x"}"#)).unwrap(), call);
    }

    #[test]
    fn errors_keep_the_parsers_words() {
        #[derive(Debug, Serialize, Deserialize)]
        struct Sign {
            id: String,
            data: String,
        }
        impl Call for Sign {
            const METHOD: Method = Method::POST;
            const PATH: &'static str = "/sign/{id}";
            type Reply = ();
        }
        let id = || vec![("id", "x".to_owned())];
        let text = |body: &[u8]| deserialize::<Sign>(id(), Some(body)).unwrap_err().to_string();
        assert_eq!(text(b"{}"), "missing field `data` at line 1 column 2");
        assert_eq!(text(b""), "EOF while parsing a value at line 1 column 0");
        assert!(text(br#"{"data":"a","data":"b"}"#).starts_with("duplicate field `data`"));
        assert!(text(br#"{"data":"a"} x"#).starts_with("trailing characters"));
        assert!(text(b"[1]").starts_with("invalid type: sequence"));
        assert_eq!(deserialize::<Sign>(id(), Some(br#"{"id":"other","data":"a","more":1}"#)).unwrap().id, "x");
    }

    #[test]
    fn a_call_without_body_is_its_parameters() {
        #[derive(Debug, Serialize, Deserialize)]
        struct Load {
            id: String,
            kind: Option<String>,
        }
        impl Call for Load {
            const METHOD: Method = Method::GET;
            const PATH: &'static str = "/key/{id}";
            const BODY: Body = Body::Ignored;
            type Reply = ();
        }
        let call: Load = deserialize(vec![("id", "k1".to_owned())], None).unwrap();
        assert_eq!((call.id.as_str(), call.kind), ("k1", None));
    }
}
