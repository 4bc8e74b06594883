//! Adapters that bring more than two matrices along, and adapters that are handed on as such.

use super::*;

/// Weights that an adapter brings along whole stand in for the base's, in folders and in GGUF files; a tied table stays one, and
/// one that an adapter brings along without the output layer is parted from it, as in peft.
#[test]
fn whole_weights_of_adapters_are_taken() {
    let temporary = tempfile::tempdir().unwrap();
    let whole = |base: &Path, save: &[&str], to: &str| {
        let save = save.iter().map(|&name| name.to_owned()).collect();
        let options = LoraOptions { modules: vec![QProj], rank: 4, alpha: 6.0, seed: 4, save, ..Default::default() };
        written(base, &options, &temporary.path().join(to))
    };
    for (name, save) in
        [("llama_tied", &["embed_tokens", "norm"][..]), ("llama3_1_rope_scaled", &["lm_head", "up_proj"])]
    {
        let base = family(name, temporary.path());
        let part = whole(&base, save, &format!("{name}_whole"));
        let merged = Source { base: base.clone(), parts: vec![part.clone()] }.open().unwrap();
        assert_eq!(merged.spec().tie_word_embeddings, name == "llama_tied");
        let to = temporary.path().join(format!("{name}_merged"));
        merged.write(&to, DType::F32, u64::MAX).unwrap();
        let findings = sound(&to, &merged, &Target::Folder(DType::F32));
        assert!(findings.proof.base_from_trained.unwrap().largest > 1e-2);
        let export = Export::new(&merged, FileKind::F32, name).unwrap();
        let file = temporary.path().join(format!("{name}_whole.gguf"));
        export.write(&file).unwrap();
        sound(&file, &merged, &Target::Gguf(export));

        // Beside another adapter, with the weights of a model in memory.
        let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
        let plain = Source { base: base.clone(), parts: Vec::new() }.open().unwrap();
        let said = |model: &Decoder| -> Vec<Vec<f32>> {
            let ids: [&[u32]; 2] = [&[3, 50, 7, 9], &[11, 2, 13]];
            let mut sequences = Sequences::new(model, &[4, 4], Kernels::OfTraining).unwrap();
            sequences.extend(&ids.into_iter().enumerate().collect::<Vec<_>>()).unwrap()
        };
        let (trained, base_model) = (merged.trained(&options).unwrap(), plain.trained(&options).unwrap());
        assert_eq!(said(&merged.trained_on(&base_model, &plain).unwrap()), said(&trained));
        assert_eq!(said(&plain.trained_on(&trained, &merged).unwrap()), said(&base_model));

        let refused = |parts: &[Part], says: &str| {
            let error = Source { base: base.clone(), parts: parts.to_vec() }.open().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(&[Part { weight: 0.5, ..part.clone() }], "so there is no part of it to take: its weight is 0.5");
        let again = whole(&base, save, &format!("{name}_again"));
        refused(&[part.clone(), again], "whole (modules_to_save), and so does");
        let error = AdapterExport::new(&part.dir, &merged.spec_of_base(), FileKind::F16).unwrap_err().to_string();
        assert!(error.contains("llama.cpp's adapters have no place for it"), "{error}");
    }

    // peft's file without ensure_weight_tying: the table is another, the output layer is the base's.
    let base = family("llama_tied", temporary.path());
    let part = whole(&base, &["embed_tokens"], "alone");
    change(&part.dir.join("adapter_config.json"), |json| {
        json["modules_to_save"] = json!(["embed_tokens"]);
        json["ensure_weight_tying"] = false.into();
    });
    let path = part.dir.join("adapter_model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let kept: std::collections::HashMap<_, _> =
        tensors.into_iter().filter(|(name, _)| !name.contains("lm_head")).collect();
    candle_core::safetensors::save(&kept, &path).unwrap();
    let merged = Source { base: base.clone(), parts: vec![part] }.open().unwrap();
    assert!(!merged.spec().tie_word_embeddings);
    let head = merged.tensor("lm_head.weight", DType::F32).unwrap();
    let table = Checkpoint::open(&base).unwrap().tensor("model.embed_tokens.weight", DType::F32, &Device::Cpu).unwrap();
    assert_eq!(head.to_vec2::<f32>().unwrap(), table.to_vec2::<f32>().unwrap());
    let to = temporary.path().join("parted");
    merged.write(&to, DType::F32, u64::MAX).unwrap();
    sound(&to, &merged, &Target::Folder(DType::F32));
}

/// Adapters as llama.cpp reads them, on bases with and without interleaved heads.
#[test]
fn gguf_adapters_compute_what_was_trained() {
    let temporary = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let base = family(name, temporary.path());
        let part = adapter(&base, modules_of(name), 1, &temporary.path().join(format!("{name}_adapter")));
        let merged = Source { base, parts: vec![part.clone()] }.open().unwrap();
        for kind in [FileKind::F32, FileKind::F16] {
            let export = AdapterExport::new(&part.dir, &merged.spec_of_base(), kind).unwrap();
            let file = temporary.path().join(format!("{name}_{}_adapter.gguf", kind.name()));
            export.write(&file).unwrap();
            let findings = sound(&file, &merged, &Target::Adapter(export, kind));
            let distance = findings.proof.from_trained.unwrap();
            assert!(kind != FileKind::F32 || distance.largest < 1e-4, "{name}: {distance:?}");
        }
    }
    let tied = temporary.path().join("llama_tied");
    let part = adapter(&tied, &[LmHead], 1, &temporary.path().join("head"));
    let spec = ModelSpec::from_json(Checkpoint::open(&tied).unwrap().config()).unwrap();
    let error = AdapterExport::new(&part.dir, &spec, FileKind::F16).unwrap_err().to_string();
    assert!(error.contains("llama.cpp has no place for it; merge the adapter"), "{error}");
    let error = AdapterExport::new(&part.dir, &spec, FileKind::Q4_0).unwrap_err().to_string();
    assert!(error.contains("f32, f16 or bf16, and not in q4_0"), "{error}");
    let part = dora_adapter(&tied, &[QProj, DownProj], &temporary.path().join("dora"));
    let error = AdapterExport::new(&part.dir, &spec, FileKind::F16).unwrap_err().to_string();
    assert!(error.contains("llama.cpp has no place for its magnitudes; merge the adapter"), "{error}");
}

/// Magnitudes are in the merged weights, of folders and of GGUF files, and damage to them is found.
#[test]
fn dora_adapters_are_merged_with_their_magnitudes() {
    let temporary = tempfile::tempdir().unwrap();
    let base = family("llama_tied", temporary.path());
    let dora = dora_adapter(&base, &[QProj, VProj, DownProj, LmHead], &temporary.path().join("dora"));
    let with = |parts: &[Part]| Source { base: base.clone(), parts: parts.to_vec() }.open();
    let merged = with(std::slice::from_ref(&dora)).unwrap();
    let to = temporary.path().join("merged");
    merged.write(&to, DType::F32, u64::MAX).unwrap();
    let distance = sound(&to, &merged, &Target::Folder(DType::F32)).proof.from_trained.unwrap();
    assert!(distance.largest < 1e-3, "{distance:?}");
    // The same with lengths as they were: another model.
    let name = "model.layers.0.self_attn.q_proj.weight";
    let lengths = |t: &Tensor| t.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().to_vec1::<f32>().unwrap();
    let magnitudes = peft::read(&dora.dir).unwrap().1["model.layers.0.self_attn.q_proj.lora_magnitude_vector"].clone();
    for (ours, magnitude) in
        lengths(&merged.tensor(name, DType::F32).unwrap()).iter().zip(magnitudes.to_vec1::<f32>().unwrap())
    {
        assert!((ours - magnitude.abs()).abs() < 1e-4, "{ours} instead of {magnitude}");
    }
    // It is merged as a whole, and alone.
    let other = adapter(&base, &[QProj], 1, &temporary.path().join("other"));
    for parts in [vec![dora.clone(), other], vec![Part { weight: 0.5, ..dora }]] {
        let error = with(&parts).unwrap_err().to_string();
        assert!(error.contains("it is merged alone and as a whole"), "{error}");
    }
}
