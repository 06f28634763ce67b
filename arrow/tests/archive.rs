//! Exports and imports after interruptions, changes of the store, and damage of the archive.
#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use arrow_array::RecordBatch;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{ParquetMetaDataReader, ParquetMetaDataWriter};
use qi_arrow::{
    Archive, Decimals, ExportOptions, ExportReport, ImportOptions, ImportReport, Manifest, ParquetReader,
    ParquetWriter, PeriodLength, encode, export, import,
};
use qi_core::layer::{Call, Layer, Layered};
use qi_core::record::{Row, Slice, Value};
use qi_core::store::{DeleteQuery, PriceStore};
use qi_core::{
    Bar, BoxFuture, Datasets, Error, ErrorKind, MarketSnapshot, Operation, PriceTick, Result, Selection,
    TimeRange,
};
use qi_testkit::store::MemoryStore;
use rig::{DAY, DAY_MICROS, time};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

const FOLDER: &str = "ticks/binance/BTC-USDT";

async fn export_ticks(store: &MemoryStore, folder: &Path) -> Result<ExportReport> {
    export(store, &Archive::folder(folder)?, &ExportOptions::new([PriceTick::DATASET])).await
}

async fn import_all(store: &MemoryStore, folder: &Path) -> Result<ImportReport> {
    import(store, &Archive::folder(folder)?, &ImportOptions::new(Datasets::standard())).await
}

/// A store with ticks on three days, and its export.
async fn exported() -> (MemoryStore, tempfile::TempDir) {
    let store = rig::store().await;
    rig::insert_ticks(&store, &rig::ticks("binance:BTC-USDT", 3, 10)).await;
    let folder = tempfile::tempdir().unwrap();
    let report = export_ticks(&store, folder.path()).await.unwrap();
    assert_eq!((report.series[0].written, report.series[0].records), (3, 30));
    (store, folder)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// Returns the error of the only file that fails.
async fn failure(folder: &Path) -> qi_core::Error {
    let mut report = import_all(&rig::store().await, folder).await.unwrap();
    assert_eq!((report.failed, report.is_good()), (1, false));
    report.failures.remove(0).1
}

fn bytes_of(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    rig::files(folder)
        .into_iter()
        .map(|file| (file.clone(), std::fs::read(folder.join(&file)).unwrap()))
        .collect()
}

#[tokio::test]
async fn export_writes_a_file_and_a_manifest_for_each_day() {
    let (_, folder) = exported().await;
    let names: Vec<String> =
        rig::files(folder.path()).iter().map(|path| path.display().to_string()).collect();
    let mut expected = vec!["_archive.json".to_owned(), "_lock".to_owned()];
    for day in ["2024-01-31", "2024-02-01", "2024-02-02"] {
        expected.push(format!("{FOLDER}/{day}.parquet"));
    }
    for day in ["2024-01-31", "2024-02-01", "2024-02-02"] {
        expected.push(format!("{FOLDER}/_{day}.json"));
    }
    assert_eq!(names, expected);
    let json = std::fs::read(folder.path().join(FOLDER).join("_2024-02-01.json")).unwrap();
    let manifest = Manifest::parse(&json).unwrap();
    let text = String::from_utf8(json).unwrap();
    assert!(text.contains("\"first\": \"2024-02-01T00:00:00"), "{text}");
    assert_eq!((manifest.content.records, manifest.period.to_string()), (10, "2024-02-01".to_owned()));
    let file = std::fs::File::open(folder.path().join(FOLDER).join("2024-02-01.parquet")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), manifest.bytes);
    assert_eq!(ParquetReader::new(PriceTick::DATASET, file).unwrap().content(), Some(&manifest.content));
}

#[tokio::test]
async fn second_export_writes_nothing() {
    let (store, folder) = exported().await;
    let before = bytes_of(folder.path());
    let modified = |path: &str| std::fs::metadata(folder.path().join(path)).unwrap().modified().unwrap();
    let file = format!("{FOLDER}/2024-02-01.parquet");
    let time = modified(&file);
    let report = export_ticks(&store, folder.path()).await.unwrap();
    assert_eq!((report.series[0].written, report.series[0].unchanged, report.series[0].records), (0, 3, 30));
    assert_eq!(bytes_of(folder.path()), before);
    assert_eq!(modified(&file), time);
}

#[tokio::test]
async fn late_corrected_and_deleted_records_replace_only_their_files() {
    let (store, folder) = exported().await;
    let before = bytes_of(folder.path());
    let instrument: qi_core::Instrument = "binance:BTC-USDT".parse().unwrap();
    let late =
        PriceTick::new(instrument.clone(), time(DAY + DAY_MICROS + 7), 77, "5".parse().unwrap()).unwrap();
    rig::insert_ticks(&store, &[late]).await;
    let report = export_ticks(&store, folder.path()).await.unwrap();
    assert_eq!((report.series[0].written, report.series[0].unchanged, report.series[0].records), (1, 2, 31));
    let changed: Vec<_> = bytes_of(folder.path()).into_iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(changed.len(), 2, "the file and its manifest");
    assert!(changed.iter().all(|(path, _)| path.display().to_string().contains("2024-02-01")));

    // The files of a period without records stay, and are reported.
    let last = TimeRange::since(time(DAY + 2 * DAY_MICROS));
    store.delete_range(&DeleteQuery::ticks(Selection::one(instrument), last)).await.unwrap();
    let report = export_ticks(&store, folder.path()).await.unwrap();
    assert_eq!((report.series[0].written, report.series[0].unchanged, report.series[0].surplus), (0, 2, 1));
    assert!(folder.path().join(FOLDER).join("2024-02-02.parquet").is_file());
}

#[tokio::test]
async fn missing_damaged_and_mismatched_files_are_written_again() {
    let (store, folder) = exported().await;
    let complete = bytes_of(folder.path());
    let at = |name: &str| folder.path().join(FOLDER).join(name);
    let data = std::fs::read(at("2024-01-31.parquet")).unwrap();
    let other = std::fs::read(at("2024-02-01.parquet")).unwrap();
    let damages: [&dyn Fn(); 8] = [
        &|| std::fs::remove_file(at("2024-01-31.parquet")).unwrap(),
        &|| std::fs::remove_file(at("_2024-01-31.json")).unwrap(),
        &|| std::fs::write(at("2024-01-31.parquet"), &data[..data.len() - 100]).unwrap(),
        &|| std::fs::write(at("_2024-01-31.json"), "{").unwrap(),
        &|| {
            std::fs::write(at("2024-01-31.parquet"), "").unwrap();
            let text = std::fs::read_to_string(at("_2024-01-31.json")).unwrap();
            let bytes = format!("\"bytes\": {}", data.len());
            std::fs::write(at("_2024-01-31.json"), text.replace(&bytes, "\"bytes\": 0")).unwrap();
        },
        // A file of another version of the program with the same records.
        &|| {
            let text = std::fs::read_to_string(at("_2024-01-31.json")).unwrap();
            std::fs::write(at("_2024-01-31.json"), text.replace("\"qi-arrow ", "\"qi-arrow x")).unwrap();
        },
        // An export that was killed between the file and its manifest, and a store that is as before.
        &|| std::fs::write(at("2024-01-31.parquet"), &other).unwrap(),
        &|| {
            let text = std::fs::read_to_string(at("_2024-01-31.json")).unwrap();
            std::fs::write(at("_2024-01-31.json"), text.replace("\"records\": 10", "\"records\": 11"))
                .unwrap();
        },
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        damage();
        let report = export_ticks(&store, folder.path()).await.unwrap();
        assert_eq!((report.series[0].written, report.series[0].unchanged), (1, 2), "damage {n}");
        assert_eq!(bytes_of(folder.path()), complete, "damage {n}");
    }
    // A changed byte is found only if the files are read.
    let mut flipped = data.clone();
    flipped[40] ^= 1;
    std::fs::write(at("2024-01-31.parquet"), &flipped).unwrap();
    assert_eq!(export_ticks(&store, folder.path()).await.unwrap().series[0].written, 0);
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.verify_existing = true;
    let report = export(&store, &Archive::folder(&folder).unwrap(), &options).await.unwrap();
    assert_eq!(report.series[0].written, 1);
    assert_eq!(bytes_of(folder.path()), complete);
}

