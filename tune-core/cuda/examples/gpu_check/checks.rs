//! What was compared, and how far it was off.

use std::collections::BTreeMap;

use tune_config::say;

/// Outputs of an operation, each as numbers.
pub(crate) type Outputs = Result<Vec<Vec<f64>>, String>;

/// The worst error of each operation and type.
#[derive(Default)]
pub(crate) struct Checks {
    worst: BTreeMap<(String, &'static str), f64>,
    tried: usize,
    /// Of what, and how.
    failures: Vec<(String, String)>,
}

impl Checks {
    /// Runs an operation twice, which must give the same bits, and compares each output with what is right.
    pub(crate) fn compare(
        &mut self,
        name: &str,
        of: &'static str,
        shape: &str,
        tolerance: f64,
        right: &[Vec<f64>],
        run: impl Fn() -> Outputs,
    ) {
        self.tried += 1;
        let (first, second) = match (run(), run()) {
            (Ok(first), Ok(second)) => (first, second),
            (Err(error), _) | (_, Err(error)) => return self.fail(name, of, shape, &error),
        };
        let bits = |outputs: &[Vec<f64>]| -> Vec<u64> { outputs.iter().flatten().map(|x| x.to_bits()).collect() };
        if bits(&first) != bits(&second) {
            self.fail(name, of, shape, "two runs give different bits");
        }
        for (number, (found, right)) in first.iter().zip(right).enumerate() {
            let error = error(found, right);
            let worst = self.worst.entry((name.to_owned(), of)).or_insert(0.0);
            // What is no number is the worst.
            if error.is_nan() || error > *worst {
                *worst = error;
            }
            if error.is_nan() || error > tolerance {
                self.fail(name, of, shape, &format!("output {number} off by {error:.1e} > {tolerance:.0e}"));
            }
        }
        if first.len() != right.len() {
            self.fail(name, of, shape, "outputs are missing");
        }
    }

    pub(crate) fn fail(&mut self, name: &str, of: &str, shape: &str, what: &str) {
        self.failures.push((format!("{name} {of}"), format!("{shape}: {what}")));
    }

    pub(crate) fn is_true(&mut self, what: &str, is: bool) {
        self.tried += 1;
        if !is {
            self.failures.push((what.to_owned(), "is not so".to_owned()));
        }
    }

    /// Prints the table; returns whether all is well.
    pub(crate) fn report(&self) -> bool {
        say!("error = |out - ref| / |ref| against f64, worst of all shapes; poisoned outputs; each run twice");
        let names: std::collections::BTreeSet<&String> = self.worst.keys().map(|(name, _)| name).collect();
        for name in names {
            let of = |of| self.worst.get(&(name.clone(), of)).map_or("-".into(), |worst| format!("{worst:.1e}"));
            say!("  {name:<22} f32 {:>8}  bf16 {:>8}", of("f32"), of("bf16"));
        }
        // Of each operation and type, the first two: one mistake fails many shapes.
        let mut told = BTreeMap::<&str, usize>::new();
        for (of, failure) in &self.failures {
            let count = told.entry(of).or_default();
            *count += 1;
            if *count <= 2 {
                say!("  FAILED {of} {failure}");
            }
        }
        say!("{} comparisons, {} failures", self.tried, self.failures.len());
        self.failures.is_empty()
    }
}

fn error(found: &[f64], right: &[f64]) -> f64 {
    if found.len() != right.len() {
        return f64::NAN;
    }
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let size = norm(&mut right.iter().copied());
    norm(&mut found.iter().zip(right).map(|(f, r)| f - r)) / if size > 0.0 { size } else { 1.0 }
}
