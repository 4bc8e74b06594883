//! What the cards of several processes do together: the results, the calls that NCCL gets, and what is said where something is wrong.
//! Cards and NCCL are stand-ins (`harness/stand_in`), and processes are threads. Each case is tried in a process of its own, in an
//! environment that has them.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tune_cuda::{Buffer, Communicator, Context, Courier, UniqueId, VARIABLE, open_nccl};

/// Which case the child is.
const CASE: &str = "STAND_IN_CASE";

/// Returns what it has to say.
type Case = fn() -> String;

const CASES: &[(&str, Case)] = &[
    ("results", results),
    ("calls", calls),
    ("memory", memory),
    ("words", words),
    ("words between processes", words_between_processes),
    ("words to nobody", words_to_nobody),
    ("words to one that is lost", words_to_one_that_is_lost),
    ("alone", alone),
    ("nobody else joins", nobody_else_joins),
    ("nobody else comes", nobody_else_comes),
    ("others do something else", others_do_something_else),
    ("lost", lost),
    ("ended", ended),
    ("found", || open_nccl().map_or_else(|e| e.to_string(), |found| format!("found {found}"))),
    ("unique id", || UniqueId::new().map_or_else(|e| e.to_string(), |id| format!("{}", id.bytes().len()))),
];

#[test]
#[ignore = "what the other tests start, in an environment of their own"]
fn child() {
    let Ok(case) = std::env::var(CASE) else {
        println!("nothing was asked: only the other tests, which set {CASE}, have a use for this one");
        return;
    };
    let run = CASES.iter().find(|(name, _)| *name == case).unwrap().1;
    println!("<{}>", run());
}

/// A folder with stand-ins for the driver, cuBLASLt and NCCL; `None` without a compiler.
fn stand_ins() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        if !Command::new(&compiler).arg("--version").output().is_ok_and(|output| output.status.success()) {
            // Past the capture of a test's output: this must be seen.
            #[expect(clippy::disallowed_methods, reason = "a test that cannot write fails")]
            let mut seen = std::io::stderr();
            writeln!(seen, "NOTICE: no C++ compiler ({compiler}) here; nothing is tested on a stand-in for NCCL").ok();
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stand-ins-of-nccl-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (source, library) in
            [("driver", "libcuda.so.1"), ("products", "libcublasLt.so.13"), ("collectives", "libnccl.so.2")]
        {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("harness/stand_in/{source}.cpp"));
            let mut build = Command::new(&compiler);
            build.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", &format!("-Wl,-soname,{library}")]);
            assert!(build.arg("-o").arg(folder.join(library)).arg(source).arg("-ldl").status().unwrap().success());
        }
        Some(folder)
    };
    FOLDER.get_or_init(build).as_deref()
}

/// What a case says where the environment is this; `None` where it cannot be tried.
#[track_caller]
fn says(case: &str, environment: &[(&str, &str)]) -> Option<String> {
    let folder = stand_ins()?;
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
    child.env_clear().env(CASE, case).env("PATH", "/nowhere").env("HOME", "/nowhere").env("STAND_IN_CARDS", "4");
    child.env("LD_LIBRARY_PATH", folder).env(VARIABLE, folder).env("STAND_IN_DELAY", "3000");
    environment.iter().for_each(|(name, value)| _ = child.env(name, value));
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let message = said.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>'));
    Some(message.unwrap_or_else(|| panic!("{said}")).0.to_owned())
}

#[track_caller]
fn holds(message: Option<String>, parts: &[&str]) {
    let Some(message) = message else { return };
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(!message.contains('\n'), "more than a line: {message}");
}

