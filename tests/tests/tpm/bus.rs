//! The way to the TPM with somebody on it, who reads along, and who cuts it at any command.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    power_cuts::which,
    world::{AUTH_KEY, ENDORSEMENT_KEY, STORAGE_ROOT_KEY, TpmWorld},
};

/// Stands between the service and the TPM on two ports of its own.
struct Bus {
    port: u16,
    shared: Arc<Mutex<Shared>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// All commands and responses.
    seen: Vec<u8>,
    /// Where and when the way is cut.
    cut: Option<Cut>,
    /// Whether a cut was reached.
    is_cut: bool,
    over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    /// So many commands pass.
    commands: usize,
    /// What becomes of the next one.
    fate: Fate,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It does not reach the TPM, and the way is down.
    Lost,
    /// The TPM carries it out, its response is lost, and the way is down.
    Unanswered,
    /// The TPM carries it out, its response is replaced by this code, and the way stays up.
    AnsweredBy(u32),
}

/// Codes of a TPM or resource manager that has done its work all the same: a failure of the TPM, a wrong password, busy. The library itself
/// sends a command again after the last one.
const ANSWERS: [u32; 3] = [0x101, 0x9a2, 0x922];

impl Bus {
    fn to(port: u16) -> Result<Self> {
        let (own, listeners) = loop {
            let commands = TcpListener::bind("127.0.0.1:0")?;
            let own = commands.local_addr()?.port();
            if let Ok(control) = TcpListener::bind(("127.0.0.1", own.saturating_add(1))) {
                break (own, [commands, control]);
            }
        };
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mut threads = Vec::new();
        for (offset, listener) in (0..).zip(listeners) {
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || serve(&listener, port + offset, offset == 0, &shared)));
        }
        Ok(Self { port: own, shared, threads })
    }

    fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Cuts the way at this command from now on.
    fn cut(&self, commands: usize, fate: Fate) {
        let mut shared = self.shared();
        (shared.cut, shared.is_cut) = (Some(Cut { commands, fate }), false);
    }

    /// Mends the way, and tells whether it was cut.
    fn mend(&self) -> bool {
        let mut shared = self.shared();
        shared.cut = None;
        shared.is_cut
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.shared().over = true;
        // Wakes those that wait for a connection.
        for port in [self.port, self.port + 1] {
            let _ = TcpStream::connect(("127.0.0.1", port));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(listener: &TcpListener, port: u16, is_commands: bool, shared: &Arc<Mutex<Shared>>) {
    for client in listener.incoming() {
        let (over, is_down) = {
            let shared = lock(shared);
            (shared.over, shared.is_cut && shared.cut.is_some())
        };
        if over {
            return;
        }
        let Ok(client) = client else { continue };
        let Some(tpm) = (!is_down).then(|| TcpStream::connect(("127.0.0.1", port)).ok()).flatten() else { continue };
        // The TPM takes one program at a time, so that each connection is served to its end here.
        if is_commands {
            let _ = relay_commands(&client, &tpm, shared);
        } else {
            relay_bytes(client, tpm);
        }
    }
}

/// Passes commands on, one after another.
fn relay_commands(mut client: &TcpStream, mut tpm: &TcpStream, shared: &Mutex<Shared>) -> std::io::Result<()> {
    loop {
        let command = message(client)?;
        let fate = next_fate(&mut lock(shared));
        lock(shared).seen.extend(&command);
        if let Some(Fate::Lost) = fate {
            return Ok(());
        }
        tpm.write_all(&command)?;
        let mut response = message(tpm)?;
        match fate {
            Some(Fate::Lost | Fate::Unanswered) => return Ok(()),
            // The response of a command that failed has no sessions and no parameters.
            Some(Fate::AnsweredBy(code)) => response = [&[0x80, 1, 0, 0, 0, 10][..], &code.to_be_bytes()].concat(),
            None => {}
        }
        lock(shared).seen.extend(&response);
        client.write_all(&response)?;
    }
}

/// What becomes of the next command. One that is answered by an error is the only one of its cut; a way that is down stays down.
fn next_fate(shared: &mut Shared) -> Option<Fate> {
    let cut = shared.cut.as_mut()?;
    if cut.commands > 0 {
        cut.commands -= 1;
        return None;
    }
    let fate = cut.fate;
    shared.is_cut = true;
    if let Fate::AnsweredBy(_) = fate {
        shared.cut = None;
    }
    Some(fate)
}

/// A command or a response: tag, size of the whole, code, content (TPM 2.0 Library, Part 1, "Command/Response Structure").
fn message(mut from: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; 10];
    from.read_exact(&mut message)?;
    let size = u32::from_be_bytes([message[2], message[3], message[4], message[5]]);
    let size = usize::try_from(size).map_err(|_| ErrorKind::InvalidData)?;
    message.resize(size.max(10), 0);
    from.read_exact(&mut message[10..])?;
    Ok(message)
}

fn relay_bytes(mut client: TcpStream, mut tpm: TcpStream) {
    let (Ok(mut from_client), Ok(mut to_tpm)) = (client.try_clone(), tpm.try_clone()) else { return };
    let forth = thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_tpm);
        let _ = to_tpm.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut tpm, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = forth.join();
}

