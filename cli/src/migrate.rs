//! `qi migrate`: creates the schema of a store and the topics of the catalogue.

use qi_core::bus::{MessageBus, TopicCatalogue, TopicState};
use qi_core::{Datasets, Error, ErrorKind, PriceStore, Result};

use crate::output::{Listing, text};
use crate::session::MEMORY;

pub(crate) const ALL_DATASETS: &str = "--all-datasets opens all datasets of the library";

/// Returns a listing without steps.
pub fn listing() -> Listing {
    Listing::new(["target", "what", "result"])
}

/// Migrates the schema of a store to this version, and changes the settings of existing tables to the configured ones.
/// Can be repeated, and run by several processes concurrently.
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

/// Returns the remedy of an error about a missing schema, or None if no command resolves the error. `command` is the
/// command that creates the schema.
pub(crate) async fn hint(store: &dyn PriceStore, error: &Error, command: &str) -> Option<String> {
    let is_absent = [".no_database", ".no_schema", ".no_file", ".no_table"];
    let is_absent = is_absent.iter().any(|end| error.code().ends_with(end));
    if !is_absent && error.kind() != ErrorKind::SchemaMismatch {
        return None;
    }
    if error.code() == "store.dataset.unknown" {
        let dataset = error.context_value("dataset")?;
        return Datasets::built_in().get(dataset).map(|_| ALL_DATASETS.to_owned());
    }
    if store.info().backend == MEMORY {
        return Some(
            "the store is in the memory of this process and empty at its start; set store.backend".to_owned(),
        );
    }
    // A database of another program, or of a newer version, has no plan.
    let statements = store.plan_schema().await.ok()?;
    // If a column and a table are missing, the column belongs to a table of another program.
    let is_foreign = !is_absent && statements.iter().any(|statement| statement.starts_with("CREATE TABLE"));
    (!statements.is_empty() && !is_foreign)
        .then(|| format!("`{command}` creates the schema, which is missing or incomplete"))
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
            Ok(TopicState::Existed { settings_hidden: true, .. }) => "exists; settings hidden".to_owned(),
            Ok(TopicState::Existed { differs, .. }) if differs.is_empty() => "exists".to_owned(),
            Ok(TopicState::Existed { differs, .. }) => {
                let differs =
                    differs.iter().map(|d| format!("{} is {}, expected {}", d.name, d.found, d.wanted));
                format!("exists; {}", differs.collect::<Vec<_>>().join(", "))
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
