//! A mistake as data: which, and where.

use tune_yaml::Span;

use crate::schema::{Choices, Component, Key, Schema, Struct, Variant};

/// One mistake in a tree.
#[derive(Debug, Clone, Copy)]
pub struct Finding<'a> {
    /// The value that it is about: its index in the tree.
    pub at: usize,
    /// Where the caret stands.
    pub span: Span,
    /// What is wrong.
    pub mistake: Mistake<'a>,
}

/// What is wrong with a value.
#[derive(Debug, Clone, Copy)]
pub enum Mistake<'a> {
    /// A key that the struct does not have; the outermost keys, where it stands further in.
    UnknownKey(&'static Struct, Option<Chosen>, Option<&'static Struct>),
    /// Keys that the struct must have.
    MissingKeys(&'static Struct, Option<Chosen>),
    /// The key of this index is the same one under another name.
    TwoNames(usize),
    /// Another type than this one; the key may allow a list of it, too.
    WrongType(&'a Schema, Option<&'static Key>),
    /// A whole number that does not fit its type.
    DoesNotFit {
        /// The least that fits.
        min: i128,
        /// The greatest.
        max: i128,
    },
    /// A number out of the key's range.
    OutOfRange(&'static Key),
    /// No number that can be calculated with.
    NotFinite,
    /// Not among the key's `one_of`.
    NotAmong(&'static Key),
    /// No name of the choice.
    UnknownChoice(&'static Choices),
    /// No name of a component.
    UnknownComponent(&'static Component),
    /// A mapping that does not say which component it is.
    NoComponent(&'static Component),
}

/// The component whose keys are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Chosen {
    /// What there is to choose from.
    pub component: &'static Component,
    /// What is chosen.
    pub variant: &'static Variant,
    /// Where; `None` for a default.
    pub span: Option<Span>,
}

/// The first `N` mistakes in the order of the text, and how many there are.
#[derive(Debug, Clone, Copy)]
pub struct Findings<'a, const N: usize> {
    first: [Option<Finding<'a>>; N],
    total: usize,
}

impl<'a, const N: usize> Findings<'a, N> {
    pub(super) const fn new() -> Self {
        Self { first: [None; N], total: 0 }
    }

    /// How many mistakes there are.
    pub const fn total(&self) -> usize {
        self.total
    }

    /// One of the first `N`.
    pub const fn get(&self, index: usize) -> Option<&Finding<'a>> {
        if index < N { self.first[index].as_ref() } else { None }
    }

    /// Puts a mistake in its place among the first, where it is one of them.
    pub(super) const fn push(&mut self, finding: Finding<'a>) {
        self.total += 1;
        let mut at = N;
        while at > 0 {
            match &self.first[at - 1] {
                Some(other) if !before(finding.span, other.span) => break,
                other => {
                    if at < N {
                        self.first[at] = *other;
                    }
                    at -= 1;
                }
            }
        }
        if at < N {
            self.first[at] = Some(finding);
        }
    }
}

const fn before(a: Span, b: Span) -> bool {
    a.source.0 < b.source.0 || a.source.0 == b.source.0 && a.start < b.start
}
