//! Processes that MPI connects, by the system's library.
//!
//! It is a package of its own, so that `tune-core` is the same with MPI and without, and is compiled once for both. Without the feature
//! `mpi` it is empty, and nothing has to be installed for it.

#[cfg(feature = "mpi")]
mod by_mpi;

#[cfg(feature = "mpi")]
pub use by_mpi::register;
