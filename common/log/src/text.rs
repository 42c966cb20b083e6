//! An event or a span as one line of text: the message, then each field as ` key=value`.
//!
//! Control characters are escaped, so that what a client sends can neither start a line of its own nor colour a
//! terminal.

use std::borrow::Cow;
use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::{RequestId, fields};

/// Bytes of a field's value, most of which come from callers or from the cloud.
const LONGEST_VALUE: usize = 500;
/// Bytes of a message.
const LONGEST_MESSAGE: usize = 4000;

/// Message and fields of what was visited.
#[derive(Default)]
pub(crate) struct Text {
    message: String,
    fields: String,
}

/// What a span's fields look like; kept with the span for the events inside it.
struct SpanText(Text);

impl Text {
    /// The message with the event's own fields and those of the spans around it, outermost first.
    pub(crate) fn of_event<S>(event: &Event<'_>, context: &Context<'_, S>) -> String
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        // Room for most lines: text that grows is copied with every step.
        let mut text = Text { message: String::with_capacity(256), fields: String::with_capacity(256) };
        event.record(&mut text);
        let mut line = text.message;
        line.push_str(&text.fields);
        for span in context.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(SpanText(text)) = span.extensions().get() {
                line.push_str(&text.fields);
            }
        }
        if event.metadata().fields().field(fields::REQUEST_ID).is_none()
            && let Some(id) = RequestId::current()
        {
            line.extend([" ", fields::REQUEST_ID, "=", id.as_str()]);
        }
        // An event without message starts with the blank before its first field.
        if line.starts_with(' ') { line.split_off(1) } else { line }
    }

    pub(crate) fn keep_new_span<S>(attributes: &Attributes<'_>, id: &Id, context: &Context<'_, S>)
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let Some(span) = context.span(id) else { return };
        let mut text = Text::default();
        attributes.record(&mut text);
        span.extensions_mut().replace(SpanText(text));
    }

    pub(crate) fn keep_recorded<S>(values: &Record<'_>, id: &Id, context: &Context<'_, S>)
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanText(text)) = span.extensions_mut().get_mut() {
            values.record(text);
        }
    }

    fn push(&mut self, field: &Field, value: &str, quoting: Quoting) {
        if field.name() == "message" {
            push_escaped(&mut self.message, &shortened(value, LONGEST_MESSAGE));
            return;
        }
        let value = &*shortened(value, LONGEST_VALUE);
        self.fields.push(' ');
        self.fields.push_str(field.name());
        self.fields.push('=');
        let quoted = match quoting {
            Quoting::Never => false,
            Quoting::WhenNeeded => needs_quotes(value),
            Quoting::UnlessDone => needs_quotes(value) && !is_quoted(value),
        };
        if quoted {
            self.fields.push('"');
            for character in value.chars() {
                if matches!(character, '"' | '\\') {
                    self.fields.push('\\');
                }
                push_character(&mut self.fields, character);
            }
            self.fields.push('"');
        } else {
            push_escaped(&mut self.fields, value);
        }
    }
}

/// The start of a text that is too long for a log, with its length.
fn shortened(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return Cow::Borrowed(text);
    }
    let start = &text[..text.floor_char_boundary(longest)];
    Cow::Owned(format!("{start}… ({} bytes)", text.len()))
}

#[derive(Clone, Copy)]
enum Quoting {
    /// Numbers and the like.
    Never,
    WhenNeeded,
    /// `Debug` of a string has quotes already.
    UnlessDone,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value, Quoting::WhenNeeded);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, &format!("{value:?}"), Quoting::UnlessDone);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, &value.to_string(), Quoting::Never);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, &value.to_string(), Quoting::Never);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, if value { "true" } else { "false" }, Quoting::Never);
    }
}

fn needs_quotes(value: &str) -> bool {
    value.is_empty() || value.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '"' | '='))
}

/// Whether `value` is one string in quotes; `"a" uid="0"` is not, though it begins and ends with one.
fn is_quoted(value: &str) -> bool {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return false };
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return false,
            '\\' if characters.next().is_none() => return false,
            _ => {}
        }
    }
    true
}

fn push_escaped(line: &mut String, text: &str) {
    // Nearly all text is such, and every request writes a line of it.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        line.push_str(text);
        return;
    }
    for character in text.chars() {
        push_character(line, character);
    }
}

fn push_character(line: &mut String, character: char) {
    match character {
        '\n' => line.push_str("\\n"),
        '\r' => line.push_str("\\r"),
        '\t' => line.push_str("\\t"),
        character if character.is_control() => {
            // Writing to a string does not fail.
            let _ = write!(line, "\\u{{{:x}}}", u32::from(character));
        }
        character => line.push(character),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_whole_string_counts_as_quoted() {
        for (value, quoted) in [
            (r#""a b""#, true),
            (r#""""#, true),
            (r#""a \" b""#, true),
            (r#""a" uid="0""#, false),
            (r#""a\""#, false),
            (r#"""#, false),
            ("a b", false),
        ] {
            assert_eq!(is_quoted(value), quoted, "{value}");
        }
    }
}
