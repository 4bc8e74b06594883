//! Rank 0: listens, and waits for the others.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::lines::Line;
use super::message::{Hello, Inbox, Message, send};
use super::{Meeting, Met, TO_TELL, guest, longer, named};
use crate::{Error, Result};

/// How often it is looked who has come.
const PAUSE: Duration = Duration::from_millis(10);
/// How long somebody who has come may say nothing.
const SILENCE: Duration = Duration::from_secs(10);
/// How long one that came and has ended may be replaced, when all others wait.
const REPLACED: Duration = Duration::from_secs(5);

/// Somebody who has come.
struct Visitor {
    stream: TcpStream,
    from: SocketAddr,
    inbox: Inbox,
    since: Instant,
}

/// A process of the run that waits.
struct Guest {
    hello: Hello,
    visitor: Visitor,
}

/// Listens, waits until all have come, and tells each what all need.
///
/// # Errors
/// As [`super::meet`].
pub(super) fn receive(
    meeting: &Meeting,
    me: &Hello,
    limit: Duration,
    make_id: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Met> {
    let listener = listen(meeting, me)?;
    let mut guests: Vec<Option<Guest>> = (1..me.world_size).map(|_| None).collect();
    let mut refused = Vec::new();
    let come = wait_for_all(&listener, me, limit, &mut guests, &mut refused);
    drop(listener);
    let said = match come.and_then(|()| all_fit(meeting, me, &guests, &refused, limit)).and_then(|()| make_id()) {
        Ok(id) => Ok((locals(me, &guests), id)),
        Err(error) => Err(error),
    };
    let mut lines = Vec::new();
    for (i, guest) in guests.into_iter().enumerate() {
        let Some(Guest { mut visitor, .. }) = guest else { continue };
        let message = match &said {
            Ok((locals, id)) => Message::Go { local: locals[i + 1], id: id.clone() },
            Err(error @ Error::Lost(_)) => Message::Lost(error.to_string()),
            Err(error) => Message::End(error.to_string()),
        };
        // Who is gone meanwhile is found out by the connection.
        _ = send(&mut visitor.stream, &message);
        lines.push(Line::new(i + 1, visitor.stream, visitor.inbox));
    }
    let (locals, id) = said?;
    Ok(Met { local: locals[0], id, lines })
}

/// Listens where the others will look.
fn listen(meeting: &Meeting, me: &Hello) -> Result<TcpListener> {
    let failed = |why: String| Error::setup(format!("rank 0 cannot wait for the others at {}: {why}", meeting.shown()));
    let (mut in_use, mut other) = (false, None);
    for port in meeting.ports() {
        for at in places(meeting, port)? {
            match TcpListener::bind(at) {
                Ok(listener) => {
                    listener.set_nonblocking(true).map_err(|e| failed(e.to_string()))?;
                    return Ok(listener);
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    // By torchrun's store, by another run; or by another rank 0 of this one.
                    if let Some(why) = guest::is_refused(at, me) {
                        return Err(Error::setup(why));
                    }
                    in_use = true;
                    break;
                }
                Err(error) => _ = other.get_or_insert(error),
            }
        }
    }
    Err(failed(match other {
        Some(error) if !in_use => error.to_string(),
        _ => "all of them are in use; set MASTER_PORT to a port that is free, the same in all processes (torchrun: --master-port)"
            .to_owned(),
    }))
}

/// Where rank 0 listens, the first that it can: where all are on this machine nobody else is to come, and else an address that others
/// reach this machine by, or the one by which it knows its own name, need not be the one that they come to.
fn places(meeting: &Meeting, port: u16) -> Result<Vec<SocketAddr>> {
    let at = |ip: IpAddr| SocketAddr::new(ip, port);
    let (any_4, any_6) = (at(Ipv4Addr::UNSPECIFIED.into()), at(Ipv6Addr::UNSPECIFIED.into()));
    match meeting.host.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => Ok(vec![at(ip)]),
        Ok(IpAddr::V4(_)) => Ok(vec![any_4]),
        Ok(IpAddr::V6(_)) => Ok(vec![any_6]),
        Err(_) if meeting.host == "localhost" => meeting.addresses(port),
        // IPv4 comes there, too, unless the system keeps them apart.
        Err(_) => Ok(vec![any_6, any_4]),
    }
}

/// Waits until every rank has said who it is. Where one cannot go on, the others have a moment to come and be told.
fn wait_for_all(
    listener: &TcpListener,
    me: &Hello,
    limit: Duration,
    guests: &mut [Option<Guest>],
    refused: &mut Vec<String>,
) -> Result<()> {
    let mut until = Instant::now() + limit;
    if me.problem.is_some() {
        until = until.min(Instant::now() + TO_TELL);
    }
    let (mut visitors, mut complete) = (Vec::new(), None);
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                if stream.set_nonblocking(true).is_ok() {
                    _ = stream.set_nodelay(true);
                    visitors.push(Visitor { stream, from, inbox: Inbox::default(), since: Instant::now() });
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) if [ErrorKind::ConnectionAborted, ErrorKind::Interrupted].contains(&error.kind()) => {}
            Err(error) => return Err(Error::setup(format!("rank 0 cannot wait for the others: {error}"))),
        }
        let mut waiting = Vec::new();
        for mut visitor in visitors {
            match visitor.inbox.next(&mut visitor.stream) {
                Ok(Some(Message::Hello(hello))) => {
                    let has_problem = hello.problem.is_some();
                    match admit(hello, visitor, me, guests) {
                        Some(why) => refused.push(why),
                        None if has_problem => until = until.min(Instant::now() + TO_TELL),
                        None => {}
                    }
                }
                Ok(None) if visitor.since.elapsed() < SILENCE => waiting.push(visitor),
                // A stranger.
                _ => {}
            }
        }
        visitors = waiting;
        if guests.iter().all(Option::is_some) {
            let since = complete.get_or_insert_with(Instant::now);
            let has_ended = |guest: &mut Guest| guest.visitor.inbox.next(&mut guest.visitor.stream).is_err();
            if !guests.iter_mut().flatten().any(has_ended) || since.elapsed() >= REPLACED {
                return Ok(());
            }
        }
        if Instant::now() >= until {
            return Ok(());
        }
    }
}

