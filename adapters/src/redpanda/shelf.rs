//! What a reader has been given by librdkafka and not handed out yet, and what it owns. All of it is under one lock;
//! nothing here talks to a broker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use qi_core::Error;
use qi_core::bus::{Batch, Notice, Positions, TopicName, TopicPartition};

use super::message::Pack;

/// Consecutive messages of one partition.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) partition: TopicPartition,
    /// The ownership that they were fetched under.
    pub(super) key: u64,
    pub(super) messages: Pack,
    pub(super) bytes: usize,
}

/// One owned partition.
#[derive(Debug)]
pub(super) struct Owned {
    /// Names this ownership: what was fetched under another one is not handed out.
    pub(super) key: u64,
    /// What `recv` returns next.
    pub(super) position: u64,
    /// What librdkafka gives next.
    pub(super) fetched: u64,
    /// It does not do so yet, and has to be started there anew.
    pub(super) astray: bool,
    pub(super) committed: Option<u64>,
    /// A start that is not committed yet: nothing is handed out before.
    pub(super) unsettled: Option<u64>,
    /// What lies before it had gone when the position was reset.
    pub(super) floor: u64,
    /// How far was handed out before the position went down: the log was cut.
    cut: u64,
    pub(super) paused: bool,
    /// The position has gone, and it was to fail then; a seek mends it.
    pub(super) failed: Option<Error>,
    bytes: usize,
}

impl Owned {
    /// Whether `next` is beyond everything that was handed out.
    pub(super) fn is_beyond(&self, next: u64) -> bool {
        next > self.position.max(self.cut)
    }

    /// What a commit of `next` is to store. What has gone is no way back, or the commit of a batch from before a reset
    /// would undo it.
    pub(super) fn upto(&self, next: u64) -> u64 {
        self.instead_of(next).unwrap_or(next)
    }

    /// The broker has the commit `next`.
    pub(super) fn stored(&mut self, next: u64) {
        if let Some(settled) = self.instead_of(next) {
            // The reset came while the commit was under way.
            self.unsettled = Some(settled);
        } else {
            (self.committed, self.unsettled) = (Some(next), None);
        }
    }

    /// What is to be committed where `next` has gone: the valid commit stays.
    fn instead_of(&self, next: u64) -> Option<u64> {
        let settled = self.unsettled.or(self.committed).filter(|settled| *settled >= self.floor);
        if (self.position + 1..=self.cut).contains(&next) {
            // All before it was handed out and is asked to be committed.
            return settled.or(Some(self.position));
        }
        settled.filter(|_| next < self.floor)
    }

    /// The log was cut, if `to` lies before what was handed out.
    pub(super) fn go_back(&mut self, to: u64) {
        if to < self.position {
            self.cut = self.cut.max(self.position);
            self.position = to;
        }
    }
}

/// What is handed out: its messages are made when the lock is free again.
#[derive(Debug)]
pub(super) struct Parcel {
    packs: Vec<(TopicPartition, Pack)>,
    positions: Positions,
    news: Vec<Notice>,
}

impl Parcel {
    pub(super) fn unpack(self) -> Batch {
        let mut messages = Vec::with_capacity(self.packs.iter().map(|(_, pack)| pack.len()).sum());
        for (partition, pack) in self.packs {
            pack.unpack(&partition, &mut messages);
        }
        Batch::new(messages, self.positions, self.news)
    }
}

/// What is owned, buffered, and to be told.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    owned: BTreeMap<TopicPartition, Owned>,
    runs: VecDeque<Run>,
    epoch: u64,
    keys: u64,
    gained: Vec<TopicPartition>,
    lost: Vec<TopicPartition>,
    others: Vec<Notice>,
    /// Partitions that moved over offsets without a message since the last batch.
    skipped: BTreeSet<TopicPartition>,
}

impl Shelf {
    pub(super) fn owned(&self) -> &BTreeMap<TopicPartition, Owned> {
        &self.owned
    }

