//! Merging a later config file into the earlier ones: tables key by key, arrays one after the other, and of anything
//! else the later one.

use std::collections::btree_map;

use crate::path::Path;
use crate::tree::{self, Entry, Kind, Origin, Table, Value};

/// An array element that an earlier file had already.
pub(crate) struct Duplicate {
    /// Keys down to the array.
    pub(crate) key_path: String,
    pub(crate) element: Origin,
    pub(crate) earlier: Origin,
}

/// Merges `later` into `earlier`; returns the elements of `later`'s arrays that `earlier` had too. They are kept all
/// the same.
pub(crate) fn merge(earlier: &mut Table, later: Table) -> Vec<Duplicate> {
    let mut duplicates = Vec::new();
    merge_tables(earlier, later, Path::ROOT, &mut duplicates);
    duplicates
}

fn merge_tables(earlier: &mut Table, later: Table, path: &Path<'_>, duplicates: &mut Vec<Duplicate>) {
    for (key, entry) in later {
        let path = path.child(&key);
        match earlier.entry(key.clone()) {
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(entry);
            }
            btree_map::Entry::Occupied(mut occupied) => merge_entries(occupied.get_mut(), entry, &path, duplicates),
        }
    }
}

fn merge_entries(earlier: &mut Entry, later: Entry, path: &Path<'_>, duplicates: &mut Vec<Duplicate>) {
    match (&mut earlier.value.kind, later) {
        (Kind::Table(earlier), Entry { value: Value { kind: Kind::Table(later), .. }, .. }) => {
            merge_tables(earlier, later, path, duplicates);
        }
        (Kind::Array(earlier), Entry { value: Value { kind: Kind::Array(later), .. }, .. }) => {
            duplicates.extend(later.iter().filter_map(|element| {
                let earlier = earlier.iter().find(|earlier| tree::same(earlier, element))?;
                Some(Duplicate {
                    key_path: path.to_string(),
                    element: element.origin.clone(),
                    earlier: earlier.origin.clone(),
                })
            }));
            earlier.extend(later);
        }
        (_, later) => *earlier = later,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use toml::de::DeTable;

    use super::*;

    fn parse(document: usize, text: &str) -> Table {
        tree::table(document, DeTable::parse(text).unwrap().get_ref()).ok().unwrap()
    }

    /// The tree without its places, as text.
    fn plain(kind: &Kind) -> String {
        match kind {
            Kind::String(string) | Kind::Datetime(string) => format!("{string:?}"),
            Kind::Integer(integer) => integer.to_string(),
            Kind::Float(float) => float.to_string(),
            Kind::Boolean(boolean) => boolean.to_string(),
            Kind::Array(array) => {
                format!("[{}]", array.iter().map(|element| plain(&element.kind)).collect::<Vec<_>>().join(","))
            }
            Kind::Table(table) => plain_table(table),
        }
    }

    fn plain_table(table: &Table) -> String {
        let entries: Vec<_> = table.iter().map(|(key, entry)| format!("{key}={}", plain(&entry.value.kind))).collect();
        format!("{{{}}}", entries.join(","))
    }

    fn merged(texts: &[&str]) -> Table {
        let mut table = Table::new();
        for (document, text) in texts.iter().enumerate() {
            merge(&mut table, parse(document, text));
        }
        table
    }

    #[test]
    fn every_row_of_the_merge_table() {
        for (earlier, later, expected) in [
            ("a = 1", "b = 2", "{a=1,b=2}"),
            // table, table
            ("[t]\na = 1\nb = 1", "[t]\nb = 2\nc = 2", "{t={a=1,b=2,c=2}}"),
            ("[t.u]\na = 1", "t.u.b = 2", "{t={u={a=1,b=2}}}"),
            ("t = { a = 1 }", "[t]\nb = 2", "{t={a=1,b=2}}"),
            // array, array
            ("l = [1, 2]", "l = [2, 3]", "{l=[1,2,2,3]}"),
            ("[[p]]\nu = 1", "[[p]]\nu = 2", "{p=[{u=1},{u=2}]}"),
            ("[t]\nl = [[1]]", "[t]\nl = [[2]]", "{t={l=[[1],[2]]}}"),
            ("l = [1]", "l = []", "{l=[1]}"),
            // anything else
            ("a = 1", "a = 2", "{a=2}"),
            ("a = 1", "a = 'x'", "{a=\"x\"}"),
            ("a = [1]", "a = 1", "{a=1}"),
            ("a = 1", "a = [1]", "{a=[1]}"),
            ("[a]\nb = 1", "a = 1", "{a=1}"),
            ("a = 1", "[a]\nb = 1", "{a={b=1}}"),
            ("a = [1]", "[a]\nb = 1", "{a={b=1}}"),
            ("a = true", "a = 1.5", "{a=1.5}"),
        ] {
            assert_eq!(plain_table(&merged(&[earlier, later])), expected, "{earlier} + {later}");
        }
    }

    #[test]
    fn everything_keeps_its_place() {
        let merged = merged(&["[t]\na = 1\nl = [1]", "[t]\nb = 2\nl = [2]"]);
        let Kind::Table(table) = &merged["t"].value.kind else { panic!("a table") };
        assert_eq!((table["a"].key.document, table["b"].key.document), (0, 1));
        assert_eq!(table["b"].value.origin, Origin { document: 1, span: 8..9 });
        let Kind::Array(array) = &table["l"].value.kind else { panic!("an array") };
        assert_eq!(array.iter().map(|element| element.origin.document).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn repeated_elements_are_told_but_kept() {
        let mut table = parse(0, "[t]\nl = [1, { a = 'x' }, 1]");
        let duplicates = merge(&mut table, parse(1, "t.l = [{ a = 'x' }, 2, { a = 'y' }]"));
        assert_eq!(duplicates.len(), 1);
        assert_eq!((duplicates[0].key_path.as_str(), duplicates[0].element.document), ("t.l", 1));
        assert_eq!(duplicates[0].earlier, Origin { document: 0, span: 12..23 });
        assert_eq!(plain_table(&table), r#"{t={l=[1,{a="x"},1,{a="x"},2,{a="y"}]}}"#);
    }

    /// Any tree of few keys, so that two of them often meet.
    fn any_table() -> impl Strategy<Value = Table> {
        let origin = Origin { document: 0, span: 0..0 };
        let value = move |kind| Value { origin: Origin { document: 0, span: 0..0 }, kind };
        let scalar = prop_oneof![
            any::<i8>().prop_map(|number| Kind::Integer(number.into())),
            any::<bool>().prop_map(Kind::Boolean),
            "[ab]{0,2}".prop_map(Kind::String),
        ];
        let entry = {
            let origin = origin.clone();
            move |kind: Kind| Entry { key: origin.clone(), value: Value { origin: origin.clone(), kind } }
        };
        let kind = scalar.prop_recursive(3, 24, 4, {
            let entry = entry.clone();
            move |inner| {
                let entry = entry.clone();
                prop_oneof![
                    prop::collection::vec(inner.clone(), 0..4)
                        .prop_map(move |kinds| Kind::Array(kinds.into_iter().map(value).collect())),
                    prop::collection::btree_map("[abc]", inner.prop_map(entry), 0..4).prop_map(Kind::Table),
                ]
            }
        });
        prop::collection::btree_map("[abc]", kind.prop_map(entry), 0..4)
    }

    /// The merge table once more, written as one would say it.
    fn model(earlier: &Kind, later: &Kind) -> String {
        match (earlier, later) {
            (Kind::Table(earlier), Kind::Table(later)) => model_tables(earlier, later),
            (Kind::Array(earlier), Kind::Array(later)) => {
                plain(&Kind::Array(earlier.iter().chain(later).cloned().collect()))
            }
            (_, later) => plain(later),
        }
    }

    fn model_tables(earlier: &Table, later: &Table) -> String {
        let keys: std::collections::BTreeSet<&String> = earlier.keys().chain(later.keys()).collect();
        let entries: Vec<String> = keys
            .into_iter()
            .map(|key| {
                let text = match (earlier.get(key), later.get(key)) {
                    (Some(earlier), Some(later)) => model(&earlier.value.kind, &later.value.kind),
                    (Some(only), None) | (None, Some(only)) => plain(&only.value.kind),
                    (None, None) => unreachable!("the key is of one of the two"),
                };
                format!("{key}={text}")
            })
            .collect();
        format!("{{{}}}", entries.join(","))
    }

    proptest! {
        #[test]
        fn merging_follows_the_table(earlier in any_table(), later in any_table()) {
            let expected = model_tables(&earlier, &later);
            let mut merged = earlier;
            merge(&mut merged, later);
            prop_assert_eq!(plain_table(&merged), expected);
        }

        #[test]
        fn an_empty_file_changes_nothing(table in any_table()) {
            let (mut before, mut after) = (Table::new(), table.clone());
            merge(&mut before, table.clone());
            merge(&mut after, Table::new());
            prop_assert_eq!(plain_table(&before), plain_table(&table));
            prop_assert_eq!(plain_table(&after), plain_table(&table));
        }

        #[test]
        fn a_duplicate_is_in_both(earlier in any_table(), later in any_table()) {
            let mut merged = earlier.clone();
            let told = merge(&mut merged, later.clone());
            if told.is_empty() {
                return Ok(());
            }
            prop_assert!(plain_table(&earlier).contains('[') && plain_table(&later).contains('['));
        }
    }
}
