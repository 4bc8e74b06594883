//! Rows of several samples: which share one, what is split, and how full they are.

use std::ops::Range;

use super::*;
use crate::data::ahead::Stored;
use crate::data::pack;

/// Samples of these lengths, one behind the other.
fn stored(lens: &[usize]) -> Vec<Stored> {
    let starts = lens.iter().scan(0, |end, len| {
        *end += len;
        Some((*end - len) as u64)
    });
    starts
        .zip(lens)
        .enumerate()
        .map(|(record, (start, len))| Stored { record, start, len: *len as u32, label: None })
        .collect()
}

/// The lengths of the pieces in each row.
fn lens((pieces, rows): &(Vec<Stored>, Vec<Range<usize>>)) -> Vec<Vec<usize>> {
    rows.iter().map(|row| pieces[row.clone()].iter().map(|piece| piece.len as usize).collect()).collect()
}

/// Lengths as random as a test needs.
fn random(n: usize, most: usize) -> Vec<usize> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (state >> 33) as usize % most
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn the_fullest_row_with_room_is_taken() {
    let fit = |of: &[usize]| lens(&pack::best_fit(&stored(of), 10, false));
    // 6 is put to 4, not to 3; rows come in the order of their first samples.
    assert_eq!(fit(&[3, 6, 4, 7]), [vec![3, 7], vec![6, 4]]);
    assert_eq!(fit(&[5, 5, 5]), [vec![5, 5], vec![5]]);
    assert_eq!(fit(&[2, 12, 8]), [vec![2, 8], vec![12]]);
    assert_eq!(fit(&[]), [[0usize; 0]; 0]);
    let samples = random(2000, 700);
    let best = pack::best_fit(&stored(&samples), 1024, false);
    assert!(lens(&best).iter().all(|row| row.iter().sum::<usize>() <= 1024));
    let mut placed: Vec<usize> = best.0.iter().map(|piece| piece.record).collect();
    placed.sort_unstable();
    assert_eq!(placed, (0..2000).collect::<Vec<_>>());
    // No packing needs fewer rows than the tokens fill.
    let fewest = samples.iter().sum::<usize>().div_ceil(1024);
    let (rows, neighbours) = (best.1.len(), pack::rows(samples.iter().copied(), 1024).len());
    assert!(rows <= fewest + fewest / 100 + 1, "{rows} rows where {fewest} are the fewest");
    assert!(neighbours > fewest + fewest / 5, "{neighbours} rows where {fewest} are the fewest");
}

/// Only what is longer than a row is split.
#[test]
fn long_samples_are_split_before_rows_are_filled() {
    let rows = pack::best_fit(&stored(&[25, 4, 10, 11, 5]), 10, true);
    // 25 is 10, 10 and 5; of 11 the last token is predicted by the piece before, and predicts nothing.
    assert_eq!(lens(&rows), [vec![10], vec![10], vec![5, 5], vec![4], vec![10], vec![10]]);
}

fn text(folder: &Folder, yaml: &str) -> DatasetConfig {
    let lines: Vec<String> = (0..40).map(|i| format!("{{\"text\": \"{}\"}}", "abcdefghij".repeat(i % 9 + 1))).collect();
    let file = folder.file("d.jsonl", lines.join("\n"));
    let yaml = format!("_component_: text\ndata_files: {}\npacked: true\n{yaml}", file.display());
    crate::config::load::<DatasetConfig>(crate::config::Input::yaml("c.yaml", yaml)).unwrap().config
}

fn load_packed(yaml: &str) -> Loader {
    let folder = Folder::new();
    let options = LoaderOptions { batch_size: 4, shuffle: true, seed: 1, ..LoaderOptions::default() };
    Loader::open(&[text(&folder, yaml)], &byte_level(None), Some(32), options).unwrap()
}

/// Everything that a loader trains in an epoch, as counts of what is predicted.
fn trained(loader: &Loader) -> usize {
    loader.epoch(0).batches(0).map(|batch| batch.unwrap().trained_tokens()).sum()
}

#[test]
fn texts_that_go_on_in_the_next_row_lose_nothing() {
    let cut = load_packed("");
    assert!(cut.reports().unwrap()[0].truncated > 0);
    for packing in ["greedy", "best_fit"] {
        let split = load_packed(&format!("split_across_pack: true\npacking: {packing}\n"));
        let report = &split.reports().unwrap()[0];
        assert_eq!((report.truncated, report.samples), (0, 40));
        assert_eq!(trained(&split), report.trained_tokens, "{packing}");
        assert!(report.longest <= 32 && report.trained_tokens > trained(&cut));
        assert_ne!(split.fingerprint().unwrap(), cut.fingerprint().unwrap());
        let padding = split.padding().unwrap().unwrap();
        assert_eq!((padding.row_len, padding.rows), (Some(32), split.rows().unwrap()));
        assert!(padding.tokens as f64 > 0.9 * (padding.rows * 32) as f64, "{padding:?}");
        // The batches are what was counted.
        let positions: usize = split.epoch(0).batches(0).map(|batch| batch.unwrap().targets.len()).sum();
        assert_eq!(positions, padding.positions);
    }
    assert_ne!(
        load_packed("packing: best_fit\n").fingerprint().unwrap(),
        load_packed("packing: greedy\n").fingerprint().unwrap()
    );
}

#[test]
fn datasets_of_several_packings_are_refused() {
    let folder = Folder::new();
    let configs = ["packing: greedy\n", "packing: best_fit\n"].map(|yaml| text(&folder, yaml));
    let error = load(&configs, &byte_level(None), Some(32)).unwrap_err().to_string();
    assert_eq!(error, "of several datasets all must have the same `packing`");
}
