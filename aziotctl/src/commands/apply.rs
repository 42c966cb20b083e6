//! `config apply`: from a super-config to services that run with it.

mod users;

use std::path::{Path, PathBuf};

use clap::Args;

use self::users::Users;
use super::Stop;
use super::source::{Source, Strictness};
use crate::apply::{Applied, ApplyError, apply};
use crate::console;
use crate::failure::Failure;
use crate::finding::Findings;
use crate::generate::{Generated, Surroundings, generate};
use crate::host_name::{self, Compared, HostNameError};
use crate::layout::{Layout, Service};
use crate::named_files::{self, EdgeFiles};
use crate::pending::{Pending, united};
use crate::plan::{Kind, Plan, State};
use crate::product::Product;
use crate::reprovisioning::Reprovisioning;
use crate::restart::{self, Unfinished};
use crate::settings::{EdgeUris, Settings};

/// Turn the super-config into the services' configuration and restart them
///
/// Needs root, unless the result goes into a folder. Only files that change are written,
/// and only services whose files change are restarted. Services that are down are started,
/// and a restart that an earlier run did not get to is made good.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(verbatim_doc_comment, after_long_help = long_help!(
    "    sudo aziotctl config apply
    sudo aziotctl config apply -c new.toml --strict
    aziotctl config apply --dry-run --uid aziotcs=990 --uid aziotid=991
    aziotctl config apply -c device.toml --root /tmp/device
    aziotctl config apply -c device.toml --output-dir image --uid aziotcs=990 --uid aziotid=991 --hostname pump-7"
))]
pub(super) struct ApplyArguments {
    /// The super-config; `-` reads standard input
    ///
    /// [default: /etc/aziot/config.toml; with --root, that file below DIR]
    #[arg(short, long, alias = "config-file", value_name = "FILE", verbatim_doc_comment)]
    config: Option<PathBuf>,
    /// Make a device of its own in this folder
    ///
    /// Configuration, state, secrets and sockets lie below it and belong to the caller,
    /// who starts the services.
    #[arg(long, value_name = "DIR", conflicts_with = "output_dir", verbatim_doc_comment)]
    root: Option<PathBuf>,
    /// Put the files of a normal installation below this folder
    ///
    /// For images and configuration management.
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    output_dir: Option<PathBuf>,
    /// Print the files that would be written, secrets masked, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Fail on warnings, such as unknown keys, before anything is changed
    #[arg(long)]
    strict: bool,
    /// Leave the services running with what they have; the next run restarts them
    #[arg(long, conflicts_with = "restart")]
    no_restart: bool,
    /// Restart all services, also those whose files do not change
    #[arg(long)]
    restart: bool,
    /// Also on a device with modules, whose runtime loses its rights
    #[arg(long)]
    force: bool,
    /// Number of a service's user, where that is not looked up; may be repeated
    ///
    /// USER is aziotks, aziotcs, aziotid or aziottpm.
    #[arg(long = "uid", value_name = "USER=N", value_parser = uid, verbatim_doc_comment)]
    uids: Vec<(String, u32)>,
    /// Host name instead of this machine's, if the super-config has none
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
}

/// Which users there are depends on the product, which no parser of one argument knows.
fn uid(text: &str) -> Result<(String, u32), String> {
    let (user, uid) = text.split_once('=').ok_or("expected USER=N")?;
    let uid = uid.parse().map_err(|_| format!("`{uid}` is no user id"))?;
    Ok((user.to_owned(), uid))
}

