//! Copies beside the work of a card: whoever reads waits for who writes, whatever is done first.

use tune_cuda::{Buffer, Context};

/// Numbers of a copy: a part of the ring, four of which fill it twice over soon.
const LEN: usize = 1 << 20;

fn all_are(numbers: &[f32], value: f32) -> bool {
    numbers.len() == LEN && numbers.iter().all(|&x| x == value)
}

/// Copies go ahead of their use into memory that is used again and again, and come back.
#[test]
fn copies_ahead() {
    if super::card().is_none() {
        return;
    }
    let context = Context::open(0).unwrap();
    // More than the ring and the pinned memory hold at a time.
    let copies: Vec<Buffer<f32>> = (0..40)
        .map(|i| {
            let there = context.upload_ahead(&vec![i as f32; LEN]);
            let mut copy = context.buffer(LEN);
            context.copy(&there, &mut copy);
            copy
        })
        .collect();
    let came: Vec<_> = copies.iter().map(|copy| context.read_later(copy)).collect();
    for (i, came) in came.iter().enumerate() {
        assert!(all_are(&came.wait().unwrap(), i as f32), "copy {i} has other numbers");
    }
}

/// What is copied aside is as it was when the copy was asked for.
#[test]
fn copies_aside() {
    if super::card().is_none() {
        return;
    }
    let context = Context::open(0).unwrap();
    let mut kept: Buffer<f32> = context.upload(&vec![0.0; LEN]);
    let mut came = Vec::new();
    for i in 1..4 {
        let next = context.upload(&vec![i as f32; LEN]);
        context.join();
        context.copy(&next, &mut kept);
        came.push(context.read_aside(&kept));
    }
    context.join();
    context.fill(&mut kept, 0xff);
    // All of the work, whether the copies are done or not.
    context.synchronize().unwrap();
    for (i, came) in (1..4).zip(&came) {
        assert!(all_are(&came.wait().unwrap(), i as f32), "copy {i} has other numbers");
    }
}

/// On a stand-in that does things in other orders, and on one that forgets what waits for what, which is seen.
#[test]
fn other_orders() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() {
        return;
    }
    let Some(folder) = super::stand_in::folder() else { return };
    let is_well = |test: &str, streams: &str, forgets: &str| {
        let mut program = std::process::Command::new(std::env::current_exe().unwrap());
        program.args([&format!("streams::{test}"), "--exact", "--test-threads=1"]).env("TUNE_TEST_CARD", "1");
        super::stand_in::environment(&mut program, folder);
        program.env("STAND_IN_STREAMS", streams).env("STAND_IN_FORGETS", forgets);
        let output = program.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("running 1 test"), "{said}");
        output.status.success()
    };
    for test in ["copies_ahead", "copies_aside"] {
        for streams in ["at_once", "late", "side_first"] {
            assert!(is_well(test, streams, ""), "{test}, {streams}");
        }
        for (streams, forgets) in [("late", "main"), ("side_first", "side")] {
            assert!(!is_well(test, streams, forgets), "{test}, {streams}: nobody misses the waits of {forgets}");
        }
    }
    assert!(!is_well("copies_ahead", "late", "marks"), "pinned memory is overwritten before it is copied");
}
