//! Students of a teacher that is divided as they are.

use std::path::Path;

use super::learnt::worst;
use super::recipes::{distill, full, lora};
use super::{Ran, assert_resumed_and_repeated, compare, kept, on, succeed};

/// A teacher is divided as its student is: a model, one with an adapter beside its weights, and what one process was told by it.
#[test]
fn a_student_learns_as_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let short = ["epochs=1", "max_steps_per_epoch=3"];
    let tuned = succeed::<full::FullFinetune>("full", &folder.path().join("full"), 1, &short);
    let adapted = succeed::<lora::LoraFinetune>(
        "lora",
        &folder.path().join("lora"),
        1,
        &[&short[..], &["~exact_match"]].concat(),
    );
    let teacher = |dir: &Path| format!("teacher_checkpointer.checkpoint_dir={}", dir.display());
    let with_adapter = format!(
        "teacher_checkpointer={{checkpoint_dir: recipes/tiny/model, adapter_checkpoint: {}}}",
        adapted.display()
    );
    let stored = format!("teacher_logits={{path: {}, top_k: 20}}", folder.path().join("said").display());
    for (what, processes, weights, more) in [
        ("all weights", 4, "model.safetensors", vec!["~model".to_owned(), teacher(&tuned)]),
        ("adapters", 2, "adapter_model.safetensors", vec![teacher(&tuned), "model.lora_dropout=0.1".to_owned()]),
        ("an adapter's", 2, "adapter_model.safetensors", vec![with_adapter, "kd_loss=reverse_kl".to_owned()]),
        ("stored", 2, "adapter_model.safetensors", vec![teacher(&tuned), stored]),
    ] {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let overrides = [&short, &more[..]].concat();
        let output = |processes: usize| folder.path().join(format!("{what} {processes}"));
        if what == "stored" {
            let errors = on::<distill::Distillation>("distill", &output(0), processes, &overrides);
            let all_say =
                |said: &str| errors.iter().all(|error| error.as_ref().is_some_and(|error| error.contains(said)));
            assert!(all_say("the teacher is asked by one process alone"), "{errors:?}");
        }
        let run =
            |processes: usize| succeed::<distill::Distillation>("distill", &output(processes), processes, &overrides);
        let (expected, saved) = (run(1), run(processes));
        compare(what, (&output(processes), &saved), (&output(1), &expected), weights);
    }
}

/// Which micro-batches have the student's own answers does not depend on who has them: of those that are learnt from at the same time,
/// some are the student's and some the data's, and in an epoch's last step some are none. Losses, and what is drawn, are those of one process.
#[test]
fn a_student_learns_from_its_own_answers_as_by_one_process() {
    const TWO: &str = "data_parallel_replicate_dim=2";
    // With this seed the micro-batches of the first three steps are own, own, data, data; data, own, own, data; data.
    const SHARED: &[&str] =
        &["epochs=2", "seed=2", "dataset.split='train[:36]'", "on_policy={share: 0.5, max_new_tokens: 12}"];
    let folder = tempfile::tempdir().unwrap();
    let of = |what: &str, processes: usize| folder.path().join(format!("{what} {processes}"));
    // It knows more than the student, so that divergences are no rounding errors.
    let learnt = ["epochs=1", "max_steps_per_epoch=20", "lr_scheduler.num_warmup_steps=2"];
    let teacher = succeed::<full::FullFinetune>("full", &folder.path().join("teacher"), 1, &learnt);
    let teacher = format!("teacher_checkpointer.checkpoint_dir={}", teacher.display());
    let teach = |output: &Path, processes: usize, more: &[&str]| {
        let overrides = [SHARED, &[teacher.as_str()], more].concat();
        succeed::<distill::Distillation>("distill", output, processes, &overrides)
    };
    let same = |what: &str, (output, saved): Ran<'_>, (other, expected): Ran<'_>, weights: &str| {
        compare(what, (output, saved), (other, expected), weights);
        for key in ["kd_loss", "class_loss", "grad_norm"] {
            let (ours, theirs) = (kept(output, key), kept(other, key));
            println!("{what}: {key} off by {:.1e}", worst(&ours, &theirs));
            assert!(!ours.is_empty() && worst(&ours, &theirs) <= 1e-4, "{what}: {key}: {ours:?} {theirs:?}");
        }
        for key in ["own_tokens", "tokens", "trained_tokens"] {
            assert_eq!(kept(output, key), kept(other, key), "{what}: {key}");
        }
        let own = kept(output, "own_tokens");
        assert!(own.contains(&0.0) && own.iter().any(|&share| share > 0.0 && share < 1.0), "{what}: {own:?}");
    };
    let adapters = &["kd_loss=reverse_kl", "model.lora_dropout=0.1"][..];
    let weights = &["~model", "optimizer.lr=1e-4"][..];
    for (what, processes, more, layout, file) in [
        ("adapters", 2, adapters, &[][..], "adapter_model.safetensors"),
        ("copies", 2, adapters, &[TWO], "adapter_model.safetensors"),
        ("weights", 4, weights, &[], "model.safetensors"),
        ("both", 4, weights, &[TWO], "model.safetensors"),
    ] {
        let (one, many) = (of(what, 1), of(what, processes));
        let (expected, saved) = (teach(&one, 1, more), teach(&many, processes, &[more, layout].concat()));
        same(what, (&many, &saved), (&one, &expected), file);
    }
    assert_resumed_and_repeated(
        folder.path(),
        &["adapter_model.safetensors", "training_state.safetensors"],
        |output, more| teach(output, 2, &[adapters, more].concat()),
        |what, ours, theirs| same(what, ours, theirs, "adapter_model.safetensors"),
    );
}
