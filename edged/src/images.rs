//! Images: pulled where the policy says so, remembered when they are used, and removed when nobody has used them for long.

mod collector;
mod pull;
mod schedule;
mod usage;

pub(crate) use collector::Collector;
pub(crate) use pull::Images;
pub(crate) use usage::Use;