#[tokio::test]
async fn stale_partial_files_are_removed_and_links_are_not_followed() {
    let (store, folder) = exported().await;
    std::fs::write(folder.path().join("_partial/file-abc"), "half").unwrap();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("precious");
    std::fs::write(&target, "mine").unwrap();
    let file = folder.path().join(FOLDER).join("2024-01-31.parquet");
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&target, &file).unwrap();
    export_ticks(&store, folder.path()).await.unwrap();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "mine");
    assert!(file.symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read_dir(folder.path().join("_partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn archive_keeps_the_settings_of_its_first_export() {
    let (store, folder) = exported().await;
    let archive = Archive::folder(&folder).unwrap();
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.period = Some(PeriodLength::Month);
    let error = export(&store, &archive, &options).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "archive.settings"));
    assert!(error.report().contains("one file for each day; use --period day"), "{}", error.report());
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.decimals = Decimals::Float64;
    let error = export(&store, &archive, &options).await.unwrap_err();
    assert_eq!(error.code(), "archive.settings");
    assert!(error.report().contains("exact decimals; omit --floats"), "{}", error.report());

    // Without a period, an export uses that of the archive.
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::folder(&folder).unwrap();
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.period = Some(PeriodLength::Month);
    assert_eq!(export(&store, &archive, &options).await.unwrap().series[0].written, 2);
    assert_eq!(export_ticks(&store, folder.path()).await.unwrap().series[0].unchanged, 2);
    options.period = None;
    options.range = TimeRange::since(time(DAY));
    let error = export(&store, &archive, &options).await.unwrap_err();
    assert!(error.report().contains("start of a month"), "{}", error.report());
}

#[tokio::test]
async fn doubles_are_exported_and_not_imported() {
    let store = rig::store().await;
    rig::insert_ticks(&store, &rig::ticks("binance:BTC-USDT", 3, 10)).await;
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::folder(&folder).unwrap();
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.decimals = Decimals::Float64;
    assert_eq!(export(&store, &archive, &options).await.unwrap().series[0].written, 3);
    assert_eq!(export(&store, &archive, &options).await.unwrap().series[0].unchanged, 3);
    let target = rig::store().await;
    let report = import_all(&target, folder.path()).await.unwrap();
    assert_eq!((report.failed, target.rows()), (3, 0));
    for (_, error) in &report.failures {
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, "archive.decimals"));
    }
}

#[tokio::test]
async fn range_must_not_cut_a_period_and_selects_files() {
    let (store, folder) = exported().await;
    let archive = Archive::folder(&folder).unwrap();
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.range = TimeRange::since(time(DAY + 1));
    let error = export(&store, &archive, &options).await.unwrap_err();
    assert_eq!((error.code(), error.context_value("field")), ("archive.range", Some("since")));
    options.range = TimeRange::new(time(DAY + DAY_MICROS), time(DAY + 2 * DAY_MICROS)).unwrap();
    let report = export(&store, &archive, &options).await.unwrap();
    assert_eq!((report.series[0].unchanged, report.series[0].surplus), (1, 0));

    let target = rig::store().await;
    let mut import_options = ImportOptions::new(Datasets::standard());
    import_options.range = options.range;
    let report = import(&target, &archive, &import_options).await.unwrap();
    assert_eq!((report.records(), target.rows()), (10, 10));
}

#[tokio::test]
async fn unknown_instrument_is_not_found() {
    let (store, folder) = exported().await;
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.instruments.insert("binance:NONE".parse().unwrap());
    let error = export(&store, &Archive::folder(&folder).unwrap(), &options).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.context_value("instrument")),
        (ErrorKind::NotFound, Some("binance:NONE"))
    );
    assert!(error.message().unwrap().ends_with("selected datasets: ticks"), "{error}");
    // An instrument does not restrict a dataset of names.
    options.datasets = vec![MarketSnapshot::DATASET];
    assert!(export(&store, &Archive::folder(&folder).unwrap(), &options).await.unwrap().series.is_empty());
}

#[tokio::test]
async fn instrument_whose_records_were_deleted_does_not_stop_an_export() {
    let (store, folder) = exported().await;
    rig::insert_ticks(&store, &rig::ticks("binance:ETH-USDT", 1, 10)).await;
    let archive = Archive::folder(&folder).unwrap();
    let deleted: qi_core::Instrument = "binance:BTC-USDT".parse().unwrap();
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.instruments = [deleted.clone(), "binance:ETH-USDT".parse().unwrap()].into();
    assert_eq!(export(&store, &archive, &options).await.unwrap().orphaned, 0);
    store.delete_range(&DeleteQuery::ticks(Selection::one(deleted), TimeRange::ALL)).await.unwrap();
    let report = export(&store, &archive, &options).await.unwrap();
    assert_eq!((report.series.len(), report.series[0].unchanged, report.orphaned), (1, 1, 3));
}

#[tokio::test]
async fn repeated_dataset_is_exported_once() {
    let (store, folder) = exported().await;
    let archive = Archive::folder(&folder).unwrap();
    let report = export(&store, &archive, &ExportOptions::new([PriceTick::DATASET; 2])).await.unwrap();
    assert_eq!((report.series.len(), report.series[0].unchanged, report.orphaned), (1, 3, 0));
}

#[tokio::test]
async fn two_exports_into_one_folder_conflict() {
    let (store, folder) = exported().await;
    let lock = std::fs::File::open(folder.path().join("_lock")).unwrap();
    lock.lock().unwrap();
    let error = export_ticks(&store, folder.path()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Conflict, "archive.locked"));
    drop(lock);
    export_ticks(&store, folder.path()).await.unwrap();
}

#[tokio::test]
async fn import_can_be_repeated() {
    let (source, folder) = exported().await;
    let target = rig::store().await;
    let key = |report: &ImportReport| {
        let series = report.series.values().next().unwrap();
        (series.imported, series.unchanged, series.records, series.failed)
    };
    let report = import_all(&target, folder.path()).await.unwrap();
    assert_eq!((report.is_good(), key(&report)), (true, (3, 0, 30, 0)));
    let all = rig::datasets();
    assert_eq!(rig::content(&target, &all).await, rig::content(&source, &all).await);
    let report = import_all(&target, folder.path()).await.unwrap();
    assert_eq!((report.is_good(), key(&report)), (true, (0, 3, 30, 0)));
}

#[tokio::test]
async fn import_reports_a_store_with_more_records() {
    let (_, folder) = exported().await;
    let target = rig::store().await;
    let instrument = "binance:BTC-USDT".parse().unwrap();
    let more = PriceTick::new(instrument, time(DAY + 7), 77, "5".parse().unwrap()).unwrap();
    rig::insert_ticks(&target, &[more]).await;
    let report = import_all(&target, folder.path()).await.unwrap();
    assert_eq!((report.failed, report.failures[0].1.code()), (1, "archive.different"));
    assert_eq!(target.rows(), 31);
}