    pub(super) fn get_mut(&mut self, partition: &TopicPartition) -> Option<&mut Owned> {
        self.owned.get_mut(partition)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes over a partition that begins at `start`.
    pub(super) fn gain(&mut self, partition: TopicPartition, start: u64, committed: Option<u64>) {
        self.keys += 1;
        let owned = Owned {
            key: self.keys,
            position: start,
            fetched: start,
            astray: false,
            committed,
            unsettled: None,
            floor: 0,
            cut: 0,
            paused: false,
            failed: None,
            bytes: 0,
        };
        self.owned.insert(partition.clone(), owned);
        self.gained.push(partition);
    }

    /// Sets where librdkafka goes on in a partition, behind what is buffered of it. It begins at `low` now.
    pub(super) fn reset(&mut self, partition: &TopicPartition, to: u64, low: u64, commit: bool) {
        let Some(owned) = self.owned.get_mut(partition) else { return };
        // What is buffered from there on comes again, or the log has it no more: a commit of it would pass over what has
        // its offsets now.
        let mut ends = false;
        self.runs.retain_mut(|run| {
            if run.partition != *partition {
                return true;
            }
            let kept = if ends { 0 } else { run.messages.count_before(to) };
            if kept < run.messages.len() || ends {
                ends = true;
                run.messages = run.messages.take(kept);
                let bytes = run.messages.weight();
                owned.bytes = owned.bytes.saturating_sub(run.bytes.saturating_sub(bytes));
                run.bytes = bytes;
            }
            !ends || kept > 0
        });
        // A run that was handed out to its end is still there until the next look.
        let buffered = self.runs.iter().any(|run| run.partition == *partition && !run.messages.is_empty());
        self.skipped.remove(partition);
        self.others.push(Notice::Reset { partition: partition.clone(), from: owned.fetched, to });
        owned.go_back(to);
        (owned.fetched, owned.floor) = (to, low);
        if !buffered {
            owned.position = to;
        }
        if commit {
            owned.unsettled = Some(to);
        }
    }

    /// Gives partitions away, with what is buffered of them.
    pub(super) fn lose(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            if self.owned.remove(partition).is_some() {
                // What came and went between two batches is nobody's news.
                match self.gained.iter().position(|gained| gained == partition) {
                    Some(at) => drop(self.gained.remove(at)),
                    None => self.lost.push(partition.clone()),
                }
            }
        }
        let owned = &self.owned;
        self.runs.retain(|run| owned.contains_key(&run.partition));
        self.skipped.retain(|partition| owned.contains_key(partition));
    }

    /// Marks that the assignment changed.
    pub(super) fn turn(&mut self) {
        self.epoch += 1;
    }

    /// Gives everything away.
    pub(super) fn lose_all(&mut self) {
        if !self.owned.is_empty() {
            let all: Vec<_> = self.owned.keys().cloned().collect();
            self.lose(&all);
            self.turn();
        }
    }

    /// Everything was given to others, because nobody came to read.
    pub(super) fn pass_poll_limit(&mut self) {
        self.lose_all();
        self.others.push(Notice::PollLimitPassed);
    }

    /// Forgets the news of the first assignment, which `subscribe` itself answers for.
    pub(super) fn forget_gains(&mut self) {
        self.gained.clear();
    }

    /// Goes on elsewhere in a partition: what is buffered of it is dropped.
    pub(super) fn jump(&mut self, partition: &TopicPartition, to: u64) {
        self.runs.retain(|run| run.partition != *partition);
        self.skipped.remove(partition);
        self.keys += 1;
        if let Some(owned) = self.owned.get_mut(partition) {
            (owned.key, owned.position, owned.fetched, owned.bytes) = (self.keys, to, to, 0);
            (owned.cut, owned.failed) = (0, None);
        }
    }

