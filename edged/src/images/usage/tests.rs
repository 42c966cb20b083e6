use proptest::{collection::btree_map, prelude::*};

use super::*;

/// An id that is told from others by its first digits.
fn id(digits: &str) -> String {
    format!("sha256:{digits:0<64}")
}

fn text(folder: &Path) -> String {
    String::from_utf8(aziot_files::read_limited(folder.join(FILE), FILE_LIMIT).unwrap()).unwrap()
}

#[tokio::test]
async fn the_public_systems_file_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let old = format!("{} 1714550000\n{} 1714550001\n", id("a4"), id("b5"));
    aziot_files::write(folder.path().join(FILE), Mode::SHARED, &old).unwrap();
    aziot_files::write(folder.path().join(PUBLIC_TEMPORARY), Mode::SHARED, "sha").unwrap();
    let usage = Use::open(folder.path()).await;
    assert_eq!(text(folder.path()), old);
    assert!(!folder.path().join(PUBLIC_TEMPORARY).exists());
    let before = now();
    usage.used(&id("c6")).await;
    usage.used(&id("a4")).await;
    let lines = text(folder.path());
    let (times, bad) = parse(&lines);
    assert_eq!((times.len(), bad, times[&id("b5")]), (3, 0, 1_714_550_001));
    assert!(times[&id("a4")] >= before && times[&id("c6")] >= before);
}

#[tokio::test]
async fn a_missing_file_is_made_empty() {
    let folder = tempfile::tempdir().unwrap();
    Use::open(folder.path()).await;
    assert_eq!(text(folder.path()), "");
}

#[tokio::test]
async fn bad_lines_cost_themselves_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, podmans) = (id("a"), id("b"), format!("{:0<64}", "c"));
    let lines = [
        &format!("{a} 5"),
        "nonsense",
        &a,
        &format!("{b} x"),
        &format!("{b} -1"),
        &format!("{b} 1 2"),
        "",
        "\u{e9} 7",
        &format!("{a} 3\r"),
        &format!("{podmans} 18446744073709551615"),
    ];
    aziot_files::write(folder.path().join(FILE), Mode::SHARED, lines.join("\n")).unwrap();
    Use::open(folder.path()).await;
    assert_eq!(text(folder.path()), format!("{podmans} 18446744073709551615\n{a} 5\n"));
}

#[test]
fn only_whole_ids_are_ids() {
    for line in [format!("{} 5", id("a")), format!("{} 5", &id("a")[7..]), format!("sha512:{:0<128} 5", "f")] {
        assert_eq!(entry(&line).map(|(_, time)| time), Some(5), "{line}");
    }
    let capital = id("A");
    for name in
        ["alpine", "alpine:3", "host:5000/alpine", "abc", "sha256:abc", "sha256:", &id("a")[1..], &id("g"), &capital]
    {
        assert_eq!(entry(&format!("{name} 5")), None, "{name}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_left_alone_until_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(FILE);
    // A folder in its place: nobody can read that, root neither.
    let _ = aziot_files::create_directory(&file, Mode::SHARED_DIRECTORY).unwrap();
    let usage = Use::open(folder.path()).await;
    usage.used(&id("a")).await;
    assert!(!usage.is_readable().await);
    assert!(file.is_dir());
    std::fs::remove_dir(&file).unwrap();
    aziot_files::write(&file, Mode::SHARED, format!("{} 1\n{} 2\n", id("a"), id("b"))).unwrap();
    assert!(usage.is_readable().await);
    let (times, _) = parse(&text(folder.path()));
    assert_eq!(times[&id("b")], 2);
    assert!(times[&id("a")] > 1, "what was noted meanwhile is newer");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let usage = Use::open(&folder.path().join("not/there")).await;
    usage.used("sha256:a").await;
    assert!(usage.is_older("sha256:a", u64::MAX));
}

#[tokio::test]
async fn what_is_used_or_of_the_future_stays_young() {
    let folder = tempfile::tempdir().unwrap();
    let lines = [("a1", 950), ("01d", 100), ("05ed", 100), ("0f", 999), ("07", 5000)];
    let lines = lines.map(|(digits, time)| format!("{} {time}\n", id(digits))).concat();
    aziot_files::write(folder.path().join(FILE), Mode::SHARED, lines).unwrap();
    let usage = Use::open(folder.path()).await;
    let in_use = [id("05ed"), id("0f"), id("dd")];
    let old = usage.refresh(|id| in_use.iter().any(|used| used == id), 1000, 900).await;
    assert_eq!(old, [id("01d")]);
    let (times, _) = parse(&text(folder.path()));
    let expected = [("a1", 950), ("01d", 100), ("05ed", 1000), ("0f", 1000), ("07", 5000)];
    assert_eq!(times, expected.map(|(digits, time)| (id(digits), time)).into());
    assert!(usage.is_older(&id("01d"), 900) && !usage.is_older(&id("05ed"), 900));
    usage.forget(&id("01d")).await;
    assert!(!text(folder.path()).contains(&id("01d")));
}

#[tokio::test]
async fn a_clock_that_is_behind_makes_nothing_old() {
    let folder = tempfile::tempdir().unwrap();
    let ahead = now() + 86_400;
    let lines = format!("{} {ahead}\n{} 1000000\n", id("a"), id("b"));
    aziot_files::write(folder.path().join(FILE), Mode::SHARED, lines).unwrap();
    let usage = Use::open(folder.path()).await;
    // The present clock is behind what is noted.
    usage.used(&id("a")).await;
    // This one even more so: it was never set.
    assert!(usage.refresh(|used| used == id("b"), 1000, 900).await.is_empty());
    let (times, _) = parse(&text(folder.path()));
    assert_eq!((times[&id("a")], times[&id("b")]), (ahead, 1_000_000));
    // The clock is set: what was seen a moment ago is young by it.
    assert!(usage.refresh(|_| false, 2_000_000, 1_999_000).await.is_empty());
    let (times, _) = parse(&text(folder.path()));
    assert!((1_999_900..=2_000_000).contains(&times[&id("b")]), "{times:?}");
}

proptest! {
    #[test]
    fn no_file_makes_the_parser_stumble(text in "\\PC*|([a-z0-9:]{0,6} ?-?[0-9]{0,22}[\n\r]{0,2}){0,8}") {
        let (times, bad) = parse(&text);
        prop_assert!(times.len() + bad <= text.lines().count());
        prop_assert_eq!(parse(&print(&times)), (times, 0));
    }

    #[test]
    fn what_is_written_is_read(times in btree_map("(sha256:)?[0-9a-f]{64}", any::<u64>(), 0..20)) {
        prop_assert_eq!(parse(&print(&times)), (times, 0));
    }
}
