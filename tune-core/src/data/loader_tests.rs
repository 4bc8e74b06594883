use std::collections::BTreeSet;
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::data::pack;

/// Samples of given lengths. No two tokens are alike, and each target is the next token.
fn samples(lengths: &[usize]) -> Vec<Sample> {
    let mut next = 0;
    lengths
        .iter()
        .enumerate()
        .map(|(i, &len)| {
            let input_ids: Vec<u32> = (next..next + len as u32).collect();
            next += len as u32;
            let mut targets: Vec<u32> = input_ids[1..].to_vec();
            targets.push(IGNORE);
            Sample { input_ids, targets, origin: format!("d:{i}"), label: None }
        })
        .collect()
}

/// Lengths from 1 to `max`, as random as a test needs.
fn lengths(n: usize, max: usize, seed: u64) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| 1 + random.next_u32() as usize % max).collect()
}

/// What must hold of every batch.
fn check(batch: &Batch) {
    let size = batch.rows * batch.len;
    assert_eq!([batch.input_ids.len(), batch.targets.len(), batch.positions.len()], [size; 3]);
    assert_eq!(batch.spans.len(), batch.origins.len());
    let mut covered = vec![false; size];
    for span in &batch.spans {
        assert!(span.row < batch.rows && span.start + span.len <= batch.len && span.len > 0);
        let first = span.row * batch.len + span.start;
        for (i, position) in (first..first + span.len).enumerate() {
            assert!(!covered[position], "spans overlap");
            covered[position] = true;
            assert_eq!(batch.positions[position], i as u32, "positions restart");
            let target = batch.targets[position];
            if i + 1 == span.len {
                assert_eq!(target, IGNORE, "a target crosses its sample's end");
            } else {
                assert_eq!(target, batch.input_ids[position + 1]);
            }
        }
    }
    for (position, covered) in covered.iter().enumerate() {
        if !covered {
            assert_eq!(batch.targets[position], IGNORE);
            assert_eq!(batch.positions[position], 0);
            assert_eq!(batch.input_ids[position], 7_000_000);
        }
    }
    let order: Vec<(usize, usize)> = batch.spans.iter().map(|s| (s.row, s.start)).collect();
    assert!(order.is_sorted());
}

fn options() -> LoaderOptions {
    LoaderOptions { pad_id: 7_000_000, ..LoaderOptions::default() }
}

fn batches(loader: &Loader, epoch: u64) -> Vec<Batch> {
    loader.epoch(epoch).batches(0).collect::<Result<_>>().unwrap()
}

#[test]
fn a_fingerprint_stands_for_the_rows() {
    let fingerprint = |samples: Vec<Sample>, pack_to: Option<usize>| {
        Loader::new(samples, LoaderOptions { pack_to, ..options() }).unwrap().fingerprint().unwrap()
    };
    let whole = fingerprint(samples(&[3, 4, 5]), None);
    assert_eq!(whole, fingerprint(samples(&[3, 4, 5]), None));
    let mut masked = samples(&[3, 4, 5]);
    masked[1].targets[0] = IGNORE;
    let others = [
        fingerprint(samples(&[3, 4]), None),
        fingerprint(samples(&[3, 4, 5, 1]), None),
        fingerprint(samples(&[4, 3, 5]), None),
        fingerprint(masked, None),
        fingerprint(samples(&[3, 4, 5]), Some(7)),
        fingerprint(samples(&[3, 4, 5]), Some(12)),
    ];
    assert_eq!(others.into_iter().chain([whole]).collect::<BTreeSet<_>>().len(), 7);
}

#[test]
fn each_sample_appears_once_an_epoch() {
    for seed in 0..40 {
        let n = 1 + seed as usize * 3;
        let lengths = lengths(n, 30, seed);
        for pack_to in [None, Some(30), Some(47), Some(200)] {
            for batch_size in [1, 3, 8] {
                let fit = if seed % 3 == 0 { Fit::BestFit } else { Fit::Greedy };
                let options = LoaderOptions { batch_size, pack_to, fit, shuffle: seed % 2 == 0, seed, ..options() };
                let loader = Loader::new(samples(&lengths), options).unwrap();
                let mut seen = Vec::new();
                for batch in batches(&loader, seed) {
                    check(&batch);
                    assert!(batch.rows <= batch_size);
                    assert!(batch.len <= pack_to.unwrap_or(30));
                    let longest = batch.spans.iter().map(|s| s.start + s.len).max().unwrap();
                    assert_eq!(batch.len, longest, "padding goes to the longest row");
                    seen.extend(batch.origins);
                }
                let distinct: BTreeSet<&String> = seen.iter().collect();
                assert_eq!((seen.len(), distinct.len()), (n, n));
            }
        }
    }
}

