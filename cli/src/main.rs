//! The operator's tool. `--help` lists the commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    qi_cli::run(qi_cli::Backends::default())
}