/// A world whose service reaches its TPM over a bus.
fn world(extra: &str) -> Result<(Bus, TpmWorld)> {
    let world = TpmWorld::configured("")?;
    let bus = Bus::to(world.tpm.port())?;
    world.configure(&bus.tcti(), extra)?;
    Ok((bus, world))
}

/// `tpm.md`, section 15: "Secrets cross the bus in the clear."
#[test]
fn who_listens_reads_neither_passwords_nor_keys() -> Result<()> {
    let passwords = "[hierarchy_authorization]\nendorsement = \"hello-endorsement\"\nowner = \"world-owner\"\n";
    let (bus, mut world) = world(passwords)?;
    let _ = world.tpm.tool("tpm2_changeauth", &["-Q", "-c", "endorsement", "hello-endorsement"])?;
    let _ = world.tpm.tool("tpm2_changeauth", &["-Q", "-c", "owner", "world-owner"])?;
    world.start_service()?;
    let [endorsement_key, _] = world.public_keys()?;
    for key in [b"the first key of DPS", b"the other key of DPS"] {
        world.import(key)?;
        world.expect_key(key)?;
    }
    let seen = bus.shared().seen.clone();
    let contains = |bytes: &[u8]| seen.windows(bytes.len()).any(|window| window == bytes);
    ensure!(contains(&endorsement_key[2..]) && contains(b"data"), "nobody listened");
    for secret in ["hello-endorsement", "world-owner", "the first key of DPS", "the other key of DPS"] {
        ensure!(!contains(secret.as_bytes()), "{secret:?} was sent in the clear");
    }
    Ok(())
}

/// An import never loses the old key before the new one is safe: the way to the TPM ends at each single command of an import, carried out
/// or not, and stays down until the call has failed.
#[test]
fn an_import_that_ends_at_any_command_leaves_a_key_that_signs() -> Result<()> {
    imports_that_fail_leave_a_key(&[Fate::Lost, Fate::Unanswered])
}

/// The same where a command is carried out and said to have failed. What the service does next must not rest on what it was told.
#[test]
fn an_import_that_is_told_untruths_leaves_a_key_that_signs() -> Result<()> {
    imports_that_fail_leave_a_key(&ANSWERS.map(Fate::AnsweredBy))
}

fn imports_that_fail_leave_a_key(fates: &[Fate]) -> Result<()> {
    let (bus, mut world) = world("")?;
    world.start_service()?;
    world.import(b"old")?;
    let mut old = b"old".to_vec();
    let mut replaced = 0;
    for &fate in fates {
        for commands in 0.. {
            let new = format!("{commands} {fate:?}").into_bytes();
            let blob = world.challenge(&new)?;
            bus.cut(commands, fate);
            let reply = world.import_blob(&blob)?;
            let is_cut = bus.mend();
            let now = which(&world, &old, &new).with_context(|| format!("command {commands}: {fate:?}"))?;
            if reply.status == 200 {
                assert_eq!(now, new, "what was said to be imported signs");
            }
            replaced += u32::from(now == new && is_cut);
            old = now;
            if !is_cut {
                ensure!(commands > 20, "an import has more than {commands} commands");
                break;
            }
        }
    }
    assert!(replaced > 0, "the last commands only tidy up, and yet the new key was never there");
    // Whatever the last cut left, a whole import ends in the documented state.
    world.import(b"last")?;
    world.expect_key(b"last")?;
    world.stop_service()?;
    let mut handles = world.tpm.handles("persistent")?;
    handles.sort();
    assert_eq!(handles, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    Ok(())
}

/// The same for the first start: keys are made whole, or made again.
#[test]
fn a_first_start_that_ends_at_any_command_is_made_good() -> Result<()> {
    let (bus, mut world) = world("")?;
    world.start_service()?;
    let keys = world.public_keys()?;
    for commands in 0.. {
        world.stop_service()?;
        for handle in world.tpm.handles("persistent")? {
            let _ = world.tpm.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", &handle])?;
        }
        bus.cut(commands, Fate::Unanswered);
        let started = world.start_service();
        let _ = started.and_then(|()| world.public_keys().map(drop));
        let is_cut = bus.mend();
        assert_eq!(world.public_keys()?, keys, "after {commands} commands");
        if !is_cut {
            ensure!(commands > 10, "a first start has more than {commands} commands");
            break;
        }
    }
    Ok(())
}
