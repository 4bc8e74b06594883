//! What the processes of a group do together: gather, add up, agree.
//!
//! Sums are added in the order of ranks, so that their bits depend on the number of processes alone.

use std::ops::{AddAssign, Deref, DerefMut};

use bytemuck::Pod;

use super::{Group, Pending, others_failed};
use crate::Result;
use crate::distributed::transport::{Transport, places};

impl Group {
    /// The parts of all processes one behind the other, in the order of their ranks, in `all`; `counts` are their elements.
    ///
    /// # Panics
    /// If the sizes of `mine` and `all` are not those that `counts` says.
    pub fn all_gather<T: Pod, S, D>(&self, of: &str, mine: S, counts: Vec<usize>, mut all: D) -> Pending<D>
    where
        S: Deref<Target = [T]> + Send + 'static,
        D: DerefMut<Target = [T]> + Send + 'static,
    {
        assert!(counts[self.rank()] == mine.len() && counts.iter().sum::<usize>() == all.len(), "all-gather of {of}");
        if self.is_single() {
            all.copy_from_slice(&mine);
            return Pending::done(all);
        }
        self.begin("all-gather", of, move |transport| {
            let bytes = bytes_of::<T>(&counts);
            transport.all_gather(bytemuck::cast_slice(&mine), &bytes, bytemuck::cast_slice_mut(&mut all))?;
            Ok(all)
        })
    }

    /// This process's part of the sum over all processes: they are added in the order of their ranks, so that the bits do not depend
    /// on who was first. `counts` are the elements of each part, and `scratch` gives memory for so many elements while they are added.
    ///
    /// # Panics
    /// If the sizes of `all` and `mine` are not those that `counts` says.
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
        self.reduce_scatter_among(&Self::single(), of, all, counts, mine, scratch)
    }

    /// The same over all processes of this group, and then over all of `same`, which are those that have the same part of what other
    /// groups have.
    ///
    /// # Panics
    /// As [`Group::reduce_scatter`].
    pub(in crate::distributed) fn reduce_scatter_among<T: Pod + AddAssign, S, D>(
        &self,
        same: &Self,
        of: &str,
        all: S,
        counts: Vec<usize>,
        mut mine: D,
        scratch: fn(usize) -> D,
    ) -> Pending<D>
    where
        S: Deref<Target = [T]> + Send + 'static,
        D: DerefMut<Target = [T]> + Send + 'static,
    {
        assert!(
            counts[self.rank()] == mine.len() && counts.iter().sum::<usize>() == all.len(),
            "reduce-scatter of {of}"
        );
        match (&self.0, &same.0) {
            (None, _) => {
                mine.copy_from_slice(&all);
                same.all_reduce_in_place(of, mine, scratch)
            }
            (Some(_), None) => self.begin("reduce-scatter", of, move |transport| {
                scatter_sum(transport, all, &counts, &mut mine, scratch)?;
                Ok(mine)
            }),
            (Some(here), Some(others)) => {
                let (by_here, by_others, rank, shares) = (here.by, others.by, same.rank(), same.counts(mine.len(), 1));
                self.begin_among("reduce-scatter and all-reduce", of, move |transports| {
                    scatter_sum(transports.of(by_here), all, &counts, &mut mine, scratch)?;
                    all_sum(transports.of(by_others), rank, &shares, &mut mine, scratch)?;
                    Ok(mine)
                })
            }
        }
    }

    /// A sum over all processes, in place, for what is large: each adds up its part, and all get all parts.
    pub fn all_reduce_in_place<T: Pod + AddAssign, D>(
        &self,
        of: &str,
        mut numbers: D,
        scratch: fn(usize) -> D,
    ) -> Pending<D>
    where
        D: DerefMut<Target = [T]> + Send + 'static,
    {
        if self.is_single() {
            return Pending::done(numbers);
        }
        let (rank, shares) = (self.rank(), self.counts(numbers.len(), 1));
        self.begin("all-reduce", of, move |transport| {
            all_sum(transport, rank, &shares, &mut numbers, scratch)?;
            Ok(numbers)
        })
    }

    /// Numbers added up over all processes, in the order of their ranks.
    pub fn all_reduce<T: Pod + AddAssign + Send>(&self, of: &str, numbers: Vec<T>) -> Pending<Vec<T>> {
        if self.is_single() {
            return Pending::done(numbers);
        }
        let world_size = self.world_size();
        self.begin("all-reduce", of, move |transport| {
            let mut sums = numbers;
            let counts = vec![sums.len(); world_size];
            let mut parts = vec![T::zeroed(); sums.len() * world_size];
            transport.all_gather(
                bytemuck::cast_slice(&sums),
                &bytes_of::<T>(&counts),
                bytemuck::cast_slice_mut(&mut parts),
            )?;
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = parts[i];
                (1..world_size).for_each(|rank| *sum += parts[rank * counts[0] + i]);
            }
            Ok(sums)
        })
    }

    /// What the process of rank `root` has, to all. Elsewhere `numbers` are as many of any value.
    pub fn broadcast<T: Pod + Send>(&self, of: &str, root: usize, mut numbers: Vec<T>) -> Pending<Vec<T>> {
        if self.is_single() {
            return Pending::done(numbers);
        }
        self.begin("broadcast", of, move |transport| {
            transport.broadcast(root, bytemuck::cast_slice_mut(&mut numbers))?;
            Ok(numbers)
        })
    }

    /// Over when all processes have come to it.
    pub fn barrier(&self, of: &str) -> Pending<()> {
        if self.is_single() {
            return Pending::done(());
        }
        let counts = vec![1; self.world_size()];
        self.begin("barrier", of, move |transport| transport.all_gather(&[0], &counts, &mut vec![0; counts.len()]))
    }

    /// `mine`, once it is known of all processes: where one has failed, all fail, and those that have not say that others have.
    ///
    /// # Errors
    /// That of `mine`; another process that has failed; and as [`Pending::wait`].
    pub fn agreed<T>(&self, of: &str, mine: Result<T>) -> Result<T> {
        if self.is_single() {
            return mine;
        }
        let failed = self.all_reduce(of, vec![u32::from(mine.is_err())]).wait();
        // What went wrong here says more than what became of the others.
        let mine = mine?;
        match failed?.first() {
            Some(&failed @ 1..) => Err(others_failed(failed)),
            _ => Ok(mine),
        }
    }

    /// What each process has, one behind the other in the order of their ranks: any number of elements of each.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn gathered<T: Pod + Send>(&self, of: &str, mine: Vec<T>) -> Result<Vec<T>> {
        if self.is_single() {
            return Ok(mine);
        }
        let lens = self.lens(of, mine.len())?;
        let all = vec![T::zeroed(); lens.iter().sum()];
        self.all_gather(of, mine, lens, all).wait()
    }

    /// How many elements each process has.
    fn lens(&self, of: &str, mine: usize) -> Result<Vec<usize>> {
        let mut lens = vec![0u64; self.world_size()];
        lens[self.rank()] = mine as u64;
        Ok(self.all_reduce(of, lens).wait()?.into_iter().map(|len| len as usize).collect())
    }

    /// A text of each process, in the order of their ranks.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn texts(&self, of: &str, mine: &str) -> Result<Vec<String>> {
        let lens = self.lens(of, mine.len())?;
        let all = vec![0u8; lens.iter().sum()];
        let all = self.all_gather(of, mine.as_bytes().to_vec(), lens.clone(), all).wait()?;
        let places = places(&lens);
        let text = |rank: usize| String::from_utf8_lossy(&all[places[rank]..places[rank + 1]]).into_owned();
        Ok((0..self.world_size()).map(text).collect())
    }
}