#[test]
fn packing_is_greedy_and_in_order() {
    let rows = |lengths: &[usize], max| pack::rows(lengths.iter().copied(), max);
    assert_eq!(rows(&[3, 3, 4, 6, 1, 9], 10), [0..3, 3..5, 5..6]);
    assert_eq!(rows(&[10, 10], 10), [0..1, 1..2]);
    assert_eq!(rows(&[12, 1], 10), [0..1, 1..2]);
    assert_eq!(rows(&[], 10), [0..0; 0]);
    // No row has room for the sample that begins the next.
    for seed in 0..20 {
        let lengths = lengths(100, 25, seed);
        let packed = rows(&lengths, 40);
        let sum = |r: &Range<usize>| lengths[r.clone()].iter().sum::<usize>();
        for pair in packed.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
            assert!(sum(&pair[0]) + lengths[pair[1].start] > 40);
        }
        assert!(packed.iter().all(|r| sum(r) <= 40));
    }
}

#[test]
fn order_depends_on_seed_and_epoch_only() {
    let loader = |seed, shuffle| {
        let options = LoaderOptions { batch_size: 4, shuffle, seed, ..options() };
        Loader::new(samples(&lengths(50, 9, 1)), options).unwrap()
    };
    let epoch = batches;
    let (a, b) = (loader(5, true), loader(5, true));
    assert_eq!(epoch(&a, 3), epoch(&b, 3));
    assert_ne!(epoch(&a, 3), epoch(&a, 4));
    assert_ne!(epoch(&a, 3), epoch(&loader(6, true), 3));
    assert_eq!(epoch(&loader(5, false), 0), epoch(&loader(9, false), 1));
    // A resumed run asks for the rest of an epoch, and gets what the first would have got.
    let rest: Vec<Batch> = b.epoch(3).batches(7).collect::<Result<_>>().unwrap();
    assert_eq!(rest, epoch(&a, 3)[7..]);
    assert_eq!(b.batch(3, 9).unwrap().as_ref(), epoch(&a, 3).get(9));
    assert_eq!(b.batch(3, b.len().unwrap()).unwrap(), None);
}

#[test]
fn the_last_batch() {
    let loader = |n: usize, drop_last| {
        let options = LoaderOptions { batch_size: 4, drop_last, ..options() };
        Loader::new(samples(&vec![2; n]), options)
    };
    let rows = |loader: &Loader| batches(loader, 0).iter().map(|b| b.rows).collect::<Vec<_>>();
    assert_eq!(rows(&loader(9, false).unwrap()), [4, 4, 1]);
    assert_eq!(rows(&loader(9, true).unwrap()), [4, 4]);
    assert_eq!(rows(&loader(3, false).unwrap()), [3]);
    let error = loader(3, true).unwrap_err().to_string();
    assert_eq!(error, "3 rows of data do not fill one batch of 4");
    assert!(loader(0, false).is_err());
}

#[test]
fn padding_to_a_multiple() {
    let options = LoaderOptions { batch_size: 2, pad_to_multiple_of: 8, ..options() };
    let batch = Loader::new(samples(&[3, 9]), options).unwrap().batch(0, 0).unwrap().unwrap();
    check(&batch);
    assert_eq!((batch.len, batch.tokens(), batch.trained_tokens()), (16, 12, 10));
}

