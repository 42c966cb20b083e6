//! Programs whose output goes into a bundle, each with a limit of time.

use std::{io, mem, process::Stdio, time::Duration};

use hyper::body::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::{Instant, timeout_at},
};

use super::archive::Archive;

/// Output that is kept back until it is known how the program ends: errors are short.
const KEPT_BACK: usize = 64 * 1024;
/// What a program may say about its failure.
const COMPLAINT: usize = 64 * 1024;

/// Names of the entry for a program's output.
pub(super) struct Names<'a> {
    /// Where all went well, or nobody can tell any more.
    pub(super) output: &'a str,
    /// For what it says when it fails; absent: behind its output.
    pub(super) complaint: Option<&'a str>,
    /// Where it could not be run.
    pub(super) not_run: &'a str,
}

/// Runs a program and puts what it writes into the archive.
pub(super) async fn run(archive: &mut Archive, mut command: Command, names: Names<'_>, limit: Duration) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let program = command.as_std().get_program().display().to_string();
            archive.entry(names.not_run).await;
            return archive.bytes(Bytes::from(format!("could not run {program}: {error}\n"))).await;
        }
    };
    let deadline = Instant::now() + limit;
    let (Some(output), Some(complaint)) = (child.stdout.take(), child.stderr.take()) else { return };
    let mut sink = Sink { archive, name: names.output, kept_back: Vec::with_capacity(KEPT_BACK), is_open: false };
    let all = async {
        let complaint = complaint_of(complaint);
        let (_, complaint) = tokio::join!(sink.fill(output), complaint);
        (child.wait().await, complaint)
    };
    let (mut complaint, is_failure) = match timeout_at(deadline, all).await {
        Ok((Ok(status), complaint)) => (complaint, !status.success()),
        Ok((Err(error), _)) => (format!("it is not known how it ended: {error}\n").into(), true),
        Err(_) => (format!("it did not end within {} s\n", limit.as_secs()).into(), true),
    };
    // A program that did not end is killed when `child` goes.
    match names.complaint {
        Some(name) if is_failure => {
            if complaint.is_empty() {
                complaint = Bytes::from_static(b"it failed without a word\n");
            }
            if sink.is_open {
                sink.flush().await;
            }
            archive.entry(name).await;
            archive.bytes(complaint).await;
        }
        Some(_) => sink.flush().await,
        None => {
            sink.flush().await;
            archive.bytes(complaint).await;
        }
    }
}

/// The entry for a program's output, which is begun when there is more of it than a failure has, or at the end.
struct Sink<'a> {
    archive: &'a mut Archive,
    name: &'a str,
    kept_back: Vec<u8>,
    is_open: bool,
}

impl Sink<'_> {
    async fn fill(&mut self, mut output: impl AsyncRead + Unpin) -> io::Result<()> {
        while output.read_buf(&mut self.kept_back).await? > 0 {
            if self.kept_back.len() >= KEPT_BACK {
                self.flush().await;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) {
        if !self.is_open {
            self.is_open = true;
            self.archive.entry(self.name).await;
        }
        let bytes = mem::replace(&mut self.kept_back, Vec::with_capacity(KEPT_BACK));
        self.archive.bytes(Bytes::from(bytes)).await;
    }
}

/// The beginning of what a program complains about; the rest is read and dropped, or the program would wait for ever.
async fn complaint_of(mut source: impl AsyncRead + Unpin) -> Bytes {
    let mut complaint = Vec::new();
    let mut rest = Vec::new();
    loop {
        let buffer = if complaint.len() < COMPLAINT { &mut complaint } else { &mut rest };
        match source.read_buf(buffer).await {
            Ok(0) | Err(_) => return Bytes::from(complaint),
            Ok(_) => rest.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::support_bundle::archive::{LIMITS, tests::entries};

    const LIMIT: Duration = Duration::from_secs(60);

    async fn outcome(
        program: &str,
        arguments: &[&str],
        complaint: Option<&str>,
        limit: Duration,
    ) -> BTreeMap<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = Archive::create(folder.path(), LIMITS).unwrap();
        let mut command = Command::new(program);
        command.args(arguments);
        run(&mut archive, command, Names { output: "out", complaint, not_run: "missing" }, limit).await;
        entries(archive).await
    }

    fn entry(name: &str, text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), text.to_owned())])
    }

    #[tokio::test]
    async fn the_entry_is_named_after_how_it_ended() {
        let shell = |script| outcome("sh", script, Some("err"), LIMIT);
        assert_eq!(shell(&["-c", "echo fine; echo noise >&2"]).await, entry("out", "fine\n"));
        assert_eq!(shell(&["-c", "echo []; echo no such object >&2; exit 1"]).await, entry("err", "no such object\n"));
        assert_eq!(shell(&["-c", "exit 1"]).await, entry("err", "it failed without a word\n"));
        let missing = outcome("/no/such/program", &[], Some("err"), LIMIT).await;
        assert!(missing["missing"].starts_with("could not run /no/such/program: "), "{missing:?}");
    }

    #[tokio::test]
    async fn without_a_name_for_complaints_they_come_behind_the_output() {
        let both = outcome("sh", &["-c", "echo later >&2; echo first; exit 1"], None, LIMIT).await;
        assert_eq!(both, entry("out", "first\nlater\n"));
    }

    #[tokio::test]
    async fn much_output_stays_although_the_program_fails() {
        let script = "head -c 200000 /dev/zero | tr '\\0' x; echo broken >&2; exit 3";
        let both = outcome("sh", &["-c", script], Some("err"), LIMIT).await;
        assert_eq!((both["out"].len(), both["err"].as_str()), (200_000, "broken\n"));
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed() {
        let endless = outcome("sh", &["-c", "exec sleep 600"], Some("err"), Duration::from_millis(100)).await;
        assert_eq!(endless, entry("err", "it did not end within 0 s\n"));
    }

    #[tokio::test]
    async fn a_program_that_complains_without_end_does_not_hang() {
        let script = "head -c 300000 /dev/zero >&2; echo done";
        assert_eq!(outcome("sh", &["-c", script], Some("err"), LIMIT).await, entry("out", "done\n"));
    }
}
