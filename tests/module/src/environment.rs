//! The environment of a module on an edge device, as edgeAgent and the runtime set it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// All variables by name.
#[derive(Clone, Debug)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let readable = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            Some((name, value.into_string().ok()?))
        });
        Self(readable.collect())
    }

    /// That of a container, from its `NAME=VALUE` lines.
    pub fn of_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let pairs = lines.into_iter().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// The same with another value.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A variable that must be there.
    pub fn get(&self, name: &str) -> Result<&str> {
        self.find(name).with_context(|| format!("the environment has no {name}"))
    }

    /// A variable that may be absent.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The path of a variable that holds a `unix://` URI.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let uri = self.get(name)?;
        let path = uri.strip_prefix("unix://").with_context(|| format!("{name} is no unix:// URI: {uri}"))?;
        Ok(Path::new(path).to_owned())
    }

    /// Host name of the hub.
    pub fn hub(&self) -> Result<&str> {
        self.get("IOTEDGE_IOTHUBHOSTNAME")
    }

    /// Device id.
    pub fn device(&self) -> Result<&str> {
        self.get("IOTEDGE_DEVICEID")
    }

    /// Module id, with `$` where it has one.
    pub fn module(&self) -> Result<&str> {
        self.get("IOTEDGE_MODULEID")
    }

    /// Generation id of the module.
    pub fn generation(&self) -> Result<&str> {
        self.get("IOTEDGE_MODULEGENERATIONID")
    }

    /// The api-version to speak.
    #[must_use]
    pub fn version(&self) -> &str {
        self.find("IOTEDGE_APIVERSION").unwrap_or("2022-08-03")
    }
}
