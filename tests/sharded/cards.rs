//! The same where each process has a card. Cards, and the NCCL that connects them, are stand-ins ([`crate::stand_in`]): what is gathered
//! and summed comes late, so that whoever does not wait for it computes with something else.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tune_core::Error;
use tune_core::device::{Compute, DeviceConfig};
use tune_core::distributed::{Group, Layout, Mesh, threads};
use tune_core::engine::Card;
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::peft::{LoraModule, LoraOptions};

use super::{Case, Fixture, check_on, layout, train};
use crate::stand_in;
use candle_core::DType;

/// Says that this is a process that has cards.
const HAS_CARDS: &str = "TUNE_TEST_SEVERAL_CARDS";

/// A copy that is divided, a whole one in each process, two that are divided and stay until the backward pass.
const LAYOUTS: [Layout; 3] = [layout(2, 1, false), layout(1, 2, false), layout(2, 2, true)];

fn has_cards() -> bool {
    std::env::var_os(HAS_CARDS).is_some()
}

fn on_cards(case: Case) -> Case {
    Case { on_cards: true, ..case }
}

#[test]
fn all_weights() {
    if has_cards() {
        check_on(&LAYOUTS, &on_cards(Case::full("llama_tied")));
    }
}

#[test]
fn all_weights_of_another_family() {
    if has_cards() {
        let case = Case { packed: true, checkpointing: true, ..Case::full("qwen2") };
        check_on(&LAYOUTS[..1], &on_cards(case));
    }
}

#[test]
fn adapters() {
    if has_cards() {
        check_on(&LAYOUTS, &on_cards(Case::lora("llama_tied")));
    }
}

#[test]
fn adapters_and_whole_modules() {
    if has_cards() {
        let modules = vec![LoraModule::QProj, LoraModule::DownProj];
        let save = ["embed_tokens", "norm"].map(String::from).into();
        let case = Case::lora("llama_tied");
        let lora = case.lora.clone().map(|lora| LoraOptions { modules, save, ..lora });
        check_on(&LAYOUTS[..1], &on_cards(Case { lora, ..case }));
    }
}

#[test]
fn experts() {
    if has_cards() {
        check_on(&LAYOUTS[2..], &on_cards(Case::full("qwen3_moe")));
    }
}

/// Weights and activations are rounded, and sums are not.
#[test]
fn adapters_of_a_model_in_bf16() {
    if !has_cards() {
        return;
    }
    let case = on_cards(Case { dtype: DType::BF16, ..Case::lora("llama_tied") });
    let alone = train(&case, &Mesh::default());
    for layout in LAYOUTS {
        for one in super::on(layout, &case) {
            for (loss, right) in one.losses.iter().zip(&alone.losses) {
                assert!(
                    (loss - right).abs() <= 1e-2 * right,
                    "{layout}: {:?} instead of {:?}",
                    one.losses,
                    alone.losses
                );
            }
            let off = super::distance(&one.gradients, &alone.gradients);
            assert!(off <= 2e-2, "{layout}: gradients are off by {off:.1e}");
        }
    }
}

/// Each gets the card of its number on its machine; none may be there twice.
#[test]
fn each_has_a_card_of_its_own() {
    if !has_cards() {
        return;
    }
    let choose = |device: &'static str, ranks| {
        let device: DeviceConfig = device.parse().unwrap();
        let one = move |group| device.choose_among(&group).map(|(device, _)| device.to_string());
        threads::run(ranks, Duration::from_secs(20), one).unwrap()
    };
    for (rank, device) in choose("cuda", 4).into_iter().enumerate() {
        assert_eq!(device.unwrap(), format!("Stand-in (cuda:{rank})"));
    }
    assert_eq!(choose("auto", 2)[1].as_ref().unwrap(), "Stand-in (cuda:1)");
    assert_eq!(choose("cpu", 2)[1].as_ref().unwrap(), "cpu");
    for error in choose("cuda:1", 2) {
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("device=cuda:1 is one card, and 2 processes") && error.contains("device=cuda"),
            "{error}"
        );
    }
    let errors: Vec<String> = choose("cuda", 5).into_iter().map(|device| device.unwrap_err().to_string()).collect();
    assert!(errors[4].contains("5 processes are on this machine, and it has 4 cards"), "{errors:?}");
    assert!(errors[0].contains("1 of the other processes cannot go on"), "{errors:?}");
    // There are four cards, so the fifth process computes on the processor, and so do the others.
    assert!(choose("auto", 5).into_iter().all(|device| device.unwrap() == "cpu"));

    let errors = threads::run(2, Duration::from_secs(20), |group| {
        Mesh::from(group).connect(&Card::open(0).unwrap()).unwrap_err().to_string()
    });
    for error in errors.unwrap() {
        assert!(error.contains("ranks 0 and 1 have the same card: start as many processes"), "{error}");
    }
}

