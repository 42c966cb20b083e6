//! A TPM 2.0 in software: swtpm on two ports of this machine, with its state in a folder, and tpm2-tools to look into it.
//!
//! Like a TPM without a resource manager it serves one program at a time: the others wait until that one disconnects.

use std::{
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::TcpListener,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::process::{Process, Ready, Restart};

/// A running swtpm; killed when dropped.
pub struct SoftwareTpm {
    folder: PathBuf,
    port: u16,
    process: Option<Process>,
}

/// Ports may be taken between the look and the start.
const ATTEMPTS: usize = 20;
/// How long a TPM that is started again waits for its ports, and the pause between two looks.
const PORT_PATIENCE: Duration = Duration::from_secs(20);
const PORT_PAUSE: Duration = Duration::from_millis(50);

impl SoftwareTpm {
    /// Starts a TPM with its state in `folder`, which is made. One that is there is taken over.
    pub fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("state")).with_context(|| format!("could not make {}", folder.display()))?;
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            let port = free_ports()?;
            match run(folder, port) {
                Ok(process) => return Ok(Self { folder: folder.to_owned(), port, process: Some(process) }),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no attempt was made")?)
    }

    /// What stands in a configuration as `tcti`.
    #[must_use]
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Port of its commands; the control port is the next one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a power cut would. Its state stays.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the TPM is not running")?.kill()
    }

    /// Starts it again, on the same ports.
    pub fn resume_power(&mut self) -> Result<()> {
        let deadline = Instant::now() + PORT_PATIENCE;
        // Another test may have looked at them just now.
        self.process = Some(loop {
            match run(&self.folder, self.port) {
                Ok(process) => break process,
                Err(_) if Instant::now() < deadline && !are_free(self.port) => std::thread::sleep(PORT_PAUSE),
                Err(error) => return Err(error),
            }
        });
        Ok(())
    }

    /// A power cut of the TPM alone: what is loaded is lost, what is persistent stays.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.resume_power()
    }

    /// Puts another TPM in its place, that has never been used.
    pub fn replace(&mut self) -> Result<()> {
        self.kill()?;
        let state = self.folder.join("state");
        fs::remove_dir_all(&state).and_then(|()| fs::create_dir(&state)).context("could not empty the TPM")?;
        self.resume_power()
    }

    /// Lets it lose power as often as a test wants. A TPM counts each loss after the use of a key like DPS's as a wrong password, and refuses
    /// such keys after a few. Only while no other program is connected.
    pub fn allow_power_cuts(&self) -> Result<()> {
        let limits = ["--max-tries=1000000", "--recovery-time=1", "--lockout-recovery-time=1"];
        self.tool("tpm2_dictionarylockout", &[&["--setup-parameters"], &limits[..]].concat()).map(|_| ())
    }

    /// Stops it in the middle of what it does: it neither answers nor closes its connection.
    pub fn hang(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the TPM is not running")?.signal(signal)
    }

    /// Runs a program of tpm2-tools on it, in the TPM's folder, and returns what it printed. Only while no other program is connected.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).env("TPM2TOOLS_TCTI", self.tcti()).current_dir(&self.folder).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("could not run {program}; it is in tpm2-tools"))?;
        if !output.status.success() {
            bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        String::from_utf8(output.stdout).with_context(|| format!("{program} printed no text"))
    }

    /// Handles of one kind (`persistent`, `transient`, `loaded-session`), in hexadecimal. Only while no other program is connected.
    pub fn handles(&self, kind: &str) -> Result<Vec<String>> {
        let list = self.tool("tpm2_getcap", &[&format!("handles-{kind}")])?;
        Ok(list.lines().filter_map(|line| line.strip_prefix("- ")).map(str::to_lowercase).collect())
    }
}

/// Where ports are looked for: below those that a kernel gives to outgoing connections, so that a TPM finds its own again after a restart.
const PORTS: RangeInclusive<u16> = 15_000..=30_000;

/// A port that is free together with the next one, which is where the library looks for the control port.
fn free_ports() -> Result<u16> {
    for _ in 0..100 {
        let chance = RandomState::new().build_hasher().finish();
        let offset = u16::try_from(chance % u64::from(PORTS.end() - PORTS.start())).context("a remainder")?;
        let port = PORTS.start() + offset;
        if are_free(port) {
            return Ok(port);
        }
    }
    bail!("no two free ports side by side")
}

/// Whether both ports of a TPM can be had.
fn are_free(port: u16) -> bool {
    [port, port + 1].into_iter().all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
}

fn run(folder: &Path, port: u16) -> Result<Process> {
    let state = folder.join("state");
    let pid = folder.join("swtpm.pid");
    let command = {
        let pid = pid.clone();
        move || {
            let mut command = Command::new("swtpm");
            command.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"]);
            command.arg("--tpmstate").arg(format!("dir={}", state.display()));
            command.arg("--server").arg(format!("type=tcp,port={port},bindaddr=127.0.0.1"));
            command.arg("--ctrl").arg(format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1));
            command.arg("--pid").arg(format!("file={}", pid.display()));
            command.stdin(Stdio::null());
            command
        }
    };
    Process::start("swtpm", &folder.join("swtpm.log"), Restart::Never, &Ready::File(pid), command)
        .context("could not start a TPM in software; swtpm is in Debian's package of that name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_stays_over_a_restart_and_not_over_a_replacement() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut tpm = SoftwareTpm::start(folder.path())?;
        let _ = tpm.tool("tpm2_createprimary", &["-Q", "-C", "o", "-c", "key.ctx"])?;
        let _ = tpm.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "key.ctx", "0x81000007"])?;
        tpm.restart()?;
        assert_eq!(tpm.handles("persistent")?, ["0x81000007"]);
        assert!(tpm.handles("transient")?.is_empty());
        tpm.replace()?;
        assert!(tpm.handles("persistent")?.is_empty());
        Ok(())
    }
}
