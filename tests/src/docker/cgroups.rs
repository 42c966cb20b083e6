//! Cgroups beside those of the engines, with names like theirs, in all hierarchies of this machine, and processes in them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Enters all cgroups before `--`, then becomes the rest.
const ENTER: &str = r#"while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@""#;

/// A cgroup in every hierarchy. Dropping it removes it; no process may be in there any more.
pub struct Cgroups {
    /// The first of each hierarchy, and the innermost.
    folders: Vec<(PathBuf, PathBuf)>,
}

impl Cgroups {
    /// Makes cgroups called `path` below one of this name.
    pub fn make(name: &str, path: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("could not read the mounts")?;
        let mut cgroups = Self { folders: Vec::new() };
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(place), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            // A set of processors takes nobody before it is told which they are.
            if !["cgroup", "cgroup2"].contains(&kind) || options.split(',').any(|option| option == "cpuset") {
                continue;
            }
            let first = Path::new(place).join(format!("aziot-test-{name}"));
            let last = first.join(path);
            cgroups.folders.push((first, last.clone()));
            fs::create_dir_all(&last).with_context(|| format!("could not make {}", last.display()))?;
        }
        ensure!(!cgroups.folders.is_empty(), "no hierarchy of cgroups is mounted");
        Ok(cgroups)
    }

    /// Runs a command in there, and returns what it printed.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", ENTER, "sh"]).args(self.folders.iter().map(|(_, last)| last)).arg("--");
        let output = shell.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null()).output();
        let output = output.context("could not run sh")?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for (first, last) in &self.folders {
            // A cgroup goes as a folder without any file, from inside out.
            for folder in last.ancestors().take_while(|folder| folder.starts_with(first)) {
                let _ = fs::remove_dir(folder);
            }
        }
    }
}
