//! How the processes of a run stand to each other.

use std::fmt;
use std::ops::{AddAssign, Deref, DerefMut};
use std::sync::Arc;

use bytemuck::Pod;
use tune_config::Config;

use super::cards::Cards;
use super::{Group, Pending};
use crate::engine::Card;
use crate::{Error, Result};

/// How several processes share the work and the model.
#[derive(Debug, Clone, Config)]
pub struct MeshKeys {
    /// Free the weights that a block gathers from other processes behind its forward pass, and gather them again on the way back; false
    /// keeps them from one to the other: less is moved, and more memory is taken.
    #[config(default = true, may_change)]
    pub fsdp_reshard_after_forward: bool,
    /// Among how many processes the model is divided; 1 gives each the whole model, and -1 takes all that
    /// data_parallel_replicate_dim leaves.
    #[config(default = -1, range = -1.., may_change)]
    pub data_parallel_shard_dim: i64,
    /// How many copies of the model there are, each with its share of every step's micro-batches.
    #[config(default = 1, range = 1.., may_change)]
    pub data_parallel_replicate_dim: usize,
}

impl Default for MeshKeys {
    fn default() -> Self {
        Self { fsdp_reshard_after_forward: true, data_parallel_shard_dim: -1, data_parallel_replicate_dim: 1 }
    }
}

impl MeshKeys {
    /// What they say of so many processes.
    ///
    /// # Errors
    /// Numbers whose product is another one.
    pub fn layout(&self, processes: usize) -> Result<Layout> {
        let Self { fsdp_reshard_after_forward, data_parallel_shard_dim, data_parallel_replicate_dim: replicas } = *self;
        let wrong = |what: String| {
            Err(Error::setup(format!(
                "{what}: start as many processes as data_parallel_replicate_dim times data_parallel_shard_dim, or set \
                 data_parallel_shard_dim=-1 and data_parallel_replicate_dim to a divisor of {processes}"
            )))
        };
        let shards = match usize::try_from(data_parallel_shard_dim) {
            Err(_) if processes.is_multiple_of(replicas) => processes / replicas,
            Err(_) => {
                return wrong(format!("data_parallel_replicate_dim={replicas} does not divide {processes} processes"));
            }
            Ok(0) => return wrong("data_parallel_shard_dim=0 leaves nobody to hold the model".to_owned()),
            Ok(shards) => shards,
        };
        if shards.checked_mul(replicas) != Some(processes) {
            let are = if processes == 1 { "process is" } else { "processes are" };
            return wrong(format!(
                "data_parallel_replicate_dim={replicas} times data_parallel_shard_dim={shards} is not {processes}, and \
                 {processes} {are} there"
            ));
        }
        Ok(Layout { shards, replicas, keeps_gathered: !fsdp_reshard_after_forward && shards > 1 })
    }
}

/// How many processes divide a model among them, and how often that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Among how many processes the model is divided.
    pub shards: usize,
    /// How many such groups there are.
    pub replicas: usize,
    /// Whether the weights that a block gathers stay from its forward pass to its backward pass.
    pub keeps_gathered: bool,
}

impl Layout {
    /// A process alone.
    pub const ONE: Self = Self { shards: 1, replicas: 1, keeps_gathered: false };

    /// How many processes there are.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.shards * self.replicas
    }

    /// Whether it is another one than a model that all processes divide and gather as they need it.
    #[must_use]
    pub fn is_said(&self) -> bool {
        self.replicas > 1 || self.keeps_gathered
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards, replicas, keeps_gathered } = *self;
        write!(f, "{}", self.processes())?;
        match (shards, replicas) {
            (_, 1) => {}
            (1, _) => write!(f, ", each with the whole model")?,
            _ => write!(f, ", {replicas} times the model divided among {shards}")?,
        }
        if keeps_gathered {
            write!(f, "; gathered weights stay until the backward pass")?;
        }
        Ok(())
    }
}

/// The processes of a run as one of them sees them. Neighbours divide a model among them, and each has the same part as those at its
/// place among other neighbours. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    all: Group,
    shards: Group,
    replicas: Group,
    keeps_gathered: bool,
    /// How the cards of the processes are connected, where these have cards.
    cards: Option<Arc<Cards>>,
}

impl From<Group> for Mesh {
    /// All divide one model.
    fn from(all: Group) -> Self {
        Self { shards: all.clone(), all, replicas: Group::single(), keeps_gathered: false, cards: None }
    }
}

