//! API versions: the dates that callers put into `?api-version=`.

use std::fmt;

/// An API version, `YYYY-MM-DD`. Dates of this form order as text does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(&'static str);

impl ApiVersion {
    /// The first stable version of every service.
    pub const V2020_09_01: Self = Self("2020-09-01");
    /// Adds deleting and moving keys to the key service.
    pub const V2021_05_01: Self = Self("2021-05-01");
    /// Adds provisioning information to the identity service.
    pub const V2021_12_01: Self = Self("2021-12-01");
    /// Adds the custom allocation payload to provisioning information.
    pub const V2022_08_01: Self = Self("2022-08-01");

    /// The text that goes into the query.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}
