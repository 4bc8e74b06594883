//! What files can say: tokenizers, templates, and what is refused because they cannot.

use super::*;

/// What a format cannot say is refused before anything is written.
#[test]
fn models_that_gguf_files_cannot_hold_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let refused = |name: &str, change_config: &dyn Fn(&mut Value), change_tokenizer: &dyn Fn(&mut Value)| {
        let base = family(name, temporary.path());
        change(&base.join("config.json"), change_config);
        change(&base.join("tokenizer.json"), change_tokenizer);
        let merged = Source { base, parts: vec![] }.open().unwrap();
        Export::new(&merged, FileKind::F32, "model").unwrap_err().to_string()
    };
    let error = refused("gemma2", &|config| config["query_pre_attn_scalar"] = 17.into(), &|_| ());
    assert!(error.contains("the format cannot say all of its settings: `scale: "), "{error}");
    let error = refused("qwen2", &|_| (), &|json| json["pre_tokenizer"]["add_prefix_space"] = true.into());
    assert!(error.contains("cuts text before merging in a way that has no name in llama.cpp"), "{error}");
    let error = refused("qwen2", &|_| (), &|json| {
        json["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": 900, "content": "<new>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
        }));
    });
    assert!(error.contains("`<new>` has no embedding"), "{error}");
}

/// The tokenizers of all kinds of GGUF files, written again, cut as before.
#[test]
fn tokenizers_are_written_as_they_were_read() {
    let temporary = tempfile::tempdir().unwrap();
    for name in ["smollm", "llama3", "spm", "gpt2", "qwen2"] {
        let base = root().join(format!("tests/fixtures/gguf/{name}.gguf"));
        let merged = Source { base, parts: vec![] }.open().unwrap();
        let export = Export::new(&merged, FileKind::F32, name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let file = temporary.path().join(format!("{name}.gguf"));
        export.write(&file).unwrap();
        let written = Checkpoint::open(&file).unwrap();
        let (tokenizer, _) = TokenizerConfig::default().open(&written).unwrap();
        let cases: Vec<(String, Vec<u32>)> =
            serde_json::from_value(read_json(&root().join(format!("tests/fixtures/gguf/{name}.tokens.json")))).unwrap();
        for (text, ids) in cases {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
        }
        assert_eq!(tokenizer.stop_tokens(), merged.tokenizer().stop_tokens(), "{name}");
        assert_eq!(tokenizer.begins_with_bos(), merged.tokenizer().begins_with_bos(), "{name}");
    }
}

#[test]
fn a_modelfile_says_what_the_template_says() {
    let base = root().join("recipes/tiny/model");
    let merged = Source { base, parts: vec![] }.open().unwrap();
    let text = modelfile("tiny.gguf", None, merged.tokenizer());
    assert_eq!(
        text,
        "FROM ./tiny.gguf\n\
         TEMPLATE \"\"\"{{- range .Messages }}\
         {{- if eq .Role \"system\" }}{{ \"<|im_start|>system\\n\" }}{{ .Content }}{{ \"<|im_end|>\\n\" }}\
         {{- else if eq .Role \"user\" }}{{ \"<|im_start|>user\\n\" }}{{ .Content }}{{ \"<|im_end|>\\n\" }}\
         {{- else if eq .Role \"assistant\" }}{{ \"<|im_start|>assistant\\n\" }}{{ .Content }}{{ \"<|im_end|>\\n\" }}\
         {{- end }}{{- end }}{{ \"<|im_start|>assistant\\n\" }}\"\"\"\n\
         PARAMETER stop \"<|im_end|>\"\n"
    );
    // Each message is numbered: no text stands around a message of a role alone.
    let numbered = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}";
    let tokenizer = merged.tokenizer().clone().with_chat_template(numbered).unwrap();
    let text = modelfile("adapter.gguf", Some("org/name"), &tokenizer);
    assert!(
        text.starts_with("# The base model as a GGUF file")
            && text.contains("FROM ./base.gguf\nADAPTER ./adapter.gguf\n")
    );
    assert!(text.contains("is one that no TEMPLATE was found for") && !text.contains("TEMPLATE \"\"\""), "{text}");
}
