//! Reading `/proc/PID/cgroup` (cgroups(7)): which containers a process may be in, and whether it is where another process is.
//!
//! A line is `hierarchy:controllers:path`; there is one for each hierarchy of cgroups 1, and one, `0::path`, for cgroups 2. Docker names a
//! container's cgroup by its id, `docker-<id>.scope` with systemd; Podman `libpod-<id>`, with `.scope` too.

use std::cmp::Reverse;

/// Digits of a container's id.
const ID: usize = 64;
/// What engines put in front of an id. Podman's `libpod-conmon-` is that of a process outside of the container.
const PREFIXES: [&str; 2] = ["docker-", "libpod-"];
const SUFFIX: &str = ".scope";

/// The places of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cgroups(Vec<Place>);

/// A place in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Number and controllers: what both lines of two processes have in common.
    hierarchy: String,
    /// From the root down.
    path: Vec<String>,
}

impl Cgroups {
    /// Reads the file; a line of another form is left out.
    pub(super) fn parse(text: &str) -> Self {
        let place = |line: &str| {
            let controllers = line.find(':')?;
            let end = controllers + 1 + line[controllers + 1..].find(':')?;
            let path = line[end + 1..].strip_prefix('/')?;
            let path = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
            Some(Place { hierarchy: line[..end].to_owned(), path })
        };
        Self(text.lines().filter_map(place).collect())
    }

    /// Ids of containers, each once: those of containers inside before those of the ones around them.
    pub(super) fn containers(&self) -> Vec<String> {
        let parts = self.0.iter().flat_map(|place| place.path.iter().enumerate());
        let mut found: Vec<_> = parts.filter_map(|(depth, part)| Some((depth, container(part)?))).collect();
        found.sort_by_key(|(depth, _)| Reverse(*depth));
        let mut ids: Vec<String> = Vec::new();
        for (_, id) in found {
            if !ids.iter().any(|known| known == id) {
                ids.push(id.to_owned());
            }
        }
        ids
    }

    /// Whether a process is in this container, whose first process is at `first`: at or below the container's own cgroup in every hierarchy
    /// that has one. Below it the container may do as it likes.
    pub(super) fn are_in(&self, first: &Self, id: &str) -> bool {
        let mut own = first.0.iter().filter_map(|place| Some((place, place.root_of(id)?))).peekable();
        own.peek().is_some()
            && own.all(|(place, root)| {
                let here = self.0.iter().find(|here| here.hierarchy == place.hierarchy);
                here.is_some_and(|here| here.path.starts_with(root))
            })
    }
}

impl Place {
    /// The path down to the container's own cgroup.
    fn root_of(&self, id: &str) -> Option<&[String]> {
        let last = self.path.iter().position(|part| container(part) == Some(id))?;
        Some(&self.path[..=last])
    }
}