/// Runs `f` in threads that are processes with a card each; returns what they return.
fn on<R: Send>(ranks: usize, limit: Duration, f: impl Fn(&Context, &Communicator) -> R + Sync) -> Vec<R> {
    let (id, f) = (UniqueId::new().unwrap(), &f);
    let id = UniqueId::of(id.bytes()).unwrap();
    std::thread::scope(|scope| {
        let one = |rank| {
            scope.spawn(move || {
                let context = Context::open(rank).unwrap();
                let all = Communicator::join(&context, id, rank, ranks, limit).unwrap();
                assert_eq!((all.rank(), all.size()), (rank, ranks));
                f(&context, &all)
            })
        };
        let threads: Vec<_> = (0..ranks).map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(1);

/// Numbers that tell who has them.
fn numbers(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (100 * (rank + 1) + i) as f32).collect()
}

fn sums(ranks: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    range.map(|i| (0..ranks).map(|rank| numbers(rank, i + 1)[i]).sum()).collect()
}

fn results() -> String {
    on(3, LONG, |context, all| {
        let rank = all.rank();
        // Parts of one size, of several, of none, in one collective.
        let counts = [vec![2, 2, 2], vec![3, 0, 1], vec![0, 0, 0]];
        let mine = counts.each_ref().map(|counts| Arc::new(context.upload(&numbers(rank, counts[rank]))));
        let gathered = all.all_gather("weights", mine.into_iter().zip(counts.clone()).collect());
        assert!(!gathered.is_done(), "it takes a while");
        let gathered = gathered.wait();
        for (gathered, counts) in gathered.iter().zip(&counts) {
            let right: Vec<f32> = counts.iter().enumerate().flat_map(|(rank, &count)| numbers(rank, count)).collect();
            assert_eq!(context.download(gathered).unwrap(), right);
        }
        // Bytes move as they are.
        let codes = Arc::new(context.upload(&[rank as u8, 0xff]));
        let codes = all.all_gather("codes", vec![(codes, vec![2; 3])]).wait();
        assert_eq!(context.download(&codes[0]).unwrap(), [0, 0xff, 1, 0xff, 2, 0xff]);

        for counts in [[2, 2, 2], [4, 0, 1]] {
            let len = counts.iter().sum();
            let part = all.reduce_scatter("gradients", context.upload(&numbers(rank, len)), &counts, None).wait();
            let first: usize = counts[..rank].iter().sum();
            assert_eq!(context.download(&part).unwrap(), sums(3, first..first + counts[rank]));
        }
        let sum = all.all_reduce("gradients", context.upload(&numbers(rank, 5))).wait();
        assert_eq!(context.download(&sum).unwrap(), sums(3, 0..5));
        let from_one = all.broadcast("weights", 1, context.upload(&numbers(rank, 4))).wait();
        assert_eq!(context.download(&from_one).unwrap(), numbers(1, 4));
        // Nothing at all.
        assert!(all.all_reduce("nothing", context.buffer(0)).wait().is_empty());
    });
    // Two times two: a sum over those that divide something, and then over those that have the same part.
    on(4, LONG, |context, all| {
        let rank = all.rank();
        let shards = all.split(rank / 2, rank % 2, 2).unwrap();
        let replicas = all.split(rank % 2, rank / 2, 2).unwrap();
        let counts = [3, 2];
        let sum = shards.reduce_scatter("it", context.upload(&numbers(rank, 5)), &counts, Some(&replicas)).wait();
        let right = if rank % 2 == 0 { sums(4, 0..3) } else { sums(4, 3..5) };
        assert_eq!(context.download(&sum).unwrap(), right);
    });
    "well".to_owned()
}

fn calls() -> String {
    on(2, LONG, |context, all| {
        let mine = |len| Arc::new(context.upload(&numbers(all.rank(), len)));
        let uneven = [3, 2][all.rank()];
        _ = all.all_gather("weights", vec![(mine(2), vec![2, 2]), (mine(uneven), vec![3, 2])]).wait();
        _ = all.reduce_scatter("gradients", context.zeros(4), &[2, 2], None).wait();
        _ = all.reduce_scatter("gradients", context.zeros(5), &[3, 2], None).wait();
        _ = all.all_reduce("gradients", context.zeros(7)).wait();
        _ = all.broadcast("weights", 1, context.zeros::<f32>(1)).wait();
        context.synchronize().unwrap();
    });
    let path = std::env::var("STAND_IN_COLLECTIVES").unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("rank 1 of 2: ")).collect::<Vec<_>>().join(", ")
}

/// Whoever has the memory of a collective next has it when that is over.
fn memory() -> String {
    on(2, LONG, |context, all| {
        for _ in 0..3 {
            let from = Arc::new(context.upload(&[1f32; 1000]));
            drop(all.all_gather("weights", vec![(from, vec![1000; 2])]));
            let other: Buffer<f32> = context.upload(&[7f32; 3000]);
            assert!(context.download(&other).unwrap().iter().all(|&x| x == 7.0), "written by what was dropped");
            drop(other);
            let sum = all.all_reduce("gradients", context.upload(&[1f32; 1000])).wait();
            assert!(context.download(&sum).unwrap().iter().all(|&x| x == 2.0), "read before it was there");
        }
    });
    "well".to_owned()
}

/// Bytes that tell whose they are, for whom, and where they stand.
fn letter(from: usize, to: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251 + i + 31 * from + 7 * to) as u8).collect()
}

