//! Why a vendor's library cannot be used at all, and why one call of it failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A vendor's library that keys cannot be had from.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The loader would look for it in places that nobody named.
    #[error("the path of the key library is {}, but must start with a slash", path.display())]
    RelativePath {
        /// What was given.
        path: PathBuf,
    },
    /// There is nothing at the path, or it is closed to this process.
    #[error("could not find the key library {}", path.display())]
    Missing {
        /// The library.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A folder, socket or device.
    #[error("the key library {} is not a regular file", path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// The loader refuses it: no library, of another machine, or in need of something that is missing.
    #[error("could not load the key library {}", path.display())]
    Open {
        /// The library.
        path: PathBuf,
        /// The loader's reason.
        source: libloading::Error,
    },
    /// It is some other library.
    #[error("{} is no key library: it does not have the function aziot_keys_get_function_list", path.display())]
    NoSymbol {
        /// The library.
        path: PathBuf,
        /// The loader's reason.
        source: libloading::Error,
    },
    /// Asked for each version, it answers with an error.
    #[error("the key library {} has neither version 2.1.0.0 nor version 2.0.0.0 of its functions", path.display())]
    NoVersion {
        /// The library.
        path: PathBuf,
    },
    /// It hands out a list of functions that nobody asked for.
    #[error("the key library {} has its functions in the unknown version {version:#010x}", path.display())]
    UnknownVersion {
        /// The library.
        path: PathBuf,
        /// What the list says.
        version: u32,
    },
    /// It says that it has a list of functions, and gives none that can be read.
    #[error("the key library {} gives no usable list of its functions", path.display())]
    NoList {
        /// The library.
        path: PathBuf,
    },
    /// A function is missing.
    #[error("the key library {} does not have the function {function}", path.display())]
    NoFunction {
        /// The library.
        path: PathBuf,
        /// Its name in the list.
        function: &'static str,
    },
    /// It refuses a parameter. The value is not repeated, it may hold a PIN.
    #[error("the key library {} refuses the parameter {name:?}", path.display())]
    Parameter {
        /// The library.
        path: PathBuf,
        /// The parameter's name.
        name: String,
        /// How.
        source: CallError,
    },
    /// It did not get ready in time.
    #[error("could not start the key library {}", path.display())]
    Start {
        /// The library.
        path: PathBuf,
        /// What happened.
        source: CallError,
    },
    /// There are no more threads.
    #[error("could not start a thread for the key library")]
    Thread(#[source] io::Error),
}

impl LoadError {
    /// Whether the configuration must change before another start can succeed.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            LoadError::RelativePath { .. }
            | LoadError::Missing { .. }
            | LoadError::NotAFile { .. }
            | LoadError::Open { .. }
            | LoadError::NoSymbol { .. }
            | LoadError::NoVersion { .. }
            | LoadError::UnknownVersion { .. }
            | LoadError::NoList { .. }
            | LoadError::NoFunction { .. } => true,
            // A token that is not there may be there the next time.
            LoadError::Parameter { source, .. } => matches!(source, CallError::InvalidParameter),
            LoadError::Start { .. } | LoadError::Thread(_) => false,
        }
    }
}

/// A call of a vendor's library that failed. The library itself gives a number and no reason.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Code 1.
    #[error("the key library says that a parameter is invalid")]
    InvalidParameter,
    /// Any other code.
    #[error("the key library failed with code {0}")]
    External(u32),
    /// It would need more memory than any result can have.
    #[error("the key library says that its result has up to {length} bytes, more than the {most} of any result")]
    TooLong {
        /// What it says.
        length: usize,
        /// What is believed.
        most: usize,
    },
    /// More bytes than the buffer that it was given: it wrote past the end, or miscounted.
    #[error("the key library says that it wrote {length} bytes into a buffer of {capacity}")]
    Overflow {
        /// What it says.
        length: usize,
        /// What there was room for.
        capacity: usize,
    },
    /// A value that the ABI does not know.
    #[error("the key library gives {value} for {what}")]
    UnknownValue {
        /// The result.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// A function that lists of version 2.0.0.0 do not have.
    #[error("a key library of version 2.0.0.0 cannot {0}")]
    NotInVersion(&'static str),
    /// It has not answered in time. Whether it does what it was asked is not known.
    #[error("the key library did not answer within {} s", .0.as_secs_f32())]
    Late(Duration),
    /// An earlier call has not returned; one call runs at a time.
    #[error("the key library has not returned from an earlier call for more than {} s", .0.as_secs_f32())]
    Stuck(Duration),
    /// More callers than the queue holds.
    #[error("too many callers wait for the key library already")]
    Busy,
    /// Its thread is gone.
    #[error("the thread of the key library has ended")]
    Gone,
}