/// A model is computed by the card through which its process is connected to others, and by no other.
#[test]
fn a_card_that_is_not_connected_is_refused() {
    if !has_cards() {
        return;
    }
    let errors = threads::run(2, Duration::from_secs(20), |group| {
        let place = group.place();
        let fixture = Fixture::read("llama_tied");
        let load = |mesh: &Mesh, device| {
            let spec = ModelSpec::from_json(&fixture.config).unwrap();
            let options = LoadOptions { dtype: DType::F32, device, train_weights: true, lora: None };
            Decoder::load_shard(spec, &fixture.weights, &options, mesh).map(drop).unwrap_err().to_string()
        };
        let (mesh, card) = (Mesh::from(group), Card::open(place.local_rank).unwrap());
        let unconnected = load(&mesh, Compute::Card(Arc::clone(&card)));
        let connected = mesh.connect(&card).unwrap();
        let other = load(&connected, Compute::Card(Card::open(2).unwrap()));
        [unconnected, other, load(&connected, Compute::Processor)]
    });
    for error in errors.unwrap().into_iter().flatten() {
        assert!(error.contains("their mesh connects them"), "{error}");
    }
}

/// A port of this machine that is free.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a group gives, as bits: of each collective, with numbers that tell whose they are and whose sums are rounded.
fn all_that_a_group_does(group: &Group) -> Vec<Vec<u64>> {
    let (rank, size) = (group.rank(), group.world_size());
    let bits = |numbers: Vec<f64>| numbers.into_iter().map(f64::to_bits).collect::<Vec<_>>();
    let of_f32 = |numbers: Vec<f32>| numbers.into_iter().map(|x| u64::from(x.to_bits())).collect::<Vec<_>>();
    let number = |i: usize| (i as f64 + 0.1) * 10f64.powi(rank as i32 * 3) / 3.0;
    let mut all = Vec::new();
    // Two are under way at a time.
    let rows = 7;
    let counts = group.counts(rows, 2);
    let mine: Vec<f64> = group.share(rows).flat_map(|row| [number(row), rank as f64]).collect();
    let gathered = group.all_gather("rows", mine, counts.clone(), vec![0f64; 2 * rows]);
    let parts: Vec<f32> = (0..2 * rows).map(|i| number(i) as f32).collect();
    let scattered = group.reduce_scatter("sums", parts, counts.clone(), vec![0f32; counts[rank]], |n| vec![0f32; n]);
    all.push(bits(gathered.wait().unwrap()));
    all.push(of_f32(scattered.wait().unwrap()));
    let large: Vec<f32> = (0..1001).map(|i| number(i) as f32).collect();
    all.push(of_f32(group.all_reduce_in_place("a gradient", large, |n| vec![0f32; n]).wait().unwrap()));
    all.push(bits(group.all_reduce("numbers", vec![number(1), 1e300, f64::MIN_POSITIVE]).wait().unwrap()));
    // What 53 bits do not hold.
    all.push(group.all_reduce("counts", vec![(1u64 << 62) / size as u64 + rank as u64, 0]).wait().unwrap());
    all.push(group.broadcast("a number", 1, vec![rank as u64 * 10 + 7]).wait().unwrap());
    all.push(group.gathered("as many as one has", vec![rank as u64; rank]).unwrap());
    all.push(group.texts("names", &"x".repeat(rank)).unwrap().iter().map(|text| text.len() as u64).collect());
    group.barrier("something").wait().unwrap();
    let failed = (rank == 1).then(|| Error::Training("it was this one".to_owned())).map_or(Ok(()), Err);
    let said = group.agreed("something", failed).unwrap_err().to_string();
    all.push(said.bytes().map(u64::from).collect());
    if size == 4 {
        let mesh = Mesh::new(group, Layout { shards: 2, replicas: 2, keeps_gathered: false }).unwrap();
        let parts: Vec<f32> = (0..5).map(|i| number(i) as f32).collect();
        let counts = mesh.shards().counts(5, 1);
        let mine = vec![0f32; counts[mesh.shards().rank()]];
        all.push(of_f32(mesh.reduce_scatter("sums", parts, counts, mine, |n| vec![0f32; n]).wait().unwrap()));
        all.push(mesh.replicas().all_reduce("ranks", vec![rank as u64]).wait().unwrap());
        all.push(mesh.shards().texts("names", &rank.to_string()).unwrap().concat().bytes().map(u64::from).collect());
    }
    group.finish().unwrap();
    all
}

