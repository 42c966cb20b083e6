//! The C ABI from both sides: programs in C that use `libaziot_keys.so`, and libraries in C that this crate loads. Needs `cc`.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

mod exports;
mod header;
mod program;
mod round_trip;
mod vendor;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{env, fs};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/abi");
const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// `libaziot_keys.so` of the build that made this test.
fn own_library() -> PathBuf {
    let library = env::current_exe().unwrap().with_file_name("libaziot_keys.so");
    let built = modified(&library);
    let source = newest(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    assert!(built >= source, "{} is older than the newest source file", library.display());
    library
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display())).modified().unwrap()
}

fn newest(folder: &Path) -> SystemTime {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { newest(&path) } else { modified(&path) }).max().unwrap()
}

/// Compiles `source`, strictly, into `output`.
fn compile(source: &Path, output: &Path, arguments: &[&str]) {
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-I", INCLUDE, "-o"]);
    let result = command.arg(output).arg(source).args(arguments).output().unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
}
