//! What is at the places of a key, and whether it may be moved, replaced or deleted. Changes nothing.

use super::Keys;
use crate::content::Content;
use crate::error::{Failure, Invalid, Problem};
use crate::location::{FileLocation, Location};
use crate::store::Look;

impl Keys {
    pub(super) fn has_key_pair(&self, location: &Location) -> Result<bool, Problem> {
        match location {
            Location::File(file) => match self.store.load(Look::Now, file)? {
                Some(content) => Ok(content.key_pair(&file.path).map(|_| true)?),
                None => Ok(false),
            },
            Location::Token(token) => token.has_key_pair(),
        }
    }

    /// Whether there is nothing to make. An empty file that is not preloaded is as good as none.
    pub(super) fn is_key_pair_there(&self, locations: &[Location]) -> Result<bool, Problem> {
        is_there(locations, |location| self.has_key_pair(location))
    }

    /// Whether there is nothing to make. An empty file that is not preloaded is as good as none.
    pub(super) fn is_key_there(&self, locations: &[Location]) -> Result<bool, Problem> {
        is_there(locations, |location| match location {
            Location::File(file) => match self.store.load(Look::Now, file)? {
                Some(content) => Ok(content.symmetric().map(|_| true)?),
                None => Ok(false),
            },
            Location::Token(token) => token.has_key(),
        })
    }

    /// Whether what is at `location` may go: nothing, an empty file, or a symmetric key that is not preloaded.
    pub(super) fn check_key_replaceable(&self, location: &Location) -> Result<(), Problem> {
        match location {
            Location::File(file) => self.check_file_replaceable(file, |content| content.symmetric().map(|_| ())),
            Location::Token(token) if token.is_preloaded()? && token.has_key()? => Err(Problem::Preloaded),
            Location::Token(_) => Ok(()),
        }
    }

    /// Whether what is at `location` may go: nothing, an empty file, or a key pair that is not preloaded.
    pub(super) fn check_key_pair_replaceable(&self, location: &Location) -> Result<(), Problem> {
        match location {
            Location::File(file) => self.check_file_replaceable(file, Content::removable_as_key_pair),
            Location::Token(token) if token.is_preloaded()? && token.has_objects_of_key_pair()? => {
                Err(Problem::Preloaded)
            }
            Location::Token(_) => Ok(()),
        }
    }

    fn check_file_replaceable(
        &self,
        file: &FileLocation,
        is_wanted_kind: impl FnOnce(&Content) -> Result<(), Invalid>,
    ) -> Result<(), Problem> {
        if file.is_untouchable() {
            return Err(Problem::Preloaded);
        }
        match self.store.load(Look::Now, file) {
            Ok(Some(content)) => Ok(is_wanted_kind(&content)?),
            Ok(None) | Err(Failure::Empty { .. }) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Where the usable key pair is that is to be moved and is not an operator's.
    pub(super) fn movable<'a>(&self, sources: &'a [Location]) -> Result<&'a Location, Problem> {
        for source in sources {
            if let Location::File(file) = source
                && file.is_untouchable()
            {
                return Err(Problem::Preloaded);
            }
            if self.has_key_pair(source)? {
                return if source.is_preloaded()? { Err(Problem::Preloaded) } else { Ok(source) };
            }
        }
        Err(Failure::NothingToMove.into())
    }
}

fn is_there(locations: &[Location], has: impl Fn(&Location) -> Result<bool, Problem>) -> Result<bool, Problem> {
    for location in locations {
        match has(location) {
            Ok(false) => {}
            Err(Problem::Failure(Failure::Empty { .. })) if !location.is_preloaded()? => {}
            found => return found,
        }
    }
    Ok(false)
}
