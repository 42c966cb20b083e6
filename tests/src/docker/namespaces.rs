//! A network and a mount table of the test's own, for an engine: its bridges, addresses, firewall rules and mounts meet nobody else's, and
//! whatever it forgets is gone with its last process.
//!
//! Takes root. Not shared: processes and control groups, by which the runtime finds out who calls it.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Process, Ready, Restart, tied};

/// The name spaces. They last until this is dropped and nobody is in them any more.
pub struct Namespaces {
    // Its only work is to be there.
    holder: Process,
}

impl Namespaces {
    /// Makes them, with these mounts: `(file system's options, folder)`, each a file system in memory.
    pub fn make(folder: &Path, mounts: &[(&str, PathBuf)]) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "an engine of the test's own takes root");
        let ready = folder.join("namespaces");
        let mut steps = vec!["ip link set lo up".to_owned()];
        for (options, folder) in mounts {
            let folder = folder.display();
            steps.push(format!("mkdir -p {folder} && mount -t tmpfs -o {options} tmpfs {folder}"));
        }
        steps.push("touch \"$0\" && exec sleep infinity".to_owned());
        let script = steps.join(" && ");
        let file = ready.clone();
        let command = move || {
            let mut command = tied();
            command.args(["unshare", "--net", "--mount", "sh", "-c", &script]).arg(&file);
            command
        };
        let log = folder.join("namespaces.log");
        let holder = Process::start("namespaces", &log, Restart::Never, &Ready::File(ready), command)?;
        Ok(Self { holder })
    }

    /// The command that runs a program in there: its name and arguments are to be added.
    pub fn enter(&self) -> Result<impl Fn() -> Command + Send + use<>> {
        let own = format!("/proc/{}/ns", self.holder.pid()?);
        Ok(move || {
            let mut command = tied();
            command.arg("nsenter").arg(format!("--net={own}/net")).arg(format!("--mount={own}/mnt"));
            command
        })
    }

    /// Listens on a port of the loopback in there; 0: any.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let network = format!("/proc/{}/ns/net", self.holder.pid()?);
        // A socket stays where it was made; the thread that goes there ends there.
        let bound = thread::spawn(move || -> Result<TcpListener> {
            let network = File::open(&network).with_context(|| format!("could not open {network}"))?;
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .context("could not enter the network; are you root?")?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("could not bind port {port}"))
        });
        bound.join().map_err(|_| anyhow!("the thread that binds panicked"))?
    }

    /// Leads from a port of the loopback in there to the same port out here.
    pub fn forward(&self, port: u16) -> Result<Forward> {
        let listener = self.listen(port)?;
        let is_ending = Arc::new(AtomicBool::new(false));
        let (ending, own) = (Arc::clone(&is_ending), listener.try_clone()?);
        thread::spawn(move || {
            for guest in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    return;
                }
                let host = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
                // A port where nobody listens looks like a connection that is closed at once.
                if let (Ok(guest), Ok(host)) = (guest, host) {
                    let _ = pass(guest, host);
                }
            }
        });
        Ok(Forward { listener: own, is_ending })
    }
}

/// A forwarded port. Dropping it closes it.
pub struct Forward {
    listener: TcpListener,
    is_ending: Arc<AtomicBool>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::SeqCst);
        // Wakes who accepts.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn pass(guest: TcpStream, host: TcpStream) -> io::Result<()> {
    let (from_guest, to_host) = (guest.try_clone()?, host.try_clone()?);
    thread::spawn(move || copy(from_guest, to_host));
    thread::spawn(move || copy(host, guest));
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