pub(super) fn run(product: Product, arguments: &ApplyArguments) -> Result<(), Stop> {
    check_usage(product, arguments)?;
    let layout = layout(product, arguments)?;
    guard_edge(product, arguments, &layout)?;
    let source = Source::read(arguments.config.as_deref().unwrap_or(&layout.super_config()))?;
    let mut users = None;
    let (checked, report) = source.check(product, |settings, findings| {
        let found = Users::find(product, arguments, &layout)?;
        let generated = generated(arguments, &layout, &found, settings, findings)?;
        users = Some(found);
        Ok::<Generated, Failure>(generated)
    });
    source.tell(&report, Strictness::from(arguments.strict))?;
    let (_, generated) = checked.expect("without an error there are settings");
    let generated = generated?;
    let users = users.expect("what was generated has users");
    let mut plan = Plan::new(&generated, product, &layout, |service| users.owner(service))
        .map_err(|error| Failure::new(error, format!("report this, it is a fault of {}", product.program())))?;
    let pending = Pending::of(&layout, product);
    if arguments.dry_run {
        show(&plan, &users)?;
        tell_afterwards(&plan, product, &layout);
        tell_pending(product, &pending.map_or_else(Vec::new, |pending| pending.services()));
        return Ok(());
    }
    guard_host_name(&generated, product, &layout)?;
    let applied = write(&mut plan, product, &layout, pending.as_ref())?;
    tell_afterwards(&plan, product, &layout);
    match &pending {
        None => {}
        Some(pending) if arguments.no_restart => tell_pending(product, &pending.services()),
        Some(pending) => {
            let earlier = &applied.left_by_earlier_runs;
            if !earlier.is_empty() {
                console::say(format_args!("note: an earlier run did not restart {}; this one does", units(earlier)));
            }
            let changed = plan.changed_services();
            let chosen = if arguments.restart { product.services() } else { &changed };
            restart_services(product, &restart::affected(product, &united(chosen, earlier)), pending)?;
        }
    }
    Ok(())
}

fn check_usage(product: Product, arguments: &ApplyArguments) -> Result<(), Stop> {
    let is_normal = arguments.root.is_none() && arguments.output_dir.is_none();
    let is_known = |user: &str| product.services().iter().any(|service| service.user() == user);
    if let Some((user, _)) = arguments.uids.iter().find(|(user, _)| !is_known(user)) {
        let message = format!("`{user}` is none of {}", product.users());
        return Err(Stop::Usage(message));
    }
    if is_normal && !arguments.dry_run && !arguments.uids.is_empty() {
        let message = "--uid goes with --root, --output-dir or --dry-run; a normal installation has its users";
        return Err(Stop::Usage(message.to_owned()));
    }
    Ok(())
}

fn layout(product: Product, arguments: &ApplyArguments) -> Result<Layout, Failure> {
    let absolute = |folder: &Path| {
        let next = "name the folder by a path that exists or can be made, in UTF-8";
        let path = std::path::absolute(folder).map_err(|error| Failure::new(error, next))?;
        match path.to_str() {
            // It becomes part of configuration files, which are UTF-8.
            Some(_) => Ok(path),
            None => Err(Failure::new(format!("the path {} is not UTF-8", path.display()), next)),
        }
    };
    let layout = match (&arguments.root, &arguments.output_dir) {
        (Some(root), _) => Layout::Relocated(absolute(root)?),
        (None, Some(folder)) => Layout::Staged(absolute(folder)?),
        (None, None) => Layout::Normal,
    };
    layout
        .check_sockets(product.services())
        .map_err(|error| Failure::new(error, "choose a folder nearer to the root, such as /tmp/device"))?;
    Ok(layout)
}

fn generated(
    arguments: &ApplyArguments,
    layout: &Layout,
    users: &Users,
    settings: &Settings,
    findings: &mut Findings,
) -> Result<Generated, Failure> {
    let hostname = match (&settings.hostname, &arguments.hostname) {
        (Some(hostname), _) | (None, Some(hostname)) => hostname.clone(),
        (None, None) => rustix::system::uname().nodename().to_str().map(str::to_owned).map_err(|_| {
            Failure::new("the host name of this machine is not UTF-8", "set `hostname` in the super-config")
        })?,
    };
    if !matches!(layout, Layout::Staged(_)) {
        named_files::check(settings, findings);
    }
    let (edge_uris, edge_files) = match &settings.edge {
        None => (EdgeUris::default(), EdgeFiles::default()),
        Some(edge) => (uris_of_environment()?, named_files::read_for_edge(edge, layout, arguments.dry_run, findings)),
    };
    let uid = |service| users.get(service).map_or(0, |user| user.uid);
    let surroundings = Surroundings {
        layout: layout.clone(),
        hostname,
        certd_uid: uid(Service::Certd),
        identityd_uid: uid(Service::Identityd),
        edged_uid: uid(Service::Edged),
        edge_uris,
        edge_files,
    };
    Ok(generate(settings, &surroundings, findings))
}

