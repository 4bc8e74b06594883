use serde_json::{Value, json};

use crate::models::{Activation, HeadNorm, MlpSpec, ModelSpec, Norms, RopeScaling, Slot};

fn minimal(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    })
}

/// The model of a minimal config and what is added to it.
#[allow(clippy::needless_pass_by_value)]
fn with(model_type: &str, added: Value) -> Result<ModelSpec, String> {
    let mut config = minimal(model_type);
    for (key, value) in added.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelSpec::from_json(&config).map_err(|e| e.to_string())
}

fn windows(model: &ModelSpec) -> Vec<Option<usize>> {
    model.blocks.iter().map(|block| block.attention.shape.window).collect()
}

#[test]
fn both_forms_of_rope_settings_mean_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32});
    let four = with("llama", json!({"rope_theta": 5e5, "rope_scaling": scaling})).unwrap();
    let mut parameters = scaling;
    parameters["rope_theta"] = json!(5e5);
    let five = with("llama", json!({"rope_parameters": parameters})).unwrap();
    assert_eq!(four, five);
    assert_eq!(four.rotary[0].theta, 5e5);
    assert!(matches!(four.rotary[0].scaling, RopeScaling::Llama3 { .. }));
    // Phi's oldest files have other names for longrope.
    let factors = json!({"type": "su", "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8]});
    let phi = with("phi3", json!({"rope_scaling": factors, "original_max_position_embeddings": 128})).unwrap();
    assert!(matches!(phi.rotary[0].scaling, RopeScaling::LongRope { attention_factor, .. } if attention_factor > 1.0));
    // As Phi-3-mini-4k and Phi-4 have it.
    let plain = with("phi3", json!({"rope_scaling": null, "original_max_position_embeddings": 4096})).unwrap();
    assert_eq!(plain.rotary[0].scaling, RopeScaling::None);
}

/// See `tests/fixtures/families/rope.py`.
#[test]
fn rotary_tables_are_those_of_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/families/rope.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let model = ModelSpec::from_json(&case["config"]).unwrap();
        let (table, len) = (&model.rotary[0], case["length"].as_u64().unwrap() as usize);
        let expected: Vec<f64> = serde_json::from_value(case["inverse_frequencies"].clone()).unwrap();
        let ours = table.inverse_frequencies(len);
        assert_eq!(ours.len(), expected.len(), "{case}");
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!((f64::from(*ours) / expected - 1.0).abs() < 2e-6, "{ours} {expected} {case}");
        }
        let factor = case["attention_factor"].as_f64().unwrap();
        assert!((f64::from(table.attention_factor()) - factor).abs() < 1e-6, "{case}");
    }
}

#[test]
fn windows_are_where_the_family_has_them() {
    assert_eq!(windows(&with("llama", json!({"sliding_window": 16})).unwrap()), [None; 8]);
    assert_eq!(windows(&with("mistral", json!({"sliding_window": 16})).unwrap()), [Some(16); 8]);
    assert_eq!(windows(&with("phi3", json!({"sliding_window": 16, "pad_token_id": null})).unwrap()), [Some(16); 8]);
    // Qwen has one in its upper blocks, if it is switched on at all.
    let qwen = json!({"sliding_window": 16, "max_window_layers": 6});
    assert_eq!(windows(&with("qwen2", qwen.clone()).unwrap()), [None; 8]);
    let mut on = qwen;
    on["use_sliding_window"] = json!(true);
    let upper: Vec<_> = (0..8).map(|i| (i >= 6).then_some(16)).collect();
    assert_eq!(windows(&with("qwen2", on.clone()).unwrap()), upper);
    assert_eq!(windows(&with("qwen3", on).unwrap()), upper);
    let gemma2: Vec<_> = (0..8).map(|i| (i % 2 == 0).then_some(4096)).collect();
    assert_eq!(windows(&with("gemma2", json!({})).unwrap()), gemma2);
    let gemma3 = with("gemma3_text", json!({"sliding_window": 512})).unwrap();
    assert_eq!(windows(&gemma3), (0..8).map(|i| (i != 5).then_some(512)).collect::<Vec<_>>());
    let tables: Vec<_> = gemma3.blocks.iter().map(|block| block.attention.rotary).collect();
    assert_eq!(tables[4..7], [Some(1), Some(0), Some(1)]);
    assert_eq!((gemma3.rotary[0].theta, gemma3.rotary[1].theta), (1e6, 1e4));
}

