//! Structured entries for the journal whose `MESSAGE` can also be read alone.
//!
//! `tracing-journald` sends the fields beside the message, where `journalctl -u aziot-keyd` does not show them. So
//! the message handed to it has them appended, as in the line format.

use tracing::field::{Field, Value, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::text::Text;

/// `tracing` allows an event this many fields.
const MOST_FIELDS: usize = 32;

/// Passes events on to `inner`, each with its whole text as the message.
pub(crate) struct Journal<L> {
    inner: L,
}

impl<L> Journal<L> {
    pub(crate) fn new(inner: L) -> Journal<L> {
        Journal { inner }
    }
}

impl<S, L> Layer<S> for Journal<L>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    L: Layer<S>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        Text::keep_new_span(attributes, id, &context);
        self.inner.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        Text::keep_recorded(values, id, &context);
        self.inner.on_record(id, values, context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut collected = Collected(Vec::new());
        event.record(&mut collected);
        let Some(message) = event.metadata().fields().field("message") else {
            return self.inner.on_event(event, context);
        };
        let text = Text::of_event(event, &context);
        let mut values: [(&Field, Option<&dyn Value>); MOST_FIELDS] = [(&message, None); MOST_FIELDS];
        values[0] = (&message, Some(&text));
        for (slot, (field, value)) in values[1..].iter_mut().zip(&collected.0) {
            *slot = (field, Some(value));
        }
        let fields = event.metadata().fields();
        let fields = fields.value_set(&values);
        let event = match event.parent() {
            Some(parent) => Event::new_child_of(parent.clone(), event.metadata(), &fields),
            None if event.is_root() => Event::new_child_of(None, event.metadata(), &fields),
            None => Event::new(event.metadata(), &fields),
        };
        self.inner.on_event(&event, context);
    }
}

/// The fields besides the message, as text; the journal stores nothing else.
struct Collected(Vec<(Field, String)>);

impl Visit for Collected {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" {
            self.0.push((field.clone(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{info, info_span};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Stands where the journal would, and keeps what it is handed.
    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<(String, String)>>>);

    impl<S: Subscriber> Layer<S> for Recorder {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            event.record(&mut self.clone());
        }
    }

    impl Visit for Recorder {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.lock().unwrap().push((field.name().to_owned(), format!("{value:?}")));
        }

        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.lock().unwrap().push((field.name().to_owned(), value.to_owned()));
        }
    }

    #[test]
    fn the_message_tells_all_and_the_fields_stay() {
        let recorder = Recorder::default();
        let subscriber = tracing_subscriber::registry().with(Journal::new(recorder.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let _call = info_span!("call", request_id = "r1").entered();
            info!(key_id = "a b", uid = 7, "made a key");
        });
        let handed_on = recorder.0.lock().unwrap();
        let expected = [("message", r#"made a key key_id="a b" uid=7 request_id=r1"#), ("key_id", "a b"), ("uid", "7")];
        assert_eq!(*handed_on, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
