//! HTTP as a user speaks it: with curl. Secrets go in by standard input, never through arguments that others can list.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON in {self:?}"))
    }

    /// The `message` of an error.
    #[must_use]
    pub fn message(&self) -> String {
        self.json().ok().and_then(|body| body["message"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// A text member of the body.
    pub fn text(&self, pointer: &str) -> Result<String> {
        let body = self.json()?;
        let text = body.pointer(pointer).and_then(Value::as_str);
        text.map(str::to_owned).with_context(|| format!("no text at {pointer} in {self:?}"))
    }

    /// The answer itself, if it has this status.
    pub fn expect(self, status: u16) -> Result<Self> {
        if self.status != status {
            bail!("expected status {status}, got {self:?}");
        }
        Ok(self)
    }
}

/// Calls a service on its socket. A body is sent as JSON. `uid` runs curl as another user, which takes root.
pub fn on_socket(socket: &Path, uid: Option<u32>, method: &str, target: &str, body: Option<&str>) -> Result<Reply> {
    let mut command = base();
    command.arg("--unix-socket").arg(socket).args(["--request", method]);
    if body.is_some() {
        command.args(["--header", "content-type: application/json", "--data-binary", "@-"]);
    }
    command.arg(format!("http://device{target}"));
    if let Some(uid) = uid {
        // The group stays: it opens the socket, and the uid decides.
        command.uid(uid);
    }
    // A daemon that is being started again is waited for. Not by curl's --retry, which would repeat a 500 too.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match run(&mut command, body.unwrap_or_default()) {
            Err(error) if error.is::<NoAnswer>() && Instant::now() < deadline => thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

/// Calls the cloud over TLS, trusting `roots` alone; `authorization` is the value of that header.
pub fn over_tls(roots: &Path, authorization: &str, method: &str, url: &str, body: &str) -> Result<Reply> {
    let mut command = base();
    command.arg("--cacert").arg(roots).args(["--request", method, "--header", "@-", "--data-binary", body]).arg(url);
    run(&mut command, &format!("authorization: {authorization}\n"))
}

/// Nobody listened, or the connection ended before an answer came.
#[derive(Debug)]
pub struct NoAnswer(String);

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "no answer: {}", self.0)
    }
}

impl std::error::Error for NoAnswer {}

/// Exit codes of curl: no connection, empty reply, could not send, could not receive.
const NO_ANSWER: [i32; 4] = [7, 52, 55, 56];
/// How long a call waits for a daemon that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

fn base() -> Command {
    let mut command = Command::new("curl");
    // No user's .curlrc, no proxy: everything is on this machine.
    command.args(["--disable", "--silent", "--show-error", "--max-time", "90", "--noproxy", "*"]);
    command.args(["--write-out", "\\n%{http_code}"]);
    command
}

fn run(command: &mut Command, input: &str) -> Result<Reply> {
    let output = feed(command, input)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.code().is_some_and(|code| NO_ANSWER.contains(&code)) {
            return Err(NoAnswer(message).into());
        }
        bail!("curl failed: {message}");
    }
    let text = String::from_utf8(output.stdout).context("curl printed no text")?;
    let (body, status) = text.rsplit_once('\n').context("curl printed no status")?;
    Ok(Reply { status: status.parse().context("curl printed no status")?, body: body.to_owned() })
}

/// Runs a program with this standard input.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().display().to_string();
    let mut child = command.spawn().with_context(|| format!("could not run {program}; is it installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading tells why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().with_context(|| format!("could not wait for {program}"))
}
