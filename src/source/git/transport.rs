//! One fetch by libgit2, over our HTTP.
//!
//! libgit2 finds its transport by the scheme of the address. Ours answers to a scheme of its own,
//! so that libgit2's own network code is never used, and takes the fetch that it belongs to from the
//! thread it runs on.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use git2::transport::{self, Service, SmartSubtransport, SmartSubtransportStream, Transport};
use git2::{AutotagOption, ConfigLevel, FetchOptions, Oid, Remote, RemoteCallbacks, Repository};
use image_builder_actors::model::fault::{Fault, Reason};

use super::advertisement::Advertisement;
use super::remote::{self, Connection};
use super::repository::git_fault;
use crate::source::fault;
use crate::source::http::Body;
use crate::source::session::{Session, size};

const SCHEME: &str = "image-builder";
const ADDRESS: &str = "image-builder://repository";

/// Sets libgit2 up, once for the process: our transport, and no configuration from anywhere.
pub(crate) fn set_up_libgit2() -> Result<(), String> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    DONE.get_or_init(|| set_up_once().map_err(|error| error.message().to_owned())).clone()
}

#[allow(
    unsafe_code,
    reason = "libgit2 is set up for the whole process; each call says why it is sound"
)]
fn set_up_once() -> Result<(), git2::Error> {
    for level in
        [ConfigLevel::System, ConfigLevel::Global, ConfigLevel::XDG, ConfigLevel::ProgramData]
    {
        // SAFETY: these are process-wide variables; the caller's `OnceLock` lets one thread in, and
        // no repository is opened before a connector exists.
        unsafe { git2::opts::set_search_path(level, "")? };
    }
    // SAFETY: the same; no transport is made before a connector exists.
    unsafe { transport::register(SCHEME, make_transport) }
}

fn make_transport(remote: &Remote<'_>) -> Result<Transport, git2::Error> {
    let exchange = CURRENT
        .with_borrow(Clone::clone)
        .ok_or_else(|| git2::Error::from_str("no fetch is under way on this thread"))?;
    Transport::smart(remote, true, Subtransport(exchange))
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Exchange>>> = const { RefCell::new(None) };
}

/// What one fetch talks about, and the fault that it ended with.
struct Exchange {
    connection: Arc<Connection>,
    advertisement: Vec<u8>,
    /// libgit2 only knows that something failed: what it was is kept here.
    fault: Mutex<Option<Fault>>,
}

impl Exchange {
    fn fail(&self, fault: Fault) -> io::Error {
        let text = fault.message.replace('\0', "");
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        io::Error::other(text)
    }

    fn refuse(&self, refusal: String) -> io::Error {
        if refusal.contains(NOT_OURS) {
            return io::Error::other(refusal);
        }
        let label = &self.connection.address.label;
        let message = format!("The server does not give out the {label}: {refusal}.");
        self.fail(fault(Reason::ForgeFailed, message))
    }
}

/// The words of git's upload-pack about an object that it does not give out.
const NOT_OURS: &str = "not our ref";

/// How a fetch fails.
pub(super) enum FetchError {
    /// The server does not give out one of the wanted objects.
    NotOurs,
    Fault(Fault),
}

/// Fetches the wanted objects with `depth` commits of history (0 = all, [`i32::MAX`] = all, where
/// there is a part already), and puts them under [`wanted_ref`](super::advertisement::wanted_ref)s.
pub(super) fn fetch(
    connection: &Arc<Connection>,
    advertisement: &Advertisement,
    wanted: &[Oid],
    depth: i32,
    repository: &Repository,
) -> Result<(), FetchError> {
    let exchange = Arc::new(Exchange {
        connection: connection.clone(),
        advertisement: advertisement.listing_only(wanted),
        fault: Mutex::new(None),
    });
    let session = &connection.http.session;
    CURRENT.set(Some(exchange.clone()));
    let result = fetch_with_libgit2(session, depth, repository);
    CURRENT.set(None);

    let Err(error) = result else { return Ok(()) };
    session.check().map_err(FetchError::Fault)?;
    if let Some(fault) = exchange.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(FetchError::Fault(fault));
    }
    if error.message().contains(NOT_OURS) {
        return Err(FetchError::NotOurs);
    }
    Err(FetchError::Fault(git_fault(&error)))
}

fn fetch_with_libgit2(
    session: &Session,
    depth: i32,
    repository: &Repository,
) -> Result<(), git2::Error> {
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|done| {
        session.note_now_and_then(|| {
            format!(
                "received {} of {} objects, {}",
                done.received_objects(),
                done.total_objects(),
                size(done.received_bytes() as u64)
            )
        });
        !session.cancel.is_cancelled()
    });
    callbacks.sideband_progress(|_| !session.cancel.is_cancelled());
    let mut options = FetchOptions::new();
    options
        .remote_callbacks(callbacks)
        .depth(depth)
        .download_tags(AutotagOption::None)
        .update_fetchhead(false);
    let mut remote = repository.remote_anonymous(ADDRESS)?;
    remote.fetch(&["+refs/wanted/*:refs/wanted/*"], Some(&mut options), None)
}

/// Why the server refuses, where a piece of its answer begins with that: libgit2 would only say that
/// it met an unexpected packet.
fn refusal(piece: &[u8]) -> Option<String> {
    let text = piece.get(4..)?.strip_prefix(b"ERR ")?;
    let text = text.split(|byte| matches!(byte, b'\n' | 0)).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

struct Subtransport(Arc<Exchange>);

impl SmartSubtransport for Subtransport {
    fn action(
        &self,
        _url: &str,
        service: Service,
    ) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        match service {
            Service::UploadPackLs => Ok(Box::new(io::Cursor::new(self.0.advertisement.clone()))),
            Service::UploadPack => Ok(Box::new(Round {
                exchange: self.0.clone(),
                request: Vec::new(),
                answer: None,
                begun: false,
                piece: Bytes::new(),
            })),
            Service::ReceivePackLs | Service::ReceivePack => {
                Err(git2::Error::from_str("nothing is ever pushed"))
            }
        }
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One request and its answer.
struct Round {
    exchange: Arc<Exchange>,
    request: Vec<u8>,
    answer: Option<Body>,
    /// Whether a first piece of the answer was seen.
    begun: bool,
    piece: Bytes,
}

impl Write for Round {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.request.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Round {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { exchange, request, answer, begun, piece } = self;
        if answer.is_none() {
            let request = std::mem::take(request);
            let body = remote::upload_pack(&exchange.connection, request)
                .map_err(|fault| exchange.fail(fault))?;
            *answer = Some(body);
        }
        let Some(answer) = answer else { return Ok(0) };
        while piece.is_empty() {
            let next = exchange.connection.http.session.runtime.block_on(answer.next());
            match next.map_err(|fault| exchange.fail(fault))? {
                Some(next) => *piece = next,
                None => return Ok(0),
            }
            if !std::mem::replace(begun, true)
                && let Some(refusal) = refusal(piece)
            {
                return Err(exchange.refuse(refusal));
            }
        }
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece.split_to(length));
        Ok(length)
    }
}
