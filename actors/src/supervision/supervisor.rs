//! One-for-one supervision: an actor that dies is built anew, its siblings notice nothing.
//!
//! `actix::Supervisor` does not survive a panic, so this one is our own. Each actor lives on an
//! arbiter (thread) of its own, inside an unwind boundary; its supervising task, on another thread,
//! learns how it ended, builds a new one from the factory, and puts the new address into the actor's
//! [`Mailbox`]. Jobs are worked on in the actor's [pool](crate::pipeline::pool), not in the actor: none of the
//! deaths below costs a job that is being worked on, but for the one that panics.
//!
//! | the actor dies by | noticed by | the message in its hands | what waits in its mailbox | cause |
//! |---|---|---|---|---|
//! | a panic in a handler | the unwind boundary | handed back, no try counted | handed back, no try counted | `panic` |
//! | a panic in `started` or in a future of its context | the unwind boundary | – | handed back, no try counted | `panic` |
//! | a panic in a job of its pool, on whatever thread that works | the job's own unwind boundary | the job: one try counted | still read, then the actor ends | `panic` |
//! | a panic in its factory | the unwind boundary | – | waits for the one that lives | `panic` |
//! | stopping by itself | the end of its context | handed back, no try counted | handed back, no try counted | `stopped` |
//! | blocking its thread, or waiting for something that does not come | no answer to a [`Beat`] within the health interval | taken away, one try counted | taken away, no try counted | `hung` |
//! | a factory that does not return within the health interval | no address | – | waits for the one that lives | `hung` |
//! | the end of its thread | its report is never made | handed back, no try counted | handed back, no try counted | `lost` |
//!
//! In all of these the actor is made anew after a pause that doubles with each death inside the
//! window, on a new thread where the old one is blocked or gone; each death is one line in the log and
//! one count by its cause. An actor that dies more than `max_restarts` times within `window` is not
//! made again: the supervisor [escalates](Supervisor::escalated), the worker drains and exits.
//!
//! Nothing of the outside is needed to make an actor: ports that are not there yet fail jobs, or make
//! the listener pause, and the worker waits for its broker before it makes any.
//!
//! A job that hangs is no death: its stage's time limit ends it.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use actix_rt::{Arbiter, System};
use futures_util::FutureExt;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, timeout};

use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::supervision::mailbox::{Mail, Mailbox};
use crate::telemetry::health::{ActorState, Death, Health};

/// How patient the supervisor is (`SUPERVISOR_…`).
#[derive(Debug, Clone)]
pub struct RestartIntensity {
    /// Deaths of one actor within `window` that are borne.
    pub max_restarts: usize,
    pub window: Duration,
    pub health_interval: Duration,
}

/// Pause before the first restart; doubles with each further one inside the window.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Asks an actor to stop, after the messages that it has by now.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// Asks an actor whether it gets to its messages.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Beat(oneshot::Sender<()>);

impl Beat {
    /// The actor's answer.
    pub fn answer(self) {
        // Nobody waits for a late one.
        let _ = self.0.send(());
    }
}

/// An actor that the supervisor can look after.
pub trait Supervised: Actor<Context = Context<Self>> + Handler<Stop> + Handler<Beat> {}

impl<A: Actor<Context = Context<A>> + Handler<Stop> + Handler<Beat>> Supervised for A {}

/// Lets the supervisor look after an actor.
#[macro_export]
macro_rules! supervised {
    ($actor:ty) => {
        impl actix::Handler<$crate::supervision::Stop> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::supervision::Stop, ctx: &mut Self::Context) {
                actix::ActorContext::stop(ctx);
            }
        }

        impl actix::Handler<$crate::supervision::Beat> for $actor {
            type Result = ();

            fn handle(&mut self, beat: $crate::supervision::Beat, _ctx: &mut Self::Context) {
                fail::fail_point!(concat!(stringify!($actor), "::beat"), |_| {
                    actix::ActorContext::stop(_ctx);
                });
                beat.answer();
            }
        }
    };
}

/// Looks after actors. Clones are the same supervisor.
#[derive(Clone)]
pub struct Supervisor {
    intensity: RestartIntensity,
    shutdown: Shutdown,
    escalated: Arc<watch::Sender<Option<String>>>,
}

impl Supervisor {
    pub fn new(intensity: RestartIntensity, shutdown: Shutdown) -> Self {
        Self { intensity, shutdown, escalated: Arc::new(watch::Sender::new(None)) }
    }

