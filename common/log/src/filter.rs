//! `AZIOT_LOG` in `env_logger`'s filter syntax: `debug`, `off`, `hyper=trace,info`.
//!
//! Levels may be written in any case. The `/text` suffix of that syntax, which greps messages, is not supported; it
//! is warned about like other mistakes.

use std::ffi::OsStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// The filter that `value` describes, info where it says nothing, and a line of warning for each part that means
/// nothing.
pub(crate) fn from_environment(value: Option<&OsStr>) -> (Targets, Vec<String>) {
    let mut targets = Targets::new().with_default(LevelFilter::INFO);
    let mut warnings = Vec::new();
    let value = value.map(OsStr::to_string_lossy).unwrap_or_default();
    for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        targets = match Directive::parse(part) {
            Some(Directive::Default(level)) => targets.with_default(level),
            Some(Directive::Target(target, level)) => targets.with_target(target, level),
            None => {
                warnings.push(format!("warning: invalid logging spec '{}', ignoring it", part.escape_debug()));
                targets
            }
        };
    }
    (targets, warnings)
}

enum Directive<'p> {
    Default(LevelFilter),
    Target(&'p str, LevelFilter),
}

impl Directive<'_> {
    fn parse(part: &str) -> Option<Directive<'_>> {
        let (target, level) = match part.split_once('=') {
            None => match parse_level(part) {
                Some(level) => return Some(Directive::Default(level)),
                None => (part, LevelFilter::TRACE),
            },
            Some((target, "")) => (target, LevelFilter::TRACE),
            Some((target, level)) => (target, parse_level(level)?),
        };
        let plain = !target.is_empty() && target.chars().all(|c| c.is_alphanumeric() || "_-.:".contains(c));
        plain.then_some(Directive::Target(target, level))
    }
}

fn parse_level(text: &str) -> Option<LevelFilter> {
    [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ]
    .into_iter()
    .find_map(|(name, level)| name.eq_ignore_ascii_case(text).then_some(level))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn parsed(value: &str) -> (Targets, Vec<String>) {
        from_environment(Some(OsStr::new(value)))
    }

    #[test]
    fn levels_and_targets() {
        for (value, target, enabled, disabled) in [
            ("", "aziot_keyd", Some(Level::INFO), Some(Level::DEBUG)),
            ("debug", "aziot_keyd", Some(Level::DEBUG), Some(Level::TRACE)),
            ("WaRn", "aziot_keyd", Some(Level::WARN), Some(Level::INFO)),
            ("off", "aziot_keyd", None, Some(Level::ERROR)),
            ("hyper=trace,info", "hyper::proto", Some(Level::TRACE), None),
            ("hyper=trace,info", "aziot_keyd", Some(Level::INFO), Some(Level::DEBUG)),
            ("hyper=trace", "aziot_keyd", Some(Level::INFO), Some(Level::DEBUG)),
            ("hyper", "hyper", Some(Level::TRACE), None),
            ("hyper=", "hyper", Some(Level::TRACE), None),
            ("debug, hyper=OFF", "hyper", None, Some(Level::ERROR)),
            (" trace ,", "aziot_keyd", Some(Level::TRACE), None),
        ] {
            let (targets, warnings) = parsed(value);
            assert!(warnings.is_empty(), "{value}: {warnings:?}");
            assert!(enabled.is_none_or(|level| targets.would_enable(target, &level)), "{value}");
            assert!(disabled.is_none_or(|level| !targets.would_enable(target, &level)), "{value}");
        }
    }

    #[test]
    fn an_unset_variable_means_info() {
        let (targets, warnings) = from_environment(None);
        assert!(targets.would_enable("aziot_keyd", &Level::INFO) && !targets.would_enable("aziot_keyd", &Level::DEBUG));
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_part_without_meaning_is_warned_about_and_the_rest_counts() {
        for part in ["hyper=loud", "a=b=c", "=debug", "info/text", "two words"] {
            let (targets, warnings) = parsed(&format!("{part},keyd=debug"));
            assert_eq!(warnings, [format!("warning: invalid logging spec '{part}', ignoring it")]);
            assert!(targets.would_enable("keyd", &Level::DEBUG));
            assert!(!targets.would_enable("other", &Level::DEBUG) && targets.would_enable("other", &Level::INFO));
        }
    }
}
