//! The collectives of a group, and what is said when one of its processes is missing.

use std::sync::Mutex;
use std::time::Duration;

use tune_core::distributed::threads::run;
use tune_core::distributed::{Group, Layout, Mesh};

const LIMIT: Duration = Duration::from_secs(20);

fn zeros(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

fn on<R: Send>(world_size: usize, f: impl Fn(Group) -> R + Sync) -> Vec<R> {
    run(world_size, LIMIT, f).unwrap()
}

#[test]
fn shares_are_all_rows_and_differ_by_one_at_most() {
    for world_size in [1, 2, 3, 5] {
        for rows in [0, 1, 3, 5, 7, 64] {
            let shares = on(world_size, |group| group.share(rows));
            assert!(shares.iter().map(ExactSizeIterator::len).max() <= shares.iter().map(|s| s.len() + 1).min());
            assert!(shares.into_iter().flatten().eq(0..rows), "{rows} rows of {world_size}");
        }
    }
}

#[test]
fn collectives_give_what_their_names_say() {
    let all = on(3, |group| {
        let rank = group.rank();
        // 7 rows of 2 columns; two collectives are under way at a time.
        let counts = group.counts(7, 2);
        let mine: Vec<f32> = group.share(7).flat_map(|row| [row as f32, rank as f32]).collect();
        let gathered = group.all_gather("rows", mine, counts.clone(), vec![0f32; 14]);
        let parts: Vec<f32> = (0..14).map(|i| (i * (rank + 1)) as f32).collect();
        let scattered = group.reduce_scatter("sums", parts, counts.clone(), vec![0f32; counts[rank]], zeros);
        let (gathered, scattered) = (gathered.wait().unwrap(), scattered.wait().unwrap());
        let sums = group.all_reduce("numbers", vec![rank as f64, 1.0]).wait().unwrap();
        let told = group.broadcast("a number", 1, vec![rank as u32 * 10]).wait().unwrap();
        group.barrier("the end").wait().unwrap();
        let texts = group.texts("names", &"x".repeat(rank)).unwrap();
        (gathered, scattered, sums, told, texts)
    });
    let rows: Vec<f32> = (0..7)
        .flat_map(|row| {
            [
                row as f32,
                if row < 3 {
                    0.0
                } else if row < 5 {
                    1.0
                } else {
                    2.0
                },
            ]
        })
        .collect();
    let summed: Vec<f32> = all.iter().flat_map(|one| one.1.clone()).collect();
    assert_eq!(summed, (0..14).map(|i| (6 * i) as f32).collect::<Vec<_>>());
    for (gathered, _, sums, told, texts) in all {
        assert_eq!((gathered, sums, told), (rows.clone(), vec![3.0, 3.0], vec![10]));
        assert_eq!(texts, ["", "x", "xx"]);
    }
}

/// Pairs of neighbours, and those at the same place of each pair; ranks are the group's own, and errors name those of the run.
#[test]
fn groups_are_split_and_sums_go_through_both() {
    let all = on(4, |group| {
        let pair = group.split("pairs", group.rank() / 2).unwrap();
        let same = group.split("the same part", group.rank() % 2).unwrap();
        assert_eq!((pair.rank(), pair.world_size(), same.rank()), (group.rank() % 2, 2, group.rank() / 2));
        let sum = |of: &Group| of.all_reduce("ranks", vec![group.rank() as u32]).wait().unwrap()[0];
        let mesh = Mesh::new(&group, Layout { shards: 2, replicas: 2, keeps_gathered: false }).unwrap();
        // Of 5 numbers the first of a pair has 3.
        let numbers: Vec<f32> = (0..5).map(|i| (i * (group.rank() + 1)) as f32).collect();
        let counts = pair.counts(5, 1);
        let mine = zeros(counts[pair.rank()]);
        let scattered = mesh.reduce_scatter("numbers", numbers.clone(), counts, mine, zeros).wait().unwrap();
        let summed = group.all_reduce_in_place("numbers", numbers, zeros).wait().unwrap();
        (sum(&pair), sum(&same), scattered, summed)
    });
    for (rank, (pair, same, scattered, summed)) in all.into_iter().enumerate() {
        assert_eq!((pair, same), ([1, 5][rank / 2], [2, 4][rank % 2]));
        assert_eq!(scattered, [&[0.0, 10.0, 20.0][..], &[30.0, 40.0]][rank % 2]);
        assert_eq!(summed, [0.0, 10.0, 20.0, 30.0, 40.0]);
    }
    let alone = on(2, |group| group.split("each by itself", group.rank()).unwrap().is_single());
    assert_eq!(alone, [true, true]);
    let errors = on(4, |group| {
        let pair = group.split("pairs", group.rank() / 2).unwrap();
        match group.rank() {
            3 => String::new(),
            2 => pair.barrier("block 1").wait().unwrap_err().to_string(),
            _ => pair.barrier("block 1").wait().map(|()| String::new()).unwrap(),
        }
    });
    assert_eq!(errors, ["", "", "rank 2 of 4, barrier of block 1: rank 3 has ended", ""]);
}

#[test]
fn a_process_alone_communicates_with_nobody() {
    let group = Group::single();
    let numbers = vec![1f32, 2.0];
    assert_eq!(group.all_gather("x", numbers.clone(), vec![2], vec![0.0; 2]).wait().unwrap(), numbers);
    assert_eq!(group.reduce_scatter("x", numbers.clone(), vec![2], vec![0.0; 2], zeros).wait().unwrap(), numbers);
    assert_eq!(group.all_reduce("x", numbers.clone()).wait().unwrap(), numbers);
    assert_eq!(group.broadcast("x", 0, numbers.clone()).wait().unwrap(), numbers);
    assert_eq!(group.texts("x", "me").unwrap(), ["me"]);
    group.barrier("x").wait().unwrap();
}

#[test]
fn one_that_ends_is_named_at_once() {
    let errors = on(3, |group| match group.rank() {
        1 => String::new(),
        _ => group.barrier("block 2").wait().unwrap_err().to_string(),
    });
    assert_eq!(errors[0], "rank 0 of 3, barrier of block 2: rank 1 has ended");
    assert_eq!(errors[2], "rank 2 of 3, barrier of block 2: rank 1 has ended");
}

#[test]
fn one_that_is_elsewhere_is_named() {
    let errors = on(2, |group| match group.rank() {
        0 => group.all_reduce("the loss", vec![0f64]).wait().map(drop).unwrap_err().to_string(),
        _ => group.broadcast("the seed", 0, vec![0u8]).wait().map(drop).unwrap_err().to_string(),
    });
    assert_eq!(errors[0], "rank 0 of 2, all-reduce of the loss: rank 1 is in another collective, broadcast");
    assert_eq!(errors[1], "rank 1 of 2, broadcast of the seed: rank 0 is in another collective, all-gather");
}

/// Who waits says where, and everything after that fails at once with the same words.
#[test]
fn one_that_hangs_is_waited_for_until_the_limit() {
    let (ends, end) = std::sync::mpsc::channel::<()>();
    let end = Mutex::new(end);
    let ends = Mutex::new(Some(ends));
    let errors = run(2, Duration::from_millis(300), |group| {
        if group.rank() == 1 {
            let _ = end.lock().unwrap().recv();
            return Vec::new();
        }
        let first = group.all_reduce("gradients of block 4", vec![0f32]).wait().unwrap_err().to_string();
        let begun = std::time::Instant::now();
        let second = group.barrier("the end").wait().unwrap_err().to_string();
        assert!(begun.elapsed() < Duration::from_millis(200));
        ends.lock().unwrap().take();
        vec![first, second]
    })
    .unwrap();
    assert!(errors[0][0].starts_with("rank 0 of 2 has waited 0 s in the all-reduce of gradients of block 4: "));
    assert_eq!(errors[0][0], errors[0][1]);
}
