//! `promtool` and `docker-compose` accept the files for operators, and every alert has unit tests.
//!
//! `scripts/test` installs both programs. Without them, the trials are ignored.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Failed, Trial, run};
use qi_testkit::presence;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const ALERTS: &str = include_str!("../../ops/prometheus/alerts.yml");
const ALERT_TESTS: &str = include_str!("../../ops/prometheus/tests/alerts.yml");
const COMPOSE: &str = include_str!("../../compose.yaml");

/// Runs a program, and returns its output if it fails.
fn succeeds(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}\n{out}{err}", output.status)) }
}

/// Returns the first command that accepts the argument `probe`.
fn first_that_runs<const N: usize>(commands: [&[&str]; N], probe: &str) -> Option<Vec<String>> {
    let runs = |words: &&&[&str]| succeeds(Command::new(words[0]).args(&words[1..]).arg(probe)).is_ok();
    commands.iter().find(runs).map(|words| words.iter().map(|&word| word.to_owned()).collect())
}

fn promtool(program: &[String], arguments: &[&str], file: &Path) -> Result<(), String> {
    succeeds(Command::new(&program[0]).args(arguments).arg(file))
}

fn rules(program: &[String]) -> Result<Completion, Failed> {
    let folder = Path::new(ROOT).join("ops/prometheus");
    promtool(program, &["check", "rules"], &folder.join("alerts.yml"))?;
    promtool(program, &["test", "rules"], &folder.join("tests/alerts.yml"))?;

    // A changed threshold and an expression that is not PromQL are found.
    let copy = tempfile::tempdir()?;
    std::fs::create_dir(copy.path().join("tests"))?;
    let (rules, tests) = (copy.path().join("alerts.yml"), copy.path().join("tests/alerts.yml"));
    std::fs::write(&tests, ALERT_TESTS)?;
    std::fs::write(&rules, ALERTS.replace("> 0.05'", "> 0.5'"))?;
    promtool(program, &["check", "rules"], &rules)?;
    if promtool(program, &["test", "rules"], &tests).is_ok() {
        return Err("promtool accepts a changed threshold".into());
    }
    std::fs::write(&rules, ALERTS.replace("> 0.05'", "> > 0.05'"))?;
    if promtool(program, &["check", "rules"], &rules).is_ok() {
        return Err("promtool accepts an expression that is not PromQL".into());
    }
    Ok(Completion::Completed)
}

fn compose(program: &[String]) -> Result<Completion, Failed> {
    let config = |file: &Path| {
        succeeds(Command::new(&program[0]).args(&program[1..]).arg("-f").arg(file).args(["config", "-q"]))
    };
    config(&Path::new(ROOT).join("compose.yaml"))?;

    let copy = tempfile::tempdir()?;
    let file = copy.path().join("compose.yaml");
    std::fs::write(&file, COMPOSE.replace("ports:", "port:"))?;
    if config(&file).is_ok() {
        return Err("docker-compose accepts an unknown key".into());
    }
    Ok(Completion::Completed)
}

/// Every alert fires in a unit test. Every label of its texts is a label of the alert.
fn every_alert_is_tested() -> Result<(), Failed> {
    let mut alerts = ALERTS.split("- alert: ").skip(1);
    let count = alerts.clone().count();
    let untested = alerts.find_map(|alert| {
        let name = alert.lines().next().unwrap_or_default();
        let fires = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\", ");
        let Some(series) = ALERT_TESTS.lines().find(|line| line.contains(&fires)) else {
            return Some(format!("{name} fires in no test of ops/prometheus/tests/alerts.yml"));
        };
        let mut labels = alert.split("$labels.").skip(1).filter_map(|rest| rest.split(' ').next());
        let unknown = labels.find(|label| !series.contains(&format!(" {label}=\"")))?;
        Some(format!("the label {unknown} is in the texts of {name}, but not in its test"))
    });
    match untested {
        Some(problem) => Err(problem.into()),
        None if count > 12 => Ok(()),
        None => Err(format!("found only {count} alerts").into()),
    }
}

fn main() -> ExitCode {
    let installed = PathBuf::from(ROOT).join("target/prometheus/usr/bin/promtool");
    let promtool = first_that_runs([&["promtool"], &[&installed.to_string_lossy()]], "--version");
    let docker_compose = first_that_runs([&["docker", "compose"], &["docker-compose"]], "version");
    let absent = |program: &Option<_>, name| program.is_none().then(|| format!("{name} is not installed"));
    let trials = vec![
        Trial::test("every_alert_is_tested", every_alert_is_tested),
        presence::trial("alert_rules".to_owned(), "promtool", absent(&promtool, "promtool"), move || {
            rules(&promtool.unwrap_or_default())
        }),
        presence::trial(
            "compose_file".to_owned(),
            "docker-compose",
            absent(&docker_compose, "docker-compose"),
            move || compose(&docker_compose.unwrap_or_default()),
        ),
    ];
    run(&Arguments::from_args(), trials).exit_code()
}
