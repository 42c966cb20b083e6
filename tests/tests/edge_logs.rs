//! Logs of modules: frames as the engine makes them, one in each chunk, for readers that follow, stop reading, or ask for nonsense.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Edge, at_once,
    docker::{Frame, Kind, frames, image},
    edge::VERSION,
    eventually,
};
use serde_json::json;

const CHATTY: &str = "chatty";
const LIMIT: Duration = Duration::from_secs(120);

/// An answer that comes in chunks.
struct Chunks(BufReader<UnixStream>);

impl Chunks {
    /// Asks for logs, which must be there.
    fn ask(edge: &Edge, module: &str, query: &str) -> Result<Self> {
        let mut stream = UnixStream::connect(edge.socket(Daemon::Edge))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let target = format!("/modules/{module}/logs?{query}&{VERSION}");
        stream.write_all(
            format!("GET {target} HTTP/1.1\r\nHost: mgmt.sock:80\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut chunks = Self(BufReader::new(stream));
        let status = chunks.line()?;
        ensure!(status == "HTTP/1.1 200 OK", "{status}");
        let mut head = Vec::new();
        loop {
            let line = chunks.line()?.to_lowercase();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        ensure!(head.iter().any(|line| line == "transfer-encoding: chunked"), "{head:?}");
        ensure!(head.iter().any(|line| line.starts_with("content-type: text/plain")), "{head:?}");
        Ok(chunks)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.strip_suffix("\r\n").with_context(|| format!("no whole line: {line:?}"))?.to_owned())
    }

    /// The frame in the next chunk, which must be one and whole; `None` at the end.
    fn next(&mut self) -> Result<Option<Frame>> {
        let length = usize::from_str_radix(&self.line()?, 16)?;
        let mut chunk = vec![0; length + 2];
        self.0.read_exact(&mut chunk)?;
        ensure!(chunk.ends_with(b"\r\n"), "a chunk longer than it says");
        chunk.truncate(length);
        if chunk.is_empty() {
            return Ok(None);
        }
        let mut inside = frames(&chunk)?;
        ensure!(inside.len() == 1, "{} frames in one chunk", inside.len());
        Ok(inside.pop())
    }

    fn all(mut self) -> Result<Vec<Frame>> {
        let mut all = Vec::new();
        while let Some(frame) = self.next()? {
            all.push(frame);
        }
        Ok(all)
    }
}

fn numbers(frames: &[Frame], stream: u8) -> Vec<u32> {
    let own = frames.iter().filter(|frame| frame.stream == stream);
    let text: Vec<u8> = own.flat_map(|frame| frame.text.clone()).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    let number = |line: &str| line.split("line ").nth(1)?.split(' ').next()?.parse().ok();
    text.lines().filter_map(number).collect()
}

/// `edged-api.md`, 6: what the engine tells is passed on frame by frame, and parameters mean what they mean to the engine.
#[test]
fn logs_are_frames_one_in_each_chunk() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run(&edge.module(CHATTY, &["echo", "--lines", "20", "--length", "300", "--exit", "0"])?)?;
        edge.engine.wait(CHATTY)?;
        let all = Chunks::ask(&edge, CHATTY, "tail=all")?.all()?;
        assert_eq!(numbers(&all, 1), (0..20).step_by(2).collect::<Vec<_>>(), "{kind:?}");
        assert_eq!(numbers(&all, 2), (1..20).step_by(2).collect::<Vec<_>>(), "{kind:?}");
        assert!(all.iter().all(|frame| frame.text.len() >= 299), "{kind:?}");
        assert_eq!(all, edge.engine.logs(CHATTY)?, "{kind:?}: as the engine tells it");

        let count = |query: &str| -> Result<usize> { Ok(Chunks::ask(&edge, CHATTY, query)?.all()?.len()) };
        assert_eq!(count("tail=3")?, 3, "{kind:?}");
        assert_eq!(count("since=1d")?, 20, "{kind:?}");
        assert_eq!(count("since=4102444800")?, 0, "{kind:?}: since 2100, past 32 bits");
        assert_eq!(count("until=1%20hour")?, 0, "{kind:?}: until an hour ago");
        assert_eq!(count("since=2020-01-01T00%3A00%3A00Z&until=2100-01-01T00%3A00%3A00%2B01%3A00")?, 20, "{kind:?}");
        let stamped = Chunks::ask(&edge, CHATTY, "timestamps=true&tail=1")?.all()?;
        assert!(
            stamped[0].text.starts_with(b"20") && stamped[0].text.contains(&b'Z') || kind == Kind::Podman,
            "{stamped:?}"
        );

        for query in ["follow=yes", "timestamps=1", "tail=-1", "tail=many", "since=yesterday", "until=1%2"] {
            let reply = edge.manage("GET", &format!("/modules/{CHATTY}/logs?{query}"), None)?;
            let parameter = query.split('=').next().unwrap_or_default();
            assert_eq!((reply.status, reply.message()), (400, format!("invalid parameter: {parameter}")), "{query}");
        }
        assert_eq!(edge.manage("GET", "/modules/nobody/logs", None)?.status, 404);
        Ok(())
    })
    .map(|_| ())
}

