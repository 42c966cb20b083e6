//! A command that failed: why, and what its caller can do about it.

use std::error::Error;
use std::fmt;

/// Why a command failed. Prints the causes one per line and ends with the next step.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn Error>,
    next: String,
}

impl Failure {
    /// `error` is the reason; `next` says what to do, beginning with a verb.
    pub fn new(error: impl Into<Box<dyn Error>>, next: impl Into<String>) -> Self {
        Self { error: error.into(), next: next.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "error: {}", self.error)?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            write!(formatter, "\n    caused by: {error}")?;
            cause = error.source();
        }
        write!(formatter, "\nnext: {}", self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_and_the_next_step_have_lines_of_their_own() {
        let error = crate::users::UserError::Passwd(std::io::Error::other("disk on fire"));
        let failure = Failure::new(error, "put it out");
        assert_eq!(
            failure.to_string(),
            "error: could not read /etc/passwd\n    caused by: disk on fire\nnext: put it out"
        );
    }
}
