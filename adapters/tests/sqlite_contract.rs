//! The contract of the price store on SQLite files, and a disk without space.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sqlite_rig;

use std::io::Write as _;
use std::process::Command;

use libtest_mimic::{Completion, Failed};
use qi_adapters::sqlite::{SqliteConfig, SqliteStore};
use qi_core::store::{DeleteQuery, RangeQuery};
use qi_core::{
    ErrorKind, Instrument, PriceStore as _, PriceStoreExt as _, PriceTick, Selection, TimeRange, Timestamp,
};
use qi_testkit::presence;
use qi_testkit::store::contract::{Suite, Wrapper};
use sqlite_rig::Folder;
use tempfile::TempDir;

fn main() {
    let disk = SmallDisk::mount();
    let absent = disk.as_ref().err().cloned();
    let suite = Suite::new()
        .on(Folder::new(), [Wrapper::PLAIN, Wrapper::FULL_STACK])
        .on_representative(Folder::new(), [Wrapper::FULL_STACK_OVER_CHAOS])
        .with_trial(presence::trial(
            "sqlite/a_full_disk_is_not_retried_and_recovers".to_owned(),
            "sqlite",
            absent,
            move || full_disk(&disk?),
        ));
    suite.at_once(4).main();
}

/// A file system with space for a few thousand ticks.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts a file system, or returns the reason why this process cannot.
    fn mount() -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "qi"]).arg(folder.path()).output();
        match mount {
            Ok(done) if done.status.success() => Ok(Self(folder)),
            Ok(done) => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
            Err(error) => Err(format!("mount: {error}")),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn ticks(from: u64, count: u64) -> Vec<PriceTick> {
    let name: Instrument = "x:Y".parse().unwrap();
    let tick = |n| {
        let ts = Timestamp::from_secs(1_700_000_000 + i64::try_from(n).unwrap()).unwrap();
        PriceTick::new(name.clone(), ts, n, "1.5".parse().unwrap()).unwrap()
    };
    (from..from + count).map(tick).collect()
}

/// The disk becomes full in a commit. When it has space again, the same store writes, and its writes are durable.
fn full_disk(disk: &SmallDisk) -> Result<Completion, Failed> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let config = SqliteConfig::from_path(disk.0.path().join("prices.db"));
        let store = SqliteStore::open(config.clone()).unwrap();
        store.ensure_schema().await.unwrap();
        store.insert_ticks(&ticks(0, 100)).await.unwrap();
        let ballast = disk.0.path().join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[0; 4_096]).is_ok() {}
        for _ in 0..2 {
            let error = store.insert_ticks(&ticks(100, 5_000)).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.code(), error.retry().is_retryable()),
                (ErrorKind::Unavailable, "store.sqlite.disk_full", false),
                "{}",
                error.report()
            );
        }
        std::fs::remove_file(&ballast).unwrap();
        drop(file);
        store.ensure_schema().await.unwrap();
        store.insert_ticks(&ticks(100, 50)).await.unwrap();
        let start = TimeRange::before(Timestamp::from_secs(1_700_000_010).unwrap());
        let name: Instrument = "x:Y".parse().unwrap();
        store.delete_range(&DeleteQuery::ticks(Selection::one(name.clone()), start)).await.unwrap();
        // Another process sees the result of every call.
        let other = SqliteStore::open(config).unwrap();
        let found = other.ticks(&RangeQuery::new(name, TimeRange::ALL)).await.unwrap();
        assert_eq!(found.items, ticks(10, 140));
        other.close().await.unwrap();
        store.close().await.unwrap();
    });
    Ok(Completion::Completed)
}
