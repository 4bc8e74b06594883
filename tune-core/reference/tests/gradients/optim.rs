use tune_reference::optim::{AdamW, Lion, ScheduleFree, Sgd, between, in_blocks, squared_norm};

use super::close;

#[test]
fn the_first_step_of_adam_moves_by_the_learning_rate() {
    let rule = AdamW { lr: 0.1, betas: [0.9, 0.999], eps: 0.0, weight_decay: 0.01 };
    let (mut w, mut m, mut v) = ([1.0, -2.0], [0.0; 2], [0.0; 2]);
    rule.step(&mut w, [&mut m, &mut v], &[0.5, -3.0], 2.0, 1);
    close("w", &w, &[0.999 - 0.1, -1.998 + 0.1], 1e-12);
    close("m", &m, &[0.1, -0.6], 1e-12);
    close("v", &v, &[0.001, 0.036], 1e-12);
}

/// `torch.optim.AdamW` of 2.x in f64 with lr 0.1, betas (0.9, 0.99), eps 0.1, weight_decay 0.5.
#[test]
fn adam_is_that_of_pytorch() {
    let rule = AdamW { lr: 0.1, betas: [0.9, 0.99], eps: 0.1, weight_decay: 0.5 };
    let (mut w, mut m, mut v) = ([1.0], [0.0], [0.0]);
    for (step, g) in [(1, 0.5), (2, -0.25), (3, 1.0)] {
        rule.step(&mut w, [&mut m, &mut v], &[g], 1.0, step);
    }
    close("w", &w, &[0.704_909_863_730_128_2], 1e-12);
}

/// Each weight goes as far, and one without gradient and mean decays alone.
#[test]
fn lion_goes_by_signs() {
    let rule = Lion { lr: 0.1, betas: [0.5, 0.75], weight_decay: 0.5 };
    let (mut w, mut m) = ([1.0, 1.0, 1.0], [0.0, -2.0, 0.0]);
    rule.step(&mut w, &mut m, &[4.0, 0.5, 0.0], 2.0);
    close("w", &w, &[0.95 - 0.1, 0.95 + 0.1, 0.95], 1e-14);
    close("m", &m, &[2.0, -1.25, 0.0], 1e-14);
}

/// By hand: the gradient is 2, its square 4, a hundredth of which over the bias of a first step is 4 again.
#[test]
fn a_schedule_free_step_moves_the_mean() {
    let rule = ScheduleFree { lr: 0.1, beta2: 0.99, eps: 0.0, weight_decay: 0.5, new: 0.25 };
    let (mut y, mut z, mut v, mut x) = ([2.0], [1.0], [0.0], [3.0]);
    rule.step(&mut y, [&mut z, &mut v, &mut x], &[1.0], 2.0, 1);
    close("v", &v, &[0.04], 1e-14);
    close("z", &z, &[1.0 - 0.1 * (1.0 + 1.0)], 1e-12);
    close("x", &x, &[3.0 - 0.25 * 2.2], 1e-12);
    close("y", &y, &x, 1e-14);
    close("between", &between(&[3.0, 1.0], &[1.0, 2.0], 0.25), &[2.5, 1.25], 1e-14);
}

#[test]
fn numbers_in_blocks_are_the_nearest() {
    let mut x = [2.0, -0.9, 0.4, 0.0, 0.3];
    in_blocks(&mut x, 3, &[-0.5, 0.0, 0.25, 1.0]);
    close("x", &x, &[2.0, -1.0, 0.5, 0.0, 0.3], 1e-14);
}

#[test]
fn momentum_gathers_speed() {
    let rule = Sgd { lr: 0.1, momentum: 0.5, weight_decay: 0.0 };
    let (mut w, mut u) = ([1.0], [0.0]);
    rule.step(&mut w, Some(&mut u), &[1.0], 1.0);
    rule.step(&mut w, Some(&mut u), &[1.0], 1.0);
    close("w", &w, &[1.0 - 0.1 - 0.15], 1e-14);
    let mut w = [1.0];
    Sgd { weight_decay: 0.5, ..rule }.step(&mut w, None, &[1.0], 2.0);
    close("decayed", &w, &[0.75], 1e-14);
    assert_eq!(squared_norm(&[3.0, 4.0]), 25.0);
}
