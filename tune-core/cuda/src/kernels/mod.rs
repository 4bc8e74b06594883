//! The project's own kernels, a method of [`Context`](crate::Context) for each.
//!
//! Every result is the same from run to run: sums are made in an order that depends on shapes alone. Methods panic where
//! shapes do not fit; what fails on the card is the context's error.

// A view to be written is given away: the memory is not the caller's until the call is over.
#![allow(clippy::needless_pass_by_value)]

mod attention;
mod attention_decode;
mod columns;
mod dequantize;
mod distillation;
mod dropout;
mod experts;
mod fake_quant;
mod gate;
mod grouped;
mod loss;
mod norm;
mod optim;
mod optim_8bit;
mod optim_means;
mod rotary;
mod routes;
mod rows;
mod sample;
mod spans;
mod token_columns;

pub use attention::{Attention, Qkv, QkvMut};
pub use columns::Adapted;
pub use dequantize::{Beside, BlockFormat, BlockRows, Blocks, panels};
pub use distillation::{Distillation, Top};
pub use dropout::Dropout;
pub use fake_quant::{FileFormat, Levels};
pub use gate::Activation;
pub use grouped::{ByExperts, Table, addresses, few_places};
pub use loss::TokenLoss;
pub use norm::Norm;
pub use optim::{AdamW, Lion, Moved, Sgd, Squares, Sweep};
pub use optim_8bit::{Maps, Moved8bit};
pub use optim_means::ScheduleFree;
pub use rotary::Turn;
pub use routes::{Choice, Routes};
pub use rows::{Grouped, sum_rows_workspace};
pub use sample::Draw;
pub use spans::{Spans, Stretch};

use crate::modules::Kernel;

/// A kernel for f32 and one for bf16, with the same parameters.
const fn both(module: &'static str, names: [&'static str; 2], parameters: &'static str) -> [Kernel; 2] {
    [one(module, names[0], parameters), one(module, names[1], parameters)]
}

const fn one(module: &'static str, name: &'static str, parameters: &'static str) -> Kernel {
    Kernel { module, name, parameters }
}

/// An address, or none.
fn address<T>(buffer: Option<&crate::Buffer<T>>) -> u64 {
    buffer.map_or(0, crate::Buffer::address)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn declared() -> BTreeMap<&'static str, &'static Kernel> {
        let all = [
            attention::ALL,
            attention_decode::ALL,
            columns::ALL,
            dequantize::ALL,
            distillation::ALL,
            dropout::ALL,
            experts::ALL,
            fake_quant::ALL,
            gate::ALL,
            grouped::ALL,
            loss::ALL,
            norm::ALL,
            optim::ALL,
            optim_8bit::ALL,
            optim_means::ALL,
            rotary::ALL,
            routes::ALL,
            rows::ALL,
            sample::ALL,
            token_columns::ALL,
        ]
        .concat();
        all.into_iter().flatten().chain(attention::fast_kernels().0).map(|kernel| (kernel.name, kernel)).collect()
    }

    /// What the wrappers pass is what the compiled kernels take.
    #[test]
    fn parameters_are_those_of_the_compiled_kernels() {
        let mut compiled = BTreeMap::new();
        for (module, source) in crate::modules::ptx() {
            for entry in String::from_utf8(source).unwrap().split(".visible .entry ").skip(1) {
                let (name, rest) = entry.split_once('(').unwrap();
                let list = rest.split_once(')').unwrap().0;
                let parameters: String = list
                    .lines()
                    .filter_map(|line| line.trim().strip_prefix(".param "))
                    .map(|line| match line.split_whitespace().next().unwrap() {
                        ".u64" | ".b64" | ".s64" => 'l',
                        ".u32" | ".b32" | ".s32" => 'i',
                        ".f32" => 'f',
                        other => panic!("{name}: {other}"),
                    })
                    .collect();
                compiled.insert(name.trim().to_owned(), (module.clone(), parameters));
            }
        }
        for (name, kernel) in declared() {
            let (module, parameters) = compiled.remove(name).unwrap_or_else(|| panic!("{name} was not built"));
            // PTX has no pointers, only numbers of 64 bits.
            let right = kernel.parameters.replace('p', "l");
            assert_eq!((module.as_str(), parameters.as_str()), (kernel.module, right.as_str()), "{name}");
        }
        let unused: Vec<&String> = compiled.keys().collect();
        assert!(unused.is_empty(), "kernels that nothing launches: {unused:?}");
    }

    /// Hopper's own kernels are in its machine code alone, and stand in for others with the same parameters.
    #[test]
    fn hoppers_own_kernels_were_built() {
        let (common, hopper) = attention::fast_kernels();
        let built = |kernel: &Kernel| {
            let image = crate::modules::hopper().remove(kernel.module).unwrap();
            let symbol = format!(".text.{}\0", kernel.name);
            assert!(image.windows(symbol.len()).any(|part| part == symbol.as_bytes()), "{}", kernel.name);
        };
        attention::in_parts().for_each(built);
        for kernel in hopper {
            built(kernel);
            let twin = common.iter().find(|twin| kernel.name == format!("{}_sm90a", twin.name)).unwrap();
            assert_eq!(kernel.parameters, twin.parameters, "{}", kernel.name);
        }
    }
}