/// What the courier of rank `rank` of three does, of sizes below and above those of a piece.
fn deliver(courier: &mut Courier) {
    const LARGE: usize = (8 << 20) / 3 + 1000;
    let (rank, size) = (courier.rank(), courier.size());
    for counts in [[3, 3, 3], [4, 0, 1], [0, 0, 0], [LARGE, 17, 2 * LARGE]] {
        let mut all = vec![0; counts.iter().sum()];
        courier.all_gather(&letter(rank, 0, counts[rank]), &counts, &mut all).unwrap();
        let right: Vec<u8> = (0..size).flat_map(|from| letter(from, 0, counts[from])).collect();
        assert!(all == right, "all-gather of {counts:?}");
    }
    // Each has a letter of another length for each, itself among them, and some have none.
    let len = |from: usize, to: usize| [[5, 0, LARGE], [1, 2, 0], [0, 3 * LARGE, 4]][from][to];
    let parts: Vec<u8> = (0..size).flat_map(|to| letter(rank, to, len(rank, to))).collect();
    let right: Vec<u8> = (0..size).flat_map(|from| letter(from, rank, len(from, rank))).collect();
    let (for_each, from_each): (Vec<usize>, Vec<usize>) = (0..size).map(|i| (len(rank, i), len(i, rank))).unzip();
    let mut mine = vec![0; right.len()];
    courier.all_to_all(&parts, &for_each, &mut mine, &from_each).unwrap();
    assert!(mine == right, "all-to-all");
    for len in [0, 1, (8 << 20) + 5] {
        let mut bytes = letter(rank, 0, len);
        courier.broadcast(2, &mut bytes).unwrap();
        assert!(bytes == letter(2, 0, len), "broadcast of {len}");
    }
}

fn words() -> String {
    let id = UniqueId::new().unwrap();
    std::thread::scope(|scope| {
        for rank in 0..3 {
            scope.spawn(move || {
                let context = Context::open(rank).unwrap();
                let mut courier = Courier::join(&context, id, rank, 3, LONG).unwrap();
                deliver(&mut courier);
                // Two of them, and one by itself: as in a group that is split.
                let mut part = courier.split(rank / 2, rank % 2, [2, 2, 1][rank]).unwrap();
                let counts = vec![2; part.size()];
                let mut all = vec![0; 2 * part.size()];
                part.all_gather(&[rank as u8, 9], &counts, &mut all).unwrap();
                assert_eq!(all, [&[0, 9, 1, 9][..], &[0, 9, 1, 9], &[2, 9]][rank]);
                drop(part);
                deliver(&mut courier);
            });
        }
    });
    "well".to_owned()
}

