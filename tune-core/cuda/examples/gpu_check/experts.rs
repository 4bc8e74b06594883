//! Which experts tokens go to, what comes back from them, and the gradients of both.

use tune_cuda::{Choice, Context};
use tune_reference as reference;
use tune_reference::{View, ViewMut};

use super::checks::Checks;
use super::numbers::{Matrix, Number, random, read, widened};

/// Tokens, experts, and how many each token goes to.
const SHAPES: [(usize, usize, usize); 5] = [(1, 4, 2), (37, 60, 4), (5, 33, 33), (700, 128, 8), (9000, 8, 2)];

pub(crate) fn check<T: Number>(context: &Context, checks: &mut Checks, most: usize) {
    for (i, &(tokens, count, chosen)) in SHAPES.iter().enumerate().take(most) {
        for renormalized in [true, false] {
            of_shape::<T>(context, checks, tokens, Choice { count, chosen, renormalized }, 50 * i as u64);
        }
    }
}

fn of_shape<T: Number>(context: &Context, checks: &mut Checks, tokens: usize, choice: Choice, seed: u64) {
    let Choice { count, chosen, renormalized } = choice;
    // Of few values, so that experts are as good as each other.
    let logits: Vec<f32> = random::<f32>(seed, tokens * count, 40.0).iter().map(|x| x.round() / 8.0).collect();
    let (wide, places) = (widened(&logits), tokens * chosen);
    let right = reference::experts::route(View::new(&wide, count), chosen, renormalized);
    let mut order: Vec<usize> = (0..places).collect();
    order.sort_by_key(|&i| right.experts[i]);
    let mut of_choices = vec![0; places];
    order.iter().enumerate().for_each(|(place, &i)| of_choices[i] = place);
    let starts = (0..=count).map(|e| right.experts.iter().filter(|&&expert| expert < e).count() as f64);
    let name = format!("{tokens} tokens, {chosen} of {count} experts, in sum one: {renormalized}");
    let numbers = |x: &mut dyn Iterator<Item = usize>| x.map(|x| x as f64).collect::<Vec<f64>>();
    let exact =
        [starts.collect(), numbers(&mut of_choices.iter().copied()), numbers(&mut order.iter().map(|i| i / chosen))];
    checks.compare("routes", "f32", &name, 0.0, &exact, || {
        let on_card = context.upload(&logits);
        let mut routes = context.route(on_card.view(count), choice);
        let starts = numbers(&mut context.starts(&mut routes).map_err(|e| e.to_string())?.iter().copied());
        let [places, tokens] = [routes.places(), routes.tokens()].map(|of| context.download(of));
        let [places, tokens] = [places.map_err(|e| e.to_string())?, tokens.map_err(|e| e.to_string())?];
        let [places, tokens] = [places, tokens].map(|of| numbers(&mut of.into_iter().map(|x| x as usize)));
        Ok(vec![starts, places, tokens])
    });
    let of_places = order.iter().map(|&i| right.weights[i]).collect();
    checks.compare("weights of experts", "f32", &name, 2e-7, &[right.weights.clone(), of_places], || {
        let on_card = context.upload(&logits);
        let routes = context.route(on_card.view(count), choice);
        Ok(vec![read(context, routes.weights())?, read(context, routes.weights_of_places())?])
    });
    let g = random::<f32>(seed + 1, places, 1.0);
    let of_weights: Vec<f64> = of_choices.iter().map(|&place| f64::from(g[place])).collect();
    let of_logits = reference::experts::route_back(View::new(&wide, count), &right, renormalized, &of_weights);
    checks.compare("gradient of routes", T::NAME, &name, tolerance::<T>(), &[of_logits], || {
        let (on_card, g) = (context.upload(&logits), context.upload(&g));
        let routes = context.route(on_card.view(count), choice);
        let mut y = Matrix::<T>::poisoned(context, (tokens, count), 0);
        context.route_back(on_card.view(count), &routes, &g, y.view_mut());
        Ok(vec![y.read(context)?])
    });
    let cols = 72;
    let [x, other] = [2, 3].map(|n| Matrix::<T>::random(context, seed + n, (places, cols), 8, 1.0));
    let onto = Matrix::<T>::random(context, seed + 4, (tokens, cols), 0, 1.0);
    let mut y = onto.host.clone();
    let weights: Vec<f64> = order.iter().map(|&i| f64::from(right.weights[i] as f32)).collect();
    let of_tokens: Vec<usize> = order.iter().map(|i| i / chosen).collect();
    let into = &mut ViewMut::new(&mut y, cols);
    reference::rows::scatter_add(View::new(&x.host, cols), &of_tokens, Some(&weights), into);
    let dots = (0..places).map(|row| {
        let row = row * cols..(row + 1) * cols;
        x.host[row.clone()].iter().zip(&other.host[row]).map(|(a, b)| a * b).sum::<f64>()
    });
    checks.compare("experts together", T::NAME, &name, tolerance::<T>(), &[y, dots.collect()], || {
        let on_card = context.upload(&logits);
        let routes = context.route(on_card.view(count), choice);
        let mut y = Matrix::<T>::poisoned(context, (tokens, cols), 0);
        context.combine(x.view(), routes.places(), Some(routes.weights()), Some(onto.view()), y.view_mut());
        let mut dots = context.buffer::<f32>(places);
        context.row_dots(x.view(), other.view(), &mut dots);
        Ok(vec![y.read(context)?, read(context, &dots)?])
    });
}

fn tolerance<T: Number>() -> f64 {
    if T::NAME == "f32" { 5e-6 } else { 4e-3 }
}
