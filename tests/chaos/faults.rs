//! What goes wrong in a run: drawn from the seed, and done to the world.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use image_builder::kill_points::POINTS;

use crate::dice::Dice;
use crate::gate::{Gate, Way};
use crate::world::{PATIENCE, Service, World, lock};

/// Workers that faults are drawn for. A deployment may have fewer.
const WORKERS: usize = 3;

const ERROR: &str =
    "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const TOO_MANY: &str = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// How long a worker has to come to the point at which it is to die.
const COMES_BY: Duration = Duration::from_secs(8);

/// Something that goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Killed at a point of a job's way.
    KillAt { worker: usize, point: &'static str },
    /// Killed at any time.
    Kill { worker: usize },
    /// Replaced by a new process, as in a rolling restart.
    Replace { worker: usize },
    /// Asked to end twice, so that nothing is drained.
    ReplaceAtOnce { worker: usize, after: Duration },
    /// Its connections are closed by the broker.
    Close { worker: usize },
    /// One cut of all connections to the engine, in the middle of whatever there is.
    CutEngine { worker: usize },
    /// A way is barred or slow for a while.
    Bar { what: Target, way: Way, during: Duration },
    /// Its disk is filled for a while, from when it has noticed.
    FillDisk { worker: usize, during: Duration },
    /// A service is ended, and started again on its data.
    Restart { service: Service, kill: bool },
}

/// The service that a way leads to, for all workers or one.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    Broker(usize),
    AllBrokers,
    Engine(usize),
    AllEngines,
    Registry,
    Forge,
    Managers,
}

