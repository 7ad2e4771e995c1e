//! One-for-one supervision: an actor that dies is built anew, its siblings notice nothing.
//!
//! `actix::Supervisor` does not survive a panic, so this one is our own. Each actor lives on an
//! arbiter (thread) of its own, inside an unwind boundary; its supervising task, on another thread,
//! learns how it ended, builds a new one from the factory, and puts the new address into the actor's
//! [`Mailbox`].
//!
//! Jobs are worked on in the actor's [pool](crate::pipeline::pool), not in the actor: no death costs a job
//! that is being worked on, and no job is an actor's death. A job that panics, on whatever thread it
//! works, ends alone; one that hangs is ended by its stage's time limit. So a repository that makes every
//! build of it panic uses up none of the restarts below.
//!
//! | the actor dies by | noticed by | the message in its hands | what waits in its mailbox | cause |
//! |---|---|---|---|---|
//! | a panic in a handler | the unwind boundary | handed back, no try counted | handed back, no try counted | `panic` |
//! | a panic in `started` or in a future of its context | the unwind boundary | – | handed back, no try counted | `panic` |
//! | a panic in its factory | the unwind boundary | – | waits for the one that lives | `panic` |
//! | stopping by itself | the end of its context | handed back, no try counted | handed back, no try counted | `stopped` |
//! | blocking its thread, or waiting for something that does not come | no answer to the supervisor's question within the health interval | taken away, one try counted | taken away, no try counted | `hung` |
//! | a factory that does not return within the health interval | no answer either | – | waits for the one that lives | `hung` |
//! | the end of its thread | its report is never made | handed back, no try counted | handed back, no try counted | `lost` |
//!
//! In all of these the actor is made anew after a pause that doubles with each death inside the
//! window, on a new thread where the old one is blocked or gone; each death is one line in the log and
//! one count by its cause. An actor that dies more than `max_restarts` times within `window` is not
//! made again: the supervisor [escalates](Supervisor::escalated), the worker drains and exits.
//!
//! Nothing of the outside is needed to make an actor: ports that are not there yet fail jobs, or make
//! the listener pause, and the worker waits for its broker before it makes any.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::fut::wrap_future;
use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, Recipient,
};
use actix_rt::{Arbiter, System};
use futures_util::FutureExt;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior};

use crate::delivery::lease::Leased;
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::supervision::mailbox::{Mail, Mailbox};
use crate::telemetry::health::{ActorName, ActorState, Death, Health};

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

    /// Starts an actor and looks after it from now on. The answer is the way to it.
    ///
    /// Must be called where an actix `System` runs.
    pub fn supervise<A, M, F>(&self, health: Arc<Health>, factory: F) -> Mailbox<M>
    where
        A: Actor<Context = Context<A>> + Handler<M>,
        M: Message<Result = ()> + Leased + Send + 'static,
        F: Fn() -> A + Send + Sync + 'static,
    {
        let (publish, current) = watch::channel(None);
        let mail = Mail::default();
        let child = Child {
            supervisor: self.clone(),
            health,
            factory: Arc::new(factory),
            publish: Arc::new(publish),
            mail: mail.clone(),
            system: System::current(),
        };
        tokio::spawn(child.live());
        Mailbox { current, mail }
    }
}

/// An actor, through all its lives.
struct Child<M: Message<Result = ()> + Send, F> {
    supervisor: Supervisor,
    health: Arc<Health>,
    factory: Arc<F>,
    publish: Arc<watch::Sender<Option<Recipient<M>>>>,
    mail: Mail,
    system: System,
}

