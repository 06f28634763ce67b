//! Live feeds as the input of a job.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use qi_core::agent::AgentSpec;
use qi_core::bus::{GroupQuery, TopicName};
use qi_core::{Error, Instrument, PriceTick, Result};

use super::Job;
use crate::exchanges::{LiveConfig, LiveCounters, LiveFeed, RestClient, protocol};

/// The instruments whose live trades are the input of a job.
#[derive(Default)]
#[non_exhaustive]
pub struct Live {
    /// The instruments. The exchange of each selects its protocol.
    pub instruments: Vec<Instrument>,
    /// The settings of the feeds.
    pub config: LiveConfig,
    /// The counters of all feeds.
    pub counters: Arc<LiveCounters>,
    /// Other addresses of an exchange than its own, for example of a proxy.
    pub addresses: BTreeMap<String, Addresses>,
}

/// The addresses of an exchange.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The address of the stream: `ws://` or `wss://`.
    pub stream: String,
    /// The address of the REST interface: `http://` or `https://`.
    pub rest: String,
    /// The least time between two requests to the REST interface.
    pub request_interval: Duration,
}

impl Live {
    /// Creates the input for these instruments, with default settings.
    pub fn new(instruments: Vec<Instrument>) -> Self {
        Self { instruments, ..Self::default() }
    }

    /// Checks that every instrument has a known exchange and a symbol that the exchange can have.
    ///
    /// # Errors
    /// `InvalidInput` with the instrument.
    pub fn check(&self) -> Result<()> {
        for (at, instrument) in self.instruments.iter().enumerate() {
            let exchange = instrument.exchange().as_str();
            let Some(protocol) = protocol(exchange) else {
                return Err(Error::invalid(
                    "live.exchange",
                    "exchange",
                    exchange,
                    "must be binance or kraken",
                ));
            };
            protocol.symbol(instrument)?;
            if self.instruments[..at].contains(instrument) {
                return Err(Error::invalid(
                    "live.instrument",
                    "instrument",
                    instrument,
                    "must be named once",
                ));
            }
        }
        Ok(())
    }

    /// Returns an agent for each instrument. Agents of one exchange share its REST interface.
    pub(super) fn agents(&self, job: &Job, writer: &GroupQuery) -> Result<Vec<AgentSpec>> {
        self.check()?;
        let topic = TopicName::new(PriceTick::DATASET.topic())?;
        let mut exchanges = BTreeMap::new();
        let mut agents = Vec::new();
        for instrument in &self.instruments {
            let exchange = instrument.exchange().as_str();
            let (protocol, rest, stream_url) = match exchanges.entry(exchange) {
                Entry::Occupied(found) => found.into_mut(),
                Entry::Vacant(entry) => {
                    let Some(protocol) = protocol(exchange) else { continue };
                    let own = || Addresses {
                        stream: protocol.stream_url().to_owned(),
                        rest: protocol.rest_url().to_owned(),
                        request_interval: protocol.request_interval(),
                    };
                    let addresses = self.addresses.get(exchange).cloned().unwrap_or_else(own);
                    let rest =
                        RestClient::new(protocol.clone(), &addresses.rest, addresses.request_interval)?;
                    entry.insert((protocol, Arc::new(rest), addresses.stream))
                }
            };
            let (instrument, protocol, rest, stream_url) =
                (instrument.clone(), protocol.clone(), rest.clone(), stream_url.clone());
            let (store, bus, counters) = (job.store.clone(), job.bus.clone(), job.counters.clone());
            let (topic, writer) = (topic.clone(), Some(writer.clone()));
            let (config, live) = (self.config.clone(), self.counters.clone());
            let name = format!("live {instrument}");
            let make = move || LiveFeed {
                instrument: instrument.clone(),
                protocol: protocol.clone(),
                stream_url: stream_url.clone(),
                rest: rest.clone(),
                store: store.clone(),
                bus: bus.clone(),
                topic: topic.clone(),
                writer: writer.clone(),
                config: config.clone(),
                counters: counters.clone(),
                live: live.clone(),
            };
            agents.push(AgentSpec::new(name, make).depends_on(["writer"]));
        }
        Ok(agents)
    }
}
