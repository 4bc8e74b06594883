//! One file: into a part that is kept when the connection breaks, checked, and only then under its name.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::cache::make_parent;
use crate::http::{header, part, path};
use crate::{Error, Event, File, Hub, Kind, Repo, Result};

/// How often in a row a connection may break without a byte more than before.
const BREAKS: u32 = 3;

impl Hub {
    /// Makes sure that the contents of `file` are in the cache.
    ///
    /// # Errors
    /// It cannot be had or written, or is not what the hub said it would be.
    pub(crate) fn fetch(
        &self,
        repo: &Repo,
        commit: &str,
        file: &File,
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let blob = self.blob(repo, &file.etag);
        if is_there(&blob, file) {
            return Ok(());
        }
        make_parent(&blob)?;
        let partial = blob.with_extension("part");
        let failed = || Error::io("write", &partial);
        let mut out = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&partial)
            .map_err(Error::io("write", &partial))?;
        // Two that write to one part would spoil it.
        if let Err(TryLockError::WouldBlock) = out.try_lock() {
            events(Event::Note(&format!("another process is downloading {}; waiting for it", file.name)));
            out.lock().map_err(failed())?;
            if is_there(&blob, file) {
                return Ok(());
            }
        }
        let mut done = out.metadata().map_err(failed())?.len();
        if done > file.size {
            out.set_len(0).map_err(failed())?;
            done = 0;
        }
        events(Event::Begin { file: &file.name, size: file.size, done });
        let (mut furthest, mut breaks) = (done, 0);
        while done < file.size {
            let broken = self.go_on(repo, commit, file, &mut out, &mut done, &partial, events)?;
            if done > furthest {
                (furthest, breaks) = (done, 0);
            } else if let Some(why) = broken {
                breaks += 1;
                if breaks == BREAKS {
                    return Err(match why {
                        Break::Network(why) => Error::Unreachable {
                            host: self.host().to_owned(),
                            why: format!("{why}; {} goes on from byte {done} next time", file.name),
                        },
                        Break::End => Error::Damaged(format!(
                            "{} of {repo} is {} bytes long, says {}, but it sends {done}",
                            file.name,
                            file.size,
                            self.host()
                        )),
                    });
                }
                std::thread::sleep(self.pause * 2u32.pow(breaks - 1));
            }
        }
        if let Some(expected) = &file.sha256 {
            let found = sha256(&mut out).map_err(Error::io("read", &partial))?;
            if found != *expected {
                let _ = fs::remove_file(&partial);
                return Err(Error::Damaged(format!(
                    "{} of {repo} was damaged on its way (SHA-256 {found} instead of {expected}); it was deleted: try again",
                    file.name
                )));
            }
        }
        out.sync_all().map_err(failed())?;
        fs::rename(&partial, &blob).map_err(Error::io("write", &blob))?;
        events(Event::End);
        Ok(())
    }

    /// One request for what is missing; how it ended, if too early.
    #[allow(clippy::too_many_arguments)]
    fn go_on(
        &self,
        repo: &Repo,
        commit: &str,
        file: &File,
        out: &mut fs::File,
        done: &mut u64,
        partial: &Path,
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<Option<Break>> {
        let kind = if repo.kind == Kind::Dataset { "datasets/" } else { "" };
        let address = format!("{kind}{}/resolve/{}/{}", path(&repo.name), part(commit), path(&file.name));
        let mut response = match self.get(&address, *done) {
            Ok(response) => response,
            Err(Error::Unreachable { why, .. }) => return Ok(Some(Break::Network(why))),
            Err(error) => return Err(error),
        };
        let begins = format!("bytes {done}-");
        let goes_on = response.status() == 206
            && header(&response, "content-range").is_some_and(|range| range.starts_with(&begins));
        if !goes_on {
            // The server starts over, or has no more than what is there.
            out.set_len(0).map_err(Error::io("write", partial))?;
            *done = 0;
            events(Event::Begin { file: &file.name, size: file.size, done: 0 });
        }
        match response.status().as_u16() {
            200 => {}
            206 if goes_on => {}
            206 | 416 => return Ok(Some(Break::End)),
            _ => return Err(self.refusal(repo, &response)),
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(Some(Break::End)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(Break::Network(error.to_string()))),
            };
            if *done + count as u64 > file.size {
                return Err(Error::Damaged(format!(
                    "{} of {repo} is {} bytes long, says {}, but it sends more",
                    file.name,
                    file.size,
                    self.host()
                )));
            }
            out.write_all(&buffer[..count]).map_err(Error::io("write", partial))?;
            *done += count as u64;
            events(Event::Bytes(count as u64));
        }
    }
}

/// Why no more came.
enum Break {
    Network(String),
    /// The server is done, as it sees it.
    End,
}

fn is_there(blob: &Path, file: &File) -> bool {
    fs::metadata(blob).is_ok_and(|meta| meta.len() == file.size)
}

fn sha256(file: &mut fs::File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => hash.update(&buffer[..count]),
        }
    }
}
