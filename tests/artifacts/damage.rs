//! Each kind of damage to what was written is found.

use super::*;

/// A folder and a file, and what happens to them.
struct Damage {
    name: &'static str,
    /// What is said of it.
    said: &'static str,
    /// Done to a folder.
    to_folder: fn(&Path, &Merged),
}

fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

const DAMAGES: &[Damage] = &[
    Damage {
        name: "a bit of a weight",
        said: "1 of its tensors is not what base and adapters make",
        to_folder: |dir, _| flip(&dir.join("model.safetensors"), |len| len - 2),
    },
    Damage {
        name: "a truncated file",
        said: "is truncated",
        to_folder: |dir, _| {
            let path = dir.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
        },
    },
    Damage {
        name: "the base in place of the merged model",
        said: "tensors are not what base and adapters make",
        to_folder: |dir, merged| {
            fs::copy(merged.base().path().join("model.safetensors"), dir.join("model.safetensors")).map(drop).unwrap();
        },
    },
    Damage {
        name: "a missing file of weights",
        said: "has no weights",
        to_folder: |dir, _| fs::remove_file(dir.join("model.safetensors")).unwrap(),
    },
    Damage {
        name: "another byte in the chat template",
        said: "its chat template is not the trained one: they differ from byte",
        to_folder: |dir, _| {
            change(&dir.join("tokenizer_config.json"), |config| {
                let text = config["chat_template"].as_str().unwrap().replace("assistant\\n", "assistant\\n ");
                config["chat_template"] = text.into();
            });
        },
    },
    Damage {
        name: "no chat template",
        said: "it has no chat template",
        to_folder: |dir, _| change(&dir.join("tokenizer_config.json"), |config| config["chat_template"] = Value::Null),
    },
    Damage {
        name: "no stop token",
        said: "it does not list the stop token `<|im_end|>` (1)",
        to_folder: |dir, _| change(&dir.join("generation_config.json"), |config| config["eos_token_id"] = 5.into()),
    },
    Damage {
        name: "a stop token that is gone",
        said: "the eos_token `<|im_end|>` is not in the vocabulary",
        to_folder: |dir, _| {
            change(&dir.join("tokenizer.json"), |json| {
                json["added_tokens"].as_array_mut().unwrap().retain(|token| token["id"] != 1);
                let vocab = json["model"]["vocab"].as_object_mut().unwrap();
                vocab.retain(|token, _| token != "<|im_end|>");
                vocab.insert("<|im-end|>".to_owned(), 1.into());
            });
        },
    },
    Damage {
        name: "a stop token of another number",
        said: "the stop token `<|im_end|>` is not the one token 1 in its tokenizer",
        to_folder: |dir, _| {
            change(&dir.join("tokenizer.json"), |json| {
                let added = json["added_tokens"].as_array_mut().unwrap();
                (added[0]["content"], added[1]["content"]) = ("<|im_end|>".into(), "<|im_start|>".into());
                let vocab = json["model"]["vocab"].as_object_mut().unwrap();
                vocab.insert("<|im_end|>".to_owned(), 0.into());
                vocab.insert("<|im_start|>".to_owned(), 1.into());
            });
        },
    },
    Damage {
        name: "a tokenizer that cuts another way",
        said: "its tokenizer cuts another way",
        to_folder: |dir, _| {
            change(&dir.join("tokenizer.json"), |json| {
                let (a, b) = (json["model"]["vocab"]["a"].clone(), json["model"]["vocab"]["b"].clone());
                (json["model"]["vocab"]["a"], json["model"]["vocab"]["b"]) = (b, a);
            });
        },
    },
    Damage {
        name: "another rotary base",
        said: "its config.json describes another model",
        to_folder: |dir, _| {
            change(&dir.join("config.json"), |config| {
                config.as_object_mut().unwrap().remove("rope_parameters");
                config["rope_theta"] = 12345.0.into();
            });
        },
    },
    Damage {
        name: "no config",
        said: "has no config.json",
        to_folder: |dir, _| fs::remove_file(dir.join("config.json")).unwrap(),
    },
];

