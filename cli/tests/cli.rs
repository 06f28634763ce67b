//! The exit codes and the output of the program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str]) -> Output {
    run_with(arguments, &[])
}

fn run_with(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
    command.env_remove("RUST_LOG").env_remove("QI_CONFIG").env_remove("COLUMNS").stdin(Stdio::null());
    command.envs(variables.iter().copied()).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A store in a file, for commands that write.
#[cfg(feature = "sqlite")]
struct Sqlite(tempfile::TempDir);

#[cfg(feature = "sqlite")]
impl Sqlite {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn migrated() -> Self {
        let store = Self::new();
        store.expect(&["migrate"], 0, &[]);
        store
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Writes a file in the folder of the store, and returns its path.
    fn file(&self, name: &str, content: &str) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let path = self.path("prices.db");
        run_with(arguments, &[("QI__STORE__BACKEND", "sqlite"), ("QI__STORE__SQLITE__PATH", &path)])
    }

    /// Runs a command, and returns its output and messages.
    fn expect(&self, arguments: &[&str], code: i32, says: &[&str]) -> String {
        let out = self.run(arguments);
        let said = text(&out.stdout) + &text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {said}");
        // Tables wrap long text.
        let words = said.split(|c: char| c.is_whitespace() || c == '│').filter(|word| !word.is_empty());
        let words = words.collect::<Vec<_>>().join(" ");
        for says in says {
            assert!(words.contains(says), "{arguments:?}: no {says:?} in {said}");
        }
        words
    }

    /// Overwrites four bytes of the file's header.
    fn patch(&self, at: usize, bytes: [u8; 4]) {
        let path = self.path("prices.db");
        let mut file = std::fs::read(&path).unwrap();
        file[at..at + 4].copy_from_slice(&bytes);
        std::fs::write(path, file).unwrap();
    }
}

#[test]
fn check_of_an_empty_memory_store_exits_with_code_1_and_a_hint() {
    let out = run(&["check", "--format", "csv"]);
    let shown = text(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("store memory") && shown.contains("FAILED") && shown.contains("set store.backend"),
        "{shown}"
    );
    let out = run(&["query", "latest"]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("set store.backend"), "{said}");
    // The schema of such a store ends with the process that created it.
    assert!(!said.contains("qi migrate") && !shown.contains("qi migrate"), "{said} {shown}");
}

#[cfg(feature = "sqlite")]
#[test]
fn a_sqlite_file_is_complete_after_every_command() {
    let store = Sqlite::new();
    let trades = store.file("XBTEUR.csv", "1700000000,100,1\n1700000001,101,2\n");
    let bad = store.file("bad.csv", "1700000001,102,3\nbad\nworse\n");
    for (arguments, code) in [
        (&["migrate"][..], 0),
        (&["import", "--instrument", "x:Y", &trades], 0),
        (&["query", "latest"], 0),
        (&["check", "--write"], 0),
        // Commands that fail close the store too.
        (&["import", "--instrument", "x:Y", &bad], 1),
        (&["query", "funding_rates", "x:Y"], 1),
        (&["chart", "x:Y", "--since", "2030-01-01T00:00:00Z", "--out", &store.path("a.svg")], 1),
    ] {
        if arguments[0] == "chart" && cfg!(not(feature = "chart")) {
            continue;
        }
        store.expect(arguments, code, &[]);
        let names = std::fs::read_dir(store.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let leftovers: Vec<_> =
            names.filter(|name| name.to_string_lossy().starts_with("prices.db-")).collect();
        assert!(leftovers.is_empty(), "{arguments:?}: {leftovers:?}");
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn commands_that_write_warn_of_a_store_in_memory() {
    let store = Sqlite::migrated();
    let trades = store.file("XBTEUR.csv", "1700000000,100,1\n");
    let path = store.path("prices.db");
    let since = "2023-01-01T00:00:00Z";
    for (arguments, code) in [
        (&["import", "--instrument", "x:Y", &trades][..], 0),
        (&["migrate"], 0),
        // The topic does not exist.
        (&["replay", "--topic", "t", "--since", since], 1),
        (&["copy", "--from", "sqlite", "--to", "memory"], 0),
    ] {
        let out = run_with(arguments, &[("QI__STORE__SQLITE__PATH", &path)]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains("in the memory of this process") && said.contains("store.backend"), "{said}");
    }
    for arguments in [&["migrate", "--dry-run"][..], &["query", "latest"], &["instruments"]] {
        let out = run_with(arguments, &[("QI__STORE__AUTO_SCHEMA", "true")]);
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stderr));
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn the_hint_names_the_command_that_creates_the_schema() {
    let store = Sqlite::new();
    let missing = "`qi migrate` creates the schema";
    store.expect(&["query", "latest"], 1, &[missing]);
    store.expect(&["check"], 1, &[missing]);
    let path = store.path("prices.db");
    let other = run_with(&["--store", "sqlite", "query", "latest"], &[("QI__STORE__SQLITE__PATH", &path)]);
    let said = text(&other.stderr);
    assert!(said.contains("`qi migrate --store sqlite` creates the schema"), "{said}");

    store.expect(&["migrate"], 0, &[]);
    let others = "`qi migrate --all-datasets` creates the schema";
    store.expect(&["query", "funding_rates", "x:Y"], 1, &[others]);
    store.expect(&["check", "--all-datasets"], 1, &[others]);
    store.expect(&["check"], 0, &[]);
    store.expect(&["migrate", "--all-datasets"], 0, &[]);
    store.expect(&["query", "funding_rates", "x:Y"], 0, &[]);

    // A newer version, and another program: `user_version` and `application_id`.
    for (at, bytes) in [(60, [0, 0, 0, 99]), (68, *b"abcd")] {
        let store = Sqlite::migrated();
        store.patch(at, bytes);
        for command in [&["check"][..], &["query", "funding_rates", "x:Y"]] {
            let said = store.expect(command, 1, &["schema mismatch"]);
            assert!(!said.contains("qi migrate"), "{said}");
        }
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn a_limit_that_hides_rows_is_reported() {
    let store = Sqlite::new();
    let lines: Vec<String> = (0..5).map(|n| format!("{},100,1\n", 1_700_000_000 + n * 60)).collect();
    let trades = store.file("XBTEUR.csv", &lines.concat());
    store.expect(&["import", "--instrument", "x:Y", &trades], 0, &[]);
    for query in [&["query", "ticks", "x:Y"][..], &["query", "bars", "x:Y", "--interval", "1m"]] {
        for (limit, says) in [("4", "only the first 4 rows are shown; --limit"), ("5", ""), ("9", "")] {
            let options = [query, &["--limit", limit, "--format", "csv"]].concat();
            let out = store.run(&options);
            let rows = text(&out.stdout).lines().count() - 1;
            assert_eq!(rows, limit.parse::<usize>().unwrap().min(5), "{options:?}");
            let said = text(&out.stderr);
            assert!(said.contains(says) && said.is_empty() == says.is_empty(), "{options:?}: {said}");
        }
    }
    store.expect(&["instruments", "--limit", "1"], 0, &["x:Y"]);
}

#[cfg(feature = "sqlite")]
#[test]
fn bars_are_persisted_before_a_purge() {
    let store = Sqlite::new();
    let trades = ["1700000040,100,1\n", "1700000099,101,1\n", "1700000100,102,1\n", "1700000160,103,1\n"];
    let file = store.file("XBTEUR.csv", &trades.concat());
    store.expect(&["import", "--instrument", "x:Y", &file], 0, &[]);
    let persist = ["bars", "persist", "--interval", "1m"];
    let one = [&persist[..], &["--instrument", "x:Y", "--until", "2023-11-14T22:16:59Z"]].concat();
    store.expect(&one, 0, &["x:Y 1m 2 2 0 2023-11-14T22:16:00Z"]);
    // The next run compares the page before the latest stored bar again.
    let all = [&persist[..], &["--all", "--format", "csv"]].concat();
    let out = text(&store.run(&all).stdout);
    assert!(
        out.starts_with("instrument,interval,compared,written,kept,complete until\nx:Y,1m,3,1,0,"),
        "{out}"
    );
    let stored = ["query", "bars", "x:Y", "--stored", "--format", "csv"];
    let derived = text(&store.run(&["query", "bars", "x:Y", "--format", "csv"]).stdout);
    assert_eq!((derived.lines().count(), &text(&store.run(&stored).stdout)), (4, &derived));
    store.expect(&[&persist[..], &["--instrument", "x:Z"]].concat(), 0, &["x:Z 1m 0 0 0"]);

    // A stored bar of another program counts more ticks.
    let candles = "time,open,high,low,close,volume,count\n1700000040,1,2,1,2,5,9\n";
    let candles = store.file("candles.csv", candles);
    let import =
        ["import", "--instrument", "x:Y", "--input-interval", "1m", "--input-format", "candles", &candles];
    store.expect(&import, 0, &[]);
    let since = [&persist[..], &["--all", "--since", "2023-11-14T00:00:00Z"]].concat();
    store.expect(&since, 1, &["x:Y 1m 3 0 1", "1 stored bars count more ticks", "--overwrite"]);
    store.expect(&[&since[..], &["--overwrite"]].concat(), 0, &["x:Y 1m 3 1 0"]);
    assert_eq!(text(&store.run(&stored).stdout), derived);
}

#[cfg(feature = "sqlite")]
#[test]
fn maintain_says_that_a_store_materializes_no_bars() {
    let store = Sqlite::migrated();
    let said = store.expect(&["maintain"], 1, &["sqlite - - 0 0 0", "the store materializes no bars"]);
    assert!(!said.contains("materialized_bars"), "{said}");
}

#[cfg(all(feature = "sqlite", feature = "chart"))]
#[test]
fn stored_bars_are_named_if_there_are_no_ticks() {
    let store = Sqlite::new();
    let candles = "time,open,high,low,close,volume\n1700000040,1,2,1,2,5\n1700000100,2,3,2,3,5\n";
    let candles = store.file("candles.csv", candles);
    let import =
        ["import", "--instrument", "x:Y", "--input-interval", "1m", "--input-format", "candles", &candles];
    store.expect(&import, 0, &["2"]);
    let out = store.path("a.svg");
    let chart = ["chart", "x:Y", "--interval", "1m", "--out", &out];
    store.expect(&chart, 1, &["there are no bars", "`--stored`"]);
    store.expect(&["query", "bars", "x:Y", "--interval", "1m"], 0, &["`--stored`"]);
    let later = ["query", "bars", "x:Y", "--interval", "1m", "--since", "2024-01-01T00:00:00Z"];
    assert!(!store.expect(&later, 0, &[]).contains("--stored"));
    store.expect(&[&chart[..], &["--stored"]].concat(), 0, &[]);
}

#[cfg(all(feature = "sqlite", feature = "archive"))]
#[test]
fn an_export_without_a_schema_leaves_no_folder() {
    let store = Sqlite::new();
    store.expect(&["export", &store.path("archive")], 1, &["`qi migrate` creates the schema"]);
    assert!(!std::path::Path::new(&store.path("archive")).exists());
}

#[cfg(all(feature = "sqlite", feature = "archive"))]
#[test]
fn a_changed_byte_of_an_archive_is_detected_and_repaired_with_verify() {
    let store = Sqlite::new();
    let trades = store.file("XBTEUR.csv", "1700000000,100,1\n1700000001,101,2\n");
    store.expect(&["import", "--instrument", "x:Y", &trades], 0, &[]);
    let archive = store.path("archive");
    store.expect(&["export", &archive], 0, &[]);
    let mut folders = vec![std::path::PathBuf::from(&archive)];
    let mut file = None;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.extension() {
                _ if entry.is_dir() => folders.push(entry),
                Some(extension) if extension == "parquet" => file = Some(entry),
                _ => {}
            }
        }
    }
    let file = file.unwrap();
    let good = std::fs::read(&file).unwrap();
    let mut changed = good.clone();
    let at = changed.len() / 2;
    changed[at] ^= 1;
    std::fs::write(&file, &changed).unwrap();
    store.expect(&["export", &archive], 0, &[]);
    assert!(std::fs::read(&file).unwrap() == changed, "the size is equal, so the file is not read");
    store.expect(&["export", &archive, "--verify"], 0, &[]);
    assert!(std::fs::read(&file).unwrap() == good, "the file is written again");
}

#[cfg(all(feature = "sqlite", feature = "archive"))]
#[test]
fn a_damaged_file_without_records_in_the_store_fails_the_export() {
    let store = Sqlite::new();
    let trades = store.file("XBTEUR.csv", "1700000000,100,1\n1700000001,101,2\n");
    store.expect(&["import", "--instrument", "x:Y", &trades], 0, &[]);
    let archive = store.path("archive");
    store.expect(&["export", &archive], 0, &[]);
    let file = format!("{archive}/ticks/x/Y/2023-11-14.parquet");
    let mut changed = std::fs::read(&file).unwrap();
    changed[40] ^= 1;
    std::fs::write(&file, &changed).unwrap();
    std::fs::remove_file(store.path("prices.db")).unwrap();
    store.expect(&["migrate"], 0, &[]);
    store.expect(&["export", &archive], 0, &[]);
    let says =
        ["ticks/x/Y/2023-11-14.parquet", "the SHA-256 of the file differs", "restore them from a copy"];
    store.expect(&["export", &archive, "--verify"], 1, &says);
    std::fs::remove_file(&file).unwrap();
    store.expect(&["export", &archive, "--verify"], 1, &["2023-11-14.parquet", "the data file is missing"]);
}

#[cfg(all(feature = "sqlite", feature = "archive"))]
#[test]
fn an_export_uses_the_period_of_the_archive() {
    let store = Sqlite::new();
    let trades = store.file("XBTEUR.csv", "1700000000,100,1\n1700100000,101,2\n");
    store.expect(&["import", "--instrument", "x:Y", &trades], 0, &[]);
    let archive = store.path("archive");
    store.expect(&["export", &archive, "--period", "month"], 0, &["ticks x:Y 2 1"]);
    store.expect(&["export", &archive], 0, &["ticks x:Y 2 0 0 1"]);
    let other = ["export", &archive, "--period", "day"];
    store.expect(&other, 2, &["one file for each month; use --period month"]);
}

#[cfg(all(feature = "sqlite", feature = "archive"))]
#[test]
fn an_export_counts_the_files_of_series_that_the_store_does_not_have() {
    let store = Sqlite::new();
    let archive = store.path("archive");
    for (records, says) in [
        ("1700000000,100,1\n", "1 file of the archive belongs to a series that"),
        ("1700000000,100,1\n1700100000,101,2\n", "2 files of the archive belong to series that"),
    ] {
        let trades = store.file("XBTEUR.csv", records);
        store.expect(&["import", "--instrument", "x:Y", &trades], 0, &[]);
        store.expect(&["export", &archive], 0, &[]);
        std::fs::remove_file(store.path("prices.db")).unwrap();
        store.expect(&["migrate"], 0, &[]);
        store.expect(&["export", &archive], 0, &["the store has no records of the selected series", says]);
    }
}

#[cfg(all(feature = "sqlite", feature = "archive"))]
#[test]
fn an_archive_of_doubles_is_exported_and_not_imported() {
    let store = Sqlite::new();
    let trades = store.file("XBTEUR.csv", "1700000000,0.1,1\n1700000001,101,2\n");
    store.expect(&["import", "--instrument", "x:Y", &trades], 0, &[]);
    let archive = store.path("archive");
    store.expect(&["export", &archive, "--floats"], 0, &["2"]);
    let file = format!("{archive}/ticks/x/Y/2023-11-14.parquet");
    let file = std::fs::File::open(file).unwrap();
    let mut records = qi_arrow::ParquetReader::new(qi_core::PriceTick::DATASET, file).unwrap();
    let error = records.next().unwrap().unwrap_err();
    assert!(error.report().contains("column price has the type Float64"), "{}", error.report());
    store.expect(
        &["import", &archive],
        1,
        &["ticks/x/Y/2023-11-14.parquet", "export it again without --floats"],
    );
    store.expect(&["export", &archive], 2, &["settings of the archive, which has doubles; add --floats"]);
}

#[cfg(all(feature = "sqlite", feature = "archive"))]
#[test]
fn an_import_reads_only_selected_files_of_complete_periods() {
    let store = Sqlite::new();
    let trades = store.file("XBTEUR.csv", "1700000000,100,1\n1700100000,101,2\n");
    store.expect(&["import", "--instrument", "x:Y", &trades], 0, &[]);
    let archive = store.path("archive");
    store.expect(&["export", &archive], 0, &[]);
    std::fs::write(format!("{archive}/ticks/x/Y/_2023-11-14.json"), "{").unwrap();
    store.expect(&["import", &archive], 1, &["2023-11-14.parquet", "ticks x:Y 1 0 1 1"]);
    std::fs::create_dir(format!("{archive}/ticks/x/Y/sub")).unwrap();
    std::fs::write(format!("{archive}/ticks/x/Y/sub/2023-11-14.parquet"), "").unwrap();
    store.expect(&["import", &archive], 1, &["ticks x:Y 1 0 1 1", "other files 0 0 0 1"]);
    store.expect(&["import", &archive, "--since", "2023-11-15T00:00:00Z"], 0, &[]);
    store.expect(&["import", &archive, "--since", "2023-11-15T12:00:00Z"], 2, &["start of a day"]);
}

#[test]
fn a_broken_link_is_not_an_absent_configuration() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/does/not/exist.toml", folder.path().join("qi.toml")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
    let out = command.env_remove("QI_CONFIG").arg("config").current_dir(folder.path()).output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stdout));
    assert!(text(&out.stderr).contains("file=qi.toml"), "{}", text(&out.stderr));
}

#[test]
fn help_fits_100_columns() {
    for arguments in
        [&["--help"][..], &["import", "--help"], &["export", "--help"], &["bars", "persist", "--help"]]
    {
        let out = run_with(arguments, &[("COLUMNS", "250")]);
        let shown = text(&out.stdout);
        let longest = shown.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(longest.chars().count() <= 100, "{arguments:?}: {longest}");
    }
}

#[test]
fn migrate_and_topics_work_in_each_format() {
    let out = run(&["migrate", "--dry-run", "--format", "json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(json.as_array().unwrap().iter().any(|row| row["what"] == "topic crypto-prices"));
    let csv = run(&["topics", "--format", "csv"]);
    assert!(text(&csv.stdout).starts_with("topic,partitions,"));
    assert_eq!(run(&["lag"]).status.code(), Some(0));
}

#[test]
fn unavailable_backend_exits_with_code_1_and_shows_no_secrets() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    // No server listens on the discard port.
    let url = "postgres://qi:SECRET@127.0.0.1:9/qi";
    writeln!(file, "[store]\nbackend = \"timescale\"\n[store.timescale]\nurl = \"{url}\"").unwrap();
    writeln!(file, "[store.retry]\nenabled = false").unwrap();
    let out = run(&["check", "--config", file.path().to_str().unwrap()]);
    let shown = text(&out.stdout) + &text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{shown}");
    assert!(shown.contains("unavailable") && !shown.contains("SECRET"), "{shown}");
}

#[test]
fn only_a_password_over_a_plaintext_connection_causes_a_warning() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    // The name is not a loopback address, and no server listens there.
    let url = "postgres://qi:SECRET@0.0.0.0:9/qi?sslmode=disable";
    writeln!(file, "[store]\nbackend = \"timescale\"\n[store.timescale]\nurl = \"{url}\"").unwrap();
    writeln!(file, "[store.retry]\nenabled = false").unwrap();
    let arguments = ["query", "latest", "--config", file.path().to_str().unwrap()];
    let shown = text(&run(&arguments).stderr);
    assert_eq!(shown.matches("unencrypted connection").count(), 1, "{shown}");
    assert!(!shown.contains("SECRET"), "{shown}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
    let out = command.env("RUST_LOG", "error").stdin(Stdio::null()).args(arguments).output().unwrap();
    assert!(!text(&out.stderr).contains("unencrypted connection"), "{}", text(&out.stderr));
    assert!(!shown.contains('\u{1b}'), "escape sequences without a terminal: {shown:?}");
    for arguments in [&["migrate", "--dry-run"][..], &["topics"], &["lag"], &["check"]] {
        assert_eq!(text(&run(arguments).stderr), "", "{arguments:?}");
    }
}

#[test]
fn invalid_usage_and_configuration_exit_with_code_2() {
    for (arguments, why) in [
        (vec!["--config", "/does/not/exist", "check"], "/does/not/exist"),
        (vec!["frobnicate"], "frobnicate"),
        (vec!["query", "ticks", "nonsense"], "EXCHANGE:SYMBOL"),
        (vec!["query", "bars", "x:Y", "--interval", "7m"], "must be one of 1s 5s"),
        (vec!["query", "ticks", "x:Y", "--since", "yesterday"], "--since"),
        (vec!["copy", "--from", "memory", "--to", "memroy"], "did you mean `memory`"),
        (vec!["--store", "memroy", "query", "latest"], "did you mean `memory`"),
        (vec!["replay", "--topic", "a b", "--since", "2024-01-01T00:00:00Z"], "a b"),
        (vec!["dlq", "show"], "a dead letter topic or --topic is required"),
        (vec!["dlq", "redrive", "a.dlq", "--topic", "a"], "--topic <ORIGIN>"),
        (vec!["dlq", "redrive", "a.dlq", "--to", "b.dlq"], "must not be a dead letter topic"),
        (vec!["--store", "memroy", "check"], "did you mean `memory`"),
        (vec!["--store", "memroy", "config"], "did you mean `memory`"),
        (vec!["--store", "timescale", "check"], "store.timescale.url"),
        (vec!["--store", "clickhouse", "check"], "store.clickhouse.url"),
        (vec!["--store", "sqlite", "check"], "store.sqlite.path"),
        (vec!["copy", "--from", "memory", "--to", "memory"], "another backend"),
        (vec!["query", "latest", "--dataset", "bars"], "--interval is required"),
        (vec!["query", "latest", "--interval", "1m"], "--interval must not be set"),
        (vec!["query", "records", "bars", "x:Y"], "--interval is required"),
        (vec!["query", "latest", "nonsense"], "EXCHANGE:SYMBOL"),
        (
            vec!["instruments", "--dataset", "snapshots", "--exchange", "x"],
            "--exchange applies only to datasets of instruments",
        ),
        (vec!["import", "/does/not/exist.csv"], "/does/not/exist.csv"),
        (vec!["bars", "persist", "--all"], "--interval"),
        (vec!["bars", "persist", "--interval", "1m"], "--all"),
        (vec!["bars", "persist", "--interval", "1m", "--all", "--instrument", "x:Y"], "--instrument"),
        (vec!["maintain", "--budget", "5"], "--budget"),
        (vec!["chart", "x:Y", "--out", "a.jpg", "--store", "timescale"], "must end with .svg or .png"),
    ] {
        if arguments[0] == "chart" && cfg!(not(feature = "chart")) {
            continue;
        }
        let out = run(&arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(why), "{arguments:?}: {}", text(&out.stderr));
    }
}

#[test]
fn an_empty_range_exits_with_code_2() {
    let (early, late) = ("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z");
    for command in [
        &["query", "ticks", "x:Y"][..],
        &["query", "records", "ticks", "x:Y"],
        &["query", "stats", "x:Y"],
        &["query", "bars", "x:Y"],
        &["query", "bars", "x:Y", "--stored"],
        &["copy", "--from", "memory", "--to", "sqlite"],
        &["replay", "--topic", "t"],
        &["bars", "persist", "--all", "--interval", "1m"],
        &["dlq", "list"],
        &["dlq", "show", "a.dlq"],
        &["dlq", "redrive", "a.dlq"],
        #[cfg(feature = "chart")]
        &["chart", "x:Y", "--out", "a.svg"],
        #[cfg(feature = "archive")]
        &["export", "/does/not/exist"],
    ] {
        for (since, until) in [(late, early), (early, early)] {
            let arguments = [command, &["--since", since, "--until", until]].concat();
            let out = run(&arguments);
            let said = text(&out.stderr);
            assert_eq!(out.status.code(), Some(2), "{arguments:?}: {said}");
            assert!(said.contains("--until must be after --since"), "{arguments:?}: {said}");
        }
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn files_that_need_an_option_exit_with_code_2() {
    let store = Sqlite::new();
    let trades = store.file("x.csv", "1700000000,100,1\n");
    let candles = "time,open,high,low,close,volume\n1700000040,1,2,1,2,5\n";
    let candles = store.file("candles.csv", candles);
    let unknown = store.file("unknown.csv", "a,b\nc,d\n");
    store.expect(&["import", &trades], 2, &["--instrument"]);
    store.expect(&["import", &candles, "--instrument", "x:Y"], 2, &["--input-interval"]);
    store.expect(
        &["import", &unknown, "--instrument", "x:Y"],
        2,
        &["header must have known columns", "--columns"],
    );
    store.expect(&["import", &store.path("absent.csv")], 2, &["absent.csv"]);
}

/// A refused connection is tried once, although the layers would repeat the call.
#[cfg(feature = "timescale")]
#[test]
fn refused_connection_is_reported_after_one_attempt() {
    for (backend, url) in
        [("timescale", "postgres://qi@127.0.0.1:9/qi"), ("clickhouse", "http://127.0.0.1:9")]
    {
        let url_key = format!("QI__STORE__{}__URL", backend.to_uppercase());
        let out = run_with(&["query", "latest"], &[("QI__STORE__BACKEND", backend), (&url_key, url)]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains("unavailable") && said.contains("127.0.0.1:9"), "{said}");
        // `Retry` would state its attempts.
        assert!(!said.contains("attempts="), "{said}");
    }
}

#[test]
fn dead_letter_commands_without_dead_letters_or_topics_have_defined_exit_codes() {
    let list = run(&["dlq", "list", "--format", "csv"]);
    assert_eq!(list.status.code(), Some(0), "{}", text(&list.stderr));
    assert_eq!(text(&list.stdout), "dead letter topic,origin topic,code,dead letters,copies,first,last\n");
    for command in ["list", "show", "redrive"] {
        let out = run(&["dlq", command, "--topic", "absent"]);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
        assert!(text(&out.stderr).contains("absent.dlq"), "{}", text(&out.stderr));
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn files_are_imported_with_counts_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("XBTEUR.csv"), "1700000000,100,1\n1700000001,101,2\nbad\n").unwrap();
    std::fs::write(path("XBTEUR-2.csv"), "1700000001,102,3\n").unwrap();
    std::fs::write(path("bad.csv"), "1700000001,102,3\nbad\nworse\n").unwrap();
    std::fs::write(path("empty.csv"), "").unwrap();
    let import = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_qi"));
        command.env_remove("RUST_LOG").args(["--format", "csv", "import", "--instrument", "x:Y"]);
        command.env("QI__STORE__BACKEND", "sqlite").env("QI__STORE__SQLITE__PATH", path("prices.db"));
        let out = command.args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let (code, shown, complaints) = import(&[&path("XBTEUR.csv"), &path("XBTEUR-2.csv")]);
    assert_eq!(code, Some(0), "{complaints}");
    let rows: Vec<_> = shown.lines().map(|line| line.rsplit('/').next().unwrap_or(line)).collect();
    assert_eq!(rows, ["file,records,bad_lines,checksum", "XBTEUR.csv,2,1,none", "XBTEUR-2.csv,1,0,none"]);
    assert!(complaints.contains("line=3"), "{complaints}");
    for (arguments, expected, says) in [
        (vec![path("bad.csv")], 1, "more bad lines (2) than records (1)"),
        (vec![path("empty.csv")], 1, "no record"),
        (vec![path("XBTEUR.csv"), "--strict".to_owned()], 1, "line=3"),
        (vec![path("absent.csv")], 2, "absent.csv"),
    ] {
        let (code, _, complaints) = import(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(code == Some(expected) && complaints.contains(says), "{arguments:?}: {code:?} {complaints}");
    }
}

#[cfg(all(feature = "archive", feature = "sqlite"))]
#[test]
fn archives_have_exit_codes_and_usage_errors() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive").display().to_string();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
        command.env("QI__STORE__BACKEND", "sqlite");
        command.env("QI__STORE__SQLITE__PATH", folder.path().join("prices.db"));
        command.env_remove("RUST_LOG").stdin(Stdio::null()).args(arguments).output().unwrap()
    };
    assert_eq!(run(&["migrate"]).status.code(), Some(0));
    let out = run(&["export", &archive]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("no records"), "{}", text(&out.stderr));
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let empty = folder.path().join("empty").display().to_string();
    std::fs::create_dir_all(folder.path().join("archive/ticks/kraken")).unwrap();
    let part = format!("{archive}/ticks/kraken");
    let missing = folder.path().join("missing").display().to_string();
    let parquet = folder.path().join("2024-01-31.parquet").display().to_string();
    std::fs::write(&parquet, "PAR1").unwrap();
    for (arguments, code, says) in [
        (vec!["import", &archive], 1, "no file that the options select"),
        (vec!["import", &empty], 2, "is not an archive of `qi export`"),
        (vec!["import", &part], 2, "is a part of an archive"),
        (vec!["import", &parquet], 2, "name the folder or the URL of the archive"),
        (vec!["import", &archive, &empty], 2, "must be the only argument"),
        (vec!["import", &archive, "--strict"], 2, "files of exchanges"),
        (vec!["import", "no-such-file.csv", "--dataset", "ticks"], 2, "are for archives"),
        (
            vec!["import", "no-such-file.csv", "--instrument", "x:Y", "--instrument", "x:Z"],
            2,
            "are for archives",
        ),
        (vec!["import", "s4://bucket/x"], 2, "the known schemes are s3, gs, az and file"),
        (vec!["export", "s4://bucket/x"], 2, "the known schemes are s3, gs, az and file"),
        (vec!["export", "memory:///x"], 2, "the known schemes are s3, gs, az and file"),
        (vec!["export", "https://server.example/x"], 2, "the known schemes are s3, gs, az and file"),
        (vec!["export", "s3://name:secret@bucket/x"], 2, "must not contain credentials"),
        (vec!["import", "s3://name@bucket/x"], 2, "must not contain credentials"),
        (vec!["export", &missing, "--since", "2024-01-31T00:00:01Z"], 2, "start of a day"),
        (vec!["export", &missing, "--instrument", "x:NONE"], 1, "no records of the instrument"),
        (vec!["export", &archive, "--since", "2024-01-31T00:00:01Z"], 2, "start of a day"),
        (vec!["export", &archive, "--period", "month"], 2, "one file for each day; use --period day"),
        (vec!["export", &archive, "--instrument", "x:NONE"], 1, "no records of the instrument"),
        (vec!["export", &archive, "--period", "year"], 2, "invalid value"),
    ] {
        let out = run(&arguments);
        let said = text(&out.stderr);
        assert!(
            out.status.code() == Some(code) && said.contains(says),
            "{arguments:?}: {:?} {said}",
            out.status
        );
        assert!(!said.contains("secret"), "{said}");
    }
    assert!(!std::path::Path::new(&missing).exists(), "a rejected export leaves no folder");
}

#[cfg(all(feature = "archive", feature = "sqlite"))]
#[test]
fn the_import_of_one_dataset_ignores_the_other_folders_of_an_archive() {
    let store = Sqlite::new();
    let trades = store.file("XBTEUR.csv", "1700000000,100,1\n1700000001,101,2\n");
    store.expect(&["import", "--instrument", "x:Y", &trades], 0, &[]);
    let archive = store.path("archive");
    store.expect(&["export", &archive], 0, &[]);
    let named = ["import", &archive, "--instrument", "x:Y"];
    store.expect(&named, 0, &[]);
    store.expect(&[&named[..], &["--instrument", "x:Z"]].concat(), 1, &["no file of x:Z"]);
    let folder = std::path::Path::new(&archive);
    std::fs::create_dir(folder.join("scripts")).unwrap();
    store.expect(&["import", &archive], 0, &[]);
    // The folders of a dataset that needs --all-datasets, and of a dataset that no option opens.
    for (name, hint) in [("mark_prices", true), ("rates", false)] {
        std::fs::create_dir_all(folder.join(name).join("x")).unwrap();
        std::fs::write(folder.join(name).join("x/_2024-01-31.json"), "{}").unwrap();
        let said = store.expect(&["import", &archive], 1, &[&format!("dataset={name}")]);
        assert_eq!(said.contains("--all-datasets"), hint, "{said}");
        let said = store.expect(&["--all-datasets", "import", &archive], 1, &[]);
        assert!(!said.contains("--all-datasets"), "{said}");
        store.expect(&["import", &archive, "--dataset", "ticks"], 0, &[]);
        std::fs::remove_dir_all(folder.join(name)).unwrap();
    }
}

#[test]
fn check_fails_neither_because_of_a_memory_bus_nor_creates_topics() {
    let out = run_with(&["check", "--format", "csv"], &[("QI__STORE__AUTO_SCHEMA", "true")]);
    let shown = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{shown}");
    assert!(shown.contains("the bus is in the memory of this process"), "{shown}");
}

#[test]
fn an_unreachable_server_exits_with_code_1_in_every_command() {
    let variables = [
        // No server listens on the discard port.
        ("QI__STORE__BACKEND", "timescale"),
        ("QI__STORE__TIMESCALE__URL", "postgres://qi@127.0.0.1:9/qi"),
        ("QI__STORE__CLICKHOUSE__URL", "http://127.0.0.1:9"),
        ("QI__STORE__RETRY__ENABLED", "false"),
        ("QI__BUS__BACKEND", "redpanda"),
        ("QI__BUS__REDPANDA__BROKERS", "127.0.0.1:9"),
        ("QI__BUS__REDPANDA__REQUEST_TIMEOUT", "200ms"),
        ("QI__BUS__RETRY__ENABLED", "false"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("chart.svg").display().to_string();
    let file = folder.path().join("XBTEUR.csv").display().to_string();
    std::fs::write(&file, "1700000000,100,1\n").unwrap();
    for arguments in [
        vec!["check"],
        vec!["migrate"],
        vec!["migrate", "--dry-run"],
        vec!["query", "latest"],
        vec!["query", "stats", "x:Y"],
        vec!["--store", "clickhouse", "query", "ticks", "x:Y"],
        vec!["instruments"],
        vec!["chart", "x:Y", "--out", &out],
        vec!["copy", "--from", "timescale", "--to", "clickhouse"],
        vec!["import", "--instrument", "x:Y", &file],
        vec!["maintain"],
        vec!["bars", "persist", "--all", "--interval", "1m"],
        vec!["topics"],
        vec!["topics", "describe", "t"],
        vec!["lag", "--max", "5"],
        vec!["groups", "reset", "g", "--topic", "t", "--to", "latest"],
        vec!["tail", "t"],
    ] {
        let out = run_with(&arguments, &variables);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{arguments:?}: {said}");
        let is_check = arguments == ["check"];
        assert!(is_check || said.lines().any(|line| line.starts_with("qi: ")), "{arguments:?}: {said}");
    }
}

#[test]
fn config_shows_values_with_origins_and_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other.toml");
    let toml = "[store]\nbackend = \"clickhouse\"\n[store.clickhouse]\nurl = \"http://a:hunter2@h:1\"\nroot_cert = \"ca.pem\"\n";
    std::fs::write(&file, toml).unwrap();
    let path = file.display().to_string();
    let shown = |arguments: &[&str], variables: &[(&str, &str)]| {
        let out = run_with(arguments, variables);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        text(&out.stdout)
    };
    let options = ["config", "--format", "csv"];
    let csv = shown(
        &options,
        &[("QI_CONFIG", &path), ("QI__STORE__CLICKHOUSE__WRITE__MAX_REQUEST_RECORDS", "1_000")],
    );
    assert!(csv.contains(&format!("store.backend,clickhouse,{path}\n")), "{csv}");
    assert!(csv.contains("store.clickhouse.write.max_request_records,1000,QI__STORE__CLICKHOUSE__WRITE__MAX_REQUEST_RECORDS\n"), "{csv}");
    assert!(csv.contains("store.clickhouse.database,qi,default\n") && !csv.contains("hunter2"), "{csv}");
    let cert = folder.path().join("ca.pem").display().to_string();
    assert!(csv.contains(&format!("store.clickhouse.root_cert,{cert},")), "{csv}");
    // The option is stronger than the variable, and both are stronger than the file of the current folder.
    let other = folder.path().join("qi.toml");
    std::fs::write(&other, "[store.memory]\nmax_rows = 7\n").unwrap();
    let other = other.display().to_string();
    let csv = shown(&["--config", &other, "config", "--format", "csv"], &[("QI_CONFIG", &path)]);
    assert!(csv.contains("store.memory.max_rows,7,"), "{csv}");
    let here = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
        command.env_remove("QI_CONFIG").envs(variables.iter().copied()).current_dir(folder.path());
        text(&command.args(options).output().unwrap().stdout)
    };
    assert!(here(&[]).contains("store.memory.max_rows,7,qi.toml\n"));
    assert!(here(&[("QI_CONFIG", "")]).contains("store.memory.max_rows,7,qi.toml\n"));
    assert!(here(&[("QI_CONFIG", "other.toml")]).contains("store.backend,clickhouse,other.toml\n"));
    // The settings are those of the store that a command with the same option opens.
    let csv = shown(&["--store", "sqlite", "config", "--format", "csv"], &[("QI_CONFIG", &path)]);
    assert!(csv.contains("store.backend,sqlite,--store\n") && csv.contains("store.sqlite."), "{csv}");
    assert!(!csv.contains("store.clickhouse."), "{csv}");
    let absent = run_with(&["config"], &[("QI_CONFIG", "/does/not/exist")]);
    assert_eq!(absent.status.code(), Some(2), "{}", text(&absent.stderr));
}

#[test]
fn completions_exist_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = run(&["completions", shell]);
        assert!(out.status.success() && text(&out.stdout).contains("redrive"), "{shell}");
    }
    assert_eq!(run(&["completions", "csh"]).status.code(), Some(2));
}

#[test]
fn errors_have_one_form_on_standard_error() {
    for (arguments, code) in [
        (vec!["frobnicate"], 2),
        (vec!["tail"], 2),
        (vec!["--config", "/does/not/exist", "check"], 2),
        (vec!["groups", "reset", "g", "--topic", "t", "--to", "yesterday"], 2),
        (vec!["topics", "describe", "absent"], 1),
        (vec!["lag", "--group", "absent", "--max", "0"], 1),
        (vec!["tail", "absent"], 1),
        (vec!["query", "ticks", "x:Y"], 1),
    ] {
        let out = run(&arguments);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.starts_with("qi: ") && !said.contains("error: "), "{arguments:?}: {said}");
    }
}

