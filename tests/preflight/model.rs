//! What is said of a model: its files, its weights, and the layers that get adapters.

use super::*;

/// The weights are 140 GB of holes: to read them is to run out of memory, if not of patience.
#[test]
fn no_weight_is_read() {
    let place = Place::new();
    let model = place.model(&seventy_billion());
    let begun = Instant::now();
    let (said, _) = place.ask("lora", "--check", &[&model]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    contains(&said, &["80 blocks of width 8192, 68455505920 parameters, stored in bf16", "1500 samples"]);
}

#[test]
fn weights_that_are_not_whole_are_an_error_and_the_rest_is_looked_at() {
    let place = Place::new();
    let model = place.model(&json!({}));
    place.sound(&[&model]);
    let weights = place.path("model/model.safetensors");
    let length = fs::metadata(&weights).unwrap().len();
    fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(length / 2).unwrap();
    let said = place.unsound(&[&model]);
    contains(&said, &["error: ", "model.safetensors: is truncated", "1500 samples", "«e-p-u-p-m<|im_end|>»"]);
    assert_eq!(said.matches("\nerror: ").count(), 1, "{said}");
    // Whole, but of another model than its config says.
    let model = place.model(&json!({"num_hidden_layers": 3}));
    let config = fs::read_to_string(place.path("model/config.json")).unwrap();
    fs::write(place.path("model/config.json"), config.replace("\"num_hidden_layers\":3", "\"num_hidden_layers\":4"))
        .unwrap();
    contains(&place.unsound(&[&model]), &["has no tensor `model.layers.3."]);
    // A family that is not there.
    let model = place.model(&json!({"model_type": "mamba"}));
    contains(&place.unsound(&[&model]), &["model_type `mamba` is not supported"]);
}

/// Tokens whose rows are trained: by their texts and ids, and those that there are not.
#[test]
fn rows_of_tokens() {
    let place = Place::new();
    let texts = "model.trainable_tokens=[<|im_start|>, <|im_end|>]";
    let said = place.sound(&[texts, "model.trainable_token_indices=[5]"]);
    assert!(said.contains("; beside them the rows of tokens 5, 0, 1"), "{said}");
    let refused = |overrides: &[&str], says: &str| {
        let said = place.unsound(overrides);
        assert!(said.contains(says), "{said}");
        let (said, code) = place.ask("lora", "--plan", overrides);
        assert!(said.contains(says) && code != Some(0), "{said}");
    };
    refused(&["model.trainable_tokens=[<tool>]"], "model.trainable_tokens: `<tool>` is no token of the tokenizer");
    let no_token = "model.trainable_token_indices: 384 is no token of the model: its embedding table has 384 rows";
    refused(&["model.trainable_token_indices=[384]"], no_token);
    refused(&[texts, "model.trainable_token_indices=[1]"], "the token 1 is named twice, here or by its text");
    refused(&["model.new_tokens=[zebra]", texts], "the embedding table is trained whole");
    refused(&["model.apply_lora_to_output=true", texts], "gets an adapter: leave `lm_head` out");
    let of_output = "model.trainable_output_tokens=[<|im_end|>]";
    refused(&[of_output], "name the tokens in model.trainable_token_indices, whose rows are those of both");
    let no_token = "model.trainable_output_tokens: `<tool>` is no token of the tokenizer";
    refused(&["model.trainable_output_tokens=[<tool>]"], no_token);
}

#[test]
fn layers_that_are_stored_as_one_share_an_adapter_and_that_is_said() {
    let place = Place::new();
    let model = place.model(&json!({"model_type": "phi3", "pad_token_id": 0}));
    let said = |modules: &str, mlp: &str| {
        place.sound(&[
            &model,
            &format!("model.lora_attn_modules=[{modules}]"),
            &format!("model.apply_lora_to_mlp={mlp}"),
        ])
    };
    let shared = "torchtune gives each part an adapter of its own";
    let both = said("q_proj, v_proj", "true");
    contains(
        &both,
        &["warning: in this model `q_proj`, `v_proj` are parts of `qkv_proj` and `gate_proj`, `up_proj` are parts of \
           `gate_up_proj`: such a layer gets one adapter, which changes all of its parts, as in peft"],
    );
    assert_eq!(both.matches(shared).count(), 1, "{both}");
    contains(&said("k_proj", "false"), &["in this model `k_proj` is a part of `qkv_proj`: such a layer"]);
    assert!(!said("qkv_proj, o_proj", "false").contains(shared));
    // Where layers are apart there is nothing to say.
    assert!(!place.sound(&["model.lora_attn_modules=[q_proj, v_proj]"]).contains(shared));
    // A run says it as it starts.
    let run = recipe("lora", &["--config", "configs/lora/tiny.yaml", &place.output(), &model, "max_steps_per_epoch=1"]);
    let said = text(&{ run }.output().unwrap().stderr);
    assert_eq!(said.matches(shared).count(), 1, "{said}");
}

/// What is wrong with a `config.json` is said with its path: a run may read several.
#[test]
fn the_file_that_describes_the_model_is_named() {
    let place = Place::new();
    let file = place.path("model/config.json");
    for (key, value, what) in [
        ("hidden_act", json!("relu"), "`hidden_act` is \"relu\"; supported are"),
        ("num_hidden_layers", json!(100_000), "`num_hidden_layers` is 100000; more than 4096 are not supported"),
        ("num_attention_heads", json!(5), "num_attention_heads (5) must be a multiple of"),
        ("rope_parameters", json!({"rope_type": "longrope"}), "`rope_parameters.short_factor` is missing"),
        ("rope_parameters", json!(3), "rope_parameters must be an object, not 3"),
        ("logit_scale", json!(2.0), "`logit_scale` is 2.0, and nothing is known of such a setting here"),
        ("model_type", json!("lama"), "model_type `lama` is not supported"),
    ] {
        let model = place.model(&json!({}));
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config[key] = value;
        fs::write(&file, config.to_string()).unwrap();
        let expected = format!("error: {}: {what}", file.display());
        assert!(place.unsound(&[&model]).contains(&expected), "{}", place.unsound(&[&model]));
        let output = recipe("lora", &["--config", "configs/lora/tiny.yaml", &place.output(), &model]).output().unwrap();
        assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
        let folder = place.path("model").display().to_string();
        let ask = [&*format!("checkpoint_dir={folder}"), "prompt=Hello"];
        let output = recipe("generate", &ask).output().unwrap();
        assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
    }
    // Weights that its model does not have, too.
    let model = place.model(&json!({}));
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace("\"num_hidden_layers\":4", "\"num_hidden_layers\":3")).unwrap();
    let expected = format!("error: {}: has 9 weights that the model of its config.json", place.path("model").display());
    assert!(place.unsound(&[&model]).contains(&expected), "{}", place.unsound(&[&model]));
}
