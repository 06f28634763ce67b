//! The contract of the price store on a real server: the ClickHouse server of `QI_CLICKHOUSE_URL`.

mod clickhouse_rig;
mod servers;

use clickhouse_rig::Server;
use qi_testkit::store::contract::{Suite, Wrapping};
use servers::with_long_tests;

fn main() {
    let wrappings =
        with_long_tests([Wrapping::PLAIN, Wrapping::FULL_STACK_OVER_CHAOS], [Wrapping::FULL_STACK]);
    Suite::new().on(Server::clickhouse(), wrappings).at_once(4).main();
}