/// This process's part of the sum of what all have, of which `counts` are the elements of each part.
fn scatter_sum<T: Pod + AddAssign, D: DerefMut<Target = [T]>>(
    transport: &mut dyn Transport,
    all: impl Deref<Target = [T]>,
    counts: &[usize],
    mine: &mut [T],
    scratch: fn(usize) -> D,
) -> Result<()> {
    let share = mine.len();
    let mut parts = scratch(share * counts.len());
    transport.all_to_all(
        bytemuck::cast_slice(&all),
        &bytes_of::<T>(counts),
        bytemuck::cast_slice_mut(&mut parts),
        &bytes_of::<T>(&vec![share; counts.len()]),
    )?;
    drop(all);
    mine.copy_from_slice(add_up(&mut parts, share));
    Ok(())
}

/// The sum of what all have, in its place. `shares` are the elements that each adds up for all.
fn all_sum<T: Pod + AddAssign, D: DerefMut<Target = [T]>>(
    transport: &mut dyn Transport,
    rank: usize,
    shares: &[usize],
    numbers: &mut [T],
    scratch: fn(usize) -> D,
) -> Result<()> {
    let share = shares[rank];
    let mut parts = scratch(share * shares.len());
    transport.all_to_all(
        bytemuck::cast_slice(numbers),
        &bytes_of::<T>(shares),
        bytemuck::cast_slice_mut(&mut parts),
        &bytes_of::<T>(&vec![share; shares.len()]),
    )?;
    let sum = add_up(&mut parts, share);
    transport.all_gather(bytemuck::cast_slice(sum), &bytes_of::<T>(shares), bytemuck::cast_slice_mut(numbers))
}

/// The sum of parts of so many elements, in their order, in the place of the first.
fn add_up<T: Copy + AddAssign>(parts: &mut [T], share: usize) -> &[T] {
    let (sum, others) = parts.split_at_mut(share);
    for part in others.chunks_exact(share.max(1)) {
        sum.iter_mut().zip(part).for_each(|(sum, more)| *sum += *more);
    }
    sum
}

fn bytes_of<T>(counts: &[usize]) -> Vec<usize> {
    counts.iter().map(|count| count * size_of::<T>()).collect()
}
