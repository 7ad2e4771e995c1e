//! The service by which the engine fetches the build context and the Dockerfile.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Poll};

use futures_util::Stream;
use futures_util::stream::unfold;
use image_builder_actors::model::fault::Fault;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::packet::{Kind, Packet};
use super::sender::{self, Listed};
use crate::engine::buildkit::context::{Context, Unsent};
use crate::engine::buildkit::times::BuildTimes;

/// The method, as the engine asks whether it is there.
pub(super) const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";
/// How the engine names the directory that is built.
const CONTEXT: &str = "context";
/// How the engine names the directory of the Dockerfile.
const DOCKERFILE: &str = "dockerfile";
/// Packets that wait for the network at the most.
const PACKETS_AHEAD: usize = 32;

/// What one build has to give.
#[derive(Debug)]
pub(in crate::engine) struct Files {
    context: Arc<Context>,
    times: Arc<BuildTimes>,
    failure: Mutex<Option<Failure>>,
}

/// Why files were not sent to their end.
#[derive(Debug)]
enum Failure {
    /// The tree cannot be sent.
    Unusable(Fault),
    /// Sending it panicked.
    Panic(JoinError),
}

impl Files {
    pub(in crate::engine) fn new(context: Context, times: Arc<BuildTimes>) -> Self {
        Self { context: Arc::new(context), times, failure: Mutex::default() }
    }

    pub(in crate::engine) fn context(&self) -> &Context {
        &self.context
    }

    /// The text of the Dockerfile.
    pub(in crate::engine) fn dockerfile(&self) -> &[u8] {
        &self.context.dockerfile
    }

    /// The cause of whatever the engine says of a context that it has but half of. A panic while it was
    /// sent goes on here.
    pub(in crate::engine) fn failure(&self) -> Option<Fault> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()? {
            Failure::Unusable(fault) => Some(fault),
            Failure::Panic(panic) => {
                panic.try_into_panic().map_or(None, |panic| resume_unwind(panic))
            }
        }
    }

    fn failed(&self, failure: Failure) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }

    /// Sends what of a directory the engine asks for. It asks for the files that it does not have.
    async fn send(&self, wanted: Wanted, mut asks: Streaming<Packet>, says: mpsc::Sender<Packet>) {
        let listed = Arc::<Listed>::default();
        let listing = {
            let (listed, says, times) = (listed.clone(), says.clone(), self.times.clone());
            let context = self.context.clone();
            crate::blocking::begin(move || match wanted {
                Wanted::Dockerfile { name } => {
                    sender::list_dockerfile(name, &context.dockerfile, &times, &listed, &says)
                }
                Wanted::Context { paths } => {
                    let asked = context.follow(&paths);
                    sender::list(&context, &asked, &times, &listed, &says)
                }
            })
        };
        let (ids, asked) = mpsc::unbounded_channel();
        let sending = {
            let (context, says) = (self.context.clone(), says.clone());
            crate::blocking::begin(move || sender::send_files(&context, &listed, asked, &says))
        };
        let asking = async move {
            while let Ok(Some(packet)) = asks.message().await {
                if packet.kind == i32::from(Kind::End) {
                    return true;
                }
                // If nobody sends files any more, that was reported.
                if packet.kind != i32::from(Kind::Request) || ids.send(packet.id).is_err() {
                    break;
                }
            }
            false
        };
        let (has_all, ..) =
            tokio::join!(asking, self.watch(listing, &says), self.watch(sending, &says));
        if has_all {
            let _ = says.send(Packet::end()).await;
        }
    }

    /// Waits for a part of the sending. The engine is told at once if it fails: it waits for more.
    async fn watch(&self, task: JoinHandle<Result<(), Unsent>>, says: &mpsc::Sender<Packet>) {
        let Some(failure) = failure(task).await else { return };
        let message = match &failure {
            Failure::Unusable(fault) => fault.message.clone(),
            Failure::Panic(_) => "it cannot be sent".to_owned(),
        };
        self.failed(failure);
        let _ = says.send(Packet::error(message)).await;
    }
}

async fn failure(task: JoinHandle<Result<(), Unsent>>) -> Option<Failure> {
    match task.await {
        Ok(Ok(()) | Err(Unsent::HungUp)) => None,
        Ok(Err(Unsent::Unusable(fault))) => Some(Failure::Unusable(fault)),
        Err(panic) => Some(Failure::Panic(panic)),
    }
}

/// What the engine wants of a directory.
#[derive(Debug)]
enum Wanted {
    /// The Dockerfile, by the name under which the engine was told to look for it.
    Dockerfile { name: String },
    /// What is at these paths of the context; none = all of it.
    Context { paths: Vec<String> },
}

impl Wanted {
    fn of(headers: &MetadataMap) -> Result<Self, Status> {
        let paths = || {
            // The engine's way to send what no header can hold.
            let unreadable = headers.contains_key("followpaths-encoded");
            let paths = headers.get_all("followpaths").iter();
            let paths = paths.map(|path| path.to_str().map(str::to_owned));
            if unreadable {
                Vec::new()
            } else {
                paths.collect::<Result<_, _>>().unwrap_or_default()
            }
        };
        match headers.get("dir-name").map(|name| name.as_bytes()) {
            Some(name) if name == CONTEXT.as_bytes() => Ok(Wanted::Context { paths: paths() }),
            Some(name) if name == DOCKERFILE.as_bytes() => {
                Ok(Wanted::Dockerfile { name: super::DOCKERFILE_NAME.to_owned() })
            }
            _ => Err(Status::not_found("there is no such directory")),
        }
    }
}

/// The service.
#[derive(Clone)]
pub(super) struct FileSync(pub(super) Arc<Files>);

impl NamedService for FileSync {
    const NAME: &'static str = "moby.filesync.v1.FileSync";
}

impl Service<http::Request<Body>> for FileSync {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            if request.uri().path() != DIFF_COPY {
                return Ok(Status::unimplemented("only DiffCopy is there").into_http());
            }
            let mut grpc = Grpc::new(ProstCodec::<Packet, Packet>::default());
            Ok(grpc.streaming(this, request).await)
        })
    }
}

impl StreamingService<Packet> for FileSync {
    type Response = Packet;
    type ResponseStream = std::pin::Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<Packet>>) -> Self::Future {
        let files = self.0.clone();
        Box::pin(async move {
            let wanted = Wanted::of(request.metadata())?;
            let (says, said) = mpsc::channel(PACKETS_AHEAD);
            tokio::spawn(async move { files.send(wanted, request.into_inner(), says).await });
            let packets: Self::ResponseStream =
                Box::pin(unfold(said, |mut said| async { Some((Ok(said.recv().await?), said)) }));
            Ok(Response::new(packets))
        })
    }
}
