//! What the shared library shows to others: the one function of the ABI.

use std::process::Command;

use crate::own_library;

#[test]
fn one_symbol_is_exported() {
    let output = Command::new("nm").args(["--dynamic", "--defined-only"]).arg(own_library()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let symbols = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = symbols.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(names, ["aziot_keys_get_function_list"]);
}