#[test]
fn families_differ_where_they_do() {
    let gemma = with("gemma", json!({"hidden_act": "gelu"})).unwrap();
    assert!(gemma.norm.from_one && gemma.tie_word_embeddings && gemma.embedding.scale == Some(8.0));
    assert!(matches!(gemma.blocks[0].mlp, MlpSpec::Gated { activation: Activation::GeluTanh, .. }));
    assert_eq!(gemma.blocks[0].attention.shape.head_dim, 256);
    let smollm3 = with("smollm3", json!({})).unwrap();
    let turned: Vec<_> = smollm3.blocks.iter().map(|block| block.attention.rotary.is_some()).collect();
    assert_eq!(turned, [true, true, true, false, true, true, true, false]);
    let olmo2 = with("olmo2", json!({})).unwrap();
    assert_eq!((olmo2.blocks[0].norms, olmo2.blocks[0].attention.head_norm), (Norms::After, Some(HeadNorm::All)));
    let llama = with("llama", json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert!(llama.layers(0).iter().all(|layer| layer.bias));
    let phi3 = with("phi3", json!({"partial_rotary_factor": 0.75})).unwrap();
    assert_eq!(phi3.rotary[0].dim, 12);
    let slots: Vec<_> = phi3.layers(0).iter().map(|layer| layer.site.slot).collect();
    assert_eq!(slots, [Slot::QkvProj, Slot::OProj, Slot::GateUpProj, Slot::DownProj]);
    let moe = json!({"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1],
                     "decoder_sparse_step": 2, "head_dim": 16});
    let moe = with("qwen3_moe", moe).unwrap();
    let sparse: Vec<_> = moe.blocks.iter().map(|block| matches!(block.mlp, MlpSpec::Experts { .. })).collect();
    assert_eq!(sparse, [false, false, false, true, false, true, false, true]);
    assert_eq!(moe.layers(3).len(), 4 + 1 + 3 * 6);
    // The part for text of a model of images, which says little of itself.
    let text = json!({"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                      "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}});
    let model = json!({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 4}});
    let model = ModelSpec::from_json(&model).unwrap();
    assert_eq!((model.vocab_size, model.rotary[0].scaling.clone()), (262_208, RopeScaling::Linear { factor: 8.0 }));
}

#[test]
fn messages_name_the_field() {
    let broken = |name: &str, value: Value| with("llama", json!({name: value})).unwrap_err();
    assert_eq!(broken("hidden_size", json!(-1)), "config.json: `hidden_size` must be a positive integer, not -1");
    assert!(broken("num_key_value_heads", json!(3)).contains("multiple of num_key_value_heads"));
    assert!(broken("hidden_act", json!("relu")).contains("`hidden_act` is \"relu\""));
    let proportional = broken("rope_scaling", json!({"rope_type": "proportional"}));
    assert!(proportional.contains("`rope_scaling.rope_type` is \"proportional\"; supported are"), "{proportional}");
    assert!(broken("num_attention_heads", json!(6)).contains("or head_dim must be given"));
    assert!(broken("num_hidden_layers", json!(100_000)).contains("more than 4096 are not supported"));
    let few = with("phi3", json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}));
    assert!(few.unwrap_err().contains("`rope_scaling.short_factor` has 1 numbers for 8 frequencies"));
    let missing = ModelSpec::from_json(&json!({"model_type": "llama"})).unwrap_err().to_string();
    assert_eq!(missing, "config.json: `hidden_size` is missing");
}

/// No setting that could change what a model computes is passed over.
#[test]
fn what_is_not_known_is_refused_by_name() {
    for (model_type, name, value) in [
        ("llama", "attention_dropout", json!(0.1)),
        ("llama", "logit_scale", json!(0.0625)),
        ("llama", "quantization_config", json!({"bits": 4})),
        ("mistral", "attention_bias", json!(true)),
        ("mistral", "layer_types", json!(["full_attention"])),
        ("qwen2", "qk_norm", json!(true)),
        ("qwen2", "dual_chunk_attention_config", json!({"chunk_size": 1})),
        ("qwen3_moe", "output_router_logits", json!(true)),
        ("phi3", "resid_pdrop", json!(0.1)),
        ("gemma", "use_bidirectional_attention", json!(true)),
        ("gemma3_text", "attn_logit_softcapping", json!(50.0)),
        ("olmo2", "clip_qkv", json!(8.0)),
        ("smollm3", "attention_multiplier", json!(2.0)),
    ] {
        let error = with(model_type, json!({name: value})).unwrap_err();
        assert!(error.contains(&format!("config.json: `{name}`")), "{model_type}: {error}");
    }
    let mrope = with("qwen2", json!({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}})).unwrap_err();
    assert!(mrope.contains("`rope_scaling.mrope_section`"), "{mrope}");
    // What is off, or changes nothing, is not in the way.
    let harmless = json!({"logit_scale": null, "qk_norm": false, "pruned_heads": {}, "use_cache": true, "bos_token_id": 1,
                          "_name_or_path": "somewhere", "torch_dtype": "bfloat16", "transformers_version": "4.1"});
    with("llama", harmless).unwrap();
}

#[test]
fn an_unknown_model_is_told_what_is_supported() {
    let error = |model_type: &str| ModelSpec::from_json(&json!({"model_type": model_type})).unwrap_err().to_string();
    assert!(error("qwen4").contains("`qwen4` is not supported; supported are gemma, gemma2, "), "{}", error("qwen4"));
    assert!(error("lama").ends_with("smollm3; the nearest is llama"), "{}", error("lama"));
    for model_type in ["mllama", "qwen2_5_vl", "llama4", "paligemma"] {
        let error = error(model_type);
        assert!(error.contains(&format!("`{model_type}` is a model of images or sound")), "{error}");
    }
    let sees = ModelSpec::from_json(&json!({"model_type": "new_vlm", "vision_config": {}})).unwrap_err().to_string();
    assert!(sees.contains("a model of images"), "{sees}");
}
