//! What several cards do together, by one alone: NCCL is found, connects the card to itself, and gives everything back as it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use tune_config::say;
use tune_cuda::{Communicator, Context, UniqueId};

use crate::checks::{Checks, Outputs};

const LIMIT: Duration = Duration::from_secs(60);

/// Each collective, of few numbers and of many, and a part of the communicator.
pub(crate) fn check(context: &Context, checks: &mut Checks) {
    let start = Instant::now();
    let joined = UniqueId::new().and_then(|id| Communicator::join(context, id, 0, 1, LIMIT));
    let all = match joined {
        Ok(all) => all,
        Err(error) => return checks.fail("collectives", "", "one card", &error.to_string()),
    };
    say!("NCCL: one card joined in {:.1} s", start.elapsed().as_secs_f64());
    match all.split(0, 0, 1) {
        Ok(part) => of_one(context, checks, "a part", &part),
        Err(error) => checks.fail("collectives", "", "a part", &error.to_string()),
    }
    of_one(context, checks, "all", &all);
}

fn of_one(context: &Context, checks: &mut Checks, what: &str, all: &Communicator) {
    for len in [1, 1021, 1 << 20] {
        let numbers: Vec<f32> = (0..len).map(|i| (i * 7919 % 2003) as f32 / 64.0 - 15.0).collect();
        let narrow: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
        let wide = |numbers: &[f32]| numbers.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let rounded: Vec<f64> = narrow.iter().map(|x| f64::from(x.to_f32())).collect();
        let shape = format!("{len} numbers of {what}");
        let right = wide(&numbers);
        let mut compare = |name: &str, of, right: &[f64], run: &dyn Fn() -> tune_cuda::Result<Vec<f64>>| {
            let run = || -> Outputs { run().map(|numbers| vec![numbers]).map_err(|error| error.to_string()) };
            checks.compare(name, of, &shape, 0.0, &[right.to_vec()], run);
        };
        compare("all-gather", "bf16", &rounded, &|| {
            let mine = Arc::new(context.upload(&narrow));
            let gathered = all.all_gather("numbers", vec![(mine, vec![len])]).wait();
            Ok(context.download(&gathered[0])?.iter().map(|x| f64::from(x.to_f32())).collect())
        });
        compare("reduce-scatter", "f32", &right, &|| {
            Ok(wide(&context.download(&all.reduce_scatter("numbers", context.upload(&numbers), &[len], None).wait())?))
        });
        compare("all-reduce", "f32", &right, &|| {
            Ok(wide(&context.download(&all.all_reduce("numbers", context.upload(&numbers)).wait())?))
        });
        compare("broadcast", "f32", &right, &|| {
            Ok(wide(&context.download(&all.broadcast("numbers", 0, context.upload(&numbers)).wait())?))
        });
    }
}
