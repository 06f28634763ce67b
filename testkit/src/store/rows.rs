//! Conversions between records of any dataset and [`Row`]s.

use qi_core::Result;
use qi_core::record::{Dataset, RecordVec, Records, Row};

/// Converts rows to a vector of the dataset's own type.
pub(crate) fn records_of<'a>(dataset: Dataset, rows: impl IntoIterator<Item = &'a Row>) -> Result<RecordVec> {
    let mut records = dataset.new_vec();
    for row in rows {
        row.push_to(&mut records)?;
    }
    Ok(records)
}

/// Copies the records at the given indices.
pub(crate) fn pick(records: &dyn Records, at: impl IntoIterator<Item = usize>) -> Result<RecordVec> {
    let mut picked = records.dataset().new_vec();
    records.copy_to(&mut at.into_iter(), &mut picked, 0..0)?;
    Ok(picked)
}
