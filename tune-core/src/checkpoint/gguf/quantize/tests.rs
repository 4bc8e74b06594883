use std::path::Path;

use candle_core::Device;

use super::*;

const QUANTIZED: [Format; 7] =
    [Format::Q8_0, Format::Q4_0, Format::Q5_0, Format::Q5_1, Format::Q4K, Format::Q5K, Format::Q6K];

/// See `tests/fixtures/gguf/blocks.py`.
#[test]
fn blocks_are_those_of_llama_cpp() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/blocks.safetensors");
    let theirs = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let numbers: Vec<Vec<f32>> = theirs["numbers"].to_vec2().unwrap();
    assert!(numbers.len() > 60);
    for format in QUANTIZED {
        let expected: Vec<Vec<u8>> = theirs[format.name()].to_vec2().unwrap();
        for (row, (numbers, expected)) in numbers.iter().zip(&expected).enumerate() {
            assert!(format.encode(numbers) == *expected, "{} of row {row}: {numbers:?}", format.name());
        }
        // All at once, in parts on all cores.
        let together: Vec<f32> = numbers.iter().flatten().copied().collect();
        let together = together.repeat(5);
        assert!(format.encode(&together) == expected.concat().repeat(5), "{}", format.name());
    }
}

/// See `tests/fixtures/gguf/weighted.py`.
#[test]
fn blocks_by_columns_are_those_of_llama_cpp() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/weighted.safetensors");
    let theirs = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let numbers: Vec<Vec<f32>> = theirs["numbers"].to_vec2().unwrap();
    let importance: Vec<Vec<f32>> = theirs["importance"].to_vec2().unwrap();
    let expected = |name: String| theirs[&name].to_vec2::<u8>().unwrap();
    for (i, columns) in importance.iter().enumerate() {
        for format in QUANTIZED.into_iter().chain([Format::Q4_1]) {
            let expected = expected(format!("{}.{i}", format.name()));
            for (row, (numbers, expected)) in numbers.iter().zip(&expected).enumerate() {
                let found = format.encode_by_columns(numbers, columns);
                assert!(found == *expected, "{} of row {row} by columns {i}", format.name());
            }
            let found = format.encode_by_columns(&numbers.concat(), columns);
            assert!(found == expected.concat(), "{} by columns {i}, on all cores", format.name());
        }
    }
    for (row, (numbers, expected)) in numbers.iter().zip(expected("Q4_1".to_owned())).enumerate() {
        assert!(Format::Q4_1.encode(numbers) == expected, "Q4_1 of row {row}");
    }
}

/// The sum of squared errors, each times what its column counts, is what the search is for.
#[test]
fn errors_are_smaller_in_columns_that_count() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/weighted.safetensors");
    let theirs = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let columns: Vec<f32> = theirs["importance"].to_vec2().unwrap().swap_remove(0);
    // Numbers as weights have them: the last rows.
    let numbers: Vec<Vec<f32>> = theirs["numbers"].to_vec2().unwrap();
    let numbers = &numbers[16..];
    for format in QUANTIZED.into_iter().chain([Format::Q4_1]).filter(|format| format.searches()) {
        let error = |numbers: &[f32], bytes: &[u8]| {
            let mut read = vec![0.0; numbers.len()];
            format.decode(bytes, &mut read);
            let terms = numbers.iter().zip(&read).zip(&columns);
            terms.map(|((a, b), column)| f64::from(column * (a - b) * (a - b))).sum::<f64>()
                / numbers.iter().zip(&columns).map(|(x, column)| f64::from(column * x * x)).sum::<f64>()
        };
        let sum = |encode: &dyn Fn(&[f32]) -> Vec<u8>| numbers.iter().map(|x| error(x, &encode(x))).sum::<f64>();
        let (alike, by_columns) = (sum(&|x| format.encode(x)), sum(&|x| format.encode_by_columns(x, &columns)));
        assert!(by_columns < 0.9 * alike, "{}: {by_columns:e} and {alike:e}", format.name());
    }
}

