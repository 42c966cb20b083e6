//! What a test does with containers behind the runtime's back: makes, looks at, kills and removes them, as an operator with `docker` would.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{Reply, at_once, curl, eventually};

/// For how long a container may take to reach a state.
const PATIENCE: Duration = Duration::from_secs(120);
/// Letters of a container's id.
const CONTAINER_ID: usize = 64;
/// So many containers are removed at the same time.
const AT_ONCE: usize = 8;

/// How a container ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Exit code of its first process.
    pub code: i64,
    /// What it printed on standard output.
    pub output: String,
}

/// One frame of a container's logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// 1: standard output, 2: standard error.
    pub stream: u8,
    /// What was printed.
    pub text: Vec<u8>,
}

/// Takes logs apart: each frame has a head of eight bytes, with the stream first and the length last.
pub fn frames(mut bytes: &[u8]) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at_checked(8).context("half a frame's head")?;
        ensure!((1..=2).contains(&head[0]) && head[1..4] == [0; 3], "no head of a frame: {head:?}");
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let (text, rest) = rest.split_at_checked(usize::try_from(length)?).context("half a frame")?;
        frames.push(Frame { stream: head[0], text: text.to_owned() });
        bytes = rest;
    }
    Ok(frames)
}

/// An engine as its clients reach it: whoever started it, by its socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the engine at this socket, which speaks Docker's API.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Calls it.
    pub fn call(&self, method: &str, target: &str, body: Option<&str>) -> Result<Reply> {
        curl::on_socket(&self.socket, None, method, target, body)
    }

    /// Makes an image of a file system in an archive, by a full name such as `edge.test/module:1`. Returns its id.
    pub fn import(&self, archive: &Path, name: &str) -> Result<String> {
        let (repository, tag) = name.rsplit_once(':').with_context(|| format!("no tag in {name}"))?;
        let mut curl = Command::new("curl");
        curl.args(["--disable", "--silent", "--show-error", "--fail", "--max-time", "180", "--unix-socket"]);
        curl.arg(&self.socket).args(["--header", "content-type: application/x-tar", "--data-binary"]);
        curl.arg(format!("@{}", archive.display()));
        curl.arg(format!("http://engine/images/create?fromSrc=-&repo={repository}&tag={tag}"));
        let output = curl.output().context("could not run curl")?;
        ensure!(output.status.success(), "no import: {}", String::from_utf8_lossy(&output.stderr).trim());
        let answer = String::from_utf8_lossy(&output.stdout);
        let last = answer.lines().last().unwrap_or_default();
        let id = serde_json::from_str::<Value>(last).ok().and_then(|line| line["status"].as_str().map(str::to_owned));
        let id = id.with_context(|| format!("no id in {answer}"))?;
        // Podman takes the archive and leaves the tag.
        let _ = self.call("POST", &format!("/images/{id}/tag?repo={repository}&tag={tag}"), None)?.expect(201)?;
        Ok(id)
    }

    /// What the engine knows of a container; `None` if there is none.
    pub fn inspect(&self, name: &str) -> Result<Option<Value>> {
        let reply = self.call("GET", &format!("/containers/{name}/json"), None)?;
        if reply.status == 404 { Ok(None) } else { reply.expect(200)?.json().map(Some) }
    }

    /// Names of all containers that run.
    pub fn running(&self) -> Result<BTreeSet<String>> {
        self.names("/containers/json")
    }

    /// Names of all containers.
    pub fn containers(&self) -> Result<BTreeSet<String>> {
        self.names("/containers/json?all=true")
    }

    fn names(&self, target: &str) -> Result<BTreeSet<String>> {
        let list = self.call("GET", target, None)?.expect(200)?.json()?;
        let list = list.as_array().context("no list of containers")?;
        let name = |container: &Value| container.pointer("/Names/0")?.as_str().map(|name| name.replace('/', ""));
        Ok(list.iter().filter_map(name).collect())
    }

    /// Pid of a container's first process, as this process sees it.
    pub fn pid(&self, name: &str) -> Result<i32> {
        let container = self.inspect(name)?.with_context(|| format!("no container {name}"))?;
        let pid = container.pointer("/State/Pid").and_then(Value::as_i64).filter(|pid| *pid > 0);
        Ok(i32::try_from(pid.with_context(|| format!("{name} does not run"))?)?)
    }

    /// Makes a container and starts it.
    pub fn run(&self, name: &str, options: &Value) -> Result<()> {
        let _ =
            self.call("POST", &format!("/containers/create?name={name}"), Some(&options.to_string()))?.expect(201)?;
        let _ = self.call("POST", &format!("/containers/{name}/start"), None)?.expect(204)?;
        Ok(())
    }

    /// The same for one that ends by itself; it is removed.
    pub fn run_to_end(&self, name: &str, options: &Value) -> Result<Exit> {
        self.run(name, options)?;
        let exit = self.wait(name)?;
        self.remove(name)?;
        Ok(exit)
    }

    /// Waits for a container to end.
    pub fn wait(&self, name: &str) -> Result<Exit> {
        let code = eventually(&format!("the end of {name}"), PATIENCE, || {
            let container = self.inspect(name)?.with_context(|| format!("no container {name}"))?;
            let state = &container["State"];
            let is_over = state["Status"] == "exited" || state["Status"] == "stopped";
            Ok(is_over.then(|| state["ExitCode"].as_i64()).flatten())
        })?;
        let frames = self.logs(name)?;
        let output = frames.iter().filter(|frame| frame.stream == 1).flat_map(|frame| frame.text.clone());
        Ok(Exit { code, output: String::from_utf8_lossy(&output.collect::<Vec<_>>()).into_owned() })
    }

    /// All that a container printed.
    pub fn logs(&self, name: &str) -> Result<Vec<Frame>> {
        let mut curl = Command::new("curl");
        curl.args(["--disable", "--silent", "--show-error", "--fail", "--max-time", "180", "--unix-socket"]);
        curl.arg(&self.socket).arg(format!("http://engine/containers/{name}/logs?stdout=true&stderr=true"));
        let output = curl.output().context("could not run curl")?;
        ensure!(output.status.success(), "no logs of {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        frames(&output.stdout).with_context(|| format!("logs of {name}"))
    }

    /// Runs a command in a container and waits for it. Returns its exit code and what it printed on standard output.
    pub fn execute(&self, name: &str, command: &[&str]) -> Result<Exit> {
        let options = json!({ "Cmd": command, "AttachStdout": true, "AttachStderr": true });
        let reply = self.call("POST", &format!("/containers/{name}/exec"), Some(&options.to_string()))?;
        let id = reply.expect(201)?.text("/Id")?;
        let mut curl = Command::new("curl");
        curl.args([
            "--disable",
            "--silent",
            "--show-error",
            "--max-time",
            "180",
            "--header",
            "content-type: application/json",
        ]);
        curl.arg("--unix-socket").arg(&self.socket).args(["--data-binary", r#"{"Detach":false,"Tty":false}"#]);
        let output = curl.arg(format!("http://engine/exec/{id}/start")).output().context("could not run curl")?;
        ensure!(output.status.success(), "no end of {command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        let printed = frames(&output.stdout)?.into_iter().filter(|frame| frame.stream == 1);
        let printed: Vec<u8> = printed.flat_map(|frame| frame.text).collect();
        let code = eventually("an exit code", PATIENCE, || {
            Ok(self.call("GET", &format!("/exec/{id}/json"), None)?.expect(200)?.json()?["ExitCode"].as_i64())
        })?;
        Ok(Exit { code, output: String::from_utf8_lossy(&printed).into_owned() })
    }

    /// SIGKILL to a container's first process, past the engine.
    pub fn kill_container(&self, name: &str) -> Result<()> {
        let pid = Pid::from_raw(self.pid(name)?).context("no pid")?;
        kill_process(pid, Signal::KILL).with_context(|| format!("could not kill {name}"))
    }

    /// Removes a container, running or not.
    pub fn remove(&self, name: &str) -> Result<()> {
        let reply = self.call("DELETE", &format!("/containers/{name}?force=true&v=true"), None)?;
        // Podman tells what it removed.
        ensure!([200, 204, 404].contains(&reply.status), "{name} is not removed: {reply:?}");
        Ok(())
    }

    /// Removes all containers.
    pub fn remove_all(&self) -> Result<()> {
        let names: Vec<String> = self.containers()?.into_iter().collect();
        for some in names.chunks(AT_ONCE) {
            at_once(some, |name| self.remove(name))?;
        }
        let left = self.containers()?;
        if !left.is_empty() {
            bail!("these stay: {left:?}");
        }
        Ok(())
    }
}

/// Ends what an engine that has ended leaves: processes of containers that it forgot, and those that watch over containers, Podman's for minutes. They are
/// known by the engine's folder, which is nobody else's. A watcher may start one more process on its way out, so it looks again until there is none.
pub(super) fn end_left_over(folder: &Path) {
    // What cannot be ended in that time cannot be ended here.
    let _ = eventually("the end of what an engine left", PATIENCE, || Ok((end_round(folder) == 0).then_some(())));
}

/// Returns how many there were.
fn end_round(folder: &Path) -> usize {
    let entries = ["data/containers", "data/overlay-containers"].map(|kept| fs::read_dir(folder.join(kept)));
    let names =
        entries.into_iter().flatten().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut containers: Vec<String> = names.filter(|name| name.len() == CONTAINER_ID).collect();
    let own = format!("{}/", folder.display());
    let processes = processes();
    let is_watcher = |line: &str| line.contains(&own);
    // Watchers name their container; its folder may have been in a file system that is gone.
    for (_, line, _) in processes.iter().filter(|(_, line, _)| is_watcher(line)) {
        let is_id = |word: &&str| word.len() == CONTAINER_ID && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        containers.extend(line.split('\0').filter(is_id).map(str::to_owned));
    }
    let mut ended = 0;
    for (pid, line, groups) in &processes {
        // The dead whom nobody has reaped have no command line.
        let is_contained = !line.is_empty() && containers.iter().any(|id| groups.contains(id.as_str()));
        if is_watcher(line) || is_contained {
            let _ = kill_process(*pid, Signal::KILL);
            ended += 1;
        }
    }
    ended
}

/// Pid, command line and cgroups of all processes but this one.
fn processes() -> Vec<(Pid, String, String)> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let look = |process: fs::DirEntry| {
        let pid = process.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        Some((pid, String::from_utf8_lossy(&line).into_owned(), groups))
    };
    all.filter_map(look).filter(|(pid, ..)| *pid != rustix::process::getpid()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart_and_halves_are_errors() {
        let bytes = b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x01!";
        let expected = [Frame { stream: 1, text: b"hi".to_vec() }, Frame { stream: 2, text: b"!".to_vec() }];
        assert_eq!(frames(bytes).unwrap(), expected);
        for cut in [1, 7, 9, 11, 18] {
            assert!(frames(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(frames(b"plain text of a terminal").is_err());
    }
}
