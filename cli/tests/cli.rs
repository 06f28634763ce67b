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
    let csv = shown(&options, &[("QI_CONFIG", &path), ("QI__STORE__CLICKHOUSE__WRITE__PIECE", "1_000")]);
    assert!(csv.contains(&format!("store.backend,clickhouse,{path}\n")), "{csv}");
    assert!(csv.contains("store.clickhouse.write.piece,1000,QI__STORE__CLICKHOUSE__WRITE__PIECE\n"), "{csv}");
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
        for arguments in [&["config"][..], &["migrate"], &["topics"], &["check"]] {
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
