//! The contract of the price store on real servers: TimescaleDB (`QI_TIMESCALE_URL`) and plain PostgreSQL
//! (`QI_POSTGRES_URL`). With `QI_TIMESCALE_CONVERT_CHUNKS=1`, every chunk of TimescaleDB is converted to the
//! columnstore after each write, which needs the Community edition.

mod servers;
mod timescale_rig;

use qi_testkit::store::contract::{Suite, Wrapper};
use servers::{runs_long_tests, with_contract};
use timescale_rig::Server;

fn main() {
    let suite = with_contract(Suite::new(), Server::timescale());
    let suite = if runs_long_tests() {
        with_contract(suite, Server::postgres())
    } else {
        // The layers are the same above both servers.
        suite.on(Server::postgres(), [Wrapper::PLAIN])
    };
    suite.at_once(4).main();
}
