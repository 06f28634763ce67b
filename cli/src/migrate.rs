//! `qi migrate`: creates the schema of a store and the topics of the catalogue.

use qi_core::bus::{MessageBus, TopicCatalogue, TopicState};
use qi_core::{PriceStore, Result};

use crate::output::{Listing, text};

/// Returns a listing without steps.
pub fn listing() -> Listing {
    Listing::new(["target", "what", "result"])
}

/// Migrates the schema of a store to this version, and changes the settings of existing tables to the configured ones.
/// Can be repeated, and run by several processes at once.
///
/// # Errors
/// Errors of the store.
pub async fn store(target: &str, store: &dyn PriceStore, listing: &mut Listing) -> Result<()> {
    let report = store.migrate_schema().await?;
    for step in &report.applied {
        listing.push([text(target), text(step), text("applied")]);
    }
    listing.push([text(target), text("schema"), text(format!("version {}", report.version))]);
    Ok(())
}

/// Lists the statements that [`store`] would run now, and changes nothing.
///
/// # Errors
/// Errors of the store.
pub async fn plan_store(target: &str, store: &dyn PriceStore, listing: &mut Listing) -> Result<()> {
    for statement in store.plan_schema().await? {
        listing.push([text(target), text(statement), text("would run")]);
    }
    Ok(())
}

/// Lists the topics that [`bus`] would create now, and changes nothing.
///
/// # Errors
/// Errors of the bus.
pub async fn plan_bus(
    target: &str,
    bus: &dyn MessageBus,
    catalogue: &TopicCatalogue,
    listing: &mut Listing,
) -> Result<()> {
    let found = bus.topics().await?;
    for spec in catalogue.specs()? {
        if !found.iter().any(|topic| topic.name == spec.name) {
            listing.push([text(target), text(format!("topic {}", spec.name)), text("would create")]);
        }
    }
    Ok(())
}

/// Creates the missing topics and lists the settings that differ. Existing topics are unchanged. Returns true if every
/// topic exists with its partitions.
///
/// # Errors
/// Errors of the bus before any topic was tried.
pub async fn bus(
    target: &str,
    bus: &dyn MessageBus,
    catalogue: &TopicCatalogue,
    listing: &mut Listing,
) -> Result<bool> {
    let mut well = true;
    for outcome in bus.create_topics(&catalogue.specs()?).await? {
        let result = match outcome.result {
            Ok(TopicState::Created) => "created".to_owned(),
            Ok(TopicState::Existed { settings_hidden: true, .. }) => "there; settings hidden".to_owned(),
            Ok(TopicState::Existed { differs, .. }) if differs.is_empty() => "there".to_owned(),
            Ok(TopicState::Existed { differs, .. }) => {
                let differs = differs.iter().map(|d| format!("{} is {}, not {}", d.name, d.found, d.wanted));
                format!("there; {}", differs.collect::<Vec<_>>().join(", "))
            }
            Ok(other) => format!("{other:?}"),
            Err(error) => {
                well = false;
                error.report()
            }
        };
        listing.push([text(target), text(format!("topic {}", outcome.topic)), text(result)]);
    }
    Ok(well)
}
