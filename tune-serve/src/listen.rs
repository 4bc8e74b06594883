//! Connections, until a signal comes.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tune_core::config::cli::signals;
use tune_core::config::complain;

use crate::http::router;
use crate::server::Server;

/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Answers connections until a signal comes, and then those that are there, for `grace` at most.
///
/// # Errors
/// The socket cannot be used.
pub(crate) async fn listen(server: &Arc<Server>, listener: TcpListener, grace: Duration) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(server.limits.connections));
    let (ending, is_ending) = watch::channel(false);
    let mut connections = JoinSet::new();
    let router = router(Arc::clone(server));
    while signals::requested().is_none() && !server.queue.is_ending() {
        while connections.try_join_next().is_some() {}
        // Who finds no place waits before it is accepted.
        let Ok(Ok(place)) = timeout(LOOK, Arc::clone(&places).acquire_owned()).await else { continue };
        let (stream, _) = match timeout(LOOK, listener.accept()).await {
            Err(_) => continue,
            Ok(Ok(accepted)) => accepted,
            // The client has gone, or there are too many open files.
            Ok(Err(_)) => {
                sleep(LOOK).await;
                continue;
            }
        };
        let (router, patience, is_ending) = (router.clone(), server.limits.patience, is_ending.clone());
        connections.spawn(async move {
            let _place = place;
            talk(stream, router, patience, is_ending).await;
        });
    }
    drop(listener);
    if let Some(signal) = signals::requested() {
        complain!("{signal}: what is being answered has {grace:?} to end; a second signal ends at once");
    }
    server.queue.end(grace);
    ending.send_replace(true);
    // What is computed has ended by then; what is left is clients that do not take it.
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(grace + server.limits.patience, all).await.is_err() {
        complain!("clients that do not take their answers are left");
    }
    Ok(())
}

/// Takes the address that was asked for. Without a key it must be one that only this machine reaches.
///
/// # Errors
/// It cannot be had, or others reach it.
pub(crate) fn bind(host: &str, port: u16, has_key: bool) -> Result<(TcpListener, SocketAddr), String> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "; `--port N` names another port, and at `--port 0` the system chooses one",
            _ => "",
        };
        format!("cannot listen at {host}:{port}: {error}{hint}")
    };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(failed)?.collect();
    if let Some(address) = addresses.iter().find(|address| !has_key && !address.ip().is_loopback()) {
        return Err(format!(
            "{address} can be reached from other machines, so clients must have an API key: --api-key-file FILE, or \
             TUNE_API_KEY in the environment"
        ));
    }
    let listener = TcpListener::bind(addresses.as_slice()).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Answers the requests of a connection. What breaks it off concerns nobody else.
async fn talk(stream: TcpStream, router: Router, patience: Duration, mut is_ending: watch::Receiver<bool>) {
    // Tokens of a stream are small and are to go at once.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(Patient { stream, patience, late: None });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience);
    let mut connection = pin!(builder.serve_connection(stream, TowerToHyperService::new(router)));
    let mut end = pin!(is_ending.changed());
    let mut is_told = false;
    let _ = poll_fn(|context| {
        if !is_told && end.as_mut().poll(context).is_ready() {
            is_told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    })
    .await;
}

/// A connection that is given up when its client takes nothing for long.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    late: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Fails where writing has been waited for too long.
    fn wait<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.late = None;
            return written;
        }
        let patience = self.patience;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(patience)));
        match late.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wait(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.wait(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::bind;

    #[test]
    fn a_port_that_is_taken_is_told_with_the_way_out() {
        let (_listener, address) = bind("127.0.0.1", 0, false).expect("a free port");
        let error = bind("127.0.0.1", address.port(), false).map(drop).expect_err("it is taken");
        assert!(error.starts_with(&format!("cannot listen at {address}: ")) && error.contains("--port 0"), "{error}");
    }
}