/// The batches of an epoch put together the plain way: all samples are there, packed as a whole and
/// shuffled as a whole.
fn plainly(samples: &[Sample], options: &LoaderOptions, epoch: u64) -> Vec<Vec<String>> {
    let lengths = samples.iter().map(|s| s.input_ids.len());
    let rows =
        options.pack_to.map_or_else(|| (0..samples.len()).map(|i| i..i + 1).collect(), |max| pack::rows(lengths, max));
    let order = Order { shuffle: options.shuffle, seed: options.seed, block: samples.len() };
    let rows: Vec<Range<usize>> =
        order.of_rows(0, rows.len(), epoch).into_iter().map(|row| rows[row].clone()).collect();
    let origins = |row: &Range<usize>| samples[row.clone()].iter().map(|s| s.origin.clone()).collect::<Vec<_>>();
    rows.chunks(options.batch_size).map(|rows| rows.iter().flat_map(origins).collect()).collect()
}

#[test]
fn one_block_is_packed_and_shuffled_as_a_whole() {
    for seed in 0..10 {
        let samples = samples(&lengths(200, 30, seed));
        for pack_to in [None, Some(64)] {
            for shuffle in [false, true] {
                let options = LoaderOptions { batch_size: 3, pack_to, shuffle, seed, ..options() };
                let loader = Loader::new(samples.clone(), options.clone()).unwrap();
                for epoch in [0, 4] {
                    let got: Vec<_> = batches(&loader, epoch).into_iter().map(|b| b.origins).collect();
                    assert_eq!(got, plainly(&samples, &options, epoch));
                }
            }
        }
    }
}

#[test]
fn many_blocks_hold_every_sample_and_end_nowhere_but_in_rows() {
    let samples = samples(&lengths(1000, 30, 1));
    let load = |pack_to, shuffle, block| {
        let options = LoaderOptions { batch_size: 4, pack_to, shuffle, seed: 7, ..options() };
        Loader::with_blocks(Origin::Memory(samples.clone()), options, block).unwrap()
    };
    for pack_to in [None, Some(64)] {
        for shuffle in [false, true] {
            let loader = load(pack_to, shuffle, 64);
            let first = batches(&loader, 0);
            first.iter().for_each(check);
            assert_eq!(first.len(), loader.len().unwrap());
            assert!(first[..first.len() - 1].iter().all(|b| b.rows == 4), "batches are filled across blocks");
            let mut seen: Vec<String> = first.iter().flat_map(|b| b.origins.clone()).collect();
            assert_eq!(shuffle, first != batches(&loader, 1));
            if !shuffle && pack_to.is_none() {
                assert_eq!(first, batches(&load(None, false, 1000), 0), "in order, blocks do not show");
            }
            assert_eq!(loader.fingerprint().unwrap(), load(pack_to, !shuffle, 1000).fingerprint().unwrap());
            seen.sort();
            let mut all: Vec<String> = samples.iter().map(|s| s.origin.clone()).collect();
            all.sort();
            assert_eq!(seen, all);
            let rest: Vec<Batch> = loader.epoch(0).batches(17).collect::<Result<_>>().unwrap();
            assert_eq!(rest, first[17..]);
        }
    }
}

#[test]
fn demanding_steps_are_the_first_and_the_one_with_the_largest_batch() {
    let options = LoaderOptions { batch_size: 3, pack_to: Some(40), shuffle: true, seed: 2, ..options() };
    let loader = Loader::with_blocks(Origin::Memory(samples(&lengths(200, 30, 4))), options, 64).unwrap();
    // Of each of three epochs the first ten batches, four to a step.
    let mut found = loader.demanding_steps(3, 10, 4, 2).unwrap();
    let worst = found.pop().unwrap();
    assert_eq!(found, [&batches(&loader, 0)[..4], &batches(&loader, 0)[4..8]]);

    let taken: Vec<Batch> = (0..3).flat_map(|epoch| batches(&loader, epoch).into_iter().take(10)).collect();
    let most = |step: &[Batch]| step.iter().map(Batch::tokens).max();
    assert_eq!(most(&worst), most(&taken));
    let epoch = (0..3).find(|&epoch| batches(&loader, epoch)[..10].contains(&worst[0])).unwrap();
    let steps = batches(&loader, epoch)[..10].chunks(4).map(<[Batch]>::to_vec).collect::<Vec<_>>();
    assert!(steps.contains(&worst));
    // With so many epochs that nobody looks at all of them: the longest rows.
    let longest = loader.demanding_steps(u64::MAX, 10, 4, 2).unwrap();
    assert!(longest.len() == 1 && most(&longest[0]) >= most(&taken));
}