impl Mesh {
    /// Makes the groups of a layout. All processes are to ask at the same time.
    ///
    /// # Errors
    /// A layout of another number of processes, or another one than that of another process; and as [`Pending::wait`].
    pub fn new(all: &Group, layout: Layout) -> Result<Self> {
        if layout.processes() != all.world_size() {
            return Err(Error::setup(format!(
                "the layout is of {} processes, and {} are there",
                layout.processes(),
                all.world_size()
            )));
        }
        let (rank, Layout { shards, replicas, keeps_gathered }) = (all.rank(), layout);
        let text = layout.to_string();
        let texts = all.texts("the layout of processes", &text)?;
        if let Some(other) = texts.iter().position(|theirs| *theirs != texts[0]) {
            return Err(Error::setup(format!(
                "rank {other} has another config than rank 0: data_parallel_shard_dim, data_parallel_replicate_dim and \
                 fsdp_reshard_after_forward must be the same in all processes of a run"
            )));
        }
        let part = |of: &str, color: usize, len: usize| match len {
            1 => Ok(Group::single()),
            _ if len == all.world_size() => Ok(all.clone()),
            _ => all.split(of, color),
        };
        Ok(Self {
            all: all.clone(),
            shards: part("the processes that divide a model", rank / shards, shards)?,
            replicas: part("the processes that have the same part", rank % shards, replicas)?,
            keeps_gathered,
            cards: None,
        })
    }

    /// The same processes, which compute on a card each: this one on `card`. Weights and gradients then go from card to card. All
    /// processes are to ask at the same time. A process alone has nobody to be connected to.
    ///
    /// # Errors
    /// No NCCL, processes that have the same card, cards that cannot be connected: where one process cannot, all fail.
    pub fn connect(self, card: &Arc<Card>) -> Result<Self> {
        if self.is_single() {
            return Ok(self);
        }
        let (parts, limit) = ((&self.shards, &self.replicas), self.all.limit());
        let cards = Cards::connect(&self.all, parts, self.layout(), card, limit)?;
        Ok(Self { cards: Some(Arc::new(cards)), ..self })
    }

    /// How the cards of the processes are connected, where these have cards.
    pub(crate) fn cards(&self) -> Option<&Cards> {
        self.cards.as_deref()
    }

    /// All processes.
    #[must_use]
    pub fn all(&self) -> &Group {
        &self.all
    }

    /// Those among whom this process's copy of the model is divided.
    #[must_use]
    pub fn shards(&self) -> &Group {
        &self.shards
    }

    /// Those that have the same part of a model as this process.
    #[must_use]
    pub fn replicas(&self) -> &Group {
        &self.replicas
    }

    /// How many processes there are, and how a model is divided among them.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let (shards, replicas) = (self.shards.world_size(), self.replicas.world_size());
        Layout { shards, replicas, keeps_gathered: self.keeps_gathered }
    }

    /// Whether there is no other process.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.all.is_single()
    }

    /// Whether a model is divided.
    #[must_use]
    pub fn divides(&self) -> bool {
        !self.shards.is_single()
    }

    /// Whether the weights that a block gathers stay from its forward pass to its backward pass.
    #[must_use]
    pub fn keeps_gathered(&self) -> bool {
        self.keeps_gathered
    }

    /// The part that is this process's of the sum over all processes of something that is divided. `counts` are the elements of each
    /// part, and `scratch` gives memory for so many elements while they are added.
    ///
    /// # Panics
    /// As [`Group::reduce_scatter`].
    pub fn reduce_scatter<T: Pod + AddAssign, S, D>(
        &self,
        of: &str,
        all: S,
        counts: Vec<usize>,
        mine: D,
        scratch: fn(usize) -> D,
    ) -> Pending<D>
    where
        S: Deref<Target = [T]> + Send + 'static,
        D: DerefMut<Target = [T]> + Send + 'static,
    {
        self.shards.reduce_scatter_among(&self.replicas, of, all, counts, mine, scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shards: i64, replicas: usize, processes: usize) -> Result<Layout> {
        let keys = MeshKeys {
            fsdp_reshard_after_forward: false,
            data_parallel_shard_dim: shards,
            data_parallel_replicate_dim: replicas,
        };
        keys.layout(processes)
    }

    #[test]
    fn a_layout_is_of_all_processes() {
        let of = |shards, replicas, keeps_gathered| Layout { shards, replicas, keeps_gathered };
        assert_eq!(layout(-1, 1, 4).unwrap(), of(4, 1, true));
        assert_eq!(layout(-1, 2, 4).unwrap(), of(2, 2, true));
        assert_eq!(layout(2, 2, 4).unwrap(), of(2, 2, true));
        assert_eq!(layout(1, 4, 4).unwrap(), of(1, 4, false), "there is nothing to gather");
        assert_eq!(layout(-1, 4, 4).unwrap(), of(1, 4, false));
        assert_eq!(layout(-1, 1, 1).unwrap(), Layout::ONE);
        for (shards, replicas, processes, said) in [
            (-1, 3, 4, "data_parallel_replicate_dim=3 does not divide 4 processes"),
            (2, 1, 4, "data_parallel_replicate_dim=1 times data_parallel_shard_dim=2 is not 4"),
            (2, 1, 1, "is not 1, and 1 process is there"),
            (0, 1, 4, "leaves nobody to hold the model"),
            (i64::MAX, usize::MAX, 4, "is not 4"),
        ] {
            let error = layout(shards, replicas, processes).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
