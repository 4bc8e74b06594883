//! Parameters that several cards divide: parts go from card to card, and are whole on each for the time of a block.

use std::sync::Arc;

use tune_cuda::{Blocks, Buffer, Collective};

use super::weights::{Param, format};
use super::{Cuda, Number};
use crate::distributed::Mesh;
use crate::engine::Card;
use crate::kernels::{Format, Share};
use crate::models::{Here, counts_of_blocks, row_of};
use crate::{Error, Result};

/// The part of a matrix in blocks that a card has: its blocks, and the codes and the factors of its scales where these are apart, as
/// bytes.
pub(super) type Pieces = [Arc<Buffer<u8>>; 3];

/// Parameters on their way from other cards.
pub(in crate::engine) struct OnTheWay<T> {
    kinds: Vec<Kind>,
    numbers: Option<Collective<Vec<Buffer<T>>>>,
    bytes: Option<Collective<Vec<Buffer<u8>>>>,
}

/// What a parameter is that is on its way.
enum Kind {
    Numbers,
    Blocks(Arc<Share>),
}

impl<T: Number> Cuda<T> {
    /// The numbers that are here of a parameter.
    fn part(&self, here: &candle_core::Tensor) -> Result<Arc<Buffer<T>>> {
        match here.is_variable() {
            true => self.card.trained(here),
            false => self.card.frozen(here),
        }
    }

    /// Has the card read what is here of a parameter.
    pub(super) fn read_part(&self, here: &Here) -> Result<()> {
        match here {
            Here::Rows(tensor, _) => drop(self.part(tensor)?),
            Here::Blocks(share) => drop(self.card.share(share)?),
        }
        self.card.check()
    }

    /// Begins to gather parameters: all that are numbers in one collective, and all blocks in another.
    pub(super) fn gather_parts(&self, mesh: &Mesh, of: &str, here: &[Here]) -> Result<OnTheWay<T>> {
        let unconnected = || Error::setup("a model is divided among cards that are not connected; please report it");
        let cards = mesh.cards().ok_or_else(unconnected)?;
        let (mut kinds, mut numbers, mut bytes) = (Vec::with_capacity(here.len()), Vec::new(), Vec::new());
        for here in here {
            match here {
                Here::Rows(tensor, rows) => {
                    numbers.push((self.part(tensor)?, mesh.shards().counts(*rows, row_of(tensor))));
                    kinds.push(Kind::Numbers);
                }
                Here::Blocks(share) => {
                    let pieces = self.card.share(share)?;
                    let counts = counts_of_blocks(mesh.shards(), share);
                    let all = pieces.iter().map(Arc::clone).zip(counts);
                    bytes.extend(all.take(pieces_of(share.format())));
                    kinds.push(Kind::Blocks(Arc::clone(share)));
                }
            }
        }
        self.card.check()?;
        let numbers = (!numbers.is_empty()).then(|| cards.gather(of, numbers));
        let bytes = (!bytes.is_empty()).then(|| cards.gather(of, bytes));
        Ok(OnTheWay { kinds, numbers, bytes })
    }

    /// What was gathered, in the order in which it was asked for.
    pub(super) fn arrived_parts(&self, on_the_way: OnTheWay<T>) -> Result<Vec<Param<T>>> {
        let OnTheWay { kinds, numbers, bytes } = on_the_way;
        let mut numbers = numbers.map(Collective::wait).unwrap_or_default().into_iter();
        let mut bytes = bytes.map(Collective::wait).unwrap_or_default().into_iter();
        let lost =
            || Error::Training("a parameter was not gathered; this is a bug of the program, please report it".into());
        let param = |kind| match kind {
            Kind::Numbers => numbers.next().map(|numbers| Param::Numbers(Arc::new(numbers))).ok_or_else(lost),
            Kind::Blocks(share) => {
                let pieces = bytes.by_ref().take(pieces_of(share.format())).collect();
                Ok(Param::Blocks(Arc::new(whole(&share, pieces).ok_or_else(lost)?)))
            }
        };
        let params = kinds.into_iter().map(param).collect::<Result<_>>()?;
        self.card.check()?;
        Ok(params)
    }
}

/// How many of the [`Pieces`] a format has.
fn pieces_of(format: Format) -> usize {
    if format == Format::Nf4 { 3 } else { 1 }
}

/// A matrix of the pieces of all processes.
fn whole(share: &Share, pieces: Vec<Buffer<u8>>) -> Option<Blocks> {
    let mut pieces = pieces.into_iter();
    let bytes = pieces.next()?;
    let scales = match share.scales() {
        None => None,
        Some((_, _, mean)) => Some((pieces.next()?.reused(), pieces.next()?.reused(), mean)),
    };
    Some(Blocks::new(format(share.format()), share.dims(), bytes, scales))
}

impl Card {
    /// The part of a matrix in blocks that is here, on the card, where it stays.
    fn share(&self, of: &Share) -> Result<Arc<Pieces>> {
        let upload = || {
            let (codes, factors) = of.scales().map_or((&[][..], &[][..]), |(codes, factors, _)| (codes, factors));
            let pieces = [of.blocks(), bytemuck::cast_slice(codes), bytemuck::cast_slice(factors)];
            Ok(pieces.map(|piece| Arc::new(self.context.upload(piece))))
        };
        self.kept_share(of.id(), upload)
    }
}