#[tokio::test]
async fn import_rejects_files_that_differ_from_their_manifests() {
    let (_, folder) = exported().await;
    let at = |name: &str| folder.path().join(FOLDER).join(name);
    let restore = |name: &str, bytes: &[u8]| std::fs::write(at(name), bytes).unwrap();
    let data = std::fs::read(at("2024-01-31.parquet")).unwrap();
    let json = std::fs::read_to_string(at("_2024-01-31.json")).unwrap();

    std::fs::remove_file(at("2024-01-31.parquet")).unwrap();
    assert_eq!(failure(folder.path()).await.kind(), ErrorKind::NotFound);
    let mut flipped = data.clone();
    flipped[40] ^= 1;
    restore("2024-01-31.parquet", &flipped);
    assert_eq!(failure(folder.path()).await.code(), "archive.file.changed");
    restore("2024-01-31.parquet", &data[..200]);
    assert_eq!(failure(folder.path()).await.code(), "archive.file.changed");
    restore("2024-01-31.parquet", &[&data[..], &vec![0; 1_000_000]].concat());
    assert_eq!(failure(folder.path()).await.code(), "archive.file.changed");
    restore("2024-01-31.parquet", &data);

    for (from, to, code) in [
        ("\"format\": 1", "\"format\": 2", "archive.manifest.format"),
        ("\"dataset\": \"ticks\"", "\"dataset\": \"nothing\"", "archive.dataset"),
        ("\"dataset\": \"ticks\"", "\"dataset\": \"quotes\"", "archive.manifest.path"),
        ("\"version\": 1", "\"version\": 9", "archive.version"),
        ("\"symbol\": \"BTC-USDT\"", "\"symbol\": \"ETH-USDT\"", "archive.manifest.path"),
        ("\"period\": \"2024-01-31\"", "\"period\": \"2024-01-30\"", "archive.manifest.path"),
        ("\"period\": \"2024-01-31\"", "\"period\": \"../../../x\"", "archive.manifest"),
        ("\"decimals\": \"exact\"", "\"decimals\": \"float64\"", "archive.decimals"),
        ("\"exchange\": \"binance\"", "\"exchange\": \"../..\"", "domain.exchange"),
        ("{", "", "archive.manifest"),
    ] {
        let changed = json.replacen(from, to, 1);
        assert_ne!(changed, json, "{from}");
        restore("_2024-01-31.json", changed.as_bytes());
        let error = failure(folder.path()).await;
        assert_eq!(error.code(), code, "{from} -> {to}: {}", error.report());
    }
    let mut endless = Manifest::parse(json.as_bytes()).unwrap();
    endless.bytes = u64::MAX;
    restore("_2024-01-31.json", &serde_json::to_vec(&endless).unwrap());
    assert_eq!(failure(folder.path()).await.code(), "archive.file.changed");
    restore("_2024-01-31.json", &vec![b' '; 100_000]);
    assert_eq!(failure(folder.path()).await.code(), "archive.manifest");
    restore("_2024-01-31.json", json.as_bytes());
    assert!(import_all(&rig::store().await, folder.path()).await.unwrap().is_good());
}

#[tokio::test]
async fn import_reports_files_without_manifest_and_manifests_without_file() {
    let (_, folder) = exported().await;
    std::fs::remove_file(folder.path().join(FOLDER).join("_2024-01-31.json")).unwrap();
    std::fs::remove_file(folder.path().join(FOLDER).join("2024-02-01.parquet")).unwrap();
    let target = rig::store().await;
    let report = import_all(&target, folder.path()).await.unwrap();
    assert_eq!((report.failed, report.records(), target.rows()), (2, 10, 10));
    assert!(report.failures.iter().all(|(_, error)| error.code() == "archive.file.missing"));
}

#[tokio::test]
async fn files_without_a_usable_manifest_count_in_the_row_of_their_folder() {
    let (_, folder) = exported().await;
    let at = |name: &str| folder.path().join(FOLDER).join(name);
    let json = std::fs::read_to_string(at("_2024-01-31.json")).unwrap();
    let data = std::fs::read(at("2024-01-31.parquet")).unwrap();
    for damage in 0..6 {
        match damage {
            0 => std::fs::remove_file(at("_2024-01-31.json")).unwrap(),
            1 => std::fs::remove_file(at("2024-01-31.parquet")).unwrap(),
            2 => std::fs::write(at("_2024-01-31.json"), "").unwrap(),
            3 => std::fs::write(at("_2024-01-31.json"), " ".repeat(100_000)).unwrap(),
            4 => std::fs::write(at("_2024-01-31.json"), json.replace("BTC-USDT", "ETH-USDT")).unwrap(),
            _ => std::fs::write(at("_2024-01-31.json"), json.replace("\"version\": 1", "\"version\": 9"))
                .unwrap(),
        }
        let report = import_all(&rig::store().await, folder.path()).await.unwrap();
        let rows: Vec<_> = report.series.iter().collect();
        assert_eq!((rows.len(), rows[0].1.failed, rows[0].1.imported), (1, 1, 2), "damage {damage}");
        assert_eq!((rows[0].0.1.to_string(), report.failed), ("binance:BTC-USDT".to_owned(), 1));
        std::fs::write(at("_2024-01-31.json"), &json).unwrap();
        std::fs::write(at("2024-01-31.parquet"), &data).unwrap();
    }
    // A file in a folder that is not that of a series.
    std::fs::create_dir(at("sub")).unwrap();
    std::fs::write(at("sub/2024-01-31.parquet"), &data).unwrap();
    let report = import_all(&rig::store().await, folder.path()).await.unwrap();
    let failed: u64 = report.series.values().map(|series| series.failed).sum();
    assert_eq!((report.failed, report.series.len(), failed), (1, 1, 0));
}

#[tokio::test]
async fn import_reports_unknown_datasets_and_ignores_other_folders() {
    let (_, folder) = exported().await;
    std::fs::create_dir(folder.path().join("lost+found")).unwrap();
    std::fs::create_dir(folder.path().join("scripts")).unwrap();
    std::fs::write(folder.path().join("scripts/2024-01-31.parquet"), "").unwrap();
    std::fs::create_dir_all(folder.path().join("rates/BTC")).unwrap();
    std::fs::write(folder.path().join("rates/BTC/_2024-01-31.json"), "{}").unwrap();
    let report = import_all(&rig::store().await, folder.path()).await.unwrap();
    assert_eq!((report.failed, report.records()), (1, 30));
    let (name, error) = &report.failures[0];
    assert_eq!((name.as_str(), error.code()), ("rates", "archive.dataset"));
    assert_eq!(error.context_value("dataset"), Some("rates"));

    // A selection of datasets does not select the unknown dataset.
    let mut options = ImportOptions::new(Datasets::standard());
    options.datasets = vec![PriceTick::DATASET];
    let archive = Archive::folder(&folder).unwrap();
    let report = import(&rig::store().await, &archive, &options).await.unwrap();
    assert_eq!((report.is_good(), report.records()), (true, 30));
}