/// A followed log goes on while the module does, and ends with it.
#[test]
fn a_followed_log_ends_with_its_module() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run(&edge.module(CHATTY, &["echo", "--lines", "100000", "--pause-ms", "50"])?)?;
        let mut chunks = Chunks::ask(&edge, CHATTY, "follow=true&tail=1")?;
        let mut seen = Vec::new();
        while seen.len() < 20 {
            seen.push(chunks.next()?.context("the log ended")?);
        }
        let (out, errors) = (numbers(&seen, 1), numbers(&seen, 2));
        assert!(out.len() > 5 && errors.len() > 5, "{kind:?}: {out:?} {errors:?}");
        assert!(out.windows(2).all(|pair| pair[1] == pair[0] + 2), "{kind:?}: {out:?}");
        let _ = edge.manage("POST", &format!("/modules/{CHATTY}/stop"), None)?.expect(204)?;
        while chunks.next()?.is_some() {}
        Ok(())
    })
    .map(|_| ())
}

/// `edged-api.md`, 11 (32): a terminal's log is wrapped in frames.
#[test]
fn the_log_of_a_terminal_is_framed_too() -> Result<()> {
    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let edge = Edge::start(Kind::Docker)?;
    let mut wanted = edge.module(CHATTY, &["echo", "--lines", "10", "--exit", "0"])?;
    wanted.create_options["Tty"] = json!(true);
    edge.run(&wanted)?;
    // Its log cannot be taken apart here.
    eventually("its end", LIMIT, || {
        let container = edge.engine.inspect(CHATTY)?.context("no container")?;
        Ok((container["State"]["Status"] == "exited").then_some(()))
    })?;
    let all = Chunks::ask(&edge, CHATTY, "tail=all")?.all()?;
    assert!(all.iter().all(|frame| frame.stream == 1), "{all:?}");
    assert_eq!(numbers(&all, 1).len(), 10, "{all:?}");
    Ok(())
}

/// "a log reader that stops reading": it costs memory for nobody, and delays neither the module nor other callers, nor the runtime's end.
#[test]
fn a_reader_that_stops_reading_stands_in_nobodys_way() -> Result<()> {
    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let mut edge = Edge::start(Kind::Docker)?;
    edge.run(&edge.module(CHATTY, &["echo", "--lines", "40000", "--length", "1000"])?)?;
    edge.run_waiting("steady")?;
    let readers: Vec<Chunks> = (0..4).map(|_| Chunks::ask(&edge, CHATTY, "follow=true")).collect::<Result<_>>()?;
    eventually("all that the module prints", LIMIT, || {
        let words = [image::PROGRAM, "echo", "--lines", "0", "--exit", "0"];
        let _ = edge.engine.execute("steady", &words)?;
        let last = Chunks::ask(&edge, CHATTY, "tail=1")?.all()?;
        Ok(numbers(&last, 1).iter().chain(&numbers(&last, 2)).any(|number| *number >= 39_998).then_some(()))
    })?;
    edge.workload("steady")?.sign(b"data")?;
    edge.agent()?.modules()?;
    let resident = edge.process(Daemon::Edge)?.memory()?.0;
    assert!(resident < 40 << 10, "{resident} KiB for four readers that do not read");
    let begun = std::time::Instant::now();
    assert!(edge.stop_runtime()?.success());
    assert!(begun.elapsed() < LIMIT, "{:?} to stop", begun.elapsed());
    drop(readers);
    Ok(())
}