/// The id of the container whose cgroup is called so.
fn container(part: &str) -> Option<&str> {
    let part = part.strip_suffix(SUFFIX).unwrap_or(part);
    let id = PREFIXES.iter().find_map(|prefix| part.strip_prefix(prefix)).unwrap_or(part);
    let is_id = id.len() == ID && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_id.then_some(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(digit: char) -> String {
        digit.to_string().repeat(ID)
    }

    fn ids(text: &str) -> Vec<String> {
        Cgroups::parse(text).containers()
    }

    #[test]
    fn the_forms_of_all_engines_are_known() {
        let a = id('a');
        let expected = [a.clone()];
        for path in [
            format!("/docker/{a}"),
            format!("/system.slice/docker-{a}.scope"),
            format!("/system.slice/docker-{a}.scope/init.scope"),
            format!("/machine.slice/libpod-{a}.scope/container"),
            format!("/libpod_parent/libpod-{a}"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{a}.scope"),
            format!("/edge:modules/{a}"),
        ] {
            assert_eq!(ids(&format!("0::{path}\n")), expected, "{path}");
            assert_eq!(ids(&format!("12:cpu,cpuacct:{path}\n1:name=systemd:{path}\n")), expected, "{path}");
        }
    }

    #[test]
    fn what_is_not_a_container_is_none() {
        let a = id('a');
        for path in [
            "/".to_owned(),
            "/system.slice/docker.service".to_owned(),
            format!("/libpod_parent/libpod-conmon-{a}"),
            format!("/docker/{}", &a[1..]),
            format!("/docker/{a}a"),
            format!("/docker/{}", a.to_uppercase()),
            format!("/docker/{a} (deleted)"),
            format!("/kubepods/pod-{a}"),
        ] {
            assert_eq!(ids(&format!("0::{path}\n")), Vec::<String>::new(), "{path}");
        }
        for text in ["", "0", "0:", "0::", "x", &format!("0:/docker/{a}"), &format!("0::docker/{a}")] {
            assert_eq!(ids(text), Vec::<String>::new(), "{text:?}");
        }
    }

    #[test]
    fn inner_containers_come_first() {
        let (a, b) = (id('a'), id('b'));
        assert_eq!(ids(&format!("0::/docker/{b}/docker/{a}\n")), [a.clone(), b.clone()]);
        assert_eq!(ids(&format!("2:cpu:/docker/{b}\n0::/docker/{b}/docker/{a}\n")), [a.clone(), b.clone()]);
        assert_eq!(ids(&format!("2:cpu:/docker/{b}/docker/{a}\n0::/docker/{b}\n")), [a, b]);
    }

    #[test]
    fn a_process_is_in_a_container_if_it_is_below_its_cgroup_everywhere() {
        let a = id('a');
        let at = |cpu: &str, unified: &str| Cgroups::parse(&format!("2:cpu:{cpu}\n0::{unified}\n"));
        let own = format!("/docker/{a}");
        let first = at(&own, &own);
        assert!(first.are_in(&first, &a));
        assert!(at(&format!("{own}/sub"), &own).are_in(&first, &a));
        // A systemd in the container has moved its first process down.
        assert!(at(&own, &format!("{own}/other")).are_in(&at(&own, &format!("{own}/init.scope")), &a));
        // A user made a cgroup of that name.
        let forged = format!("/user.slice/user-1000.slice/user@1000.service/docker/{a}");
        assert!(!at(&forged, &forged).are_in(&first, &a));
        assert!(!at(&own, &forged).are_in(&first, &a));
        // One hierarchy is missing, or says nothing.
        assert!(!Cgroups::parse(&format!("0::{own}\n")).are_in(&first, &a));
        assert!(at("/", &own).are_in(&at("/", &own), &a));
        assert!(!at("/", "/").are_in(&at("/", "/"), &a), "the first process is nowhere");
        assert!(!first.are_in(&first, &id('b')));
        // A nested one of the same name is below the first.
        let nested = format!("{own}/docker/{a}");
        assert!(at(&nested, &nested).are_in(&first, &a));
        assert!(!first.are_in(&at(&format!("/x{own}"), &own), &a));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_and_ids_are_ids(text in "\\PC*|([0-9]{0,2}:[a-z=,]{0,4}:(/[a-f0-9.:-]{0,70}|/docker){0,4}\n){0,6}") {
            for id in ids(&text) {
                prop_assert!(id.len() == ID && text.contains(&id));
            }
        }

        #[test]
        fn no_cgroup_outside_of_the_containers_own_is_in_it(
            above in "(/[a-z]{1,8}){1,3}", below in "(/[a-z0-9]{1,8}){0,3}", digit in "[0-9a-f]"
        ) {
            let id = id(digit.chars().next().unwrap_or('0'));
            let first = Cgroups::parse(&format!("0::/docker/{id}\n"));
            let inside = Cgroups::parse(&format!("0::/docker/{id}{below}\n")).are_in(&first, &id);
            let outside = Cgroups::parse(&format!("0::{above}/docker/{id}{below}\n")).are_in(&first, &id);
            prop_assert!(inside && !outside);
        }
    }
}
