//! The memory of an export and of an import does not grow with the number of records.
#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::alloc::System;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cap::Cap;
use qi_arrow::{
    Archive, Decimals, ExportOptions, ImportOptions, ParquetReader, ParquetWriter, export, import,
};
use qi_core::record::RecordVec;
use qi_core::{Datasets, PriceTick};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Returns the largest number of bytes that were allocated during `work`, beyond those at its beginning.
fn peak(work: impl FnOnce()) -> usize {
    let before = ALLOCATOR.allocated();
    let (highest, ended) = (AtomicUsize::new(before), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                highest.fetch_max(ALLOCATOR.allocated(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        work();
        ended.store(true, Ordering::Relaxed);
    });
    highest.load(Ordering::Relaxed) - before
}

/// Ten times the records may take at most a quarter more, and 2 MiB for the metadata of more row groups.
fn assert_bounded(what: &str, small: usize, large: usize) {
    println!("{what}: {small} bytes, with ten times the records {large} bytes");
    assert!(
        large < small + small / 4 + (2 << 20),
        "{what}: {small} bytes, with ten times the records {large} bytes"
    );
}

fn write(pages: usize) -> std::fs::File {
    let mut writer =
        ParquetWriter::new(PriceTick::DATASET, Decimals::Exact, tempfile::tempfile().unwrap()).unwrap();
    for page in 0..pages {
        let mut ticks = rig::ticks("binance:BTC-USDT", 1, 10_000);
        let mut random = fastrand::Rng::with_seed(page as u64);
        for tick in &mut ticks {
            let quantity = qi_core::Quantity::from_units(i128::from(random.u64(1..)) * 1_000_003).unwrap();
            *tick = tick.clone().with_quantity(quantity);
        }
        writer.write(RecordVec::from_vec(ticks).as_records()).unwrap();
    }
    writer.finish().unwrap().0
}

fn read(file: std::fs::File) {
    for records in ParquetReader::new(PriceTick::DATASET, file).unwrap() {
        records.unwrap();
    }
}

/// One test, because allocations are counted for the process.
#[test]
fn memory_is_bounded_by_the_batch() {
    // More than two row groups, so that the smaller file has a complete one.
    let (mut small, mut large) = (None, None);
    let writing = [peak(|| small = Some(write(28))), peak(|| large = Some(write(280)))];
    assert_bounded("writing a file", writing[0], writing[1]);
    let reading = [peak(|| read(small.take().unwrap())), peak(|| read(large.take().unwrap()))];
    assert_bounded("reading a file", reading[0], reading[1]);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut archives = Vec::new();
    let exporting = [200_000, 2_000_000].map(|count| {
        let store = runtime.block_on(async {
            let store = rig::store().await;
            for instrument in ["a:A", "a:B"] {
                rig::insert_ticks(&store, &rig::ticks(instrument, 1, count / 2)).await;
            }
            store
        });
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::folder(&folder).unwrap();
        let options = ExportOptions::new([PriceTick::DATASET]);
        let peak = peak(|| {
            let report = runtime.block_on(export(&store, &archive, &options)).unwrap();
            assert_eq!(report.series.iter().map(|series| series.records).sum::<u64>(), count.unsigned_abs());
        });
        archives.push((archive, folder, count.unsigned_abs()));
        peak
    });
    assert_bounded("exporting a store", exporting[0], exporting[1]);
    let importing: Vec<usize> = archives
        .iter()
        .map(|(archive, _, count)| {
            // The store has records with the same keys, so that it does not grow.
            let store = runtime.block_on(async {
                let store = rig::store().await;
                for instrument in ["a:A", "a:B"] {
                    let ticks = rig::ticks(instrument, 1, i64::try_from(*count / 2).unwrap());
                    rig::insert_ticks(&store, &ticks[1..]).await;
                }
                store
            });
            peak(|| {
                let options = ImportOptions::new(Datasets::standard());
                let report = runtime.block_on(import(&store, archive, &options)).unwrap();
                assert!(report.is_good() && report.records() == *count);
                assert!(report.series.values().all(|series| series.imported > 0));
            })
        })
        .collect();
    assert_bounded("importing an archive", importing[0], importing[1]);
}
