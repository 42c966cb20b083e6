//! The known name that somebody probably meant.

/// The candidate nearest to `name`, if it is near enough that a slip of the fingers explains the difference.
pub(crate) fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let name = plain(name);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let distance = strsim::osa_distance(&name, &plain(candidate));
            let longer = name.chars().count().max(candidate.chars().count());
            (distance <= (longer / 3).clamp(1, 4) && distance < longer).then_some((distance, candidate))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// `Device-Id` and `device_id` differ in nothing that matters here.
fn plain(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognized_and_other_words_are_not() {
        let known = ["registration_id", "symmetric_key", "hostname", "uid", "method"];
        for (name, expected) in [
            ("registraton_id", Some("registration_id")),
            ("Registration-Id", Some("registration_id")),
            ("symetrickey", Some("symmetric_key")),
            ("hsotname", Some("hostname")),
            ("udi", Some("uid")),
            ("gid", Some("uid")),
            ("ab", None),
            ("x", None),
            ("local_gateway_hostname", None),
            ("provisioning", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}
