//! The contract of the price store on a real server: the ClickHouse server of `QI_CLICKHOUSE_URL`.

mod clickhouse_rig;
mod servers;

use clickhouse_rig::Server;
use qi_testkit::store::contract::{Suite, Wrapper};
use servers::{runs_long_tests, with_contract};

fn main() {
    let (suite, server) = (Suite::new(), Server::clickhouse());
    let suite = if runs_long_tests() {
        with_contract(suite, server)
    } else {
        // The development server needs a second for the tables of a dataset.
        suite.on_representative(server, [Wrapper::PLAIN])
    };
    suite.at_once(4).main();
}