/// Processes that their cards connect do what those do that something else connects, to the last bit.
#[test]
fn cards_connect_processes() {
    if !has_cards() {
        return;
    }
    let limit = Duration::from_secs(60);
    for size in [2, 3, 4] {
        let right = threads::run(size, limit, |group| all_that_a_group_does(&group)).unwrap();
        let by_cards = threads::run_by_cards(size, free_port(), limit, |group| {
            let place = group.place();
            let right = (place.local_rank, place.world_size, place.local_world_size);
            assert_eq!(right, (place.rank, size, size));
            all_that_a_group_does(&group)
        });
        let by_cards: Vec<_> = by_cards.into_iter().map(Result::unwrap).collect();
        assert!(by_cards == right, "{size}: {by_cards:?} instead of {right:?}");
    }
}

/// Each computes on the card that connects it, and on nothing else.
#[test]
fn who_is_connected_by_a_card_computes_on_it() {
    if !has_cards() {
        return;
    }
    let choose = |device: &'static str| {
        let device: DeviceConfig = device.parse().unwrap();
        threads::run_by_cards(2, free_port(), Duration::from_secs(60), move |group| {
            let chosen = device.choose_among(&group).map(|(device, _)| device.to_string());
            group.finish().unwrap();
            chosen.map_err(|error| error.to_string())
        })
    };
    for device in ["cuda", "auto"] {
        for (rank, chosen) in choose(device).into_iter().enumerate() {
            assert_eq!(chosen.unwrap().unwrap(), format!("Stand-in (cuda:{rank})"), "{device}");
        }
    }
    for (device, said) in
        [("cpu", "were started without MPI, and their cards connect them"), ("cuda:1", "cuda:1 is one card")]
    {
        for chosen in choose(device) {
            let error = chosen.unwrap().unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
    // There are four cards, so the fifth process has none, and all learn of it.
    let met = threads::run_by_cards(5, free_port(), Duration::from_secs(60), |_| ());
    let errors: Vec<String> = met.into_iter().map(|met| met.unwrap_err().to_string()).collect();
    for (rank, error) in errors.iter().enumerate() {
        assert!(error.contains("LOCAL_RANK is 4") && error.contains("has 4 cards"), "rank {rank}: {error}");
        assert_eq!(error.contains("rank 4 cannot go on"), rank != 4, "rank {rank}: {error}");
    }
}

/// A process that ends without having come to the end: the others learn of it at once, wherever they wait.
#[test]
fn who_ends_early_is_lost_to_those_that_cards_connect() {
    if !has_cards() {
        return;
    }
    let begun = Instant::now();
    let ended = threads::run_by_cards(3, free_port(), Duration::from_secs(300), |group| {
        group.barrier("the beginning").wait().unwrap();
        if group.rank() == 1 {
            return None;
        }
        let error = group.barrier("something").wait().unwrap_err();
        assert!(matches!(error, Error::Lost(_)), "{error:?}");
        Some(error.to_string())
    });
    assert!(begun.elapsed() < Duration::from_secs(30));
    for (rank, said) in ended.into_iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let said = said.unwrap().unwrap();
        let parts = [&*format!("rank {rank} of 3, barrier of something: "), "rank 1 has ended"];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
}

/// What the tests above are run on: four cards, and an NCCL whose calls are written down.
#[test]
fn on_a_stand_in() {
    if has_cards() {
        return;
    }
    let Some(folder) = stand_in::folder() else { return };
    let calls = tempfile::NamedTempFile::new().unwrap();
    let mut all = Command::new(std::env::current_exe().unwrap());
    all.args(["cards::", "--test-threads=2", "--nocapture"]);
    stand_in::environment(&mut all, folder);
    all.env(HAS_CARDS, "1").env("STAND_IN_CARDS", "4").env("STAND_IN_DELAY", "200");
    all.env("STAND_IN_COLLECTIVES", calls.path());
    let output = all.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    println!("{}", said.lines().filter(|line| line.contains(" off by ")).collect::<Vec<_>>().join("\n"));
    let calls = std::fs::read_to_string(calls.path()).unwrap();
    for call in ["AllGather", "ReduceScatter", "AllReduce", "Broadcast", "Reduce ", "Split 0", "Split 1", "ended"] {
        assert!(calls.contains(call), "nobody has asked NCCL for {call}");
    }
}

/// What is asked for in a micro-batch, in this order: the table, block by block and the output layer on the way up, the other way down;
/// and each gradient by itself.
#[test]
fn what_nccl_is_asked_for() {
    let Some(folder) = stand_in::folder() else { return };
    if has_cards() {
        return;
    }
    let calls = tempfile::NamedTempFile::new().unwrap();
    let mut one = Command::new(std::env::current_exe().unwrap());
    one.args(["cards::a_micro_batch", "--exact", "--ignored", "--nocapture"]);
    stand_in::environment(&mut one, folder);
    one.env(HAS_CARDS, "1").env("STAND_IN_CARDS", "2").env("STAND_IN_COLLECTIVES", calls.path());
    let output = one.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    let calls = std::fs::read_to_string(calls.path()).unwrap();
    let of_rank = |rank: usize| -> Vec<&str> {
        let prefix = format!("rank {rank} of 2: ");
        calls.lines().filter_map(|line| line.strip_prefix(&*prefix)).collect()
    };
    let (first, second) = (of_rank(0), of_rank(1));
    assert_eq!(first, second, "all processes ask for the same");
    assert_eq!((first.first(), first.last()), (Some(&"joined"), Some(&"ended")));
    let gathered = first.iter().filter(|call| call.starts_with("AllGather") || call.starts_with("Broadcast")).count();
    let summed = first.iter().filter(|call| call.starts_with("Reduce")).count();
    let config = Fixture::read("llama_tied").config;
    let blocks = config["num_hidden_layers"].as_u64().unwrap() as usize;
    // Nine weights of a block are gathered twice; the table when it is looked up and with the last norm as the output layer.
    let (weights, blocks_gathered) = (9, blocks * 9 * 2);
    assert!(gathered >= blocks_gathered + 3, "{gathered} gathered:\n{}", first.join("\n"));
    assert!(summed >= blocks * weights + 2, "{summed} summed:\n{}", first.join("\n"));
    let place = |what: &str| first.iter().position(|call| call.starts_with(what)).unwrap();
    assert!(place("AllGather") < place("Reduce"), "{}", first.join("\n"));
}

#[test]
#[ignore = "what another test starts, with a file for the calls"]
fn a_micro_batch() {
    if !has_cards() {
        return;
    }
    threads::run(2, Duration::from_secs(60), |group| {
        let card = Card::open(group.place().local_rank).unwrap();
        let mesh = Mesh::from(group.clone()).connect(&card).unwrap();
        let fixture = Fixture::read("llama_tied");
        let spec = ModelSpec::from_json(&fixture.config).unwrap();
        let batch = super::batch(spec.vocab_size as u32, 0, group.rank(), false);
        let options = LoadOptions { dtype: DType::F32, device: Compute::Card(card), train_weights: true, lora: None };
        let model = Decoder::load_shard(spec, &fixture.weights, &options, &mesh).unwrap();
        let mut gradients = tune_core::optim::Gradients::default();
        let options = super::RunOptions::PLAIN;
        super::forward_backward(&model, &batch, options, &mut gradients).unwrap();
        group.finish().unwrap();
    })
    .unwrap();
}
