//! Spelling of known members: the engine's JSON decoder takes `hostconfig` for `HostConfig`, so a filter that compared exact names could be
//! walked around. Known members get their exact name; two that mean the same are refused.

use serde_json::{Map, Value};

use super::Invalid;

/// Gives the members of `object` that are among `known` their exact names. `place` names the object in errors.
pub(super) fn correct(object: &mut Map<String, Value>, known: &[&'static str], place: &str) -> Result<(), Invalid> {
    let misspelt: Vec<(String, &'static str)> = object
        .keys()
        .filter_map(|key| {
            let exact = known.iter().find(|exact| means(key, exact))?;
            (key != exact).then(|| (key.clone(), *exact))
        })
        .collect();
    for (key, exact) in misspelt {
        if object.contains_key(exact) {
            return Err(Invalid::Settings(format!("duplicate field `{place}.{exact}`")));
        }
        if let Some(value) = object.remove(&key) {
            object.insert(exact.to_owned(), value);
        }
    }
    Ok(())
}

/// Whether the engine takes `key` for the member `exact`: its decoder folds case as Unicode does, which gives two letters of ASCII a third form each.
fn means(key: &str, exact: &str) -> bool {
    let folded = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(folded).eq(exact.chars().map(folded))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn corrected(value: Value) -> Result<Value, String> {
        let Value::Object(mut object) = value else { panic!("an object") };
        correct(&mut object, &["HostConfig", "Links"], "createOptions").map_err(|error| error.to_string())?;
        Ok(Value::Object(object))
    }

    #[test]
    fn members_get_the_name_that_the_engine_takes_them_for() {
        for key in ["hostconfig", "HOSTCONFIG", "HostConfig", "Ho\u{17f}tConfig"] {
            assert_eq!(corrected(json!({ key: 1 })), Ok(json!({ "HostConfig": 1 })), "{key}");
        }
        assert_eq!(corrected(json!({ "lin\u{212a}s": 1 })), Ok(json!({ "Links": 1 })));
        for key in ["Host_Config", "HostConfig ", "unknown", "Hostconfíg"] {
            assert_eq!(corrected(json!({ key: 1 })), Ok(json!({ key: 1 })));
        }
    }

    #[test]
    fn two_members_that_mean_the_same_are_refused() {
        let error = "invalid Docker config: duplicate field `createOptions.HostConfig`".to_owned();
        assert_eq!(corrected(json!({ "hostconfig": {}, "HostConfig": {} })), Err(error.clone()));
        assert_eq!(corrected(json!({ "hostconfig": {}, "hostConfig": {} })), Err(error));
    }
}
