//! Records of any dataset as [`Row`]s and back.

use qi_core::Result;
use qi_core::record::{Dataset, RecordVec, Records, Row};

/// Makes a vector of the dataset's own type out of rows.
pub(crate) fn records_of<'a>(dataset: Dataset, rows: impl IntoIterator<Item = &'a Row>) -> Result<RecordVec> {
    let mut records = dataset.new_vec();
    for row in rows {
        row.push_to(&mut records)?;
    }
    Ok(records)
}

/// Copies the records at some indices.
pub(crate) fn pick(records: &dyn Records, at: impl IntoIterator<Item = usize>) -> Result<RecordVec> {
    let mut picked = records.dataset().new_vec();
    records.copy_to(&mut at.into_iter(), &mut picked, 0..0)?;
    Ok(picked)
}
