//! What a module may not have where elevated rights are not allowed.
//!
//! The public filter takes away privileged mode, added capabilities, and the capabilities CHOWN and SETUID. Ours leaves those two to whom the create
//! options give them: the stock agent image switches its user by them. Namespaces, devices and folders of the host give as much power, but
//! deployments rely on them; they are taken away only where the configuration says so too.

use std::{
    io,
    path::{Path, PathBuf},
};

use aziot_edged_api::config::Config;
use aziot_http::Endpoint;
use serde_json::{Map, Value};

use super::{CreateOptions, Name, options::strings_of};

/// Capabilities that modules do not have unless they ask for them.
const DROPPED: [&str; 2] = ["CHOWN", "SETUID"];

/// Members of `HostConfig` that give power over the host, or weaken what keeps a container from it, whatever they hold.
const POWERFUL: [&str; 8] = [
    "CgroupParent",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Devices",
    "GroupAdd",
    "MaskedPaths",
    "ReadonlyPaths",
    "SecurityOpt",
];

/// Members of `HostConfig` that name a namespace: of the host, or of another container.
const NAMESPACES: [&str; 6] = ["CgroupnsMode", "IpcMode", "NetworkMode", "PidMode", "UTSMode", "UsernsMode"];

/// Host folders and files whose binding gives power over the host, and everything below them but what stands in [`HARMLESS`]: the system and
/// its programs, what its users run, and what it, the engines and the runtime keep.
const PROTECTED: [&str; 25] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/snap",
    "/sys",
    "/usr",
    "/var/lib/aziot",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/snapd",
    "/var/lib/systemd",
    "/var/run",
    "/var/spool",
];
/// Below protected folders: where the runtime's own sockets are, and what containers share by habit.
const HARMLESS: [&str; 6] =
    ["/var/run/iotedge", "/run/iotedge", "/etc/localtime", "/etc/timezone", "/dev/log", "/dev/shm"];

/// What modules may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Privileges {
    /// Whatever their create options ask for.
    Elevated,
    /// No privileged mode and no added capabilities.
    Filtered,
    /// Nor anything else that gives power over the host.
    Confined(OwnFiles),
}

/// Files of the runtime, which may lie anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnFiles {
    /// Sockets that any module may have.
    shared: Vec<PathBuf>,
    /// Folder of the sockets that one module each may have.
    sockets: PathBuf,
    /// What no module may have otherwise.
    protected: Vec<PathBuf>,
}

impl OwnFiles {
    /// Those of this configuration, with the resolved folder of the modules' sockets.
    pub(crate) fn new(config: &Config, sockets: &Path) -> Self {
        let (connect, listen) = (&config.connect, &config.listen);
        let connected = [&connect.management_uri, &connect.workload_uri].map(|uri| uri.path().to_owned());
        let bound = [&listen.management_uri, &listen.workload_uri].into_iter().filter_map(|uri| match uri {
            Endpoint::Unix(path) => Some(path.clone()),
            Endpoint::Descriptor(_) => None,
        });
        let engine = config.moby_runtime.uri.as_str().strip_prefix("unix://").map(PathBuf::from);
        Self {
            shared: connected.into_iter().chain(bound).collect(),
            sockets: sockets.to_owned(),
            protected: sockets.parent().map(Path::to_owned).into_iter().chain(engine).collect(),
        }
    }
}

impl Privileges {
    /// Takes away what is not allowed to the module, and names the members that were. Looks at folders of the host where modules are confined,
    /// which blocks.
    pub(super) fn filter(&self, module: &Name, options: &mut CreateOptions) -> Vec<&'static str> {
        if *self == Self::Elevated {
            return Vec::new();
        }
        let host = options.object("HostConfig");
        let mut taken = capabilities(host);
        if let Self::Confined(own) = self {
            taken.extend(host_access(host, &Protection::new(module, own)));
        }
        taken
    }
}

fn capabilities(host: &mut Map<String, Value>) -> Vec<&'static str> {
    let mut taken = Vec::new();
    if host.get("Privileged") == Some(&Value::Bool(true)) {
        taken.push("Privileged");
        host.insert("Privileged".to_owned(), Value::Bool(false));
    }
    let wanted: Vec<String> = strings_of(host.get("CapAdd")).map(capability).collect();
    let (spared, dropped): (Vec<&str>, Vec<&str>) =
        DROPPED.into_iter().partition(|name| wanted.iter().any(|wanted| wanted == name));
    if wanted.iter().any(|wanted| !DROPPED.contains(&wanted.as_str())) {
        taken.push("CapAdd");
    }
    if spared.is_empty() {
        host.remove("CapAdd");
    } else {
        host.insert("CapAdd".to_owned(), spared.into());
    }
    let own = strings_of(host.get("CapDrop")).map(str::to_owned);
    let all: Vec<String> = dropped.into_iter().map(str::to_owned).chain(own).collect();
    host.insert("CapDrop".to_owned(), all.into());
    taken
}

