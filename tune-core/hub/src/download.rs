//! One file: into a part that is kept when the connection breaks, checked, and only then under its name.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use crate::cache::{Has, make_parent, sync_parent};
use crate::http::{header, part, path};
use crate::{Error, Event, File, Hub, Kind, Repo, Result, plain, room};

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
        let blob = self.blob(repo, file.hash.digits());
        match self.has(repo, file, events)? {
            Has::Whole => return Ok(()),
            Has::Damaged(what) => {
                let name = plain(&file.name);
                events(Event::Note(&format!("{name} is damaged in the cache ({what}); it is fetched again")));
            }
            Has::Nothing => {}
        }
        make_parent(&blob)?;
        let partial = blob.with_extension("part");
        let failed = || Error::io("write", &partial);
        let out = OpenOptions::new().create(true).read(true).append(true).open(&partial).map_err(failed())?;
        // Two that write to one part would spoil it.
        if let Err(TryLockError::WouldBlock) = out.try_lock() {
            events(Event::Note(&format!("another process is downloading {}; waiting for it", plain(&file.name))));
            out.lock().map_err(failed())?;
            if matches!(self.has(repo, file, events)?, Has::Whole) {
                return Ok(());
            }
        }
        let done = out.metadata().map_err(failed())?.len();
        room::check(&blob, file.size.saturating_sub(done))?;
        let kind = if repo.kind == Kind::Dataset { "datasets/" } else { "" };
        let address = format!("{kind}{}/resolve/{}/{}", path(&repo.name), part(commit), path(&file.name));
        let mut download = Download { hub: self, repo, file, address, out, partial: partial.clone(), done, events };
        download.run()?;
        download.check()?;
        fs::rename(&partial, &blob).map_err(Error::io("write", &blob))?;
        sync_parent(&blob)?;
        self.checked(repo, file);
        events(Event::End);
        Ok(())
    }
}

/// A file on its way.
struct Download<'a> {
    hub: &'a Hub,
    repo: &'a Repo,
    file: &'a File,
    address: String,
    out: fs::File,
    partial: PathBuf,
    /// Bytes that are there.
    done: u64,
    events: &'a mut dyn FnMut(Event<'_>),
}

/// Why no more came.
enum Break {
    Network(String),
    /// The server is done, as it sees it.
    End,
}

impl Download<'_> {
    /// Asks until all is there.
    fn run(&mut self) -> Result<()> {
        if self.done > self.file.size {
            self.start_over()?;
        } else {
            self.begin();
        }
        let (mut furthest, mut breaks) = (self.done, 0);
        while self.done < self.file.size {
            let why = self.go_on()?;
            if self.done > furthest {
                (furthest, breaks) = (self.done, 0);
                continue;
            }
            breaks += 1;
            if breaks == BREAKS {
                return Err(self.given_up(why));
            }
            std::thread::sleep(self.hub.pause * 2u32.pow(breaks - 1));
        }
        Ok(())
    }

    /// One request for what is missing, until it ends or breaks.
    fn go_on(&mut self) -> Result<Break> {
        let mut response = match self.hub.get(&self.address, self.done) {
            Ok(response) => response,
            Err(Error::Unreachable { why, .. }) => return Ok(Break::Network(why)),
            Err(error) => return Err(error),
        };
        let from = format!("bytes {}-", self.done);
        match response.status().as_u16() {
            206 if header(&response, "content-range").is_some_and(|range| range.starts_with(&from)) => {}
            200 => self.start_over()?,
            // Not what was asked for; or it has no more than what is there.
            206 | 416 => {
                self.start_over()?;
                return Ok(Break::End);
            }
            _ => return Err(self.hub.refusal(self.repo, &response)),
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(Break::End),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Break::Network(error.to_string())),
            };
            if self.done + count as u64 > self.file.size {
                return Err(self.wrong_size("more"));
            }
            self.out.write_all(&buffer[..count]).map_err(self.failed())?;
            self.done += count as u64;
            (self.events)(Event::Bytes(count as u64));
        }
    }

    fn begin(&mut self) {
        (self.events)(Event::Begin { file: &plain(&self.file.name), size: self.file.size, done: self.done });
    }

    fn start_over(&mut self) -> Result<()> {
        if self.done > 0 {
            self.out.set_len(0).map_err(self.failed())?;
            self.done = 0;
            self.begin();
        }
        Ok(())
    }

    /// What is there is what was promised, and on the disk.
    fn check(&mut self) -> Result<()> {
        self.out.sync_all().map_err(self.failed())?;
        if let Err(what) = self.file.hash.check(&self.partial).map_err(Error::io("read", &self.partial))? {
            let _ = fs::remove_file(&self.partial);
            return Err(Error::Damaged(format!(
                "{} of {} was damaged on its way ({what}); it was deleted: try again",
                self.file.name, self.repo
            )));
        }
        Ok(())
    }

    fn given_up(&self, why: Break) -> Error {
        match why {
            Break::Network(why) => Error::Unreachable {
                host: self.hub.host().to_owned(),
                why: format!("{why}; {} goes on from byte {} next time", self.file.name, self.done),
            },
            Break::End => self.wrong_size("less"),
        }
    }

    fn wrong_size(&self, sent: &str) -> Error {
        let (File { name, size, .. }, host) = (self.file, self.hub.host());
        Error::Damaged(format!("{name} of {} is {size} bytes long, says {host}, but it sends {sent}", self.repo))
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::io("write", &self.partial)
    }
}