    /// librdkafka was sent to where a partition goes on, or could not be.
    pub(super) fn send(&mut self, partition: &TopicPartition, sent: bool) {
        if let Some(owned) = self.owned.get_mut(partition) {
            owned.astray = !sent;
        }
    }

    /// librdkafka was sent to where every partition goes on.
    pub(super) fn send_all(&mut self) {
        self.owned.values_mut().for_each(|owned| owned.astray = false);
    }

    /// Puts fetched messages on the shelf, unless their partition went or jumped meanwhile.
    pub(super) fn put(&mut self, run: Run) {
        if let Some(owned) = self.owned.get_mut(&run.partition)
            && owned.key == run.key
        {
            if let Some(last) = run.messages.last_offset() {
                owned.fetched = last + 1;
            }
            owned.bytes += run.bytes;
            self.runs.push_back(run);
        }
    }

    /// The bytes that are buffered of partitions which are read; those of paused ones block nobody.
    pub(super) fn buffered(&self) -> usize {
        self.owned.values().filter(|owned| !owned.paused).map(|owned| owned.bytes).sum()
    }

    /// Up to `max` messages, in the order in which they were fetched.
    pub(super) fn take(&mut self, max: usize) -> Option<Parcel> {
        let mut packs = Vec::new();
        let mut positions = Positions::new();
        let (mut at, mut room) = (0, max);
        while at < self.runs.len() && room > 0 {
            let run = &mut self.runs[at];
            let Some(owned) = self.owned.get_mut(&run.partition).filter(|owned| owned.key == run.key) else {
                self.runs.remove(at);
                continue;
            };
            if owned.paused || owned.unsettled.is_some() || owned.failed.is_some() {
                at += 1;
                continue;
            }
            if run.messages.is_empty() {
                self.runs.remove(at);
                continue;
            }
            let pack = run.messages.take(room);
            room -= pack.len();
            let bytes = pack.weight();
            run.bytes = run.bytes.saturating_sub(bytes);
            owned.bytes = owned.bytes.saturating_sub(bytes);
            if let Some(last) = pack.last_offset() {
                let next = last + 1;
                positions.set(run.partition.clone(), next);
                // Behind the last one it goes on where librdkafka does, which a reset may have sent elsewhere.
                owned.position = if owned.bytes == 0 { owned.fetched } else { next };
            }
            packs.push((run.partition.clone(), pack));
        }
        if packs.is_empty() {
            return None;
        }
        self.add_skipped(&mut positions);
        Some(Parcel { packs, positions, news: self.news() })
    }

    /// A batch without messages, with what there is to tell.
    pub(super) fn nothing(&mut self) -> Batch {
        let mut positions = Positions::new();
        self.add_skipped(&mut positions);
        Batch::new(Vec::new(), positions, self.news())
    }

    /// Moves a partition to `to`: the offsets from `from` on hold no message. Does nothing if librdkafka's next offset
    /// is another one meanwhile.
    pub(super) fn skip(&mut self, partition: &TopicPartition, key: u64, from: u64, to: u64) {
        let Some(owned) = self.owned.get_mut(partition) else { return };
        if (owned.key, owned.fetched) != (key, from) || to <= from {
            return;
        }
        owned.fetched = to;
        if owned.bytes == 0 {
            owned.position = to;
        }
        self.skipped.insert(partition.clone());
    }

    /// Adds the positions of partitions that moved over offsets without a message, unless messages before wait.
    fn add_skipped(&mut self, positions: &mut Positions) {
        let owned = &self.owned;
        self.skipped.retain(|partition| {
            let Some(owned) = owned.get(partition) else { return false };
            let waits = owned.bytes > 0 || owned.unsettled.is_some() || owned.failed.is_some();
            if !waits {
                positions.set(partition.clone(), owned.position);
            }
            waits
        });
    }

    /// Tells that a topic was deleted.
    pub(super) fn deleted(&mut self, topic: TopicName) {
        self.others.push(Notice::TopicDeleted { topic });
    }

