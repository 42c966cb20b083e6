//! Keys on a token that take the place of others, in steps of which each may be the last: a kill or a token pulled out between two of
//! them leaves what [`TokenSession::recover_key`] and [`TokenSession::recover_pair`] undo or finish.
//!
//! A token changes one object at a time. What gives way is set aside under a label that no key can have, and destroyed last. A pair that
//! moves has its public half between the two labels meanwhile; its private half, which is relabelled in one step, tells how far it got.

use std::path::Path;

use aziot_log::{chain, fields};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use openssl::sha::sha256;

use super::error::TokenError;
use super::object::labelled;
use super::session::TokenSession;
use crate::error::Problem;

/// In no label but those of this module.
const RESERVED: char = '\u{1}';

/// Before the label of what a key on the token replaces.
const REPLACED: &str = "\u{1}replaced:";

/// Before the label of the pair that a file replaces.
const REPLACED_BY_FILE: &str = "\u{1}to file:";

/// Before the marks of two labels, that from which a pair moves and that to which it does. Together 40 bytes: some tokens take no more.
const MOVING: &str = "\u{1}moving:";

/// Whether a key must not have this label.
pub(crate) fn is_reserved(label: &str) -> bool {
    label.contains(RESERVED)
}

fn aside(label: &str) -> String {
    format!("{REPLACED}{label}")
}

fn aside_for_file(label: &str) -> String {
    format!("{REPLACED_BY_FILE}{label}")
}

fn moving(from: &str, to: &str) -> String {
    format!("{MOVING}{}{}", mark(from), mark(to))
}

fn mark(label: &str) -> String {
    use std::fmt::Write;
    let mut mark = String::with_capacity(16);
    for byte in &sha256(label.as_bytes())[..8] {
        // Writing to a String cannot fail.
        let _ = write!(mark, "{byte:02x}");
    }
    mark
}

/// The objects of one label.
struct Pair {
    public: Vec<ObjectHandle>,
    private: Vec<ObjectHandle>,
}

impl Pair {
    fn is_empty(&self) -> bool {
        self.public.is_empty() && self.private.is_empty()
    }
}

