//! The contract of the price store on a real server: the ClickHouse server of `QI_CLICKHOUSE_URL`.

mod clickhouse_rig;
mod servers;

use clickhouse_rig::Server;
use qi_testkit::store::contract::{Suite, Wrapper};
use servers::with_long_tests;

fn main() {
    let wrappers = with_long_tests([Wrapper::PLAIN, Wrapper::FULL_STACK_OVER_CHAOS], [Wrapper::FULL_STACK]);
    Suite::new().on(Server::clickhouse(), wrappers).at_once(4).main();
}
