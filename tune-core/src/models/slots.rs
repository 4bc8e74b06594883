//! The linear layers of a model in one table, which everything reads that lists them: loading, adapters, the
//! engine, the memory plan, GGUF, FLOPs.

use std::ops::{Index, IndexMut};

use tune_config::schema::{Choice, Choices};
use tune_config::{Config, Mismatch, Schema, Value};

/// A size of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// Rows of the embedding table.
    Vocab,
    /// The width of the residual stream.
    Hidden,
    /// The width inside an MLP.
    Intermediate,
    /// Query heads times their size.
    Queries,
    /// Key-value heads times their size.
    Keys,
}
use Dim::{Hidden, Intermediate, Keys, Queries, Vocab};

/// A half of a block: a norm, and what it is the norm of. The result is added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// The first.
    Attention,
    /// The second.
    Mlp,
}

impl Half {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Attention, Self::Mlp];

    /// The first part of the Hugging Face names of its layers.
    fn prefix(self) -> &'static str {
        match self {
            Self::Attention => "self_attn.",
            Self::Mlp => "mlp.",
        }
    }

    /// The Hugging Face name of its norm.
    pub fn norm(self) -> &'static str {
        match self {
            Self::Attention => "input_layernorm",
            Self::Mlp => "post_attention_layernorm",
        }
    }
}

/// Makes the type, its table and its choices in a config of one list.
macro_rules! slots {
    ($($doc:literal $variant:ident $name:literal $aliases:tt $half:expr, [$out:ident, $inner:ident];)*) => {
        /// A linear layer of a model, which can carry an adapter; written in a config by its Hugging Face name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Slot {
            $(#[doc = $doc] $variant,)*
        }

        /// What is known of each, in the order of the type.
        const SLOTS: &[Row] =
            &[$(Row { slot: Slot::$variant, name: $name, half: $half, dims: [$out, $inner] },)*];

        const CHOICES: Choices = Choices {
            name: "LoraModule",
            doc: "A linear layer that can carry an adapter, by its Hugging Face name.",
            choices: &[$(Choice { name: $name, aliases: &$aliases, doc: $doc },)*],
            default: None,
        };
    };
}

slots! {
    "Attention queries." QProj "q_proj" [] Some(Half::Attention), [Queries, Hidden];
    "Attention keys." KProj "k_proj" [] Some(Half::Attention), [Keys, Hidden];
    "Attention values." VProj "v_proj" [] Some(Half::Attention), [Keys, Hidden];
    "The projection of the attention's output." OProj "o_proj" ["output_proj"] Some(Half::Attention), [Hidden, Queries];
    "The gate of the MLP." GateProj "gate_proj" [] Some(Half::Mlp), [Intermediate, Hidden];
    "The MLP's input." UpProj "up_proj" [] Some(Half::Mlp), [Intermediate, Hidden];
    "The MLP's output." DownProj "down_proj" [] Some(Half::Mlp), [Hidden, Intermediate];
    "The output layer." LmHead "lm_head" ["output"] None, [Vocab, Hidden];
}

/// A row of the table.
struct Row {
    slot: Slot,
    name: &'static str,
    half: Option<Half>,
    dims: [Dim; 2],
}

impl Slot {
    /// All of them.
    pub const ALL: [Self; SLOTS.len()] = slots();

    /// Those of a block, in the order in which it uses them.
    pub const IN_BLOCK: [Self; SLOTS.len() - 1] = slots();

    fn row(self) -> &'static Row {
        &SLOTS[self as usize]
    }

    /// The last part of its Hugging Face name.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The half of a block that it is in; the output layer is in none.
    pub fn half(self) -> Option<Half> {
        self.row().half
    }

    /// Its Hugging Face name, in a block without the block's.
    pub fn path(self) -> String {
        format!("{}{}", self.half().map_or("", Half::prefix), self.name())
    }

    /// What its weight's rows and columns are, `[out, in]`.
    pub fn dims(self) -> [Dim; 2] {
        self.row().dims
    }
}

/// The first `N` slots.
const fn slots<const N: usize>() -> [Slot; N] {
    let mut slots = [SLOTS[0].slot; N];
    let mut i = 0;
    while i < N {
        slots[i] = SLOTS[i].slot;
        i += 1;
    }
    slots
}

impl Config for Slot {
    const SCHEMA: Schema = Schema::Choice(&CHOICES);

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        let name = value.text()?;
        Self::ALL.into_iter().find(|slot| slot.name() == name).ok_or_else(|| value.refuse(name))
    }

    fn to_value(&self) -> Value {
        Value::from_text(self.name())
    }
}

/// One thing for each linear layer of a block.
#[derive(Debug, Clone)]
pub(crate) struct PerSlot<T>(Vec<T>);

impl<T> PerSlot<T> {
    pub(crate) fn new(of: impl FnMut(Slot) -> T) -> Self {
        Self(Slot::IN_BLOCK.into_iter().map(of).collect())
    }

    pub(crate) fn try_new<E>(of: impl FnMut(Slot) -> Result<T, E>) -> Result<Self, E> {
        Slot::IN_BLOCK.into_iter().map(of).collect::<Result<_, E>>().map(Self)
    }

    /// All of them, in the order of [`Slot::IN_BLOCK`].
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T> Index<Slot> for PerSlot<T> {
    type Output = T;

    fn index(&self, slot: Slot) -> &T {
        &self.0[slot as usize]
    }
}

impl<T> IndexMut<Slot> for PerSlot<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        &mut self.0[slot as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a slot is its place in the table, and the output layer is the last.
    #[test]
    fn slots_are_in_the_order_of_the_table() {
        for (i, slot) in Slot::ALL.into_iter().enumerate() {
            assert_eq!(slot as usize, i);
            assert_eq!(slot.half().is_some(), Slot::IN_BLOCK.contains(&slot));
        }
        assert_eq!(Slot::QProj.path(), "self_attn.q_proj");
        assert_eq!(Slot::LmHead.path(), "lm_head");
    }
}
