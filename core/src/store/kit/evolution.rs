//! How a stored dataset may differ from a declared one.

use crate::record::{Column, ColumnType};

/// How a declared dataset differs from the stored one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference<'a> {
    /// The stored columns are the declared ones.
    None,
    /// These optional columns were declared since, at the end.
    Added(&'a [Column]),
    /// The declared columns are the first of the stored ones, and the rest is optional: the program is an older version.
    Older,
    /// The declaration cannot become the stored one. The text says what differs and what to do.
    Refused(String),
}

/// Compares the value columns of a stored dataset with the declared ones.
///
/// ```
/// use qi_core::record::{Column, ColumnType};
/// use qi_core::store::kit::{Difference, difference};
/// let column = |name, optional| Column { name, ty: ColumnType::Decimal, optional };
/// let (stored, declared) = ([column("rate", false)], [column("rate", false), column("cap", true)]);
/// assert_eq!(difference(&stored, &declared), Difference::Added(&declared[1..]));
/// assert_eq!(difference(&declared, &stored), Difference::Older);
/// ```
pub fn difference<'a>(stored: &[Column], declared: &'a [Column]) -> Difference<'a> {
    for (was, is) in stored.iter().zip(declared) {
        if was.name != is.name {
            return Difference::Refused(format!(
                "column {} is declared where {} is stored: columns are never renamed, removed or moved; add new ones \
                 at the end",
                is.name, was.name
            ));
        }
        if was.optional != is.optional {
            let kind = |optional: bool| if optional { "optional" } else { "required" };
            return Difference::Refused(format!(
                "column {} is stored as {} and declared as {}: declare another dataset, or a new column",
                is.name,
                kind(was.optional),
                kind(is.optional)
            ));
        }
        if !is_same(was.ty, is.ty) {
            return Difference::Refused(format!(
                "column {} is stored as {:?} and declared as {:?}: declare another dataset, or a new column",
                is.name, was.ty, is.ty
            ));
        }
    }
    if declared.len() <= stored.len() {
        return match stored[declared.len()..].iter().find(|column| !column.optional) {
            None if declared.len() == stored.len() => Difference::None,
            None => Difference::Older,
            Some(required) => Difference::Refused(format!(
                "the stored column {} is required and not declared: declare it, or another dataset",
                required.name
            )),
        };
    }
    let added = &declared[stored.len()..];
    // A list of levels is never absent: stored records have an empty one.
    match added.iter().find(|column| !column.optional && !matches!(column.ty, ColumnType::Levels { .. })) {
        None => Difference::Added(added),
        Some(required) => Difference::Refused(format!(
            "the new column {} is required, and stored records have no value for it: make it optional",
            required.name
        )),
    }
}

/// Whether two declarations of a column are compatible. Bounds of texts and lists are checked by the program alone; new
/// names of an enumeration come at the end.
fn is_same(was: ColumnType, is: ColumnType) -> bool {
    match (was, is) {
        (ColumnType::Text { .. }, ColumnType::Text { .. })
        | (ColumnType::Levels { .. }, ColumnType::Levels { .. }) => true,
        (ColumnType::Enumeration(was), ColumnType::Enumeration(is)) => {
            was.iter().zip(is).all(|(was, is)| was == is)
        }
        _ => was == is,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &'static str, ty: ColumnType, optional: bool) -> Column {
        Column { name, ty, optional }
    }

    #[test]
    fn only_optional_columns_at_the_end_are_added() {
        let a = column("a", ColumnType::Decimal, false);
        let (b, c) =
            (column("b", ColumnType::Counter, true), column("c", ColumnType::Levels { max: 3 }, false));
        let stored = [a, b];
        assert_eq!(difference(&stored, &[a, b]), Difference::None);
        assert_eq!(difference(&stored, &[a, b, c]), Difference::Added(&[c]));
        assert_eq!(difference(&stored, &[a]), Difference::Older);
        let refused = |declared: &[Column], word: &str| {
            let Difference::Refused(why) = difference(&stored, declared) else {
                panic!("{declared:?} is accepted")
            };
            assert!(why.contains(word), "{why}");
        };
        refused(&[b, a], "column b");
        refused(&[b], "column b");
        refused(&[a, c], "column c");
        refused(&[], "column a");
        refused(&[a, column("b", ColumnType::Counter, false)], "optional");
        refused(&[column("a", ColumnType::Integer, false), b], "Integer");
        refused(&[a, b, column("d", ColumnType::Decimal, false)], "make it optional");
    }

    #[test]
    fn bounds_and_new_names_are_compatible() {
        let of = |ty| [column("a", ty, false)];
        let same = |was, is| difference(&of(was), &of(is)) == Difference::None;
        assert!(same(ColumnType::Text { max: 9 }, ColumnType::Text { max: 5 }));
        assert!(same(ColumnType::Enumeration(&["a"]), ColumnType::Enumeration(&["a", "b"])));
        assert!(
            same(ColumnType::Enumeration(&["a", "b"]), ColumnType::Enumeration(&["a"])),
            "an older version"
        );
        assert!(!same(ColumnType::Enumeration(&["a", "b"]), ColumnType::Enumeration(&["b", "a"])));
        assert!(!same(ColumnType::Enumeration(&["a"]), ColumnType::Text { max: 9 }));
    }
}
