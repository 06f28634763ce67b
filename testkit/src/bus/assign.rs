//! Partition assignment: sticky, balanced and deterministic.

use std::collections::{BTreeMap, BTreeSet};

use qi_core::bus::{TopicName, TopicPartition};

/// A member for the assignment: its number and its topics.
pub(super) type Candidate<'a> = (u64, &'a [TopicName]);

/// Assigns `partitions` to the members that subscribe to their topics.
///
/// A member keeps the partitions that it has in `before`, as far as the balance allows. If all members read the same
/// topics, the largest share exceeds the smallest by at most one.
pub(super) fn assign(
    members: &[Candidate<'_>],
    partitions: &BTreeSet<TopicPartition>,
    before: &BTreeMap<TopicPartition, u64>,
) -> BTreeMap<TopicPartition, u64> {
    let eligible = |member: &Candidate<'_>, topic: &TopicName| member.1.contains(topic);
    let mut shares: BTreeMap<u64, BTreeSet<&TopicPartition>> =
        members.iter().map(|member| (member.0, BTreeSet::new())).collect();
    let mut free = Vec::new();
    for partition in partitions {
        let keeper = before.get(partition).and_then(|owner| {
            members.iter().find(|member| member.0 == *owner && eligible(member, &partition.topic))
        });
        match keeper {
            Some(keeper) => {
                shares.entry(keeper.0).or_default().insert(partition);
            }
            None => free.push(partition),
        }
    }
    for partition in free {
        let least = members
            .iter()
            .filter(|member| eligible(member, &partition.topic))
            .min_by_key(|member| (shares.get(&member.0).map_or(0, BTreeSet::len), member.0));
        if let Some(least) = least {
            shares.entry(least.0).or_default().insert(partition);
        }
    }
    while let Some((from, to, partition)) = next_move(members, &shares) {
        if let Some(share) = shares.get_mut(&from) {
            share.remove(partition);
        }
        shares.entry(to).or_default().insert(partition);
    }
    shares
        .into_iter()
        .flat_map(|(member, share)| share.into_iter().map(move |partition| (partition.clone(), member)))
        .collect()
}

/// Finds a partition to move, from the member with the largest share to a member with at least two partitions fewer.
fn next_move<'a>(
    members: &[Candidate<'_>],
    shares: &BTreeMap<u64, BTreeSet<&'a TopicPartition>>,
) -> Option<(u64, u64, &'a TopicPartition)> {
    let mut fullest: Vec<_> = shares.iter().collect();
    fullest.sort_by_key(|(member, share)| (std::cmp::Reverse(share.len()), **member));
    fullest.into_iter().find_map(|(from, share)| {
        share.iter().rev().find_map(|partition| {
            let to = members
                .iter()
                .filter(|member| member.1.contains(&partition.topic))
                .min_by_key(|member| (shares.get(&member.0).map_or(0, BTreeSet::len), member.0))?;
            let room = shares.get(&to.0).map_or(0, BTreeSet::len) + 2;
            (room <= share.len()).then_some((*from, to.0, *partition))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::new(name).unwrap()
    }

    fn all(counts: &[(&str, u32)]) -> BTreeSet<TopicPartition> {
        counts.iter().flat_map(|(name, n)| (0..*n).map(|p| TopicPartition::new(topic(name), p))).collect()
    }

    fn counts(assignment: &BTreeMap<TopicPartition, u64>, members: u64) -> Vec<usize> {
        (0..members).map(|m| assignment.values().filter(|owner| **owner == m).count()).collect()
    }

    #[test]
    fn assignment_is_balanced_and_moves_the_fewest_partitions() {
        let topics = [topic("a"), topic("b")];
        let partitions = all(&[("a", 7), ("b", 6)]);
        let mut before = BTreeMap::new();
        for joined in 1..=6_u64 {
            let members: Vec<Candidate<'_>> = (0..joined).map(|m| (m, &topics[..])).collect();
            let after = assign(&members, &partitions, &before);
            let shares = counts(&after, joined);
            assert_eq!(shares.iter().sum::<usize>(), 13);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
            let moved = after.iter().filter(|(p, m)| before.get(*p).is_some_and(|old| old != *m)).count();
            assert!(joined == 1 || moved <= *shares.last().unwrap(), "{moved} moved for {shares:?}");
            before = after;
        }
    }

    #[test]
    fn members_get_only_subscribed_topics() {
        let (a, b) = ([topic("a")], [topic("a"), topic("b")]);
        let assignment = assign(&[(0, &a), (1, &b)], &all(&[("a", 4), ("b", 4)]), &BTreeMap::new());
        assert_eq!(counts(&assignment, 2), [4, 4]);
        assert!(assignment.iter().all(|(p, m)| *m == 1 || p.topic.as_str() == "a"));
    }
}
