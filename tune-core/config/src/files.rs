//! Files that users name, opened without waiting for ever and read without filling the memory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long to wait for a program that writes to a pipe.
const WRITER: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };

/// A file that is open for reading.
#[derive(Debug)]
pub enum Opened {
    /// One that can be read at any position, again and again.
    File(File),
    /// A pipe, such as `<(command)` of a shell: it is read once, from its beginning to its end.
    Pipe(File),
}

/// Opens a file or a pipe.
///
/// # Errors
/// It cannot be opened, nothing writes to the pipe, or it is a folder, a device or a socket.
pub fn open(path: &Path) -> io::Result<Opened> {
    match kind(&fs::metadata(path)?) {
        Kind::File => File::open(path).map(Opened::File),
        Kind::Pipe => open_pipe(path).map(Opened::Pipe),
        Kind::Other(what) => Err(no_file(what)),
    }
}

/// Opens what can be read at any position.
///
/// # Errors
/// As [`open`]; and for a pipe.
pub fn open_file(path: &Path) -> io::Result<File> {
    match kind(&fs::metadata(path)?) {
        Kind::File => File::open(path),
        Kind::Pipe => Err(no_file("a pipe")),
        Kind::Other(what) => Err(no_file(what)),
    }
}

/// Reads a file or a pipe of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; and where it is longer.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let bytes = read_beginning(path, limit.saturating_add(1))?;
    if bytes.len() as u64 > limit {
        let message = format!("it is longer than {limit} bytes, which no file of this kind is");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Reads the first bytes of a file or a pipe, at most `limit`.
///
/// # Errors
/// As [`open`].
pub fn read_beginning(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let (Opened::File(file) | Opened::Pipe(file)) = open(path)?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

enum Kind {
    File,
    #[cfg_attr(not(unix), expect(dead_code, reason = "files elsewhere are no pipes"))]
    Pipe,
    Other(&'static str),
}

fn kind(meta: &fs::Metadata) -> Kind {
    if meta.is_file() {
        return Kind::File;
    }
    if meta.is_dir() {
        return Kind::Other("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        let kind = meta.file_type();
        if kind.is_fifo() {
            return Kind::Pipe;
        }
        if kind.is_socket() {
            return Kind::Other("a socket");
        }
    }
    Kind::Other("a device")
}

fn no_file(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, and a file is expected"))
}

/// Opening a pipe waits for a program that writes to it, so a thread does.
fn open_pipe(path: &Path) -> io::Result<File> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    thread::Builder::new().name("open".to_owned()).spawn(move || drop(sender.send(File::open(path))))?;
    receiver.recv_timeout(WRITER).unwrap_or_else(|_| {
        let message = format!("it is a pipe, and nothing has begun to write to it for {} seconds", WRITER.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    })
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    fn said<T>(result: io::Result<T>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn special_files_neither_block_nor_fill_the_memory() {
        let folder = std::env::temp_dir().join(format!("tune-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(said(read(Path::new("/dev/zero"), 10)), "it is a device, and a file is expected");
        assert_eq!(said(read(&folder, 10)), "it is a folder, and a file is expected");
        assert!(said(read(&folder.join("none"), 10)).contains("No such file"));

        let file = folder.join("file");
        fs::write(&file, "0123456789").unwrap();
        assert_eq!(read(&file, 10).unwrap(), b"0123456789");
        assert_eq!(said(read(&file, 9)), "it is longer than 9 bytes, which no file of this kind is");
        assert_eq!(read_beginning(&file, 3).unwrap(), b"012");

        let pipe = folder.join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(said(read(&pipe, 10)).starts_with("it is a pipe, and nothing has begun to write to it"));
        assert_eq!(said(open_file(&pipe)), "it is a pipe, and a file is expected");
        // Another, for a thread still waits for the first.
        let pipe = folder.join("written");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let writer = thread::spawn({
            let pipe = pipe.clone();
            move || fs::write(pipe, "from a program").unwrap()
        });
        assert_eq!(read(&pipe, 100).unwrap(), b"from a program");
        writer.join().unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }
}
