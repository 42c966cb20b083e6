//! `aziotctl config apply`: from a super-config to services that run with it.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Stop;
use super::source::{Source, Strictness};
use crate::apply::{Applied, ApplyError, apply};
use crate::console;
use crate::failure::Failure;
use crate::finding::Findings;
use crate::generate::{Generated, Surroundings, generate};
use crate::layout::{Layout, Service};
use crate::named_files;
use crate::pending::{Pending, united};
use crate::plan::{Plan, State};
use crate::reprovisioning::Reprovisioning;
use crate::restart::{self, Unfinished};
use crate::settings::Settings;
use crate::users::{self, User, UserError};

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
    #[arg(short, long, value_name = "FILE", verbatim_doc_comment)]
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
    /// Number of a service's user, where that is not looked up; may be repeated
    ///
    /// USER is aziotks, aziotcs, aziotid or aziottpm.
    #[arg(long = "uid", value_name = "USER=N", value_parser = uid, verbatim_doc_comment)]
    uids: Vec<(Service, u32)>,
    /// Host name instead of this machine's, if the super-config has none
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
}

fn uid(text: &str) -> Result<(Service, u32), String> {
    let (user, uid) = text.split_once('=').ok_or("expected USER=N")?;
    let service = Service::ALL
        .into_iter()
        .find(|service| service.user() == user)
        .ok_or_else(|| format!("`{user}` is none of aziotks, aziotcs, aziotid and aziottpm"))?;
    let uid = uid.parse().map_err(|_| format!("`{uid}` is no user id"))?;
    Ok((service, uid))
}

pub(super) fn run(arguments: &ApplyArguments) -> Result<(), Stop> {
    let layout = layout(arguments)?;
    if layout == Layout::Normal && !arguments.dry_run && !arguments.uids.is_empty() {
        let message = "--uid goes with --root, --output-dir or --dry-run; a normal installation has its users";
        return Err(Stop::Usage(message.to_owned()));
    }
    let source = Source::read(arguments.config.as_deref().unwrap_or(&layout.super_config()))?;
    let mut users = None;
    let (checked, report) = source.check(|settings, findings| {
        let found = Users::find(arguments, &layout)?;
        let generated = generated(arguments, &layout, &found, settings, findings)?;
        users = Some(found);
        Ok::<Generated, Failure>(generated)
    });
    source.tell(&report, Strictness::from(arguments.strict))?;
    let (_, generated) = checked.expect("without an error there are settings");
    let generated = generated?;
    let users = users.expect("what was generated has users");
    let mut plan = Plan::new(&generated, &layout, |service| users.owner(service))
        .map_err(|error| Failure::new(error, "report this, it is a fault of aziotctl"))?;
    let pending = Pending::of(&layout);
    if arguments.dry_run {
        show(&plan, &users)?;
        tell_afterwards(&plan, &layout);
        tell_pending(&pending.map_or_else(Vec::new, |pending| pending.services()));
        return Ok(());
    }
    let applied = write(&mut plan, &layout, pending.as_ref())?;
    tell_afterwards(&plan, &layout);
    match &pending {
        None => {}
        Some(pending) if arguments.no_restart => tell_pending(&pending.services()),
        Some(pending) => {
            let earlier = &applied.left_by_earlier_runs;
            if !earlier.is_empty() {
                console::say(format_args!("note: an earlier run did not restart {}; this one does", units(earlier)));
            }
            let chosen = if arguments.restart { Service::ALL.to_vec() } else { plan.changed_services() };
            restart_services(&united(&chosen, earlier), pending)?;
        }
    }
    Ok(())
}

fn layout(arguments: &ApplyArguments) -> Result<Layout, Failure> {
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
        .check_sockets()
        .map_err(|error| Failure::new(error, "choose a folder nearer to the root, such as /tmp/device"))?;
    Ok(layout)
}

/// The services' users.
struct Users {
    all: [(Service, User); 4],
    are_owners: bool,
}

impl Users {
    fn find(arguments: &ApplyArguments, layout: &Layout) -> Result<Self, Failure> {
        if *layout == Layout::Normal && !arguments.dry_run && users::caller().uid != 0 {
            let next = "run it with sudo; or see what it would do with --dry-run, or write into a folder with --root or --output-dir";
            return Err(Failure::new("applying to this machine needs root", next));
        }
        let find = |service: Service| {
            let given = arguments.uids.iter().rev().find(|(of, _)| *of == service).map(|(_, uid)| *uid);
            match (given, layout) {
                (Some(uid), _) => Ok(User { uid, gid: uid }),
                (None, Layout::Relocated(_)) => Ok(users::caller()),
                (None, Layout::Normal | Layout::Staged(_)) => users::look_up(service.user()),
            }
        };
        let found = |user: Result<User, UserError>| user.map_err(|error| unknown_user(error, layout));
        let get = |service| match (service, layout) {
            // Only principals have numbers in them, and these two are nobody's callers.
            (Service::Keyd | Service::Tpmd, Layout::Staged(_)) => Ok(find(service).unwrap_or(users::caller())),
            _ => found(find(service)),
        };
        let [keyd, certd, identityd, tpmd] = Service::ALL.map(|service| get(service).map(|user| (service, user)));
        let all = [keyd?, certd?, identityd?, tpmd?];
        Ok(Self { all, are_owners: *layout == Layout::Normal })
    }

