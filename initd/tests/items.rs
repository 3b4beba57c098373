//! The list of ways out in `docs/escapes.md`: every item has tries whose answers are asserted as it says, or tests of its own.
#![allow(missing_docs)]

const LIST: &str = include_str!("../../docs/escapes.md");
const TABLE: &str = include_str!("escape.rs");
const TESTS: [&str; 6] = [
    TABLE,
    include_str!("hostile.rs"),
    include_str!("options.rs"),
    include_str!("pod.rs"),
    include_str!("bad.rs"),
    include_str!("limits.rs"),
];
const ITEMS: usize = 29;

/// The answers that `escape.rs` takes for a try, as the document writes them; blanks and line ends do not count.
fn asserted(name: &str) -> Option<String> {
    let packed: String = TABLE.split_whitespace().collect();
    let entry = format!("(\"{name}\",&[");
    let rest = &packed[packed.find(&entry)? + entry.len()..];
    let answers = rest.split(']').next()?.trim_end_matches(',');
    Some(answers.replace('"', ""))
}

#[test]
fn every_item_of_the_list_is_tried() {
    let rows: Vec<Vec<&str>> = LIST
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| item"))
        .map(|l| l.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), ITEMS);
    let mut tries = 0;
    for (n, row) in rows.iter().enumerate() {
        let [number, _, answers, tests] = row[..] else { panic!("{row:?}") };
        assert_eq!(number, (n + 1).to_string());
        assert!(!(answers.is_empty() && tests.is_empty()), "item {number} is tried by nothing");
        for group in answers.split("; ").filter(|g| !g.is_empty()) {
            let (names, answer) = group.split_once(" → ").expect(group);
            let answer: String = answer.replace(" or ", ",").split_whitespace().collect();
            for name in names.split(' ').map(|name| name.trim_matches('`')) {
                let found =
                    asserted(name).unwrap_or_else(|| panic!("item {number}: no try {name}"));
                let names_of_dev = name == "dev_names" && found.matches(',').count() == 13;
                assert!(
                    found == answer || names_of_dev,
                    "item {number}: {name} gives {found:?}, not {answer:?}"
                );
                tries += 1;
            }
        }
        for test in tests.split(", ").filter(|t| !t.is_empty()) {
            let declared = format!("#[test]\nfn {}()", test.trim_matches('`'));
            assert!(TESTS.iter().any(|t| t.contains(&declared)), "item {number}: no test {test}");
        }
    }
    println!("{ITEMS} items, {tries} tries");
}