impl TokenSession<'_> {
    /// Whether something was set aside that belongs at `label` if there is nothing now.
    pub(super) fn has_aside(&self, class: ObjectClass, label: &str) -> Result<bool, TokenError> {
        for aside in [aside(label), aside_for_file(label)] {
            if self.first((class, Some(&aside)))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Undoes or finishes an import that was cut off.
    pub(super) fn recover_key(&self, label: &str) -> Result<(), TokenError> {
        let old = self.all(ObjectClass::SECRET_KEY, &aside(label))?;
        if old.is_empty() {
            return Ok(());
        }
        if self.first((ObjectClass::SECRET_KEY, Some(label)))?.is_some() {
            return self.destroy(&old);
        }
        self.tell_of_recovery(label);
        self.relabel(&old, label)
    }

    /// Puts the symmetric key that `import` makes in the place of those that are there; `import` tells whether it made one.
    pub(super) fn replace_key<T>(
        &self,
        label: &str,
        import: impl FnOnce() -> Result<T, Problem>,
        is_made: impl FnOnce(&T) -> bool,
    ) -> Result<T, Problem> {
        self.recover_key(label)?;
        let old = self.all(ObjectClass::SECRET_KEY, label)?;
        let is_aside = match self.relabel(&old, &aside(label)) {
            Ok(()) => true,
            Err(error) if self.is_transient(&error) => return Err(error.into()),
            // A token that relabels nothing: its old keys are destroyed where they are.
            Err(_) => {
                _ = self.relabel(&old, label);
                false
            }
        };
        let outcome = import();
        if outcome.as_ref().is_ok_and(is_made) {
            self.destroy(&old)?;
        } else if is_aside {
            // What a failure left there would count as the new key.
            let undone = self.all(ObjectClass::SECRET_KEY, label).and_then(|made| self.destroy(&made));
            if let Err(error) = undone.and_then(|()| self.recover_key(label)) {
                self.tell_of_failure(label, &error);
            }
        }
        outcome
    }

    /// Undoes or finishes what was cut off of a move or a creation. `file` is where the pair of this label is that is no longer here.
    pub(super) fn recover_pair(&self, label: &str, file: Option<&Path>) -> Result<(), TokenError> {
        self.recover_from_file_move(label, file)?;
        let own = self.pair(label)?;
        let old = self.pair(&aside(label))?;
        if own.private.is_empty() {
            return self.put_back(&old, label);
        }
        if own.public.is_empty() {
            let moved = self.halves_on_the_move(label)?;
            if !moved.is_empty() {
                self.tell_of_recovery(label);
                self.destroy_pair(&old)?;
                return self.relabel(&moved, label);
            }
            if old.private.is_empty() {
                return self.put_back(&old, label);
            }
        }
        self.destroy_pair(&old)
    }

    fn recover_from_file_move(&self, label: &str, file: Option<&Path>) -> Result<(), TokenError> {
        let old = self.pair(&aside_for_file(label))?;
        if old.is_empty() {
            return Ok(());
        }
        let own = self.pair(label)?;
        let is_replaced = if own.private.is_empty() {
            file.is_some_and(|file| file.symlink_metadata().is_ok())
        } else {
            // Only its public half was set aside otherwise.
            !own.public.is_empty() || !old.private.is_empty()
        };
        if is_replaced { self.destroy_pair(&old) } else { self.put_back(&old, label) }
    }

    fn put_back(&self, old: &Pair, label: &str) -> Result<(), TokenError> {
        if old.is_empty() {
            return Ok(());
        }
        self.tell_of_recovery(label);
        self.relabel_pair(old, label)
    }

    /// Gives the pair at `from` the label `to`. The pair that has it is destroyed last. Both were recovered before.
    pub(super) fn move_pair(&self, from: &str, to: &str) -> Result<(), Problem> {
        let steps = || -> Result<(), TokenError> {
            self.relabel_pair(&self.pair(to)?, &aside(to))?;
            let pair = self.pair(from)?;
            let between = moving(from, to);
            self.relabel(&pair.public, &between)?;
            self.relabel(&pair.private, to)?;
            // It is done from here on; the label between the two goes last, so that whoever asks again hears of it.
            if let Err(error) = self.destroy_pair(&self.pair(&aside(to))?) {
                self.tell_of_failure(to, &error);
            }
            self.relabel(&pair.public, to)
        };
        Ok(steps().inspect_err(|_| {
            for label in [from, to] {
                if let Err(error) = self.recover_pair(label, None) {
                    self.tell_of_failure(label, &error);
                }
            }
        })?)
    }

    /// Finishes a move of which only the public half is not there yet. Tells whether there was one.
    pub(super) fn finish_move(&self, from: &str, to: &str) -> Result<bool, Problem> {
        let is_cut_off = !self.all(ObjectClass::PUBLIC_KEY, &moving(from, to))?.is_empty()
            && self.pair(from)?.private.is_empty()
            && !self.pair(to)?.private.is_empty();
        if is_cut_off {
            self.recover_pair(to, None)?;
        }
        Ok(is_cut_off)
    }

    /// Makes a pair with `generate` where no private key is. A public key that is there goes when the pair has come.
    pub(super) fn replace_lone_public(
        &self,
        label: &str,
        generate: impl FnOnce() -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let lone = self.all(ObjectClass::PUBLIC_KEY, label)?;
        // Beside a new public key of the same label it might be taken for that one. A token that relabels nothing has no choice.
        if let Err(error) = self.relabel(&lone, &aside(label))
            && self.is_transient(&error)
        {
            return Err(error.into());
        }
        generate().inspect_err(|_| {
            if let Err(error) = self.relabel(&lone, label) {
                self.tell_of_failure(label, &error);
            }
        })?;
        // One that an attempt before this one left aside, too.
        self.destroy(&lone)?;
        Ok(self.destroy(&self.all(ObjectClass::PUBLIC_KEY, &aside(label))?)?)
    }

    /// Does `work`, which puts `file` in the place of the pair, and destroys the pair if that went well. Before, `clear` removes what is at
    /// `file`, out of reach behind the pair: from then on, whether `file` is there tells how far it got. The pair was recovered before.
    pub(super) fn replace_pair_by_file(
        &self,
        label: &str,
        file: &Path,
        clear: impl FnOnce() -> Result<(), Problem>,
        work: impl FnOnce() -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let old = self.pair(label)?;
        if old.private.is_empty() {
            work()?;
            return Ok(self.destroy_pair(&old)?);
        }
        clear()?;
        let steps = || {
            self.relabel_pair(&old, &aside_for_file(label))?;
            work()
        };
        steps().inspect_err(|_| {
            if let Err(error) = self.recover_pair(label, Some(file)) {
                self.tell_of_failure(label, &error);
            }
        })?;
        if let Err(error) = self.destroy_pair(&old) {
            self.tell_of_failure(label, &error);
        }
        Ok(())
    }

    /// Public keys of pairs that were moving from or to `label`.
    fn halves_on_the_move(&self, label: &str) -> Result<Vec<ObjectHandle>, TokenError> {
        let mark = mark(label);
        let mut halves = Vec::new();
        for object in self.check(self.find_objects(&[Attribute::Class(ObjectClass::PUBLIC_KEY)]))? {
            if let Some(Attribute::Label(found)) = self.attribute(object, AttributeType::Label)?
                && let Some(marks) = found.strip_prefix(MOVING.as_bytes())
                && (marks.starts_with(mark.as_bytes()) || marks.ends_with(mark.as_bytes()))
            {
                halves.push(object);
            }
        }
        Ok(halves)
    }

    fn pair(&self, label: &str) -> Result<Pair, TokenError> {
        Ok(Pair {
            public: self.all(ObjectClass::PUBLIC_KEY, label)?,
            private: self.all(ObjectClass::PRIVATE_KEY, label)?,
        })
    }

    /// The public half first: with the private one a pair is there or not.
    fn relabel_pair(&self, pair: &Pair, label: &str) -> Result<(), TokenError> {
        self.relabel(&pair.public, label)?;
        self.relabel(&pair.private, label)
    }

    fn relabel(&self, objects: &[ObjectHandle], label: &str) -> Result<(), TokenError> {
        let label: Vec<Attribute> = labelled(Some(label)).into_iter().collect();
        objects.iter().try_for_each(|object| self.check(self.update_attributes(*object, &label)))
    }

    /// The public half first: alone it would be taken for one that was not set aside whole.
    fn destroy_pair(&self, pair: &Pair) -> Result<(), TokenError> {
        self.destroy(&pair.public)?;
        self.destroy(&pair.private)
    }

    fn tell_of_recovery(&self, label: &str) {
        tracing::warn!(
            { fields::TOKEN } = self.token_name(),
            label,
            "a change of a key was cut off; putting its objects in order"
        );
    }

    fn tell_of_failure(&self, label: &str, error: &TokenError) {
        tracing::error!(
            { fields::TOKEN } = self.token_name(),
            label,
            { fields::ERROR } = %chain(error),
            "could not put the objects of a key in order; that is tried again when it is used"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_has_a_label_of_a_change_under_way() {
        for label in [aside("k"), aside_for_file("k"), moving("k", "l")] {
            assert!(is_reserved(&label), "{label:?}");
        }
        assert!(!is_reserved("k (replaced)\n\u{2}"));
        assert_ne!(moving("k", "l"), moving("l", "k"));
        assert_eq!(moving(&"k".repeat(1000), "l").len(), 40);
    }
}