    /// Waits until an actor has died too often; the answer says which, and of what.
    pub async fn escalated(&self) -> String {
        let mut escalated = self.escalated.subscribe();
        match escalated.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Starts an actor and looks after it from now on. `panics` brings the panics of its pool's jobs.
    ///
    /// Must be called where an actix `System` runs.
    pub fn supervise<A, F>(
        &self,
        health: Arc<Health>,
        panics: mpsc::UnboundedReceiver<String>,
        factory: F,
    ) -> Mailbox<A>
    where
        A: Supervised,
        F: Fn() -> A + Send + Sync + 'static,
    {
        let (publish, current) = watch::channel(None);
        let mail = Mail::default();
        let child = Child {
            supervisor: self.clone(),
            health,
            panics,
            factory: Arc::new(factory),
            publish: Arc::new(publish),
            mail: mail.clone(),
            system: System::current(),
        };
        tokio::spawn(child.live());
        Mailbox { current, mail }
    }
}

struct Child<A: Actor, F> {
    supervisor: Supervisor,
    health: Arc<Health>,
    panics: mpsc::UnboundedReceiver<String>,
    factory: Arc<F>,
    publish: Arc<watch::Sender<Option<Addr<A>>>>,
    mail: Mail,
    system: System,
}

impl<A, F> Child<A, F>
where
    A: Supervised,
    F: Fn() -> A + Send + Sync + 'static,
{
    async fn live(mut self) {
        let intensity = self.supervisor.intensity.clone();
        let mut deaths = VecDeque::new();
        let mut arbiter = self.arbiter();
        let mut tick = tokio::time::interval(intensity.health_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut ended = self.run(&arbiter);
            self.health.enter(ActorState::Running);
            // At the last tick of this life; inside, where there was an address to ask.
            let mut asked: Option<Option<oneshot::Receiver<()>>> = None;
            let death = loop {
                tokio::select! {
                    death = &mut ended => break death.unwrap_or(Death::Lost),
                    Some(panic) = self.panics.recv() => {
                        let end = self.end(&mut ended);
                        match timeout(intensity.health_interval, end).await {
                            Ok(()) => break Death::Panic(panic),
                            Err(_) => break Death::Hung,
                        }
                    }
                    _ = tick.tick() => {
                        self.health.log();
                        let hung = match asked.take() {
                            None => false,
                            Some(Some(answer)) => unanswered(answer),
                            Some(None) => self.publish.borrow().is_none(),
                        };
                        if hung {
                            break Death::Hung;
                        }
                        asked = Some(self.beat());
                    }
                    () = self.supervisor.shutdown.reached(ShutdownPhase::HandingBack) => {
                        self.stop();
                        self.health.enter(ActorState::Stopped);
                        return;
                    }
                }
            };
            // In this order: who is late must not publish itself any more.
            drop(ended);
            self.publish.send_replace(None);
            match death {
                Death::Lost => arbiter = self.arbiter(),
                Death::Hung => {
                    self.mail.take_away(self.health.name().stage());
                    // Should the blocked thread ever go on, it ends.
                    arbiter.stop();
                    arbiter = self.arbiter();
                }
                Death::Panic(_) | Death::Stopped => {}
            }
            let actor = self.health.name().as_str();
            let cause = death.to_string();
            self.health.died(&death);
            self.health.enter(ActorState::Restarting);

            let now = Instant::now();
            deaths.push_back(now);
            while deaths.front().is_some_and(|death| now - *death > intensity.window) {
                deaths.pop_front();
            }
            if deaths.len() > intensity.max_restarts {
                tracing::error!(
                    actor,
                    cause,
                    deaths = deaths.len(),
                    "an actor died too often: the worker drains and exits"
                );
                self.health.enter(ActorState::Stopped);
                self.supervisor.escalated.send_replace(Some(format!("{actor}: {cause}")));
                return;
            }
            let doubled = 2u32.saturating_pow(deaths.len() as u32 - 1);
            let pause = FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
            tracing::error!(
                actor,
                cause,
                pause_ms = pause.as_millis() as u64,
                "an actor died: it is restarted"
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// A thread for the actor. Arbiters belong to a system, which the supervising task's own thread
    /// need not know.
    fn arbiter(&self) -> Arbiter {
        System::set_current(self.system.clone());
        Arbiter::new()
    }

    /// Asks the actor for a sign of life.
    fn beat(&self) -> Option<oneshot::Receiver<()>> {
        let (answer, answered) = oneshot::channel();
        self.publish.borrow().as_ref()?.do_send(Beat(answer));
        Some(answered)
    }

    /// Ends the present instance, which may be about to begin.
    async fn end(&self, ended: &mut oneshot::Receiver<Death>) {
        let mut address = self.publish.subscribe();
        tokio::select! {
            // The sender is `self`, so it cannot be gone.
            _ = address.wait_for(Option::is_some) => {}
            _ = &mut *ended => return,
        }
        self.stop();
        let _ = ended.await;
    }

    fn stop(&self) {
        if let Some(address) = &*self.publish.borrow() {
            address.do_send(Stop);
        }
    }

    /// Brings one instance to life; the answer comes when it has ended.
    fn run(&self, arbiter: &Arbiter) -> oneshot::Receiver<Death> {
        let (end, ended) = oneshot::channel();
        let factory = self.factory.clone();
        let publish = self.publish.clone();
        arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                let life = AssertUnwindSafe(async {
                    let mut ctx = Context::<A>::new();
                    ctx.set_mailbox_capacity(0);
                    let address = ctx.address();
                    let actor = factory();
                    let life = ctx.into_future(actor);
                    publish.send_if_modified(|current| {
                        let wanted = !end.is_closed();
                        if wanted {
                            *current = Some(address);
                        }
                        wanted
                    });
                    life.await;
                });
                let death = match life.catch_unwind().await {
                    Ok(()) => Death::Stopped,
                    Err(panic) => Death::Panic(panic_text(&*panic)),
                };
                let _ = end.send(death);
            });
        });
        ended
    }
}

/// Whether an actor had a whole interval and gave no answer. A dropped question is a death, which is
/// heard of by itself.
fn unanswered(mut answer: oneshot::Receiver<()>) -> bool {
    matches!(answer.try_recv(), Err(TryRecvError::Empty))
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}
