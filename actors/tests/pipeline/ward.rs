//! Actors that do what their messages say, under supervision.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFuture, AsyncContext, Context, Handler};
use actix_rt::Arbiter;
use image_builder_actors::delivery::artifacts::Images;
use image_builder_actors::delivery::dedup::Redeliveries;
use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::delivery::lease::{Lease, Leased, Phase, Settler};
use image_builder_actors::delivery::seal::Seal;
use image_builder_actors::delivery::settlement::Settlement;
use image_builder_actors::model::fault::StageName;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::shutdown::Shutdown;
use image_builder_actors::pipeline::pool::Pool;
use image_builder_actors::ports::{Broker, Message, Queue, Subscription};
use image_builder_actors::scheduling::capacity::Capacity;
use image_builder_actors::scheduling::fair_semaphore::FairSemaphore;
use image_builder_actors::scheduling::holds::Holds;
use image_builder_actors::supervision::{Mailbox, Supervisor};
use image_builder_actors::telemetry::delivery_span::Observer;
use image_builder_actors::telemetry::health::{ActorName, Health, Snapshot};
use image_builder_actors::testing::broker::FakeBroker;
use image_builder_actors::testing::builder::FakeBuilder;
use image_builder_actors::testing::dead_letters::FakeDeadLetters;
use image_builder_actors::testing::outcome_ledger::FakeLedger;
use image_builder_actors::testing::probe::FakeProbe;
use image_builder_actors::testing::registry::FakeRegistry;
use image_builder_actors::testing::world::{PATIENCE, settings};
use tokio::sync::{Notify, Semaphore};

/// An order to an actor, which holds the lease of a delivery.
#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
pub(crate) struct Order {
    lease: Lease,
    act: Act,
}

/// What an actor does with an order, once it is let go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Act {
    Settle,
    Panic,
    PanicInContext,
    PanicInPool,
    PanicInBlockingThread,
    Stop,
    BlockThread,
    WaitForEver,
    EndThread,
    /// Holds a slot of its pool until it is let go, and settles then.
    Work,
}

impl Leased for Order {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

/// An actor that does what it is ordered to.
pub(crate) struct Obedient {
    pool: Pool,
    /// Where it waits before it does anything.
    gate: Arc<Gate>,
    /// Which one it is, counted from 1.
    number: usize,
    start: Start,
}

/// How an instance comes to life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Start {
    Well,
    PanicWhenMade,
    PanicWhenStarted,
    HangWhenMade,
}

/// Holds up a thread, and work that is none, until it is opened.
#[derive(Default)]
pub(crate) struct Gate {
    opened: Mutex<bool>,
    threads: Condvar,
    tasks: Notify,
    pub(crate) reached: Notify,
}

impl Gate {
    pub(crate) fn open(&self) {
        *self.opened.lock().expect("no panic at the gate") = true;
        self.threads.notify_all();
        self.tasks.notify_waiters();
    }

    /// Blocks the thread.
    fn block(&self) {
        self.reached.notify_one();
        let opened = self.opened.lock().expect("no panic at the gate");
        drop(self.threads.wait_while(opened, |opened| !*opened).expect("no panic at the gate"));
    }

    async fn wait(&self) {
        let opened = self.tasks.notified();
        self.reached.notify_one();
        if !*self.opened.lock().expect("no panic at the gate") {
            opened.await;
        }
    }
}

impl Actor for Obedient {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        assert!(self.start != Start::PanicWhenStarted, "asked to panic when started");
    }
}

impl Handler<Order> for Obedient {
    type Result = ();

    fn handle(&mut self, Order { lease, act }: Order, ctx: &mut Self::Context) {
        let gate = self.gate.clone();
        match act {
            Act::Settle => settle(lease),
            Act::Panic => {
                gate.block();
                panic!("asked to panic as number {}", self.number);
            }
            Act::PanicInContext => {
                settle(lease);
                ctx.spawn(actix::fut::wrap_future(async move {
                    gate.block();
                    panic!("asked to panic in its context");
                }));
            }
            Act::PanicInPool => self.pool.run(tracing::Span::none(), async move {
                lease.set_phase(Phase::Working(StageName::Builder));
                gate.wait().await;
                panic!("asked to panic in a job");
            }),
            Act::PanicInBlockingThread => self.pool.run(tracing::Span::none(), async move {
                lease.set_phase(Phase::Working(StageName::Builder));
                let work = tokio::task::spawn_blocking(move || {
                    gate.block();
                    panic!("asked to panic in a blocking thread")
                });
                let Err::<(), _>(error) = work.await else { return };
                std::panic::resume_unwind(error.into_panic());
            }),
            Act::Stop => {
                gate.block();
                ctx.stop();
            }
            Act::BlockThread => gate.block(),
            Act::WaitForEver => ctx.wait(for_ever(lease)),
            Act::EndThread => {
                gate.block();
                Arbiter::current().stop();
                // It gets to no more messages before its thread is gone.
                ctx.wait(for_ever(lease));
            }
            Act::Work => self.pool.run(tracing::Span::none(), async move {
                lease.set_phase(Phase::Working(StageName::Builder));
                gate.wait().await;
                settle(lease);
            }),
        }
    }
}

