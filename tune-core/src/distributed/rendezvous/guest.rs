//! All ranks but 0: look for rank 0, and wait to be told that all are there.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::lines::Line;
use super::message::{Hello, Inbox, Message, send};
use super::{Meeting, Met, TO_TELL, longer};
use crate::{Error, Result};

/// The pause between two rounds of asking.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause between two looks for an answer.
const LOOK: Duration = Duration::from_millis(10);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long somebody who is asked may say nothing.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a name that is not known may become so: where machines are started together, names come late.
const UNKNOWN: Duration = Duration::from_secs(60);
/// How much longer than itself a process waits for rank 0, which has begun later.
const LATER: Duration = Duration::from_secs(30);

/// What became of a question.
enum Answer {
    /// Rank 0 is there, and waits for others.
    Waits(TcpStream, Inbox),
    /// It is another run.
    Other(String),
    /// This process cannot take part.
    Refused(String),
    /// Nobody is there, or somebody else.
    Nobody(String),
}

/// Looks for rank 0 and waits until all have come.
///
/// # Errors
/// As [`super::meet`].
pub(super) fn join(meeting: &Meeting, me: &Hello, limit: Duration) -> Result<Met> {
    let (begun, has_problem) = (Instant::now(), me.problem.is_some());
    let longest = if has_problem { limit.min(TO_TELL) } else { limit };
    let mine = |error: Error| me.problem.clone().map_or(error, Error::setup);
    let (stream, inbox) = find(meeting, me, begun, longest).map_err(mine)?;
    match (&me.problem, wait(stream, inbox, meeting, longest + LATER)) {
        // Rank 0 knows it, and tells the others.
        (Some(problem), _) => Err(Error::setup(problem.clone())),
        (None, met) => met,
    }
}

/// Whether a process at this address refuses this one, and why.
pub(super) fn is_refused(at: SocketAddr, me: &Hello) -> Option<String> {
    match ask(at, me) {
        Answer::Refused(why) => Some(why),
        _ => None,
    }
}

/// Asks at one port after the other, until rank 0 is there.
fn find(meeting: &Meeting, me: &Hello, begun: Instant, limit: Duration) -> Result<(TcpStream, Inbox)> {
    loop {
        let mut said = String::new();
        for port in meeting.ports() {
            let addresses = match meeting.addresses(port) {
                Ok(addresses) => addresses,
                Err(error) if begun.elapsed() >= limit.min(UNKNOWN) => return Err(error),
                Err(_) => break,
            };
            for at in addresses {
                match ask(at, me) {
                    Answer::Waits(stream, inbox) => return Ok((stream, inbox)),
                    Answer::Refused(why) => return Err(Error::setup(why)),
                    Answer::Other(run) => said = format!("at {at} another run waits ({run})"),
                    Answer::Nobody(why) if said.is_empty() => said = format!("{at}: {why}"),
                    Answer::Nobody(_) => {}
                }
                if begun.elapsed() >= limit {
                    let (rank, shown, seconds) = (me.rank, meeting.shown(), limit.as_secs());
                    return Err(Error::lost(format!(
                        "rank {rank} of {} has not found rank 0 at {shown} within {seconds} s ({said}): does it run there, and \
                         does no firewall keep these ports closed? {}",
                        me.world_size,
                        longer()
                    )));
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Asks whoever is at an address.
fn ask(at: SocketAddr, me: &Hello) -> Answer {
    let nobody = |error: std::io::Error| Answer::Nobody(error.to_string());
    let mut stream = match TcpStream::connect_timeout(&at, CONNECT) {
        Ok(stream) => stream,
        Err(error) => return nobody(error),
    };
    _ = stream.set_nodelay(true);
    if let Err(error) = send(&mut stream, &Message::Hello(me.clone())).and_then(|()| stream.set_nonblocking(true)) {
        return nobody(error);
    }
    let (mut inbox, asked) = (Inbox::default(), Instant::now());
    while asked.elapsed() < SILENCE {
        match inbox.next(&mut stream) {
            Ok(Some(Message::Wait)) => return Answer::Waits(stream, inbox),
            Ok(Some(Message::Other(run))) => return Answer::Other(run),
            Ok(Some(Message::End(why))) => return Answer::Refused(why),
            Ok(None) => std::thread::sleep(LOOK),
            Ok(Some(_)) | Err(_) => break,
        }
    }
    Answer::Nobody("another program listens there".to_owned())
}

/// Waits until all have come.
fn wait(mut stream: TcpStream, mut inbox: Inbox, meeting: &Meeting, limit: Duration) -> Result<Met> {
    let begun = Instant::now();
    loop {
        match inbox.next(&mut stream) {
            Ok(Some(Message::Go { local, id })) => {
                return Ok(Met { local, id, lines: vec![Line::new(0, stream, inbox)] });
            }
            Ok(Some(Message::End(why))) => return Err(Error::setup(why)),
            Ok(Some(Message::Lost(why))) => return Err(Error::lost(why)),
            Ok(None) if begun.elapsed() < limit => std::thread::sleep(LOOK),
            Ok(None) => {
                let (shown, seconds) = (meeting.shown(), limit.as_secs());
                return Err(Error::lost(format!(
                    "rank 0 at {shown} has not said within {seconds} s that all are there: it hangs, or cannot be reached. {}",
                    longer()
                )));
            }
            Ok(Some(_)) | Err(_) => {
                return Err(Error::lost(
                    "rank 0 has ended before all had come: its own log, or the standard error, says why".to_owned(),
                ));
            }
        }
    }
}
