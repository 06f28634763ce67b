//! The types of columns, and the conversion of their values.

use super::{Column, ColumnType, FieldReader, FieldWriter, Levels};
use crate::domain::{counter, text_name};
use crate::{
    Decimal, Exchange, Interval, Percent, Price, Provider, Quantity, Result, Scope, Side, Symbol, Timestamp,
};

/// A type of column values. `Option` of such a type is an optional column.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a column of a record",
    label = "not a column type",
    note = "column types are `Price`, `Quantity`, `Percent`, `Decimal`, `u64`, `i64`, `bool`, `Timestamp`, `Interval`, \
            `Text`, `Provider`, `Symbol`, `Exchange`, `Levels`, enums with `#[derive(Enumeration)]`, and `Option` of these"
)]
pub trait ColumnValue: Sized {
    /// The type of the column.
    const TYPE: ColumnType;
    /// True if the value may be absent.
    const OPTIONAL: bool = false;

    /// Writes the value, with its presence if the column is optional.
    fn write<W: FieldWriter + ?Sized>(&self, out: &mut W);

    /// Reads a value of this type.
    ///
    /// # Errors
    /// The reader's error; `InvalidInput` for a value that the type does not allow.
    fn read<F: FieldReader + ?Sized>(fields: &mut F) -> Result<Self>;

    /// Returns whether the value is absent.
    fn is_absent(&self) -> bool {
        false
    }

    /// Checks that stores can represent the value.
    ///
    /// # Errors
    /// `InvalidInput` with the field and the value.
    fn check(&self, field: &'static str) -> Result<()> {
        let _ = field;
        Ok(())
    }
}

/// A struct whose fields are columns of the record that contains it. Implement it with `#[derive(Columns)]`, and mark
/// the field of the record with `#[flatten]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no columns",
    note = "add `#[derive(Columns)]` to the struct"
)]
pub trait Columns: Sized {
    /// The columns in the declared order.
    const COLUMNS: &'static [Column];

    /// Writes the values in the declared order.
    fn write<W: FieldWriter + ?Sized>(&self, out: &mut W);

    /// Reads the values in the declared order.
    ///
    /// # Errors
    /// As [`ColumnValue::read`].
    fn read<F: FieldReader + ?Sized>(fields: &mut F) -> Result<Self>;

    /// Checks that stores can represent the values.
    ///
    /// # Errors
    /// `InvalidInput` with the field and the value.
    fn check(&self) -> Result<()>;
}

/// An enum without fields, stored by the position of its variant. Implement it with `#[derive(Enumeration)]`.
pub trait Enumeration: Copy + 'static {
    /// The names of the variants in the declared order.
    const NAMES: &'static [&'static str];

    /// Returns the position of the variant, counted from 1.
    fn code(self) -> u8;

    /// Returns the variant at a position, counted from 1.
    fn from_code(code: u8) -> Option<Self>;
}

impl<T: ColumnValue> ColumnValue for Option<T> {
    const TYPE: ColumnType = {
        assert!(!T::OPTIONAL, "a column is optional once");
        T::TYPE
    };
    const OPTIONAL: bool = true;

    fn write<W: FieldWriter + ?Sized>(&self, out: &mut W) {
        out.presence(self.is_some());
        if let Some(value) = self {
            value.write(out);
        }
    }
    fn read<F: FieldReader + ?Sized>(fields: &mut F) -> Result<Self> {
        if fields.presence()? { T::read(fields).map(Some) } else { Ok(None) }
    }
    fn is_absent(&self) -> bool {
        self.is_none()
    }
    fn check(&self, field: &'static str) -> Result<()> {
        self.as_ref().map_or(Ok(()), |value| value.check(field))
    }
}

