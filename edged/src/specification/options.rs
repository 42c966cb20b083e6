//! Create options in the engine's format. Members that the runtime looks at are spelt exactly and have the type that they must have; all others,
//! on every level, stay as they came.

use serde_json::{Map, Value};

use super::{Invalid, spelling};

const TOP: &[(&str, Kind)] = &[
    ("Hostname", Kind::String),
    ("Domainname", Kind::Any),
    ("User", Kind::Any),
    ("Env", Kind::Strings),
    ("Cmd", Kind::Strings),
    ("Entrypoint", Kind::Strings),
    ("Image", Kind::String),
    ("Volumes", Kind::Object),
    ("Labels", Kind::StringMap),
    ("HostConfig", Kind::Object),
    ("NetworkingConfig", Kind::Object),
];

const HOST_CONFIG: &[(&str, Kind)] = &[
    ("Memory", Kind::Integer),
    ("Binds", Kind::Strings),
    ("CapAdd", Kind::Strings),
    ("CapDrop", Kind::Strings),
    ("ExtraHosts", Kind::Strings),
    ("PortBindings", Kind::Object),
    ("Mounts", Kind::Array),
    ("Privileged", Kind::Bool),
    // Those below are for the filter of elevated rights, which takes them away whatever they hold.
    ("CgroupParent", Kind::Any),
    ("CgroupnsMode", Kind::Any),
    ("DeviceCgroupRules", Kind::Any),
    ("DeviceRequests", Kind::Any),
    ("Devices", Kind::Any),
    ("GroupAdd", Kind::Any),
    ("IpcMode", Kind::Any),
    ("MaskedPaths", Kind::Any),
    ("NetworkMode", Kind::Any),
    ("PidMode", Kind::Any),
    ("ReadonlyPaths", Kind::Any),
    ("Runtime", Kind::Any),
    ("SecurityOpt", Kind::Any),
    ("Sysctls", Kind::Any),
    ("UTSMode", Kind::Any),
    ("UsernsMode", Kind::Any),
    ("VolumesFrom", Kind::Any),
];

const MOUNT: &[(&str, Kind)] = &[
    ("Target", Kind::String),
    ("Source", Kind::String),
    ("Type", Kind::String),
    ("ReadOnly", Kind::Bool),
    ("VolumeOptions", Kind::Any),
];
const PORT: &[(&str, Kind)] = &[("HostPort", Kind::String)];
const NETWORKING: &[(&str, Kind)] = &[("EndpointsConfig", Kind::Object)];
const ENDPOINT: &[(&str, Kind)] = &[("NetworkID", Kind::String)];

/// JSON type of a member. Each may be null or absent as well.
#[derive(Clone, Copy)]
enum Kind {
    String,
    Integer,
    Bool,
    Object,
    Array,
    Strings,
    StringMap,
    /// The engine judges.
    Any,
}

/// Create options that the runtime can work on. No `Debug`: they hold environments.
#[derive(Clone, Default)]
pub(crate) struct CreateOptions(Map<String, Value>);

impl CreateOptions {
    /// Checks create options; absent ones are empty.
    pub(crate) fn new(options: Option<Value>) -> Result<Self, Invalid> {
        let place = "createOptions";
        let mut options = match options {
            None => Map::new(),
            Some(Value::Object(options)) => options,
            Some(_) => return Err(wrong(place, "an object")),
        };
        check(&mut options, TOP, place)?;
        for entry in strings_of(options.get("Env")) {
            if entry.is_empty() || entry.starts_with('=') {
                return Err(Invalid::UnnamedVariable);
            }
        }
        if let Some(Value::Object(host)) = options.get_mut("HostConfig") {
            check_host_config(host)?;
        }
        if let Some(Value::Object(networking)) = options.get_mut("NetworkingConfig") {
            let place = "createOptions.NetworkingConfig";
            check(networking, NETWORKING, place)?;
            for (name, endpoint) in children(networking.get_mut("EndpointsConfig")) {
                check_object(endpoint, ENDPOINT, &format!("{place}.EndpointsConfig.{name}"))?;
            }
        }
        Ok(Self(options))
    }

