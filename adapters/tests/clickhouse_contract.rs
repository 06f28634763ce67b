//! The contract of the price store on a real server: the ClickHouse server of `QI_CLICKHOUSE_URL`.

mod clickhouse_rig;
mod servers;

use clickhouse_rig::Server;
use qi_testkit::store::contract::{Suite, Wrapping};

fn main() {
    let wrappings = [Wrapping::PLAIN, Wrapping::FULL_STACK, Wrapping::FULL_STACK_OVER_CHAOS];
    Suite::new().on(Server::clickhouse(), wrappings).at_once(4).main();
}
