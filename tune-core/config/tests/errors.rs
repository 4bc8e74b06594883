//! Every mistake shows where it is and what was expected.
mod common;

use common::{LEAST, bad};

#[test]
fn show() {
    println!(
        "{}",
        bad(
            "batch_size: 0\nbatchsize: two\nepochs: 1.5\nmodel:\n  lora_rank: x\n  lora_attn_modules: [q_proj, q]\noptimizer:\n  _component_: sgd\n  betas: [1, 2]\n  lr: -1\ndtype: fp16\nlog_every_n_step: 3\n",
            &["seed=-1", "optimizer.moment=3", "~nope", "foo"]
        )
    );
    println!("{}", bad("", &[]));
    println!(
        "{}",
        bad(
            LEAST,
            &[
                "dataset.0.x=1",
                "name=[1, 2",
                "a.b=1",
                "lr=1e-3",
                "batch_size.x=1",
                "optimizer=adam"
            ]
        )
    );
    println!("{}", bad("a: [1\n b: 2", &["seed=x"]));
    println!(
        "{}",
        bad("a: ${b}\nb: ${a}\noutput_dir: ${name}\nname: x${nam}", &[])
    );
}