/// The same between processes: this one is rank 0 and starts the others, or is one of these.
fn words_between_processes() -> String {
    const RANK: &str = "TEST_RANK";
    const ID: &str = "TEST_ID";
    let join = |id: UniqueId, rank: usize| {
        let context = Context::open(rank).unwrap();
        let mut courier = Courier::join(&context, id, rank, 3, LONG).unwrap();
        deliver(&mut courier);
        let mut part = courier.split(rank % 2, rank / 2, [2, 1, 2][rank]).unwrap();
        let mut all = vec![0; part.size()];
        part.all_gather(&[rank as u8], &vec![1; part.size()], &mut all).unwrap();
        assert_eq!(all, [&[0, 2][..], &[1], &[0, 2]][rank]);
        // Nobody leaves while another is at work.
        courier.all_gather(&[0], &[1; 3], &mut [0; 3]).unwrap();
    };
    if let (Ok(rank), Ok(id)) = (std::env::var(RANK), std::env::var(ID)) {
        let bytes: Vec<u8> = id.split(' ').map(|byte| byte.parse().unwrap()).collect();
        join(UniqueId::of(&bytes).unwrap(), rank.parse().unwrap());
        return "well".to_owned();
    }
    let id = UniqueId::new().unwrap();
    let text = id.bytes().map(|byte| byte.to_string()).join(" ");
    let start = |rank: usize| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
        child.env(RANK, rank.to_string()).env(ID, &text).stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let others = [start(1), start(2)];
    join(id, 0);
    for mut other in others {
        assert!(other.wait().unwrap().success());
    }
    "well".to_owned()
}

/// What rank 0 of two finds whose partner joins, and does nothing; `meanwhile` is called when it waits.
fn alone_by_courier(limit: Duration, meanwhile: impl FnOnce(&Context) + Send) -> String {
    let id = UniqueId::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let context = Context::open(1).unwrap();
            let courier = Courier::join(&context, id, 1, 2, limit).unwrap();
            std::thread::sleep(3 * SHORT);
            drop(courier);
        });
        let context = Context::open(0).unwrap();
        let mut courier = Courier::join(&context, id, 0, 2, limit).unwrap();
        let other = context;
        scope.spawn(move || {
            std::thread::sleep(SHORT / 4);
            meanwhile(&other);
        });
        let error = courier.all_gather(&[1], &[1, 1], &mut [0, 0]).unwrap_err();
        assert!(matches!(error, tune_cuda::Error::Lost(_)), "{error:?}");
        // Nothing is done any more, and nobody waits.
        assert_eq!(courier.broadcast(0, &mut [1]), Err(error.clone()));
        error.to_string()
    })
}

fn words_to_nobody() -> String {
    alone_by_courier(SHORT, |_| ())
}

fn words_to_one_that_is_lost() -> String {
    let begun = std::time::Instant::now();
    let said = alone_by_courier(LONG, |context| context.lose("rank 1 has ended"));
    assert!(begun.elapsed() < 10 * SHORT, "it was waited for");
    said
}

fn alone() -> String {
    on(1, LONG, |context, all| {
        let one = context.upload(&[3f32, 4.0]);
        let one = all.all_reduce("it", one).wait();
        let one = all.reduce_scatter("it", one, &[2], None).wait();
        let all = all.all_gather("it", vec![(Arc::new(one), vec![2])]).wait();
        format!("{:?}", context.download(&all[0]).unwrap())
    })
    .remove(0)
}

fn nobody_else_joins() -> String {
    let context = Context::open(0).unwrap();
    let id = UniqueId::new().unwrap();
    let wrong = Communicator::join(&context, id, 2, 2, SHORT).unwrap_err().to_string();
    assert_eq!(wrong, "rank 2 is none of 2 processes");
    Communicator::join(&context, id, 0, 2, SHORT).unwrap_err().to_string()
}

/// What rank 0 finds in the end where rank 1 does something else.
fn alone_with(mine: fn(&Context, &Communicator), theirs: fn(&Context, &Communicator)) -> String {
    let found = on(2, SHORT, |context, all| {
        if all.rank() == 1 {
            theirs(context, all);
            std::thread::sleep(2 * SHORT);
            return String::new();
        }
        mine(context, all);
        let error = context.synchronize().unwrap_err();
        assert_eq!(context.check(), Err(error.clone()), "it is remembered");
        // Nothing is done any more, and nobody waits.
        _ = all.all_reduce("more", context.zeros(2)).wait();
        assert!(matches!(error, tune_cuda::Error::Lost(_)), "{error:?}");
        error.to_string()
    });
    found[0].clone()
}

fn nobody_else_comes() -> String {
    alone_with(|context, all| _ = all.all_reduce("the gradient of a weight", context.zeros(2)).wait(), |_, _| ())
}

