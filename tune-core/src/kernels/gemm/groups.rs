//! The inner steps of a sum of products in groups that stay in the cache.

/// Products in one sum, at most.
pub(super) const MAX_TERMS: usize = 8;

/// Inner steps `from..to` of a term.
#[derive(Clone, Copy, Default)]
pub(super) struct Piece {
    pub(super) term: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Pieces that share a group of inner steps.
#[derive(Clone, Copy, Default)]
pub(super) struct Group {
    pieces: [Piece; MAX_TERMS],
    count: usize,
    /// Where the next group begins.
    term: usize,
    step: usize,
}

impl Group {
    /// The group of `size` steps that follows this one, of terms with this many steps.
    pub(super) fn next(&self, terms: &[usize], size: usize) -> Self {
        let mut group = Self { count: 0, ..*self };
        let mut used = 0;
        while group.term < terms.len() && used < size {
            let steps = terms[group.term];
            let to = steps.min(group.step + size - used);
            group.pieces[group.count] = Piece { term: group.term, from: group.step, to };
            group.count += 1;
            used += to - group.step;
            (group.term, group.step) = if to == steps { (group.term + 1, 0) } else { (group.term, to) };
        }
        group
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.count]
    }
}

/// The steps of each term.
pub(super) fn steps_of<T>(terms: &[T], steps: impl Fn(&T) -> usize) -> ([usize; MAX_TERMS], usize) {
    assert!(!terms.is_empty() && terms.len() <= MAX_TERMS, "matrix product: too many terms, or none");
    let mut all = [0; MAX_TERMS];
    all.iter_mut().zip(terms).for_each(|(to, term)| *to = steps(term));
    (all, terms.len())
}