/// The Parquet crate panics for some damaged files. Their manifests are right, so only the reader can detect the damage.
#[tokio::test]
async fn damaged_files_with_right_manifests_fail_one_by_one() {
    let (_, folder) = exported().await;
    let at = |name: &str| folder.path().join(FOLDER).join(name);
    let data = std::fs::read(at("2024-01-31.parquet")).unwrap();
    let manifest = Manifest::parse(&std::fs::read(at("_2024-01-31.json")).unwrap()).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut failed = 0;
    for _ in 0..600 {
        let mut damaged = data.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(4..damaged.len());
            damaged[at] = random.u8(..);
        }
        let mut manifest = manifest.clone();
        manifest.sha256 = hex(&Sha256::digest(&damaged));
        std::fs::write(at("2024-01-31.parquet"), &damaged).unwrap();
        std::fs::write(at("_2024-01-31.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
        let target = rig::store().await;
        let report = import_all(&target, folder.path()).await.unwrap();
        // The two other files are imported in any case.
        assert!(target.rows() >= 20 && report.failed <= 1);
        failed += report.failed;
    }
    assert!(failed > 300, "{failed} of 600 damaged files failed");
}

/// A footer whose first schema has one element, and whose last schema has groups in each other, or a file with only
/// the last schema.
fn nested_groups(groups: u32, is_repeated: bool) -> Vec<u8> {
    // The fields of a Thrift struct: the difference to the number of the field before and the type, then the value.
    const ROOT: [u8; 4] = [0x48, 1, b'a', 0];
    const GROUP: [u8; 8] = [0x35, 0, 0x18, 1, b'a', 0x15, 2, 0];
    const LEAF: [u8; 8] = [0x15, 4, 0x25, 0, 0x18, 1, b'a', 0];
    let mut footer = vec![0x15, 2, 0x19];
    if is_repeated {
        footer.push(0x1c);
        footer.extend(ROOT);
        footer.extend([0x09, 4]);
    }
    footer.push(0xfc);
    let mut elements = groups + 1;
    while elements > 0x7f {
        footer.push(u8::try_from(elements & 0x7f).unwrap() | 0x80);
        elements >>= 7;
    }
    footer.push(u8::try_from(elements).unwrap());
    footer.extend(GROUP.repeat(groups as usize));
    footer.extend(LEAF);
    footer.extend([0x16, 0, 0x19, 0x0c, 0]);
    file_of_footer(&footer)
}

fn file_of_footer(footer: &[u8]) -> Vec<u8> {
    let length = u32::try_from(footer.len()).unwrap().to_le_bytes();
    [b"PAR1", footer, &length, b"PAR1"].concat()
}

/// The Parquet crate has a recursion for each nested group. A stack overflow would end the process.
#[tokio::test]
async fn schemas_of_nested_groups_fail_and_are_replaced() {
    let (store, folder) = exported().await;
    for (groups, is_repeated) in [(1, false), (8, false), (9, false), (200_000, false), (200_000, true)] {
        replace_file(folder.path(), &nested_groups(groups, is_repeated));
        let error = failure(folder.path()).await;
        assert_eq!(error.kind(), ErrorKind::CorruptData, "{groups}: {}", error.report());
        let is_refused = error.report().contains("at most 8 groups");
        assert_eq!(is_refused, groups > 8 && !is_repeated, "{groups}: {}", error.report());
        let report = export_ticks(&store, folder.path()).await.unwrap();
        assert_eq!((report.series[0].written, report.series[0].unchanged), (1, 2), "{groups}");
    }
    // A root with 2^31 - 1 children: field 5 with its number after a zero, as 5 and as 65,541, which the crate truncates
    // to 5, and as a boolean; and a list of 10,000 elements.
    let children = [0xfe, 0xff, 0xff, 0xff, 0x0f];
    for field in [&[0x15][..], &[0x05, 10], &[0x05, 0x8a, 0x80, 0x08], &[0x11]] {
        let footer = [&[0x15, 2, 0x19, 0x1c, 0x48, 1, b'a'], field, &children, &[0, 0]].concat();
        replace_file(folder.path(), &file_of_footer(&footer));
        let error = failure(folder.path()).await;
        assert!(error.report().contains("at most 8 groups"), "{field:x?}: {}", error.report());
    }
    replace_file(
        folder.path(),
        &file_of_footer(&[&[0x15, 2, 0x19, 0xfc, 0x90, 0x4e][..], &[0; 10_000]].concat()),
    );
    let error = failure(folder.path()).await;
    assert!(error.report().contains("at most 1000 elements"), "{}", error.report());
    let report = export_ticks(&store, folder.path()).await.unwrap();
    assert_eq!((report.series[0].written, report.series[0].unchanged), (1, 2));
    // A file with nested groups in an object store.
    let memory: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let archive = Archive::in_store(memory.clone(), "").unwrap();
    let options = ExportOptions::new([PriceTick::DATASET]);
    export(&store, &archive, &options).await.unwrap();
    let file = nested_groups(200_000, false);
    replace_file(folder.path(), &file);
    for name in ["2024-01-31.parquet", "_2024-01-31.json"] {
        let bytes = std::fs::read(folder.path().join(FOLDER).join(name)).unwrap();
        memory.put(&format!("{FOLDER}/{name}").into(), bytes.into()).await.unwrap();
    }
    let report = export(&store, &archive, &options).await.unwrap();
    assert_eq!((report.series[0].written, report.series[0].unchanged), (1, 2));
}

/// Reading `/proc/self/mem` at its beginning fails, also for root.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn unreadable_files_fail_one_by_one() {
    for name in ["2024-01-31.parquet", "_2024-01-31.json"] {
        let (_, folder) = exported().await;
        let path = folder.path().join(FOLDER).join(name);
        if name.ends_with("parquet") {
            replace_file(folder.path(), &[]);
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        let target = rig::store().await;
        let report = import_all(&target, folder.path()).await.unwrap();
        assert_eq!((report.failed, report.records(), target.rows()), (1, 20, 20), "{name}");
        let error = &report.failures[0].1;
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, "archive.file"), "{name}");
    }
}

/// Rejects inserts after the first `left`.
#[derive(Debug, Clone)]
struct LimitedInserts {
    left: Arc<AtomicUsize>,
}

impl Layer for LimitedInserts {
    fn name(&self) -> &'static str {
        "LimitedInserts"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        let take = |left: usize| left.checked_sub(1);
        if call.operation == Operation::Insert
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err()
        {
            return Box::pin(std::future::ready(Err(Error::new(ErrorKind::Unavailable, "test", "insert"))));
        }
        future
    }
}

#[tokio::test]
async fn error_of_the_store_keeps_the_report_of_earlier_files() {
    let (_, folder) = exported().await;
    std::fs::write(folder.path().join(FOLDER).join("_2024-01-31.json"), "{").unwrap();
    let memory = Arc::new(rig::store().await);
    let store = Layered::new(memory.clone(), LimitedInserts { left: Arc::new(1.into()) });
    let archive = Archive::folder(&folder).unwrap();
    let report = import(&store, &archive, &ImportOptions::new(Datasets::standard())).await.unwrap();
    let error = report.error.as_ref().unwrap();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, "test"));
    assert_eq!(error.context_value("file"), Some("ticks/binance/BTC-USDT/2024-02-02.parquet"));
    assert_eq!((report.failed, report.records(), memory.rows()), (1, 10, 10));
    assert!(!report.is_good() && !report.interrupted);
}

#[tokio::test]
async fn files_that_the_options_do_not_select_are_not_read() {
    let (_, folder) = exported().await;
    let at = |name: &str| folder.path().join(FOLDER).join(name);
    std::fs::write(at("_2024-01-31.json"), "{").unwrap();
    std::fs::remove_file(at("_2024-02-02.json")).unwrap();
    // A symbol that begins with the name of the selected one.
    std::fs::create_dir(folder.path().join("ticks/binance/BTC-USDT2")).unwrap();
    std::fs::write(folder.path().join("ticks/binance/BTC-USDT2/_2024-02-01.json"), "{").unwrap();
    let archive = Archive::folder(&folder).unwrap();
    let mut options = ImportOptions::new(Datasets::standard());
    options.range = TimeRange::new(time(DAY + DAY_MICROS), time(DAY + 2 * DAY_MICROS)).unwrap();
    options.instruments.insert("binance:BTC-USDT".parse().unwrap());
    let report = import(&rig::store().await, &archive, &options).await.unwrap();
    assert_eq!((report.is_good(), report.records()), (true, 10), "{:?}", report.failures);
    options.instruments = ["binance:ETH-USDT".parse().unwrap()].into();
    let report = import(&rig::store().await, &archive, &options).await.unwrap();
    let is_missing = report.missing == options.instruments;
    assert_eq!((is_missing, report.failed, report.records()), (true, 0, 0), "{:?}", report.failures);
}

#[tokio::test]
async fn import_reports_instruments_without_a_file() {
    let store = rig::store().await;
    rig::insert_ticks(&store, &rig::ticks("binance:BTC-USDT", 1, 10)).await;
    let snapshots = qi_core::record::RecordVec::from_vec(rig::records::<MarketSnapshot>(&[(0, 0, 0, 1)]));
    rig::insert(&store, snapshots.as_records()).await;
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::folder(&folder).unwrap();
    let options = ExportOptions::new([PriceTick::DATASET, MarketSnapshot::DATASET]);
    export(&store, &archive, &options).await.unwrap();
    let absent: qi_core::Instrument = "binance:NONE".parse().unwrap();
    let mut options = ImportOptions::new(Datasets::standard());
    options.instruments = ["binance:BTC-USDT".parse().unwrap(), absent.clone()].into();
    let report = import(&rig::store().await, &archive, &options).await.unwrap();
    assert_eq!((report.is_good(), report.records()), (false, 11), "{:?}", report.failures);
    assert_eq!(Vec::from_iter(report.missing), [absent]);
    // An instrument does not restrict a dataset of names.
    options.datasets = vec![MarketSnapshot::DATASET];
    let report = import(&rig::store().await, &archive, &options).await.unwrap();
    assert_eq!((report.is_good(), report.records()), (true, 1), "{:?}", report.missing);
    // An instrument outside the range is not missing.
    options.datasets = vec![PriceTick::DATASET];
    options.instruments = ["binance:BTC-USDT".parse().unwrap()].into();
    options.range = TimeRange::since(time(DAY + DAY_MICROS));
    let report = import(&rig::store().await, &archive, &options).await.unwrap();
    assert_eq!((report.is_good(), report.records()), (true, 0), "{:?}", report.missing);
}

#[tokio::test]
async fn import_rejects_a_range_that_cuts_a_period() {
    for (period, start, rule) in
        [(PeriodLength::Day, DAY + 1, "a day"), (PeriodLength::Month, DAY, "a month")]
    {
        let store = rig::store().await;
        rig::insert_ticks(&store, &rig::ticks("binance:BTC-USDT", 3, 10)).await;
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::folder(&folder).unwrap();
        let mut options = ExportOptions::new([PriceTick::DATASET]);
        options.period = Some(period);
        export(&store, &archive, &options).await.unwrap();
        for (range, field) in
            [(TimeRange::since(time(start)), "since"), (TimeRange::before(time(start)), "until")]
        {
            options.range = range;
            let exported = export(&store, &archive, &options).await.unwrap_err();
            let mut options = ImportOptions::new(Datasets::standard());
            options.range = range;
            let target = rig::store().await;
            let error = import(&target, &archive, &options).await.unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "archive.range"));
            assert_eq!((error.context_value("field"), target.rows()), (Some(field), 0));
            assert!(error.report().contains(rule), "{}", error.report());
            assert_eq!(error.report(), exported.report());
        }
    }
}

