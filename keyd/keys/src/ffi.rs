//! `libaziot_keys.so`: the keys of this crate behind the C ABI of the public key library, for programs that load that library.
//!
//! One symbol is exported, `aziot_keys_get_function_list`. Every pointer is checked, no panic crosses the boundary, and a call that fails
//! gives its reason on standard error. `arguments` is where pointers are followed; what is done with a key is `keys`.

pub mod abi;
mod arguments;
mod error;
mod functions;
mod process;

pub use functions::aziot_keys_get_function_list;
