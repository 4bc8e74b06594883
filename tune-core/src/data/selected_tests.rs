//! Which records are taken: filters, lengths, what is held out, and mixtures by weight.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::*;

/// Records `{"text": "<name> <i>", "score": i / 10, "lang": "en" or "de"}`.
fn records(folder: &Folder, name: &str, n: usize) -> PathBuf {
    let lang = |i| if i % 2 == 0 { "en" } else { "de" };
    let line = |i| format!(r#"{{"text": "{name} {i}", "score": {}, "lang": "{}"}}"#, i as f64 / 10.0, lang(i));
    folder.file(&format!("{name}.jsonl"), (0..n).map(line).collect::<Vec<_>>().join("\n"))
}

fn config(file: &Path, yaml: &str) -> std::result::Result<DatasetConfig, String> {
    let yaml = format!("_component_: text\ndata_files: {}\n{yaml}\n", file.display());
    let loaded = crate::config::load::<DatasetConfig>(crate::config::Input::yaml("c.yaml", yaml));
    loaded.map(|loaded| loaded.config).map_err(|report| report.to_string())
}

/// The texts that are taken, without the mark of their end.
fn taken(configs: &[DataConfig], seed: u64, max_seq_len: Option<usize>) -> Result<(Vec<String>, Vec<DatasetReport>)> {
    let tokenizer = byte_level(None);
    let loader = Loader::open(configs, &tokenizer, max_seq_len, LoaderOptions { seed, ..LoaderOptions::default() })?;
    let epoch = loader.epoch(0);
    let texts = epoch.batches(0).map(|batch| {
        let text = tokenizer.decode(&batch?.input_ids, false)?;
        Ok(text.trim_end_matches("<|im_end|>").to_owned())
    });
    Ok((texts.collect::<Result<_>>()?, loader.reports()?.to_vec()))
}

fn filtered(yaml: &str) -> Result<(Vec<String>, DatasetReport)> {
    let folder = Folder::new();
    let config = config(&records(&folder, "a", 20), yaml).unwrap();
    taken(&[(&config).into()], 0, None).map(|(texts, mut reports)| (texts, reports.remove(0)))
}

#[test]
fn an_expression_over_columns_lets_records_through() {
    let (texts, report) = filtered("filter: score >= 1.5 and lang == 'en'").unwrap();
    assert_eq!(texts, ["a 16", "a 18"]);
    assert_eq!((report.filtered, report.samples), (18, 2));
    // What the filter reads is used; the other column is not.
    assert_eq!(report.unused.len(), 0, "{:?}", report.unused);
    assert!(report.to_string().ends_with("; 18 filtered out"), "{report}");
    let (texts, report) = filtered("filter: \"'7' in text\"").unwrap();
    assert_eq!(texts, ["a 7", "a 17"]);
    assert!(report.unused[0].contains("`lang` (in 2 records), `score` (in 2 records)"), "{:?}", report.unused);
    // Truth is Python's, and a part is taken before the filter is asked.
    assert_eq!(filtered("filter: score").unwrap().1.filtered, 1);
    assert_eq!(filtered("filter: text | length > 3\nsplit: train[:12]").unwrap().0, ["a 10", "a 11"]);
}

#[test]
fn a_filter_that_cannot_be_applied_is_an_error() {
    let error = |yaml: &str| filtered(yaml).unwrap_err().to_string();
    let said = error("filter: scor > 0.5");
    assert!(said.contains("a.jsonl:1: `filter: scor > 0.5`: "), "{said}");
    assert!(said.contains("the record has no column `scor`"), "{said}");
    // A name that is no column would be false of every record, without a word.
    let said = error("filter: not scor");
    assert!(said.contains("no column `scor`") && said.contains("did you mean `score`?"), "{said}");
    assert!(said.ends_with(". `filter: not scor` reads it, and no other record has one either"), "{said}");
    assert!(error("filter: score > 99").ends_with("it is true of none of 20 records"));
    assert!(error("filter: lang > 1").contains("a.jsonl:1: `filter: lang > 1`: '>' not supported"));
    // Where it stands in the config.
    for wrong in ["score >", "score > 0.5 %} x {% if true", "{{ score }}"] {
        let said = config(Path::new("a.jsonl"), &format!("filter: '{wrong}'")).unwrap_err();
        assert!(said.contains("c.yaml:3:9") && said.contains("not an expression in Jinja"), "{said}");
    }
    // Records that are no records are told of, whatever the filter is.
    let folder = Folder::new();
    let file = folder.file("d.jsonl", "{\"text\": \"x\", \"score\": 1}\n{\"text\": 3}\n{\"text\"\n");
    let config = config(&file, "filter: score is defined").unwrap();
    let said = taken(&[(&config).into()], 0, None).unwrap_err().to_string();
    assert!(said.contains("d.jsonl:3: column 7: not valid JSON"), "{said}");
}

#[test]
fn columns_of_every_format_can_be_asked() {
    let folder = Folder::new();
    let file = folder.file("d.csv", "text,score\none,0.2\ntwo,0.9\n");
    let of_csv = config(&file, "filter: score | float > 0.5").unwrap();
    assert_eq!(taken(&[(&of_csv).into()], 0, None).unwrap().0, ["two"]);
    // A column of Parquet that no sample is made of is read all the same.
    let file = fixture("pairs.parquet");
    let yaml = "column: input\nfilter: output == '299'\nsplit: train[:299]";
    let (texts, reports) = taken(&[(&config(&file, yaml).unwrap()).into()], 0, None).unwrap();
    assert_eq!(texts, ["298 + 1"]);
    assert_eq!(reports[0].filtered, 298);
}

#[test]
fn samples_of_other_lengths_are_left_out_and_not_cut() {
    let folder = Folder::new();
    let lines: Vec<String> = (1..=20).map(|i| format!("{{\"text\": \"{}\"}}", "x".repeat(i))).collect();
    let file = folder.file("d.jsonl", lines.join("\n"));
    let lens = |yaml: &str, max_seq_len| {
        let config = config(&file, yaml).unwrap();
        // As a run counts and not as `--check` does, which looks at all that is cut off.
        let taken = taken(&[(&config).into()], 0, max_seq_len);
        taken.map(|(texts, reports)| (texts.iter().map(String::len).collect::<Vec<_>>(), reports[0].clone()))
    };
    // A letter is a token, and the end of the text is one.
    let (taken, report) = lens("min_tokens: 4\nmax_tokens: 8", None).unwrap();
    assert_eq!(taken, [3, 4, 5, 6, 7]);
    assert_eq!((report.too_short, report.too_long, report.truncated, report.dropped), (2, 13, 0, 0));
    // Below and above the length to which samples are cut.
    assert_eq!(lens("max_tokens: 8", Some(8)).unwrap().0, [1, 2, 3, 4, 5, 6, 7]);
    let (taken, report) = lens("min_tokens: 6\nmax_tokens: 12", Some(8)).unwrap();
    assert_eq!(taken, [5, 6, 7, 8, 8, 8, 8]);
    assert_eq!((report.truncated, report.too_long), (4, 9));
    let (taken, report) = lens("min_tokens: 12", Some(8)).unwrap();
    assert_eq!((taken, report.truncated, report.too_short), (vec![8; 10], 10, 10));
    let error = lens("min_tokens: 50", None).unwrap_err().to_string();
    assert!(error.ends_with("no sample is left: 20 have fewer than `min_tokens` = 50 tokens"), "{error}");
}

#[test]
fn what_is_held_out_is_not_trained_and_all_the_rest_is() {
    let folder = Folder::new();
    let config: DataConfig = (&config(&records(&folder, "a", 50), "filter: score >= 1").unwrap()).into();
    let of = |config: &DataConfig, seed| taken(std::slice::from_ref(config), seed, None).unwrap().0;
    let set = |texts: &[String]| texts.iter().cloned().collect::<BTreeSet<_>>();
    let (trained, held_out) = (of(&config.without_held_out(0.2), 5), of(&config.held_out(0.2), 5));
    assert_eq!((trained.len(), held_out.len()), (32, 8));
    assert_eq!(&set(&trained) | &set(&held_out), set(&of(&config, 5)));
    // By the seed alone, in the order of the file.
    assert_eq!(held_out, of(&config.held_out(8.0), 5));
    assert_ne!(held_out, of(&config.held_out(0.2), 6));
    let number = |text: &String| text[2..].parse::<usize>().unwrap();
    assert!(held_out.is_sorted_by_key(number) && trained.is_sorted_by_key(number));
    let error = taken(&[config.held_out(40.0)], 5, None).unwrap_err().to_string();
    assert!(error.contains("val_set_size=40: of 40 records none would be left to train on"), "{error}");
}

#[test]
fn weights_say_how_much_of_an_epoch_is_of_each_dataset() {
    let folder = Folder::new();
    let of = |name, n, yaml: &str| DataConfig::from(&config(&records(&folder, name, n), yaml).unwrap());
    let mixed = [of("a", 60, "weight: 1"), of("b", 10, "weight: 0.5"), of("c", 20, "weight: 0.75")];
    let (texts, reports) = taken(&mixed, 3, None).unwrap();
    assert_eq!(texts.len(), 90, "an epoch is as long as without weights");
    let of_each: Vec<Mixed> = reports.iter().map(|report| report.mixed.unwrap()).collect();
    assert_eq!(of_each, [(40, 60), (20, 10), (30, 20)].map(|(taken, of)| Mixed { taken, of }));
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    texts.iter().for_each(|text| *times.entry(text).or_default() += 1);
    let of_dataset = |name: char| times.iter().filter(move |(text, _)| text.starts_with(name)).map(|(_, times)| *times);
    assert_eq!(of_dataset('a').collect::<Vec<_>>(), [1; 40]);
    assert_eq!(of_dataset('b').collect::<Vec<_>>(), [2; 10]);
    let mut of_c: Vec<usize> = of_dataset('c').collect();
    of_c.sort_unstable();
    assert_eq!(of_c, [[1; 10], [2; 10]].concat());
    // Each stretch is mixed, although nothing is shuffled, and another seed draws others.
    assert!(texts.chunks(9).all(|nine| nine.iter().filter(|text| text.starts_with('a')).count() == 4), "{texts:?}");
    assert_eq!(texts, taken(&mixed, 3, None).unwrap().0);
    assert_ne!(texts, taken(&mixed, 4, None).unwrap().0);
    assert_eq!(
        of_each.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "40 of its 60 records, the same in each epoch",
            "its 10 records 2.00 times in each epoch: 20",
            "its 20 records 1.50 times in each epoch: 30"
        ]
    );
    // What is held out is looked at as a whole.
    let held_out: Vec<DataConfig> = mixed.iter().map(|dataset| dataset.held_out(0.5)).collect();
    assert_eq!(taken(&held_out, 3, None).unwrap().0.len(), 45);
    let error = |configs: &[DataConfig]| taken(configs, 0, None).unwrap_err().to_string();
    assert_eq!(
        error(&[of("a", 6, "weight: 1"), of("b", 6, "")]),
        "of several datasets either all or none must have a `weight`"
    );
    let said = error(&[of("a", 6, "weight: 1"), of("b", 6, "weight: 0.001")]);
    assert!(said.ends_with("so small that none of an epoch's 12 records is of this dataset"), "{said}");
    let said = config(Path::new("a.jsonl"), "weight: -1").unwrap_err();
    assert!(said.contains("c.yaml:3:9"), "{said}");
}