#[tokio::test]
async fn files_have_the_permissions_of_the_umask() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_, folder) = exported().await;
    let reference = folder.path().join("reference");
    std::fs::write(&reference, "").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    for name in ["2024-01-31.parquet", "_2024-01-31.json"] {
        assert_eq!(mode(&folder.path().join(FOLDER).join(name)), mode(&reference), "{name}");
    }
}

#[tokio::test]
async fn export_removes_only_its_own_incomplete_files() {
    let (store, folder) = exported().await;
    let partial = folder.path().join("_partial");
    std::fs::write(partial.join("notes.txt"), "mine").unwrap();
    std::fs::create_dir(partial.join("file-folder")).unwrap();
    export_ticks(&store, folder.path()).await.unwrap();
    assert!(partial.join("notes.txt").is_file() && partial.join("file-folder").is_dir());
    std::fs::remove_dir_all(&partial).unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file-precious"), "mine").unwrap();
    std::os::unix::fs::symlink(outside.path(), &partial).unwrap();
    assert_eq!(export_ticks(&store, folder.path()).await.unwrap_err().code(), "archive.partial");
    assert!(outside.path().join("file-precious").is_file());
}

#[tokio::test]
async fn files_of_a_series_that_the_store_no_longer_has_are_counted() {
    let (_, folder) = exported().await;
    let store = rig::store().await;
    rig::insert_ticks(&store, &rig::ticks("binance:ETH-USDT", 1, 10)).await;
    let report = export_ticks(&store, folder.path()).await.unwrap();
    assert_eq!((report.orphaned, report.series.len()), (3, 1));
}

/// The archive has the only copy of a file of a purged day. The second store does not have the series either.
#[tokio::test]
async fn damaged_files_without_records_in_the_store_are_reported() {
    let (store, folder) = exported().await;
    let instrument: qi_core::Instrument = "binance:BTC-USDT".parse().unwrap();
    let first = TimeRange::before(time(DAY + DAY_MICROS));
    store.delete_range(&DeleteQuery::ticks(Selection::one(instrument), first)).await.unwrap();
    let archive = Archive::folder(&folder).unwrap();
    let mut verify = ExportOptions::new([PriceTick::DATASET]);
    verify.verify_existing = true;
    let at = |name: &str| folder.path().join(FOLDER).join(name);
    let (file, json) = (at("2024-01-31.parquet"), at("_2024-01-31.json"));
    let data = std::fs::read(&file).unwrap();
    let manifest = std::fs::read(&json).unwrap();
    let flipped = |at: usize| {
        let mut flipped = data.clone();
        flipped[at] ^= 1;
        flipped
    };
    let damages: [(&dyn Fn(), &str, bool); 6] = [
        (&|| {}, "", true),
        (&|| std::fs::write(&file, flipped(40)).unwrap(), "archive.file.changed", true),
        (&|| std::fs::write(&file, flipped(data.len() - 1)).unwrap(), "archive.file.content", false),
        (&|| std::fs::write(&file, &data[..200]).unwrap(), "archive.file.changed", false),
        (&|| std::fs::remove_file(&file).unwrap(), "archive.file.missing", false),
        (
            &|| {
                let text = String::from_utf8(manifest.clone()).unwrap();
                std::fs::write(&json, text.replace("\"symbol\": \"BTC", "\"symbol\": \"ETH")).unwrap();
            },
            "archive.manifest.path",
            false,
        ),
    ];
    for (damage, code, only_verified) in damages {
        damage();
        for (store, orphaned) in [(&store, 0), (&rig::store().await, if file.exists() { 3 } else { 2 })] {
            let report = export(store, &archive, &verify).await.unwrap();
            let codes: Vec<_> = report.failures.iter().map(|(path, error)| (&**path, error.code())).collect();
            let expected = [("ticks/binance/BTC-USDT/2024-01-31.parquet", code)];
            assert_eq!(codes, &expected[..usize::from(!code.is_empty())]);
            assert_eq!((report.failed, report.orphaned), (codes.len() as u64, orphaned), "{code}");
            let report = export_ticks(store, folder.path()).await.unwrap();
            assert_eq!(report.failed == 0, only_verified, "{code}");
        }
        std::fs::write(&file, &data).unwrap();
        std::fs::write(&json, &manifest).unwrap();
    }
    // The damaged file of another range or instrument is not read.
    std::fs::write(&file, &data[..200]).unwrap();
    verify.range = TimeRange::since(time(DAY + DAY_MICROS));
    assert_eq!(export(&store, &archive, &verify).await.unwrap().failed, 0);
}

/// An export that was killed between a file and its manifest, and a purge before the next export.
#[tokio::test]
async fn manifests_are_written_again_without_records_in_the_store() {
    let (store, folder) = exported().await;
    let at = |name: &str| folder.path().join(FOLDER).join(name);
    let earlier = std::fs::read(at("_2024-02-01.json")).unwrap();
    let instrument: qi_core::Instrument = "binance:BTC-USDT".parse().unwrap();
    let late = PriceTick::new(instrument, time(DAY + DAY_MICROS + 7), 77, "5".parse().unwrap()).unwrap();
    rig::insert_ticks(&store, &[late]).await;
    export_ticks(&store, folder.path()).await.unwrap();
    let complete = bytes_of(folder.path());
    std::fs::remove_file(at("_2024-01-31.json")).unwrap();
    std::fs::write(at("_2024-02-01.json"), earlier).unwrap();
    std::fs::write(at("_2024-02-02.json"), "{").unwrap();
    let empty = rig::store().await;
    let report = export_ticks(&empty, folder.path()).await.unwrap();
    let days = ["2024-01-31", "2024-02-01", "2024-02-02"];
    assert_eq!(report.repaired, days.map(|day| format!("{FOLDER}/{day}.parquet")));
    assert_eq!((report.failed, report.orphaned), (0, 3), "{:?}", report.failures);
    assert_eq!(bytes_of(folder.path()), complete);
    let report = export_ticks(&empty, folder.path()).await.unwrap();
    assert_eq!((report.failed, report.repaired.len()), (0, 0));
    let report = import_all(&rig::store().await, folder.path()).await.unwrap();
    assert_eq!((report.is_good(), report.records()), (true, 31), "{:?}", report.failures);

    // A damaged file, and a file of another day.
    std::fs::copy(at("2024-02-01.parquet"), at("2024-03-01.parquet")).unwrap();
    std::fs::remove_file(at("_2024-01-31.json")).unwrap();
    let data = std::fs::read(at("2024-01-31.parquet")).unwrap();
    std::fs::write(at("2024-01-31.parquet"), &data[..200]).unwrap();
    // A manifest of a later version of the library.
    let json = std::fs::read_to_string(at("_2024-02-02.json")).unwrap();
    let later = json.replace("\"format\": 1", "\"format\": 2");
    std::fs::write(at("_2024-02-02.json"), &later).unwrap();
    let report = export_ticks(&empty, folder.path()).await.unwrap();
    let codes: Vec<_> = report.failures.iter().map(|(_, error)| error.code()).collect();
    assert_eq!(codes, ["archive.file.missing", "archive.manifest.format", "archive.file.foreign"]);
    assert_eq!((report.failed, report.repaired.len()), (3, 0));
    assert!(!at("_2024-01-31.json").exists() && !at("_2024-03-01.json").exists());
    assert_eq!(std::fs::read_to_string(at("_2024-02-02.json")).unwrap(), later);
}

#[tokio::test]
async fn import_rejects_records_of_another_series_or_period() {
    let (_, folder) = exported().await;
    let at = |name: &str| folder.path().join(FOLDER).join(name);
    // The manifest states the other file correctly, apart from its period.
    std::fs::copy(at("2024-02-01.parquet"), at("2024-01-31.parquet")).unwrap();
    let json = std::fs::read_to_string(at("_2024-02-01.json")).unwrap();
    std::fs::write(
        at("_2024-01-31.json"),
        json.replace("\"period\": \"2024-02-01\"", "\"period\": \"2024-01-31\""),
    )
    .unwrap();
    assert_eq!(failure(folder.path()).await.code(), "archive.file.foreign");
}

