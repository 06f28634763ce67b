//! The exit codes and the output of the program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn check_of_an_empty_memory_store_exits_with_code_1_and_a_hint() {
    let out = run(&["check"]);
    let shown = text(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("store memory") && shown.contains("FAILED") && shown.contains("qi migrate"),
        "{shown}"
    );
}

#[test]
fn migrate_and_topics_work_in_each_format() {
    let out = run(&["migrate", "--format", "json"]);
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
    assert_eq!(shown.matches("without encryption").count(), 1, "{shown}");
    assert!(!shown.contains("SECRET"), "{shown}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
    let out = command.env("RUST_LOG", "error").stdin(Stdio::null()).args(arguments).output().unwrap();
    assert!(!text(&out.stderr).contains("without encryption"), "{}", text(&out.stderr));
    for arguments in [["migrate"], ["topics"], ["lag"], ["check"]] {
        assert_eq!(text(&run(&arguments).stderr), "", "{arguments:?}");
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
    ] {
        let out = run(&arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(why), "{arguments:?}: {}", text(&out.stderr));
    }
    let same = run(&["copy", "--from", "memory", "--to", "memory"]);
    assert_eq!(same.status.code(), Some(1));
    assert!(text(&same.stderr).contains("another backend"));
}

#[test]
fn dead_letter_commands_without_letters_or_topics_have_defined_exit_codes() {
    let list = run(&["dlq", "list", "--format", "csv"]);
    assert_eq!(list.status.code(), Some(0), "{}", text(&list.stderr));
    assert_eq!(text(&list.stdout), "dead letter topic,origin topic,code,letters,copies,first,last\n");
    for command in ["list", "show", "redrive"] {
        let out = run(&["dlq", command, "--topic", "absent"]);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
        assert!(text(&out.stderr).contains("absent.dlq"), "{}", text(&out.stderr));
    }
}

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
        let out = command.args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let (code, shown, complaints) = import(&[&path("XBTEUR.csv"), &path("XBTEUR-2.csv")]);
    assert_eq!(code, Some(0), "{complaints}");
    let rows: Vec<_> = shown.lines().map(|line| line.rsplit('/').next().unwrap_or(line)).collect();
    assert_eq!(rows, ["file,records,bad_lines,checksum", "XBTEUR.csv,2,1,none", "XBTEUR-2.csv,1,0,none"]);
    assert!(complaints.contains("line=3"), "{complaints}");
    for (arguments, says) in [
        (vec![path("bad.csv")], "more bad lines (2) than records (1)"),
        (vec![path("empty.csv")], "no record"),
        (vec![path("XBTEUR.csv"), "--strict".to_owned()], "line=3"),
        (vec![path("absent.csv")], "absent.csv"),
    ] {
        let (code, _, complaints) = import(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(code == Some(1) && complaints.contains(says), "{arguments:?}: {code:?} {complaints}");
    }
}

#[cfg(feature = "archive")]
#[test]
fn archives_have_exit_codes_and_usage_errors() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive").display().to_string();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qi"));
        command.env_remove("RUST_LOG").env("QI__STORE__AUTO_SCHEMA", "true").stdin(Stdio::null());
        command.args(arguments).output().unwrap()
    };
    let out = run(&["export", &archive]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("no records"), "{}", text(&out.stderr));
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let empty = folder.path().join("empty").display().to_string();
    for (arguments, code, says) in [
        (vec!["import", &empty], 1, "no file that the options select"),
        (vec!["import", &archive, &empty], 2, "must be the only argument"),
        (vec!["import", &archive, "--strict"], 2, "files of exchanges"),
        (vec!["import", "no-such-file.csv", "--dataset", "ticks"], 2, "are for archives"),
        (vec!["import", "s4://bucket/x"], 2, "known object store"),
        (vec!["export", "s4://bucket/x"], 2, "known object store"),
        (vec!["export", &archive, "--since", "2024-01-31T00:00:01Z"], 2, "start of a day"),
        (vec!["export", &archive, "--period", "month"], 2, "settings of the archive"),
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
    }
}