macro_rules! values {
    ($($name:ty, $ty:expr, $method:ident, |$value:ident| $write:expr, |$read:ident| $make:expr;)*) => {$(
        impl ColumnValue for $name {
            const TYPE: ColumnType = $ty;

            fn write<W: FieldWriter + ?Sized>(&self, out: &mut W) {
                let $value = self;
                out.$method($write);
            }
            fn read<F: FieldReader + ?Sized>(fields: &mut F) -> Result<Self> {
                let $read = fields.$method()?;
                $make
            }
        }
    )*};
}

values! {
    Decimal, ColumnType::Decimal, decimal, |v| *v, |v| Ok(v);
    Price, ColumnType::Decimal, decimal, |v| v.decimal(), |v| Self::new(v);
    Quantity, ColumnType::Decimal, decimal, |v| v.decimal(), |v| Self::new(v);
    Percent, ColumnType::Decimal, decimal, |v| v.decimal(), |v| Self::new(v);
    i64, ColumnType::Integer, integer, |v| *v, |v| Ok(v);
    bool, ColumnType::Boolean, boolean, |v| *v, |v| Ok(v);
    Timestamp, ColumnType::Timestamp, time, |v| *v, |v| Ok(v);
    Interval, ColumnType::Interval, interval, |v| *v, |v| Ok(v);
    Provider, ColumnType::Text { max: 64 }, text, |v| v.as_str(), |v| Self::new(v);
    Symbol, ColumnType::Text { max: Self::MAX_BYTES }, text, |v| v.as_str(), |v| Self::new(v);
    Exchange, ColumnType::Text { max: 32 }, text, |v| v.as_str(), |v| Self::new(v);
    Side, ColumnType::Enumeration(Self::NAMES), code, |v| v.code(), |v| super::macros::enumeration(v);
    Scope, ColumnType::Text { max: Self::MAX_BYTES }, text, |v| &v.storage_text(), |v| Self::from_storage_text(&v);
}

impl ColumnValue for u64 {
    const TYPE: ColumnType = ColumnType::Counter;

    fn write<W: FieldWriter + ?Sized>(&self, out: &mut W) {
        out.counter(*self);
    }
    fn read<F: FieldReader + ?Sized>(fields: &mut F) -> Result<Self> {
        fields.counter()
    }
    fn check(&self, field: &'static str) -> Result<()> {
        counter(field, *self).map(drop)
    }
}

impl Enumeration for Side {
    const NAMES: &'static [&'static str] = &["buy", "sell"];

    fn code(self) -> u8 {
        match self {
            Self::Buy => 1,
            Self::Sell => 2,
        }
    }
    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Buy),
            2 => Some(Self::Sell),
            _ => None,
        }
    }
}

/// UTF-8 text of at most `MAX` bytes, without NUL. Cloning increments a reference count.
///
/// ```
/// use qi_core::record::Text;
/// let note: Text<32> = "rebalanced".parse()?;
/// assert_eq!(note.as_str(), "rebalanced");
/// assert!("far too long for thirty-two bytes".parse::<Text<32>>().is_err());
/// # Ok::<(), qi_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const MAX: usize>(std::sync::Arc<str>);

text_name!(@impl [const MAX: usize] [Text<MAX>], "record.text", "text",
    format_args!("must be at most {MAX} bytes without NUL"), "a text",
    |text| text.len() <= MAX && !text.contains('\0'));

impl<const MAX: usize> ColumnValue for Text<MAX> {
    const TYPE: ColumnType = ColumnType::Text { max: MAX };

    fn write<W: FieldWriter + ?Sized>(&self, out: &mut W) {
        out.text(self.as_str());
    }
    fn read<F: FieldReader + ?Sized>(fields: &mut F) -> Result<Self> {
        Self::new(fields.text()?)
    }
}

impl<const MAX: usize> ColumnValue for Levels<MAX> {
    const TYPE: ColumnType = ColumnType::Levels { max: MAX };

    fn write<W: FieldWriter + ?Sized>(&self, out: &mut W) {
        out.levels(self.as_slice());
    }
    fn read<F: FieldReader + ?Sized>(fields: &mut F) -> Result<Self> {
        Self::new(fields.levels()?)
    }
}
