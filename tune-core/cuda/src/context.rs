//! A card that is in use.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUresult, CUstream};

use crate::ahead::{AHEAD, Ahead};
use crate::aside::Aside;
use crate::driver::{Card, Driver};
use crate::error::{Error, Result};
use crate::graph::{self, Recording};
use crate::libraries::{self, Found};
use crate::memory::{Memory, Usage};
use crate::modules::Modules;
use crate::products::Products;
use crate::profile::Times;
use crate::staging::Pinned;

/// A card, its memory, and a stream of work on it.
///
/// Work is queued and done later, in the order in which it was queued. So what fails may come to light at any later call. The
/// first error is remembered; from then on nothing more is done, and whoever wants to know asks [`Context::check`], at least
/// once before results are used. Clones are the same card.
#[derive(Debug, Clone)]
pub struct Context(pub(crate) Arc<Shared>);

/// The environment variable that keeps kernels from using what the card has: `warps` (no products of warpgroups), or `none` (no
/// matrix units at all).
pub const UNITS: &str = "TUNE_CUDA_UNITS";

/// The matrix units that our own kernels may use, where the card has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Units {
    Warpgroups,
    Warps,
    None,
}

impl Units {
    fn chosen() -> Result<Self> {
        match std::env::var(UNITS).as_deref() {
            Err(_) | Ok("") => Ok(Self::Warpgroups),
            Ok("warps") => Ok(Self::Warps),
            Ok("none") => Ok(Self::None),
            Ok(other) => Err(Error::Unavailable(format!("{UNITS} is {other:?}; it can be warps or none, or unset"))),
        }
    }
}

/// What a context and its buffers share.
#[derive(Debug)]
pub(crate) struct Shared {
    card: Card,
    device: CUdevice,
    context: CUcontext,
    pub(crate) stream: CUstream,
    libraries: Found,
    units: Units,
    memory: Mutex<Memory>,
    pinned: Mutex<Pinned>,
    /// There once the context is open.
    ahead: Mutex<Option<Ahead>>,
    pub(crate) aside: OnceLock<Aside>,
    pub(crate) modules: Mutex<Modules>,
    products: OnceLock<Products>,
    error: OnceLock<Error>,
    /// Where the time of all work is noted, while somebody asks for it.
    pub(crate) times: Times,
    /// Whether work is to be recorded, whether it is at this moment, and how often recorded work was done.
    pub(crate) graphs: AtomicBool,
    pub(crate) recording: Recording,
    pub(crate) launched: AtomicU64,
}

