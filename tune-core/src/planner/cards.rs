//! What is published of cards.

/// A card, as its maker's data sheet has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// What it is called here.
    pub name: &'static str,
    /// Memory in GiB, as a program finds it.
    pub memory: f64,
    /// Bytes a second to and from that memory.
    pub bandwidth: f64,
    /// Products of bf16 without sparsity, in floating-point operations a second, at its full power.
    pub flops: f64,
    /// Its full power in watts.
    pub power: f64,
    /// Bytes a second, each way, to the other cards of a machine.
    pub link: f64,
}

const GB: f64 = 1e9;
const TERA: f64 = 1e12;
/// PCI Express of the fourth and of the fifth generation, sixteen lanes.
const PCIE4: f64 = 32.0 * GB;
const PCIE5: f64 = 64.0 * GB;

/// The cards that are known.
pub const CARDS: &[Card] = &[
    card("a100-40g", 39.4, 1555.0, 312.0, 400.0, 300.0 * GB),
    card("a100-80g", 79.1, 2039.0, 312.0, 400.0, 300.0 * GB),
    card("h100-80g", 79.1, 3350.0, 989.0, 700.0, 450.0 * GB),
    // With memory of the generation before.
    card("h100-96g", 94.5, 2400.0, 989.0, 700.0, 450.0 * GB),
    card("h100-pcie-80g", 79.1, 2000.0, 756.0, 350.0, PCIE5),
    card("h200-141g", 139.8, 4800.0, 989.0, 700.0, 450.0 * GB),
    card("b200-180g", 178.3, 8000.0, 2250.0, 1000.0, 900.0 * GB),
    card("mi300x-192g", 191.5, 5300.0, 1307.0, 750.0, 448.0 * GB),
    card("l40s-48g", 44.5, 864.0, 362.0, 350.0, PCIE4),
    card("a6000-48g", 47.5, 768.0, 154.8, 300.0, PCIE4),
    card("rtx4090-24g", 23.5, 1008.0, 165.2, 450.0, PCIE4),
];

/// In GiB, GB/s, TFLOP/s, watts and bytes a second.
const fn card(name: &'static str, memory: f64, bandwidth: f64, tflops: f64, power: f64, link: f64) -> Card {
    Card { name, memory, bandwidth: bandwidth * GB, flops: tflops * TERA, power, link }
}

impl Card {
    /// The card of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        CARDS.iter().copied().find(|card| card.name.eq_ignore_ascii_case(name))
    }

    /// The same card held to this many watts. Power grows with the cube of the clock, about, where voltage follows it.
    #[must_use]
    pub fn held_to(self, watts: f64) -> Self {
        let watts = watts.min(self.power);
        Self { flops: self.flops * (watts / self.power).cbrt(), power: watts, ..self }
    }
}