/// A capability's name as the engine compares it: without case, with or without `CAP_`.
fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)
}

type Check = fn(&Protection, &Value) -> bool;

fn host_access(host: &mut Map<String, Value>, protection: &Protection) -> Vec<&'static str> {
    let mut taken: Vec<&'static str> = POWERFUL.into_iter().filter(|name| is_given(host.remove(*name))).collect();
    for name in NAMESPACES {
        let foreign = host.get(name).and_then(Value::as_str).is_some_and(is_foreign);
        if foreign {
            host.remove(name);
            taken.push(name);
        }
    }
    for (name, is_protected) in [("Binds", Protection::covers_bind as Check), ("Mounts", Protection::covers_mount)] {
        if let Some(Value::Array(entries)) = host.get_mut(name) {
            let before = entries.len();
            entries.retain(|entry| !is_protected(protection, entry));
            if entries.len() < before {
                taken.push(name);
            }
        }
    }
    // Whatever the other container has, this one would have.
    if is_given(host.remove("VolumesFrom")) {
        taken.push("VolumesFrom");
    }
    if host.get("Runtime").and_then(Value::as_str).is_some_and(|runtime| !runtime.is_empty()) {
        host.remove("Runtime");
        taken.push("Runtime");
    }
    taken
}

fn is_given(value: Option<Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(values)) => !values.is_empty(),
        Some(_) => true,
    }
}

fn is_foreign(namespace: &str) -> bool {
    namespace.eq_ignore_ascii_case("host") || namespace.starts_with("container:") || namespace.starts_with("ns:")
}

/// Which paths of the host a module may not have.
struct Protection {
    /// Sockets that it may have.
    own: Vec<PathBuf>,
    /// With those where they are linked to.
    protected: Vec<PathBuf>,
}

impl Protection {
    fn new(module: &Name, own: &OwnFiles) -> Self {
        let named: Vec<PathBuf> = PROTECTED.iter().map(PathBuf::from).chain(own.protected.iter().cloned()).collect();
        let linked = named.iter().filter_map(|path| path.canonicalize().ok());
        let protected = linked.chain(named.iter().cloned()).collect();
        let socket = own.sockets.join(format!("{module}.sock"));
        Self { own: own.shared.iter().cloned().chain([socket]).collect(), protected }
    }

    /// `host path:path inside[:options]`; a volume's name has no `/` in front.
    fn covers_bind(&self, bind: &Value) -> bool {
        bind.as_str().and_then(|bind| bind.split(':').next()).is_some_and(|path| self.covers(path))
    }

    fn covers_mount(&self, mount: &Value) -> bool {
        let text = |name| mount.get(name).and_then(Value::as_str).unwrap_or_default();
        let bound = text("Type").eq_ignore_ascii_case("bind") && self.covers(text("Source"));
        // A volume of the local driver can be made to bind anything.
        let driver = mount.get("VolumeOptions").is_some_and(|options| !options.is_null());
        bound || driver
    }

    /// Whether binding `path` gives power over the host: it is, holds or lies in what is protected, or leads there.
    fn covers(&self, path: &str) -> bool {
        let Some(path) = normal(path) else { return false };
        // Some of the harmless ones are links of the system's into what is protected.
        if self.own.contains(&path) || HARMLESS.iter().any(|harmless| path == Path::new(harmless)) {
            return false;
        }
        let is_free = |path: &Path| {
            HARMLESS.iter().any(|harmless| path.starts_with(harmless))
                || !self.protected.iter().any(|protected| path.starts_with(protected) || protected.starts_with(path))
        };
        !is_free(&path) || !resolved(&path).is_ok_and(|path| is_free(&path))
    }
}

/// An absolute path without `.`, `..` and double slashes, as engines make it; `None` for the name of a volume.
fn normal(path: &str) -> Option<PathBuf> {
    path.strip_prefix('/')?;
    let mut normal = PathBuf::from("/");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    Some(normal)
}

/// Where the path leads when links are followed. What is not there yet has none.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    for existing in path.ancestors() {
        match existing.canonicalize() {
            // A link to what is not there may lead anywhere later.
            Err(error) if error.kind() == io::ErrorKind::NotFound && existing.symlink_metadata().is_err() => {}
            outcome => {
                let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
                return outcome.map(|existing| existing.join(rest));
            }
        }
    }
    Ok(path.to_owned())
}
