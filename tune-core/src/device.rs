//! Where and in what precision a run computes, and the seed that it starts from.

use std::error::Error as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use candle_core::DType;
use tune_config::{Config, Mismatch, Schema, Value};

use crate::distributed::{Group, Place};
use crate::engine::Card;
use crate::kernels::Isa;
use crate::words::count;
use crate::{Error, Result, environment};

/// What computes a model. Its tensors are the processor's in either case.
#[derive(Debug, Clone)]
pub enum Compute {
    /// The processor.
    Processor,
    /// A card.
    Card(Arc<Card>),
}

impl std::fmt::Display for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Processor => f.write_str("cpu"),
            Self::Card(card) => write!(f, "{} (cuda:{})", card.name(), card.ordinal()),
        }
    }
}

/// Where a run computes, as it is written in a config: `cpu`, `cuda` (the first card; of several processes on a machine each has the card
/// of its number there), `cuda:N`, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceConfig {
    /// The processor.
    Cpu,
    /// The card of this number.
    Cuda(usize),
    /// The first card that can be used; the processor where there is none.
    Auto,
}

impl DeviceConfig {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            "auto" => Some(Self::Auto),
            _ => text.strip_prefix("cuda:")?.parse().ok().map(Self::Cuda),
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// A card that cannot be used, with what is missing; kernels that the processor cannot run; threads that the system
    /// does not start.
    pub fn open(self) -> Result<Compute> {
        self.choose().map(|(device, _)| device)
    }

    /// Opens the device of one of some processes, each of which is to have a card of its own, or the processor: where `auto` finds a card for
    /// some of them alone, processors compute. All are to ask at the same time. Otherwise as [`DeviceConfig::choose`].
    ///
    /// # Errors
    /// As [`DeviceConfig::open`], where it cannot be opened by one of them; fewer cards than processes; a single card that is named.
    pub fn choose_among(self, group: &Group) -> Result<(Compute, Option<String>)> {
        let (place, this) = (group.place(), "the device");
        if let Some(card) = group.card() {
            return group.agreed(this, self.connected(card, place));
        }
        if group.is_single() || self == Self::Cpu {
            return self.choose();
        }
        let own = self.own_card(place);
        if self != Self::Auto {
            return group.agreed(this, own).map(|card| (Compute::Card(card), None));
        }
        let have = group.all_reduce(this, vec![u32::from(own.is_ok())]).wait()?.into_iter().sum::<u32>() as usize;
        let processor = || group.agreed(this, Self::Cpu.open());
        match own {
            Ok(card) if have == place.world_size => {
                let device = Compute::Card(card);
                let said = format!("device=auto: {device} computes, and the other processes have a card each");
                Ok((device, Some(said)))
            }
            Ok(_) => {
                let without = place.world_size - have;
                Ok((
                    processor()?,
                    Some(format!("device=auto: processors compute, for {without} processes have no card")),
                ))
            }
            Err(why) => Ok((processor()?, Some(format!("device=auto: processors compute, for {why}")))),
        }
    }

    /// The card by which a process is connected to others.
    fn connected(self, card: &Arc<Card>, place: Place) -> Result<(Compute, Option<String>)> {
        start_threads()?;
        let (device, processes) = (Compute::Card(Arc::clone(card)), place.world_size);
        match self {
            Self::Cpu => Err(Error::setup(format!(
                "device=cpu: these {processes} processes were started without MPI, and their cards connect them; set device=cuda, or have \
                 MPI start them: `mpirun -n {processes} PROGRAM ...`"
            ))),
            Self::Cuda(n @ 1..) if n != card.ordinal() || place.local_world_size > 1 => Err(Error::setup(format!(
                "device=cuda:{n} is one card, and without MPI each process has that of its number on its machine (here cuda:{}): set \
                 device=cuda; CUDA_VISIBLE_DEVICES says which cards there are",
                card.ordinal()
            ))),
            Self::Cuda(_) => Ok((device, None)),
            Self::Auto => {
                let said = format!("device=auto: {device} computes, and the other processes have a card each");
                Ok((device, Some(said)))
            }
        }
    }

