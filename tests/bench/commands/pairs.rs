//! The same build by the plain commands and by the worker, in turns.
//!
//! Each side has a repository of its own, so that neither finds what the other has built or fetched.

use crate::sides::{Commands, Times, worker};
use crate::support::git_server::GitRepo;
use crate::support::setting;
use crate::support::world::World;
use crate::{median, number, trees, world};

/// What is done before each build.
enum Before {
    /// A repository that nobody has seen: a copy of this one, with a file that all of its steps depend on.
    Unseen(GitRepo),
    /// A new content of a file of the side's own repository, which was built before.
    Changed([GitRepo; 2], &'static str),
    /// Nothing: the same again.
    Nothing([GitRepo; 2]),
}

struct Case {
    name: &'static str,
    before: Before,
    /// What is compared.
    of: fn(&Times) -> f64,
    /// The ratio that is aimed at, at the most.
    target: f64,
}

fn cases() -> [Case; 6] {
    let all: fn(&Times) -> f64 = |times| times.all;
    let large = trees::large();
    let two = |of: &GitRepo| [trees::copy(of), trees::copy(of)];
    let small = trees::small();
    let data = trees::data(200);
    [
        Case {
            name: "next commit of it, one file changed",
            before: Before::Changed(two(&large), "src/0"),
            of: all,
            target: 0.4,
        },
        Case {
            name: "first build, 5,000 files and 100 MB of history",
            before: Before::Unseen(large),
            of: all,
            target: 0.9,
        },
        Case {
            name: "same inputs again",
            before: Before::Nothing(two(&small)),
            of: all,
            target: 0.1,
        },
        Case { name: "first build, small", before: Before::Unseen(small), of: all, target: 0.9 },
        Case {
            name: "200 MB context, one file changed",
            before: Before::Changed(two(&data), "src/main"),
            of: all,
            target: 0.3,
        },
        Case {
            name: "push of an image whose layers the registry has",
            before: Before::Changed(two(&data), "not-built"),
            of: |times| times.push,
            target: 0.5,
        },
    ]
}

pub(crate) fn run() {
    let rounds = number("ROUNDS", "10");
    let world = world(2);
    let a_worker = world.worker();
    let commands = Commands::new();
    println!("{rounds} pairs each; seconds are medians, ratios medians of the pairs'\n");
    println!("{:<50} {:>7} {:>7} {:>7} {:>7}", "", "clone", "build", "push", "in all");
    let mut table = Vec::new();
    let wanted = setting("CASE", "");
    for case in cases().into_iter().filter(|case| case.name.contains(&wanted)) {
        let mut pairs: Vec<[Times; 2]> = Vec::new();
        // The first round fetches and makes what all later ones have.
        for round in 0..=rounds {
            let pair = pair(&case, round % 2 == 1, &world, &commands);
            if round > 0 {
                pairs.push(pair);
            }
        }
        let of_side = |side: usize| -> Vec<Times> { pairs.iter().map(|pair| pair[side]).collect() };
        let ratio = median(pairs.iter().map(|[plain, ours]| (case.of)(ours) / (case.of)(plain)));
        println!("{}", case.name);
        println!("  {:<48} {}", "git clone, docker build, docker push", Times::median(&of_side(0)));
        println!("  {:<48} {}", "image-builder", Times::median(&of_side(1)));
        table.push((case.name, ratio, case.target));
    }
    println!("\n{:<50} {:>7} {:>7}", "worker / commands", "ratio", "aim");
    for (name, ratio, target) in table {
        let missed = if ratio > target { "  missed" } else { "" };
        println!("{name:<50} {ratio:>7.2} {target:>7.2}{missed}");
    }
    a_worker.stop();
}

/// One build by each side, the commands first or the worker.
fn pair(case: &Case, worker_first: bool, world: &World, commands: &Commands) -> [Times; 2] {
    let plain = || commands.build(&ready(&case.before, 0));
    let ours = || worker(world, &ready(&case.before, 1));
    if worker_first {
        let ours = ours();
        [plain(), ours]
    } else {
        [plain(), ours()]
    }
}

/// The repository that a side is to build, as the case wants it.
fn ready(before: &Before, side: usize) -> Ready<'_> {
    match before {
        Before::Unseen(of) => {
            let repo = trees::copy(of);
            trees::change(&repo, "salt");
            // Nor has the registry the layer of its dependencies.
            trees::change(&repo, "deps/0/0");
            Ready::Own(Box::new(repo))
        }
        Before::Changed(repos, path) => {
            trees::change(&repos[side], path);
            Ready::Kept(&repos[side])
        }
        Before::Nothing(repos) => Ready::Kept(&repos[side]),
    }
}

enum Ready<'a> {
    Own(Box<GitRepo>),
    Kept(&'a GitRepo),
}

impl std::ops::Deref for Ready<'_> {
    type Target = GitRepo;

    fn deref(&self) -> &GitRepo {
        match self {
            Ready::Own(repo) => repo,
            Ready::Kept(repo) => repo,
        }
    }
}