/// The name that faults of this kind are counted under.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::KillAt { point, .. } => write!(f, "kill at {point}"),
            Fault::Kill { .. } => f.write_str("kill at any time"),
            Fault::Replace { .. } => f.write_str("SIGTERM"),
            Fault::ReplaceAtOnce { .. } => f.write_str("two SIGTERMs"),
            Fault::Close { .. } => f.write_str("connections closed by the broker"),
            Fault::CutEngine { .. } => f.write_str("connections to the engine cut once"),
            Fault::FillDisk { .. } => f.write_str("a worker's disk filled"),
            Fault::Restart { service: Service::Broker, kill: true } => f.write_str("broker killed"),
            Fault::Restart { service: Service::Broker, .. } => f.write_str("broker restarted"),
            Fault::Restart { service: Service::Engine, kill: true } => f.write_str("engine killed"),
            Fault::Restart { service: Service::Engine, .. } => f.write_str("engine restarted"),
            Fault::Bar { what, way, .. } => {
                let what = match what {
                    Target::Broker(_) => "a worker's broker",
                    Target::AllBrokers => "broker",
                    Target::Engine(_) => "a worker's engine",
                    Target::AllEngines => "engine",
                    Target::Registry => "registry",
                    Target::Forge => "forge",
                    Target::Managers => "managers",
                };
                let way = match way {
                    Way::Open => "open",
                    Way::Slow(_) => "slow",
                    Way::Silent => "silent",
                    Way::Cut => "cut",
                    Way::Refused => "not listening",
                    Way::Answers(ERROR) => "answering 500",
                    Way::Answers(_) => "answering 429",
                };
                write!(f, "{what} {way}")
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Draw {
    KillAt,
    Kill,
    Replace,
    ReplaceAtOnce,
    Close,
    CutEngine,
    Broker,
    Engine,
    Registry,
    Forge,
    Managers,
    Disk,
}

const DRAWS: [(usize, Draw); 12] = [
    (34, Draw::KillAt),
    (8, Draw::Kill),
    (7, Draw::Replace),
    (3, Draw::ReplaceAtOnce),
    (8, Draw::Close),
    (6, Draw::CutEngine),
    (9, Draw::Broker),
    (6, Draw::Engine),
    (10, Draw::Registry),
    (4, Draw::Forge),
    (7, Draw::Managers),
    (6, Draw::Disk),
];

/// Faults for each restart of a service: it takes long, so a few will do.
const FOR_EACH_RESTART: usize = 20;

/// In this order, and then again.
const RESTARTS: [Fault; 4] = [
    Fault::Restart { service: Service::Broker, kill: true },
    Fault::Restart { service: Service::Engine, kill: true },
    Fault::Restart { service: Service::Broker, kill: false },
    Fault::Restart { service: Service::Engine, kill: false },
];

/// So many faults, in their order; with restarts of services among them, where they are wanted.
pub fn faults(seed: u64, count: usize, restarts: bool) -> Vec<Fault> {
    let mut dice = Dice::new(seed, "faults");
    let mut points = Vec::new();
    let mut faults: Vec<Fault> = (0..count).map(|_| draw(&mut dice, &mut points)).collect();
    if restarts {
        let number = (count / FOR_EACH_RESTART).max(1);
        for (number_of, restart) in RESTARTS.into_iter().cycle().take(number).enumerate() {
            faults[(2 * number_of + 1) * count / (2 * number)] = restart;
        }
    }
    faults
}

fn draw(dice: &mut Dice, points: &mut Vec<&'static str>) -> Fault {
    let worker = dice.below(WORKERS);
    let some_time = dice.millis(300, 2500);
    let bar = |what, way| Fault::Bar { what, way, during: some_time };
    let delay = Way::Slow(dice.millis(20, 150));
    match dice.weighted(&DRAWS) {
        Draw::KillAt => {
            // Each point comes up before one comes up again.
            if points.is_empty() {
                points.extend(POINTS);
                dice.shuffle(points);
            }
            Fault::KillAt { worker, point: points.pop().unwrap_or(POINTS[0]) }
        }
        Draw::Kill => Fault::Kill { worker },
        Draw::Replace => Fault::Replace { worker },
        Draw::ReplaceAtOnce => Fault::ReplaceAtOnce { worker, after: dice.millis(0, 1500) },
        Draw::Close => Fault::Close { worker },
        Draw::CutEngine => Fault::CutEngine { worker },
        Draw::Broker => {
            let what = if dice.below(4) == 0 { Target::AllBrokers } else { Target::Broker(worker) };
            let way = dice.pick(&[Way::Cut, Way::Refused, delay, Way::Silent, Way::Silent]);
            // Silence is noticed only after a while.
            let during = if way == Way::Silent { dice.millis(2000, 9000) } else { some_time };
            Fault::Bar { what, way, during }
        }
        Draw::Engine => {
            let what = if dice.below(3) == 0 { Target::AllEngines } else { Target::Engine(worker) };
            bar(what, dice.pick(&[Way::Refused, Way::Cut, delay, Way::Silent]))
        }
        Draw::Registry => {
            let ways =
                [Way::Answers(ERROR), Way::Answers(TOO_MANY), delay, Way::Silent, Way::Refused];
            bar(Target::Registry, dice.pick(&ways))
        }
        Draw::Forge => {
            let ways = [Way::Answers(ERROR), Way::Answers(TOO_MANY), delay, Way::Refused, Way::Cut];
            bar(Target::Forge, dice.pick(&ways))
        }
        Draw::Disk => Fault::FillDisk { worker, during: some_time },
        Draw::Managers => {
            let ways =
                [Way::Answers(ERROR), Way::Answers(TOO_MANY), delay, Way::Silent, Way::Refused];
            bar(Target::Managers, dice.pick(&ways))
        }
    }
}

/// What became of a fault.
pub enum Done {
    Happened,
    /// It had nothing to strike.
    InVain,
    /// Something is wrong with the workers, or with the machine.
    Wrong(String),
}

impl Fault {
    /// Does it, and mends what it has broken.
    pub fn happen(self, world: &World) -> Done {
        let worker = |number: usize| lock(&world.site(number).worker);
        match self {
            Fault::KillAt { worker: number, point } => {
                struck(worker(number).kill_at(point, COMES_BY))
            }
            Fault::Kill { worker: number } => struck(worker(number).kill()),
            Fault::Replace { worker: number } => ended(worker(number).terminate(None, PATIENCE)),
            Fault::ReplaceAtOnce { worker: number, after } => {
                ended(worker(number).terminate(Some(after), PATIENCE))
            }
            Fault::Close { worker } => struck(world.broker.close_connections(worker) > 0),
            Fault::CutEngine { worker } => {
                lock(&world.site(worker).engine).cut_once();
                Done::Happened
            }
            Fault::Bar { what, way, during } => {
                let gates: Vec<&Mutex<Gate>> = match what {
                    Target::Broker(number) => world.broker.gates(Some(number)),
                    Target::AllBrokers => world.broker.gates(None),
                    Target::Engine(number) => vec![&world.site(number).engine],
                    Target::AllEngines => world.workers.iter().map(|site| &site.engine).collect(),
                    Target::Registry => vec![&world.registry],
                    Target::Forge => vec![&world.forge],
                    Target::Managers => vec![&world.manager],
                };
                let held: Vec<_> = gates.into_iter().map(lock).collect();
                if held.is_empty() {
                    return Done::InVain;
                }
                held.iter().for_each(|gate| gate.set(way));
                std::thread::sleep(during);
                held.iter().for_each(|gate| gate.set(Way::Open));
                Done::Happened
            }
            Fault::FillDisk { worker: number, during } => {
                worker(number).fill_disk(during, PATIENCE).map_or_else(Done::Wrong, struck)
            }
            Fault::Restart { service, kill } => ended(world.restart(service, kill)),
        }
    }
}

fn struck(struck: bool) -> Done {
    if struck { Done::Happened } else { Done::InVain }
}

fn ended(ended: Result<(), String>) -> Done {
    ended.map_or_else(Done::Wrong, |()| Done::Happened)
}
