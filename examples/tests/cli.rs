//! The exit codes, the output and the signals of the program.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn pipeline() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    pipeline().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn trades(content: &str) -> (tempfile::NamedTempFile, String) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    let path = file.path().display().to_string();
    (file, path)
}

#[test]
fn default_run_stores_a_market_and_prints_a_table() {
    let out = run(&["--ticks", "5000"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let shown = text(&out.stdout);
    assert!(shown.contains("sim:A0000-USDT") && shown.contains("5000 published"), "{shown}");
    assert!(out.stderr.is_empty(), "nothing but the table in a pipe: {}", text(&out.stderr));
}

#[test]
fn json_output_is_the_complete_summary() {
    let out = run(&["--ticks", "2000", "--instruments", "3", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((json["published"].as_u64(), json["instruments"].as_array().unwrap().len()), (Some(2_000), 3));
    assert_eq!(json["interrupted"], false);
}

#[test]
fn invalid_usage_and_configuration_exit_with_code_2_and_the_reason() {
    let (_file, config) = trades("[store]\nbackend = \"timescale\"\n");
    let (_file, typo) = trades("[stor]\n");
    let (_file, input) = trades(
        "timestamp,open,high,low,close,volume\n2022-01-01 00:00:00,1,1,1,1,5\n2022-01-01 00:01:00,1,1,1,1,5\n",
    );
    let (_file, aligned) = trades(
        "2022-01-01 00:00:00,1,1,1,1,5\n2022-01-01 00:15:00,1,1,1,1,5\n2022-01-01 00:45:00,1,1,1,1,5\n",
    );
    let (_file, unknown) = trades("hello\nworld\n");
    let (_file, header) = trades("timestamp,volume,last\n1700000000,34000,5\n");
    let folder = tempfile::tempdir().unwrap();
    let five = folder.path().join("XBTUSD_5.csv").display().to_string();
    std::fs::write(&five, "1700000100,1,1,1,1,1,1\n").unwrap();
    let candles = ["--input", &input, "--format", "candles", "--instrument", "x:Y"];
    let with = |more: &[&'static str]| [&candles[..], more].concat();
    for (arguments, why) in [
        (vec!["--frobnicate"], "--frobnicate"),
        (vec!["--interval", "7m"], "must be one of 1s 5s"),
        (vec!["--instrument", "nonsense"], "EXCHANGE:SYMBOL"),
        (vec!["--input", &input], "--instrument"),
        (vec!["--input", &aligned, "--instrument", "x:Y"], "--input-interval"),
        (vec!["--input", &unknown, "--instrument", "x:Y"], "must have a known format"),
        (vec!["--input", &header, "--instrument", "x:Y"], "--columns"),
        (vec!["--input", &five, "--input-interval", "1m"], "not of 5m"),
        (vec!["--input", &input, "--columns", "time=0"], "time and price"),
        (vec!["--export", "never.csv"], "needs --instrument"),
        (vec!["--instrument", "sim:NONE"], "must be one of the market's"),
        (vec!["--input", "/does/not/exist", "--format", "kraken", "--instrument", "x:Y"], "/does/not/exist"),
        (vec!["--config", "/does/not/exist"], "/does/not/exist"),
        (vec!["--config", &config], "timescale"),
        (vec!["--config", &typo], "did you mean `store`"),
        (vec!["--instruments", "1", "--export", "/does/not/exist/x.csv"], "a folder that exists"),
        (with(&["--export", "/dev/null"]), "an ordinary file"),
        (vec!["--input", "/dev/zero", "--format", "kraken", "--instrument", "x:Y"], "ordinary file"),
        (vec!["--instruments", "0"], "must lie from 1 to 10000"),
        (with(&["--interval", "5s"]), "must be a multiple of the input's interval"),
        (with(&["--ticks", "5"]), "--ticks"),
    ] {
        let out = run(&arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(why), "{arguments:?}: {}", text(&out.stderr));
    }
    let out = pipeline().env("QI__STORE__MEMROY__MAX_ROWS", "5").output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("did you mean `store.memory`"), "{}", text(&out.stderr));
}

#[test]
fn empty_market_prints_an_empty_table() {
    let out = run(&["--ticks", "0"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("0 published, 0 stored"));
}

#[test]
fn export_replaces_neither_link_targets_nor_the_input_and_is_never_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("in.csv"), "1600000000,10,1\n").unwrap();
    std::os::unix::fs::symlink(path("in.csv"), path("link.csv")).unwrap();
    std::fs::write(path("empty.csv"), "").unwrap();
    std::fs::write(path("old.csv"), "old").unwrap();
    std::os::unix::fs::symlink(path("old.csv"), path("out.csv")).unwrap();
    let export = |input: &str, export: &str| {
        let out = run(&[
            "--input",
            &path(input),
            "--format",
            "kraken",
            "--instrument",
            "x:Y",
            "--export",
            &path(export),
        ]);
        (out.status.code(), text(&out.stderr))
    };
    for same in ["in.csv", "link.csv"] {
        let (code, complaint) = export("in.csv", same);
        assert!(
            code == Some(2) && complaint.contains("must not be an input"),
            "{same}: {code:?} {complaint}"
        );
    }
    assert_eq!(std::fs::read_to_string(path("in.csv")).unwrap(), "1600000000,10,1\n");
    std::fs::write(path("bad.csv"), "1600000000,10,1\nbad\nworse\n").unwrap();
    for (input, says) in [("empty.csv", "no record"), ("bad.csv", "more bad lines (2) than records (1)")] {
        let (code, complaint) = export(input, "out.csv");
        assert!(code == Some(1) && complaint.contains(says), "{input}: {code:?} {complaint}");
        assert_eq!(std::fs::read_to_string(path("out.csv")).unwrap(), "old");
    }
    assert_eq!(export("in.csv", "out.csv").0, Some(0));
    assert_eq!(std::fs::read_to_string(path("out.csv")).unwrap().lines().count(), 2);
    assert!(std::fs::symlink_metadata(path("out.csv")).unwrap().is_file());
    assert_eq!(std::fs::read_to_string(path("old.csv")).unwrap(), "old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 6, "no other file is left");
}

#[cfg(target_os = "linux")]
#[test]
fn unwritable_output_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let out =
        pipeline().args(["--ticks", "100", "--json"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("No space left"), "{}", text(&out.stderr));
}

#[cfg(unix)]
#[test]
fn non_utf8_environment_variable_is_a_configuration_error() {
    use std::os::unix::ffi::OsStrExt;
    let broken = std::ffi::OsStr::from_bytes(b"timescale\xff");
    let out = pipeline().args(["--ticks", "10"]).env("QI__STORE__BACKEND", broken).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("QI__STORE__BACKEND"), "{}", text(&out.stderr));
}

#[test]
fn failure_exits_with_code_1_and_the_reason() {
    let out = pipeline().args(["--ticks", "5000"]).env("QI__STORE__MEMORY__MAX_ROWS", "10").output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("store.memory.full"), "{}", text(&out.stderr));
}

#[test]
fn unresponsive_server_exits_with_code_1() {
    let mut command = pipeline();
    command.args(["--ticks", "10"]).env("QI__STORE__BACKEND", "timescale");
    let out = command.env("QI__STORE__TIMESCALE__URL", "postgres://qi:qi@127.0.0.1:1/qi").output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
}

#[test]
fn an_export_of_a_file_with_several_instruments_fails() {
    let (_file, path) = trades(
        "exchange,symbol,timestamp,id,price,amount\nx,A,1700000000000000,1,10,1\nx,B,1700000000000000,2,20,1\n",
    );
    let folder = tempfile::tempdir().unwrap();
    let out = run(&["--input", &path, "--export", folder.path().join("out.csv").to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
    let complaint = text(&out.stderr);
    assert!(complaint.contains("the export is incomplete: it has x:A"), "{complaint}");
}

#[test]
fn timestamp_split_over_two_files_loses_no_trade() {
    let (_one, first) = trades("1700000000,100,1\n1700000001,101,2\n1700000001,102,3\n1700000001,103,4\n");
    let (_two, second) = trades("1700000001,104,5\n1700000001,105,6\n1700000002,106,7\n");
    let out = run(&["--input", &first, &second, "--instrument", "x:Y", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), json["stored"].as_u64()), (Some(0), Some(7)), "{}", text(&out.stderr));
    let twice = run(&["--input", &first, &second, &first, "--instrument", "x:Y", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&twice.stdout).unwrap();
    assert_eq!(json["stored"].as_u64(), Some(7), "a file that is read again is recognised");
}

#[test]
fn bad_lines_are_counted_and_strict_stops_at_the_first() {
    let mut content = "1600000000,10,1\n".to_owned();
    for n in 0..15 {
        writeln!(content, "bad {n}").unwrap();
    }
    let (_file, path) = trades(&content);
    let arguments = ["--input", &path, "--format", "kraken", "--instrument", "x:Y"];
    let out = run(&arguments);
    let (shown, complaints) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(1), "more bad lines than records");
    assert!(shown.contains("1 published, 1 stored") && shown.contains("15 bad lines"), "{shown}");
    assert!(complaints.contains("line=2") && complaints.contains(&path), "{complaints}");
    assert!(complaints.contains("and 5 more bad lines"), "{complaints}");
    let strict = run(&[&arguments[..], &["--strict"]].concat());
    assert_eq!(strict.status.code(), Some(1));
    assert!(text(&strict.stderr).contains("line=2"), "{}", text(&strict.stderr));
}

#[test]
fn example_configurations_work_unchanged() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config");
    for name in ["memory.toml", "bounded.toml"] {
        let out = run(&["--config", &format!("{folder}/{name}"), "--ticks", "20000"]);
        assert_eq!(out.status.code(), Some(0), "{name}: {}", text(&out.stderr));
    }
}

/// Sends a signal after a while. Returns the exit code, the time until the exit, and the output.
fn signalled(signal: &str, after: Duration) -> (Option<i32>, Duration, String) {
    // Enough work that the signal arrives before the end on any machine.
    let mut child = pipeline()
        .args([
            "--ticks",
            "100000000",
            "--config",
            concat!(env!("CARGO_MANIFEST_DIR"), "/config/bounded.toml"),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    let sent = Instant::now();
    let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let code = child.wait().unwrap().code();
    let took = sent.elapsed();
    (code, took, text(&child.wait_with_output().unwrap().stderr))
}

/// The runtime's shutdown deadline plus a second.
const LIMIT: Duration = Duration::from_secs(26);

#[test]
fn sigint_at_20_random_times_exits_with_130() {
    let seed = 20_240_101;
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..20 {
        // The process needs some time to listen for signals.
        let after = Duration::from_millis(rng.u64(100..1_000));
        let (code, took, complaints) = signalled("-INT", after);
        assert_eq!(code, Some(130), "after {after:?}: {complaints}");
        assert!(took < LIMIT, "the signal after {after:?} took {took:?}");
    }
}

#[test]
fn sigterm_exits_with_143() {
    let (code, took, complaints) = signalled("-TERM", Duration::from_millis(500));
    assert_eq!(code, Some(143), "{complaints}");
    assert!(took < LIMIT);
}
