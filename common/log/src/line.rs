//! The line format of the public packages: `<6>2026-11-21T16:20:15Z [INFO] - message key=value`.

use jiff::Timestamp;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::text::Text;

/// Whether a line starts with its syslog priority.
#[derive(Clone, Copy)]
pub(crate) enum Prefix {
    None,
    Priority,
}

/// Hands each event to `write` as one line, newline included.
pub(crate) struct Lines<W> {
    prefix: Prefix,
    write: W,
}

impl<W: Fn(&str) + 'static> Lines<W> {
    pub(crate) fn new(prefix: Prefix, write: W) -> Lines<W> {
        Lines { prefix, write }
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: Fn(&str) + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        Text::keep_new_span(attributes, id, &context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        Text::keep_recorded(values, id, &context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // The whole line before the lock on stderr: formatting a field may log or panic.
        let line = line(self.prefix, Timestamp::now(), event.metadata(), &Text::of_event(event, &context));
        (self.write)(&line);
    }
}

fn line(prefix: Prefix, now: Timestamp, metadata: &Metadata<'_>, text: &str) -> String {
    let (priority, name, target) = match *metadata.level() {
        Level::ERROR => ("<3>", "ERR!", None),
        Level::WARN => ("<4>", "WARN", None),
        Level::INFO => ("<6>", "INFO", None),
        Level::DEBUG => ("<7>", "DBUG", Some(metadata.target())),
        Level::TRACE => ("<7>", "TRCE", Some(metadata.target())),
    };
    let priority = match prefix {
        Prefix::None => "",
        Prefix::Priority => priority,
    };
    // Before the year -9999 or after 9999 the clock is broken; the epoch shows that as well.
    let seconds = Timestamp::from_second(now.as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
    match target {
        None => format!("{priority}{seconds} [{name}] - {text}\n"),
        Some(target) => format!("{priority}{seconds} [{name}] - [{target}] {text}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, error, info, info_span, trace, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::fields;

    /// What `log` logged, without the timestamps.
    fn lines(prefix: Prefix, log: impl FnOnce()) -> Vec<String> {
        let written = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&written);
        let layer = Lines::new(prefix, move |line: &str| sink.lock().unwrap().push_str(line));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let written = written.lock().unwrap();
        written
            .lines()
            .map(|line| {
                let (start, rest) = line.split_once(" [").unwrap();
                let (priority, timestamp) = start.split_at(start.find('>').map_or(0, |end| end + 1));
                assert_eq!(timestamp.len(), "2026-11-21T16:20:15Z".len(), "{line}");
                assert!(timestamp.parse::<Timestamp>().is_ok() && timestamp.ends_with('Z'), "{line}");
                format!("{priority}[{rest}")
            })
            .collect()
    }

    #[test]
    fn a_long_value_is_cut_and_the_request_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = lines(Prefix::None, || {
            let id = crate::RequestId::parse("r-1").unwrap();
            runtime.block_on(id.scope(async { info!({ fields::KEY_ID } = "é".repeat(9000), "refused") }));
            info!("outside");
        });
        assert_eq!(found[0], format!("[INFO] - refused key_id=\"{}… (18000 bytes)\" request_id=r-1", "é".repeat(250)));
        assert_eq!(found[1], "[INFO] - outside");
    }

    #[test]
    fn levels_have_priority_and_name() {
        let logged = lines(Prefix::Priority, || {
            error!("e");
            warn!("w");
            info!("i");
            debug!("d");
            trace!(target: "hyper::proto", "t");
        });
        assert_eq!(
            logged,
            [
                "<3>[ERR!] - e",
                "<4>[WARN] - w",
                "<6>[INFO] - i",
                "<7>[DBUG] - [aziot_log::line::tests] d",
                "<7>[TRCE] - [hyper::proto] t",
            ]
        );
    }

    #[test]
    fn a_terminal_sees_no_priority() {
        assert_eq!(lines(Prefix::None, || info!("i")), ["[INFO] - i"]);
    }

    #[test]
    fn fields_follow_the_message_and_are_quoted_when_needed() {
        let logged = lines(Prefix::None, || {
            info!({ fields::KEY_ID } = "device key", { fields::UID } = 1000_u32, plain = "a", empty = "", "made {}", 1);
            info!(debug = ?"a \"b\"", list = ?[1, 2], display = %"a\" uid=\"0", yes = true, negative = -1, half = 0.5);
            info!("two\nlines\u{1b}[31m");
            info!(text = "a\nb");
        });
        assert_eq!(
            logged,
            [
                r#"[INFO] - made 1 key_id="device key" uid=1000 plain=a empty="""#,
                r#"[INFO] - debug="a \"b\"" list="[1, 2]" display="a\" uid=\"0" yes=true negative=-1 half=0.5"#,
                r"[INFO] - two\nlines\u{1b}[31m",
                r#"[INFO] - text="a\nb""#,
            ]
        );
    }

    #[test]
    fn an_event_has_the_fields_of_the_spans_around_it() {
        let logged = lines(Prefix::None, || {
            let call = info_span!("call", request_id = "r1", status = tracing::field::Empty);
            let _call = call.enter();
            let _inner = info_span!("inner", key_id = "k").entered();
            info!(uid = 0, "in");
            call.record("status", 200);
            info!("out");
        });
        assert_eq!(
            logged,
            ["[INFO] - in uid=0 request_id=r1 key_id=k", "[INFO] - out request_id=r1 status=200 key_id=k"]
        );
    }
}