    /// Opens the card of one of several processes.
    fn own_card(self, place: Place) -> Result<Arc<Card>> {
        let Place { local_rank, local_world_size: here, .. } = place;
        start_threads()?;
        match (self, Card::count()?) {
            (Self::Cuda(n @ 1..), _) if here > 1 => Err(Error::setup(format!(
                "device=cuda:{n} is one card, and {here} processes are on this machine: set device=cuda, which gives each a card of \
                 its own"
            ))),
            (Self::Cuda(n @ 1..), _) => Card::open(n),
            // Who starts processes may show each of them its own.
            (_, 1) => Card::open(0),
            (_, cards) if local_rank < cards => Card::open(local_rank),
            (_, cards) => Err(Error::setup(format!(
                "{here} processes are on this machine, and it has {}: start {}, or set device=cpu",
                count(cards, "card"),
                count(cards, "process")
            ))),
        }
    }

    /// Opens the device, and says which one that is where the config leaves it open.
    ///
    /// # Errors
    /// As [`DeviceConfig::open`].
    pub fn choose(self) -> Result<(Compute, Option<String>)> {
        let processor = || Isa::check().map(|()| Compute::Processor);
        start_threads()?;
        match self {
            Self::Cpu => Ok((processor()?, None)),
            Self::Cuda(n) => Ok((Compute::Card(Card::open(n)?), None)),
            Self::Auto => match Card::open_first() {
                Ok(card) => {
                    let device = Compute::Card(card);
                    let said = format!("device=auto: {device} computes");
                    Ok((device, Some(said)))
                }
                Err(why) => Ok((processor()?, Some(format!("device=auto: the processor computes, for {why}")))),
            },
        }
    }
}

impl std::fmt::Display for DeviceConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl std::str::FromStr for DeviceConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("`{text}` is no device; use cpu, cuda, cuda:N or auto"))
    }
}

/// Starts the threads that compute, if they are not there yet: whoever asked for work without them would panic where the
/// system has none.
fn start_threads() -> Result<()> {
    environment::threads()?;
    match rayon::ThreadPoolBuilder::new().build_global() {
        // Another failure is that they are there.
        Err(error) if error.source().is_some() => Err(Error::setup(format!(
            "the threads that compute cannot be started ({error}): raise the limits of addresses (`ulimit -v`) and of \
             threads (`ulimit -u`), or set RAYON_NUM_THREADS in the environment to fewer"
        ))),
        _ => Ok(()),
    }
}

impl Config for DeviceConfig {
    const SCHEMA: Schema = Schema::Text;

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.text()?.parse().map_err(|message: String| value.refuse(message))
    }

    fn to_value(&self) -> Value {
        Value::from_text(self.to_string())
    }
}

/// The precision of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum Precision {
    /// 32-bit floating point.
    #[config(name = "fp32", default)]
    Fp32,
    /// bfloat16; sums are in 32 bits.
    #[config(name = "bf16")]
    Bf16,
    /// Half precision, which training does not use: its range is too small for gradients.
    #[config(name = "fp16")]
    Fp16,
}

impl Precision {
    /// The dtype of tensors for inference.
    pub fn dtype(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::Fp16 => DType::F16,
        }
    }

    /// The dtype of tensors for training.
    ///
    /// # Errors
    /// For fp16, which would need its gradients scaled.
    pub fn training_dtype(self) -> Result<DType> {
        match self {
            Self::Fp16 => Err(Error::setup("dtype: models are not trained in fp16; use bf16 or fp32")),
            other => Ok(other.dtype()),
        }
    }
}

/// The given seed, or a fresh one from the system's randomness where there is none.
/// A fresh one is below 2³², so that it survives any YAML or JSON reader.
pub fn choose_seed(seed: Option<u64>) -> u64 {
    seed.unwrap_or_else(|| RandomState::new().hash_one(0u8) >> 32)
}
