use tune_reference::experts::{route, route_back};
use tune_reference::gate::Activation;
use tune_reference::norm::Norm;
use tune_reference::rotary::Turn;
use tune_reference::{View, ViewMut, dropout, gate, loss, norm, rotary, softcap};

use super::{agrees, close, dot, numbers};

#[test]
fn norms_of_rows_and_of_heads() {
    for (rows, heads, width, from_one) in [(1, 1, 1, false), (3, 1, 7, false), (2, 3, 4, true)] {
        let (cols, norm) = (heads * width, Norm { eps: 1e-2, from_one });
        let (x, w, other, g) =
            (numbers(1, rows * cols), numbers(2, width), numbers(3, rows * cols), numbers(4, rows * cols));
        let forward = |x: &[f64], w: &[f64], other: &[f64]| {
            let mut y = vec![f64::NAN; rows * cols];
            norm::forward(View::new(x, cols), w, norm, Some(View::new(other, cols)), &mut ViewMut::new(&mut y, cols));
            y
        };
        let (mut gx, mut gw) = (vec![0.0; rows * cols], vec![0.0; width]);
        let (view, of_y) = (View::new(&x, cols), View::new(&g, cols));
        norm::backward(view, &w, norm, of_y, &mut ViewMut::new(&mut gx, cols), Some(&mut gw));
        agrees("x", &x, &gx, |x| dot(&g, &forward(x, &w, &other)));
        agrees("weight", &w, &gw, |w| dot(&g, &forward(&x, w, &other)));
        agrees("onto", &other, &g, |other| dot(&g, &forward(&x, &w, other)));
        let mut twice = gx.clone();
        norm::backward(view, &w, norm, of_y, &mut ViewMut::new(&mut twice, cols), None);
        close("added", &twice, &gx.iter().map(|g| 2.0 * g).collect::<Vec<_>>(), 1e-15);
    }
}

#[test]
fn a_norm_by_hand() {
    let mut y = [0.0; 2];
    let norm = |from_one| Norm { eps: 0.0, from_one };
    norm::forward(View::new(&[3.0, 4.0], 2), &[1.0, 2.0], norm(false), None, &mut ViewMut::new(&mut y, 2));
    let r = 1.0 / 12.5f64.sqrt();
    close("from zero", &y, &[3.0 * r, 8.0 * r], 1e-15);
    norm::forward(View::new(&[3.0, 4.0], 2), &[1.0, 2.0], norm(true), None, &mut ViewMut::new(&mut y, 2));
    close("from one", &y, &[6.0 * r, 12.0 * r], 1e-15);
}

#[test]
fn what_is_turned_is_turned_back() {
    let (rows, heads, dim, half) = (3, 2, 7, 2);
    let angles = numbers(1, rows * half);
    let cos: Vec<f64> = angles.iter().map(|a| a.cos()).collect();
    let sin: Vec<f64> = angles.iter().map(|a| a.sin()).collect();
    let turned = |x: &[f64], turn| {
        let mut x = x.to_vec();
        let tables = (View::new(&cos, half), View::new(&sin, half));
        rotary::turn(&mut ViewMut::new(&mut x, heads * dim), dim, tables, turn);
        x
    };
    let (x, g) = (numbers(2, rows * heads * dim), numbers(3, rows * heads * dim));
    close("there and back", &turned(&turned(&x, Turn::Forward), Turn::Back), &x, 1e-14);
    agrees("x", &x, &turned(&g, Turn::Back), |x| dot(&g, &turned(x, Turn::Forward)));
    let y = turned(&x, Turn::Forward);
    assert_eq!(y[4..7], x[4..7], "behind the part that turns");
    close("the first pair", &[y[0]], &[x[0] * cos[0] - x[2] * sin[0]], 1e-14);
}

