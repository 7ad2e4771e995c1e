//! A whole pipeline whose engine runs full.

use std::sync::Arc;
use std::time::Duration;

use actix_rt::System;
use futures_util::future::BoxFuture;
use image_builder::engine::docker::disk::size::Size;
use image_builder_actors::delivery::seal::Seal;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::image::{BuildKey, BuiltImage, ImageLocation};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::BuildRequest;
use image_builder_actors::model::secret::{Secret, Tripwire};
use image_builder_actors::model::shutdown::Shutdown;
use image_builder_actors::pipeline;
use image_builder_actors::pipeline::{Pipeline, PipelineSettings, Ports, StageSettings};
use image_builder_actors::ports::{
    Broker, BuildOrder, Claim, Exposed, FetchedSource, ImageBuilder, Message, Plan, Planner, Queue,
};
use image_builder_actors::scheduling::capacity::FIRST_LOOK;
use image_builder_actors::scheduling::retry_policy::RetryPolicy;
use image_builder_actors::telemetry::delivery_span::Observer;
use image_builder_actors::testing::broker::FakeBroker;
use image_builder_actors::testing::credentials::FakeCredentials;
use image_builder_actors::testing::dead_letters::FakeDeadLetters;
use image_builder_actors::testing::notifier::FakeNotifier;
use image_builder_actors::testing::outcome_ledger::FakeLedger;
use image_builder_actors::testing::registry::FakeRegistry;
use image_builder_actors::testing::source::FakeSource;
use image_builder_actors::testing::world;

use crate::engine::SmallEngine;
use crate::full::Disk;
use crate::orders::{Guarded, MB, Order, has};

/// Builds on a real engine, and pushes to a registry in memory.
struct PushesInMemory {
    builder: Arc<dyn ImageBuilder>,
    registry: FakeRegistry,
}

impl ImageBuilder for PushesInMemory {
    fn inputs<'a>(&'a self, plan: &'a Plan) -> BoxFuture<'a, Result<Option<String>, Fault>> {
        self.builder.inputs(plan)
    }

    fn build<'a>(
        &'a self,
        order: &'a BuildOrder,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<ImageLocation, Fault>> {
        self.builder.build(order, progress)
    }

    fn find<'a>(
        &'a self,
        key: &'a BuildKey,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<BuiltImage>, Fault>> {
        self.builder.find(key, reference)
    }

    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, Fault>> {
        self.builder.claim()
    }

    fn search<'a>(
        &'a self,
        image: &'a BuiltImage,
        wanted: &'a Tripwire,
        files: bool,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>> {
        self.builder.search(image, wanted, files, progress)
    }

    fn push<'a>(
        &'a self,
        image: &'a BuiltImage,
        reference: &'a ImageReference,
        _: &'a BuildLog,
    ) -> BoxFuture<'a, Result<String, Fault>> {
        Box::pin(self.registry.take(image, reference))
    }
}

/// Plans the same for every source.
struct SamePlan(Plan);

impl Planner for SamePlan {
    fn plan<'a>(
        &'a self,
        _: &'a FetchedSource,
        _: &'a BuildRequest,
        _: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Plan, Fault>> {
        Box::pin(async move { Ok(self.0.clone()) })
    }
}

fn settings() -> PipelineSettings {
    let stage = StageSettings { concurrency: 2, timeout: Duration::from_secs(240) };
    let one_attempt = RetryPolicy { max_attempts: 1, ..world::settings().retry };
    PipelineSettings {
        job_timeout: Duration::from_secs(300),
        connector: stage.clone(),
        builder: stage.clone(),
        pusher: stage.clone(),
        notifier: stage,
        retry: one_attempt,
        first_look: FIRST_LOOK,
        ..world::settings()
    }
}

#[test]
fn a_job_that_finds_the_engine_full_makes_room_and_ends_in_its_image_with_one_attempt() {
    let system = System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
    });
    system.block_on(full_in_the_middle());
}

async fn full_in_the_middle() {
    let small = SmallEngine::start(1000).await;
    let worker = Guarded::new(&small, |settings| {
        settings.budget = Size(10_000 * MB);
        settings.gives_back = Duration::from_secs(2);
    });
    let mut old = Vec::new();
    while small.room().free > 300 * MB {
        let order = Order::of_bytes(20 * MB);
        order.build(&*small.engine).await.expect("there is room for it");
        old.push(order);
    }
    assert_eq!(worker.guard.look().await, Ok(()), "the watermark is not what stops the build");

    // Twice that is needed: as the context comes, and as a layer.
    let large = Order::of_bytes(200 * MB);
    let (broker, managers) = (FakeBroker::default(), FakeNotifier::default());
    let (builder, registry) = (worker.builder.clone(), FakeRegistry::default());
    let workspaces = tempfile::tempdir().expect("a directory");
    let ports = Ports {
        broker: Arc::new(broker.clone()),
        ledger: Arc::new(FakeLedger::default()),
        dead_letters: Arc::new(FakeDeadLetters::new(broker.clone())),
        forge: Arc::new(FakeSource::default()),
        credentials: Arc::new(FakeCredentials::default()),
        planner: Arc::new(SamePlan(large.order.plan.clone())),
        engine: Arc::new(PushesInMemory { builder, registry: registry.clone() }),
        registry: Arc::new(registry),
        managers: Arc::new(managers.clone()),
        probe: Arc::new(Disk(worker.guard.clone())),
        registry_name: "registry.test".to_owned(),
        seal: Seal::new(Secret::new("key")),
        workspaces: workspaces.path().to_owned(),
    };
    let pipeline = Pipeline::start(
        ports,
        settings(),
        &pipeline::health(),
        Observer::default(),
        Shutdown::default(),
    );
    let capacity = pipeline.capacity.clone();
    let body = serde_json::json!({"uuid": "large", "userID": "alice", "repo": "owner/name"});
    let message = Message { body: body.to_string().into_bytes(), ..Message::default() };
    broker.publish(Queue::Build, message, Duration::ZERO).await.expect("published");

    let limit = Duration::from_secs(300);
    let sent = tokio::time::timeout(limit, managers.taken.wait_for(1)).await.expect("the job ends");
    let body: serde_json::Value = serde_json::from_slice(&sent[0].body).expect("JSON");
    assert_eq!(body["type"], "image.ready", "{body}");
    assert_eq!(body["data"]["attempts"], 1, "{body}");
    assert_eq!(broker.delays(), [Duration::ZERO; 0], "nobody waits for it");
    assert_eq!(capacity.lacking(), None, "nobody waits for it");
    assert!(!has(&small, &old[0]).await, "nothing was pruned");
}