/// A mixture over several blocks of records has the same batches wherever it is begun.
#[test]
fn a_mixture_of_many_records_goes_on_where_it_was() {
    let folder = Folder::new();
    let of = |name, n, weight: f64| {
        DataConfig::from(&config(&records(&folder, name, n), &format!("weight: {weight}\nmax_tokens: 6")).unwrap())
    };
    let mixed = [of("a", 6000, 1.0), of("b", 300, 1.0)];
    let open = || {
        let options = LoaderOptions { batch_size: 8, shuffle: true, seed: 9, ..LoaderOptions::default() };
        Loader::open(&mixed, &byte_level(None), None, options).unwrap()
    };
    let (first, second) = (open(), open());
    assert_eq!(first.fingerprint().unwrap(), second.fingerprint().unwrap());
    let all: Vec<Batch> = first.epoch(1).batches(0).collect::<Result<_>>().unwrap();
    assert_eq!(all[200..], second.epoch(1).batches(200).collect::<Result<Vec<_>>>().unwrap());
    let reports = first.reports().unwrap();
    assert_eq!([reports[0].samples + reports[0].too_long, reports[1].samples], [3150, 3150]);
    // "a 1000" and all behind it have more than 6 tokens.
    assert!(reports[0].too_long > 2000, "{reports:?}");
}

