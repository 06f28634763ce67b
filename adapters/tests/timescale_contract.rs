//! The contract of the price store on real servers: TimescaleDB (`QI_TIMESCALE_URL`) and plain PostgreSQL
//! (`QI_POSTGRES_URL`). With `QI_TIMESCALE_CONVERT_CHUNKS=1`, every chunk of TimescaleDB is converted to the
//! columnstore after each write, which needs the Community edition.

mod servers;
mod timescale_rig;

use qi_testkit::store::contract::{Suite, Wrapper};
use servers::with_long_tests;
use timescale_rig::Server;

fn main() {
    let wrappers =
        || with_long_tests([Wrapper::PLAIN, Wrapper::FULL_STACK_OVER_CHAOS], [Wrapper::FULL_STACK]);
    let suite = Suite::new().on(Server::timescale(), wrappers()).on(Server::postgres(), wrappers());
    suite.at_once(4).main();
}