/// Lets a process wait that belongs to the run. Otherwise it is told why not; returned is what to say of that, if it is one of the others'
/// mistakes.
fn admit(hello: Hello, mut visitor: Visitor, me: &Hello, guests: &mut [Option<Guest>]) -> Option<String> {
    let (rank, from) = (hello.rank, visitor.from.ip());
    if hello.run != me.run {
        _ = send(&mut visitor.stream, &Message::Other(me.run.clone()));
        return None;
    }
    let refuse = |mut visitor: Visitor, why: String| {
        _ = send(&mut visitor.stream, &Message::End(why.clone()));
        Some(format!("{from}: {why}"))
    };
    if hello.world_size != me.world_size {
        let (theirs, ours) = (hello.world_size, me.world_size);
        return refuse(
            visitor,
            format!("rank {rank} has WORLD_SIZE={theirs}, and rank 0 has {ours}: it is to be the same"),
        );
    }
    if hello.version != me.version {
        let (theirs, ours) = (&hello.version, &me.version);
        return refuse(
            visitor,
            format!("rank {rank} is version {theirs}, and rank 0 is {ours}: start the same program"),
        );
    }
    let twice = |other: &str| {
        format!("there are two processes with RANK={rank}, at {other} and {from}: each is to have a number of its own")
    };
    if rank == 0 {
        return refuse(visitor, twice("MASTER_ADDR"));
    }
    let Some(place) = guests.get_mut(rank - 1) else {
        return refuse(visitor, format!("RANK={rank} of WORLD_SIZE={}: ranks are counted from 0", me.world_size));
    };
    // One that was there before and has ended makes room.
    if let Some(there) = place
        && there.visitor.inbox.next(&mut there.visitor.stream).is_ok()
    {
        let other = there.visitor.from.ip().to_string();
        return refuse(visitor, twice(&other));
    }
    // Who is gone again is found out later.
    _ = send(&mut visitor.stream, &Message::Wait);
    *place = Some(Guest { hello, visitor });
    None
}

/// Whether all are there and can go on together.
fn all_fit(meeting: &Meeting, me: &Hello, guests: &[Option<Guest>], refused: &[String], limit: Duration) -> Result<()> {
    let there = || std::iter::once(me).chain(guests.iter().flatten().map(|guest| &guest.hello));
    if let Some((rank, problem)) = there().find_map(|hello| Some((hello.rank, hello.problem.as_ref()?))) {
        return Err(Error::setup(match rank {
            0 => problem.clone(),
            _ => format!("rank {rank} cannot go on: {problem}"),
        }));
    }
    let missing: Vec<usize> = (1..me.world_size).filter(|rank| guests[rank - 1].is_none()).collect();
    if !missing.is_empty() {
        let (shown, seconds) = (meeting.shown(), limit.as_secs());
        let refused = match refused {
            [] => String::new(),
            some => format!(" Who was refused: {}.", some.join("; ")),
        };
        return Err(Error::lost(format!(
            "{} of {} did not come to {shown} within {seconds} s: see what they say; a firewall between the machines, or another \
             MASTER_ADDR, keeps them from here, too.{refused} {}",
            named(&missing),
            me.world_size,
            longer()
        )));
    }
    let cards: Vec<(usize, &str)> = there().map(|hello| (hello.rank, hello.card.as_str())).collect();
    for (i, (second, card)) in cards.iter().enumerate() {
        if let Some((first, _)) = cards[..i].iter().find(|(_, other)| !card.is_empty() && other == card) {
            return Err(Error::setup(format!(
                "ranks {first} and {second} have the same card: start as many processes on a machine as it has cards, each with a \
                 LOCAL_RANK of its own, and have CUDA_VISIBLE_DEVICES, if it is set, show all of them to each"
            )));
        }
    }
    Ok(())
}

/// Of each rank its number among those of its machine, and how many these are.
fn locals(me: &Hello, guests: &[Option<Guest>]) -> Vec<(usize, usize)> {
    let all: Vec<&Hello> = std::iter::once(me).chain(guests.iter().flatten().map(|guest| &guest.hello)).collect();
    let of = |(i, hello): (usize, &&Hello)| {
        let here = |some: &[&Hello]| some.iter().filter(|other| other.machine == hello.machine).count();
        (hello.local.0.unwrap_or_else(|| here(&all[..i])), hello.local.1.unwrap_or_else(|| here(&all)))
    };
    all.iter().enumerate().map(of).collect()
}