fn for_ever(lease: Lease) -> impl ActorFuture<Obedient, Output = ()> {
    actix::fut::wrap_future(async move {
        std::future::pending::<()>().await;
        drop(lease);
    })
}

fn settle(lease: Lease) {
    tokio::spawn(lease.ack());
}

/// An actor under supervision, and the way to it.
pub(crate) struct Ward {
    mailbox: Mailbox<Order>,
    health: Arc<Health>,
    pub(crate) gate: Arc<Gate>,
    made: Arc<AtomicUsize>,
}

impl Ward {
    /// `start` says how the instance of a number comes to life.
    pub(crate) fn new(
        supervisor: &Supervisor,
        name: ActorName,
        start: impl Fn(usize) -> Start + Send + Sync + 'static,
    ) -> Self {
        let (health, gate) = (Health::new(name), Arc::new(Gate::default()));
        let made = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new(FairSemaphore::new(4, 4), health.clone(), Shutdown::default());
        let (count, its_gate) = (made.clone(), gate.clone());
        let factory = move || {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let start = start(number);
            assert!(start != Start::PanicWhenMade, "asked to panic when made");
            if start == Start::HangWhenMade {
                its_gate.block();
            }
            Obedient { pool: pool.clone(), gate: its_gate.clone(), number, start }
        };
        let mailbox = supervisor.supervise(health.clone(), factory);
        Self { mailbox, health, gate, made }
    }

    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    pub(crate) fn deaths(&self) -> BTreeMap<&'static str, u64> {
        self.health.snapshot().deaths
    }

    /// Its jobs that failed, by reason.
    pub(crate) fn failed(&self) -> BTreeMap<&'static str, u64> {
        self.health.snapshot().failed
    }

    /// Waits until it has died so often.
    pub(crate) async fn until_died(&self, times: u64) {
        self.until(|health| health.restarts() >= times).await;
    }

    /// Waits until so many of its jobs have failed.
    pub(crate) async fn until_failed(&self, jobs: u64) {
        self.until(|health| health.failed.values().sum::<u64>() >= jobs).await;
    }

    /// There is no event for a death, or for a failure.
    async fn until(&self, good: impl Fn(&Snapshot) -> bool) {
        while !good(&self.health.snapshot()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What became of a delivery.
#[derive(Debug, PartialEq)]
pub(crate) enum Fate {
    Settled,
    /// It is in the fail queue, with so many tries counted.
    HandedBack(u32),
}

/// Deliveries of the build queue.
pub(crate) struct Deliveries {
    broker: FakeBroker,
    subscription: Subscription,
    settler: Settler,
    redeliveries: Redeliveries,
    slots: Arc<Semaphore>,
}

impl Deliveries {
    pub(crate) async fn start() -> Self {
        let broker = FakeBroker::default();
        let subscription = broker.consume(Queue::Build, 16).await.expect("subscribed");
        let settlement = Settlement {
            broker: Arc::new(broker.clone()),
            ledger: Arc::new(FakeLedger::default()),
            dead_letters: Arc::new(FakeDeadLetters::new(broker.clone())),
            policy: settings().retry,
            images: Images {
                engine: Arc::new(FakeBuilder::pushing_to(FakeRegistry::default())),
                registry: Arc::new(FakeRegistry::default()),
                registry_name: "registry.test".to_owned(),
                seal: Seal::new(Secret::new("key")),
            },
            capacity: Capacity::default(),
            probe: Arc::new(FakeProbe::default()),
            holds: Holds::default(),
            observer: Observer::default(),
        };
        let acks = subscription.acks.clone();
        let settler = Settler::start(true, acks, PATIENCE, move |lease| {
            let settlement = settlement.clone();
            tokio::spawn(async move { settlement.crashed(lease).await });
        });
        let (redeliveries, slots) = (Redeliveries::default(), Arc::new(Semaphore::new(16)));
        Self { broker, subscription, settler, redeliveries, slots }
    }

    /// Has a message of this id delivered, with an order to do something.
    pub(crate) async fn order(&mut self, ward: &Ward, id: &str, act: Act) {
        let message = Message { message_id: Some(id.to_owned()), ..Message::default() };
        let published = self.broker.publish(Queue::Build, message, Duration::ZERO).await;
        published.expect("published");
        let delivery = self.subscription.deliveries.recv().await.expect("delivered");
        let slot = self.slots.clone().acquire_owned().await.expect("never closed");
        let hold = self.redeliveries.first(&delivery);
        let envelope = Envelope::decode(&delivery.message);
        let lease = self.settler.lease(delivery, envelope, hold, slot);
        ward.mailbox.deliver(Order { lease, act }).await;
    }

    /// Waits until all is settled but this many, and looks up what became of a message.
    pub(crate) async fn fate(&self, id: &str, unsettled: usize) -> Fate {
        self.broker.wait_until(|broker| broker.unsettled(Queue::Build) == unsettled).await;
        let failed = self.broker.messages(Queue::Fail);
        match failed.iter().find(|message| message.message_id.as_deref() == Some(id)) {
            Some(message) => {
                let history = Envelope::decode(message).history.expect("it was in hand");
                Fate::HandedBack(history.counted())
            }
            None => Fate::Settled,
        }
    }
}