    /// Replaces a member.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// The texts of an array of them.
    pub(crate) fn strings(&self, name: &str) -> Vec<String> {
        strings_of(self.0.get(name)).map(str::to_owned).collect()
    }

    /// A member that is an object; it is made if it is not there.
    pub(crate) fn object(&mut self, name: &str) -> &mut Map<String, Value> {
        child(&mut self.0, name)
    }

    /// A member that is not an object, or is one that may be absent.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Adds a bind (`host path:path inside[:options]`) unless it is there.
    pub(crate) fn add_bind(&mut self, bind: &str) {
        let binds = self.object("HostConfig").entry("Binds").or_insert(Value::Null);
        if let Value::Array(binds) = binds {
            if !binds.iter().any(|present| present == bind) {
                binds.push(bind.into());
            }
        } else {
            *binds = Value::Array(vec![bind.into()]);
        }
    }

    /// Connects the container to a network unless it is connected to that one.
    pub(crate) fn add_network(&mut self, network: &str) {
        let endpoints = child(self.object("NetworkingConfig"), "EndpointsConfig");
        endpoints.entry(network).or_insert_with(|| Value::Object(Map::new()));
    }

    /// The JSON.
    pub(crate) fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

/// A member that is an object, made if there is none.
pub(super) fn child<'a>(parent: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let member = parent.entry(name).or_insert(Value::Null);
    if !member.is_object() {
        *member = Value::Object(Map::new());
    }
    member.as_object_mut().expect("it was made an object")
}

/// The texts of an array of them; nothing for anything else.
pub(super) fn strings_of(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn check_host_config(host: &mut Map<String, Value>) -> Result<(), Invalid> {
    let place = "createOptions.HostConfig";
    check(host, HOST_CONFIG, place)?;
    for (port, bindings) in children(host.get_mut("PortBindings")) {
        let place = format!("{place}.PortBindings.{port}");
        match bindings {
            Value::Null => {}
            Value::Array(bindings) => {
                for binding in bindings {
                    check_object(binding, PORT, &place)?;
                }
            }
            _ => return Err(wrong(&place, "an array")),
        }
    }
    if let Some(Value::Array(mounts)) = host.get_mut("Mounts") {
        for mount in mounts {
            check_object(mount, MOUNT, &format!("{place}.Mounts"))?;
        }
    }
    Ok(())
}

fn check_object(value: &mut Value, members: &[(&'static str, Kind)], place: &str) -> Result<(), Invalid> {
    match value {
        Value::Object(object) => check(object, members, place),
        Value::Null => Ok(()),
        _ => Err(wrong(place, "an object")),
    }
}

fn check(object: &mut Map<String, Value>, members: &[(&'static str, Kind)], place: &str) -> Result<(), Invalid> {
    let names: Vec<&'static str> = members.iter().map(|(name, _)| *name).collect();
    spelling::correct(object, &names, place)?;
    for (name, kind) in members {
        match object.get(*name) {
            None | Some(Value::Null) => {}
            Some(value) => kind.check(value).map_err(|expected| wrong(&format!("{place}.{name}"), expected))?,
        }
    }
    Ok(())
}

impl Kind {
    fn check(self, value: &Value) -> Result<(), &'static str> {
        let (fits, expected) = match self {
            Self::String => (value.is_string(), "a string"),
            Self::Integer => (value.is_i64(), "an integer"),
            Self::Bool => (value.is_boolean(), "a boolean"),
            Self::Object => (value.is_object(), "an object"),
            Self::Array => (value.is_array(), "an array"),
            Self::Strings => {
                let all = value.as_array().is_some_and(|texts| texts.iter().all(Value::is_string));
                (all, "an array of strings")
            }
            Self::StringMap => {
                let all = value.as_object().is_some_and(|texts| texts.values().all(Value::is_string));
                (all, "an object of strings")
            }
            Self::Any => (true, ""),
        };
        if fits { Ok(()) } else { Err(expected) }
    }
}

fn children(value: Option<&mut Value>) -> impl Iterator<Item = (&String, &mut Value)> {
    value.and_then(Value::as_object_mut).into_iter().flatten()
}

/// The value itself is not quoted: it may be a secret in the wrong place.
fn wrong(place: &str, expected: &str) -> Invalid {
    Invalid::Settings(format!("{place} must be {expected}"))
}
