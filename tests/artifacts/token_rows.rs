//! Adapters that bring along rows of single tokens.

use super::*;

/// Adapters with rows of single tokens, as peft saved them: merged and beside the base they compute what they do in peft.
/// `tests/python/make_peft_tokens.py` makes them.
#[test]
fn rows_of_tokens_compute_what_peft_computes() {
    let temporary = tempfile::tempdir().unwrap();
    let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
    for (case, name) in [("tied", "llama_tied"), ("untied", "mistral")] {
        let dir = root().join("tests/fixtures/peft_tokens").join(case);
        let expected = read_json(&dir.join("expected.json"));
        let numbers = |key: &str| -> Vec<f64> {
            expected[key].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
        };
        let ids: Vec<u32> = numbers("ids").into_iter().map(|id| id as u32).collect();
        let part = Part { dir: dir.clone(), weight: 1.0 };
        let with = |parts: &[Part]| Source { base: family(name, temporary.path()), parts: parts.to_vec() }.open();
        let merged = with(std::slice::from_ref(&part)).unwrap();
        assert_eq!(merged.spec().tie_word_embeddings, case == "tied");
        let folder = temporary.path().join(case);
        merged.write(&folder, DType::F32, u64::MAX).unwrap();
        sound(&folder, &merged, &Target::Folder(DType::F32));
        let again = Source { base: folder, parts: Vec::new() }.open().unwrap();
        for model in [&merged, &again] {
            let found = last_logits(&model.trained(&options).unwrap(), &ids);
            assert_eq!(found.len(), numbers("logits").len());
            for (ours, peft) in found.iter().zip(numbers("logits")) {
                assert!((f64::from(*ours) - peft).abs() < 2e-4, "{case}: {ours}, not {peft}");
            }
        }
        // The base says something else.
        let found = last_logits(&merged.untrained(&options).unwrap(), &ids);
        assert!(found.iter().zip(numbers("logits")).any(|(ours, peft)| (f64::from(*ours) - peft).abs() > 1e-2));

        let error = with(&[Part { weight: 0.5, ..part.clone() }]).unwrap_err().to_string();
        assert!(error.contains("rows of tokens (trainable_token_indices)") && error.contains("is 0.5"), "{error}");
        let error = with(&[part.clone(), part]).unwrap_err().to_string();
        assert!(error.contains("brings that along, too"), "{error}");
        let error = AdapterExport::new(&dir, &merged.spec_of_base(), FileKind::F16).unwrap_err().to_string();
        assert!(error.contains("llama.cpp's adapters have no place for them"), "{error}");
        // A run goes on from it.
        let lora = LoraOptions::of_folder(&dir).unwrap();
        let expected: [&[u32]; 2] = if case == "tied" { [&[17, 200, 5], &[]] } else { [&[5, 17], &[3, 201, 17]] };
        assert_eq!([&*lora.tokens.ids, &*lora.output_tokens.ids], expected);
        let adapted = LoadOptions { lora: Some(lora.clone()), ..options.clone() };
        let base = Checkpoint::open(family(name, temporary.path())).unwrap();
        let model = Decoder::load(ModelSpec::of(&base).unwrap(), &base, &adapted).unwrap();
        lora.load_into(&model, &dir).unwrap();
        for (ours, peft) in last_logits(&model, &ids).iter().zip(numbers("logits")) {
            assert!((f64::from(*ours) - peft).abs() < 2e-4, "{case}: {ours}, not {peft}");
        }
        // Of tokens that there are not, and fewer than are named.
        let other = temporary.path().join(format!("other_{case}"));
        fs::create_dir_all(&other).unwrap();
        fs::copy(dir.join("adapter_model.safetensors"), other.join("adapter_model.safetensors")).unwrap();
        let changed = |tokens: Value| {
            let mut config = read_json(&dir.join("adapter_config.json"));
            config["trainable_token_indices"] = tokens;
            fs::write(other.join("adapter_config.json"), config.to_string()).unwrap();
            with(&[Part { dir: other.clone(), weight: 1.0 }]).unwrap_err().to_string()
        };
        if case == "tied" {
            assert!(changed(json!([17, 100_000, 5])).contains("a row for the token 100000"));
            assert!(changed(json!([17, 5])).contains("trainable_token_indices of adapter_config.json names 2"));
            assert!(changed(json!({"embed_tokens": "all"})).contains("ids of tokens were expected"));
            let error = changed(Value::Null);
            assert!(error.contains("token_adapter") && error.contains("is not a part of a LoRA adapter"), "{error}");
        }
    }
}

/// The logits behind the last of some tokens.
fn last_logits(model: &Decoder, ids: &[u32]) -> Vec<f32> {
    let len = ids.len();
    let batch = Batch {
        rows: 1,
        len,
        input_ids: ids.to_vec(),
        targets: vec![IGNORE; len],
        positions: (0..len as u32).collect(),
        spans: vec![Span { row: 0, start: 0, len }],
        origins: vec!["made up".into()],
        labels: Vec::new(),
    };
    let logits = tune_core::engine::logits(model, &batch).unwrap();
    logits.squeeze(0).unwrap().to_vec2().unwrap().remove(len - 1)
}