/// The places of sockets that a machine's builder may set for all super-configs that name none.
fn uris_of_environment() -> Result<EdgeUris, Failure> {
    fn read<T: TryFrom<String, Error: std::error::Error + 'static>>(name: &str) -> Result<Option<T>, Failure> {
        let next = format!("set {name} to unix:///PATH, or unset it");
        match std::env::var(name) {
            Ok(text) => T::try_from(text).map(Some).map_err(|error| Failure::new(error, next)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(error @ std::env::VarError::NotUnicode(_)) => Err(Failure::new(error, next)),
        }
    }
    Ok(EdgeUris {
        connect_workload: read("IOTEDGE_CONNECT_WORKLOAD_URI")?,
        connect_management: read("IOTEDGE_CONNECT_MANAGEMENT_URI")?,
        listen_workload: read("IOTEDGE_LISTEN_WORKLOAD_URI")?,
        listen_management: read("IOTEDGE_LISTEN_MANAGEMENT_URI")?,
    })
}

/// The module runtime lives on rights that only `iotedge` gives it.
fn guard_edge(product: Product, arguments: &ApplyArguments, layout: &Layout) -> Result<(), Failure> {
    let edged = layout.on_disk(&layout.service_config(Service::Edged));
    if product == Product::Edge || !edged.exists() {
        return Ok(());
    }
    let message = format!(
        "this device has modules ({}), and what {} writes leaves their runtime without rights",
        edged.display(),
        product.program()
    );
    if arguments.force {
        console::say(format_args!("warning: {message}\nnext: run `sudo iotedge config apply` to give them back"));
        return Ok(());
    }
    let next = "run `sudo iotedge config apply` instead; or use --force if the runtime is not used any more";
    Err(Failure::new(message, next))
}

fn guard_host_name(generated: &Generated, product: Product, layout: &Layout) -> Result<(), Failure> {
    if matches!(layout, Layout::Staged(_)) {
        return Ok(());
    }
    let compared = host_name::check(generated, layout).map_err(|error| {
        let next = match &error {
            HostNameError::Modules { .. } => {
                "stop the runtime with `systemctl stop aziot-edged`, remove these containers with `docker rm -f NAME`, and run the command again"
            }
            HostNameError::Unknown { .. } => {
                "start the container engine and run the command again, or keep the host name by setting `hostname` in the super-config"
            }
        };
        Failure::new(error, next)
    })?;
    if compared == Compared::Unreadable && product == Product::Edge {
        console::say(
            "warning: which host name is in force cannot be read; modules that are there already may have certificates for another one",
        );
    }
    Ok(())
}

fn show(plan: &Plan, users: &Users) -> Result<(), Failure> {
    for file in &plan.files {
        let state = match file.state {
            State::New => "new",
            State::Changed => "changed",
            State::Hidden => "hidden from this user",
            State::Unchanged => "unchanged",
        };
        let owner = if users.are_owners { file.service.user() } else { "the caller" };
        let path = file.on_disk.display();
        console::print(format_args!("==> {path} (mode 0600, owner {owner}, {state})\n{}\n", file.presentable))
            .map_err(|error| Failure::new(error, "check where standard output goes to and run the command again"))?;
    }
    Ok(())
}

