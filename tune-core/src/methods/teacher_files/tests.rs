use std::fs;

use candle_core::DType;
use serde_json::json;

use super::*;
use crate::data::{IGNORE, LoaderOptions, Sample};
use crate::device::Compute;
use crate::models::{LoadOptions, ModelSpec, RandomWeights};
use crate::optim::Gradients;

const VOCAB: u32 = 61;

fn model(seed: u64, trained: bool) -> Decoder {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: trained, lora: None };
    Decoder::load(ModelSpec::from_json(&config).unwrap(), &RandomWeights { seed, std: 0.3 }, &options).unwrap()
}

fn samples(count: u32) -> Vec<Sample> {
    let sample = |i: u32| {
        let len = 4 + i % 5;
        let target = |at: u32| if at < 2 { IGNORE } else { (i * 7 + at * 3) % VOCAB };
        Sample {
            input_ids: (0..len).map(|at| (i * 11 + at * 5) % VOCAB).collect(),
            targets: (0..len).map(target).collect(),
            origin: format!("data.jsonl:{}", i + 1),
            label: None,
        }
    };
    (0..count).map(sample).collect()
}

fn loader(count: u32, options: LoaderOptions) -> Loader {
    Loader::new(samples(count), options).unwrap()
}

fn written(dir: &Path, k: usize, count: u32) -> TeacherFiles {
    let options = LoaderOptions { batch_size: 3, shuffle: true, seed: 5, ..LoaderOptions::default() };
    let data = loader(count, options);
    TeacherFiles::write(dir, Header::new(k, VOCAB as usize), &model(2, false), &data, &mut |_| {}).unwrap();
    TeacherFiles::open(dir).unwrap()
}

#[test]
fn what_was_said_is_found_again_in_other_rows_and_another_order() {
    let folder = tempfile::tempdir().unwrap();
    let files = written(&folder.path().join("said"), 7, 10);
    assert_eq!(files.samples(), 10);
    files.check_sums().unwrap();
    let teacher = model(2, false);
    for options in [
        LoaderOptions { batch_size: 4, ..LoaderOptions::default() },
        LoaderOptions { batch_size: 2, pack_to: Some(24), shuffle: true, seed: 1, ..LoaderOptions::default() },
    ] {
        let data = loader(10, options);
        assert_eq!(files.first_missing(&data).unwrap(), None);
        for batch in data.epoch(1).batches(0) {
            let batch = batch.unwrap();
            assert_eq!(files.top_tokens(&batch).unwrap(), engine::top_tokens(&teacher, &batch, 7).unwrap());
        }
    }
}

/// What all tokens of the teacher say is what the teacher says.
#[test]
fn of_all_tokens_it_teaches_as_the_teacher_itself() {
    let folder = tempfile::tempdir().unwrap();
    let all = written(&folder.path().join("all"), 1000, 10);
    let few = Teacher::Said(written(&folder.path().join("few"), 5, 10));
    let (all, teacher) = (Teacher::Said(all), Teacher::Model(Box::new(model(2, false))));
    let student = model(1, true);
    let batch = loader(10, LoaderOptions { batch_size: 10, ..LoaderOptions::default() }).batch(0, 0).unwrap().unwrap();
    for mixture in [Mixture::new(0.5, 1.0), Mixture::new(1.0, 0.0), Mixture::new(0.7, 0.3)] {
        let taught = |teacher: &Teacher| {
            let mut gradients = Gradients::default();
            let found = teacher.teach(&student, &batch, mixture, RunOptions::PLAIN, &mut gradients).unwrap();
            (found, gradients.norm().unwrap())
        };
        let ((right, of_right), (found, of_found), (part, _)) = (taught(&teacher), taught(&all), taught(&few));
        assert!(right.divergence > 1.0, "{right:?}");
        for (found, right) in
            [(found.divergence, right.divergence), (found.cross_entropy, right.cross_entropy), (of_found, of_right)]
        {
            assert!((found - right).abs() < 1e-4 * right, "{mixture:?}: {found} instead of {right}");
        }
        // Less is known of fewer.
        assert!(part.divergence > 0.0 && part.divergence < right.divergence, "{part:?} {right:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("said");
    let files = written(&dir, 7, 10);
    let more = loader(12, LoaderOptions { batch_size: 12, ..LoaderOptions::default() });
    assert_eq!(files.first_missing(&more).unwrap().as_deref(), Some("data.jsonl:11"));
    let batch = more.batch(0, 0).unwrap().unwrap();
    let said = files.top_tokens(&batch).unwrap_err().to_string();
    assert!(said.contains("data.jsonl:11: what the teacher says of this sample is not stored"), "{said}");

    // Nothing is written over.
    let header = Header::new(7, VOCAB as usize);
    let again = TeacherFiles::write(&dir, header, &model(2, false), &more, &mut |_| {}).unwrap_err().to_string();
    assert!(again.contains("is there already"), "{again}");

    let file = dir.join("top_k-00001.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let said = TeacherFiles::open(&dir).unwrap().check_sums().unwrap_err().to_string();
    assert!(said.contains("its checksum is not that of teacher.json"), "{said}");
    bytes.pop();
    fs::write(&file, &bytes).unwrap();
    assert!(TeacherFiles::open(&dir).is_err());

    fs::write(dir.join(HEADER), "{}").unwrap();
    let said = TeacherFiles::open(&dir).unwrap_err().to_string();
    assert!(said.contains("does not say what the files beside it are"), "{said}");
}

/// As `hashlib` has it: sha256 of the ids 1, 2, 3 and the targets 2, 3 and none.
#[test]
fn a_key_is_that_of_the_documentation() {
    let sample = Sample { input_ids: vec![1, 2, 3], targets: vec![2, 3, IGNORE], origin: String::new(), label: None };
    let batch = Loader::new(vec![sample], LoaderOptions::default()).unwrap().batch(0, 0).unwrap().unwrap();
    assert_eq!(key(&batch, &batch.spans[0]), KEY);
}

const KEY: u64 = 18197299284798990807;