/// Every pair of a token and the one that it is trained to predict, in the order of the tokens; no two tokens are alike.
fn predictions(batches: &[Batch]) -> Vec<(u32, u32)> {
    let pairs = batches.iter().flat_map(|batch| batch.input_ids.iter().copied().zip(batch.targets.iter().copied()));
    let mut pairs: Vec<(u32, u32)> = pairs.filter(|(_, target)| *target != IGNORE).collect();
    pairs.sort_unstable();
    pairs
}

#[test]
fn samples_that_go_on_in_the_next_row_lose_no_prediction() {
    for seed in 0..12 {
        let samples = samples(&lengths(300, 40, seed));
        let tokens: u32 = samples.iter().map(|sample| sample.input_ids.len() as u32).sum();
        let of_samples: Vec<(u32, u32)> = samples
            .iter()
            .flat_map(|sample| sample.input_ids.iter().copied().zip(sample.targets.iter().copied()))
            .filter(|(_, target)| *target != IGNORE)
            .collect();
        for (len, shuffle, block) in [(2, false, 300), (16, true, 300), (32, true, 64), (1 << 20, false, 300)] {
            for (joins, fit) in
                [(Joins::Split, Fit::Greedy), (Joins::Split, Fit::BestFit), (Joins::Across, Fit::Greedy)]
            {
                let options =
                    LoaderOptions { batch_size: 3, pack_to: Some(len), joins, fit, shuffle, seed, ..options() };
                let loader = Loader::with_blocks(Origin::Memory(samples.clone()), options, block).unwrap();
                let batches = batches(&loader, 1);
                let found = predictions(&batches);
                if joins == Joins::Split {
                    assert_eq!(found, of_samples, "each once, and none from one sample to the next");
                } else if block == 300 {
                    assert_eq!(found, (0..tokens - 1).map(|id| (id, id + 1)).collect::<Vec<_>>());
                } else {
                    // All but those from one block to the next.
                    let blocks = 300_usize.div_ceil(block);
                    assert_eq!(found.len(), tokens as usize - blocks);
                }
                let mut short = 0;
                for batch in &batches {
                    for row in 0..batch.rows {
                        let spans: Vec<&Span> = batch.spans.iter().filter(|span| span.row == row).collect();
                        assert_eq!(spans.iter().map(|span| span.start).collect::<Vec<_>>(), {
                            let ends = spans.iter().scan(0, |end, span| Some(std::mem::replace(end, *end + span.len)));
                            ends.collect::<Vec<_>>()
                        });
                        let filled: usize = spans.iter().map(|span| span.len).sum();
                        assert!(filled <= len && (joins == Joins::Split || spans.len() == 1));
                        short += usize::from(filled < len);
                    }
                    for (span, origin) in batch.spans.iter().zip(&batch.origins) {
                        let first = batch.positions_of(span).start;
                        let sample = samples.iter().find(|sample| sample.input_ids.contains(&batch.input_ids[first]));
                        assert_eq!(*origin, sample.unwrap().origin, "a piece is named after its sample");
                        let positions = batch.positions[batch.positions_of(span)].iter().copied();
                        assert!(positions.eq(0..span.len as u32));
                    }
                }
                assert!(
                    fit == Fit::BestFit || short <= 300_usize.div_ceil(block),
                    "all rows are full but the last of each block"
                );
            }
        }
    }
}

#[test]
fn how_samples_share_rows_is_part_of_the_fingerprint() {
    let fingerprint = |joins| {
        let options = LoaderOptions { pack_to: Some(7), joins, ..options() };
        Loader::new(samples(&[3, 4, 5]), options).unwrap().fingerprint().unwrap()
    };
    let all = [Joins::Whole, Joins::Split, Joins::Across].map(fingerprint);
    let options = LoaderOptions { pack_to: Some(7), fit: Fit::BestFit, ..options() };
    let best_fit = Loader::new(samples(&[3, 4, 5]), options).unwrap().fingerprint().unwrap();
    assert_eq!(all.into_iter().chain([best_fit]).collect::<BTreeSet<_>>().len(), 4);
}