    /// The first partition that has failed and is not paused.
    pub(super) fn failure(&self) -> Option<Error> {
        self.owned.values().filter(|owned| !owned.paused).find_map(|owned| owned.failed.clone())
    }

    fn news(&mut self) -> Vec<Notice> {
        let mut news = std::mem::take(&mut self.others);
        if !self.gained.is_empty() || !self.lost.is_empty() {
            let (gained, lost) = (std::mem::take(&mut self.gained), std::mem::take(&mut self.lost));
            news.push(Notice::AssignmentChanged { gained, lost });
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: u32) -> TopicPartition {
        TopicPartition::new(TopicName::new("t").unwrap(), partition)
    }

    fn run(shelf: &Shelf, partition: u32, offsets: std::ops::Range<u8>) -> Run {
        let key = shelf.owned()[&at(partition)].key;
        let lengths: Vec<_> = offsets.clone().map(|_| 1).collect();
        let messages = Pack::of(offsets.start, &lengths, false);
        let bytes = messages.weight();
        Run { partition: at(partition), key, messages, bytes }
    }

    fn shelf(partitions: u32) -> Shelf {
        let mut shelf = Shelf::default();
        for partition in 0..partitions {
            shelf.gain(at(partition), 0, None);
        }
        shelf.forget_gains();
        shelf
    }

    fn take(shelf: &mut Shelf, max: usize) -> Vec<(u32, u64)> {
        let batch = shelf.take(max).map(Parcel::unpack).unwrap_or_default();
        batch.iter().map(|m| (m.partition, m.offset)).collect()
    }

    #[test]
    fn batches_are_cut_and_positions_follow() {
        let mut shelf = shelf(2);
        for (partition, offsets) in [(0, 0..5), (1, 0..3)] {
            let run = run(&shelf, partition, offsets);
            shelf.put(run);
        }
        assert_eq!(take(&mut shelf, 3), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!((shelf.owned()[&at(0)].position, shelf.owned()[&at(0)].fetched), (3, 5));
        assert_eq!(take(&mut shelf, 3), [(0, 3), (0, 4), (1, 0)]);
        assert_eq!((shelf.owned()[&at(1)].position, shelf.owned()[&at(1)].fetched), (1, 3));
        assert_eq!(take(&mut shelf, 10), [(1, 1), (1, 2)]);
        assert_eq!((shelf.buffered(), shelf.take(1).is_none()), (0, true));
    }

    #[test]
    fn a_paused_partition_holds_back_only_itself() {
        let mut shelf = shelf(2);
        for (partition, offsets) in [(0, 0..2), (1, 0..2)] {
            let run = run(&shelf, partition, offsets);
            shelf.put(run);
        }
        shelf.get_mut(&at(0)).unwrap().paused = true;
        let one = shelf.buffered();
        assert_eq!(take(&mut shelf, 10), [(1, 0), (1, 1)]);
        assert_eq!(shelf.buffered(), 0);
        shelf.get_mut(&at(0)).unwrap().paused = false;
        assert_eq!((shelf.buffered(), take(&mut shelf, 10)), (one, vec![(0, 0), (0, 1)]));
    }

    #[test]
    fn what_was_fetched_before_a_loss_or_a_jump_is_gone() {
        let mut shelf = shelf(2);
        let (old, other) = (run(&shelf, 0, 0..2), run(&shelf, 1, 0..2));
        shelf.jump(&at(0), 7);
        shelf.put(old);
        shelf.put(other);
        shelf.lose(&[at(1)]);
        assert!(shelf.take(10).is_none());
        assert_eq!((shelf.owned()[&at(0)].position, shelf.buffered()), (7, 0));
        let news = shelf.nothing();
        assert_eq!(news.notices(), [Notice::AssignmentChanged { gained: vec![], lost: vec![at(1)] }]);
    }

    #[test]
    fn a_reset_behind_buffered_messages_shows_once_they_are_taken() {
        let mut shelf = shelf(1);
        let run = run(&shelf, 0, 0..3);
        shelf.put(run);
        shelf.reset(&at(0), 9, 6, false);
        assert_eq!(take(&mut shelf, 2), [(0, 0), (0, 1)]);
        assert_eq!(shelf.owned()[&at(0)].position, 2);
        let batch = shelf.take(2).unwrap().unpack();
        assert_eq!(batch.positions().get(&at(0)), Some(3), "what a commit of this batch names");
        assert_eq!(shelf.owned()[&at(0)].position, 9, "what comes next");
    }

    #[test]
    fn a_reset_behind_a_batch_that_took_all_shows_at_once() {
        let mut shelf = shelf(1);
        let run = run(&shelf, 0, 0..3);
        shelf.put(run);
        assert_eq!(take(&mut shelf, 3).len(), 3);
        shelf.reset(&at(0), 9, 6, false);
        assert_eq!(shelf.owned()[&at(0)].position, 9);
    }

    #[test]
    fn a_late_commit_does_not_undo_a_reset() {
        let mut shelf = shelf(1);
        shelf.get_mut(&at(0)).unwrap().stored(3);
        shelf.reset(&at(0), 9, 6, true);
        let owned = shelf.get_mut(&at(0)).unwrap();
        assert_eq!((owned.upto(3), owned.upto(6), owned.upto(9)), (9, 6, 9), "before the start is settled");
        // The commit was under way when the reset came: the start is to be committed after it.
        owned.stored(3);
        assert_eq!((owned.committed, owned.unsettled), (Some(3), Some(9)));
        owned.stored(9);
        assert_eq!((owned.committed, owned.unsettled), (Some(9), None));
        assert_eq!((owned.upto(5), owned.upto(7)), (9, 7), "after it is settled");
        owned.stored(5);
        assert_eq!(owned.unsettled, Some(9), "once more, where a valid commit was overtaken");
        // Where nothing valid is known, it is as it was told.
        (owned.committed, owned.unsettled) = (Some(2), None);
        assert_eq!(owned.upto(3), 3);
    }

    #[test]
    fn a_commit_of_what_was_cut_off_keeps_the_new_start() {
        let mut shelf = shelf(1);
        shelf.get_mut(&at(0)).unwrap().stored(2);
        let run = run(&shelf, 0, 0..8);
        shelf.put(run);
        assert_eq!(take(&mut shelf, 8).len(), 8);
        // The log ends at 5 now, and the reader goes on there; the commit is still in it.
        shelf.reset(&at(0), 5, 0, false);
        let owned = shelf.get_mut(&at(0)).unwrap();
        assert!(!owned.is_beyond(8) && owned.is_beyond(9));
        assert_eq!((owned.upto(8), owned.upto(6), owned.upto(5), owned.upto(4)), (2, 2, 5, 4));
        // The commit was under way when the log was cut: the valid one is to be stored again.
        owned.stored(8);
        assert_eq!((owned.committed, owned.unsettled), (Some(2), Some(2)));
        owned.stored(5);
        assert_eq!((owned.committed, owned.unsettled), (Some(5), None));
        shelf.jump(&at(0), 5);
        assert!(shelf.owned()[&at(0)].is_beyond(6), "a seek of the caller's own is no cut");
    }

    #[test]
    fn what_was_cut_off_and_not_handed_out_is_dropped() {
        // The log was cut at 5. The reader goes on there, or at its beginning.
        for (read, to, rest, position) in [(2, 5, 3, 5), (4, 5, 1, 5), (7, 5, 0, 5), (2, 0, 0, 0)] {
            let mut shelf = shelf(2);
            shelf.get_mut(&at(0)).unwrap().stored(1);
            for (partition, offsets) in [(0, 0..4), (0, 4..8)] {
                let run = run(&shelf, partition, offsets);
                shelf.put(run);
            }
            assert_eq!(take(&mut shelf, read).len(), read);
            shelf.reset(&at(0), u64::from(to), 0, false);
            let owned = shelf.get_mut(&at(0)).unwrap();
            let next = read as u64;
            assert!(
                !owned.is_beyond(next) && owned.is_beyond(8),
                "{read} {to}: what was handed out is known"
            );
            assert_eq!(owned.upto(next), if next > u64::from(to) { 1 } else { next }, "{read} {to}");
            let other = run(&shelf, 1, 0..1);
            shelf.put(other);
            let new = run(&shelf, 0, to..9);
            shelf.put(new);
            assert_eq!(take(&mut shelf, rest).len(), rest);
            let commit = shelf.owned()[&at(0)].position;
            assert_eq!((commit, shelf.owned()[&at(0)].upto(commit)), (position, position), "{read} {to}");
            let new: Vec<_> = (to..9).map(|offset| (0, u64::from(offset))).collect();
            assert_eq!(take(&mut shelf, 20), [vec![(1, 0)], new].concat(), "{read} {to}");
            assert_eq!((shelf.owned()[&at(0)].position, shelf.buffered()), (9, 0));
        }
    }

    #[test]
    fn a_cut_without_a_valid_commit_keeps_what_is_still_there() {
        let mut shelf = shelf(1);
        let run = run(&shelf, 0, 0..8);
        shelf.put(run);
        assert_eq!(take(&mut shelf, 8).len(), 8);
        let owned = shelf.get_mut(&at(0)).unwrap();
        owned.go_back(5);
        assert_eq!((owned.upto(8), owned.upto(5), owned.upto(3), owned.is_beyond(9)), (5, 5, 3, true));
        // Twice, and then up: retention took the rest.
        shelf.reset(&at(0), 3, 0, false);
        assert_eq!(shelf.owned()[&at(0)].upto(8), 3);
        shelf.reset(&at(0), 20, 15, true);
        let owned = &shelf.owned()[&at(0)];
        assert_eq!((owned.upto(8), owned.upto(18), owned.is_beyond(21)), (20, 18, true));
    }

    #[test]
    fn offsets_without_a_message_are_in_the_positions_once_what_is_before_was_taken() {
        let mut shelf = shelf(2);
        let run = run(&shelf, 0, 0..3);
        shelf.put(run);
        let key = |shelf: &Shelf, partition| shelf.owned()[&at(partition)].key;
        let (first, second) = (key(&shelf, 0), key(&shelf, 1));
        shelf.skip(&at(0), first, 3, 5);
        shelf.skip(&at(1), second, 0, 2);
        assert_eq!((shelf.owned()[&at(0)].position, shelf.owned()[&at(1)].position), (0, 2));
        let batch = shelf.take(2).unwrap().unpack();
        let places =
            |batch: &Batch| batch.positions().iter().map(|(p, at)| (p.partition, at)).collect::<Vec<_>>();
        assert_eq!(places(&batch), [(0, 2), (1, 2)]);
        assert_eq!(places(&shelf.take(2).unwrap().unpack()), [(0, 5)], "the end behind the last message");
        assert!(!shelf.owned()[&at(0)].is_beyond(5));
        assert!(places(&shelf.nothing()).is_empty(), "only once");
        // An answer about another place or another ownership moves nothing.
        shelf.skip(&at(0), first, 3, 9);
        shelf.jump(&at(1), 0);
        shelf.skip(&at(1), second, 0, 2);
        assert_eq!((shelf.owned()[&at(0)].position, shelf.owned()[&at(1)].position), (5, 0));
        shelf.skip(&at(0), first, 5, 6);
        shelf.jump(&at(0), 1);
        assert!(places(&shelf.nothing()).is_empty(), "a seek is not a position to commit");
    }
}
