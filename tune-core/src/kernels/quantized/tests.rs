use std::collections::HashMap;

use candle_core::{Device, Tensor};
use half::bf16;

use super::*;

/// The formats that files have.
const OF_FILES: [Format; 13] = [
    Format::F16,
    Format::Bf16,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Iq4Nl,
    Format::Q2K,
    Format::Q3K,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// What other programs make of these blocks, see `make.py` beside the file.
fn fixture() -> HashMap<String, Tensor> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/quantized/blocks.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn matrix(fixture: &HashMap<String, Tensor>, format: Format) -> (Quantized, Vec<f32>) {
    let values = &fixture[&format!("{format}.values")];
    let bytes = fixture[&format!("{format}.blocks")].flatten_all().unwrap().to_vec1().unwrap();
    (Quantized::of_file(format, values.dims2().unwrap(), bytes), numbers(values))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_format_is_dequantized_as_the_gguf_package_does() {
    let fixture = fixture();
    for format in OF_FILES {
        let (ours, theirs) = matrix(&fixture, format);
        assert_eq!(bits(&ours.dequantized()), bits(&theirs), "{format}");
        let (rows, cols) = ours.dims();
        assert_eq!(format.bytes(rows, cols), Some(ours.bytes()));
    }
}

#[test]
fn a_piece_may_begin_and_end_anywhere() {
    let fixture = fixture();
    let formats = OF_FILES.map(|format| matrix(&fixture, format).0);
    let values: Vec<f32> = (0..5 * 192).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    for of in formats.into_iter().chain([Quantized::nf4(5, 192, &values)]) {
        let all = of.dequantized();
        let (rows, cols) = of.dims();
        for row in 0..rows {
            for (from, to) in [(0, 1), (1, 16), (3, 40), (16, 17), (31, 33), (15, cols), (0, cols), (cols, cols)] {
                let mut piece = vec![f32::NAN; to - from];
                of.row(row, from, &mut piece);
                assert_eq!(
                    bits(&piece),
                    bits(&all[row * cols + from..row * cols + to]),
                    "{} {from}..{to}",
                    of.format()
                );
                of.dequantize(row, from, &mut piece);
                assert_eq!(
                    bits(&piece),
                    bits(&all[row * cols + from..row * cols + to]),
                    "{} {from}..{to}",
                    of.format()
                );
                let mut rounded = vec![bf16::NAN; to - from];
                of.row(row, from, &mut rounded);
                let right: Vec<_> = piece.iter().map(|&x| <bf16 as Element>::from_f32(x)).collect();
                assert_eq!(rounded, right);
                let part = Rows::new(&of, 1.min(row), row + 1 - 1.min(row));
                let mut widened = vec![f32::NAN; to - from];
                part.widened::<bf16>(row - 1.min(row), from, &mut widened);
                assert_eq!(bits(&widened), bits(&right.iter().map(|x| x.to_f32()).collect::<Vec<_>>()));
            }
        }
    }
}

/// Half-precision numbers, all of them.
/// Each format in shares, of which the whole is put together again: also where there are more processes than units, and where a matrix
/// ends within a group of scales.
#[test]
fn shares_are_as_large_as_is_planned_and_make_the_whole() {
    let fixture = fixture();
    let formats = OF_FILES.map(|format| matrix(&fixture, format).0);
    let values: Vec<f32> = (0..77 * 448).map(|i| ((i * 37 % 101) as f32 - 50.0) * (1.0 + (i / 640) as f32)).collect();
    for whole in formats.into_iter().chain([Quantized::nf4(77, 448, &values), Quantized::nf4(1, 64, &values[..64])]) {
        let (format, dims) = (whole.format(), whole.dims());
        let units = format.units(dims);
        for processes in [1, 2, 3, 5, 64] {
            let (each, more) = (units / processes, units % processes);
            let of = |rank: usize| {
                let first = rank * each + rank.min(more);
                first..first + each + usize::from(rank < more)
            };
            let shares: Vec<Share> = (0..processes).map(|rank| Share::of(&whole, of(rank))).collect();
            let counts = shares[0].counts((0..processes).map(of));
            assert_eq!(shares.iter().map(Share::bytes).sum::<u64>(), whole.bytes(), "{format} on {processes}");
            assert_eq!(format.size_of_units(dims, units.div_ceil(processes)).1, shares[0].bytes(), "{format}");
            // What each process has of a part is what its share hands over when the part is gathered.
            let mut parts = vec![[const { Vec::new() }; 3]; processes];
            for (share, parts) in shares.iter().zip(&mut parts) {
                let hand_over = |part: usize, mine: &[u8], _: &mut [u8]| {
                    parts[part] = mine.to_vec();
                    Ok::<(), ()>(())
                };
                share.gathered(hand_over).unwrap();
            }
            let gather = |part: usize, _: &[u8], all: &mut [u8]| {
                let of_all: Vec<&[u8]> = parts.iter().map(|parts| &parts[part][..]).collect();
                assert!(of_all.iter().map(|bytes| bytes.len()).eq(counts[part].iter().copied()));
                all.copy_from_slice(&of_all.concat());
                Ok::<(), ()>(())
            };
            let again = shares[processes - 1].gathered(gather).unwrap();
            assert_eq!(bits(&again.dequantized()), bits(&whole.dequantized()), "{format} on {processes}");
        }
    }
}

#[test]
fn halves_are_widened_as_the_library_does() {
    for number in 0..=u16::MAX {
        let (ours, theirs) = (format::f32_of_half(number), half::f16::from_bits(number).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{number:#x}");
    }
}

#[test]
fn normal_floats_are_those_of_torchao() {
    let fixture = fixture();
    for name in ["weights", "edges"] {
        let values = &fixture[&format!("nf4.{name}.values")];
        let (rows, cols) = values.dims2().unwrap();
        let ours = Quantized::nf4(rows, cols, &numbers(values));
        assert_eq!(Format::Nf4.bytes(rows, cols), Some(ours.bytes()));
        let theirs = numbers(&fixture[&format!("nf4.{name}.dequantized")]);
        let largest = theirs.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        for (i, (ours, theirs)) in ours.dequantized().iter().zip(&theirs).enumerate() {
            assert!((ours - theirs).abs() <= 1e-6 * largest, "{name}, element {i}: {ours} instead of {theirs}");
        }
    }
}

/// Blocks of zeros, and fewer scales than share a factor, which torchao refuses.
#[test]
fn small_and_empty_matrices_have_normal_floats_too() {
    let mut values = vec![0f32; 3 * 64];
    values[64..128].fill(0.5);
    values[70] = -1.0;
    let of = Quantized::nf4(3, 64, &values);
    assert!(of.dequantized().iter().zip(&values).all(|(ours, x)| (ours - x).abs() < 0.07), "{:?}", of.dequantized());
    assert!(of.dequantized()[..64].iter().all(|&x| x == 0.0));
    assert!(Quantized::nf4(0, 64, &[]).dequantized().is_empty());
}

/// How long a format takes, in nanoseconds an element: `cargo test --release -- --ignored --nocapture dequantizing`.
#[test]
#[ignore = "measures"]
fn times_of_dequantizing() {
    let (rows, cols) = (256, 4096);
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    for format in OF_FILES.into_iter().chain([Format::Nf4]) {
        let of = match format.bytes(rows, cols) {
            Some(bytes) if format != Format::Nf4 => {
                Quantized::of_file(format, (rows, cols), vec![0x17; bytes as usize])
            }
            _ => Quantized::nf4(rows, cols, &values),
        };
        let mut times = [0f64; 2];
        for (len, time) in [128, 48].into_iter().zip(&mut times) {
            let mut out = vec![bf16::ZERO; len];
            let begun = std::time::Instant::now();
            for _ in 0..4 {
                for row in 0..rows {
                    (0..cols / len).for_each(|i| of.row(row, i * len, &mut out));
                }
                assert!(!out[0].is_nan());
            }
            *time = begun.elapsed().as_secs_f64() * 1e9 / (4 * rows * (cols / len) * len) as f64;
        }
        println!("{format:<8} {:.3} {:.3}", times[0], times[1]);
    }
}
