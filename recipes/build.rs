//! Has programs with the feature `mpi` find MPI's library where it is now: not all of them are where the system looks.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "mpi")]
    for path in build_probe_mpi::probe().into_iter().flat_map(|mpi| mpi.lib_paths) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", path.display());
    }
}