#[tokio::test]
async fn import_into_a_store_without_the_dataset_fails() {
    let (_, folder) = exported().await;
    let target = rig::store_of(Datasets::none().with::<Bar>().unwrap()).await;
    let report = import_all(&target, folder.path()).await.unwrap();
    assert_eq!(report.error.unwrap().kind(), ErrorKind::SchemaMismatch);
}

#[tokio::test]
async fn archive_that_does_not_exist_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none");
    assert_eq!(Archive::folder(&missing).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(Archive::open("").unwrap_err().kind(), ErrorKind::Config);
    std::fs::write(folder.path().join("file"), "").unwrap();
    assert_eq!(Archive::folder(folder.path().join("file")).unwrap_err().kind(), ErrorKind::Config);
    let address = format!("FILE://{}", missing.display());
    let archive = Archive::create(&address).unwrap();
    export(&rig::store().await, &archive, &ExportOptions::new([PriceTick::DATASET])).await.unwrap();
    let report = import_all(&rig::store().await, &missing).await.unwrap();
    assert_eq!((report.records(), report.is_good()), (0, true));
}

#[test]
fn addresses_have_a_known_scheme_and_no_credentials() {
    let error = |address: &str| Archive::open(address).unwrap_err();
    for scheme in ["s4", "memory", "http", "https", "ftp"] {
        for error in [error(&format!("{scheme}:///x")), error(&format!("{scheme}://host.example/x"))] {
            assert_eq!((error.kind(), error.code()), (ErrorKind::Config, "archive.address"));
            assert!(
                error.message().unwrap().contains("the known schemes are s3, gs, az and file"),
                "{error}"
            );
        }
    }
    for address in [
        "s3://secret:secret@bucket/x",
        "s3://secret@bucket/x",
        "s3://:secret@bucket/x",
        "gs://secret@bucket/x",
        "abfss://container:secret@account.dfs.core.windows.net/x",
        "az://container/x?sig=secret",
        "s3://bucket/x#secret",
        "https://secret:secret@bucket.s3.eu-west-1.amazonaws.com/x",
        "https://bucket.s3.eu-west-1.amazonaws.com/x?X-Amz-Signature=secret",
    ] {
        let error = error(address);
        assert_eq!((error.kind(), error.code()), (ErrorKind::Config, "archive.address"), "{address}");
        assert!(!error.report().contains("secret") && !format!("{error:?}").contains("secret"), "{error:?}");
    }
    #[cfg(feature = "cloud")]
    for address in [
        "abfss://container@account.dfs.core.windows.net/x",
        "https://bucket.s3.eu-west-1.amazonaws.com/x",
        "https://account.r2.cloudflarestorage.com/bucket/x",
        "https://account.blob.core.windows.net/container/x",
    ] {
        Archive::open(address).unwrap();
    }
}

#[tokio::test]
async fn rejected_export_creates_no_folder() {
    let (store, folder) = exported().await;
    let missing = folder.path().join("a/b");
    let archive = Archive::create(&missing.to_string_lossy()).unwrap();
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.range = TimeRange::since(time(DAY + 1));
    assert_eq!(export(&store, &archive, &options).await.unwrap_err().code(), "archive.range");
    let mut options = ExportOptions::new([PriceTick::DATASET]);
    options.instruments.insert("binance:NONE".parse().unwrap());
    assert_eq!(export(&store, &archive, &options).await.unwrap_err().code(), "archive.instrument");
    assert!(!folder.path().join("a").exists());
    let options = ExportOptions::new([PriceTick::DATASET]);
    assert_eq!(export(&store, &archive, &options).await.unwrap().series[0].written, 3);
    assert!(missing.join(FOLDER).is_dir());
}

#[tokio::test]
async fn archive_without_its_settings_is_not_extended() {
    let (store, folder) = exported().await;
    let settings = std::fs::read(folder.path().join("_archive.json")).unwrap();
    std::fs::remove_file(folder.path().join("_archive.json")).unwrap();
    let archive = Archive::folder(&folder).unwrap();
    for (period, removed) in [
        (PeriodLength::Month, ""),
        (PeriodLength::Day, ""),
        (PeriodLength::Day, "_"),
        (PeriodLength::Day, "2"),
    ] {
        if !removed.is_empty() {
            for name in ["2024-01-31", "2024-02-01", "2024-02-02"] {
                let name = if removed == "_" { format!("_{name}.json") } else { format!("{name}.parquet") };
                std::fs::remove_file(folder.path().join(FOLDER).join(name)).unwrap();
            }
        }
        let mut options = ExportOptions::new([PriceTick::DATASET]);
        options.period = Some(period);
        let refused = removed != "2";
        match export(&store, &archive, &options).await {
            Ok(report) => assert!(!refused && report.series[0].written == 3, "{period:?} {removed}"),
            Err(error) => {
                assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "archive.settings"));
                assert!(refused && error.report().contains("2024-01-31"), "{}", error.report());
            }
        }
    }
    // An archive without data files gets the settings of the export.
    assert_eq!(std::fs::read(folder.path().join("_archive.json")).unwrap(), settings);
}

/// Readers of the archive would count each record twice.
#[tokio::test]
async fn folder_in_an_archive_is_not_a_target() {
    let store = rig::store().await;
    let ticks = ["binance:BTC-USDT", "my-venue:BTC-USDT"].map(|name| rig::ticks(name, 1, 10)).concat();
    rig::insert_ticks(&store, &ticks).await;
    let options = ExportOptions::new([PriceTick::DATASET]);
    let folder = tempfile::tempdir().unwrap();
    export(&store, &Archive::folder(&folder).unwrap(), &options).await.unwrap();
    let memory: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    export(&store, &Archive::in_store(memory.clone(), "prices").unwrap(), &options).await.unwrap();
    for part in ["ticks", "ticks/binance", FOLDER, "ticks/my-venue"] {
        for archive in [
            Archive::folder(folder.path().join(part)).unwrap(),
            Archive::in_store(memory.clone(), &format!("prices/{part}")).unwrap(),
        ] {
            let error = export(&store, &archive, &options).await.unwrap_err();
            assert_eq!(error.code(), "archive.settings", "{part}");
            assert!(error.report().contains("_2024-01-31.json"), "{part}: {}", error.report());
        }
    }
}

/// A folder of another program can have files with the names of periods.
#[tokio::test]
async fn foreign_data_files_do_not_prevent_the_first_export() {
    let (store, _) = exported().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("raw")).unwrap();
    std::fs::write(folder.path().join("raw/2024-01-31.parquet"), "x").unwrap();
    assert_eq!(export_ticks(&store, folder.path()).await.unwrap().series[0].written, 3);
    // The folder of a dataset that the export does not know has manifests.
    std::fs::remove_file(folder.path().join("_archive.json")).unwrap();
    std::fs::remove_dir_all(folder.path().join("ticks")).unwrap();
    std::fs::write(folder.path().join("raw/_2024-01-31.json"), "{}").unwrap();
    assert_eq!(export_ticks(&store, folder.path()).await.unwrap_err().code(), "archive.settings");
}

