//! What is said where processes meet: a mark, the length, and JSON.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use serde::{Deserialize, Serialize};

/// Begins each message: whoever speaks something else is not meant. No request of torchrun's store begins like that.
const MARK: [u8; 4] = *b"tune";
/// No message is longer.
const LONGEST: usize = 64 << 10;

/// What a process says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::distributed) struct Hello {
    /// Which run it belongs to.
    pub(super) run: String,
    /// The program's version.
    pub(super) version: String,
    pub(in crate::distributed) world_size: usize,
    pub(in crate::distributed) rank: usize,
    /// Its number among those of its machine, and how many these are, as far as it was told.
    pub(super) local: (Option<usize>, Option<usize>),
    /// Its machine.
    pub(super) machine: String,
    /// What tells its card from all others; empty, if nothing does.
    pub(in crate::distributed) card: String,
    /// Why it cannot go on.
    pub(in crate::distributed) problem: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// Of who comes.
    Hello(Hello),
    /// To who comes: the others are waited for.
    Wait,
    /// To who belongs to another run, whose name follows.
    Other(String),
    /// All are there.
    Go { local: (usize, usize), id: Vec<u8> },
    /// The run ends, and why.
    End(String),
    /// Still there.
    Alive,
    /// Of each: what was to be done together is done. Of rank 0: that of all.
    Parted,
    /// A process is lost, and which.
    Lost(String),
}

/// Sends a message.
pub(super) fn send(stream: &mut TcpStream, message: &Message) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut bytes = MARK.to_vec();
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text);
    stream.write_all(&bytes)
}

/// What has come of a stream that does not wait, and was not taken yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    closed: bool,
}

impl Inbox {
    /// The next message, if it is there.
    ///
    /// # Errors
    /// The other side is gone, or speaks something else.
    pub(super) fn next(&mut self, stream: &mut TcpStream) -> io::Result<Option<Message>> {
        self.read(stream);
        if !MARK.starts_with(&self.bytes[..self.bytes.len().min(MARK.len())]) {
            return Err(ErrorKind::InvalidData.into());
        }
        let Some(&head) = self.bytes.first_chunk::<8>() else { return self.nothing() };
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if len > LONGEST {
            return Err(ErrorKind::InvalidData.into());
        }
        if self.bytes.len() < head.len() + len {
            return self.nothing();
        }
        let message = serde_json::from_slice(&self.bytes[head.len()..head.len() + len])?;
        self.bytes.drain(..head.len() + len);
        Ok(Some(message))
    }

    fn nothing(&self) -> io::Result<Option<Message>> {
        if self.closed { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(None) }
    }

    fn read(&mut self, stream: &mut TcpStream) {
        let mut some = [0; 4096];
        // More than a message is not wanted at a time.
        while !self.closed && self.bytes.len() <= LONGEST {
            match stream.read(&mut some) {
                Ok(0) => self.closed = true,
                Ok(count) => self.bytes.extend(&some[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
    }
}
