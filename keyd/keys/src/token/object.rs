//! Objects on a token: found by class and label, relabelled, destroyed. Knows nothing of what a key does.

use aziot_log::fields;
use cryptoki::error::Error;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};

use super::error::TokenError;
use super::replacement::is_reserved;
use super::session::TokenSession;

/// The objects of a key pair, in the order in which they are changed.
pub(super) const PAIR: [ObjectClass; 2] = [ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY];

/// Which attributes a new key gets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Template {
    /// What the key needs, and that it never leaves the token.
    Strict,
    /// What the public service sends, for tokens that refuse the strict one.
    Public,
}

/// In the order in which they are tried.
pub(super) const TEMPLATES: [Template; 2] = [Template::Strict, Template::Public];

impl TokenSession<'_> {
    /// The first object of a class, with a label if there is one.
    pub(super) fn first(
        &self,
        (class, label): (ObjectClass, Option<&str>),
    ) -> Result<Option<ObjectHandle>, TokenError> {
        let Some(label) = label else { return self.first_but(class, None) };
        let found = self.iter_objects(&template(class, Some(label))).and_then(|found| found.take(2).collect());
        let found: Vec<ObjectHandle> = self.check(found)?;
        if found.len() > 1 && self.is_first_double(class, label) {
            tracing::warn!(
                { fields::TOKEN } = self.token_name(),
                label,
                class = %class,
                "several objects have this label; the one that the token names first is used"
            );
        }
        Ok(found.into_iter().next())
    }

    /// The first object of a class, whatever its label, as long as that is neither `excluded` nor of a change under way.
    pub(super) fn first_but(
        &self,
        class: ObjectClass,
        excluded: Option<&str>,
    ) -> Result<Option<ObjectHandle>, TokenError> {
        for object in self.check(self.find_objects(&template(class, None)))? {
            let label = match self.attribute(object, AttributeType::Label)? {
                Some(Attribute::Label(label)) => label,
                _ => Vec::new(),
            };
            let label = String::from_utf8_lossy(&label);
            if !is_reserved(&label) && excluded != Some(&*label) {
                return Ok(Some(object));
            }
        }
        Ok(None)
    }

    pub(super) fn all(&self, class: ObjectClass, label: &str) -> Result<Vec<ObjectHandle>, TokenError> {
        self.check(self.find_objects(&template(class, Some(label))))
    }

    pub(super) fn destroy(&self, objects: &[ObjectHandle]) -> Result<(), TokenError> {
        objects.iter().try_for_each(|object| self.check(self.destroy_object(*object)))
    }

    /// One attribute, `None` if the object does not have it or does not show it.
    pub(super) fn attribute(
        &self,
        object: ObjectHandle,
        attribute: AttributeType,
    ) -> Result<Option<Attribute>, TokenError> {
        match self.get_attributes(object, &[attribute]) {
            Ok(attributes) => Ok(attributes.into_iter().next()),
            // A value that the crate does not understand is as good as none.
            Err(Error::InvalidValue) => Ok(None),
            Err(error) => self.check(Err(error)),
        }
    }
}

fn template(class: ObjectClass, label: Option<&str>) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(class)];
    template.extend(labelled(label));
    template
}

/// The label as part of a template.
pub(super) fn labelled(label: Option<&str>) -> Option<Attribute> {
    label.map(|label| Attribute::Label(label.into()))
}
