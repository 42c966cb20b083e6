//! Lists in `[preloaded_certs]`: which certificates they come down to, and which of them turn in circles.

use std::collections::{BTreeMap, HashSet};

use aziot_certd_api::config::Preloaded;

/// Members that one list may come down to, inner lists counted in: lists of lists grow fast.
pub(crate) const MEMBERS_LIMIT: usize = 1024;

/// The ids that the list `id` comes down to, in order, or `None` if they are too many. What repeats a list that is being
/// looked at counts as missing.
pub(crate) fn members<'p>(preloaded: &'p BTreeMap<String, Preloaded>, id: &'p str) -> Option<Vec<&'p str>> {
    let mut found = Vec::new();
    let mut budget = MEMBERS_LIMIT;
    collect(preloaded, id, &mut Vec::new(), &mut found, &mut budget).then_some(found)
}

/// Whether the budget was enough.
fn collect<'p>(
    preloaded: &'p BTreeMap<String, Preloaded>,
    id: &'p str,
    above: &mut Vec<&'p str>,
    found: &mut Vec<&'p str>,
    budget: &mut usize,
) -> bool {
    let Some(Preloaded::List(ids)) = preloaded.get(id) else {
        found.push(id);
        return true;
    };
    if above.contains(&id) {
        return true;
    }
    above.push(id);
    let complete = ids.iter().all(|member| {
        let Some(rest) = budget.checked_sub(1) else { return false };
        *budget = rest;
        collect(preloaded, member, above, found, budget)
    });
    above.pop();
    complete
}

/// Lists that contain themselves, each circle once, from one list to the same list again.
pub(crate) fn circles(preloaded: &BTreeMap<String, Preloaded>) -> Vec<Vec<&str>> {
    let mut done = HashSet::new();
    let mut circles = Vec::new();
    for start in preloaded.keys() {
        // Each list on the way from the start, with those of its members that are still to be looked at.
        let mut way: Vec<(&str, std::slice::Iter<'_, String>)> = Vec::new();
        enter(preloaded, start, &mut way, &mut done, &mut circles);
        while let Some((_, members)) = way.last_mut() {
            match members.next() {
                Some(member) => enter(preloaded, member, &mut way, &mut done, &mut circles),
                None => done.extend(way.pop().map(|(id, _)| id)),
            }
        }
    }
    circles
}

fn enter<'p>(
    preloaded: &'p BTreeMap<String, Preloaded>,
    id: &'p str,
    way: &mut Vec<(&'p str, std::slice::Iter<'p, String>)>,
    done: &mut HashSet<&'p str>,
    circles: &mut Vec<Vec<&'p str>>,
) {
    let Some(Preloaded::List(ids)) = preloaded.get(id) else { return };
    if let Some(at) = way.iter().position(|(above, _)| *above == id) {
        circles.push(way[at..].iter().map(|(id, _)| *id).chain([id]).collect());
    } else if !done.contains(id) {
        way.push((id, ids.iter()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(lists: &[(&str, &[&str])]) -> BTreeMap<String, Preloaded> {
        let list = |ids: &[&str]| Preloaded::List(ids.iter().map(|id| (*id).to_owned()).collect());
        lists.iter().map(|(id, ids)| ((*id).to_owned(), list(ids))).collect()
    }

    #[test]
    fn circles_are_found_once_and_cut() {
        let lists = lists(&[
            ("a", &["x", "b"]),
            ("b", &["c", "y"]),
            ("c", &["a", "z"]),
            ("own", &["own", "x"]),
            ("twice", &["d", "d"]),
            ("d", &["x"]),
        ]);
        assert_eq!(circles(&lists), [&["a", "b", "c", "a"][..], &["own", "own"]]);
        assert_eq!(members(&lists, "a").unwrap(), ["x", "z", "y"]);
        assert_eq!(members(&lists, "b").unwrap(), ["x", "z", "y"]);
        assert_eq!(members(&lists, "own").unwrap(), ["x"]);
        assert_eq!(members(&lists, "twice").unwrap(), ["x", "x"]);
    }

    #[test]
    fn lists_that_double_are_cut_off() {
        let ids: Vec<String> = (0..40).map(|number| format!("list{number}")).collect();
        let doubling =
            ids.iter().zip(&ids[1..]).map(|(id, next)| (id.clone(), Preloaded::List(vec![next.clone(), next.clone()])));
        let doubling: BTreeMap<_, _> = doubling.collect();
        assert_eq!(members(&doubling, "list0"), None);
        assert!(circles(&doubling).is_empty());
        assert_eq!(members(&doubling, "list34").unwrap().len(), 32);
    }
}
