//! Whose files `config apply` writes, and whose numbers it writes into them.

use super::ApplyArguments;
use crate::failure::Failure;
use crate::layout::{Layout, Service};
use crate::product::Product;
use crate::users::{self, User, UserError};

/// The services' users.
pub(super) struct Users {
    all: Vec<(Service, User)>,
    pub(super) are_owners: bool,
}

impl Users {
    pub(super) fn find(product: Product, arguments: &ApplyArguments, layout: &Layout) -> Result<Self, Failure> {
        if *layout == Layout::Normal && !arguments.dry_run && users::caller().uid != 0 {
            let next = "run it with sudo; or see what it would do with --dry-run, or write into a folder with --root or --output-dir";
            return Err(Failure::new("applying to this machine needs root", next));
        }
        let find = |service: Service| {
            let given = arguments.uids.iter().rev().find(|(user, _)| user == service.user()).map(|(_, uid)| *uid);
            match (given, layout) {
                (Some(uid), _) => Ok(User { uid, gid: uid }),
                (None, Layout::Relocated(_)) => Ok(users::caller()),
                (None, Layout::Normal | Layout::Staged(_)) => users::look_up(service.user()),
            }
        };
        let found = |user: Result<User, UserError>| user.map_err(|error| unknown_user(error, product, layout));
        let get = |service| match (service, layout) {
            // Only principals have numbers in them, and these two are nobody's callers.
            (Service::Keyd | Service::Tpmd, Layout::Staged(_)) => Ok(find(service).unwrap_or(users::caller())),
            _ => found(find(service)),
        };
        let users = product.services().iter().map(|&service| Ok((service, get(service)?)));
        let all = users.collect::<Result<_, Failure>>()?;
        Ok(Self { all, are_owners: *layout == Layout::Normal })
    }

    /// `None` for a service that the product has not.
    pub(super) fn get(&self, service: Service) -> Option<User> {
        self.all.iter().find(|(of, _)| *of == service).map(|(_, user)| *user)
    }

    pub(super) fn owner(&self, service: Service) -> Option<User> {
        if self.are_owners { self.get(service) } else { None }
    }
}

fn unknown_user(error: UserError, product: Product, layout: &Layout) -> Failure {
    let next = match (&error, layout) {
        (UserError::Unknown(name), Layout::Normal) => {
            format!(
                "install the package {}, which makes the user; with --dry-run, --uid {name}=N will do",
                product.package()
            )
        }
        (UserError::Unknown(name), _) => format!("give its number with --uid {name}=N"),
        (UserError::Passwd(_) | UserError::Getent { .. }, _) => "mend that and run the command again".to_owned(),
    };
    Failure::new(error, next)
}