    fn get(&self, service: Service) -> User {
        self.all.iter().find(|(of, _)| *of == service).map(|(_, user)| *user).expect("every service has a user")
    }

    fn owner(&self, service: Service) -> Option<User> {
        self.are_owners.then(|| self.get(service))
    }
}

fn unknown_user(error: UserError, layout: &Layout) -> Failure {
    let next = match (&error, layout) {
        (UserError::Unknown(name), Layout::Normal) => {
            format!(
                "install the package aziot-identity-service, which makes the user; with --dry-run, --uid {name}=N will do"
            )
        }
        (UserError::Unknown(name), _) => format!("give its number with --uid {name}=N"),
        (UserError::Passwd(_) | UserError::Getent { .. }, _) => "mend that and run the command again".to_owned(),
    };
    Failure::new(error, next)
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
    let surroundings = Surroundings {
        layout: layout.clone(),
        hostname,
        certd_uid: users.get(Service::Certd).uid,
        identityd_uid: users.get(Service::Identityd).uid,
    };
    Ok(generate(settings, &surroundings, findings))
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

fn write(plan: &mut Plan, layout: &Layout, pending: Option<&Pending>) -> Result<Applied, Failure> {
    let applied = apply(plan, layout, pending).map_err(|error| {
        let next = match &error {
            ApplyError::FolderMissing(_) => {
                "install the package aziot-identity-service, which makes the folder, or write into a folder with --root or --output-dir"
            }
            ApplyError::Prepare(_) | ApplyError::Folder { .. } => "mend that and run the command again",
            ApplyError::Busy(_) => "wait for it to end and run the command again",
            ApplyError::Partial { .. } => "mend that and run the command again soon: the files do not fit together",
        };
        Failure::new(error, next)
    })?;
    for file in plan.files.iter().filter(|file| file.state != State::Unchanged) {
        let what = if file.path == layout.device_key() { " (the device key of the super-config)" } else { "" };
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

fn tell_afterwards(plan: &Plan, layout: &Layout) {
    if let Some(path) = &plan.stale_device_key {
        console::say(format_args!(
            "warning: {path} holds a device key that nothing refers to any more\nnext: remove it with `rm {path}`",
            path = path.display()
        ));
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
            console::say(format_args!(
                "warning: [provisioning] has changed, but the identity service goes on with the device recorded in {}\nnext: run \
                 `aziotctl system reprovision{uri}` once the service runs with the new settings, so that the device registers with them",
                record.display()
            ));
        }
    }
}

fn units(services: &[Service]) -> String {
    services.iter().map(|service| format!("aziot-{}", service.name())).collect::<Vec<_>>().join(", ")
}

fn tell_pending(services: &[Service]) {
    if !services.is_empty() {
        console::say(format_args!(
            "note: still to be restarted: {}\nnext: run `sudo aziotctl config apply`, which does it",
            units(services)
        ));
    }
}

fn restart_services(services: &[Service], pending: &Pending) -> Result<(), Failure> {
    let outcome = restart::restart(services, pending, |step| {
        let (doing, done) = if step.verb == "stop" { ("Stopping", "Stopped!") } else { ("Starting", "Started!") };
        let outcome = restart::run(step);
        match &outcome {
            Ok(()) => console::say(format_args!("{doing} {}...{done}", step.unit)),
            Err(error) => console::say(format_args!("{doing} {}...failed: {error}", step.unit)),
        }
        outcome
    });
    outcome.map_err(|error| {
        let next = match &error {
            Unfinished::NotBegun(_) | Unfinished::NotNoted(_) => "mend that and run `sudo aziotctl config apply` again",
            Unfinished::Units(_) => {
                "see `journalctl -u aziot-keyd -u aziot-certd -u aziot-identityd -u aziot-tpmd -e`, then run `sudo aziotctl config apply` again: it \
                 makes good what is missing"
            }
        };
        Failure::new(error, next)
    })?;
    console::say("Done.");
    Ok(())
}
