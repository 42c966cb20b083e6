//! The labels by which a module is known: to this runtime, and to the agent.

use serde_json::Value;

use super::CreateOptions;
use crate::docker::{OWNER, OWNER_LABEL};

/// The image as it was asked for; the agent compares it with the deployment.
pub(crate) const ORIGINAL_IMAGE: &str = "net.azure-devices.edge.original-image";

/// Adds the labels of a module; they replace those of the same name.
pub(super) fn add(options: &mut CreateOptions, image: &str) {
    let labels = options.object("Labels");
    labels.insert(OWNER_LABEL.to_owned(), Value::from(OWNER));
    labels.insert(ORIGINAL_IMAGE.to_owned(), Value::from(image));
}
