//! The contract of the price store on a real server: the ClickHouse server of `QI_CLICKHOUSE_URL`.

mod clickhouse_rig;
mod servers;

use clickhouse_rig::Server;
use qi_testkit::store::contract::Suite;
use servers::with_contract;

fn main() {
    with_contract(Suite::new(), Server::clickhouse()).at_once(4).main();
}