#[test]
fn gates() {
    for act in [Activation::Silu, Activation::GeluTanh] {
        let (rows, cols) = (3, 5);
        let (gate, up, g): (Vec<f64>, _, _) =
            (numbers(1, 15).iter().map(|x| 6.0 * x).collect(), numbers(2, 15), numbers(3, 15));
        let forward = |gate: &[f64], up: &[f64]| {
            let mut y = vec![f64::NAN; rows * cols];
            gate::forward(act, View::new(gate, cols), View::new(up, cols), &mut ViewMut::new(&mut y, cols));
            y
        };
        let (mut of_gate, mut of_up) = (vec![f64::NAN; 15], vec![f64::NAN; 15]);
        let [a, b, c] = [&gate, &up, &g].map(|x| View::new(x, cols));
        gate::backward(act, a, b, c, &mut ViewMut::new(&mut of_gate, cols), &mut ViewMut::new(&mut of_up, cols));
        agrees("gate", &gate, &of_gate, |gate| dot(&g, &forward(gate, &up)));
        agrees("up", &up, &of_up, |up| dot(&g, &forward(&gate, up)));
    }
    // `torch.nn.functional.gelu(torch.tensor(1., dtype=torch.float64), approximate="tanh")` and `silu`.
    close("gelu", &[Activation::GeluTanh.at(1.0).0], &[0.841_191_990_608_276_8], 1e-12);
    close("silu", &[Activation::Silu.at(1.0).0], &[0.731_058_578_630_004_9], 1e-12);
}

#[test]
fn losses_of_tokens() {
    let (tokens, vocab) = (4, 6);
    let logits: Vec<f64> = numbers(1, tokens * vocab).iter().map(|x| 30.0 * x).collect();
    let (targets, weights) = ([5, loss::IGNORE, 0, 3], [0.5, 9.0, -1.0, 2.0]);
    let sum = |logits: &[f64]| dot(&weights, &loss::cross_entropy(View::new(logits, vocab), &targets));
    let mut g = vec![f64::NAN; tokens * vocab];
    loss::cross_entropy_back(View::new(&logits, vocab), &targets, &weights, &mut ViewMut::new(&mut g, vocab));
    agrees("logits", &logits, &g, sum);
    let uniform = loss::log_probabilities(View::new(&[1000.0; 4], 4), &[2]);
    close("uniform", &uniform, &[-(4f64.ln())], 1e-14);
}

#[test]
fn caps_of_logits() {
    let (x, g): (Vec<f64>, _) = (numbers(1, 6).iter().map(|x| 9.0 * x).collect(), numbers(2, 6));
    let forward = |x: &[f64]| {
        let mut y = x.to_vec();
        softcap::forward(&mut ViewMut::new(&mut y, 3), 5.0);
        y
    };
    let (y, mut of_x) = (forward(&x), g.clone());
    assert!(y.iter().all(|y| y.abs() < 5.0));
    softcap::backward(View::new(&y, 3), 5.0, &mut ViewMut::new(&mut of_x, 3));
    agrees("x", &x, &of_x, |x| dot(&g, &forward(x)));
}

#[test]
fn experts_are_the_most_probable() {
    let logits = [0.1, 2.0, -1.0, 2.0, 0.0, 0.5, 0.25, -3.0];
    let view = View::new(&logits, 4);
    let routes = route(view, 2, true);
    assert_eq!(routes.experts, [1, 3, 1, 2]);
    close("halves", &routes.weights[..2], &[0.5, 0.5], 1e-14);
    for renormalized in [false, true] {
        let g = numbers(3, 4);
        let routes = route(view, 2, renormalized);
        // The first row's experts are equal, and would change places: only the second is moved.
        let of_logits = route_back(view, &routes, renormalized, &g);
        agrees("logits", &logits[4..], &of_logits[4..], |row| {
            dot(&g[2..], &route(View::new(row, 4), 2, renormalized).weights)
        });
    }
}

#[test]
fn dropout_counts_elements_of_the_whole() {
    let (p, key) = (0.4, 99);
    let x = vec![1.0; 30];
    let (mut whole, mut part) = (vec![f64::NAN; 30], vec![10.0; 6]);
    dropout::apply(View::new(&x, 3), (p, key), None, false, &mut ViewMut::new(&mut whole, 3));
    dropout::apply(View::new(&x[..6], 3), (p, key), Some(&[7, 2]), true, &mut ViewMut::new(&mut part, 3));
    let right: Vec<f64> = whole[21..24].iter().chain(&whole[6..9]).map(|x| x + 10.0).collect();
    assert_eq!(part, right);
    let kept = (0..10_000).filter(|&i| dropout::factor(p, key, i) > 0.0).count();
    assert!((5_800..6_200).contains(&kept), "{kept}");
}
