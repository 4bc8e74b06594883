//! Files that are quantized by an importance matrix.

use super::*;

/// Layers of their own, several in one, and experts: what is quantized by an importance matrix of data is, bit for bit, what it was to be.
#[test]
fn gguf_files_by_importance_are_what_they_were_to_be() {
    let temporary = tempfile::tempdir().unwrap();
    let (texts, chats) = (temporary.path().join("texts.jsonl"), temporary.path().join("chats.jsonl"));
    // The families' tokenizers, which are cut, have no space.
    let line = |i: usize| format!("Number-{i}-comes-after-{},-and-before-{}.", i - 1, i + 1);
    fs::write(&texts, (1..80).map(|i| format!("{}\n", json!({"text": line(i)}))).collect::<String>()).unwrap();
    let chat =
        |i| json!({"messages": [{"role": "user", "content": line(i)}, {"role": "assistant", "content": "Yes."}]});
    fs::write(&chats, (1..80).map(|i| format!("{}\n", chat(i))).collect::<String>()).unwrap();
    let cases = [("llama_tied", &texts), ("phi3", &texts), ("qwen3_moe", &texts), ("llama_tied", &chats)];
    for (case, (name, data)) in cases.into_iter().enumerate() {
        let base = family(name, temporary.path());
        let part = adapter(&base, modules_of(name), 1, &temporary.path().join(format!("adapter_{case}")));
        let merged = Source { base, parts: vec![part] }.open().unwrap();
        let mut told = Vec::new();
        let matrix = importance(&merged, data, 3, &mut |done| told.push(done)).unwrap();
        assert_eq!((told.as_slice(), matrix.chunks, matrix.chunk_size), (&[1, 2, 3][..], 3, 256), "{name}");
        let place = temporary.path().join("matrix.gguf");
        matrix.write(&place).unwrap();
        assert_eq!(Importance::read(&place).unwrap(), matrix);
        for kind in FileKind::ALL.into_iter().filter(|kind| kind.takes_importance()) {
            let file = temporary.path().join(format!("{name}_{}.gguf", kind.name()));
            let export = Export::by_importance(&merged, kind, name, (&matrix, "matrix.gguf")).unwrap();
            // Rows of 64 numbers make Q8_0 of Q6_K.
            assert_eq!(export.by_columns() > 0, kind != FileKind::Q6K, "{name} {}", kind.name());
            export.write(&file).unwrap();
            assert_eq!(fs::metadata(&file).unwrap().len(), export.bytes());
            sound(&file, &merged, &Target::Gguf(export));
            if kind != FileKind::Q6K {
                // It is not what it would be without.
                let without = check(&file, &merged, &Target::Gguf(Export::new(&merged, kind, name).unwrap()));
                assert!(without.faults[0].contains("not what base and adapters make"), "{:?}", without.faults);
            }
            fs::remove_file(&file).unwrap();
        }
    }
    let merged = Source { base: family("phi3", temporary.path()), parts: Vec::new() }.open().unwrap();
    fs::write(&texts, "{\"prompt\": \"no text\"}\n").unwrap();
    let error = importance(&merged, &texts, 3, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("none of the columns `text`, `messages` and `conversations`"), "{error}");
}