/// What llama.cpp's `quantize` prints of a model of 32 blocks with and without `--imatrix`.
#[test]
fn an_importance_matrix_changes_formats_where_llama_cpp_does() {
    let wide = [4096, 4096];
    let changed = |kind: FileKind, name: &str, shape: &[usize]| {
        let (alone, with) =
            (kind.of_tensor(name, shape, 32, true), kind.of_tensor_by_importance(name, shape, 32, true));
        (alone != with).then_some(with)
    };
    for block in 0..32 {
        let name = |layer: &str| format!("blk.{block}.{layer}.weight");
        let expected = (block < 4).then_some(Format::Q4_1);
        assert_eq!(changed(FileKind::Q4_0, &name("ffn_down"), &wide), expected, "{block}");
        assert_eq!(changed(FileKind::Q4_0, &name("ffn_down_exps"), &[8, 4096, 4096]), expected, "{block}");
        assert_eq!(changed(FileKind::Q4_0, &name("ffn_up"), &wide), None);
        assert_eq!(changed(FileKind::Q4KM, &name("ffn_down"), &wide), None);
        assert_eq!(changed(FileKind::Q6K, &name("ffn_down"), &wide), None);
    }
    assert_eq!(changed(FileKind::Q4_0, "blk.0.ffn_down.bias", &[4096]), None);
    assert_eq!(changed(FileKind::Q4_0, "output.weight", &wide), None);
}

#[test]
fn tensors_have_the_formats_that_llama_cpp_chooses() {
    let of = |kind: FileKind, name: &str, shape: &[usize]| kind.of_tensor(name, shape, 32, true);
    let wide = [4096, 4096];
    assert_eq!(of(FileKind::Q4KM, "blk.0.attn_q.weight", &wide), Format::Q4K);
    // More bits for the first and the last eighth, and each third between.
    let down = |block: usize| of(FileKind::Q4KM, &format!("blk.{block}.ffn_down.weight"), &wide);
    let more: Vec<usize> = (0..32).filter(|&block| down(block) == Format::Q6K).collect();
    assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
    assert_eq!(of(FileKind::Q5KM, "blk.3.attn_v.weight", &wide), Format::Q6K);
    assert_eq!(of(FileKind::Q5KM, "blk.4.attn_v.weight", &wide), Format::Q5K);
    assert_eq!(of(FileKind::Q4KM, "blk.4.attn_qkv.weight", &wide), Format::Q5K);
    // The output layer is the better one, be it the embedding table.
    assert_eq!(of(FileKind::Q4KM, "output.weight", &wide), Format::Q6K);
    assert_eq!(of(FileKind::Q4_0, "output.weight", &wide), Format::Q6K);
    assert_eq!(of(FileKind::Q8_0, "output.weight", &wide), Format::Q8_0);
    assert_eq!(of(FileKind::Q4KM, "token_embd.weight", &wide), Format::Q4K);
    assert_eq!(FileKind::Q4KM.of_tensor("token_embd.weight", &wide, 32, false), Format::Q6K);
    // Rows that are not made of whole blocks.
    assert_eq!(of(FileKind::Q4KM, "blk.4.attn_q.weight", &[576, 576]), Format::Q5_0);
    assert_eq!(of(FileKind::Q5KM, "blk.4.attn_q.weight", &[576, 576]), Format::Q5_1);
    assert_eq!(of(FileKind::Q6K, "blk.4.attn_q.weight", &[576, 576]), Format::Q8_0);
    assert_eq!(of(FileKind::Q4KM, "output.weight", &[576, 576]), Format::Q8_0);
    assert_eq!(of(FileKind::Q4_0, "blk.4.attn_q.weight", &[40, 40]), Format::F16);
    // What is small stays exact.
    for name in ["blk.0.attn_norm.weight", "blk.0.attn_q.bias"] {
        assert_eq!(of(FileKind::Q4KM, name, &[4096]), Format::F32);
        assert_eq!(of(FileKind::F16, name, &[4096]), Format::F32);
    }
    assert_eq!(of(FileKind::Q4KM, "blk.0.ffn_gate_inp.weight", &[8, 4096]), Format::F32);
    assert_eq!(of(FileKind::Bf16, "blk.0.ffn_gate_exps.weight", &[8, 4096, 4096]), Format::Bf16);
}
