//! NVIDIA cards, without a toolkit: the driver and cuBLASLt are opened at run time, kernels are embedded.
//!
//! [`Driver::probe`] says what there is and, in words for a user, what is missing. [`Context::open`] opens a card. Everything that
//! is asked of a [`Context`] is queued, in order; its first error is remembered and told by [`Context::check`].

mod ahead;
mod archive;
mod aside;
mod buffer;
mod collectives;
mod context;
mod driver;
mod error;
mod events;
mod graph;
mod kernels;
mod launch;
mod libraries;
mod lists;
mod memory;
mod modules;
mod nccl;
mod products;
mod profile;
mod ranges;
mod staging;

pub use ahead::AHEAD;
pub use aside::Reading;
pub use buffer::{Buffer, Element, View, ViewMut};
pub use collectives::{COURIER, Collective, Communicator, Courier, UniqueId};
pub use context::{Context, UNITS};
pub use driver::{Capability, Card, Driver, Version};
pub use error::{Error, Result};
pub use events::Event;
pub use graph::{GRAPHS, Graph, KeptMemory};
pub use kernels::{
    Activation, AdamW, Adapted, Attention, Beside, BlockFormat, BlockRows, Blocks, ByExperts, Choice, Distillation,
    Draw, Dropout, FileFormat, Grouped, Levels, Lion, Maps, Moved, Moved8bit, Norm, Qkv, QkvMut, Routes, ScheduleFree,
    Sgd, Spans, Squares, Stretch, Sweep, Table, TokenLoss, Top, Turn, addresses, few_places, panels,
    sum_rows_workspace,
};
pub use libraries::{Found, VARIABLE, open_cublaslt, open_nccl};
pub use lists::Lists;
pub use memory::{PIECE, Usage};
pub use products::{Candidate, Onto, Term, WORKSPACE};
pub use profile::Spent;
pub use ranges::{Pool, Ranges};
