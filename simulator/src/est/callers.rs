//! Who calls the EST server: a user with a password, the holder of a certificate, or both (RFC 7030, section 3.3).
//!
//! What a caller may have is decided elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use openssl::x509::X509;
use zeroize::Zeroizing;

use super::authority::{Authorities, Origin};
use super::settings::{Authentication, Settings};
use crate::client_certificate::{self, ClientCertificate};
use crate::clients::ClientChain;

/// Why a caller is nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the authorization header is malformed: it is no basic authentication")]
    Malformed,
    /// Which of the two is not told, and the name could be a mistyped password.
    #[error("the user is unknown or the password is wrong")]
    Password,
    #[error("the request needs {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Certificate(#[from] client_certificate::Error),
}

/// Somebody whose credentials are right.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) user: Option<String>,
    pub(crate) certificate: Option<(X509, Origin)>,
}

/// Checks each credential that was presented, and whether they are enough.
pub(crate) fn identify(
    headers: &HeaderMap,
    chain: Option<&ClientChain>,
    settings: &Settings,
    authorities: &Authorities,
) -> Result<Caller, Error> {
    let user = user(headers, settings)?;
    let certified = |chain: &ClientChain| {
        let client = ClientCertificate::read(Some(chain))?;
        let origin = authorities.verify(&client)?;
        Ok::<_, client_certificate::Error>((client.leaf, origin))
    };
    let certificate = chain.map(certified).transpose()?;
    let missing = match settings.authentication {
        Authentication::Any if user.is_none() && certificate.is_none() => Some("a password or a client certificate"),
        Authentication::Basic | Authentication::Both if user.is_none() => Some("a password"),
        Authentication::Certificate | Authentication::Both if certificate.is_none() => Some("a client certificate"),
        _ => None,
    };
    match missing {
        Some(missing) => Err(Error::Missing(missing)),
        None => Ok(Caller { user, certificate }),
    }
}

fn user(headers: &HeaderMap, settings: &Settings) -> Result<Option<String>, Error> {
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let header = header.to_str().map_err(|_| Error::Malformed)?;
    let (scheme, credentials) = header.split_once(' ').ok_or(Error::Malformed)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Error::Malformed);
    }
    let decoded = STANDARD.decode(credentials.trim()).map(Zeroizing::new).map_err(|_| Error::Malformed)?;
    let text = str::from_utf8(&decoded).map_err(|_| Error::Malformed)?;
    // A user's name has no colon, a password may.
    let (name, password) = text.split_once(':').ok_or(Error::Malformed)?;
    match settings.users.get(name) {
        Some(right) if right.is(password) => Ok(Some(name.to_owned())),
        _ => Err(Error::Password),
    }
}

#[cfg(test)]
mod tests {
    use super::super::authority::tests::authorities;
    use super::*;

    fn identify_with(header: Option<&str>, authentication: Authentication) -> Result<Option<String>, String> {
        let users = [("pump".to_owned(), "p@ss:word".to_owned().into())].into();
        let settings = Settings { authentication, users, ..Settings::default() };
        let mut headers = HeaderMap::new();
        header.map(|header| headers.insert(AUTHORIZATION, header.parse().unwrap()));
        let caller = identify(&headers, None, &settings, &authorities());
        caller.map(|caller| caller.user).map_err(|error| error.to_string())
    }

    #[test]
    fn users_are_known_by_their_passwords() {
        let basic = |text: &str| identify_with(Some(&format!("Basic {}", STANDARD.encode(text))), Authentication::Any);
        assert_eq!(basic("pump:p@ss:word"), Ok(Some("pump".to_owned())));
        for wrong in ["pump:p@ss", "pump:", "valve:p@ss:word"] {
            assert_eq!(basic(wrong).unwrap_err(), Error::Password.to_string(), "{wrong}");
        }
        assert!(basic("pump").unwrap_err().contains("malformed"));
        for wrong in ["Basic !", "Bearer cHVtcA==", "Basic"] {
            assert!(identify_with(Some(wrong), Authentication::Any).unwrap_err().contains("malformed"), "{wrong}");
        }
    }

    #[test]
    fn nobody_is_refused_and_half_of_both_is_not_enough() {
        assert!(identify_with(None, Authentication::Any).unwrap_err().contains("a password or a client certificate"));
        let right = format!("basic {}", STANDARD.encode("pump:p@ss:word"));
        assert!(identify_with(Some(&right), Authentication::Basic).is_ok());
        for authentication in [Authentication::Both, Authentication::Certificate] {
            assert!(identify_with(Some(&right), authentication).unwrap_err().contains("a client certificate"));
        }
    }
}