/// Names that no archive has, beside its files: they are ignored at every level.
#[tokio::test]
async fn foreign_names_and_links_are_ignored() {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;
    let (store, folder) = exported().await;
    for level in ["", "ticks", "ticks/binance", FOLDER] {
        let at = folder.path().join(level);
        for name in [&b"Icon\r"[..], b"new\nline", b"a?b#c%", b"\xff\xfe.txt", b"2024-01-31 copy.parquet"] {
            std::fs::write(at.join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        }
        for name in [&b"folder\r"[..], b"\xff\xfe", b".hidden"] {
            std::fs::create_dir(at.join(std::ffi::OsStr::from_bytes(name))).unwrap();
        }
        symlink("..", at.join("loop")).unwrap();
        symlink(".", at.join("here")).unwrap();
        symlink("itself", at.join("itself")).unwrap();
        symlink("/does/not/exist", at.join("2024-03-01.parquet")).unwrap();
    }
    let report = export_ticks(&store, folder.path()).await.unwrap();
    assert_eq!((report.series[0].unchanged, report.series[0].surplus, report.orphaned), (3, 0, 0));
    let report = import_all(&rig::store().await, folder.path()).await.unwrap();
    assert_eq!((report.records(), report.is_good()), (30, true), "{:?}", report.failures);
    // A file in a folder with such a name fails, and no other file.
    let foreign = folder.path().join("ticks/binance/folder\r");
    for name in ["2024-01-31.parquet", "_2024-01-31.json"] {
        std::fs::copy(folder.path().join(FOLDER).join(name), foreign.join(name)).unwrap();
    }
    let report = import_all(&rig::store().await, folder.path()).await.unwrap();
    assert_eq!((report.records(), report.failed), (30, 1), "{:?}", report.failures);
    assert_eq!(report.failures[0].1.code(), "archive.manifest.path");
}

/// The folders of an archive can be links, for example to another disk.
#[tokio::test]
async fn linked_folders_are_read() {
    let (store, folder) = exported().await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(folder.path().join("ticks"), outside.path().join("ticks")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("ticks"), folder.path().join("ticks")).unwrap();
    let report = import_all(&rig::store().await, folder.path()).await.unwrap();
    assert_eq!((report.records(), report.is_good()), (30, true));
    assert_eq!(export_ticks(&store, folder.path()).await.unwrap().series[0].unchanged, 3);
}

/// Opening a FIFO waits for a writer. A test that waits too long fails, and its thread ends with the process.
#[test]
fn fifos_and_folders_in_place_of_files_fail_one_by_one() {
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for name in ["2024-01-31.parquet", "_2024-01-31.json"] {
                for is_fifo in [true, false] {
                    let (store, folder) = exported().await;
                    let path = folder.path().join(FOLDER).join(name);
                    std::fs::remove_file(&path).unwrap();
                    if is_fifo {
                        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
                        assert!(made.success());
                    } else {
                        std::fs::create_dir(&path).unwrap();
                    }
                    let target = rig::store().await;
                    let report = import_all(&target, folder.path()).await.unwrap();
                    assert_eq!((report.failed, report.records(), target.rows()), (1, 20, 20));
                    let error = &report.failures[0].1;
                    assert_eq!(error.code(), "archive.file.type", "{}", error.report());
                    if is_fifo {
                        let report = export_ticks(&store, folder.path()).await.unwrap();
                        assert_eq!((report.series[0].written, report.series[0].unchanged), (1, 2));
                        assert!(path.is_file());
                    }
                }
            }
            for name in ["_lock", "_archive.json"] {
                let (store, folder) = exported().await;
                std::fs::remove_file(folder.path().join(name)).unwrap();
                let path = folder.path().join(name);
                assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
                let error = export_ticks(&store, folder.path()).await.unwrap_err();
                assert_eq!(error.code(), "archive.file.type", "{}", error.report());
            }
        });
        sender.send(()).unwrap();
    });
    done.recv_timeout(std::time::Duration::from_mins(1)).expect("the thread is done within 60 s");
}

/// Replaces the file of the first day. The manifest states the size and the SHA-256 of the new file.
fn replace_file(folder: &Path, file: &[u8]) {
    let at = |name: &str| folder.join(FOLDER).join(name);
    let mut manifest = Manifest::parse(&std::fs::read(at("_2024-01-31.json")).unwrap()).unwrap();
    manifest.bytes = file.len() as u64;
    manifest.sha256 = hex(&Sha256::digest(file));
    std::fs::write(at("2024-01-31.parquet"), file).unwrap();
    std::fs::write(at("_2024-01-31.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
}

/// Writes a file as another program does, with these pairs in the metadata of its schema.
fn foreign_file(batches: &[RecordBatch], metadata: &[(&str, &str)]) -> Vec<u8> {
    let pairs = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let schema =
        batches[0].schema().as_ref().clone().with_metadata(pairs.collect::<arrow_schema::Metadata>());
    let schema = Arc::new(schema);
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), None).unwrap();
    for batch in batches {
        writer.write(&RecordBatch::try_new(schema.clone(), batch.columns().to_vec()).unwrap()).unwrap();
    }
    writer.into_inner().unwrap()
}

/// Changes the number of rows that the only row group states.
fn with_stated_rows(file: &[u8], rows: i64) -> Vec<u8> {
    let mut copy = tempfile::tempfile().unwrap();
    copy.write_all(file).unwrap();
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&copy).unwrap();
    let group = metadata.row_group(0).clone().into_builder().set_num_rows(rows).build().unwrap();
    let metadata = metadata.into_builder().set_row_groups(vec![group]).build();
    let (rest, end) = file.split_at(file.len() - 8);
    let footer = u32::from_le_bytes(end[..4].try_into().unwrap());
    let mut changed = rest[..rest.len() - footer as usize].to_vec();
    ParquetMetaDataWriter::new(&mut changed, &metadata).finish().unwrap();
    changed
}

/// Returns the ticks of the first day.
fn first_day() -> RecordBatch {
    encode(&Slice::new(&rig::ticks("binance:BTC-USDT", 3, 10)[..10]).unwrap()).unwrap()
}

#[tokio::test]
async fn import_rejects_a_file_whose_metadata_names_another_dataset_or_version() {
    let (_, folder) = exported().await;
    for (metadata, good) in [
        (&[][..], true),
        (&[("qi.dataset", "ticks"), ("qi.version", "1")][..], true),
        (&[("qi.dataset", "quotes"), ("qi.version", "1")][..], false),
        (&[("qi.dataset", "ticks"), ("qi.version", "7")][..], false),
    ] {
        let file = foreign_file(&[first_day()], metadata);
        replace_file(folder.path(), &file);
        let target = rig::store().await;
        let report = import_all(&target, folder.path()).await.unwrap();
        assert_eq!((report.is_good(), target.rows()), (good, if good { 30 } else { 20 }), "{metadata:?}");
        let path = folder.path().join(FOLDER).join("2024-01-31.parquet");
        let opened = ParquetReader::new(PriceTick::DATASET, std::fs::File::open(path).unwrap());
        if !good {
            assert_eq!(report.failures[0].1.code(), "arrow.dataset");
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::SchemaMismatch);
        }
    }
}

#[tokio::test]
async fn import_rejects_a_file_with_other_records_than_its_manifest_before_the_first_insert() {
    let (_, folder) = exported().await;
    let refused = async |file: &[u8], code: &str| {
        replace_file(folder.path(), file);
        let target = rig::store().await;
        let report = import_all(&target, folder.path()).await.unwrap();
        assert_eq!((report.failed, target.rows()), (1, 20));
        let error = &report.failures[0].1;
        assert_eq!(error.code(), code, "{}", error.report());
    };
    // A store removes the duplicates, so the comparison with the store does not detect them.
    refused(&foreign_file(&[first_day(), first_day()], &[]), "archive.file.records").await;
    refused(&foreign_file(&[first_day().slice(0, 9)], &[]), "archive.file.records").await;
    // Equal in number, with another price.
    let mut ticks = rig::ticks("binance:BTC-USDT", 3, 10);
    ticks.truncate(10);
    let last = &ticks[9];
    ticks[9] =
        PriceTick::new(last.instrument().clone(), last.ts(), last.seq(), "5".parse().unwrap()).unwrap();
    let mut writer = ParquetWriter::new(PriceTick::DATASET, Decimals::Exact, Vec::new()).unwrap();
    writer.write(&Slice::new(&ticks).unwrap()).unwrap();
    refused(&writer.finish().unwrap().0, "archive.file.content").await;
}

/// The pages of a damaged file can have more rows than its row groups state.
#[tokio::test]
async fn import_inserts_at_most_the_number_of_records_of_the_manifest() {
    let (_, folder) = exported().await;
    let file = foreign_file(&[first_day(), first_day()], &[]);
    replace_file(folder.path(), &with_stated_rows(&file, 10));
    let target = rig::store().await;
    let report = import_all(&target, folder.path()).await.unwrap();
    assert_eq!((report.failed, report.records(), target.rows()), (1, 20, 30));
    let error = &report.failures[0].1;
    assert_eq!(error.code(), "archive.file.records", "{}", error.report());
}

