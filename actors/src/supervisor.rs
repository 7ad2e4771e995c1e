//! One-for-one supervision: an actor that dies is built anew, its siblings notice nothing.
//!
//! `actix::Supervisor` does not survive a panic, so this one is our own. Each actor lives on an
//! arbiter (thread) of its own, inside an unwind boundary; its supervising task learns how it ended,
//! builds a new one from the factory, and puts the new address into the actor's [`Mailbox`].
//!
//! | what happens | what the supervisor does |
//! |---|---|
//! | the actor panics (handler, factory, `started`, its context's futures) | restart |
//! | a job of the actor's pool panics | the job is handed back; restart |
//! | the actor stops by itself | restart |
//! | the actor's thread is gone | restart on a new one |
//! | the actor does not answer within the health interval (its thread is blocked) | restart on a new thread; what was in its mailbox is handed back |
//! | more deaths than `max_restarts` within `window` | escalate: the worker drains and exits |

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix::dev::SendError;
use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use actix_rt::{Arbiter, System};
use futures_util::FutureExt;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, timeout};

use crate::fault::Stage;
use crate::health::{Health, State};
use crate::lease::{Doing, Leased, Revocable};
use crate::lifecycle::{Lifecycle, Phase};

/// How patient the supervisor is (`SUPERVISOR_…`).
#[derive(Debug, Clone)]
pub struct Intensity {
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
        impl actix::Handler<$crate::supervisor::Stop> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::supervisor::Stop, ctx: &mut Self::Context) {
                actix::ActorContext::stop(ctx);
            }
        }

        impl actix::Handler<$crate::supervisor::Beat> for $actor {
            type Result = ();

            fn handle(&mut self, beat: $crate::supervisor::Beat, _: &mut Self::Context) {
                beat.answer();
            }
        }
    };
}

/// The way to an actor, whichever instance of it lives at the moment.
pub struct Mailbox<A: Actor> {
    current: watch::Receiver<Option<Addr<A>>>,
    mail: Mail,
}

impl<A: Actor> Clone for Mailbox<A> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone(), mail: self.mail.clone() }
    }
}

/// What was sent to an actor and may not have been looked at yet, in order.
#[derive(Clone, Default)]
struct Mail(Arc<Mutex<Vec<Revocable>>>);

impl Mail {
    fn add(&self, lease: Revocable) {
        let mut mail = self.lock();
        mail.retain(|lease| lease.doing() == Some(Doing::Mailed));
        mail.push(lease);
    }

    /// Takes everything away from an actor that is stuck: in the message that it looks at, and so
    /// before all others.
    fn take_away(&self, stage: Stage) {
        let mail = std::mem::take(&mut *self.lock());
        let mut unread = mail.iter().filter(|lease| lease.doing() == Some(Doing::Mailed));
        if let Some(first) = unread.next() {
            first.revoke_from(stage);
        }
        unread.for_each(Revocable::revoke);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Revocable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Actor<Context = Context<A>>> Mailbox<A> {
    /// Hands a message to the actor, waiting while it is being restarted. The message is dropped,
    /// with all that it owns, when the actor is gone for good.
    pub async fn deliver<M>(&self, mut message: M)
    where
        A: Handler<M>,
        M: Message<Result = ()> + Leased + Send + 'static,
    {
        let mut current = self.current.clone();
        let lease = message.lease().revocable();
        loop {
            let address = match current.wait_for(Option::is_some).await {
                Ok(address) => address.clone(),
                Err(_) => return,
            };
            let Some(address) = address else { continue };
            // Before it is sent: the actor may be stuck in it when this goes on.
            self.mail.add(lease.clone());
            match address.try_send(message) {
                Ok(()) => return,
                // Its death has not been noticed yet: the address changes in a moment.
                Err(SendError::Closed(back)) => {
                    message = back;
                    if current.changed().await.is_err() {
                        return;
                    }
                }
                // Mailboxes are unbounded (see `run`): what bounds them is the prefetch.
                Err(SendError::Full(back)) => {
                    message = back;
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// How an actor's life ended.
enum Exit {
    Panicked(String),
    Stopped,
    /// Its thread ended under it.
    Lost,
    /// Its thread is blocked.
    Hung,
}

impl Exit {
    fn cause(self) -> String {
        match self {
            Exit::Panicked(message) => format!("panicked: {message}"),
            Exit::Stopped => "stopped by itself".to_owned(),
            Exit::Lost => "its thread ended".to_owned(),
            Exit::Hung => "hung: it did not get to its messages".to_owned(),
        }
    }
}

/// Looks after actors. Clones are the same supervisor.
#[derive(Clone)]
pub struct Supervisor {
    intensity: Intensity,
    lifecycle: Lifecycle,
    escalated: Arc<watch::Sender<Option<String>>>,
}

impl Supervisor {
    pub fn new(intensity: Intensity, lifecycle: Lifecycle) -> Self {
        Self { intensity, lifecycle, escalated: Arc::new(watch::Sender::new(None)) }
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
            let mut exit = self.run(&arbiter);
            self.health.enter(State::Running);
            let mut beat = None;
            let exit = loop {
                tokio::select! {
                    exit = &mut exit => break exit.unwrap_or(Exit::Lost),
                    Some(panic) = self.panics.recv() => {
                        let ended = self.end(&mut exit);
                        match timeout(intensity.health_interval, ended).await {
                            Ok(()) => break Exit::Panicked(panic),
                            Err(_) => break Exit::Hung,
                        }
                    }
                    _ = tick.tick() => {
                        self.health.log();
                        if beat.take().is_some_and(unanswered) {
                            break Exit::Hung;
                        }
                        beat = self.beat();
                    }
                    () = self.supervisor.lifecycle.reached(Phase::HandingBack) => {
                        self.stop();
                        self.health.enter(State::Stopped);
                        return;
                    }
                }
            };
            if matches!(exit, Exit::Hung) {
                self.stop();
            }
            self.publish.send_replace(None);
            match exit {
                Exit::Lost => arbiter = self.arbiter(),
                Exit::Hung => {
                    // The blocked thread is left to itself; should it ever go on, it finds a Stop.
                    arbiter = self.arbiter();
                    self.mail.take_away(self.health.name().stage());
                }
                Exit::Panicked(_) | Exit::Stopped => {}
            }
            let actor = self.health.name().as_str();
            let cause = exit.cause();
            self.health.died(&cause);
            self.health.enter(State::Restarting);

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
                self.health.enter(State::Stopped);
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
    async fn end(&self, exit: &mut oneshot::Receiver<Exit>) {
        let mut address = self.publish.subscribe();
        tokio::select! {
            // The sender is `self`, so it cannot be gone.
            _ = address.wait_for(Option::is_some) => {}
            _ = &mut *exit => return,
        }
        self.stop();
        let _ = exit.await;
    }

    fn stop(&self) {
        if let Some(address) = &*self.publish.borrow() {
            address.do_send(Stop);
        }
    }

    /// Brings one instance to life; the answer comes when it has ended.
    fn run(&self, arbiter: &Arbiter) -> oneshot::Receiver<Exit> {
        let (ended, exit) = oneshot::channel();
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
                    publish.send_replace(Some(address));
                    life.await;
                });
                let exit = match life.catch_unwind().await {
                    Ok(()) => Exit::Stopped,
                    Err(panic) => Exit::Panicked(panic_text(&*panic)),
                };
                let _ = ended.send(exit);
            });
        });
        exit
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