#[test]
fn damage_to_a_folder_is_found() {
    let temporary = tempfile::tempdir().unwrap();
    let base = family("llama_tied", temporary.path());
    let part = adapter(&base, &[QProj, VProj], 1, &temporary.path().join("adapter"));
    let merged = Source { base, parts: vec![part] }.open().unwrap();
    for Damage { name, said, to_folder } in DAMAGES {
        let dir = temporary.path().join("merged");
        let _ = fs::remove_dir_all(&dir);
        merged.write(&dir, DType::F32, u64::MAX).unwrap();
        sound(&dir, &merged, &Target::Folder(DType::F32));
        to_folder(&dir, &merged);
        let faults = check(&dir, &merged, &Target::Folder(DType::F32)).faults;
        assert!(faults.iter().any(|fault| fault.contains(said)), "{name}: {faults:#?}");
    }
}

#[test]
fn damage_to_a_gguf_file_is_found() {
    let temporary = tempfile::tempdir().unwrap();
    let base = family("llama_tied", temporary.path());
    let part = adapter(&base, &[QProj, VProj], 1, &temporary.path().join("adapter"));
    let with = |parts: &[Part]| Source { base: base.clone(), parts: parts.to_vec() }.open().unwrap();
    let merged = with(std::slice::from_ref(&part));
    let file = temporary.path().join("model.gguf");
    let write = |of: &Merged| Export::new(of, FileKind::Q8_0, "model").unwrap().write(&file).unwrap();
    let faults = || {
        let faults =
            check(&file, &merged, &Target::Gguf(Export::new(&merged, FileKind::Q8_0, "model").unwrap())).faults;
        assert!(!faults.is_empty());
        faults.join("\n")
    };
    let replace = |from: &[u8], to: &[u8]| {
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
        fs::write(&file, bytes).unwrap();
    };
    write(&merged);
    flip(&file, |len| len - 40);
    assert!(faults().contains("1 of its tensors is not what base and adapters make"));
    // The adapter is not in it, or not all of it.
    write(&with(&[]));
    assert!(faults().contains("tensors are not what base and adapters make"));
    write(&with(&[Part { weight: 0.999, ..part.clone() }]));
    assert!(faults().contains("tensors are not what base and adapters make"));
    write(&merged);
    replace(b"'<|im_start|>assistant", b"'<|im_start|>Assistant");
    assert!(faults().contains("its chat template is not the trained one"));
    write(&merged);
    replace(b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.EOS_token_id");
    assert!(faults().contains("it does not list the stop token"), "{}", faults());
    write(&merged);
    let mut theta = b"llama.rope.freq_base".to_vec();
    theta.extend(6u32.to_le_bytes());
    let mut other = theta.clone();
    let before = fs::read(&file).unwrap();
    let at = before.windows(theta.len()).position(|window| window == theta).unwrap() + theta.len();
    theta.extend(&before[at..at + 4]);
    other.extend(4321f32.to_le_bytes());
    replace(&theta, &other);
    assert!(faults().contains("describe another model"), "{}", faults());

    // An adapter that changes nothing is found, too.
    let (config, mut tensors) = peft::read(&part.dir).unwrap();
    for (name, tensor) in &mut tensors {
        if name.ends_with("lora_B.weight") {
            *tensor = tensor.zeros_like().unwrap();
        }
    }
    let nothing = temporary.path().join("nothing");
    peft::write(&nothing, &config, &tensors, &merged.tokenizer_files().clone()).unwrap();
    let merged = with(&[Part { dir: nothing, weight: 1.0 }]);
    let dir = temporary.path().join("merged");
    merged.write(&dir, DType::F32, u64::MAX).unwrap();
    let faults = check(&dir, &merged, &Target::Folder(DType::F32)).faults;
    assert!(faults.iter().any(|fault| fault.contains("the adapter changes nothing")), "{faults:?}");
}