#[test]
fn patterns_fit_data_files_in_the_order_of_their_names() {
    let folder = Folder::new();
    for name in ["b", "a", "c"] {
        records(&folder, name, 2);
    }
    folder.file("a.txt", "nothing");
    let of = |pattern: &str| {
        let config = config(&folder.0.path().join(pattern), "").unwrap();
        taken(&[(&config).into()], 0, None).map(|(texts, _)| texts)
    };
    assert_eq!(of("[ab].*").unwrap(), ["a 0", "a 1", "b 0", "b 1"]);
    assert_eq!(of("*.jsonl").unwrap().len(), 6);
    let error = of("x*.jsonl").unwrap_err().to_string();
    assert!(error.ends_with("x*.jsonl: no data file fits this pattern"), "{error}");
    assert!(of("[.jsonl").unwrap_err().to_string().contains("is no pattern of names"));
    // A file whose name has a bracket is that file.
    folder.file("q[1].jsonl", r#"{"text": "q"}"#);
    assert_eq!(of("q[1].jsonl").unwrap(), ["q"]);
}

#[test]
fn a_subset_is_a_folder_of_its_source() {
    let folder = Folder::new();
    std::fs::create_dir(folder.0.path().join("one")).unwrap();
    folder.file("one/train.jsonl", r#"{"text": "in one"}"#);
    let yaml = |rest: &str| format!("_component_: text\nsource: {}\n{rest}\n", folder.0.path().display());
    let of = |rest: &str| {
        let input = crate::config::Input::yaml("c.yaml", yaml(rest));
        let config = crate::config::load::<DatasetConfig>(input).unwrap().config;
        taken(&[(&config).into()], 0, None).map(|(texts, _)| texts)
    };
    assert_eq!(of("subset: one").unwrap(), ["in one"]);
    assert_eq!(of("name: one").unwrap(), ["in one"]);
    let error = of("subset: one\ndata_files: a.jsonl").unwrap_err().to_string();
    assert!(error.starts_with("`subset: one` is a folder of the dataset that `source` names"), "{error}");
    assert!(of("subset: two").is_err());
}
