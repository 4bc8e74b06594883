use std::path::PathBuf;

use candle_core::DType;

use super::super::layout::layout;
use super::*;
use crate::checkpoint::Checkpoint;
use crate::data::{Batch, IGNORE, Span};
use crate::device::Compute;
use crate::engine::observe;
use crate::models::{Decoder, LoadOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The matrix of a family's tiny model on the rows of `tests/fixtures/gguf/importance.py`.
fn gathered(family: &str) -> (ModelSpec, Importance) {
    let checkpoint = Checkpoint::open(fixture("families").join(family)).unwrap();
    let spec = ModelSpec::of(&checkpoint).unwrap();
    let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
    let model = Decoder::load(spec.clone(), &checkpoint, &options).unwrap();
    let inputs = Inputs::default();
    let (rows, len) = (2, 24);
    for row in 0..rows {
        let batch = Batch {
            rows: 1,
            len,
            input_ids: (row * len..(row + 1) * len).map(|i| (i * 7919 % spec.vocab_size) as u32).collect(),
            targets: vec![IGNORE; len],
            positions: (0..len as u32).collect(),
            spans: vec![Span { row: 0, start: 0, len }],
            origins: vec!["made up".into()],
            labels: Vec::new(),
        };
        observe(&model, &batch, &inputs).unwrap();
    }
    let importance = Importance::of_inputs(&spec, inputs).unwrap();
    (spec, importance)
}

/// See `tests/fixtures/gguf/importance.py`: layers alone, layers in one, and experts.
#[test]
fn what_layers_are_given_is_what_torch_gives_them() {
    for family in ["llama_tied", "phi3", "qwen3_moe"] {
        let theirs = Importance::read(&fixture("gguf").join(format!("{family}.imatrix.gguf"))).unwrap();
        assert_eq!(
            (theirs.datasets.as_slice(), theirs.chunks, theirs.chunk_size),
            (&["ids.txt".to_owned()][..], 2, 24)
        );
        let (spec, ours) = gathered(family);
        assert_eq!(ours.entries.keys().collect::<Vec<_>>(), theirs.entries.keys().collect::<Vec<_>>());
        for (name, theirs) in &theirs.entries {
            let ours = &ours.entries[name];
            assert_eq!(ours.counts, theirs.counts, "{family}: {name}");
            assert_eq!(ours.sums.len(), theirs.sums.len(), "{family}: {name}");
            let largest = theirs.sums.iter().fold(0f32, |largest, &sum| largest.max(sum));
            for (i, (a, b)) in ours.sums.iter().zip(&theirs.sums).enumerate() {
                assert!((a - b).abs() <= 1e-4 * b + 1e-6 * largest, "{family}: {name}, sum {i}: {a} and {b}");
            }
        }
        // Every weight of a block is there, and norms are not.
        let columns = ours.columns(&layout(&spec, true)).unwrap();
        assert_eq!(columns.len(), ours.len());
    }
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ours.gguf");
    let (_, mut ours) = gathered("qwen3_moe");
    ours.datasets = vec!["a.jsonl".to_owned()];
    (ours.chunks, ours.chunk_size) = (7, 512);
    ours.write(&path).unwrap();
    assert!(Importance::is_one(&path));
    assert_eq!(Importance::read(&path).unwrap(), ours);
    // For a file's metadata, there need be no data.
    ours.datasets.clear();
    let path = dir.path().join("without.gguf");
    ours.write(&path).unwrap();
    assert_eq!(Importance::read(&path).unwrap(), ours);
}

#[test]
fn the_older_form_says_the_same() {
    let read = |name: &str| Importance::read(&fixture("gguf").join(name)).unwrap();
    let (today, older) = (read("llama_tied.imatrix.gguf"), read("llama_tied.dat"));
    assert_eq!((older.datasets.as_slice(), older.chunks), (&["ids.txt".to_owned()][..], 2));
    let spec = ModelSpec::of(&Checkpoint::open(fixture("families/llama_tied")).unwrap()).unwrap();
    let [today, older] = [today, older].map(|matrix| matrix.columns(&layout(&spec, true)).unwrap());
    assert_eq!(today.len(), 14);
    for (name, today) in &today {
        for (a, b) in today.iter().zip(&older[name]) {
            assert!((a - b).abs() <= 1e-6 * a, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn a_matrix_that_nothing_came_through_counts_alike() {
    let entry = Entry { sums: vec![6.0, 3.0, 0.0, 0.0, 1.0, 0.0], counts: vec![3.0, 0.0, 4.0] };
    assert_eq!(entry.means(), [2.0, 1.0, 1.0, 1.0, 0.25, 0.0]);
    // Older files have one count for all experts.
    let entry = Entry { sums: vec![6.0, 3.0, 0.0, 9.0], counts: vec![3.0] };
    assert_eq!(entry.means(), [2.0, 1.0, 0.0, 3.0]);
}

#[test]
fn mistakes_are_told() {
    let spec = |family: &str| ModelSpec::of(&Checkpoint::open(fixture("families").join(family)).unwrap()).unwrap();
    let of_columns =
        |matrix: &Importance, family: &str| matrix.columns(&layout(&spec(family), true)).unwrap_err().to_string();
    let llama = Importance::read(&fixture("gguf/llama_tied.imatrix.gguf")).unwrap();
    let error = of_columns(&llama, "phi3");
    assert!(error.contains("of another model: it has `blk.0.attn_k.weight`, which this model has not"), "{error}");
    let mut wider = llama;
    wider.entries.insert("blk.1.attn_q.weight".to_owned(), Entry { sums: vec![1.0; 96], counts: vec![1.0] });
    let error = of_columns(&wider, "llama_tied");
    assert!(error.contains("`blk.1.attn_q.weight` has 96 columns there and 64 here"), "{error}");
    let output = Entry { sums: vec![1.0; 64], counts: vec![1.0] };
    let alone = Importance { entries: [("output.weight".to_owned(), output)].into(), ..Importance::default() };
    let error = of_columns(&alone, "llama_tied");
    assert!(error.contains("nothing of any weight of this model"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let read = |path: &Path| Importance::read(path).unwrap_err().to_string();
    let error = read(&fixture("gguf/smollm.gguf"));
    assert!(error.contains("smollm.gguf") && error.contains("no importance matrix"), "{error}");
    let mut bytes = std::fs::read(fixture("gguf/llama_tied.dat")).unwrap();
    let path = dir.path().join("cut.dat");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(read(&path).contains("ends too early"));
    // A sum of squares below zero: the first one follows number, length, name, count and length.
    let at = 4 + 4 + "blk.0.attn_k.weight".len() + 8;
    bytes[at..at + 4].copy_from_slice(&(-1f32).to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert!(read(&path).contains("`blk.0.attn_k.weight` has a number that is no sum of squares"));
    std::fs::write(&path, [0; 4]).unwrap();
    assert!(read(&path).contains("holds no importance of any weight"));
    assert!(!Importance::is_one(&dir.path().join("none.jsonl")));
}
