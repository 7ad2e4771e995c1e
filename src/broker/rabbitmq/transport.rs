//! What the library reads from and writes to: the socket, with or without TLS, and between the two what makes
//! the broker's messages readable for it.
//!
//! The library takes a stream of another kind only from a runtime of another kind, so there is one here. It is
//! tokio but for the stream.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::tcp::AsyncTcpStream;

use super::frames::Frames;
use super::properties;

/// Bytes that are read at once.
const READ: usize = 16 * 1024;

type Socket = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A connection to the broker.
pub(super) struct Transport {
    socket: Socket,
    frames: Frames,
    read: Box<[u8]>,
    /// What the library may have, from `handed_out` on.
    out: Vec<u8>,
    handed_out: usize,
}

impl Transport {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            frames: Frames::new(properties::KNOWN_HEADERS),
            read: vec![0; READ].into(),
            out: Vec::new(),
            handed_out: 0,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // A read may hold nothing but the beginning of a frame that has to be whole.
        while this.handed_out == this.out.len() {
            this.out.clear();
            this.handed_out = 0;
            let read = ready!(Pin::new(&mut this.socket).poll_read(cx, &mut this.read))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            this.frames.take_in(&this.read[..read], &mut this.out);
        }
        let waiting = &this.out[this.handed_out..];
        let length = waiting.len().min(buffer.len());
        buffer[..length].copy_from_slice(&waiting[..length]);
        this.handed_out += length;
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// The runtime that the library is to use.
pub(super) type LibraryRuntime = Runtime<RuntimeParts<Tokio, Transports>>;

/// The runtime that the library is to use, and the one that connects for it.
pub(super) fn runtimes() -> (LibraryRuntime, Runtime<Tokio>) {
    let tokio = Tokio::current();
    let library = RuntimeParts::new(tokio.clone(), Transports(tokio.clone()));
    (Runtime::new(library), Runtime::new(tokio))
}

/// Tokio, with [`Transport`] for a stream.
#[derive(Debug, Clone)]
pub(super) struct Transports(Tokio);

impl Reactor for Transports {
    type TcpStream = Transport;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Transport::new(Socket::Plain(connecting.await?))) }
    }
}
