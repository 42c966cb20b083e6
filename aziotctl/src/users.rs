//! The Unix users of the services: by name in `/etc/passwd`, and where that has none, wherever else the system keeps users.

use std::fs;
use std::io;
use std::time::Duration;

use crate::process::{self, ProcessError};

/// For a directory server on the network to answer.
const GETENT_LIMIT: Duration = Duration::from_secs(30);

/// A user's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

/// A user whose numbers are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is none of this name.
    #[error("there is no user `{0}`")]
    Unknown(String),
    /// The list could not be read.
    #[error("could not read /etc/passwd")]
    Passwd(#[source] io::Error),
    /// The system could not be asked.
    #[error("could not look up the user `{name}`")]
    Getent {
        /// The user.
        name: String,
        /// Why.
        source: ProcessError,
    },
}

/// The user called `name`.
pub fn look_up(name: &str) -> Result<User, UserError> {
    let passwd = fs::read("/etc/passwd").map_err(UserError::Passwd)?;
    if let Some(user) = find(&passwd, name) {
        return Ok(user);
    }
    // Image-based systems and directory servers keep users elsewhere; the C library knows where, and `getent` asks it.
    match process::run("getent", &["passwd", name], GETENT_LIMIT) {
        Ok(output) => find(&output.stdout, name).ok_or_else(|| UserError::Unknown(name.to_owned())),
        Err(ProcessError::Run { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(UserError::Unknown(name.to_owned()))
        }
        Err(source) => Err(UserError::Getent { name: name.to_owned(), source }),
    }
}

/// The caller.
#[must_use]
pub fn caller() -> User {
    User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// `passwd(5)`: name, password, uid, gid and more, separated by colons.
fn find(passwd: &[u8], name: &str) -> Option<User> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = std::str::from_utf8(line).ok()?.split(':');
        let found = fields.next()?;
        let _password = fields.next()?;
        let user = User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? };
        (found == name).then_some(user)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let passwd = b"root:x:0:0::/:/bin/sh\n\xff:x:1:1::/:\nbroken\naziotks2:x:1:1::/:\naziotks:x:994:992:a:/h:/s\n";
        assert_eq!(find(passwd, "aziotks"), Some(User { uid: 994, gid: 992 }));
        assert_eq!(find(passwd, "aziot"), None);
        assert_eq!(find(passwd, "broken"), None);
    }

    #[test]
    fn root_is_everywhere_and_others_are_not() {
        assert_eq!(look_up("root").unwrap(), User { uid: 0, gid: 0 });
        let error = look_up("no-such-user-here").unwrap_err();
        assert_eq!(error.to_string(), "there is no user `no-such-user-here`");
    }
}
