//! Archives in an S3-compatible object store: the server of moto, which `scripts/test` installs.
//!
//! This file has one trial, because it sets environment variables of its process.
#![allow(clippy::unwrap_used, reason = "a test")]

mod rig;

use std::net::TcpListener;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, run};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use qi_arrow::{Archive, ExportOptions, ImportOptions, PeriodLength, export, import};
use qi_testkit::presence;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server with the bucket `prices`, and returns its address.
fn start() -> Result<(Server, String), Failed> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let server = Command::new(rig::python())
        .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let server = Server(server);
    let bucket = format!(
        "import urllib.request as u; u.urlopen(u.Request('http://127.0.0.1:{port}/prices', method='PUT'))"
    );
    let deadline = Instant::now() + Duration::from_mins(1);
    while !Command::new(rig::python()).args(["-c", &bucket]).stderr(Stdio::null()).status()?.success() {
        if Instant::now() > deadline {
            return Err("the server did not start within 60 s".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok((server, format!("http://127.0.0.1:{port}")))
}

async fn through_s3() -> Result<(), Failed> {
    let draws: Vec<rig::Draw> =
        (0..90u32).map(|n| (n as usize % 3, n, u64::from(n), n * 331 % 30_000)).collect();
    let source = rig::store().await;
    for records in rig::of_every_dataset(&draws) {
        rig::insert(&source, records.as_records()).await;
    }
    // A file of more than one part of an upload, and a symbol that is encoded in its path.
    let mut big = rig::ticks("kraken:XBT/EUR", 1, 700_000);
    let mut random = fastrand::Rng::with_seed(1);
    for tick in &mut big {
        let units = i128::from(random.u64(1..)) * 1_000_000_007;
        *tick = tick.clone().with_quantity(qi_core::Quantity::from_units(units)?);
    }
    rig::insert_ticks(&source, &big).await;

    let archive = Archive::open("s3://prices/daily/archive")?;
    let datasets = rig::datasets();
    let mut options = ExportOptions::new(datasets.iter());
    let first = export(&source, &archive, &options).await?;
    let written: u64 = first.series.iter().map(|series| series.written).sum();
    let largest = first.series.iter().map(|series| series.bytes).max();
    if largest < Some(9 * 1024 * 1024) {
        return Err(format!("the largest file has {largest:?} bytes, which is one part").into());
    }
    options.verify_existing = true;
    let again = export(&source, &archive, &options).await?;
    let unchanged: u64 = again.series.iter().map(|series| series.unchanged).sum();
    if again.series.iter().any(|series| series.written > 0) || unchanged != written {
        return Err(format!("the second export wrote files: {again:?}").into());
    }
    let target = rig::store().await;
    let report = import(&target, &archive, &ImportOptions::new(datasets.clone())).await?;
    if !report.is_good() {
        return Err(format!("{report:?}").into());
    }
    if rig::content(&target, &datasets).await != rig::content(&source, &datasets).await {
        return Err("the records differ".into());
    }
    // Another prefix of the bucket is another archive.
    let report =
        import(&target, &Archive::open("s3://prices/daily/arch")?, &ImportOptions::new(datasets)).await?;
    if !report.is_good() || report.records() != 0 {
        return Err("the prefix of another archive has records".into());
    }
    // Random records, each time in an archive of its own.
    let mut runner = TestRunner::default();
    for case in 0..8 {
        let draws = rig::draws().new_tree(&mut runner)?.current();
        let archive = Archive::open(&format!("s3://prices/random/{case}"))?;
        let period = if case % 2 == 0 { PeriodLength::Day } else { PeriodLength::Month };
        rig::through_archive(&rig::datasets(), &rig::of_every_dataset(&draws), &archive, period)
            .await
            .map_err(|error| format!("{error}: {draws:?}"))?;
    }
    let missing = Archive::open("s3://missing/archive")?;
    let error = export(&source, &missing, &options).await.unwrap_err();
    if error.kind() != qi_core::ErrorKind::NotFound {
        return Err(error.report().into());
    }
    Ok(())
}

fn archive_in_s3() -> Result<Completion, Failed> {
    let (server, endpoint) = start()?;
    // The test runs itself again with the variables, because a process must not change its own environment.
    let child = Command::new(std::env::current_exe()?)
        .args(["--exact", "archive_in_s3"])
        .envs([
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "us-east-1"),
        ])
        .output()?;
    drop(server);
    if child.status.success() {
        return Ok(Completion::Completed);
    }
    Err(format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr))
        .into())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if std::env::var("AWS_ENDPOINT").is_ok_and(|endpoint| endpoint.starts_with("http://127.0.0.1:")) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return match runtime.block_on(through_s3()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}", error.message().unwrap_or("failed"));
                ExitCode::FAILURE
            }
        };
    }
    let trial = presence::trial(
        "archive_in_s3".to_owned(),
        "python",
        rig::absent("moto.server, flask"),
        archive_in_s3,
    );
    run(&arguments, vec![trial]).exit_code()
}
