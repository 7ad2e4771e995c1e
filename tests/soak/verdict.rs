//! Judges what a worker held after all jobs by what it held when it was warm.

use crate::sample::{CHANNELS, POOL, Sample};

/// A channel of a publish is kept for the next one for a while: one for each that was under way at once. The
/// listener has 8 jobs here, the notifier 4, the retry actor 4; three queues and the cancellations have
/// a channel each.
const MOST_CHANNELS: u64 = 8 + 4 + 4 + 4;

/// Threads of the pool that periodic looks (at disks, files) keep alive among them: each is there for ten seconds
/// after its last call, and they take turns. How many there are depends on how many calls once happened to overlap.
const OVERLAPPING: u64 = 4;

/// What leaked since. Memory may grow by this share of what it was, and by so many KiB that are remembered.
pub fn leaks(warm: &Sample, last: &Sample, growth: f64, remembered: u64) -> Vec<String> {
    let memory = last.memory.iter().filter_map(|(name, now)| {
        let before = warm.memory[name];
        let most = before as f64 * (1.0 + growth) + remembered as f64;
        let grown = *now as f64 > most;
        grown.then(|| format!("{name}: {now} KiB after {before} KiB"))
    });
    let levels = last.levels.iter().filter_map(|(name, now)| {
        let before = warm.levels[name];
        let most = match *name {
            CHANNELS => before.max(MOST_CHANNELS),
            POOL => before + OVERLAPPING,
            _ => before,
        };
        (*now > most).then(|| format!("{name}: {now} after {before}"))
    });
    let left = last.left.iter().map(|thing| format!("left: {thing}"));
    memory.chain(levels).chain(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{CONNECTIONS, FDS, FILES, PRIVATE, RSS, TCP, THREADS};

    const GROWTH: f64 = 0.1;
    const REMEMBERED: u64 = 50;

    fn sample() -> Sample {
        Sample {
            memory: [(RSS, 60_000), (PRIVATE, 20_000)].into(),
            levels: [FDS, THREADS, POOL, TCP, CONNECTIONS, CHANNELS, FILES]
                .map(|name| (name, 9))
                .into(),
            left: ["messages in x.build".to_owned()].into(),
        }
    }

    #[test]
    fn a_worker_that_holds_no_more_than_before_leaks_nothing() {
        let (warm, mut last) = (sample(), sample());
        last.left.clear();
        assert_eq!(leaks(&warm, &last, GROWTH, REMEMBERED), [""; 0]);
        last.memory = [(RSS, 66_050), (PRIVATE, 100)].into();
        last.levels.insert(FDS, 8);
        assert_eq!(leaks(&warm, &last, GROWTH, REMEMBERED), [""; 0]);
    }

    #[test]
    fn every_kind_of_leak_is_told() {
        let mut warm = sample();
        warm.left.clear();
        let told = |spoil: &dyn Fn(&mut Sample)| {
            let mut last = warm.clone();
            spoil(&mut last);
            leaks(&warm, &last, GROWTH, REMEMBERED)
        };
        for (name, kib) in [(RSS, 66_051), (PRIVATE, 22_051)] {
            let before = warm.memory[name];
            let leaks = told(&|last| _ = last.memory.insert(name, kib));
            assert_eq!(leaks, [format!("{name}: {kib} KiB after {before} KiB")]);
        }
        let pool = |count| told(&|last| _ = last.levels.insert(POOL, count));
        assert_eq!(pool(9 + OVERLAPPING), [""; 0]);
        assert_eq!(pool(10 + OVERLAPPING), [format!("{POOL}: 14 after 9")]);
        for name in [FDS, THREADS, TCP, CONNECTIONS, FILES] {
            let leaks = told(&|last| _ = last.levels.insert(name, 10));
            assert_eq!(leaks, [format!("{name}: 10 after 9")]);
        }
        let channels = |count| told(&|last| _ = last.levels.insert(CHANNELS, count));
        assert_eq!(channels(MOST_CHANNELS), [""; 0]);
        assert_eq!(channels(MOST_CHANNELS + 1), [format!("{CHANNELS}: 21 after 9")]);
        for thing in ["messages in x.fail", "child process 7: git", "container 0: sleep"] {
            let leaks = told(&|last| _ = last.left.insert(thing.to_owned()));
            assert_eq!(leaks, [format!("left: {thing}")]);
        }
    }

    #[test]
    fn what_goes_during_an_idle_stretch_is_no_leak_and_what_stays_is() {
        let (mut held, mut later) = (sample(), sample());
        held.left.insert("a build's process 7: sleep".to_owned());
        later.memory.insert(RSS, 1);
        later.levels.insert(TCP, 3);
        later.levels.insert(FDS, 30);
        held.settle(later);
        assert_eq!((held.memory[RSS], held.levels[TCP], held.levels[FDS]), (1, 3, 9));
        assert_eq!(held.left, ["messages in x.build".to_owned()].into());
    }
}
