//! NCCL's functions, of the library that is found at run time.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::CUstream;

use crate::error::{Error, Result};
use crate::libraries;

/// Bytes of what processes find each other by.
pub(crate) const ID_BYTES: usize = 128;

/// The oldest version that divides a communicator.
const NEEDED: c_int = 21_800;

/// What all processes of a communicator have been given by one of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Id(pub(crate) [u8; ID_BYTES]);

/// A communicator.
pub(crate) type Comm = *mut c_void;

/// Numbers of a type, as NCCL names it.
pub(crate) type Type = c_int;
pub(crate) const BYTES: Type = 1;
pub(crate) const F32: Type = 7;

/// How numbers are reduced.
type Operation = c_int;
pub(crate) const SUM: Operation = 0;

/// That all is well.
pub(crate) const SUCCESS: c_int = 0;
/// That a call goes on.
pub(crate) const IN_PROGRESS: c_int = 7;

/// Declares the table of functions and how it is read from the library.
macro_rules! functions {
    ($($field:ident: $name:literal, fn($($of:ty),*) -> $result:ty;)*) => {
        /// The functions that are used.
        pub(crate) struct Nccl {
            $(pub(crate) $field: unsafe extern "C" fn($($of),*) -> $result,)*
        }

        impl Nccl {
            /// The functions of a library, or the name of the first that it lacks.
            fn of(library: &libloading::Library) -> std::result::Result<Self, &'static str> {
                // SAFETY: declared as in nccl.h, where they have not changed since version 2.18.
                unsafe { Ok(Self { $($field: *library.get($name.as_bytes()).map_err(|_| $name)?,)* }) }
            }
        }
    };
}

functions! {
    version: "ncclGetVersion", fn(*mut c_int) -> c_int;
    unique_id: "ncclGetUniqueId", fn(*mut Id) -> c_int;
    init: "ncclCommInitRank", fn(*mut Comm, c_int, Id, c_int) -> c_int;
    split: "ncclCommSplit", fn(Comm, c_int, c_int, *mut Comm, *mut c_void) -> c_int;
    abort: "ncclCommAbort", fn(Comm) -> c_int;
    async_error: "ncclCommGetAsyncError", fn(Comm, *mut c_int) -> c_int;
    error_string: "ncclGetErrorString", fn(c_int) -> *const c_char;
    last_error: "ncclGetLastError", fn(Comm) -> *const c_char;
    group_start: "ncclGroupStart", fn() -> c_int;
    group_end: "ncclGroupEnd", fn() -> c_int;
    all_gather: "ncclAllGather", fn(u64, u64, usize, Type, Comm, CUstream) -> c_int;
    all_reduce: "ncclAllReduce", fn(u64, u64, usize, Type, Operation, Comm, CUstream) -> c_int;
    reduce_scatter: "ncclReduceScatter", fn(u64, u64, usize, Type, Operation, Comm, CUstream) -> c_int;
    broadcast: "ncclBroadcast", fn(u64, u64, usize, Type, c_int, Comm, CUstream) -> c_int;
    reduce: "ncclReduce", fn(u64, u64, usize, Type, Operation, c_int, Comm, CUstream) -> c_int;
    send: "ncclSend", fn(u64, usize, Type, c_int, Comm, CUstream) -> c_int;
    receive: "ncclRecv", fn(u64, usize, Type, c_int, Comm, CUstream) -> c_int;
}

impl Nccl {
    /// The functions of the library that [`libraries::open_nccl`] finds, which stays open.
    pub(crate) fn get() -> Result<&'static Self> {
        static OPEN: Mutex<Option<&'static Nccl>> = Mutex::new(None);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = *open {
            return Ok(open);
        }
        let (library, found) = libraries::nccl()?;
        let unfit =
            |what: String| Error::Unavailable(format!("NCCL {found}: {what}; {}", libraries::how_to_get_nccl()));
        let functions = Self::of(&library).map_err(|name| unfit(format!("it lacks what is needed ({name})")))?;
        // Never closed: threads of its own run until the program ends.
        std::mem::forget(library);
        let mut version = 0;
        // SAFETY: writes one number.
        let code = unsafe { (functions.version)(&raw mut version) };
        if code != SUCCESS || version < NEEDED {
            let version = format!("{}.{}", version / 10_000, version / 100 % 100);
            return Err(unfit(format!("it is version {version}, and 2.18 or newer is needed")));
        }
        Ok(*open.insert(Box::leak(Box::new(functions))))
    }

    /// An error where a call says that it is one; `doing` completes "NCCL failed …".
    pub(crate) fn check(&self, code: c_int, doing: &str, comm: Comm) -> Result<()> {
        match code {
            SUCCESS | IN_PROGRESS => Ok(()),
            _ => Err(Error::Failed(format!(
                "NCCL failed {doing}: {}; NCCL_DEBUG=WARN in the environment has it say more",
                self.words(code, comm)
            ))),
        }
    }

    /// NCCL's own words for a code, and on what it has met last.
    pub(crate) fn words(&self, code: c_int, comm: Comm) -> String {
        // SAFETY: texts that stay, or none; a communicator may be null here.
        let [what, last] = unsafe { [(self.error_string)(code), (self.last_error)(comm)] }.map(|text| {
            // SAFETY: as above.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().replace('\n', ", "))
        });
        match (what, last.filter(|last| !last.is_empty())) {
            (Some(what), Some(last)) => format!("{what} ({last})"),
            (what, last) => what.or(last).unwrap_or_else(|| format!("error {code}")),
        }
    }
}
