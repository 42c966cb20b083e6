//! What `/proc` tells of a process to any user (proc(5)): when it started, its cgroups, how deep its pid namespace is. Its namespaces
//! themselves are for its own user only.
//!
//! These files are made by the kernel as they are read: no disk is waited for, and so they are read where the request is answered.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aziot_http::peer::start_time;

use super::cgroup::Cgroups;

/// One process, as opposed to a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Instance {
    pid: i32,
    /// Clock ticks from the start of the system to its own.
    start: u64,
}

/// Where the kernel tells of processes.
pub(super) struct Processes {
    folder: PathBuf,
}

impl Processes {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Which process has this pid.
    pub(super) fn instance(&self, pid: i32) -> io::Result<Instance> {
        let start = start_time(&self.read(pid, "stat")?).ok_or_else(|| malformed("stat"))?;
        Ok(Instance { pid, start })
    }

    /// Its place in every hierarchy of cgroups.
    pub(super) fn cgroups(&self, pid: i32) -> io::Result<Cgroups> {
        self.read(pid, "cgroup").map(|text| Cgroups::parse(&text))
    }

    /// How many pid namespaces it is seen in, from ours to its own: one that sees what we see is at 1.
    pub(super) fn depth(&self, pid: i32) -> io::Result<usize> {
        depth(&self.read(pid, "status")?).ok_or_else(|| malformed("status"))
    }

    fn read(&self, pid: i32, file: &str) -> io::Result<String> {
        read(&self.folder.join(format!("{pid}/{file}")))
    }
}

/// The name of a process, which stands in `stat` and `status`, may be any bytes.
fn read(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{file} is not as proc(5) has it"))
}

/// Namespaces from ours to the innermost one: one pid for each.
fn depth(status: &str) -> Option<usize> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(line.split_ascii_whitespace().count()).filter(|depth| *depth > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_depth_is_the_number_of_pids() {
        assert_eq!(depth("Name:\tx\nNSpid:\t7\nNSpgid:\t7\n"), Some(1));
        assert_eq!(depth("Name:\tx\nNSpid:\t7\t3\t1\n"), Some(3));
        assert_eq!(depth("Name:\tx\n"), None);
        assert_eq!(depth("NSpid:\n"), None);
    }

    #[test]
    fn this_process_is_what_proc_says() {
        let processes = Processes::new(PathBuf::from("/proc"));
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(processes.instance(own).unwrap(), processes.instance(own).unwrap());
        assert_eq!(processes.depth(own).unwrap(), 1);
        assert!(processes.cgroups(own).is_ok());
        assert_eq!(processes.instance(i32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
