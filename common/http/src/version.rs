//! API versions: the dates that callers put into `?api-version=`.

use std::fmt;

/// An API version, `YYYY-MM-DD`. Dates of this form order as text does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(&'static str);

impl ApiVersion {
    /// The first version of the module runtime.
    pub const V2018_06_28: Self = Self("2018-06-28");
    /// Adds preparing an update to the module runtime.
    pub const V2019_01_30: Self = Self("2019-01-30");
    /// Adds reprovisioning to the module runtime.
    pub const V2019_10_22: Self = Self("2019-10-22");
    /// Adds resources to the module runtime.
    pub const V2019_11_05: Self = Self("2019-11-05");
    /// Adds support bundles to the module runtime.
    pub const V2020_07_07: Self = Self("2020-07-07");
    /// The first stable version of every other service.
    pub const V2020_09_01: Self = Self("2020-09-01");
    /// Adds deleting and moving keys to the key service.
    pub const V2021_05_01: Self = Self("2021-05-01");
    /// A version of the module runtime that was published and adds nothing.
    pub const V2021_05_11: Self = Self("2021-05-11");
    /// Adds provisioning information to the identity service.
    pub const V2021_12_01: Self = Self("2021-12-01");
    /// A version of the module runtime that adds nothing.
    pub const V2021_12_07: Self = Self("2021-12-07");
    /// Adds the custom allocation payload to provisioning information.
    pub const V2022_08_01: Self = Self("2022-08-01");
    /// The version that the module runtime tells its modules.
    pub const V2022_08_03: Self = Self("2022-08-03");

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
