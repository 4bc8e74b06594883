//! Which experts a token goes to (Shazeer et al. 2017, <https://arxiv.org/abs/1701.06538>, as Mixtral and Qwen3-MoE do it).

use crate::View;

/// The experts of each token and how much each counts, `[tokens, chosen]` both, the most probable first.
#[derive(Debug, Clone, PartialEq)]
pub struct Routes {
    /// Numbers of experts.
    pub experts: Vec<usize>,
    /// Their probabilities, in sum one for each token if they were renormalized.
    pub weights: Vec<f64>,
}

/// The `chosen` most probable experts of each row of `logits` `[tokens, experts]`, of equal ones the first. Their weights are
/// `p = softmax(logits)` over all experts, divided by the sum over the chosen ones if `renormalized`.
pub fn route(logits: View<'_>, chosen: usize, renormalized: bool) -> Routes {
    assert!((1..=logits.cols()).contains(&chosen), "route: more experts than there are");
    let mut routes = Routes { experts: Vec::new(), weights: Vec::new() };
    for i in 0..logits.rows() {
        let p = softmax(logits.row(i));
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        order.truncate(chosen);
        let total = if renormalized { order.iter().map(|&e| p[e]).sum() } else { 1.0 };
        routes.weights.extend(order.iter().map(|&e| p[e] / total));
        routes.experts.extend(order);
    }
    routes
}

/// The gradient of the logits, `[tokens, experts]`, for that of the weights, `g` `[tokens, chosen]`. Which experts are chosen
/// counts as fixed. With `q = ∂/∂p`, that is `p_j (q_j - Σ_l q_l p_l)`; renormalized, `q_e = (g_e - Σ_f g_f w_f) / Σ_f p_f`
/// for chosen experts.
pub fn route_back(logits: View<'_>, routes: &Routes, renormalized: bool, g: &[f64]) -> Vec<f64> {
    assert!(g.len() == routes.experts.len() && g.len().is_multiple_of(logits.rows().max(1)), "route_back: shapes");
    let chosen = g.len() / logits.rows().max(1);
    let mut of_logits = vec![0.0; logits.rows() * logits.cols()];
    for (i, of_row) in of_logits.chunks_exact_mut(logits.cols()).enumerate() {
        let at = i * chosen..(i + 1) * chosen;
        let (experts, weights, g) = (&routes.experts[at.clone()], &routes.weights[at.clone()], &g[at]);
        let p = softmax(logits.row(i));
        let mut q = vec![0.0; p.len()];
        let mean: f64 = g.iter().zip(weights).map(|(g, w)| g * w).sum();
        let total: f64 = experts.iter().map(|&e| p[e]).sum();
        for (&e, g) in experts.iter().zip(g) {
            q[e] = if renormalized { (g - mean) / total } else { *g };
        }
        let mean: f64 = q.iter().zip(&p).map(|(q, p)| q * p).sum();
        for (j, of) in of_row.iter_mut().enumerate() {
            *of = p[j] * (q[j] - mean);
        }
    }
    of_logits
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let lse = crate::loss::log_sum_exp(x);
    x.iter().map(|x| (x - lse).exp()).collect()
}