/// The rule of the dataset's names is checked before the name reaches a store: PostgreSQL rejects a NUL.
#[tokio::test]
async fn manifest_with_an_invalid_name_fails_by_itself() {
    let store = rig::store().await;
    rig::insert_ticks(&store, &rig::ticks("binance:BTC-USDT", 1, 10)).await;
    let draws: Vec<rig::Draw> = vec![(0, 0, 0, 1)];
    rig::insert(
        &store,
        qi_core::record::RecordVec::from_vec(rig::records::<MarketSnapshot>(&draws)).as_records(),
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let options = ExportOptions::new([PriceTick::DATASET, MarketSnapshot::DATASET]);
    let report = export(&store, &Archive::folder(&folder).unwrap(), &options).await.unwrap();
    assert_eq!(report.series.len(), 2);
    let file = rig::files(folder.path()).into_iter().find(|file| {
        file.starts_with("snapshots") && file.extension().is_some_and(|ending| ending == "json")
    });
    let file = folder.path().join(file.unwrap());
    let good = Manifest::parse(&std::fs::read(&file).unwrap()).unwrap();
    for name in ["asset:a\0b", "nonsense", &format!("asset:{}", "a".repeat(5_000))] {
        let mut manifest = good.clone();
        manifest.name = Some(name.to_owned());
        assert_eq!(manifest.series(MarketSnapshot::DATASET).unwrap_err().kind(), ErrorKind::InvalidInput);
        std::fs::write(&file, serde_json::to_vec(&manifest).unwrap()).unwrap();
        let report = import_all(&rig::store().await, folder.path()).await.unwrap();
        assert_eq!((report.failed, report.records(), report.series.len()), (1, 10, 2), "{name:?}");
        assert!(report.failures[0].1.code().starts_with("domain."), "{}", report.failures[0].1.report());
    }
}

#[tokio::test]
async fn changed_file_is_reported_with_both_sizes() {
    let (_, folder) = exported().await;
    let path = folder.path().join(FOLDER).join("2024-01-31.parquet");
    let data = std::fs::read(&path).unwrap();
    std::fs::write(&path, &data[..200]).unwrap();
    let error = failure(folder.path()).await;
    let expected = data.len().to_string();
    assert_eq!(
        (error.context_value("bytes"), error.context_value("expected")),
        (Some("200"), Some(&*expected))
    );
    assert_eq!(error.code(), "archive.file.changed");
}

/// Cancels a token at the last of some calls of an operation.
#[derive(Debug, Clone)]
struct StopAt {
    operation: Operation,
    left: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl StopAt {
    fn new(operation: Operation, calls: usize, stop: &CancellationToken) -> Self {
        Self { operation, left: Arc::new(calls.into()), stop: stop.clone() }
    }
}

impl Layer for StopAt {
    fn name(&self) -> &'static str {
        "StopAt"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        if call.operation == self.operation && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.stop.cancel();
        }
        future
    }
}

#[tokio::test]
async fn stopped_export_and_import_continue() {
    let source = Arc::new(rig::store().await);
    rig::insert_ticks(&source, &rig::ticks("binance:BTC-USDT", 2, 60_000)).await;
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::folder(&folder).unwrap();
    // The first call asks for a columnar read, and the pages have 50,000 ticks. During the fourth call, the second page
    // completes the first file.
    let options = ExportOptions::new([PriceTick::DATASET]);
    let store = Layered::new(source.clone(), StopAt::new(Operation::Range, 4, &options.stop));
    let report = export(&store, &archive, &options).await.unwrap();
    assert!(report.interrupted && report.series.is_empty());
    let options = ExportOptions::new([PriceTick::DATASET]);
    let report = export(&source, &archive, &options).await.unwrap();
    assert_eq!((report.series[0].written, report.series[0].unchanged), (1, 1));

    let target = Arc::new(rig::store().await);
    let options = ImportOptions::new(Datasets::standard());
    let store = Layered::new(target.clone(), StopAt::new(Operation::Insert, 10, &options.stop));
    let report = import(&store, &archive, &options).await.unwrap();
    assert!(report.interrupted && report.error.is_none() && !report.is_good());
    assert_eq!((report.records(), target.rows()), (60_000, 60_000 + 2 * 8_192));
    let report = import_all(&target, folder.path()).await.unwrap();
    assert_eq!((report.is_good(), report.records(), target.rows()), (true, 120_000, 120_000));
}

/// Drops the export after each number of polls, until the export ends before.
#[test]
fn dropped_export_leaves_no_partial_file() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime().block_on(async {
        let store = rig::store().await;
        rig::insert_ticks(&store, &rig::ticks("binance:BTC-USDT", 2, 30_000)).await;
        store
    });
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::folder(&folder).unwrap();
    let options = ExportOptions::new([PriceTick::DATASET]);
    let partial = || std::fs::read_dir(folder.path().join("_partial")).map_or(0, Iterator::count);
    let mut interrupted = 0;
    let report = (0..10_000).find_map(|most| {
        let runtime = runtime();
        let report = runtime.block_on(async {
            let mut export = std::pin::pin!(export(&store, &archive, &options));
            let mut polls = 0;
            let report = std::future::poll_fn(|context| {
                if polls == most {
                    return Poll::Ready(None);
                }
                polls += 1;
                export.as_mut().poll(context).map(Some)
            });
            let report = report.await;
            interrupted += partial();
            report
        });
        // Waits for the work that was begun on other threads.
        drop(runtime);
        assert_eq!(partial(), 0, "after {most} polls");
        for path in rig::files(folder.path()) {
            if path.extension().is_some_and(|ending| ending == "parquet") {
                let file = std::fs::File::open(folder.path().join(&path)).unwrap();
                let records = ParquetReader::new(PriceTick::DATASET, file).unwrap();
                assert_eq!(records.map(|records| records.unwrap().len()).sum::<usize>(), 30_000);
            }
        }
        report
    });
    assert_eq!(report.unwrap().unwrap().series[0].records, 60_000);
    assert!(interrupted > 0, "no export was dropped with a file in progress");
}

/// An optional column that was declared later is absent in older files, and does not change their digests.
#[tokio::test]
async fn later_optional_column_leaves_files_unchanged() {
    use qi_core::record::{Column, ColumnType, Dataset, Description, Owner, SeriesKey, SeriesType};
    const OLD: [Column; 1] = [Column { name: "rate", ty: ColumnType::Decimal, optional: false }];
    const NEW: [Column; 2] =
        [OLD[0], Column { name: "note", ty: ColumnType::Text { max: 9 }, optional: true }];
    let declare = |values: &'static [Column]| {
        let description = Description {
            name: "rates",
            version: 1,
            message: "rate",
            topic: "rates",
            series: SeriesType::Name { column: "coin", max: 20 },
            interval: None,
            time: "ts",
            seq: None,
            values,
            new_vec: |dataset| dataset.new_vec(),
        };
        Dataset::declare(description).unwrap()
    };
    let (old, new) = (declare(&OLD), declare(&NEW));
    let rows = |dataset: Dataset, values: Vec<Value>| {
        let series = SeriesKey { owner: Owner::Name("BTC".into()), interval: None };
        Row::collect(dataset, vec![Row::new(dataset, series, (time(DAY), 0), values).unwrap()]).unwrap()
    };
    let decimal = Value::Decimal("0.0001".parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::folder(&folder).unwrap();
    let datasets = |dataset| Datasets::none().with_dataset(dataset).unwrap();

    let store = rig::store_of(datasets(old)).await;
    rig::insert(&store, rows(old, vec![decimal.clone()]).as_records()).await;
    assert_eq!(export(&store, &archive, &ExportOptions::new([old])).await.unwrap().series[0].written, 1);
    let store = rig::store_of(datasets(new)).await;
    let report = import(&store, &archive, &ImportOptions::new(datasets(new))).await.unwrap();
    assert!(report.is_good(), "{:?}", report.failures);
    assert_eq!(export(&store, &archive, &ExportOptions::new([new])).await.unwrap().series[0].unchanged, 1);
    rig::insert(&store, rows(new, vec![decimal, Value::Text("late".into())]).as_records()).await;
    assert_eq!(export(&store, &archive, &ExportOptions::new([new])).await.unwrap().series[0].written, 1);
    // A program without the column does not drop its values.
    let report = import(&rig::store_of(datasets(old)).await, &archive, &ImportOptions::new(datasets(old)))
        .await
        .unwrap();
    assert_eq!(report.failures[0].1.code(), "arrow.column.unknown");
}
