//! MPI's collectives. All calls are made by the one thread that communicates.

use std::rc::Rc;
use std::time::{Duration, Instant};

use mpi::datatype::{Equivalence, Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::request::{Request, Scope, scope};
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Count, Threading};

use tune_core::distributed::{self, Place, Transport, places};
use tune_core::{Error, Result};

/// How long a collective is asked for without a pause.
const EAGER: Duration = Duration::from_micros(50);
/// The pause between two questions after that: the processor is needed by those who compute.
const PAUSE: Duration = Duration::from_micros(100);

/// The processes that `mpirun` or the like started, or some of them.
struct ByMpi {
    world: SimpleCommunicator,
    /// MPI ends with the last of these.
    universe: Rc<Universe>,
}

/// Has processes that were started together be connected by MPI. The `main` of a recipe calls it where its package has the feature
/// `mpi`.
pub fn register() {
    distributed::connect_by(open);
}

/// Joins the others.
fn open() -> Result<(Box<dyn Transport>, Place)> {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        return Err(Error::setup("MPI was begun by another part of this program"));
    };
    let world = universe.world();
    let local = world.split_shared(world.rank());
    let number = |count: Count| usize::try_from(count).unwrap_or_default();
    let place = Place {
        rank: number(world.rank()),
        world_size: number(world.size()),
        local_rank: number(local.rank()),
        local_world_size: number(local.size()),
    };
    Ok((Box::new(ByMpi { world, universe: Rc::new(universe) }), place))
}

/// Waits until a collective is over.
fn wait<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>) {
    let begun = Instant::now();
    while let Err(not_yet) = request.test() {
        request = not_yet;
        match begun.elapsed() < EAGER {
            true => std::thread::yield_now(),
            false => std::thread::sleep(PAUSE),
        }
    }
}

/// Bytes as MPI counts them, in units of some bytes each.
fn in_units(bytes: &[usize], unit: usize) -> Result<Vec<Count>> {
    let count = |&bytes: &usize| Count::try_from(bytes / unit).map_err(|_| too_many(bytes));
    bytes.iter().map(count).collect()
}

fn too_many(bytes: usize) -> Error {
    Error::Training(format!("{bytes} bytes are more than MPI moves at a time: more processes have smaller shares"))
}

/// Whether something can be counted in units of four bytes.
fn is_of_words(counts: &[&[usize]], buffers: &[&[u8]]) -> bool {
    counts.iter().all(|counts| counts.iter().all(|bytes| bytes % 4 == 0))
        && buffers.iter().all(|bytes| bytemuck::try_cast_slice::<u8, u32>(bytes).is_ok())
}

impl ByMpi {
    fn gather<T: Equivalence>(&self, mine: &[T], counts: &[usize], all: &mut [T]) -> Result<()> {
        let (of_each, to) = (in_units(counts, size_of::<T>())?, in_units(&places(counts), size_of::<T>())?);
        let mut all = PartitionMut::new(all, of_each, &to[..counts.len()]);
        scope(|scope| wait(self.world.immediate_all_gather_varcount_into(scope, mine, &mut all)));
        Ok(())
    }

    fn exchange<T: Equivalence>(
        &self,
        parts: &[T],
        for_each: &[usize],
        mine: &mut [T],
        from_each: &[usize],
    ) -> Result<()> {
        let (unit, ranks) = (size_of::<T>(), for_each.len());
        let (send, from) = (in_units(for_each, unit)?, in_units(&places(for_each), unit)?);
        let (receive, to) = (in_units(from_each, unit)?, in_units(&places(from_each), unit)?);
        let parts = Partition::new(parts, send, &from[..ranks]);
        let mut mine = PartitionMut::new(mine, receive, &to[..ranks]);
        scope(|scope| wait(self.world.immediate_all_to_all_varcount_into(scope, &parts, &mut mine)));
        Ok(())
    }
}

impl Transport for ByMpi {
    fn all_gather(&mut self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()> {
        match is_of_words(&[counts], &[mine, all]) {
            true => self.gather::<u32>(bytemuck::cast_slice(mine), counts, bytemuck::cast_slice_mut(all)),
            false => self.gather(mine, counts, all),
        }
    }

    fn all_to_all(&mut self, parts: &[u8], for_each: &[usize], mine: &mut [u8], from_each: &[usize]) -> Result<()> {
        match is_of_words(&[for_each, from_each], &[parts, mine]) {
            true => {
                self.exchange::<u32>(bytemuck::cast_slice(parts), for_each, bytemuck::cast_slice_mut(mine), from_each)
            }
            false => self.exchange(parts, for_each, mine, from_each),
        }
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let root = Count::try_from(root).map_err(|_| too_many(root))?;
        Count::try_from(bytes.len()).map_err(|_| too_many(bytes.len()))?;
        scope(|scope| wait(self.world.process_at_rank(root).immediate_broadcast_into(scope, bytes)));
        Ok(())
    }

    fn split(&mut self, color: usize) -> Result<Box<dyn Transport>> {
        let color = Count::try_from(color).map_err(|_| too_many(color))?;
        match self.world.split_by_color(Color::with_value(color)) {
            Some(world) => Ok(Box::new(Self { world, universe: Rc::clone(&self.universe) })),
            None => Err(Error::Training("MPI made no communicator for some of its processes".to_owned())),
        }
    }
}