// SAFETY: the driver's handles may be used from any thread; each call makes the context its thread's own first.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Context {
    /// Opens a card.
    ///
    /// # Errors
    /// What [`Driver::probe`] and [`Driver::card`] refuse; no cuBLASLt; a card that cannot be opened.
    pub fn open(ordinal: usize) -> Result<Self> {
        let (units, graphs) = (Units::chosen()?, graph::wanted()?);
        let card = Driver::probe()?.card(ordinal)?.clone();
        let libraries = libraries::open_cublaslt()?;
        let opening = format!("opening {}", card.name);
        let failed = |e: cudarc::driver::DriverError| Error::of_driver(e.0, &opening);
        let (mut device, mut context, mut stream) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: each writes one handle, the later ones from the earlier.
        unsafe {
            sys::cuDeviceGet(&raw mut device, ordinal as i32).result().map_err(failed)?;
            sys::cuDevicePrimaryCtxRetain(&raw mut context, device).result().map_err(failed)?;
            sys::cuCtxSetCurrent(context).result().map_err(failed)?;
            sys::cuStreamCreate(&raw mut stream, flags).result().map_err(failed)?;
        }
        let memory = Mutex::new(Memory::new(device, card.memory)?);
        let modules = Mutex::new(Modules::new(card.capability)?);
        let (products, error, times) = (OnceLock::new(), OnceLock::new(), Times::default());
        let (pinned, ahead, aside) = (Mutex::default(), Mutex::default(), OnceLock::new());
        let context = Self(Arc::new(Shared {
            card,
            device,
            context,
            stream,
            libraries,
            units,
            memory,
            pinned,
            ahead,
            aside,
            modules,
            products,
            error,
            times,
            graphs,
            recording: Recording::default(),
            launched: AtomicU64::new(0),
        }));
        let products = Products::new(&context)?;
        _ = context.0.products.set(products);
        let ring = context.0.memory().take(AHEAD as u64)?;
        *context.0.ahead() = Some(Ahead::new(ring)?);
        _ = context.0.aside.set(Aside::new()?);
        context.check()?;
        Ok(context)
    }

    /// The card.
    pub fn card(&self) -> &Card {
        &self.0.card
    }

    /// What tells the card from all others, those of other machines as well; zeros where the driver does not say.
    pub fn uuid(&self) -> [u8; 16] {
        let mut id = sys::CUuuid { bytes: [0; 16] };
        // SAFETY: writes this many bytes; where it fails, they stay zero.
        unsafe { sys::cuDeviceGetUuid_v2(&raw mut id, self.0.device) };
        id.bytes.map(|byte| byte as u8)
    }

    /// Where cuBLASLt was found.
    pub fn libraries(&self) -> &Found {
        &self.0.libraries
    }

    /// How much memory is in use.
    pub fn usage(&self) -> Usage {
        self.0.memory().usage()
    }

    /// Bytes that are free on the card, whoever takes them; none where the driver does not say.
    pub fn free(&self) -> u64 {
        self.0.bind();
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers; where it fails, they stay zero.
        unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        free as u64
    }

    /// Begins a new maximum of [`Usage::most`] at what is in use now.
    pub fn forget_most(&self) {
        self.0.memory().forget_most();
    }

    /// Takes this many bytes from the driver ahead of their use, so that a step does not wait for them and nobody else takes them.
    ///
    /// # Errors
    /// The card has not that much.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        self.0.bind();
        self.0.memory().reserve(bytes)
    }

    /// The first error, if there was one.
    ///
    /// # Errors
    /// It.
    pub fn check(&self) -> Result<()> {
        self.0.error.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// The first error of any of it.
    pub fn synchronize(&self) -> Result<()> {
        self.0.run("doing the work that was queued", || {
            // SAFETY: the stream is there.
            unsafe { sys::cuStreamSynchronize(self.0.stream) }
        });
        self.check()
    }

    pub(crate) fn products(&self) -> Option<&Products> {
        self.0.products.get()
    }
}

impl Shared {
    /// Makes the card's context that of this thread.
    pub(crate) fn bind(&self) {
        // SAFETY: the context is there. Where it fails, so does what comes next.
        unsafe { sys::cuCtxSetCurrent(self.context) };
    }

    /// Whether something failed: nothing more may be asked of the card.
    pub(crate) fn failed(&self) -> bool {
        self.error.get().is_some() || self.recording.has_failed()
    }

    /// Remembers an error, if it is the first. What fails while work is recorded is an error of the recording alone.
    pub(crate) fn remember(&self, error: Error) {
        if let Some(error) = self.recording.fail(error) {
            _ = self.error.set(error);
        }
    }

    /// Calls the driver, unless something failed before; remembers if this does. Returns whether it was done.
    pub(crate) fn run(&self, doing: &str, call: impl FnOnce() -> CUresult) -> bool {
        !self.failed() && !self.cannot_record(doing) && self.call(doing, call)
    }

    fn call(&self, doing: &str, call: impl FnOnce() -> CUresult) -> bool {
        self.bind();
        match call().result() {
            Ok(()) => true,
            Err(error) => {
                self.remember(Error::of_driver(error.0, doing));
                false
            }
        }
    }

    /// The same for work of the context's one stream, which can be recorded, and whose time is noted under this name if somebody asks for
    /// it.
    pub(crate) fn queue(&self, doing: &str, call: impl FnOnce() -> CUresult) -> bool {
        self.timed(|| doing.to_owned(), || !self.failed() && self.call(doing, call))
    }

    pub(crate) fn card(&self) -> &Card {
        &self.card
    }

    pub(crate) fn units(&self) -> Units {
        self.units
    }

    pub(crate) fn pinned(&self) -> MutexGuard<'_, Pinned> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ahead(&self) -> MutexGuard<'_, Option<Ahead>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.bind();
        // SAFETY: waits for all work; then nothing uses what is given back, in the reverse order of `Context::open`.
        unsafe {
            sys::cuStreamSynchronize(self.stream);
            if let Some(mut ahead) = self.ahead().take() {
                ahead.close();
            }
            if let Some(aside) = self.aside.take() {
                aside.close();
            }
            self.pinned().close();
            if let Some(products) = self.products.take() {
                products.close();
            }
            self.modules.lock().unwrap_or_else(PoisonError::into_inner).close();
            sys::cuStreamDestroy_v2(self.stream);
            self.memory().close();
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}
