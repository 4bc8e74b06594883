//! Who takes the gradients of a step on paper, and the state of the optimizer that uses them.

use std::collections::{BTreeMap, VecDeque};

use super::Paper;
use super::memory::Machine;
use crate::Result;
use crate::distributed::Layout;
use crate::engine::run::Sink;
use crate::engine::to_model::UNDER_WAY;
use crate::kernels::Element;
use crate::kernels::ledger::{Entry, Purpose};
use crate::models::{ModelSpec, ParamId};
use crate::optim::OptimizerConfig;

/// The state of an optimizer on a card, from a parameter's first step on.
pub(crate) struct State {
    optimizer: OptimizerConfig,
    model: ModelSpec,
    /// Of what is trained, by name.
    shapes: BTreeMap<String, Vec<usize>>,
    of: BTreeMap<ParamId, Vec<Entry>>,
}

impl State {
    /// None yet, for the parameters of a model that have these shapes.
    pub(crate) fn new(optimizer: OptimizerConfig, model: &ModelSpec, shapes: BTreeMap<String, Vec<usize>>) -> Self {
        Self { optimizer, model: model.clone(), shapes, of: BTreeMap::new() }
    }

    /// A parameter's step.
    pub(super) fn of(&mut self, id: ParamId, gradient: &Entry) {
        let (name, all) = (id.name(&self.model), [gradient.size() / size_of::<f32>()]);
        let dims = self.shapes.get(&name).map_or(&all[..], Vec::as_slice);
        let take = |purpose| move |bytes| gradient.of_size(bytes, purpose);
        let kept = || self.optimizer.parts_on_card(&name, dims).into_iter().map(take(Purpose::State)).collect();
        self.of.entry(id).or_insert_with(kept);
        let passing: Vec<Entry> =
            self.optimizer.passing_on_card(&name, dims).into_iter().map(take(Purpose::Activations)).collect();
        drop(passing);
    }
}

/// Who takes the gradients. Where several processes train together, they are summed first.
pub(super) struct Gathered<'a> {
    gradients: &'a mut BTreeMap<ParamId, Entry>,
    keeps: bool,
    /// The state of an optimizer that uses them up as they come.
    in_backward: Option<&'a mut State>,
    layout: Layout,
    machine: Machine,
    /// Gradients that are being summed, each with the part that will stay here, if that is not all.
    under_way: VecDeque<(ParamId, Entry, Option<Entry>)>,
}

impl<'a> Gathered<'a> {
    pub(super) fn new(
        gradients: &'a mut BTreeMap<ParamId, Entry>,
        keeps: bool,
        in_backward: Option<&'a mut State>,
        (layout, machine): (Layout, Machine),
    ) -> Self {
        Self { gradients, keeps, in_backward, layout, machine, under_way: VecDeque::new() }
    }

    /// Ends the sums that were begun first, until this many are left under way.
    pub(super) fn finish(&mut self, left: usize) {
        while self.under_way.len() > left
            && let Some((id, whole, mine)) = self.under_way.pop_front()
        {
            let Layout { shards, replicas, .. } = self.layout;
            // What others have of this one's part. Cards have what they need for that once and for all.
            let parts = |of: &Entry, size: usize| {
                if self.machine != Machine::Card {
                    drop(of.of_size(size, Purpose::Gradients));
                }
            };
            let others = |of: &Entry, processes: usize| parts(of, of.size().div_ceil(processes) * processes);
            match mine {
                None => {
                    others(&whole, replicas);
                    self.keep(id, whole);
                }
                Some(mine) => {
                    parts(&mine, mine.size() * shards);
                    drop(whole);
                    if replicas > 1 {
                        others(&mine, replicas);
                    }
                    self.keep(id, mine);
                }
            }
        }
    }

    fn keep(&mut self, id: ParamId, gradient: Entry) {
        if let Some(state) = self.in_backward.as_deref_mut() {
            state.of(id, &gradient);
        }
        // From the second micro-batch on gradients are added to those of the first.
        if self.keeps {
            self.gradients.entry(id).or_insert(gradient);
        }
    }
}

impl<T: Element> Sink<Paper<T>> for Gathered<'_> {
    fn take(&mut self, id: ParamId, gradient: Entry) -> Result<()> {
        let shards = self.layout.shards;
        if self.layout.processes() == 1 {
            self.keep(id, gradient);
            return Ok(());
        }
        let mine = (shards > 1).then(|| gradient.of_size(gradient.size().div_ceil(shards), Purpose::Gradients));
        self.under_way.push_back((id, gradient, mine));
        self.finish(UNDER_WAY);
        Ok(())
    }
}
