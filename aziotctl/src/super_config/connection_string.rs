//! Connection strings: `HostName=...;DeviceId=...;SharedAccessKey=...`, as the hub's portal shows them.

use aziot_http::SecretBytes;

use super::symmetric_key::{self, Base64Error};

/// What a connection string says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// `HostName`
    pub iothub_hostname: String,
    /// `DeviceId`
    pub device_id: String,
    /// `SharedAccessKey`, decoded.
    pub key: SecretBytes,
}

/// Why a text is no connection string. Never quotes the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// A part that must be there is not.
    #[error("the connection string has no `{0}=` part (names are case-sensitive)")]
    Missing(&'static str),
    /// The key is no base64.
    #[error("`SharedAccessKey` of the connection string is not base64: {0}")]
    Key(Base64Error),
}

impl ConnectionString {
    /// Reads parts separated by `;`, each split at its first `=`. Of equal names the last wins, other names are ignored.
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        let part = |name: &'static str| {
            text.split(';')
                .filter_map(|part| part.split_once('='))
                .filter(|(found, _)| *found == name)
                .map(|(_, value)| value)
                .next_back()
                .ok_or(ConnectionStringError::Missing(name))
        };
        Ok(Self {
            iothub_hostname: part("HostName")?.to_owned(),
            device_id: part("DeviceId")?.to_owned(),
            key: symmetric_key::decode(part("SharedAccessKey")?).map_err(ConnectionStringError::Key)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_any_order_and_the_last_of_equals_wins() {
        let parsed =
            ConnectionString::parse("SharedAccessKey=AAE=;x=y;DeviceId=old;HostName=hub.example;;DeviceId=a=b")
                .unwrap();
        assert_eq!((parsed.iothub_hostname.as_str(), parsed.device_id.as_str()), ("hub.example", "a=b"));
        assert_eq!(parsed.key.expose(), [0, 1]);
    }

    #[test]
    fn missing_parts_and_bad_keys_are_named() {
        for (text, expected) in [
            ("", "no `HostName=` part"),
            ("HostName=h;deviceid=d;SharedAccessKey=AAEC", "no `DeviceId=` part"),
            ("HostName=h; DeviceId=d;SharedAccessKey=AAEC", "no `DeviceId=` part"),
            ("HostName=h;DeviceId=d", "no `SharedAccessKey=` part"),
            ("HostName=h;DeviceId=d;SharedAccessKey=hunter 2", "not base64: character 7"),
        ] {
            let message = ConnectionString::parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains("hunter"), "{message}");
        }
    }
}