#[test]
fn tables_fit_the_width_of_the_variable() {
    for columns in ["80", "120"] {
        for arguments in [&["config"][..], &["migrate", "--dry-run"], &["topics"], &["check"]] {
            let shown = text(&run_with(arguments, &[("COLUMNS", columns)]).stdout);
            let longest = shown.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= columns.parse().unwrap(), "{arguments:?}: {longest}\n{shown}");
        }
    }
    let longest = |variables: &[(&str, &str)]| {
        let shown = text(&run_with(&["config"], variables).stdout);
        shown.lines().map(|line| line.chars().count()).max().unwrap()
    };
    assert!(longest(&[]) <= 100 && longest(&[("COLUMNS", "x")]) <= 100);
}

#[cfg(feature = "chart")]
#[test]
fn a_chart_without_data_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("old.svg"), "old").unwrap();
    for (out, code, says) in [
        (path("new.svg"), 1, "there are no bars of 1h"),
        (path("old.svg"), 1, "there are no bars of 1h"),
        (path("new.jpg"), 2, "must end with .svg or .png"),
        (path("new"), 2, "must end with .svg or .png"),
    ] {
        let out = run_with(&["chart", "x:Y", "--out", &out], &[("QI__STORE__AUTO_SCHEMA", "true")]);
        let said = text(&out.stderr);
        assert!(out.status.code() == Some(code) && said.contains(says), "{:?} {said}", out.status);
    }
    assert_eq!(std::fs::read_to_string(path("old.svg")).unwrap(), "old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no other file remains");
}
