//! Whatever is missing has its message: no driver, one that is too old or does not start, no card, one that is too old, no
//! cuBLASLt. Each case is tried in a process of its own, with a driver that only answers.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tune_cuda::{Context, VARIABLE};

/// What the child is told in.
const ORDINAL: &str = "STAND_IN_ORDINAL";

/// What a case is about: opens a card and says what came of it.
#[test]
#[ignore = "what the other tests start, in an environment of their own"]
fn child() {
    let Ok(ordinal) = std::env::var(ORDINAL) else {
        println!("nothing was asked: only the other tests, which set {ORDINAL}, have a use for this one");
        return;
    };
    let ordinal = ordinal.parse().unwrap();
    println!("<{}>", Context::open(ordinal).map_or_else(|e| e.to_string(), |_| "opened".into()));
}

/// A folder with a stand-in for the driver, and one with a file that only has cuBLASLt's name.
fn stand_ins() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-ins");
        let (driver, nothing) = ("harness/stand_in/driver.cpp", "tests/stand_ins/nothing.c");
        for (source, library) in [(driver, "driver/libcuda.so.1"), (nothing, "cublas/libcublasLt.so.13")] {
            let path = folder.join(library);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut cc = Command::new("c++");
            let name = path.file_name().unwrap().to_str().unwrap();
            cc.args(["-shared", "-fPIC", "-w", &format!("-Wl,-soname,{name}"), "-o"]).arg(&path);
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
            assert!(cc.arg(source).arg("-ldl").status().unwrap().success());
        }
        std::fs::create_dir_all(folder.join("broken")).unwrap();
        std::fs::write(folder.join("broken/libcublasLt.so.13"), "no library").unwrap();
        folder
    })
}

/// What opening card `ordinal` says where the environment is this.
#[track_caller]
fn says(ordinal: usize, environment: &[(&str, &str)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
    child.env_clear().env(ORDINAL, ordinal.to_string()).env("PATH", "/nowhere").env("HOME", "/nowhere");
    child.env("LD_LIBRARY_PATH", stand_ins().join("driver"));
    child.env(VARIABLE, stand_ins().join("cublas"));
    environment.iter().for_each(|(name, value)| _ = child.env(name, value));
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let message = said.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>'));
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    message.unwrap_or_else(|| panic!("{said}")).0.to_owned()
}

#[track_caller]
fn holds(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(!message.contains('\n'), "more than a line: {message}");
}

#[test]
fn no_driver() {
    // Where the machine has one, it is found whatever the environment says.
    if Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists() {
        return;
    }
    let message = says(0, &[("LD_LIBRARY_PATH", "/nowhere")]);
    holds(&message, &["no NVIDIA driver", "libcuda.so.1", "580 or newer", "device=cpu"]);
}

#[test]
fn a_driver_that_is_too_old() {
    let message = says(0, &[("STAND_IN_VERSION", "12040")]);
    holds(&message, &["too old", "CUDA 12.4", "13.0 is needed", "580 or newer", "device=cpu"]);
}

#[test]
fn a_driver_that_does_not_start() {
    holds(&says(0, &[("STAND_IN_INIT", "803")]), &["kernel module", "restart the machine"]);
    holds(&says(0, &[("STAND_IN_INIT", "804")]), &["cuda-compat", "LD_LIBRARY_PATH"]);
    holds(&says(0, &[("STAND_IN_INIT", "34")]), &["stub", "LD_LIBRARY_PATH"]);
    holds(&says(0, &[("STAND_IN_INIT", "999")]), &["does not start", "a stand-in's words", "nvidia-smi"]);
}

#[test]
fn no_card() {
    holds(&says(0, &[("STAND_IN_INIT", "100")]), &["shows no card", "nvidia-smi"]);
    let hidden = says(0, &[("STAND_IN_INIT", "100"), ("CUDA_VISIBLE_DEVICES", "")]);
    holds(&hidden, &["shows no card", "CUDA_VISIBLE_DEVICES is \"\""]);
    holds(&says(0, &[("STAND_IN_CARDS", "0")]), &["shows no card"]);
}

#[test]
fn another_card_than_there_is() {
    let message = says(2, &[("STAND_IN_CARDS", "2")]);
    holds(&message, &["no card 2", "cuda:0 (Stand-in)", "cuda:1 (Stand-in)"]);
}

#[test]
fn a_card_that_is_too_old_or_virtual() {
    let old = says(0, &[("STAND_IN_MAJOR", "7"), ("STAND_IN_MINOR", "5")]);
    holds(&old, &["too old", "7.5", "8.0", "Ampere", "device=cpu"]);
    holds(&says(0, &[("STAND_IN_MAPS", "0")]), &["virtual", "device=cpu"]);
}

#[test]
fn no_cublaslt() {
    let nowhere = says(0, &[(VARIABLE, "/nowhere")]);
    holds(&nowhere, &["libcublasLt.so.13 is not in /nowhere", VARIABLE, "pip install 'nvidia-cublas==13.*'"]);
    let broken = stand_ins().join("broken");
    holds(&says(0, &[(VARIABLE, broken.to_str().unwrap())]), &["broken", "cannot be opened", "pip install"]);
    if !Path::new("/usr/local/cuda").exists() {
        holds(&says(0, &[(VARIABLE, "")]), &["neither", "beside the active Python", "pip install"]);
    }
}

/// It is found beside the Python that is active, by the links in its folder.
#[test]
fn cublaslt_of_a_python_environment() {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("venv");
    let packages = venv.join("lib/python3.12/site-packages/nvidia/cu13/lib");
    for folder in [&packages, &venv.join("bin")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::copy(stand_ins().join("cublas/libcublasLt.so.13"), packages.join("libcublasLt.so.13")).unwrap();
    std::fs::write(venv.join("bin/python3"), "").unwrap();
    let opening = ("STAND_IN_OPEN", "46");
    // Far enough to have found it.
    let found = ["opening Stand-in", "another program holds the card"];
    holds(&says(0, &[(VARIABLE, ""), ("PATH", venv.join("bin").to_str().unwrap()), opening]), &found);
    holds(&says(0, &[(VARIABLE, ""), ("VIRTUAL_ENV", venv.to_str().unwrap()), opening]), &found);
}

#[test]
fn a_card_that_cannot_be_opened() {
    let message = says(0, &[("STAND_IN_OPEN", "46")]);
    holds(&message, &["opening Stand-in", "a stand-in's words", "nvidia-smi"]);
}

#[test]
fn a_wrong_choice_of_units() {
    holds(&says(0, &[(tune_cuda::UNITS, "all")]), &[tune_cuda::UNITS, "\"all\"", "warps or none"]);
}
