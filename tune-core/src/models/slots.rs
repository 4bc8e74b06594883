//! The linear layers of a model in one table, which everything reads that lists them: loading, adapters, the
//! engine, the memory plan, GGUF, FLOPs.

use tune_config::schema::{Choice, Choices};
use tune_config::{Config, Mismatch, Schema, Value};

use super::spec::Site;

/// A half of a block: attention or the gated network, with their norms. The result is added to the residual stream.
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
}

/// Makes the type, its table and its choices in a config of one list.
macro_rules! slots {
    (
        $($doc:literal $variant:ident $name:literal $aliases:tt $half:expr;)*
    ) => {
        /// A linear layer of a model, in a config by its Hugging Face name. In a mixture of experts, each expert has those of the MLP.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Slot {
            $(#[doc = $doc] $variant,)*
        }

        /// What is known of each, in the order of the type.
        const SLOTS: &[Row] = &[
            $(Row { name: $name, half: $half },)*
        ];

        impl Slot {
            /// All of them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];
        }

        const CHOICES: Choices = Choices {
            name: "LoraModule",
            doc: "A linear layer, by its Hugging Face name.",
            choices: &[$(Choice { name: $name, aliases: &$aliases, doc: $doc },)*],
            default: None,
        };
    };
}

slots! {
    "Attention queries." QProj "q_proj" [] Some(Half::Attention);
    "Attention keys." KProj "k_proj" [] Some(Half::Attention);
    "Attention values." VProj "v_proj" [] Some(Half::Attention);
    "Queries, keys and values where they are one layer, as in Phi-3: naming one of them there names this."
        QkvProj "qkv_proj" [] Some(Half::Attention);
    "The projection of the attention's output." OProj "o_proj" ["output_proj"] Some(Half::Attention);
    "The gate of the MLP." GateProj "gate_proj" [] Some(Half::Mlp);
    "The MLP's input." UpProj "up_proj" [] Some(Half::Mlp);
    "Gate and input of the MLP where they are one layer, as in Phi-3: naming one of them there names this."
        GateUpProj "gate_up_proj" [] Some(Half::Mlp);
    "The MLP's output." DownProj "down_proj" [] Some(Half::Mlp);
    "The output layer." LmHead "lm_head" ["output"] None;
    "What chooses experts, in a mixture of them." Router "gate" [] Some(Half::Mlp);
}

/// A row of the table.
struct Row {
    name: &'static str,
    half: Option<Half>,
}

impl Slot {
    const fn row(self) -> &'static Row {
        &SLOTS[self as usize]
    }

    /// The last part of its Hugging Face name.
    pub const fn name(self) -> &'static str {
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

    /// The layer that has this one as a part, where a model stores them as one.
    pub fn fused(self) -> Option<Self> {
        match self {
            Self::QProj | Self::KProj | Self::VProj => Some(Self::QkvProj),
            Self::GateProj | Self::UpProj => Some(Self::GateUpProj),
            _ => None,
        }
    }
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

/// One thing for each linear layer of a block, in the order in which it uses them.
#[derive(Debug, Clone)]
pub(crate) struct Layers<T>(Vec<(Site, T)>);

impl<T> Layers<T> {
    pub(crate) fn new(of: impl IntoIterator<Item = (Site, T)>) -> Self {
        Self(of.into_iter().collect())
    }

    /// What is there for a layer.
    pub(crate) fn get(&self, site: Site) -> Option<&T> {
        self.0.iter().find(|(of, _)| *of == site).map(|(_, value)| value)
    }

    /// The same of a layer that is there.
    ///
    /// # Panics
    /// Where it is not (a bug).
    pub(crate) fn of(&self, site: Site) -> &T {
        match self.get(site) {
            Some(value) => value,
            None => panic!("the block has no layer {site:?}"),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Site, &T)> {
        self.0.iter().map(|(site, value)| (*site, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a slot is its place in the table.
    #[test]
    fn slots_are_in_the_order_of_the_table() {
        for (i, slot) in Slot::ALL.into_iter().enumerate() {
            assert_eq!(slot as usize, i);
        }
        assert_eq!(Slot::QProj.path(), "self_attn.q_proj");
        assert_eq!(Slot::LmHead.path(), "lm_head");
    }
}
