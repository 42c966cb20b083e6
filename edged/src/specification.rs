//! What a module is made of: from the request to the body that the engine gets.
//!
//! The create options stay JSON all the way, so that members nobody here knows reach the engine; only what the runtime must look at is checked
//! and changed. A specification holds credentials and environments: it has no `Debug`, and no error quotes a value of them.

mod environment;
mod labels;
mod name;
mod options;
mod privileges;
mod spelling;
#[cfg(test)]
mod tests;

pub(crate) use labels::ORIGINAL_IMAGE;
pub(crate) use name::{Name, REPLACEMENT, is_retired};
pub(crate) use options::CreateOptions;
pub(crate) use privileges::{OwnFiles, Privileges};

use std::collections::BTreeMap;

use aziot_edged_api::{
    config::PullPolicy,
    module::{ModuleConfig, ModuleDetails, ModuleSpecification, ModuleStatus, RuntimeStatus, Status},
};
use serde_json::{Map, Value};

use crate::docker::{BadReference, Reference};

/// The only type of module.
pub(crate) const TYPE: &str = "docker";

/// Why a specification cannot be carried out, in the words that the agent's client reports to the cloud.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
    /// A blank name.
    #[error("module name cannot be empty")]
    NoName,
    /// A name that no container can have, or that the runtime keeps for itself.
    #[error("invalid module name {0:?}")]
    Name(String),
    /// A name that leaves no room for the ending of its socket's file. The engine would say so only after the pull, and less clearly.
    #[error("module name is longer than 250 characters")]
    LongName,
    /// A blank type.
    #[error("module type cannot be empty")]
    NoType,
    /// A type that this runtime does not run. The public one answers 500 here.
    #[error("invalid module type: {0:?}")]
    Type(String),
    /// Neither `on-create` nor `never`.
    #[error("invalid imagePullPolicy")]
    PullPolicy,
    /// A variable that stands twice in `env`.
    #[error("duplicate env var key: {0}")]
    DuplicateVariable(String),
    /// A variable without a name. The engine's own words would quote its value.
    #[error("environment variable without a name")]
    UnnamedVariable,
    /// The settings are not those of a container.
    #[error("invalid Docker config: {0}")]
    Settings(String),
    /// The image has no name that the engine could take.
    #[error("invalid Docker config: {0}")]
    Image(BadReference),
    /// The body is about another module than the path.
    #[error("module name in spec does not match URI")]
    OtherName,
}

/// A module as it is to be, checked.
#[derive(Clone)]
pub(crate) struct Specification {
    name: Name,
    image: Reference,
    pull_policy: PullPolicy,
    auth: Option<Value>,
    options: CreateOptions,
    variables: BTreeMap<String, String>,
    /// What is told back to who asked.
    echo: ModuleConfig,
}

impl Specification {
    /// Checks a request.
    pub(crate) fn new(request: ModuleSpecification) -> Result<Self, Invalid> {
        let name = Name::new(&request.name)?;
        match request.r#type.trim() {
            "" => return Err(Invalid::NoType),
            TYPE => {}
            _ => return Err(Invalid::Type(request.r#type)),
        }
        let pull_policy = match &request.image_pull_policy {
            None => PullPolicy::OnCreate,
            Some(name) => PullPolicy::from_name(name).ok_or(Invalid::PullPolicy)?,
        };
        let variables = environment::unique(request.config.env.as_deref().unwrap_or_default())?;
        let Value::Object(mut settings) = request.config.settings else {
            return Err(Invalid::Settings("settings must be an object".to_owned()));
        };
        let auth = auth(&mut settings)?;
        let image = match settings.get("image") {
            Some(Value::String(image)) => Reference::new(image).map_err(Invalid::Image)?,
            Some(_) => return Err(Invalid::Settings("image must be a string".to_owned())),
            None => return Err(Invalid::Settings("missing field `image`".to_owned())),
        };
        for member in ["imageHash", "digest"] {
            match settings.get(member) {
                None | Some(Value::Null | Value::String(_)) => {}
                Some(_) => return Err(Invalid::Settings(format!("{member} must be a string"))),
            }
        }
        let options = CreateOptions::new(settings.get("createOptions").cloned())?;
        let echo = ModuleConfig { settings: Value::Object(settings), env: request.config.env };
        Ok(Self { name, image, pull_policy, auth, options, variables, echo })
    }

    /// Demands that the body is about the module of the path.
    pub(crate) fn named(self, name: &Name) -> Result<Self, Invalid> {
        if self.name == *name { Ok(self) } else { Err(Invalid::OtherName) }
    }

    /// Name of the module.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Its image.
    pub(crate) fn image(&self) -> &Reference {
        &self.image
    }

    /// When the image is pulled.
    pub(crate) fn pull_policy(&self) -> PullPolicy {
        self.pull_policy
    }

    /// Credentials for the registry.
    pub(crate) fn auth(&self) -> Option<&Value> {
        self.auth.as_ref()
    }

    /// A digest is named, which the public runtime does not look at, nor does this one.
    pub(crate) fn names_digest(&self) -> bool {
        self.echo.settings.get("digest").is_some_and(Value::is_string)
    }

    /// What the engine is to make, and the names of the elevated rights that were taken away. Where modules are confined, this looks at folders
    /// of the host on a thread of its own.
    pub(crate) async fn body_in_background(&self, privileges: &Privileges) -> (Value, Vec<&'static str>) {
        if !matches!(privileges, Privileges::Confined(_)) {
            return self.body(privileges);
        }
        let (specification, privileges) = (self.clone(), privileges.clone());
        match tokio::task::spawn_blocking(move || specification.body(&privileges)).await {
            Ok(body) => body,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// As [`body_in_background`](Self::body_in_background); blocks on folders of the host.
    pub(crate) fn body(&self, privileges: &Privileges) -> (Value, Vec<&'static str>) {
        let mut options = self.options.clone();
        let taken = privileges.filter(&self.name, &mut options);
        options.set("Image", self.image.as_str());
        environment::merge(&mut options, &self.variables);
        labels::add(&mut options, self.image.as_str());
        (options.into_value(), taken)
    }

    /// What is told to who asked for it: the request, without credentials for the registry.
    pub(crate) fn details(&self, status: Status) -> ModuleDetails {
        ModuleDetails {
            id: "id".to_owned(),
            name: self.name.as_str().to_owned(),
            r#type: TYPE.to_owned(),
            config: self.echo.clone(),
            status: ModuleStatus {
                start_time: None,
                exit_status: None,
                runtime_status: RuntimeStatus { status, description: None },
            },
        }
    }
}

/// Takes the credentials out of the settings; nobody gets them back.
fn auth(settings: &mut Map<String, Value>) -> Result<Option<Value>, Invalid> {
    let auth = match settings.remove("auth") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(auth)) => auth,
        Some(_) => return Err(Invalid::Settings("auth must be an object".to_owned())),
    };
    for member in ["username", "password", "email", "serveraddress"] {
        if !matches!(auth.get(member), None | Some(Value::Null | Value::String(_))) {
            return Err(Invalid::Settings(format!("auth.{member} must be a string")));
        }
    }
    Ok(Some(Value::Object(auth)))
}