fn others_do_something_else() -> String {
    alone_with(
        |context, all| _ = all.all_reduce("the gradient of a weight", context.zeros(2)).wait(),
        |context, all| drop(all.broadcast("something", 0, context.zeros::<f32>(2))),
    )
}

fn lost() -> String {
    alone_with(|context, all| _ = all.all_reduce("the gradient of a weight", context.zeros(2)).wait(), |_, _| ())
}

fn ended() -> String {
    alone_with(
        |context, all| {
            let waiting = all.all_reduce("the gradient of a weight", context.zeros(2));
            all.abort("another process has failed");
            _ = waiting.wait();
        },
        |_, _| (),
    )
}

#[test]
fn what_they_give() {
    holds(says("results", &[]), &["well"]);
    holds(says("memory", &[]), &["well"]);
    holds(says("alone", &[]), &["[3.0, 4.0]"]);
}

#[test]
fn words_arrive() {
    holds(says("words", &[]), &["well"]);
    if let Some(folder) = stand_ins() {
        let meetings = folder.join("meetings");
        std::fs::create_dir_all(&meetings).unwrap();
        holds(says("words between processes", &[("STAND_IN_MEETINGS", meetings.to_str().unwrap())]), &["well"]);
    }
    let waited = "the card has waited 1 s in the exchange of what processes say to each other";
    holds(says("words to nobody", &[]), &[waited]);
    holds(says("words to one that is lost", &[]), &["rank 1 has ended"]);
}

#[test]
fn what_nccl_is_asked() {
    let Some(folder) = stand_ins() else { return };
    let log = folder.join("calls");
    let right = "joined, AllGather 8 bytes, Broadcast 12 bytes root 0, Broadcast 8 bytes root 1, ReduceScatter 2 f32, \
                 Reduce 3 f32 root 0, Reduce 2 f32 root 1, AllReduce 7 f32, Broadcast 4 bytes root 1, ended";
    assert_eq!(says("calls", &[("STAND_IN_COLLECTIVES", log.to_str().unwrap())]).unwrap(), right);
}

#[test]
fn who_does_not_come_is_waited_for_until_the_limit() {
    holds(says("nobody else joins", &[]), &["connecting the cards of 2 processes has taken 1 s", "NCCL_DEBUG"]);
    let waited = "the card has waited 1 s in the all-reduce of the gradient of a weight";
    holds(says("nobody else comes", &[]), &[waited, "died, hangs, or is slower"]);
    holds(says("others do something else", &[]), &[waited]);
}

#[test]
fn what_nccl_finds_out_is_told_at_once() {
    let said = says("lost", &[("STAND_IN_LOST", "6")]);
    holds(said, &["NCCL has lost another process in the all-reduce of the gradient of a weight", "a stand-in's words"]);
    holds(says("ended", &[]), &["another process has failed"]);
}

#[test]
fn what_is_missing_is_said() {
    let get_it = "pip install 'nvidia-nccl-cu13'";
    holds(says("found", &[]), &["found", "libnccl.so.2"]);
    holds(says("unique id", &[]), &["128"]);
    for case in ["found", "unique id"] {
        holds(says(case, &[(VARIABLE, "/nowhere")]), &["libnccl.so.2 is not in /nowhere", VARIABLE, get_it]);
    }
    let old = says("unique id", &[("STAND_IN_NCCL_VERSION", "21500")]);
    holds(old, &["libnccl.so.2: it is version 2.15, and 2.18 or newer is needed", get_it]);
    if let Some(folder) = stand_ins() {
        let other = folder.join("other");
        std::fs::create_dir_all(&other).unwrap();
        // A library of that name that has none of its functions.
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_ins/nothing.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-w", "-Wl,-soname,libnccl.so.2", "-o"]).arg(other.join("libnccl.so.2"));
        assert!(cc.arg(source).status().unwrap().success());
        let path = std::env::join_paths([&other]).unwrap();
        let said = says("unique id", &[(VARIABLE, path.to_str().unwrap()), ("LD_LIBRARY_PATH", "/nowhere")]);
        holds(said, &["it lacks what is needed", "ncclGetVersion", get_it]);
    }
}
