//! Leaves while its request is under way: the connection that it opened is handed to somebody else, and it ends.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
};

use anyhow::{Context as _, Result};
use aziot_test_module::Environment;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Connects to the workload socket and hands that connection over.
pub(crate) fn run(environment: &Environment, to: &Path) -> Result<()> {
    let connection = UnixStream::connect(environment.path("IOTEDGE_WORKLOADURI")?).context("no workload socket")?;
    let taker = UnixStream::connect(to).with_context(|| format!("nobody takes it at {}", to.display()))?;
    let descriptors = [connection.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    message.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&taker, &[IoSlice::new(b"x")], &mut message, SendFlags::empty()).context("could not hand it over")?;
    Ok(())
}
