//! The domain types for sqlx, for custom SQL on the tables.

use qi_core::domain::Provider;
use qi_core::{Decimal, Exchange, Interval, Percent, Price, Quantity, Scope, Side, Symbol, Timestamp};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use super::wire::{self, PG_EPOCH_MICROS};

// Types have the fixed OIDs of PostgreSQL. With a name, the driver would query the OID of an array's element between the
// preparation and the execution of a statement, and an unnamed statement exists only until the next query.

/// A wrapper that lets sqlx bind and read a value or a record of the domain.
///
/// Values implement sqlx's `Type`, `Encode` and `Decode`. [`Decimal`], [`Price`], [`Quantity`] and [`Percent`]
/// are `numeric`. [`Timestamp`] is `timestamptz`. [`Exchange`], [`Symbol`], [`Interval`], [`Side`], [`Scope`] and
/// [`Provider`] are `text`. A counter (`u64`) is `bigint`. Every record implements `FromRow`, with the column names
/// of its dataset's view: `ticks_view`, `bars_view`, and so on. A stored value outside the domain is an error.
/// Values are never rounded.
///
/// ```no_run
/// use qi_adapters::timescale::{Pg, TimescaleStore};
/// use qi_core::{Price, PriceTick};
/// async fn ticks_above(store: &TimescaleStore, price: Price) -> Result<Vec<PriceTick>, sqlx::Error> {
///     let found: Vec<Pg<PriceTick>> =
///         sqlx::query_as("SELECT * FROM ticks_view WHERE price > $1 ORDER BY ts, seq LIMIT 100")
///             .bind(Pg(price))
///             .fetch_all(store.pool())
///             .await?;
///     Ok(found.into_iter().map(|tick| tick.0).collect())
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pg<T>(pub T);

/// Returns the bytes of a value in the binary format. The driver uses the text format only in unprepared statements.
fn binary<'r>(value: &PgValueRef<'r>) -> Result<&'r [u8], BoxDynError> {
    match value.format() {
        PgValueFormat::Binary => value.as_bytes(),
        PgValueFormat::Text => {
            Err("only prepared statements are supported: use sqlx::query, not raw_sql".into())
        }
    }
}

macro_rules! numerics {
    ($($name:ty => |$units:ident| $make:expr;)*) => {$(
        impl Type<Postgres> for Pg<$name> {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid(1700)) // numeric
            }
        }
        impl PgHasArrayType for Pg<$name> {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid(1231)) // _numeric
            }
        }
        impl Encode<'_, Postgres> for Pg<$name> {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                wire::encode(self.0.units(), buffer);
                Ok(IsNull::No)
            }
        }
        impl<'r> Decode<'r, Postgres> for Pg<$name> {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                let $units = wire::decode(binary(&value)?)?;
                Ok(Self($make?))
            }
        }
    )*};
}

numerics! {
    Decimal => |units| Decimal::from_units(units);
    Price => |units| Price::from_units(units);
    Quantity => |units| Quantity::from_units(units);
    Percent => |units| Percent::from_units(units);
}

/// Values that the tables store as text.
macro_rules! texts {
    ($($name:ty: |$value:ident| $write:expr, |$text:ident| $read:expr;)*) => {$(
        impl Type<Postgres> for Pg<$name> {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid(25)) // text
            }
            fn compatible(ty: &PgTypeInfo) -> bool {
                <str as Type<Postgres>>::compatible(ty)
            }
        }
        impl PgHasArrayType for Pg<$name> {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid(1009)) // _text
            }
        }
        impl Encode<'_, Postgres> for Pg<$name> {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let $value = &self.0;
                buffer.extend_from_slice($write.as_bytes());
                Ok(IsNull::No)
            }
        }
        impl<'r> Decode<'r, Postgres> for Pg<$name> {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                let $text = value.as_str()?;
                Ok(Self($read?))
            }
        }
    )*};
}

texts! {
    Exchange: |value| value.as_str(), |text| Exchange::new(text);
    Symbol: |value| value.as_str(), |text| Symbol::new(text);
    Interval: |value| value.as_str(), |text| text.parse();
    Side: |value| value.as_str(), |text| text.parse();
    Scope: |value| value.storage_text(), |text| Scope::from_storage_text(text);
    Provider: |value| value.as_str(), |text| Provider::new(text);
}

impl Type<Postgres> for Pg<Timestamp> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1184)) // timestamptz
    }
}

impl PgHasArrayType for Pg<Timestamp> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1185)) // _timestamptz
    }
}

impl Encode<'_, Postgres> for Pg<Timestamp> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&(self.0.as_micros() - PG_EPOCH_MICROS).to_be_bytes());
        Ok(IsNull::No)
    }
}

impl<'r> Decode<'r, Postgres> for Pg<Timestamp> {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let micros = i64::from_be_bytes(binary(&value)?.try_into()?);
        // Positive infinity is `i64::MAX` and overflows here. `Timestamp` rejects negative infinity.
        let micros = micros.checked_add(PG_EPOCH_MICROS).ok_or("infinite timestamp")?;
        Ok(Self(Timestamp::from_micros(micros)?))
    }
}

impl Type<Postgres> for Pg<u64> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(20)) // int8
    }
}

impl PgHasArrayType for Pg<u64> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1016)) // _int8
    }
}

impl Encode<'_, Postgres> for Pg<u64> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&i64::try_from(self.0)?.to_be_bytes());
        Ok(IsNull::No)
    }
}

impl<'r> Decode<'r, Postgres> for Pg<u64> {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(u64::try_from(i64::from_be_bytes(binary(&value)?.try_into()?))?))
    }
}
