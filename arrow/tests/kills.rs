//! An export that is killed at random moments leaves no incomplete file, and the next run completes the archive.
//!
//! The test starts its own binary as the export. `QI_KILLS` sets the number of kills, by default 20.
#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use qi_arrow::{Archive, ExportOptions, ImportOptions, Manifest, ParquetReader, export, import};
use qi_core::{Datasets, PriceTick};
use qi_testkit::store::MemoryStore;

const FOLDER: &str = "QI_TEST_EXPORT_TO";
const DAYS: i64 = 40;
const TICKS_A_DAY: i64 = 2_000;

async fn store() -> MemoryStore {
    let store = rig::store().await;
    for symbol in ["BTC-USDT", "ETH-USDT"] {
        rig::insert_ticks(&store, &rig::ticks(&format!("binance:{symbol}"), DAYS, TICKS_A_DAY)).await;
    }
    store
}

/// The export that is killed. Without the variable, this is not a test.
#[tokio::test]
async fn export_in_a_child_process() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let store = store().await;
    std::fs::write(format!("{folder}.started"), "").unwrap();
    export(&store, &Archive::create(&folder).unwrap(), &ExportOptions::new([PriceTick::DATASET]))
        .await
        .unwrap();
}

fn start(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "export_in_a_child_process"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads every file that has its final name, and returns the numbers of complete data files and manifests.
fn check(folder: &Path) -> (usize, usize) {
    let (mut data, mut manifests) = (0, 0);
    for path in rig::files(folder) {
        let text = path.display().to_string();
        if text.starts_with("_partial/") || text == "_lock" {
            continue;
        }
        let path = folder.join(path);
        if text.ends_with(".parquet") {
            let reader = ParquetReader::new(PriceTick::DATASET, File::open(&path).unwrap()).unwrap();
            let stated = reader.content().unwrap().records;
            assert_eq!(reader.map(|records| records.unwrap().len() as u64).sum::<u64>(), stated, "{text}");
            assert_eq!(stated, TICKS_A_DAY.unsigned_abs(), "{text}");
            data += 1;
        } else if text == "_archive.json" {
            serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
        } else {
            Manifest::parse(&std::fs::read(path).unwrap()).unwrap();
            manifests += 1;
        }
    }
    (data, manifests)
}

#[test]
fn killed_exports_leave_complete_files_and_are_continued() {
    let kills: u32 = std::env::var("QI_KILLS").map_or(20, |text| text.parse().unwrap());
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("archive");
    let started = parent.path().join("archive.started");
    let files = 2 * usize::try_from(DAYS).unwrap();
    let mut progress = Vec::new();
    for _ in 0..kills {
        let _ = std::fs::remove_file(&started);
        let mut child = start(&folder);
        let deadline = Instant::now() + Duration::from_mins(1);
        while !started.exists() {
            assert!(Instant::now() < deadline, "the child did not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        // A random moment of an export that writes for about a second. On a busy machine, the first file takes longer.
        let empty = progress.iter().rev().take_while(|data| **data == 0).count() as u64;
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..60_000 * (1 + empty))));
        child.kill().unwrap();
        child.wait().unwrap();
        let (data, manifests) = if folder.exists() { check(&folder) } else { (0, 0) };
        assert!(manifests <= data && data <= files);
        progress.push(data);
        if data == files {
            // Every file exists: the remaining kills interrupt an export into a new folder.
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
    println!("data files after each kill: {progress:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let source = store().await;
        let archive = Archive::create(folder.to_str().unwrap()).unwrap();
        let report = export(&source, &archive, &ExportOptions::new([PriceTick::DATASET])).await.unwrap();
        assert_eq!(report.series.iter().map(|series| series.records).sum::<u64>(), 2 * 80_000);
        assert_eq!(check(&folder), (files, files));
        assert_eq!(std::fs::read_dir(folder.join("_partial")).unwrap().count(), 0);
        let target = rig::store().await;
        assert!(
            import(&target, &archive, &ImportOptions::new(Datasets::standard())).await.unwrap().is_good()
        );
        let all = rig::datasets();
        assert_eq!(rig::content(&target, &all).await, rig::content(&source, &all).await);
    });
    assert!(
        progress.iter().any(|data| (1..files).contains(data)),
        "no kill met an export in progress: {progress:?}"
    );
}
