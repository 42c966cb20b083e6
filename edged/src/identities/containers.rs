//! The modules that run here, as those ask who tell whom an identity belongs to.

use super::{Containers, Finding};
use crate::modules::Modules;

impl Containers for Modules {
    fn module_names(&self) -> Finding<'_> {
        Box::pin(async { Ok(self.names().await?) })
    }
}
