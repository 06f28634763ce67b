//! The probes and metrics of the program over HTTP, while it runs.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program with a job that outlasts the test, and its address.
struct Program {
    child: Child,
    address: String,
}

impl Program {
    fn start() -> Self {
        let bounded = concat!(env!("CARGO_MANIFEST_DIR"), "/config/bounded.toml");
        let mut child = Command::new(env!("CARGO_BIN_EXE_pipeline"))
            .args(["--ticks", "100000000", "--config", bounded, "--listen", "127.0.0.1:0"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("pipeline: listening on http://").expect(&line).to_owned();
        Self { child, address }
    }

    /// Returns the status code and the body.
    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn running_program_answers_probes_and_serves_metrics() {
    let mut program = Program::start();
    let began = Instant::now();
    while program.get("/readyz").0 != 200 {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", program.get("/readyz").1);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(program.get("/livez").0, 200);
    assert_eq!(program.get("/startupz").0, 200);
    let (_, ready) = program.get("/readyz");
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(
        (&ready["backends"][0]["backend"], &ready["backends"][0]["up"]),
        (&"memory".into(), &true.into())
    );
    assert_eq!(
        (&ready["runtime"]["ready"], &ready["runtime"]["agents"][0]["name"]),
        (&true.into(), &"writer".into())
    );

    std::thread::sleep(Duration::from_secs(1));
    let (status, metrics) = program.get("/metrics");
    assert_eq!(status, 200);
    for line in [
        "# TYPE qi_calls_total counter",
        "# HELP qi_call_duration_seconds Duration of calls",
        "qi_calls_total{port=\"store\",backend=\"memory\",operation=\"insert\",dataset=\"ticks\"}",
        "qi_call_duration_seconds_bucket{port=\"bus\",backend=\"memory\",operation=\"publish\",dataset=\"\",le=\"0.001\"}",
        "qi_batch_records_sum{port=\"store\",backend=\"memory\",operation=\"insert\",dataset=\"ticks\"}",
        "qi_messages_delivered_total{backend=\"memory\"}",
        "qi_agent_up{agent=\"writer\"} 1",
        "qi_agent_transitions_total{agent=\"feed\",status=\"running\"} 1",
        "qi_agent_heartbeat_age_seconds{agent=\"writer\"} 0",
    ] {
        assert!(metrics.contains(line), "no `{line}` in\n{metrics}");
    }
    let series = metrics.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series < 600, "{series} series");

    assert_eq!(program.get("/nothing").0, 404);
    assert_eq!(program.ask("POST", "/livez").0, 405);
    assert_eq!(program.ask("HEAD", "/livez"), (200, String::new()), "some load balancers ask so");

    let pid = program.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(program.child.wait().unwrap().code(), Some(143), "a server does not hold up the end");
}

#[test]
fn clients_that_do_not_read_do_not_block_probes() {
    let program = Program::start();
    let deaf = || {
        let mut stream = TcpStream::connect(&program.address).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        // More responses than the socket buffers hold.
        let _full = stream.write_all("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(5_000).as_bytes());
        stream
    };
    let open: Vec<TcpStream> = (0..64).map(|_| deaf()).collect();
    let since = Instant::now();
    let live = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(&program.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    // Kubernetes probes every ten seconds, and kills after three failures.
    while !live().unwrap_or(false) {
        assert!(since.elapsed() < Duration::from_secs(20), "{} clients keep it to themselves", open.len());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn address_in_use_is_a_configuration_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(["--ticks", "10", "--listen", &taken.local_addr().unwrap().to_string()])
        .output()
        .unwrap();
    let complaint = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("pipeline.listen") && complaint.contains("address="), "{complaint}");
}
