use tune_reference::{View, ViewMut, products, rows};

use super::{agrees, close, dot, numbers};

/// `y = 0.5 · x · wᵀ + 1 · bᵀ` in the middle columns of wider memory.
fn layer(x: &[f64], w: &[f64], b: &[f64], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
    let mut memory = vec![7.0; m * (n + 3)];
    let mut y = ViewMut::strided(&mut memory[1..], (m, n), n + 3);
    y.fill(0.0);
    products::up(View::new(x, k), View::new(w, k), 0.5, &mut y);
    products::bias(b, &mut y);
    assert!(memory.iter().enumerate().all(|(i, &y)| (1..=n).contains(&(i % (n + 3))) || y == 7.0), "written beside");
    memory.chunks(n + 3).flat_map(|row| row[1..=n].to_vec()).collect()
}

#[test]
fn a_layer_and_its_gradients() {
    for (m, n, k) in [(1, 1, 1), (3, 5, 2), (7, 2, 9)] {
        let (x, w, b, g) = (numbers(1, m * k), numbers(2, n * k), numbers(3, n), numbers(4, m * n));
        let (mut gx, mut gw, mut gb) = (vec![0.0; m * k], vec![0.0; n * k], vec![0.0; n]);
        products::down(View::new(&g, n), View::new(&w, k), 0.5, &mut ViewMut::new(&mut gx, k));
        products::across(View::new(&g, n), View::new(&x, k), 0.5, &mut ViewMut::new(&mut gw, k));
        products::bias_back(View::new(&g, n), &mut gb);
        agrees("x", &x, &gx, |x| dot(&g, &layer(x, &w, &b, (m, n, k))));
        agrees("w", &w, &gw, |w| dot(&g, &layer(&x, w, &b, (m, n, k))));
        agrees("b", &b, &gb, |b| dot(&g, &layer(&x, &w, b, (m, n, k))));
    }
}

#[test]
fn products_are_added() {
    let mut y = [10.0, 20.0];
    products::up(View::new(&[2.0], 1), View::new(&[3.0, 4.0], 1), 1.0, &mut ViewMut::new(&mut y, 2));
    assert_eq!(y, [16.0, 28.0]);
    let mut y = [10.0];
    products::down(View::new(&[2.0, 1.0], 2), View::new(&[3.0, 4.0], 1), 1.0, &mut ViewMut::new(&mut y, 1));
    assert_eq!(y, [20.0]);
    let mut y = [1.0, 2.0];
    products::across(View::new(&[2.0, 3.0], 2), View::new(&[5.0], 1), 2.0, &mut ViewMut::new(&mut y, 1));
    assert_eq!(y, [21.0, 32.0]);
}

#[test]
fn rows_of_a_table_and_their_gradient() {
    let (vocab, width, ids) = (5, 3, [4u32, 0, 4, 2]);
    let (table, g) = (numbers(1, vocab * width), numbers(2, ids.len() * width));
    let look = |table: &[f64]| {
        let mut y = vec![f64::NAN; ids.len() * width];
        rows::lookup(View::new(table, width), &ids, 3.0, &mut ViewMut::new(&mut y, width));
        y
    };
    assert_eq!(look(&table)[..3], [12, 13, 14].map(|i| 3.0 * table[i]));
    let mut own = vec![0.0; vocab * width];
    rows::lookup_back(View::new(&g, width), &ids, 3.0, &mut ViewMut::new(&mut own, width));
    agrees("table", &table, &own, |table| dot(&g, &look(table)));
}

#[test]
fn rows_gathered_and_scattered() {
    let x: Vec<f64> = (0..8).map(f64::from).collect();
    let mut y = vec![f64::NAN; 6];
    rows::gather(View::new(&x, 2), &[3, 0, 3], &mut ViewMut::new(&mut y, 2));
    assert_eq!(y, [6.0, 7.0, 0.0, 1.0, 6.0, 7.0]);
    let mut back = vec![1.0; 8];
    rows::scatter_add(View::new(&y, 2), &[3, 0, 3], Some(&[1.0, 2.0, 10.0]), &mut ViewMut::new(&mut back, 2));
    close("weighted", &back, &[1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 67.0, 78.0], 1e-15);
    let mut back = vec![1.0; 8];
    rows::scatter(View::new(&y[..4], 2), &[2, 1], &mut ViewMut::new(&mut back, 2));
    assert_eq!(back, [1.0, 1.0, 0.0, 1.0, 6.0, 7.0, 1.0, 1.0]);
}
