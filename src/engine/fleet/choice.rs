//! Which host a build goes to.
//!
//! By rendezvous hashing: each application ranks all hosts in an order of its own, and its builds go to the
//! first. A host that comes or goes moves those applications alone whose first it is.

use image_builder_actors::model::digest::add_part;
use sha2::{Digest, Sha256};

/// How a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Whether it failed a moment ago.
    pub(super) is_out: bool,
    /// Whether it has as many builds in hand as it should.
    pub(super) is_full: bool,
    pub(super) in_hand: usize,
}

/// The hosts as an application ranks them, by their place in `hosts`. `repository` is its own, the user's name
/// included.
pub(super) fn rank<'a>(hosts: impl Iterator<Item = &'a str>, repository: &str) -> Vec<usize> {
    let score = |host: &str| {
        let mut hash = Sha256::new();
        add_part(&mut hash, host);
        add_part(&mut hash, repository);
        hash.finalize()
    };
    let mut scored: Vec<_> = hosts.map(score).enumerate().collect();
    scored.sort_by(|(_, one), (_, other)| other.cmp(one));
    scored.into_iter().map(|(at, _)| at).collect()
}

/// Whose turn it is, of hosts in the order of their rank: the first that has room; where all are full, the one
/// with the fewest in hand; and where all have failed, the first of them all the same.
pub(super) fn turn<T>(ranked: impl Iterator<Item = (T, Standing)>) -> Option<T> {
    let load = |standing: Standing| if standing.is_full { standing.in_hand } else { 0 };
    ranked.min_by_key(|(_, standing)| (standing.is_out, load(*standing))).map(|(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(hosts: &[&str], repository: &str) -> String {
        hosts[rank(hosts.iter().copied(), repository)[0]].to_owned()
    }

    #[test]
    fn applications_are_spread_and_only_those_of_a_host_that_goes_move() {
        let all = ["tcp://a", "tcp://b", "tcp://c"];
        let repositories: Vec<_> = (0..3000).map(|number| format!("user{number}/shop")).collect();
        for host in all {
            let share = repositories.iter().filter(|one| first(&all, one) == host).count();
            assert!((900..1100).contains(&share), "{host} has {share} of 3000");
        }
        for repository in &repositories {
            let before = first(&all, repository);
            let after = first(&all[..2], repository);
            assert!(before == all[2] || before == after, "{repository} moved without need");
            // The order in which they are written down is nothing.
            assert_eq!(first(&["tcp://c", "tcp://a", "tcp://b"], repository), before);
        }
    }

    #[test]
    fn the_first_with_room_is_next_then_the_least_loaded_then_the_first_at_all() {
        let of = |is_out, is_full, in_hand| Standing { is_out, is_full, in_hand };
        let next = |hosts: &[Standing]| turn(hosts.iter().copied().enumerate());
        assert_eq!(next(&[of(false, false, 1), of(false, false, 0)]), Some(0));
        assert_eq!(next(&[of(false, true, 2), of(false, false, 1)]), Some(1));
        assert_eq!(next(&[of(false, true, 5), of(false, true, 3), of(false, true, 3)]), Some(1));
        assert_eq!(next(&[of(true, false, 0), of(false, true, 9)]), Some(1));
        assert_eq!(next(&[of(true, false, 0), of(true, false, 0)]), Some(0));
        assert_eq!(next(&[]), None);
    }
}
