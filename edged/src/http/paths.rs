//! The ways in which deployed clients write one and the same path of the management API.

/// Lists that some clients write with a `/` behind them: the agent, and released diagnostics images.
const LISTS: [&str; 2] = ["/modules", "/identities"];
/// What is done with a module; matched without regard to case, as the public runtime does.
const ACTIONS: [&str; 3] = ["start", "stop", "restart"];

/// The path that is routed in place of `path`; `None` if that is `path` itself.
pub(super) fn rewrite(path: &str) -> Option<String> {
    if let Some(list) = path.strip_suffix('/').filter(|list| LISTS.contains(list)) {
        return Some(list.to_owned());
    }
    let (module, action) = path.strip_prefix("/modules/")?.split_once('/')?;
    let known = ACTIONS.iter().find(|known| known.eq_ignore_ascii_case(action))?;
    (*known != action).then(|| format!("/modules/{module}/{known}"))
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn only_the_known_variants_are_rewritten() {
        for (path, routed) in [
            ("/modules/", "/modules"),
            ("/identities/", "/identities"),
            ("/modules/m/START", "/modules/m/start"),
            ("/modules/%24edgeAgent/Stop", "/modules/%24edgeAgent/stop"),
            ("/modules/STOP/reStart", "/modules/STOP/restart"),
        ] {
            assert_eq!(rewrite(path).as_deref(), Some(routed));
        }
        for path in [
            "/modules",
            "/modules//",
            "/identities//",
            "/identities/m/START",
            "/Modules/",
            "/modules/m/",
            "/modules/m/start",
            "/modules/m/start/",
            "/modules/m/START/x",
            "/modules/m/PrepareUpdate",
            "/modules/m/LOGS",
            "/systeminfo/",
            "/",
            "",
        ] {
            assert_eq!(rewrite(path), None, "{path}");
        }
    }
}