impl<A, M, F> Child<M, F>
where
    A: Actor<Context = Context<A>> + Handler<M>,
    M: Message<Result = ()> + Leased + Send + 'static,
    F: Fn() -> A + Send + Sync + 'static,
{
    async fn live(self) {
        let intensity = &self.supervisor.intensity;
        let mut budget = RestartBudget { intensity, deaths: VecDeque::new() };
        let mut arbiter = self.arbiter();
        let mut tick = tokio::time::interval(intensity.health_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(death) = self.until_death(&arbiter, &mut tick).await {
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
            let Some(pause) = budget.spend() else {
                tracing::error!(
                    actor,
                    cause,
                    deaths = budget.deaths.len(),
                    "an actor died too often: the worker drains and exits"
                );
                self.health.enter(ActorState::Stopped);
                self.supervisor.escalated.send_replace(Some(format!("{actor}: {cause}")));
                return;
            };
            tracing::error!(
                actor,
                cause,
                pause_ms = pause.as_millis() as u64,
                "an actor died: it is restarted"
            );
            tokio::time::sleep(pause).await;
        }
        self.health.enter(ActorState::Stopped);
    }

    /// One life of the actor, and what it died of; `None` = the worker ends.
    async fn until_death(&self, arbiter: &Arbiter, tick: &mut Interval) -> Option<Death> {
        let mut life = self.begin(arbiter);
        self.health.enter(ActorState::Running);
        loop {
            tokio::select! {
                death = &mut life.ended => return Some(death.unwrap_or(Death::Lost)),
                _ = tick.tick() => {
                    self.health.log();
                    if life.is_stuck() {
                        return Some(Death::Hung);
                    }
                    life.ask();
                }
                () = self.supervisor.shutdown.reached(ShutdownPhase::HandingBack) => return None,
            }
        }
    }

    /// A thread for the actor. Arbiters belong to a system, which the supervising task's own thread
    /// need not know.
    fn arbiter(&self) -> Arbiter {
        System::set_current(self.system.clone());
        Arbiter::new()
    }

    /// Brings one instance to life.
    fn begin(&self, arbiter: &Arbiter) -> Life {
        let (end, ended) = oneshot::channel();
        let (ask, questions) = mpsc::unbounded_channel();
        let (name, factory) = (self.health.name(), self.factory.clone());
        let publish = self.publish.clone();
        arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                let life = AssertUnwindSafe(async {
                    let mut ctx = Context::<A>::new();
                    ctx.set_mailbox_capacity(0);
                    let stop = |(), _: &mut A, ctx: &mut Context<A>| ctx.stop();
                    ctx.spawn(wrap_future(answer(questions, name)).map(stop));
                    let address = ctx.address().recipient();
                    let actor = factory();
                    let life = ctx.into_future(actor);
                    publish.send_if_modified(|current| {
                        // One that comes too late is given up already.
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
        Life { ended, ask, asked: None }
    }
}

/// One instance of an actor, as its supervisor knows it. Dropping it ends the instance, after the
/// messages that it has by then.
struct Life {
    ended: oneshot::Receiver<Death>,
    ask: mpsc::UnboundedSender<oneshot::Sender<()>>,
    /// Brings the answer to the last question.
    asked: Option<oneshot::Receiver<()>>,
}

impl Life {
    /// Asks the instance whether it gets to its messages.
    fn ask(&mut self) {
        let (answer, asked) = oneshot::channel();
        // One that is dead already is heard of by `ended`.
        let _ = self.ask.send(answer);
        self.asked = Some(asked);
    }

    /// Whether there is no answer to the last question, for which there was a whole interval.
    fn is_stuck(&mut self) -> bool {
        let asked = self.asked.take();
        asked.is_some_and(|mut asked| matches!(asked.try_recv(), Err(TryRecvError::Empty)))
    }
}

/// Answers in the actor's context, which gets here after all messages; over when nobody asks any more.
async fn answer(mut questions: mpsc::UnboundedReceiver<oneshot::Sender<()>>, _actor: ActorName) {
    while let Some(answer) = questions.recv().await {
        // A thread that was blocked comes back to questions of which nobody awaits the answer.
        if answer.is_closed() {
            continue;
        }
        fail::fail_point!(&format!("{_actor}::beat"), |_| ());
        let _ = answer.send(());
    }
}

/// The deaths of one actor that are borne.
struct RestartBudget<'a> {
    intensity: &'a RestartIntensity,
    /// Those inside the window.
    deaths: VecDeque<Instant>,
}

impl RestartBudget<'_> {
    /// Counts a death; the answer is the pause before the restart, `None` = one too many.
    fn spend(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.deaths.push_back(now);
        self.deaths.retain(|death| now - *death <= self.intensity.window);
        if self.deaths.len() > self.intensity.max_restarts {
            return None;
        }
        let doubled = 2u32.saturating_pow(self.deaths.len() as u32 - 1);
        Some(FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE))
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}
