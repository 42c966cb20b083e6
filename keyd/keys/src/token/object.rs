//! Objects on a token: found by class and label, relabelled, destroyed. Knows nothing of what a key does.

use cryptoki::error::Error;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};

use super::error::TokenError;
use super::session::TokenSession;
use crate::error::Problem;

/// The objects of a key pair, in the order in which they are changed.
pub(super) const PAIR: [ObjectClass; 2] = [ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY];

impl TokenSession<'_> {
    /// The first object of a class, with a label if there is one.
    pub(super) fn first(
        &self,
        (class, label): (ObjectClass, Option<&str>),
    ) -> Result<Option<ObjectHandle>, TokenError> {
        let first = self.iter_objects(&template(class, label)).and_then(|mut found| found.next().transpose());
        self.check(first)
    }

    pub(super) fn all(&self, class: ObjectClass, label: &str) -> Result<Vec<ObjectHandle>, TokenError> {
        self.check(self.find_objects(&template(class, Some(label))))
    }

    pub(super) fn destroy(&self, objects: &[ObjectHandle]) -> Result<(), TokenError> {
        objects.iter().try_for_each(|object| self.check(self.destroy_object(*object)))
    }

    pub(super) fn has_pairs(&self, label: &str) -> Result<bool, TokenError> {
        Ok(!self.pairs(label)?.is_empty())
    }

    /// Tells whether there were any.
    pub(super) fn destroy_pairs(&self, label: &str) -> Result<bool, Problem> {
        let objects = self.pairs(label)?;
        self.destroy(&objects)?;
        Ok(!objects.is_empty())
    }

    pub(super) fn relabel_pairs(&self, from: &str, to: &str) -> Result<(), Problem> {
        for object in self.pairs(from)? {
            self.check(self.update_attributes(object, &[Attribute::Label(to.into())]))?;
        }
        Ok(())
    }

    fn pairs(&self, label: &str) -> Result<Vec<ObjectHandle>, TokenError> {
        let mut objects = Vec::new();
        for class in PAIR {
            objects.extend(self.all(class, label)?);
        }
        Ok(objects)
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
