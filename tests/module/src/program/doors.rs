//! Doors: sockets in a folder that is shared with the outside. Whoever connects to one is connected on to a socket of the runtime by this process,
//! and so is the container in the runtime's eyes. The bytes pass as they are.

use std::{
    fs, io,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};
use aziot_test_module::Environment;

/// Opens the doors `workload` and `management` to what the environment names, and further ones (`NAME=PATH`).
pub(crate) fn open(folder: &Path, further: &[String], environment: &Environment) -> Result<()> {
    for (name, variable) in [("workload", "IOTEDGE_WORKLOADURI"), ("management", "IOTEDGE_MANAGEMENTURI")] {
        if environment.find(variable).is_some() {
            door(&folder.join(name), environment.path(variable)?)?;
        }
    }
    for door_and_path in further {
        let (name, path) = door_and_path.split_once('=').with_context(|| format!("{door_and_path} is no NAME=PATH"))?;
        door(&folder.join(name), path.into())?;
    }
    Ok(())
}

fn door(outside: &Path, inside: PathBuf) -> Result<()> {
    // Of the container's last run.
    let _ = fs::remove_file(outside);
    let listener = UnixListener::bind(outside).with_context(|| format!("could not bind {}", outside.display()))?;
    thread::spawn(move || {
        for guest in listener.incoming().flatten() {
            // Without a socket behind it the guest sees an end at once, as of a refused connection.
            if let Ok(host) = UnixStream::connect(&inside) {
                let _ = pass(guest, host);
            }
        }
    });
    Ok(())
}

fn pass(guest: UnixStream, host: UnixStream) -> io::Result<()> {
    let (from_guest, to_host) = (guest.try_clone()?, host.try_clone()?);
    thread::spawn(move || copy(from_guest, to_host));
    thread::spawn(move || copy(host, guest));
    Ok(())
}

/// Until one side ends or breaks; then the other side's half ends as well.
fn copy(mut from: UnixStream, mut to: UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
