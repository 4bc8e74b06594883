use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use super::*;

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_secs(1);

/// A port of this machine behind which others are free, too; no two tests have the same.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 21_000 + (std::process::id() % 900) as u16 * 10 + NEXT.fetch_add(1, Ordering::Relaxed) * 20;
        if (port..=port + MORE_PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return port;
        }
    }
}

fn at(host: &str, port: u16) -> Meeting {
    Meeting { host: host.to_owned(), port, is_taken: false, run: "one".to_owned() }
}

fn hello(rank: usize, world_size: usize, meeting: &Meeting) -> Hello {
    let launched =
        Launched { by: "torchrun", processes: world_size, rank: Some(rank), local: (None, None), by_mpi: false };
    Hello { card: format!("card {rank}"), ..Hello::of(&launched, meeting).unwrap() }
}

/// What becomes of processes that say this of themselves, in their order.
fn all_meet(meeting: &Meeting, limit: Duration, all: Vec<Hello>) -> Vec<Result<Met>> {
    std::thread::scope(|scope| {
        let come = |me: Hello| scope.spawn(move || meet(meeting, &me, limit, || Ok(b"an id".to_vec())));
        let threads: Vec<_> = all.into_iter().map(come).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[track_caller]
fn fails(met: &Result<Met>, parts: &[&str]) {
    let error = met.as_ref().err().expect("an error").to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn all_are_told_the_same() {
    for host in ["127.0.0.1", "localhost", "::1"] {
        if host == "::1" && TcpListener::bind("[::1]:0").is_err() {
            println!("this machine has no IPv6: that was not tried");
            continue;
        }
        let meeting = at(host, free_port());
        let met = all_meet(&meeting, LONG, (0..3).map(|rank| hello(rank, 3, &meeting)).collect());
        for (rank, met) in met.into_iter().enumerate() {
            let met = met.unwrap();
            assert_eq!((met.local, &*met.id), ((rank, 3), &b"an id"[..]), "{host}");
            assert_eq!(met.lines.len(), if rank == 0 { 2 } else { 1 });
        }
    }
}

/// Rank 0 need not know the name by which others find it: it listens at all that its machine has.
#[test]
fn others_come_by_another_address() {
    let meeting = at("a-name-that-others-know.invalid", free_port());
    let theirs = at("127.0.0.1", meeting.port);
    let met = std::thread::scope(|scope| {
        let rank_0 = scope.spawn(|| meet(&meeting, &hello(0, 2, &meeting), LONG, || Ok(Vec::new())));
        [meet(&theirs, &hello(1, 2, &theirs), LONG, || Ok(Vec::new())), rank_0.join().unwrap()]
    });
    assert!(met.iter().all(Result::is_ok));
}

/// Without a number on its machine, a process has that among those of the same name.
#[test]
fn machines_are_told_apart_by_their_names() {
    let meeting = at("127.0.0.1", free_port());
    let of = |rank, machine: &str| Hello { machine: machine.to_owned(), ..hello(rank, 4, &meeting) };
    let all = vec![of(0, "a"), of(1, "b"), of(2, "a"), Hello { local: (Some(7), Some(8)), ..of(3, "b") }];
    let local: Vec<_> = all_meet(&meeting, LONG, all).into_iter().map(|met| met.unwrap().local).collect();
    assert_eq!(local, [(0, 2), (0, 2), (1, 2), (7, 8)]);
}

/// Another program listens at the port, as torchrun's store does: rank 0 takes the next one, and the others find it there.
#[test]
fn a_port_that_is_taken_is_passed_over() {
    let meeting = at("127.0.0.1", free_port());
    let store = TcpListener::bind(("127.0.0.1", meeting.port)).unwrap();
    let (sender, heard) = channel();
    // It does not answer who begins otherwise than it expects.
    std::thread::spawn(move || {
        for stream in store.incoming() {
            let mut first = [0];
            stream.unwrap().read_exact(&mut first).unwrap();
            if sender.send(first[0]).is_err() {
                return;
            }
        }
    });
    let met = all_meet(&meeting, LONG, vec![hello(0, 2, &meeting), hello(1, 2, &meeting)]);
    assert!(met.iter().all(Result::is_ok));
    assert!(heard.try_iter().all(|byte| byte == b't'), "it was taken for the store's own client");
    // Where torchrun says so itself, nobody asks there.
    let told = Meeting { is_taken: true, ..meeting };
    assert_eq!(told.ports().next(), Some(told.port + 1));
    assert!(all_meet(&told, LONG, vec![hello(0, 2, &told), hello(1, 2, &told)]).iter().all(Result::is_ok));
}

#[test]
fn ports_that_are_all_taken_are_said() {
    let meeting = at("127.0.0.1", free_port());
    let taken: Vec<_> = meeting.ports().map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap()).collect();
    // Others close at once.
    for listener in taken {
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }
    let met = meet(&meeting, &hello(0, 2, &meeting), LONG, || Ok(Vec::new()));
    fails(&met, &["rank 0 cannot wait for the others at 127.0.0.1, ports", "in use; set MASTER_PORT", "--master-port"]);
}

#[test]
fn who_does_not_come_is_named() {
    let meeting = at("127.0.0.1", free_port());
    let met = all_meet(&meeting, SHORT, vec![hello(0, 4, &meeting), hello(2, 4, &meeting)]);
    for met in &met {
        assert!(matches!(met, Err(Error::Lost(_))), "a restart may help");
        fails(met, &["ranks 1 and 3 of 4 did not come to 127.0.0.1", "within 1 s", "TUNE_COLLECTIVE_TIMEOUT"]);
    }
    let met = meet(&meeting, &hello(3, 4, &meeting), SHORT, || Ok(Vec::new()));
    fails(&met, &["rank 3 of 4 has not found rank 0 at 127.0.0.1, ports", "within 1 s", "firewall"]);
}

#[test]
fn an_address_that_is_none_is_said() {
    let meeting = at("no-such-machine.invalid", free_port());
    let met = meet(&meeting, &hello(1, 2, &meeting), SHORT, || Ok(Vec::new()));
    fails(&met, &["MASTER_ADDR=no-such-machine.invalid: ", "the machine of rank 0"]);
}

/// A rank of another run, of another size, a rank that is there already: each is told, and those that belong to the run meet.
#[test]
fn strangers_come_to_nothing() {
    let meeting = at("127.0.0.1", free_port());
    let other = Meeting { run: "two".to_owned(), ..meeting.clone() };
    std::thread::scope(|scope| {
        let rank_0 = scope.spawn(|| meet(&meeting, &hello(0, 3, &meeting), LONG, || Ok(Vec::new())));
        let rank_1 = scope.spawn(|| meet(&meeting, &hello(1, 3, &meeting), LONG, || Ok(Vec::new())));
        // Until both are there.
        std::thread::sleep(SHORT / 2);
        // Who speaks something else, and who says nothing.
        let mut browser = TcpStream::connect(("127.0.0.1", meeting.port)).unwrap();
        browser.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let silent = TcpStream::connect(("127.0.0.1", meeting.port)).unwrap();
        assert_eq!(browser.read(&mut [0]).unwrap_or(0), 0, "it is answered nothing");
        let met = meet(&other, &hello(1, 3, &other), SHORT, || Ok(Vec::new()));
        fails(&met, &["has not found rank 0", "another run waits (one)"]);
        let met = meet(&meeting, &hello(1, 2, &meeting), LONG, || Ok(Vec::new()));
        fails(&met, &["rank 1 has WORLD_SIZE=2, and rank 0 has 3"]);
        let met = meet(&meeting, &hello(1, 3, &meeting), LONG, || Ok(Vec::new()));
        fails(&met, &["there are two processes with RANK=1"]);
        let met = meet(&meeting, &hello(0, 3, &meeting), LONG, || Ok(Vec::new()));
        fails(&met, &["there are two processes with RANK=0"]);
        let old = Hello { version: "0.0.1".to_owned(), ..hello(2, 3, &meeting) };
        fails(&meet(&meeting, &old, LONG, || Ok(Vec::new())), &["rank 2 is version 0.0.1, and rank 0 is"]);
        let met = meet(&meeting, &hello(2, 3, &meeting), LONG, || Ok(Vec::new()));
        assert_eq!(met.unwrap().local, (2, 3));
        assert!(rank_0.join().unwrap().is_ok() && rank_1.join().unwrap().is_ok());
        drop(silent);
    });
}

/// A process that came and has ended makes room for the one that was started in its place.
#[test]
fn one_that_is_started_again_takes_its_place() {
    let meeting = at("127.0.0.1", free_port());
    std::thread::scope(|scope| {
        let rank_0 = scope.spawn(|| meet(&meeting, &hello(0, 3, &meeting), LONG, || Ok(Vec::new())));
        std::thread::sleep(SHORT / 4);
        let mut first = TcpStream::connect(("127.0.0.1", meeting.port)).unwrap();
        message::send(&mut first, &message::Message::Hello(hello(1, 3, &meeting))).unwrap();
        std::thread::sleep(SHORT / 4);
        drop(first);
        std::thread::sleep(SHORT / 4);
        let rank_2 = scope.spawn(|| meet(&meeting, &hello(2, 3, &meeting), LONG, || Ok(Vec::new())));
        // All have come by now, one of them in vain.
        std::thread::sleep(SHORT / 4);
        let rank_1 = meet(&meeting, &hello(1, 3, &meeting), LONG, || Ok(Vec::new()));
        assert!(rank_1.is_ok() && rank_0.join().unwrap().is_ok() && rank_2.join().unwrap().is_ok());
    });
}

#[test]
fn what_one_cannot_go_on_for_all_learn() {
    for rank in [0, 1] {
        let meeting = at("127.0.0.1", free_port());
        let mut all: Vec<Hello> = (0..3).map(|rank| hello(rank, 3, &meeting)).collect();
        all[rank].problem = Some("there is no card".to_owned());
        let met = all_meet(&meeting, LONG, all);
        for (other, met) in met.iter().enumerate() {
            let whose =
                if rank == 1 && other != 1 { "rank 1 cannot go on: there is no card" } else { "there is no card" };
            fails(met, &[whose]);
        }
    }
    // What rank 0 finds when all are there.
    let meeting = at("127.0.0.1", free_port());
    let met = std::thread::scope(|scope| {
        let other = scope.spawn(|| meet(&meeting, &hello(1, 2, &meeting), LONG, || Ok(Vec::new())));
        let failed = || Err(Error::setup("NCCL has no network"));
        [meet(&meeting, &hello(0, 2, &meeting), LONG, failed), other.join().unwrap()]
    });
    met.iter().for_each(|met| fails(met, &["NCCL has no network"]));
}

#[test]
fn a_card_is_one_process_s_alone() {
    let meeting = at("127.0.0.1", free_port());
    let mut all: Vec<Hello> = (0..3).map(|rank| hello(rank, 3, &meeting)).collect();
    all[2].card = all[1].card.clone();
    for met in all_meet(&meeting, LONG, all) {
        fails(&met, &["ranks 1 and 2 have the same card", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"]);
    }
}

#[test]
fn the_environment_says_where() {
    let of = |variables: &[(&str, &str)]| {
        Meeting::of(&|name| variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned()))
    };
    assert_eq!(of(&[("MASTER_PORT", "1")]).unwrap(), None);
    let meeting = of(&[("MASTER_ADDR", "[fe80::1]"), ("MASTER_PORT", "29500")]).unwrap().unwrap();
    assert_eq!((&*meeting.host, meeting.port, meeting.is_taken), ("fe80::1", 29_500, false));
    assert!(meeting.addresses(5).unwrap().iter().all(|at| at.ip() == "fe80::1".parse::<IpAddr>().unwrap()));
    let run = |id| of(&[("MASTER_ADDR", "a"), ("MASTER_PORT", "5"), ("TORCHELASTIC_RUN_ID", id)]).unwrap().unwrap().run;
    assert_ne!(run("one"), run("two"));
    let last = of(&[("MASTER_ADDR", "a"), ("MASTER_PORT", "65535"), ("TORCHELASTIC_USE_AGENT_STORE", "True")]);
    assert_eq!(last.unwrap().unwrap().ports().collect::<Vec<_>>(), [65_535], "there is no other");
    for (port, said) in [
        (&[][..], "MASTER_PORT is not: set it"),
        (&[("MASTER_PORT", "0")], "MASTER_PORT=0: a port was expected"),
        (&[("MASTER_PORT", "70000")], "MASTER_PORT=70000: a port was expected"),
    ] {
        let error = of(&[&[("MASTER_ADDR", "a")], port].concat()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let launched = Launched { by: "torchrun", processes: 2, rank: Some(2), local: (None, None), by_mpi: false };
    let error = Hello::of(&launched, &meeting).unwrap_err().to_string();
    assert!(error.contains("RANK=2 of WORLD_SIZE=2: ranks are counted from 0 to 1"), "{error}");
}

/// Three that have met, each with what it says of a process that is lost.
fn watched(limit: Duration) -> BTreeMap<usize, (Lines, std::sync::mpsc::Receiver<String>)> {
    let meeting = at("127.0.0.1", free_port());
    let met = all_meet(&meeting, LONG, (0..3).map(|rank| hello(rank, 3, &meeting)).collect());
    let watch = |met: Result<Met>| {
        let (sender, lost) = channel();
        let tell = move |why: &str| _ = sender.send(why.to_owned());
        (Lines::watch(met.unwrap().lines, limit, tell).unwrap(), lost)
    };
    met.into_iter().map(watch).enumerate().collect()
}

#[test]
fn who_ends_without_a_word_is_lost_to_all() {
    for rank in 0..3 {
        let mut all = watched(LONG);
        let begun = Instant::now();
        all.remove(&rank);
        for (_, lost) in all.values() {
            let why = lost.recv_timeout(LONG).unwrap();
            assert!(why.contains(&format!("rank {rank} has ended")), "{why}");
        }
        assert!(begun.elapsed() < 5 * SHORT);
    }
}

#[test]
fn who_parts_is_not() {
    let all = watched(LONG);
    std::thread::scope(|scope| {
        for (rank, (lines, lost)) in all {
            scope.spawn(move || {
                std::thread::sleep(SHORT / 4 * rank as u32);
                lines.part();
                drop(lines);
                assert!(lost.recv_timeout(LONG).is_err(), "it was lost");
            });
        }
    });
}

/// One that is there, and says nothing, as when it was stopped.
#[test]
fn who_says_nothing_is_lost_at_the_limit() {
    let meeting = at("127.0.0.1", free_port());
    let met = all_meet(&meeting, LONG, (0..2).map(|rank| hello(rank, 2, &meeting)).collect());
    let mut met: Vec<Met> = met.into_iter().map(Result::unwrap).collect();
    let (sender, lost) = channel();
    let tell = move |why: &str| _ = sender.send(why.to_owned());
    let _lines = Lines::watch(met.remove(0).lines, 2 * SHORT, tell).unwrap();
    let why = lost.recv_timeout(LONG).unwrap();
    assert!(why.contains("rank 1 has said nothing for 1 s"), "{why}");
}
