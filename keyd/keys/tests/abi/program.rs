//! A program in C that is linked with `libaziot_keys.so`, as the public key service is, and uses all of it: `program.c`.

use std::path::Path;
use std::process::Command;

use aziot_files::Mode;
use openssl::pkey::PKey;
use openssl::pkey_ctx::PkeyCtx;
use openssl::sha::sha256;

use crate::{SOURCES, compile, own_library};

const EC_PEM: &str = include_str!("ec.pem");
const RSA_PEM: &str = include_str!("rsa.pem");

/// Runs the program over a fresh home, under `wrapper` if there is one, and returns what it prints.
fn run(wrapper: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (path, library) = (folder.path(), own_library());
    let program = path.join("program");
    let libraries = library.parent().unwrap().display();
    let link = [&format!("-L{libraries}"), "-laziot_keys", &format!("-Wl,-rpath,{libraries}")];
    compile(&Path::new(SOURCES).join("program.c"), &program, &link);
    for (name, pem) in [("ec.pem", EC_PEM), ("rsa.pem", RSA_PEM)] {
        aziot_files::write(path.join(name), Mode::PRIVATE, pem).unwrap();
    }
    let mut command = wrapper.iter().copied().chain([program.to_str().unwrap(), path.to_str().unwrap()]);
    let output = Command::new(command.next().unwrap()).args(command).output().unwrap();
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{errors}");
    // Refusals are said in words where a code says too little.
    for reason in ["unknown parameter \"homedir\"", "empty id", "the key has 3 bytes"] {
        assert!(errors.contains(reason), "{errors}");
    }
    assert!(!errors.contains("1234"), "a PIN is shown: {errors}");
    text
}

#[test]
fn a_program_in_c_uses_all_of_it() {
    let printed = run(&[]);
    let hex = printed.lines().find_map(|line| line.strip_prefix("signature ")).unwrap();
    let byte = |start| u8::from_str_radix(&hex[start..start + 2], 16).unwrap();
    let signature: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let key = PKey::private_key_from_pem(EC_PEM.as_bytes()).unwrap();
    let mut context = PkeyCtx::new(&key).unwrap();
    context.verify_init().unwrap();
    assert!(context.verify(&sha256(b"abc"), &signature).unwrap());
}

/// Neither memory that is not ours nor memory that is never given back. Where there is no valgrind, the other test is all there is.
#[test]
fn valgrind_finds_nothing() {
    if Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success()) {
        run(&["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"]);
    }
}