fn write(plan: &mut Plan, product: Product, layout: &Layout, pending: Option<&Pending>) -> Result<Applied, Failure> {
    let applied = apply(plan, product, layout, pending).map_err(|error| {
        let next = match &error {
            ApplyError::FolderMissing(_) => format!(
                "install the package {}, which makes the folder, or write into a folder with --root or --output-dir",
                product.package()
            ),
            ApplyError::Prepare(_) | ApplyError::Folder { .. } => "mend that and run the command again".to_owned(),
            ApplyError::Busy(_) => "wait for it to end and run the command again".to_owned(),
            ApplyError::Partial { .. } => {
                "mend that and run the command again soon: the files do not fit together".to_owned()
            }
        };
        Failure::new(error, next)
    })?;
    for file in plan.files.iter().filter(|file| file.state != State::Unchanged) {
        let what = match file.kind {
            Kind::Config => "",
            Kind::DeviceKey => " (the device key of the super-config)",
            Kind::MasterKey => " (the imported master encryption key)",
        };
        console::say(format_args!("wrote {}{what}", file.on_disk.display()));
    }
    if plan.changed_services().is_empty() {
        console::say("nothing changed: all files are as the super-config says");
    }
    for remark in &applied.remarks {
        console::say(format_args!("note: {remark}"));
    }
    Ok(applied)
}

fn tell_afterwards(plan: &Plan, product: Product, layout: &Layout) {
    for (kind, path) in &plan.stale_secrets {
        let path = path.display();
        match kind {
            Kind::MasterKey => console::say(format_args!(
                "warning: {path} holds a master encryption key that is not in use any more: modules cannot read what they stored under it\nnext: \
                 set `imported_master_encryption_key = \"{path}\"` to use it again, or remove it with `rm {path}`"
            )),
            Kind::Config | Kind::DeviceKey => console::say(format_args!(
                "warning: {path} holds a device key that nothing refers to any more\nnext: remove it with `rm {path}`"
            )),
        }
    }
    match plan.reprovisioning {
        Reprovisioning::None => {}
        Reprovisioning::AtRestart => console::say(
            "note: [provisioning] has changed: the device registers anew when the identity service restarts; its former identity is not used \
             any more",
        ),
        Reprovisioning::OnRequest => {
            let record = layout.on_disk(&layout.home(Service::Identityd).join("device_info"));
            let uri = match layout {
                Layout::Normal | Layout::Staged(_) => String::new(),
                Layout::Relocated(_) => format!(" --uri {}", layout.endpoint(Service::Identityd)),
            };
            let runtime = match product {
                Product::IdentityService => "",
                Product::Edge => "; then restart the module runtime (`systemctl restart aziot-edged`)",
            };
            console::say(format_args!(
                "warning: [provisioning] has changed, but the identity service goes on with the device recorded in {}\nnext: run \
                 `aziotctl system reprovision{uri}` once the service runs with the new settings, so that the device registers with them{runtime}",
                record.display()
            ));
        }
    }
}

fn units(services: &[Service]) -> String {
    services.iter().map(|service| format!("aziot-{}", service.name())).collect::<Vec<_>>().join(", ")
}

fn tell_pending(product: Product, services: &[Service]) {
    if !services.is_empty() {
        console::say(format_args!(
            "note: still to be restarted: {}\nnext: run `sudo {} config apply`, which does it",
            units(services),
            product.program()
        ));
    }
}

fn restart_services(product: Product, services: &[Service], pending: &Pending) -> Result<(), Failure> {
    let outcome = restart::restart(product, services, pending, |step| {
        let (doing, done) = match (step.verb, step.waits) {
            ("stop", _) => ("Stopping", "Stopped!"),
            (_, true) => ("Starting", "Started!"),
            (_, false) => ("Starting", "under way; `systemctl status` tells when it is ready"),
        };
        let outcome = restart::run(step);
        match &outcome {
            Ok(()) => console::say(format_args!("{doing} {}...{done}", step.unit)),
            Err(error) => console::say(format_args!("{doing} {}...failed: {error}", step.unit)),
        }
        outcome
    });
    outcome.map_err(|error| {
        let next = match &error {
            Unfinished::NotBegun(_) | Unfinished::NotNoted(_) => {
                format!("mend that and run `sudo {} config apply` again", product.program())
            }
            Unfinished::Units(_) => {
                let units: Vec<_> =
                    product.services().iter().map(|service| format!("-u aziot-{}", service.name())).collect();
                format!(
                    "see `journalctl {} -e`, then run `sudo {} config apply` again: it makes good what is missing",
                    units.join(" "),
                    product.program()
                )
            }
        };
        Failure::new(error, next)
    })?;
    console::say("Done.");
    Ok(())
}
