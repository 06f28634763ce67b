//! Stores trades with an agent, and prints their bars.

use std::{sync::Arc, time::Duration};

use qi_adapters::Config;
use qi_core::prelude::*;

#[derive(Clone)]
struct Collector {
    store: Arc<dyn PriceStore>,
    instrument: Instrument,
}

#[async_trait]
impl Agent for Collector {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        // In your program, the trades come from an exchange or from a file. Instrument, time and trade id are the key.
        for (id, price) in (1..).zip(["39432.48", "39433.10", "39431.97", "39435.00", "39434.25"]) {
            let tick = PriceTick::new(self.instrument.clone(), cx.now(), id, price.parse()?)?;
            self.store.insert_ticks(&[tick]).await?;
            if cx.sleep(Duration::from_millis(10)).await.is_none() {
                break; // SIGINT or SIGTERM
            }
        }
        Ok(())
    }
}

async fn collect(config: &Config) -> Result<Vec<Bar>> {
    let store = config.open_store().await?;
    store.ensure_schema().await?;
    let instrument = Instrument::from_static("binance:BTC-USDT");
    let collector = Collector { store: store.clone(), instrument: instrument.clone() };
    let agent = AgentSpec::new("collector", move || collector.clone());
    AgentRuntime::builder().agent(agent).build()?.run_with_signals().await?.result()?;

    let bars = store.derived_bars(&BarQuery::new(instrument, Interval::S1, TimeRange::ALL)).await?;
    store.close().await?;
    Ok(bars.items)
}

#[tokio::main]
async fn main() -> Result<()> {
    for bar in collect(&Config::load("qi.toml")?).await? {
        let BarValues { open, high, low, close, .. } = bar.values();
        println!("{} open {open} high {high} low {low} close {close}", bar.open_time());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stores_every_trade() -> Result<()> {
        let config = Config::builder().build()?; // in memory
        let bars = collect(&config).await?;
        assert_eq!(bars.iter().filter_map(|bar| bar.values().count).sum::<u64>(), 5);
        Ok(())
    }
}
